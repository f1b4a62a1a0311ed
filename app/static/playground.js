// The playground: sends the input while it is drawn, and shows the answer as it converges.

import { drawCosts, drawProbabilities, drawResiduals } from "./charts.js";
import { clearHeat, drawHeat, magnitudes } from "./heat.js";
import { generate, inputOf, landmarks, MazeEditor, MIN_SIZE, reachableExits, read } from "./maze.js";
import { Pad, picture } from "./pad.js";
import { get, hasKey, predict, ServerError, useKey } from "./server.js";

const DEBOUNCE = 70; // milliseconds
const MAX_COSTS = 50;
const TOP = 5;
const REPLAY = 2500; // milliseconds
const RETRY = 2; // seconds, without a Retry-After of the server

const $ = (id) => document.getElementById(id);
const pad = new Pad($("pad"));
const mazes = new MazeEditor($("maze"));
const costs = [];
let models = [];
let model = null;
let samples = [];
let kind = null; // how the model's input is edited: "image", "maze" or "vector"
let inFlight = null; // the AbortController of the request in flight
let events = []; // one per iteration of the last request
let sent = null; // its tolerance, cap, solver, and what to mark in its heat map
let answer = null;
let timer = 0;
let retry = 0;
let frame = 0;

// -- the request ------------------------------------------------------------------------------------------------------

const tolerance = () => Number((10 ** Number($("tolerance").value)).toPrecision(2));
const cap = () => Math.min(model.max_iterations_limit, Math.round(10 ** Number($("cap").value)));

function input() {
  if (kind === "maze") return inputOf(mazes.maze);
  if (kind === "image") return pad.isEmpty ? null : pad.input();
  if (!$("numbers").value.trim()) return null;
  const numbers = $("numbers").value.split(/[\s,;[\]]+/).filter(Boolean).map(Number);
  const size = model.input.shape.reduce((a, b) => a * b, 1);
  if (numbers.length !== size || numbers.some((one) => !Number.isFinite(one)))
    throw new ServerError(422, `The input must be ${size} numbers (got ${numbers.length}).`);
  const nest = (flat, [, ...inner]) => {
    if (!inner.length) return flat;
    const each = inner.reduce((a, b) => a * b, 1);
    return Array.from({ length: flat.length / each }, (_, k) => nest(flat.slice(k * each, (k + 1) * each), inner));
  };
  return nest(numbers, model.input.shape);
}

function predictSoon() {
  clearTimeout(timer);
  clearTimeout(retry);
  timer = setTimeout(send, DEBOUNCE);
}

async function send() {
  inFlight?.abort();
  stopReplay();
  const mine = (inFlight = new AbortController());
  try {
    const one = input();
    if (one === null) return forget();
    if (kind === "image") showSeen(one);
    const started = performance.now();
    const marks = kind === "maze" ? landmarks(mazes.maze) : [];
    const wanted = { tolerance: tolerance(), cap: cap(), solver: $("solver").value, marks };
    let received = null; // until the first event, the last answer stays visible
    const body = {
      inputs: [one],
      tolerance: wanted.tolerance,
      max_iterations: wanted.cap,
      solver: wanted.solver,
      stop: $("stop").checked ? "label" : "tolerance",
      trace: "state",
    };
    const whole = await predict(model.name, body, mine.signal, (event) => {
      if (received === null) [received, events, sent, answer] = [[], [], wanted, null];
      received.push({ ...event, state: event.state ? magnitudes(event.state) : null });
      events = received;
      drawSoon();
    });
    if (mine.signal.aborted) return;
    sent = wanted;
    answer = { ...whole.predictions[0], milliseconds: performance.now() - started };
    countCost();
    showError(null);
    draw();
    say();
    if (kind === "maze" && !matchMedia("(prefers-reduced-motion: reduce)").matches) replay();
  } catch (error) {
    if (!mine.signal.aborted) showError(error, send);
  }
}

function forget() {
  [events, answer, sent] = [[], null, null];
  $("said").textContent = "";
  $("seen").getContext("2d").clearRect(0, 0, $("seen").width, $("seen").height);
  draw();
}

// -- the answer -------------------------------------------------------------------------------------------------------

function drawSoon() {
  frame ||= requestAnimationFrame(() => draw());
}

