// Charts, drawn into SVG elements; the style sheet sets their colours.

const MAX_POINTS = 600;
const MARGIN = { left: 44, right: 14, top: 14, bottom: 26 };

// Draw the residuals on a log axis, with a line at the tolerance.
export function drawResiduals(svg, residuals, tolerance) {
  const known = residuals.filter((one) => one > 0);
  const highest = Math.ceil(Math.log10(Math.max(tolerance, ...extremes(known))) + 0.05);
  const lowest = Math.floor(Math.log10(Math.min(tolerance, ...extremes(known))) - 0.05);
  const { x, y, frame, width } = axes(svg, residuals.length, lowest, highest);
  const every = Math.ceil((highest - lowest) / 6);
  for (let power = lowest; power <= highest; power += every) {
    add(svg, "line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(power), y2: y(power) });
    const label = add(svg, "text", { class: "tick", x: MARGIN.left - 7, y: y(power) + 4, "text-anchor": "end" });
    label.textContent = power === 0 ? "1" : `1e${power}`;
  }
  const at = y(Math.log10(tolerance));
  add(svg, "line", { class: "tolerance", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at });
  const label = add(svg, "text", { class: "tolerance-label", x: MARGIN.left + 6, y: at - 5 });
  label.textContent = "tolerance";
  curve(svg, residuals.map((one) => (one > 0 ? Math.log10(one) : one === 0 ? lowest : null)), x, y, "rank0");
  frame();
}

// Draw the probabilities of some labels; series: one list per label, the most likely first.
export function drawProbabilities(svg, series, iterations) {
  const { x, y, frame, width } = axes(svg, iterations, 0, 1);
  for (const share of [0, 0.5, 1]) {
    add(svg, "line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(share), y2: y(share) });
    const label = add(svg, "text", { class: "tick", x: MARGIN.left - 7, y: y(share) + 4, "text-anchor": "end" });
    label.textContent = `${100 * share}%`;
  }
  for (let rank = series.length - 1; rank >= 0; rank--) curve(svg, series[rank], x, y, `rank${rank}`);
  frame();
}

// Draw one bar per request; costs: { iterations, status, text }.
export function drawCosts(svg, costs, most) {
  const { width, height } = empty(svg);
  const bar = width / most;
  const highest = Math.max(1, ...costs.map((one) => one.iterations));
  add(svg, "line", { class: "grid", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 });
  costs.forEach((one, k) => {
    const tall = Math.max(2, (one.iterations / highest) * (height - 6));
    const x = width - (costs.length - k) * bar;
    const rect = add(svg, "rect", { class: `cost ${one.status}`, x, y: height - tall, width: Math.max(1, bar - 2), height: tall, rx: 1 });
    add(rect, "title", {}).textContent = one.text;
  });
}

// Draw a value over time, the latest at the right.
export function drawTrace(svg, values, most) {
  const { width, height } = empty(svg);
  const highest = Math.max(1e-9, ...values.filter((one) => one !== null));
  const points = values.map((one, k) => [width - ((values.length - 1 - k) / (most - 1)) * width, height - 3 - (one / highest) * (height - 8)]);
  const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  if (!points.length) return;
  add(svg, "polygon", { class: "area", points: `${points[0][0].toFixed(1)},${height} ${line} ${width},${height}` });
  add(svg, "polyline", { class: "curve rank0", points: line });
}

// Draw the rows that entered (upwards) and left (downwards) in each interval.
export function drawFlow(svg, flow, most) {
  const { width, height } = empty(svg);
  const [middle, bar] = [height / 2, width / most];
  const highest = Math.max(1, ...flow.flatMap(({ entered, left }) => [entered, left]));
  flow.forEach(({ entered, left }, k) => {
    const x = width - (flow.length - k) * bar;
    const [up, down] = [entered, left].map((rows) => (rows / highest) * (middle - 8));
    add(svg, "rect", { class: "entered", x, y: middle - 1 - up, width: Math.max(1, bar - 1.5), height: up });
    add(svg, "rect", { class: "left", x, y: middle + 1, width: Math.max(1, bar - 1.5), height: down });
  });
  add(svg, "line", { class: "axis", x1: 0, x2: width, y1: middle, y2: middle });
}

function axes(svg, iterations, low, high) {
  const { width, height } = empty(svg);
  const last = Math.max(8, iterations);
  const x = (k) => MARGIN.left + ((k - 1) / (last - 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
  const frame = () => {
    add(svg, "line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(low), y2: y(low) });
    const every = niceStep(last / 6);
    const marks = [1];
    for (let k = every; k <= last; k += every) if (k >= 1 + every / 2) marks.push(k);
    for (const k of marks) {
      add(svg, "line", { class: "axis", x1: x(k), x2: x(k), y1: y(low), y2: y(low) + 4 });
      add(svg, "text", { class: "tick", x: x(k), y: y(low) + 17, "text-anchor": "middle" }).textContent = k;
    }
  };
  return { x, y, frame, width };
}

function curve(svg, values, x, y, rank) {
  const thin = Math.ceil(values.length / MAX_POINTS);
  const points = [];
  values.forEach((value, k) => {
    if (value !== null && (k % thin === 0 || k === values.length - 1)) points.push([x(k + 1), y(value)]);
  });
  if (!points.length) return;
  const line = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
  add(svg, "polyline", { class: `curve ${rank}`, points: line });
  const dots = points.length <= 40 ? points : points.slice(-1);
  for (const [cx, cy] of dots.slice(0, -1)) add(svg, "circle", { class: `dot ${rank}`, cx, cy, r: 2 });
  const [cx, cy] = dots.at(-1);
  add(svg, "circle", { class: `dot last ${rank}`, cx, cy, r: 4 });
}

const extremes = (values) =>
  values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [1];

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= least) ?? 10);
}

export function empty(svg) {
  const { width, height } = svg.getBoundingClientRect();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  return { width, height };
}

export function add(parent, name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}
