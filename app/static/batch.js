// A batch: image files, one request each, into a table and a CSV file. The server fills its batch from the requests.

import { writeCsv } from "./csv.js";
import { $, element } from "./dom.js";
import { percent, shortNumber } from "./format.js";
import { ServerError, request } from "./server.js";

const CONCURRENT = 8; // requests
const ATTEMPTS = 5; // of a request that the server is too busy for
const MAX_FILES = 10_000;
const MAX_ROWS = 200; // of the table; the CSV has all
const COLUMNS = ["file", "label", "probability", "iterations", "residual", "status", "error"];

let running = null; // the AbortController of the batch in progress
let rows = []; // { file, label, probability, iterations, residual, status, error }, in the order of the files

// The files of what was dropped, those of folders included.
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return found;
}

async function collect(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    Object.defineProperty(file, "path", { value: entry.fullPath.slice(1) });
    found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // at most 100 at a time
    if (!some.length) return;
    for (const inner of some) await collect(inner, found);
  }
}

const nameOf = (file) => file.path || file.webkitRelativePath || file.name;

// Predict all image files; query: the settings, as the API takes them.
export async function runBatch(model, query, files) {
  running?.abort();
  const mine = (running = new AbortController());
  const images = files.filter((file) => /\.(png|jpe?g)$/i.test(file.name)).slice(0, MAX_FILES);
  images.sort((a, b) => nameOf(a).localeCompare(nameOf(b), "en", { numeric: true }));
  rows = Array(images.length).fill(null);
  $("batch-rows").replaceChildren();
  $("batch-table").hidden = $("batch-actions").hidden = !images.length;
  $("batch-csv").disabled = true;
  showProgress(images.length, files.length - images.length);
  let next = 0;
  const work = async () => {
    while (next < images.length && !mine.signal.aborted) {
      const k = next++;
      const row = await predictFile(model, query, images[k], mine.signal);
      if (mine.signal.aborted) return;
      rows[k] = row;
      showProgress(images.length, files.length - images.length);
    }
  };
  await Promise.all(Array.from({ length: CONCURRENT }, work));
  if (mine.signal.aborted) return;
  $("batch-rows").replaceChildren(...rows.slice(0, MAX_ROWS).map(tableRow));
  $("batch-csv").disabled = false;
}

async function predictFile(model, query, file, signal) {
  const row = { file: nameOf(file), label: "", probability: "", iterations: "", residual: "", status: "", error: "" };
  const path = `models/${encodeURIComponent(model.name)}/predict?${new URLSearchParams(query)}`;
  const options = { method: "POST", headers: { "content-type": file.type }, body: file, signal };
  for (let attempt = 1; ; attempt++) {
    try {
      const { predictions } = await (await request(path, options)).json();
      const { label, index, probabilities, iterations, residual, status } = predictions[0];
      return { ...row, label: label ?? "", probability: probabilities?.[index] ?? "", iterations, residual: residual ?? "", status };
    } catch (error) {
      if (!(error instanceof ServerError) || ![429, 503].includes(error.status) || attempt === ATTEMPTS)
        return { ...row, error: error.message };
      await new Promise((done) => setTimeout(done, 1000 * (error.retryAfter || 1)));
    }
  }
}

function showProgress(count, ignored) {
  const known = rows.filter(Boolean);
  const answered = known.filter((one) => !one.error);
  const mean = answered.reduce((sum, one) => sum + one.iterations, 0) / answered.length;
  const parts = [
    known.length < count ? `${known.length} of ${count} images` : `${count} image${count === 1 ? "" : "s"}`,
    answered.length ? `mean ${mean.toFixed(1)} iterations` : "",
    known.length > answered.length ? `${known.length - answered.length} failed` : "",
    ignored ? `${ignored} file${ignored === 1 ? "" : "s"} ignored: not PNG or JPEG` : "",
    count > MAX_ROWS ? `the first ${MAX_ROWS} are shown` : "",
  ];
  $("batch-summary").textContent = parts.filter(Boolean).join(" · ");
}

function tableRow(row) {
  const made = element("tr");
  const probability = row.probability === "" ? "" : percent(row.probability, 1);
  const residual = row.residual === "" ? "" : shortNumber(row.residual);
  const texts = [row.file, row.label, probability, row.iterations, residual, row.status || row.error];
  made.append(...texts.map((text) => element("td", "", text)));
  return made;
}

export const csv = () => writeCsv([COLUMNS, ...rows.map((row) => COLUMNS.map((name) => row[name]))]);
