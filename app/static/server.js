// The client of the server: every failure is a ServerError with a status, 0 if the server does not answer.

export const ROOT = new URL("..", import.meta.url); // of the server, whatever the page and the proxy's prefix

const KEY = "key";
const UNREACHABLE = "The server cannot be reached.";

export class ServerError extends Error {
  constructor(status, message, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, 0 if the server sends no Retry-After
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const useKey = (key) => sessionStorage.setItem(KEY, key.trim()); // kept until the tab is closed

export async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (hasKey()) headers.authorization = `Bearer ${encodeURI(sessionStorage.getItem(KEY))}`; // headers hold ASCII only
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(0, UNREACHABLE);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error ?? text;
  } catch {
    // a proxy's answer is shown unchanged
  }
  throw new ServerError(response.status, message, Number(response.headers.get("retry-after")) || 0);
}

export const get = async (path) => (await request(path)).json();

// Predict with progress: calls onIteration for each iteration, resolves to the answer.
export async function predict(model, body, signal, onIteration) {
  const response = await request(`models/${encodeURIComponent(model)}/predict`, {
    method: "POST",
    headers: { accept: "text/event-stream", "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ServerError(0, "The server closed the connection before the end of its answer.");
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const [name, data] = block.split("\n").map((line) => line.slice(line.indexOf(" ") + 1));
        const content = JSON.parse(data);
        if (name === "answer") return content;
        if (name === "error") throw new ServerError(503, content.error);
        onIteration(content);
      }
    }
  } catch (error) {
    throw error instanceof ServerError || error.name === "AbortError" ? error : new ServerError(0, UNREACHABLE);
  }
}
