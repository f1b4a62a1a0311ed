// The playground: sends the input while it is drawn, and shows the answer as it converges.

import { confidence, ended, isFlat, settledAt } from "./answer.js";
import { csv, filesOf, runBatch } from "./batch.js";
import { drawCosts, drawProbabilities, drawResiduals } from "./charts.js";
import { copy } from "./clipboard.js";
import { $, element } from "./dom.js";
import { saveAs } from "./download.js";
import { milliseconds, percent, shortNumber } from "./format.js";
import { clearHeat, drawHeat, magnitudes } from "./heat.js";
import { linkTo, nested, readLink } from "./link.js";
import { generate, inputOf, landmarks, MazeEditor, MIN_SIZE, reachableExits, read } from "./maze.js";
import { Pad, picture } from "./pad.js";
import { get, hasKey, predict, ServerError, useKey } from "./server.js";
import { checkServer } from "./server_state.js";
import { snippets } from "./snippets.js";

const DEBOUNCE = 70; // milliseconds
const MAX_COSTS = 50;
const TOP = 5;
const LEAST_SHARE = 0.01; // largest probability of a label that has a curve
const REPLAY = 2500; // milliseconds
const RETRY = 2; // seconds, without a Retry-After of the server

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
const settings = () => ({
  tolerance: tolerance(),
  max_iterations: cap(),
  solver: $("solver").value,
  stop: $("stop").checked ? "label" : "tolerance",
});

function input() {
  if (kind === "maze") return inputOf(mazes.maze);
  if (kind === "image") return pad.isEmpty ? null : pad.input();
  if (!$("numbers").value.trim()) return null;
  const numbers = $("numbers").value.split(/[\s,;[\]]+/).filter(Boolean).map(Number);
  const found = nested(numbers, model.input.shape);
  if (found) return found;
  const size = model.input.shape.reduce((a, b) => a * b, 1);
  throw new ServerError(422, `The input must be ${size} numbers (got ${numbers.length}).`);
}

function cancel() {
  inFlight?.abort();
  clearTimeout(timer);
  clearTimeout(retry);
}

// The answer to the old input is no answer to the new one.
function inputChanged() {
  inFlight?.abort();
  forget();
  predictSoon();
}

function predictSoon() {
  clearTimeout(timer);
  clearTimeout(retry);
  timer = setTimeout(send, DEBOUNCE);
}

