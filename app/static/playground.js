// The playground: what is drawn is asked as it is drawn, and the answer is seen to form.

import { drawCosts, drawProbabilities, drawResiduals } from "./charts.js";
import { Pad, picture } from "./pad.js";
import { get, hasKey, Trouble, useKey, watch } from "./server.js";

const DEBOUNCE = 70; // milliseconds
const MOST_COSTS = 50;
const TOP = 5;
const REPLAY = 2500; // milliseconds
const RETRY = 2; // seconds, where the server does not say

const $ = (id) => document.getElementById(id);
const pad = new Pad($("pad"));
const costs = [];
let models = [];
let model = null;
let samples = [];
let asking = null; // the AbortController of the request in flight
let events = []; // of the last request's iterations
let asked = null; // its tolerance and cap
let answer = null;
let timer = 0;
let retry = 0;
let frame = 0;

// -- what is asked ----------------------------------------------------------------------------------------------------

const tolerance = () => Number((10 ** Number($("tolerance").value)).toPrecision(2));
const cap = () => Math.min(model.max_iterations_limit, Math.round(10 ** Number($("cap").value)));

function input() {
  if (model.input.kind === "image") return pad.isEmpty ? null : pad.input();
  if (!$("numbers").value.trim()) return null;
  const numbers = $("numbers").value.split(/[\s,;[\]]+/).filter(Boolean).map(Number);
  const size = model.input.shape.reduce((a, b) => a * b, 1);
  if (numbers.length !== size || numbers.some((one) => !Number.isFinite(one)))
    throw new Trouble(422, `Expected ${size} numbers, got ${numbers.length} entries.`);
  const nest = (flat, [, ...inner]) => {
    if (!inner.length) return flat;
    const each = inner.reduce((a, b) => a * b, 1);
    return Array.from({ length: flat.length / each }, (_, k) => nest(flat.slice(k * each, (k + 1) * each), inner));
  };
  return nest(numbers, model.input.shape);
}

function askSoon() {
  clearTimeout(timer);
  clearTimeout(retry);
  timer = setTimeout(ask, DEBOUNCE);
}

async function ask() {
  asking?.abort();
  stopReplay();
  const mine = (asking = new AbortController());
  try {
    const one = input();
    if (one === null) return forget();
    if (model.input.kind === "image") showSeen(one);
    const began = performance.now();
    const wanted = { tolerance: tolerance(), cap: cap(), solver: $("solver").value };
    let heard = null; // until the first event, the last answer stays in sight
    const body = {
      inputs: [one],
      tolerance: wanted.tolerance,
      max_iterations: wanted.cap,
      solver: wanted.solver,
      stop: $("stop").checked ? "label" : "tolerance",
    };
    const whole = await watch(model.name, body, mine.signal, (event) => {
      if (heard === null) [heard, events, asked, answer] = [[], [], wanted, null];
      heard.push(event);
      events = heard;
      drawSoon();
    });
    if (mine.signal.aborted) return;
    asked = wanted;
    answer = { ...whole.predictions[0], milliseconds: performance.now() - began };
    countCost();
    showTrouble(null);
    draw();
    say();
  } catch (error) {
    if (!mine.signal.aborted) showTrouble(error, ask);
  }
}

function forget() {
  [events, answer, asked] = [[], null, null];
  $("said").textContent = "";
  $("seen").getContext("2d").clearRect(0, 0, $("seen").width, $("seen").height);
  draw();
}

// -- what is shown ----------------------------------------------------------------------------------------------------

function drawSoon() {
  frame ||= requestAnimationFrame(() => draw());
}

// count: of the iterations to show; all of them but in a replay.
function draw(count = events.length) {
  cancelAnimationFrame(frame);
  frame = 0;
  $("hint").hidden = !pad.isEmpty;
  const shown = events.slice(0, count);
  const last = shown.at(-1);
  const isWhole = count === events.length && answer !== null;
  // Colours follow the labels that are likeliest at the end, so that none changes on the way there.
  const ranked = (events.findLast((event) => event.top.length)?.top ?? []).slice(0, TOP);
  const probability = (event, index) => event.top.find((one) => one.index === index)?.probability ?? null;
  const best = last?.top[0];
  $("label").textContent = best?.label ?? (last ? "?" : "–");
  $("label").classList.toggle("long", (best?.label.length ?? 0) > 3);
  $("iterations").textContent = last ? last.iteration.toLocaleString("en") : "–";
  $("residual").textContent = last ? shortNumber(last.residual) : "–";
  $("time").textContent = isWhole ? `${answer.milliseconds.toFixed(answer.milliseconds < 10 ? 1 : 0)} ms` : "–";
  $("end").textContent = isWhole ? ended(answer) : last ? "iterating…" : "draw, or pick a sample";
  $("end").className = `end ${isWhole ? answer.status : ""}`;
  $("replay").disabled = events.length < 2 || answer === null;
  const bars = ranked.map((one, rank) => bar(one.label, rank, last ? (probability(last, one.index) ?? 0) : 0));
  $("bars").replaceChildren(...bars);
  $("legend").replaceChildren(...ranked.map((one, rank) => element("span", `key rank${rank}`, one.label)));
  drawResiduals($("residuals"), shown.map((event) => event.residual), asked?.tolerance ?? tolerance());
  const series = ranked.map((one) => shown.map((event) => probability(event, one.index)));
  drawProbabilities($("probabilities"), series, shown.length);
}

