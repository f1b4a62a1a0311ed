// A plot of curves over numbers, drawn into an SVG element: linear or logarithmic axes, a name at each.

import { add, empty } from "./charts.js";

const MARGIN = { left: 54, right: 14, top: 12, bottom: 40 };
const TICKS = 5;

// series: [{ points: [[x, y], …] }, …], the first in the accent colour; x, y: { name, log, format }.
export function drawPlot(svg, series, x, y) {
  const { width, height } = empty(svg);
  const all = series.flatMap(({ points }) => points);
  if (!all.length) return;
  const across = scale(all.map(([value]) => value), x.log);
  const up = scale(all.map(([, value]) => value), y.log);
  const left = (value) => MARGIN.left + across.share(value) * (width - MARGIN.left - MARGIN.right);
  const top = (value) => height - MARGIN.bottom - up.share(value) * (height - MARGIN.top - MARGIN.bottom);
  for (const tick of up.ticks) {
    add(svg, "line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: top(tick), y2: top(tick) });
    text(svg, y.format(tick), { x: MARGIN.left - 7, y: top(tick) + 4, "text-anchor": "end" });
  }
  const floor = height - MARGIN.bottom;
  add(svg, "line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: floor, y2: floor });
  for (const tick of across.ticks) {
    add(svg, "line", { class: "axis", x1: left(tick), x2: left(tick), y1: floor, y2: floor + 4 });
    text(svg, x.format(tick), { x: left(tick), y: floor + 17, "text-anchor": "middle" });
  }
  text(svg, x.name, { x: width - MARGIN.right, y: height - 5, "text-anchor": "end" });
  series.forEach(({ points }, rank) => {
    const line = points.map(([a, b]) => `${left(a).toFixed(1)},${top(b).toFixed(1)}`).join(" ");
    add(svg, "polyline", { class: `curve rank${rank}`, points: line });
    for (const [a, b] of points.length <= 40 ? points : points.slice(-1))
      add(add(svg, "circle", { class: `dot rank${rank}`, cx: left(a), cy: top(b), r: 3 }), "title", {}).textContent =
        `${x.format(a)} ${x.name}: ${y.format(b)}`;
  });
}

function text(svg, content, attributes) {
  add(svg, "text", { class: "tick", ...attributes }).textContent = content;
}

// Of some values: their place on the axis as a share of its length, and the ticks.
function scale(values, log = false) {
  const by = log ? Math.log10 : (value) => value;
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
  const share = (value) => (by(value) - by(low)) / (by(high) - by(low));
  return { share, ticks: log ? logTicks(low, high) : linearTicks(low, high) };
}

function logTicks(low, high) {
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) powers.push(10 ** power);
  const isWide = high / low >= 100;
  const candidates = powers.flatMap((one) => (isWide ? [one] : [one, 2 * one, 5 * one]));
  return candidates.filter((one) => one >= low * 0.999 && one <= high * 1.001);
}

function linearTicks(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / TICKS));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => (high - low) / one <= TICKS);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}
