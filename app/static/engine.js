// The engine page: reads /metrics twice a second and shows the differences.

import { drawFlow, drawTrace } from "./charts.js";
import { request } from "./server.js";

const EVERY = 500; // milliseconds
const HISTORY = 120; // intervals shown
const MAX_SQUARES = 256;

const $ = (id) => document.getElementById(id);
const traces = { iterations: [], batch: [], converged: [], cost: [] };
const flow = [];
let before = null;

// Samples of the Prometheus text format: { name, labels, value }.
function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

async function read() {
  const samples = parse(await (await request("metrics", { cache: "no-store" })).text());
  const at = performance.now() / 1000;
  const of = (name, status) => samples.filter((one) => one.name === name && (!status || one.labels.status === status));
  const sum = (name, status) => of(name, status).reduce((total, one) => total + one.value, 0);
  return {
    at,
    of,
    ready: of("jfb_engine_ready").every((engine) => engine.value === 1),
    active: sum("jfb_engine_active_rows"),
    waiting: sum("jfb_engine_waiting_rows"),
    slots: sum("jfb_engine_slots"),
    ticks: sum("jfb_engine_ticks_total"),
    steps: sum("jfb_engine_step_evaluations_total"),
    iterations: sum("jfb_engine_iterations_total"),
    ended: sum("jfb_engine_rows_ended_total"),
    converged: sum("jfb_rows_total", "converged"),
  };
}

function show(now) {
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  $("waiting").textContent = now.waiting;
  $("active").textContent = now.active;
  $("rows-text").textContent = `${now.active} of ${now.slots} slots, ${now.waiting} waiting`;
  squares($("active-rows"), now.slots, (k) => (k < now.active ? "active" : ""));
  squares($("waiting-rows"), Math.max(1, now.waiting), (k) => (k < now.waiting ? "waiting" : ""));
  const served = new Map(now.of("jfb_engine_slots").map(({ labels }) => [`${labels.model}/${labels.version}`, labels]));
  $("models").replaceChildren(...[...served.values()].map((labels) => modelRow(now, labels, compact)));
  // A restarted engine counts from 0 again.
  if (before !== null && now.ticks >= before.ticks && now.ended >= before.ended) {
    const seconds = now.at - before.at;
    const [ticks, ended] = [now.ticks - before.ticks, now.ended - before.ended];
    const values = {
      iterations: (now.steps - before.steps) / seconds,
      batch: ticks ? (now.steps - before.steps) / ticks : 0,
      converged: Math.max(0, now.converged - before.converged) / seconds,
      cost: ended ? (now.iterations - before.iterations) / ended : 0,
    };
    for (const [name, value] of Object.entries(values)) {
      $(name).textContent = compact.format(value);
      remember(traces[name], value);
    }
    remember(flow, { entered: Math.max(0, ended + now.active - before.active), left: ended });
  }
  before = now;
  draw();
}

function draw() {
  for (const [name, values] of Object.entries(traces)) drawTrace($(`${name}-trace`), values, HISTORY);
  drawFlow($("flow"), flow, HISTORY);
}

// One version, summed over the engines.
function modelRow(now, { model, version }, compact) {
  const value = (name) =>
    now
      .of(`jfb_engine_${name}`)
      .filter((one) => one.labels.model === model && one.labels.version === version)
      .reduce((total, one) => total + one.value, 0);
  const [ended, iterations] = [value("rows_ended_total"), value("iterations_total")];
  const cells = [
    model,
    version,
    ...["active_rows", "waiting_rows", "slots"].map(value),
    compact.format(ended),
    compact.format(iterations),
    ended ? (iterations / ended).toFixed(1) : "–",
  ];
  const row = document.createElement("tr");
  row.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
  return row;
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

function showError(text) {
  $("error").hidden = text === null;
  $("error-text").textContent = text ?? "";
}

async function run() {
  if (!document.hidden) {
    try {
      const now = await read();
      showError(now.ready ? null : "The engine is starting.");
      show(now);
    } catch (error) {
      before = null;
      const elsewhere = "This server serves its metrics on another port (metrics_port), which this page cannot read.";
      showError(error.status === 404 ? elsewhere : error.message);
      if (error.status === 404) return;
    }
  } else {
    before = null; // no interval is measured while the page is hidden
  }
  setTimeout(run, EVERY);
}

new ResizeObserver(draw).observe(document.querySelector("main"));
run();