function bar(label, rank, probability) {
  const item = element("li", `rank${rank}`);
  const track = element("span", "track");
  const fill = element("span", "fill");
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  item.append(element("span", "name", label), track, element("span", "share", `${(100 * probability).toFixed(1)}%`));
  return item;
}

function ended({ status, stability }) {
  const words = {
    converged: "converged: it moves less than the tolerance",
    label_stable: `its label cannot change any more: ${lead(stability)}`,
    max_iterations: "stopped at the cap, before the tolerance",
    deadline: "stopped at the deadline",
    diverged: "diverged: its numbers are no longer finite",
  };
  return words[status];
}

// stability: null or undefined where the answer is not one to a label stop.
function lead(stability) {
  if (!stability) return "";
  const { margin, bound, kind } = stability;
  const [ahead, left] = [margin, bound].map((one) => (one === null ? "any amount" : shortNumber(one)));
  return `it leads by ${ahead}, and can lose ${left}${kind === "estimate" ? ", by estimate" : ""}`;
}

function say() {
  const count = `${answer.iterations} iteration${answer.iterations === 1 ? "" : "s"}`;
  const share = answer.probabilities ? ` with ${Math.round(100 * answer.probabilities[answer.index])} per cent` : "";
  $("said").textContent = `${answer.label ?? "No label"}${share}, after ${count}: ${ended(answer)}.`;
}

function countCost() {
  const { iterations, status, label, milliseconds } = answer;
  const took = `${iterations} iterations, ${milliseconds.toFixed(1)} ms`;
  const text = `${label ?? "no label"}: ${took}, tolerance ${shortNumber(asked.tolerance)}, ${asked.solver}`;
  costs.push({ iterations, status, text });
  costs.splice(0, costs.length - MOST_COSTS);
  const mean = costs.reduce((sum, one) => sum + one.iterations, 0) / costs.length;
  const highest = Math.max(...costs.map((one) => one.iterations));
  $("strip-mean").textContent = `mean ${mean.toFixed(1)} · max ${highest}`;
  $("costs").setAttribute("aria-label", `Iterations of the last ${costs.length} requests: mean ${mean.toFixed(1)}`);
  drawCosts($("costs"), costs, MOST_COSTS);
}

function showSeen(one) {
  const small = picture(one, model.input);
  const seen = $("seen");
  [seen.width, seen.height] = [small.width, small.height];
  seen.getContext("2d").drawImage(small, 0, 0);
}

// error: null when all is well; again: what to do once it may be over.
function showTrouble(error, again) {
  clearTimeout(retry);
  $("trouble").hidden = error === null;
  $("key-form").hidden = error?.status !== 401;
  if (error === null) return;
  if (!(error instanceof Trouble)) throw error;
  const wait = error.retryAfter || RETRY;
  const soon = ` Trying again in ${wait} s.`;
  const texts = {
    0: error.message + soon,
    401: hasKey() ? "The server does not know this key." : "The server wants a key.",
    429: `The server is busy: its queue is full.${soon}`,
    503: `The server is not ready: ${error.message}.${soon}`,
  };
  $("trouble-text").textContent = texts[error.status] ?? error.message;
  if ([0, 429, 503].includes(error.status)) retry = setTimeout(again, wait * 1000);
}

// -- replay -----------------------------------------------------------------------------------------------------------

let replaying = 0;

function replay() {
  stopReplay();
  const began = performance.now();
  const next = (now) => {
    const share = Math.min(1, Math.max(0, now - began) / REPLAY);
    draw(Math.max(1, Math.ceil(share * events.length)));
    replaying = share < 1 ? requestAnimationFrame(next) : 0;
  };
  replaying = requestAnimationFrame(next);
}

function stopReplay() {
  cancelAnimationFrame(replaying);
  replaying = 0;
}

