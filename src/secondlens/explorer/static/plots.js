// Small plots as SVG, and the tables that go with neurons.
import {h, svg, number, how} from "./common.js";

export function histogram(counts, {above = null, title = ""} = {}) {
  const most = Math.log1p(Math.max(1, ...counts));
  const bars = (from, to) => counts.map((count, i) => i < from || i >= to || !count ? "" : `M${i + .06} 1v${-(Math.log1p(count) / most).toFixed(3)}h.88V1z`).join("");
  const edge = above ?? counts.length;
  return svg("svg", {class: "plot", viewBox: `0 0 ${counts.length} 1`, preserveAspectRatio: "none", height: 64, role: "img", "aria-label": title},
    svg("path", {class: "below", d: bars(0, edge)}), svg("path", {class: "above", d: bars(edge, counts.length)}));
}

export function binned(values, bins = 30) {
  const found = values.filter(value => value !== null);
  if (!found.length) return null;
  let [low, high] = [Infinity, -Infinity];
  for (const value of found) { if (value < low) low = value; if (value > high) high = value; }
  const counts = Array(bins).fill(0);
  for (const value of found) counts[Math.min(bins - 1, Math.floor((value - low) / (high - low || 1) * bins))]++;
  return {counts, low, high};
}

export function distribution(values, key, title) {
  const found = binned(values);
  if (!found) return null;
  return h("figure", {class: "card"}, h("figcaption", {}, how(key, title)),
    histogram(found.counts, {title: `${title}: from ${number(found.low)} to ${number(found.high)}`}),
    h("div", {class: "axis"}, h("span", {}, number(found.low)), h("span", {}, number(found.high))));
}

export const COLUMNS = [
  ["score", "finds unseen", "score"], ["strength", "strength", "strength"], ["selectivity", "selectivity", "selectivity"],
  ["explained", "one direction", "explained"], ["cosine", "words match", "cosine"], ["names", "names", "names"], ["stability", "stability", "stability"],
];

export function gauge(value, none) {
  const width = Math.max(0, Math.min(1, value)) * 100;
  const ticks = none === null || none === undefined ? [] : [svg("rect", {class: "tick", x: Math.max(0, none * 100 - .75), width: 1.5, y: 0, height: 4})];
  return svg("svg", {class: "gauge", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true"},
    svg("rect", {class: "track", width: 100, height: 4}), svg("rect", {class: "full", width, height: 4}), ...ticks);
}
