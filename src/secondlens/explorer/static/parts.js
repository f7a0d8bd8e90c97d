// The parts of a neuron's page, used there and in comparisons.
import {h, how, number, percent, shot, neuronLink, label} from "./common.js";
import {histogram, gauge} from "./plots.js";

export function facts(data) {
  const {numbers} = data;
  const rows = [["score", "Finds unseen images", .5], ["selectivity", "Energy in the top"], ["explained", "On one direction"], ["stability", "Stability"], ["names", "Names"], ["strength", "Strength"], ["threshold", "Threshold"]];
  return h("dl", {class: "facts"}, rows.filter(([key]) => numbers[key] !== undefined).map(([key, title, half]) => {
    const value = numbers[key];
    const isScore = key === "score", pair = Array.isArray(value) ? value : [value, null];
    const note = isScore ? pair[0] === null ? "no words for it" : `[${number(pair[1])}, ${number(pair[2])}]` : pair[1] === null ? "" : `chance ${number(pair[1])}`;
    return h("div", {}, h("dt", {}, how(key, title)),
      h("dd", {}, h("b", {}, number(pair[0])), " ", h("small", {}, note), Array.isArray(value) && pair[0] !== null ? gauge(pair[0], isScore ? half : pair[1]) : null));
  }));
}

// Solve R_m c = (Q^T r)_m for the first m texts; see "Words" among the explanations. Without a survey
// there is the brief code alone, whose cosine nothing says unless it is the whole one.
export function codeOf(words, size) {
  const {texts, triangle, brief} = words;
  if (!triangle) return {weights: brief.slice(0, texts.length), cosine: words.size <= brief.length ? words.cosine : null, size: brief.length};
  const most = Math.round((Math.sqrt(9 + 8 * triangle.length) - 3) / 2), m = Math.min(size, texts.length);
  const along = triangle.slice(0, most), at = (row, column) => triangle[most + row * most - row * (row - 1) / 2 + column - row];
  const weights = Array(m).fill(0);
  for (let row = m - 1; row >= 0; row--) {
    let rest = along[row];
    for (let column = row + 1; column < m; column++) rest -= at(row, column) * weights[column];
    weights[row] = Math.abs(at(row, row)) > 1e-6 ? rest / at(row, row) : 0;
  }
  return {weights, cosine: Math.sqrt(along.slice(0, m).reduce((sum, value) => sum + value * value, 0)), size: m};
}