// count: the number of iterations to show; fewer than all during a replay.
function draw(count = events.length) {
  cancelAnimationFrame(frame);
  frame = 0;
  $("hint").hidden = !pad.isEmpty;
  const shown = events.slice(0, count);
  const last = shown.at(-1);
  const isWhole = count === events.length && answer !== null;
  // The labels that are most likely at the end have the colours, so that no colour changes on the way.
  const ranked = (events.findLast((event) => event.top.length)?.top ?? []).slice(0, TOP);
  const probability = (event, index) => event.top.find((one) => one.index === index)?.probability ?? null;
  const best = last?.top[0];
  $("label").textContent = best?.label ?? (last ? "?" : "–");
  $("label").classList.toggle("long", model?.classes.some((name) => name.length > 3));
  $("iterations").textContent = last ? last.iteration.toLocaleString("en") : "–";
  $("residual").textContent = last ? shortNumber(last.residual) : "–";
  $("time").textContent = isWhole ? `${answer.milliseconds.toFixed(answer.milliseconds < 10 ? 1 : 0)} ms` : "–";
  $("end").textContent = isWhole ? ended(answer) : last ? "Iterating…" : "Draw, or choose a sample";
  $("end").className = `end ${isWhole ? answer.status : ""}`;
  $("replay").disabled = events.length < 2 || answer === null;
  const bars = ranked.map((one, rank) => bar(one.label, rank, last ? (probability(last, one.index) ?? 0) : 0));
  $("bars").replaceChildren(...bars);
  $("legend").replaceChildren(...ranked.map((one, rank) => element("span", `key rank${rank}`, one.label)));
  drawResiduals($("residuals"), shown.map((event) => event.residual), sent?.tolerance ?? tolerance());
  const series = ranked.map((one) => shown.map((event) => probability(event, one.index)));
  drawProbabilities($("probabilities"), series, shown.length);
  drawState(shown.findLast((event) => event.state) ?? null);
}

// event: the last one with a state, or null.
function drawState(event) {
  const states = events.filter((one) => one.state).map((one) => one.state);
  $("heat-iteration").textContent = event ? event.iteration.toLocaleString("en") : "–";
  $("heat-shape").textContent = event ? event.state.shape.join(" × ") : "–";
  $("heat-peak").textContent = event ? shortNumber(event.state.peak) : "–";
  const by = $("heat-by").value;
  if (event) drawHeat($("heat"), states, states.indexOf(event.state), by, by === "change" ? sent.marks : []);
  else clearHeat($("heat"));
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
    converged: "Converged: the last change is below the tolerance",
    label_stable: `Label settled: ${lead(stability)}`,
    max_iterations: "Stopped at the maximum number of iterations, above the tolerance",
    deadline: "Stopped at the deadline",
    diverged: "Diverged: the numbers are no longer finite",
  };
  return words[status];
}

// stability: null or undefined unless the request stopped by its label.
function lead(stability) {
  if (!stability) return "";
  const { margin, bound, kind } = stability;
  const [ahead, left] = [margin, bound].map((one) => (one === null ? "any amount" : shortNumber(one)));
  return `it leads by ${ahead} and can lose at most ${left}${kind === "estimate" ? " (estimate)" : ""}`;
}

function say() {
  const count = `${answer.iterations} iteration${answer.iterations === 1 ? "" : "s"}`;
  const share = answer.probabilities ? ` with ${Math.round(100 * answer.probabilities[answer.index])} percent` : "";
  $("said").textContent = `${answer.label ?? "No label"}${share}, after ${count}. ${ended(answer)}.`;
}

function countCost() {
  const { iterations, status, label, milliseconds } = answer;
  const took = `${iterations} iterations, ${milliseconds.toFixed(1)} ms`;
  const text = `${label ?? "no label"}: ${took}, tolerance ${shortNumber(sent.tolerance)}, ${sent.solver}`;
  costs.push({ iterations, status, text });
  costs.splice(0, costs.length - MAX_COSTS);
  const mean = costs.reduce((sum, one) => sum + one.iterations, 0) / costs.length;
  const highest = Math.max(...costs.map((one) => one.iterations));
  $("strip-mean").textContent = `mean ${mean.toFixed(1)} · max ${highest}`;
  $("costs").setAttribute("aria-label", `Iterations of the last ${costs.length} requests: mean ${mean.toFixed(1)}`);
  drawCosts($("costs"), costs, MAX_COSTS);
}

function showSeen(one) {
  const small = picture(one, model.input);
  const seen = $("seen");
  [seen.width, seen.height] = [small.width, small.height];
  seen.getContext("2d").drawImage(small, 0, 0);
}

