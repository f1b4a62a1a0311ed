// The page of a model: facts, what accuracy costs, training curves, downloads and the card of one of its versions.

import { readCsv } from "./csv.js";
import { $, element } from "./dom.js";
import { saveAs } from "./download.js";
import { compact, percent, shortNumber } from "./format.js";
import { render } from "./markdown.js";
import { drawPlot } from "./plot.js";
import { ROOT, ServerError, get, hasKey, request, useKey } from "./server.js";
import "./server_state.js";

const RETRY = 2; // seconds
const FLAT = 0.001; // difference in accuracy that a plot does not show
const DRAWN = ["curves.png", "evaluation.png"]; // pictures of the card that the page draws itself
const NAMES = { "README.md": "model card", "model.onnx": "model.onnx" };

const name = decodeURIComponent(location.pathname.replace(/\/$/, "").split("/").at(-1));
let model = null;
let evaluation = []; // rows of evaluation.csv for all inputs
let history = []; // rows of history.csv

const pathOf = (file) => `models/${encodeURIComponent(name)}/versions/${model.version}/files/${encodeURIComponent(file)}`;
const read = async (file) => (file in model.files ? request(pathOf(file)) : null);

async function show() {
  try {
    const version = new URLSearchParams(location.search).get("version");
    model = await get(`models/${encodeURIComponent(name)}${version ? `/versions/${encodeURIComponent(version)}` : ""}`);
    const texts = ["README.md", "evaluation.csv", "history.csv"].map(async (file) => (await read(file))?.text());
    const [card, outcomes, epochs] = await Promise.all(texts);
    const rows = outcomes ? readCsv(outcomes) : [];
    evaluation = rows.filter((row) => row.label === "" && !row.solver);
    const served = rows.find((row) => row.solver === model.solver && Number(row.tolerance) === model.tolerance);
    history = epochs ? readCsv(epochs) : [];
    $("error").hidden = true;
    $("model").hidden = false;
    showFacts(version, served);
    showCard(card);
    draw();
  } catch (error) {
    showError(error);
  }
}

function showError(error) {
  if (!(error instanceof ServerError)) throw error;
  $("model").hidden = true;
  $("error").hidden = false;
  $("key-form").hidden = error.status !== 401;
  const needsKey = hasKey() ? "Invalid API key." : "This server requires an API key.";
  $("error-text").textContent = error.status === 401 ? needsKey : error.message;
  if ([0, 429, 503].includes(error.status)) setTimeout(show, 1000 * (error.retryAfter || RETRY));
}

// version: a number or an alias, as the page's address has it, or null. served: what the model's solver takes, where it is known.
function showFacts(version, served) {
  document.title = `${name} · implicit networks`;
  $("name").textContent = name;
  const aliases = Object.entries(model.aliases).filter(([, number]) => model.versions.includes(number));
  $("version").replaceChildren(
    ...model.versions.map((one) => new Option(one === model.versions.at(-1) ? `${one} (latest)` : one, one)),
    ...aliases.map(([alias, number]) => new Option(`${alias} (version ${number})`, alias)),
  );
  $("version").value = aliases.some(([alias]) => alias === version) ? version : model.version;
  $("version").disabled = $("version").length < 2;
  $("try").href = new URL(`./?${new URLSearchParams({ model: name })}`, ROOT);
  const { metrics, input } = model;
  const range = input.low === null ? "" : `, ${input.low} to ${input.high}`;
  const known = (key, format) => (typeof metrics?.[key] === "number" ? format(metrics[key]) : null);
  const facts = {
    accuracy: known("accuracy", (share) => percent(share, 2)),
    "mean iterations": served ? `${Number(served.iterations).toFixed(1)} (${model.solver})` : known("iterations", (count) => count.toFixed(1)),
    parameters: known("parameters", (count) => count.toLocaleString("en")),
    "training time": known("seconds", (seconds) => `${Math.round(seconds)} s`),
    input: `${input.shape.join(" × ")} ${input.dtype}${range}`,
    architecture: model.architecture,
    solvers: model.solvers.join(", "),
    tolerance: `${shortNumber(model.tolerance)} (${model.residual_norm.replace("_", " ")})`,
    "maximum iterations": model.max_iterations.toLocaleString("en"),
    "stop by label": model.label_stop?.kind ?? "not offered",
  };
  $("facts").replaceChildren(
    ...Object.entries(facts)
      .filter(([, value]) => value !== null)
      .map(([term, value]) => {
        const fact = element("div");
        fact.append(element("dt", "", term), element("dd", "", value));
        return fact;
      }),
  );
  const shown = model.classes.slice(0, 40).join(", ");
  $("classes").textContent = `${model.classes.length}: ${shown}${model.classes.length > 40 ? ", …" : ""}`;
  $("files").replaceChildren(...Object.entries(model.files).flatMap(([file, bytes]) => [fileLink(file, bytes), " "]));
  if (!Object.keys(model.files).length) $("files").textContent = "This version has none.";
}

