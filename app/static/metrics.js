// The server's metrics: the Prometheus text format, and what the pages compute of it.

import { request } from "./server.js";

const PREDICTS = /\/(predict|infer)$/; // routes

// Samples of the text format: { name, labels, value }.
function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    samples.push({ name: match[1], labels, value: Number(match[3].replace("+Inf", "Infinity")) });
  }
  return samples;
}

// One reading of all metrics; sum(name, labels) adds up the samples that have these labels.
export async function readMetrics() {
  const samples = parse(await (await request("metrics", { cache: "no-store" })).text());
  const of = (name, labels = {}) =>
    samples.filter((one) => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value));
  const sum = (name, labels) => of(name, labels).reduce((total, one) => total + one.value, 0);
  return { at: performance.now() / 1000, of, sum };
}

// A model's predictions between two readings: { rate, p50, p99, busy, errors, count }; times in seconds, null without any.
export function predictions(model, before, now) {
  const total = (reading, fits) =>
    reading
      .of("jfb_http_requests_total", { model })
      .filter(({ labels }) => PREDICTS.test(labels.route) && fits(labels.status))
      .reduce((sum, one) => sum + one.value, 0);
  const since = (fits) => Math.max(0, total(now, fits) - total(before, fits));
  const buckets = new Map();
  for (const [reading, sign] of [[now, 1], [before, -1]])
    for (const { labels, value } of reading.of("jfb_http_request_seconds_bucket", { model }))
      if (PREDICTS.test(labels.route)) {
        const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
        buckets.set(bound, (buckets.get(bound) ?? 0) + sign * value);
      }
  const cumulative = [...buckets].sort(([a], [b]) => a - b);
  const count = since(() => true);
  return {
    count,
    rate: now.at > before.at ? count / (now.at - before.at) : 0,
    p50: quantile(cumulative, 0.5),
    p99: quantile(cumulative, 0.99),
    busy: since((status) => status === "429"),
    errors: since((status) => status >= "500"),
  };
}

// buckets: [upper bound, cumulative count], ascending; interpolates within a bucket, as Prometheus does.
function quantile(buckets, share) {
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  const wanted = share * all;
  const k = buckets.findIndex(([, count]) => count >= wanted);
  const [low, under] = k ? buckets[k - 1] : [0, 0];
  const [high, count] = buckets[k];
  return high === Infinity ? low : low + ((high - low) * (wanted - under)) / (count - under);
}