async function send() {
  inFlight?.abort();
  stopReplay();
  if (model.name !== $("model").value) return choose(); // whose samples could not be read
  const mine = (inFlight = new AbortController());
  try {
    const one = input();
    if (one === null) return forget();
    if (kind === "image") showSeen(one);
    const started = performance.now();
    const marks = kind === "maze" ? landmarks(mazes.maze) : [];
    const body = { inputs: [one], ...settings() };
    const wanted = { ...body, marks };
    let received = null; // until the first event, the answer for the same input and other settings stays visible
    const whole = await predict(model.name, { ...body, trace: "state" }, mine.signal, (event) => {
      if (received === null) [received, events, sent, answer] = [[], [], wanted, null];
      received.push({ ...event, state: event.state ? magnitudes(event.state) : null });
      events = received;
      drawSoon();
    });
    if (mine.signal.aborted) return;
    sent = wanted;
    answer = { ...whole.predictions[0], ...whole.timings, round_trip_ms: performance.now() - started };
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
  stopReplay();
  [events, answer, sent] = [[], null, null];
  $("said").textContent = "";
  $("error").hidden = true;
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
  const sure = isWhole ? confidence(answer, model.classes) : { level: "", text: "" };
  $("reading").hidden = !$("error").hidden;
  $("label").textContent = last?.top[0]?.label ?? (last ? "?" : "–");
  $("label").className = `label ${sure.level} ${model?.classes.some((name) => name.length > 3) ? "long" : ""}`;
  $("iterations").textContent = last ? last.iteration.toLocaleString("en") : "–";
  $("residual").textContent = last ? shortNumber(last.residual) : "–";
  $("round-trip").textContent = isWhole ? milliseconds(answer.round_trip_ms) : "–";
  $("engine-time").textContent = isWhole ? milliseconds(answer.total_ms) : "–";
  const parts = isWhole ? `${milliseconds(answer.queue_ms)} queue + ${milliseconds(answer.compute_ms)} compute` : "";
  $("engine-parts").textContent = parts;
  $("confidence").textContent = sure.text;
  $("confidence").className = `confidence ${sure.level}`;
  $("end").textContent = isWhole ? ended(answer) : last ? "Iterating…" : isEmpty() ? "Draw, or choose a sample" : "Waiting for the answer…";
  $("end").className = `end ${isWhole ? answer.status : ""}`;
  $("replay").disabled = events.length < 2 || answer === null;
  const isStale = sent !== null && Object.entries(settings()).some(([name, value]) => sent[name] !== value);
  $("reading").classList.toggle("stale", isStale);
  for (const button of $("copies").querySelectorAll("button")) button.disabled = answer === null || isStale;
  const bars = ranked.map((one, rank) => bar(one.label, rank, last ? (probability(last, one.index) ?? 0) : 0));
  $("bars").replaceChildren(...bars);
  $("bars").style.setProperty("--rows", Math.min(TOP, model?.classes.length ?? TOP));
  drawCurves(shown, ranked, probability);
  drawState(shown.findLast((event) => event.state) ?? null);
}

const isEmpty = () => model === null || (kind === "image" ? pad.isEmpty : kind === "vector" && !$("numbers").value.trim());

// Curves with nothing to show are a sentence.
function drawCurves(shown, ranked, probability) {
  const seriesOf = (of) => ranked.map((one) => of.map((event) => probability(event, one.index)));
  const flat = answer !== null && ranked.length > 0 && isFlat(seriesOf(events));
  const single = answer !== null && events.length === 1;
  const wanted = sent?.tolerance ?? tolerance();
  $("residuals").toggleAttribute("hidden", single);
  $("probabilities").toggleAttribute("hidden", flat);
  [$("one-residual").hidden, $("settled").hidden] = [!single, !flat];
  if (single) $("one-residual").textContent = `After one iteration: ${shortNumber(events[0].residual)}, tolerance ${shortNumber(wanted)}.`;
  else drawResiduals($("residuals"), shown.map((event) => event.residual), wanted);
  $("legend").replaceChildren();
  if (flat) {
    const { label, probability: share } = ranked[0];
    $("settled").textContent = `Label settled at iteration ${settledAt(events)}: ${label}, ${percent(share)} from then on.`;
    return;
  }
  const largest = (values) => Math.max(...values.map((one) => one ?? 0));
  const useful = seriesOf(events).map((values, rank) => rank === 0 || largest(values) >= LEAST_SHARE);
  const keys = ranked.map((one, rank) => useful[rank] && element("span", `key rank${rank}`, one.label)).filter(Boolean);
  $("legend").replaceChildren(...keys);
  drawProbabilities($("probabilities"), seriesOf(shown).map((values, rank) => (useful[rank] ? values : [])), shown.length);
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
  item.append(element("span", "name", label), track, element("span", "share", percent(probability, 1)));
  return item;
}

function say() {
  const count = `${answer.iterations} iteration${answer.iterations === 1 ? "" : "s"}`;
  const share = answer.probabilities ? ` with ${Math.round(100 * answer.probabilities[answer.index])} percent` : "";
  $("said").textContent = `${answer.label ?? "No label"}${share}, after ${count}. ${ended(answer)}. ${confidence(answer, model.classes).text}.`;
}

function countCost() {
  const { iterations, status, label } = answer;
  const took = `${iterations} iterations, ${milliseconds(answer.round_trip_ms)}`;
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

// An error of what was chosen, which no answer to the input may replace.
function refuse(error, again) {
  cancel();
  showError(error, again);
}

// error: takes the place of the answer; null clears it. again: called for a retry.
function showError(error, again) {
  clearTimeout(retry);
  if (error && !(error instanceof ServerError)) throw error;
  if (error) forget();
  $("error").hidden = error === null;
  $("reading").hidden = error !== null;
  $("key-form").hidden = error?.status !== 401;
  if (error === null) return;
  if (error.status === 0) checkServer();
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
      const link = readLink();
      const first = chosen ?? (models.find((one) => one.input.kind === "image") ?? models[0]).name;
      const isServed = models.some((one) => one.name === link.model);
      $("model").value = isServed ? link.model : first;
      await choose();
      if (isServed && model?.name === link.model) restore(link);
      else if (link.model && !isServed) refuse(new ServerError(404, `The server has no model ${link.model}.`));
    }
  } catch (error) {
    showError(error, start);
  }
}