function fileLink(file, bytes) {
  const link = element("a", "button", NAMES[file] ?? file);
  link.append(element("small", "", ` ${compact(bytes)}B`));
  link.href = new URL(pathOf(file), ROOT);
  link.download = file;
  link.addEventListener("click", async (event) => {
    if (!hasKey()) return;
    event.preventDefault(); // a link sends no key
    try {
      saveAs(file, await (await read(file)).blob());
    } catch (error) {
      showError(error);
    }
  });
  return link;
}

function showCard(card) {
  $("card").hidden = !card;
  if (card) $("card").replaceChildren(...render(card, picture));
}

function picture(path, description) {
  if (DRAWN.includes(path) || !(path in model.files)) return null;
  const image = Object.assign(element("img"), { alt: description });
  read(path).then(async (response) => (image.src = URL.createObjectURL(await response.blob())), () => image.remove());
  return image;
}

function draw() {
  if (model === null) return;
  const number = (row, column) => Number(row[column]);
  const plain = (value) => compact(value);
  const caps = evaluation.map((row) => number(row, "max_iterations"));
  const tolerances = evaluation.map((row) => number(row, "tolerance"));
  const atCap = evaluation.filter((row) => number(row, "max_iterations") === Math.max(...caps));
  const tightest = evaluation.filter((row) => number(row, "tolerance") === Math.min(...tolerances));
  const points = (rows, x, y) => ({ points: rows.map((row) => [number(row, x), number(row, y)]).sort(([a], [b]) => a - b) });
  $("evaluation").hidden = !evaluation.length;
  $("no-evaluation").hidden = evaluation.length > 0;
  $("no-evaluation").textContent = `Not evaluated: run python -m training evaluate ${name}/${model.version}.`;
  const accuracies = evaluation.map((row) => number(row, "accuracy"));
  const [lowest, highest] = [Math.min(...accuracies), Math.max(...accuracies)];
  const isFlat = highest - lowest < FLAT;
  $("accuracy-plot").toggleAttribute("hidden", isFlat);
  [$("accuracy-legend").hidden, $("flat-accuracy").hidden] = [isFlat, !isFlat];
  $("flat-accuracy").textContent = `${percent(highest, 1)} from the first iteration on: more iterations do not raise it.`;
  drawPlot(
    $("accuracy-plot"),
    [points(atCap, "iterations", "accuracy"), points(tightest, "iterations", "accuracy")],
    { name: "mean iterations", log: true, format: plain },
    { name: "accuracy", format: (share) => percent(share, 1) },
  );
  drawPlot(
    $("tolerance-plot"),
    [points(atCap, "tolerance", "iterations"), points(atCap, "tolerance", "p95_iterations")],
    { name: "tolerance", log: true, format: shortNumber },
    { name: "iterations", format: plain },
  );
  $("history").hidden = !history.length;
  $("no-history").hidden = history.length > 0;
  for (const [plot, of, format] of [["loss-plot", "loss", shortNumber], ["training-plot", "accuracy", (share) => percent(share)]])
    drawPlot(
      $(plot),
      [points(history, "epoch", `train_${of}`), points(history, "epoch", `validation_${of}`)],
      { name: "epoch", format: plain },
      { name: of, format },
    );
}

$("version").addEventListener("change", () => {
  window.history.replaceState(null, "", `?version=${$("version").value}`);
  show();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  $("key").value = "";
  show();
});
new ResizeObserver(draw).observe(document.querySelector("main"));
show();