export function wordBars(words, size) {
  const {weights, cosine} = codeOf(words, size);
  const pairs = weights.map((weight, i) => [words.texts[i], weight]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const largest = Math.max(1e-9, ...weights.map(Math.abs));
  const list = h("ul", {class: "words"}, pairs.map(([text, weight]) => {
    const side = weight < 0 ? "minus" : "plus";
    return h("li", {}, h("span", {class: `word ${side}`}, text), h("span", {class: `bar ${side}`}, h("i", {"width%": 70 * Math.abs(weight) / largest}), h("small", {}, number(weight))));
  }));
  return {list, cosine};
}

export function wordsCard(data, {compact = false} = {}) {
  const names = Object.keys(data.words);
  if (!names.length) return h("section", {class: "card"}, h("h2", {}, how("words", "Pushes towards, and away from")), h("p", {class: "quiet"}, "This lens has no description yet: run secondlens describe."));
  const select = h("select", {"aria-label": "Vocabulary", id: "vocabulary"}, names.map(name => h("option", {value: name}, name)));
  const slider = h("input", {type: "range", min: 1, max: 1, value: 8, "aria-label": "Texts in the code", id: "size"});
  const count = h("output", {}), cosine = h("output", {class: "value", id: "cosine"}), bars = h("div", {});
  const match = h("span", {}, how("cosine", "match"), " ", h("b", {}, cosine));
  function draw() {
    const words = data.words[select.value];
    slider.max = words.triangle ? words.texts.length : words.brief.length;
    slider.disabled = !words.triangle;
    const found = wordBars(words, +slider.value);
    const size = words.triangle ? Math.min(+slider.value, words.texts.length) : words.brief.length;
    count.value = `${size} text${size === 1 ? "" : "s"}`;
    match.hidden = found.cosine === null;
    cosine.value = number(found.cosine);
    bars.replaceChildren(found.list, h("p", {class: "quiet"}, "All ", number(words.size), words.size === 1 ? " text: " : " texts: ", number(words.cosine), "."));
  }
  select.addEventListener("input", draw);
  slider.addEventListener("input", draw);
  draw();
  slider.value = 8;
  draw();
  return h("section", {class: "card"},
    h("h2", {}, how("words", "Pushes towards, and away from"), names.length > 1 ? select : h("small", {}, names[0])),
    compact ? null : h("div", {class: "bar-of-tools"}, h("label", {}, slider, count), match), bars);
}

/** The head that a path goes through: of a later layer, or of the pool that reads all of them. */
export function pathName(model, layer, path) {
  if (model.pool) return `the pool, head ${path}`;
  return `layer ${layer + 1 + Math.floor(path / model.heads)}, head ${path % model.heads}`;
}

export function pathsCard(data, model, onPick) {
  if (!data.paths) return null;
  const first = model.pool ? model.depth : data.layer + 1, last = model.pool ? first : model.depth - 1;
  const heads = model.pool ?? model.heads, rows = [];
  const largest = Math.max(1e-9, ...data.paths.map(Math.abs));
  for (let block = first; block <= last; block++) {
    rows.push(h("tr", {}, h("th", {scope: "row"}, model.pool ? "pool" : block), Array.from({length: heads}, (_, head) => {
      const path = (block - first) * heads + head, share = data.paths[path], name = pathName(model, data.layer, path);
      const button = h("button", {type: "button", "aria-pressed": "false", "--tone": share < 0 ? "var(--minus)" : "var(--plus)", "--weight": `${Math.round(42 * Math.abs(share) / largest)}%`,
        "aria-label": `${name}: ${percent(Math.abs(share))}${share < 0 ? " against" : ""}`, title: `${name}: ${(100 * share).toFixed(1)} %`}, heads > 8 || Math.abs(share) < .02 ? "" : Math.round(100 * share));
      if (onPick) button.addEventListener("click", () => onPick(path, button));
      return h("td", {}, button);
    })));
  }
  return h("section", {class: "card"}, h("h2", {}, how("paths", "Where the effect goes"), h("small", {}, model.pool ? "% by head" : "% by later layer and head")),
    h("table", {class: "matrix"}, h("caption", {hidden: true}, "Share of each later head"),
      h("thead", {}, h("tr", {}, h("th", {scope: "col"}, h("span", {class: "quiet"}, "")), Array.from({length: heads}, (_, head) => h("th", {scope: "col"}, head)))), h("tbody", {}, rows)));
}

export function distributionCard(data) {
  if (!data.counts) return null;
  const [low, high] = data.extent;
  return h("section", {class: "card"}, h("h2", {}, how("distribution", "Distribution"), h("small", {}, "images, logarithmic")),
    histogram(data.counts, {title: `Effects of all images, from ${number(low)} to ${number(high)}`}),
    h("div", {class: "axis"}, h("span", {}, number(low)), h("span", {}, "effect along its direction"), h("span", {}, number(high))));
}

export function classesCard(data) {
  if (!data.classes?.length) return null;
  return h("section", {class: "card"}, h("h2", {}, how("classes", "What ablating it does"), h("small", {}, "change of cosine")),
    h("ul", {class: "rows"}, data.classes.map(([text, change]) => h("li", {}, h("span", {}, text), h("span", {class: `value ${change < 0 ? "minus" : "plus"}`}, (change > 0 ? "+" : "") + number(change))))));
}

export function similarCard(data) {
  if (!data.similar.length) return null;
  return h("section", {class: "card"}, h("h2", {}, how("similar", "Similar neurons")),
    h("ul", {class: "rows"}, data.similar.map(([layer, neuron, cosine, name]) => h("li", {}, neuronLink(layer, neuron, name), h("span", {class: `value ${cosine < 0 ? "minus" : "plus"}`}, number(cosine))))));
}

export function shotList(data, indices, model, {few = false, by = 2, beside = false} = {}) {
  return h("ul", {class: few ? "shots few" : "shots"}, indices.map(i => shot(data.shots[i], model.grid, {showing: data.shots[i][by], beside})));
}

// What it fires on: names that passed a test, each with the pictures that hold it.
export function namesCard(data, model, {beside = false} = {}) {
  if (!model.names) return null;
  const drawn = name => name.rose === null ? "" : ` · drawn in, raised the effect in ${name.rose} of ${model.names.pairs} pairs`;
  const about = name => h("small", {}, `${name.held} of its ${model.names.shown} strongest hold it · area ${number(name.auc)}${drawn(name)}`);
  return h("section", {class: "card", id: "names"}, h("h2", {}, how("names", "Fires on"), h("small", {}, `judged by ${model.names.referee}`)),
    data.names.length ? h("div", {class: "holding"}, data.names.map((name, i) => h("div", {},
      h("h3", {}, name.confirmed === false ? h("span", {class: "quiet"}, "goes with ") : null, name.text, " ", about(name)),
      data.holding?.[i]?.length ? shotList(data, data.holding[i], model, {few: true, beside}) : null))) : h("p", {class: "quiet"}, "No reliable name: no word passed its test."));
}

export const title = data => data.name || label(data.layer, data.neuron);