// -- models and samples -----------------------------------------------------------------------------------------------

async function start() {
  try {
    const { models: found, default: chosen } = await get("models");
    models = found;
    showTrouble(models.length ? null : new Trouble(404, "The server has no model: train one, and reload."));
    $("model").replaceChildren(...models.map((one) => new Option(one.name, one.name)));
    $("model").disabled = models.length < 2;
    if (models.length) {
      $("model").value = chosen ?? (models.find((one) => one.input.kind === "image") ?? models[0]).name;
      await choose();
    }
  } catch (error) {
    showTrouble(error, start);
  }
}

async function choose() {
  model = models.find((one) => one.name === $("model").value);
  asking?.abort();
  try {
    samples = await get(`models/${encodeURIComponent(model.name)}/samples`);
  } catch (error) {
    return showTrouble(error, choose);
  }
  const isImage = model.input.kind === "image";
  $("picture-input").hidden = !isImage;
  $("number-input").hidden = isImage;
  $("number-hint").textContent = `${model.input.shape.join(" × ")} numbers`;
  $("numbers").value = "";
  $("tolerance").value = Math.log10(model.tolerance);
  $("cap").max = Math.log10(model.max_iterations_limit);
  $("cap").value = Math.log10(model.max_iterations);
  $("solver").replaceChildren(...model.solvers.map((name) => new Option(name, name)));
  $("solver").value = model.solver;
  $("solver").disabled = model.solvers.length < 2;
  $("stop").checked = false;
  $("stop").disabled = model.label_stop === null;
  $("stop-label").title = model.label_stop ? "" : "This model has no label stops: python -m training evaluate calibrates them.";
  $("norm").textContent = `${model.residual_norm.replace("_", " ")} norm`;
  showKnobs();
  $("samples").replaceChildren(...samples.map(sampleButton));
  if (isImage) pad.prepare(model.input, samples.map((one) => one.input));
  forget();
  if (samples.length) useSample(samples[0]);
}

function sampleButton(sample) {
  const button = element("button", "sample");
  button.type = "button";
  button.setAttribute("aria-label", `Sample: ${sample.label}`);
  button.title = sample.label;
  if (model.input.kind === "image") button.append(picture(sample.input, model.input));
  else button.textContent = sample.label;
  button.addEventListener("click", () => useSample(sample));
  return button;
}

function useSample(sample) {
  if (model.input.kind === "image") return pad.showSample(sample.input);
  $("numbers").value = sample.input.flat(Infinity).join(", ");
  askSoon();
}

function showKnobs() {
  const fits = (solver) => !$("stop").checked || model.label_stop.solvers.includes(solver);
  for (const option of $("solver").options) option.disabled = !fits(option.value);
  if (!fits($("solver").value)) $("solver").value = model.label_stop.solvers[0];
  $("tolerance-value").textContent = shortNumber(tolerance());
  $("tolerance").setAttribute("aria-valuetext", shortNumber(tolerance()));
  $("cap-value").textContent = cap().toLocaleString("en");
  $("cap").setAttribute("aria-valuetext", cap());
}

async function open(file) {
  try {
    await pad.showPicture(file);
  } catch {
    showTrouble(new Trouble(422, `${file.name || "This"} is not an image that the browser can read.`));
  }
}

function shortNumber(value) {
  if (value === null) return "not finite";
  if (value >= 0.01 && value < 1000) return String(Number(value.toPrecision(2)));
  const [digits, power] = value.toExponential(1).split("e");
  const raised = [...String(Number(power))].map((one) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(one)]).join("");
  return value === 0 ? "0" : `${Number(digits)}·10${raised}`;
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// -- events -----------------------------------------------------------------------------------------------------------

pad.addEventListener("change", () => {
  $("hint").hidden = !pad.isEmpty;
  if (model) askSoon();
});
$("clear").addEventListener("click", () => pad.clear());
$("invert").addEventListener("click", () => pad.invert());
$("replay").addEventListener("click", replay);
$("file").addEventListener("change", (event) => {
  if (event.target.files[0]) open(event.target.files[0]);
  event.target.value = "";
});
$("model").addEventListener("change", choose);
$("numbers").addEventListener("input", askSoon);
for (const knob of [$("tolerance"), $("cap"), $("solver"), $("stop")])
  knob.addEventListener("input", () => {
    if (!model) return;
    showKnobs();
    askSoon();
  });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  $("key").value = "";
  if (model) ask();
  else start();
});
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file && model?.input.kind === "image") open(file);
  });
new ResizeObserver(() => {
  draw();
  drawCosts($("costs"), costs, MOST_COSTS);
}).observe(document.querySelector("main"));
start();