// error: null clears the message; again: called for a retry.
function showError(error, again) {
  clearTimeout(retry);
  $("error").hidden = error === null;
  $("key-form").hidden = error?.status !== 401;
  if (error === null) return;
  if (!(error instanceof ServerError)) throw error;
  const wait = error.retryAfter || RETRY;
  const soon = ` Retrying in ${wait} s.`;
  const texts = {
    0: error.message + soon,
    401: hasKey() ? "Invalid API key." : "This server requires an API key.",
    429: `The server is busy: the queue is full.${soon}`,
    503: `The server is not ready: ${error.message}.${soon}`,
  };
  $("error-text").textContent = texts[error.status] ?? error.message;
  if ([0, 429, 503].includes(error.status)) retry = setTimeout(again, wait * 1000);
}

// -- replay -----------------------------------------------------------------------------------------------------------

let replaying = 0;

function replay() {
  stopReplay();
  const started = performance.now();
  const next = (now) => {
    const share = Math.min(1, Math.max(0, now - started) / REPLAY);
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
    showError(models.length ? null : new ServerError(404, "The server has no model. Train one and reload this page."));
    $("model").replaceChildren(...models.map((one) => new Option(one.name, one.name)));
    $("model").disabled = models.length < 2;
    if (models.length) {
      $("model").value = chosen ?? (models.find((one) => one.input.kind === "image") ?? models[0]).name;
      await choose();
    }
  } catch (error) {
    showError(error, start);
  }
}

async function choose() {
  model = models.find((one) => one.name === $("model").value);
  inFlight?.abort();
  try {
    samples = await get(`models/${encodeURIComponent(model.name)}/samples`);
  } catch (error) {
    return showError(error, choose);
  }
  kind = samples.length && samples.every((one) => read(one.input)) ? "maze" : model.input.kind;
  $("picture-input").hidden = kind !== "image";
  $("maze-input").hidden = kind !== "maze";
  $("number-input").hidden = kind !== "vector";
  $("heat-by").value = kind === "maze" ? "change" : "magnitude"; // the maze itself makes most of the magnitude
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
  $("stop-label").title = model.label_stop ? "" : "Label stops are not calibrated for this model: run python -m training evaluate.";
  $("norm").textContent = `${model.residual_norm.replace("_", " ")} norm`;
  showKnobs();
  $("samples").replaceChildren(...samples.map(sampleButton));
  if (kind === "image") pad.prepare(model.input, samples.map((one) => one.input));
  if (kind === "maze") prepareSizes();
  forget();
  if (samples.length) useSample(samples[0]);
}

function prepareSizes() {
  const most = (model.input.shape[1] + 1) / 2;
  const sizes = Array.from({ length: most - MIN_SIZE + 1 }, (_, k) => most - k);
  $("maze-size").replaceChildren(...sizes.map((size) => new Option(`${size} × ${size}`, size)));
}

function newMaze() {
  mazes.maze = generate(model.input.shape[1], Number($("maze-size").value), $("maze-difficulty").value);
}

function showMazeAnswer() {
  const exits = reachableExits(mazes.maze);
  const [{ colour, steps } = {}] = exits;
  const answers = [
    "Right answer: none, no exit is connected.",
    `Right answer: ${colour}, ${steps} steps away.`,
    `Connected: ${exits.map((exit) => exit.colour).join(", ")}. In training, one exit is.`,
  ];
  $("maze-answer").textContent = answers[Math.min(exits.length, 2)];
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
  if (kind === "maze") return (mazes.maze = read(sample.input));
  if (kind === "image") return pad.showSample(sample.input);
  $("numbers").value = sample.input.flat(Infinity).join(", ");
  predictSoon();
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
    showError(new ServerError(422, `${file.name || "This"} is not an image that this browser can read.`));
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
  if (model) predictSoon();
});
mazes.addEventListener("change", () => {
  showMazeAnswer();
  predictSoon();
});
$("new-maze").addEventListener("click", newMaze);
for (const choice of [$("maze-size"), $("maze-difficulty")]) choice.addEventListener("input", newMaze);
$("heat-by").addEventListener("input", () => draw());
$("clear").addEventListener("click", () => pad.clear());
$("invert").addEventListener("click", () => pad.invert());
$("replay").addEventListener("click", replay);
$("file").addEventListener("change", (event) => {
  if (event.target.files[0]) open(event.target.files[0]);
  event.target.value = "";
});
$("model").addEventListener("change", choose);
$("numbers").addEventListener("input", predictSoon);
for (const knob of [$("tolerance"), $("cap"), $("solver"), $("stop")])
  knob.addEventListener("input", () => {
    if (!model) return;
    showKnobs();
    predictSoon();
  });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  $("key").value = "";
  if (model) send();
  else start();
});
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file && kind === "image") open(file);
  });
new ResizeObserver(() => {
  draw();
  drawCosts($("costs"), costs, MAX_COSTS);
}).observe(document.querySelector("main"));
start();