async function choose() {
  const chosen = models.find((one) => one.name === $("model").value);
  const isChosen = () => $("model").value === chosen.name; // unless another one was chosen in the meantime
  $("numbers").disabled = true; // what is typed now would be lost
  let found = [];
  try {
    found = await get(`models/${encodeURIComponent(chosen.name)}/samples`);
  } catch (error) {
    if (isChosen()) refuse(error, choose);
    return;
  }
  if (!isChosen()) return;
  cancel(); // until now, the input was one for the old model
  model = chosen;
  samples = found;
  kind = samples.length && samples.every((one) => read(one.input)) ? "maze" : model.input.kind;
  $("picture-input").hidden = kind !== "image";
  $("maze-input").hidden = kind !== "maze";
  $("number-input").hidden = kind !== "vector";
  $("batch").hidden = model.input.kind !== "image";
  $("about").href = `models/${encodeURIComponent(model.name)}`;
  $("about").hidden = false;
  $("heat-by").value = kind === "maze" ? "change" : "magnitude"; // the maze itself makes most of the magnitude
  $("number-hint").textContent = `${model.input.shape.join(" × ")} numbers`;
  $("numbers").value = "";
  $("numbers").disabled = false;
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
  if (samples.length) useInput(samples[0].input);
}

// link: what readLink() found; what does not fit the model is left as it is.
function restore(link) {
  if (link.tolerance > 0) $("tolerance").value = Math.log10(link.tolerance);
  if (link.max_iterations > 0) $("cap").value = Math.log10(link.max_iterations);
  if (model.solvers.includes(link.solver)) $("solver").value = link.solver;
  $("stop").checked = link.stop === "label" && model.label_stop !== null;
  showKnobs();
  const input = link.input && nested(link.input, model.input.shape);
  if (input) useInput(input);
  else predictSoon();
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
  button.addEventListener("click", () => useInput(sample.input));
  return button;
}

function useInput(input) {
  const maze = kind === "maze" && read(input);
  if (maze) mazes.maze = maze;
  else if (kind === "image") pad.showSample(input);
  else if (kind === "vector") {
    $("numbers").value = input.flat(Infinity).join(", ");
    inputChanged();
  }
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

// One image goes onto the pad; several are a batch.
function useFiles(files) {
  if (files.length === 1 && kind === "image" && !files[0].path) open(files[0]);
  else if (files.length) batch(files);
}

async function batch(files) {
  $("batch").scrollIntoView({ block: "nearest" });
  await runBatch(model, settings(), files);
  $("batch").scrollIntoView({ block: "nearest" }); // now with its table
}

async function open(file) {
  try {
    await pad.showPicture(file);
  } catch {
    showError(new ServerError(422, `${file.name || "This"} is not an image that this browser can read.`));
  }
}

// -- events -----------------------------------------------------------------------------------------------------------

pad.addEventListener("change", () => {
  $("hint").hidden = !pad.isEmpty;
  if (model) inputChanged();
});
mazes.addEventListener("change", () => {
  showMazeAnswer();
  inputChanged();
});
$("new-maze").addEventListener("click", newMaze);
for (const choice of [$("maze-size"), $("maze-difficulty")]) choice.addEventListener("input", newMaze);
$("heat-by").addEventListener("input", () => draw());
$("clear").addEventListener("click", () => pad.clear());
$("invert").addEventListener("click", () => pad.invert());
$("replay").addEventListener("click", replay);
for (const chooser of [$("file"), $("images"), $("folder")])
  chooser.addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    if (event.target === $("file")) useFiles(files);
    else batch(files);
  });
$("batch-csv").addEventListener("click", () => saveAs(`${model.name}.csv`, new Blob([csv()], { type: "text/csv" })));
for (const button of $("copies").querySelectorAll("button"))
  button.addEventListener("click", async () => {
    const { marks, ...body } = sent;
    const { format } = button.dataset;
    await copy(format === "link" ? linkTo(model.name, body) : snippets[format](model.name, body));
    $("copied").textContent = `· ${button.textContent} copied`;
  });
$("model").addEventListener("change", choose);
$("numbers").addEventListener("input", inputChanged);
for (const knob of [$("tolerance"), $("cap"), $("solver"), $("stop")])
  knob.addEventListener("input", () => {
    if (!model) return;
    showKnobs();
    drawSoon();
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
  document.addEventListener(name, async (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && model?.input.kind === "image") useFiles(await filesOf(event.dataTransfer));
  });
new ResizeObserver(() => {
  draw();
  drawCosts($("costs"), costs, MAX_COSTS);
}).observe(document.querySelector("main"));
start();
