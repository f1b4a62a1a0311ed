// The engine page: reads /metrics twice a second and shows the differences.

import { drawFlow, drawTrace } from "./charts.js";
import { $, element } from "./dom.js";
import { compact, milliseconds } from "./format.js";
import { predictions, readMetrics } from "./metrics.js";
import { checkServer } from "./server_state.js";

const EVERY = 500; // milliseconds
const HISTORY = 120; // intervals shown, and that requests are counted over
const MAX_SQUARES = 256;
const ENGINE = "jfb_engine_";

const traces = { requests: [], iterations: [], batch: [], cost: [] };
const flow = [];
let readings = []; // of the last minute, the oldest first

async function read() {
  const reading = await readMetrics();
  const { of, sum } = reading;
  return {
    ...reading,
    ready: of(`${ENGINE}ready`).every((engine) => engine.value === 1),
    active: sum(`${ENGINE}active_rows`),
    waiting: sum(`${ENGINE}waiting_rows`),
    slots: sum(`${ENGINE}slots`),
    ticks: sum(`${ENGINE}ticks_total`),
    steps: sum(`${ENGINE}step_evaluations_total`),
    iterations: sum(`${ENGINE}iterations_total`),
    ended: sum(`${ENGINE}rows_ended_total`),
  };
}

function show(now) {
  const before = readings.at(-1);
  // A restarted engine counts from 0 again.
  if (before && (now.ticks < before.ticks || now.ended < before.ended)) readings = [];
  readings.push(now);
  readings.splice(0, readings.length - HISTORY);
  const served = [...new Map(now.of(`${ENGINE}slots`).map(({ labels }) => [`${labels.model}/${labels.version}`, labels])).values()];
  const names = [...new Set(served.map(({ model }) => model))];
  const minute = new Map(names.map((name) => [name, predictions(name, readings[0], now)]));
  if (readings.length > 1) showInterval(before, now, names);
  $("rows-text").textContent = `${now.active} of ${now.slots} slots active, ${now.waiting} waiting`;
  showRows($("requests-rows"), names.map((name) => requestsRow(name, minute.get(name), now)));
  showRows($("models"), served.map((labels) => versionRow(now, labels)));
  showLanes(now, served);
  const isIdle = readings.length > 1 && now.active + now.waiting === 0 && [...minute.values()].every(({ count }) => count === 0);
  $("idle").hidden = !isIdle;
  draw();
}

function showInterval(before, now, names) {
  const seconds = now.at - before.at;
  const [ticks, ended, steps] = ["ticks", "ended", "steps"].map((name) => now[name] - before[name]);
  const values = {
    requests: names.reduce((total, name) => total + predictions(name, before, now).rate, 0),
    iterations: steps / seconds,
    batch: ticks ? steps / ticks : 0,
    cost: ended ? (now.iterations - before.iterations) / ended : 0,
  };
  for (const [name, value] of Object.entries(values)) {
    $(name).textContent = compact(value);
    remember(traces[name], value);
  }
  remember(flow, { entered: Math.max(0, ended + now.active - before.active), left: ended });
}

function draw() {
  for (const [name, values] of Object.entries(traces)) drawTrace($(`${name}-trace`), values, HISTORY);
  drawFlow($("flow"), flow, HISTORY);
}

// A cell that is the same stays the same element, so that its link keeps the focus.
function showRows(body, rows) {
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((made, k) => {
    const shown = body.rows[k];
    if (!shown) body.append(made);
    else [...made.cells].forEach((cell, i) => cell.isEqualNode(shown.cells[i]) || shown.cells[i].replaceWith(cell));
  });
}

function row(cells) {
  const made = element("tr");
  made.append(...cells.map((cell) => (cell instanceof Node ? cell : element("td", "", cell))));
  return made;
}

function modelCell(name) {
  const cell = element("td");
  cell.append(Object.assign(element("a", "", name), { href: `models/${encodeURIComponent(name)}` }));
  return cell;
}

function requestsRow(name, { rate, p50, p99, busy, errors }, now) {
  const times = [p50, p99].map((seconds) => (seconds === null ? "–" : milliseconds(1000 * seconds)));
  const counts = [busy, errors].map((count) => element("td", count ? "bad" : "", compact(count)));
  return row([modelCell(name), compact(rate), ...times, ...counts, now.sum(`${ENGINE}waiting_rows`, { model: name })]);
}

// One version, summed over the engines.
function versionRow(now, { model, version }) {
  const value = (name) => now.sum(`${ENGINE}${name}`, { model, version });
  const [ended, iterations] = [value("rows_ended_total"), value("iterations_total")];
  const cost = ended ? (iterations / ended).toFixed(1) : "–";
  return row([modelCell(model), version, value("slots"), compact(ended), compact(iterations), cost]);
}

// A grid of rows for each version, which stays the same element while its numbers change.
function showLanes(now, served) {
  const lanes = served.map(({ model, version }) => {
    const id = `lane-${model}-${version}`;
    const lane = $(id) ?? newLane(id);
    const [active, waiting, slots] = ["active_rows", "waiting_rows", "slots"].map((name) => now.sum(`${ENGINE}${name}`, { model, version }));
    const text = `${active} of ${slots} slots active, ${waiting} waiting`;
    lane.querySelector("h3").replaceChildren(`${model}/${version} `, element("small", "", text));
    const grid = lane.querySelector(".slots");
    grid.setAttribute("aria-label", `${model}/${version}: ${text}`);
    squares(grid, slots + waiting, (k) => (k >= slots ? "waiting" : k < active ? "active" : ""));
    return lane;
  });
  if (lanes.length !== $("lanes").children.length || lanes.some((lane, k) => $("lanes").children[k] !== lane)) $("lanes").replaceChildren(...lanes);
}

function newLane(id) {
  const lane = Object.assign(element("div", "lane"), { id });
  const grid = element("div", "slots");
  grid.setAttribute("role", "img");
  lane.append(element("h3"), grid);
  return lane;
}

function squares(box, count, className) {
  const shown = Math.min(count, MAX_SQUARES);
  while (box.children.length > shown) box.lastChild.remove();
  while (box.children.length < shown) box.append(document.createElement("i"));
  [...box.children].forEach((one, k) => (one.className = className(k)));
}

function remember(list, value) {
  list.push(value);
  list.splice(0, list.length - HISTORY);
}

// text: null shows the numbers; an error takes their place.
function showError(text) {
  $("error").hidden = text === null;
  $("error-text").textContent = text ?? "";
}

async function run() {
  if (document.hidden) readings = []; // no interval is measured while the page is hidden
  else {
    try {
      const now = await read();
      showError(now.ready ? null : "The engine is starting.");
      document.querySelector("main").hidden = false;
      show(now);
    } catch (error) {
      readings = [];
      document.querySelector("main").hidden = true;
      const elsewhere = "This server serves its metrics on another port (metrics_port), which this page cannot read.";
      showError(error.status === 404 ? elsewhere : error.message);
      if (error.status === 404) return;
      checkServer();
    }
  }
  setTimeout(run, EVERY);
}

new ResizeObserver(draw).observe(document.querySelector("main"));
run();
