// What an answer means, in words: how its iteration ended, and how confident the model is, which are two things.

import { percent, shortNumber } from "./format.js";

const [HIGH, MEDIUM] = [0.9, 0.6]; // least probabilities of the label
const FLAT = 0.02; // change of a probability that a chart does not show

export function ended({ status, stability }) {
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

// The confidence in the label: { level: "high", "medium", "low" or "none", text }.
export function confidence({ probabilities, index }, classes) {
  if (!probabilities) return { level: "none", text: "No label" };
  const best = probabilities[index];
  const level = best >= HIGH ? "high" : best >= MEDIUM ? "medium" : "low";
  const others = probabilities.map((share, k) => ({ share, k })).filter(({ k }) => k !== index);
  const next = others.reduce((a, b) => (b.share > a.share ? b : a), { share: 0, k: index });
  const rival = level === "high" ? "" : `, next is ${classes[next.k]} with ${percent(next.share)}`;
  const words = { high: "High confidence", medium: "Medium confidence", low: "Low confidence" };
  return { level, text: `${words[level]}: ${percent(best)}${rival}` };
}

// The first iteration from which on the label stayed the same; events: one per iteration.
export function settledAt(events) {
  const labels = events.map((event) => event.top[0]?.index);
  return labels.findLastIndex((label) => label !== labels.at(-1)) + 2;
}

// series: lists of probabilities over the iterations.
export const isFlat = (series) =>
  series.every((values) => {
    const known = values.filter((one) => one !== null);
    return Math.max(...known) - Math.min(...known) < FLAT;
  });
