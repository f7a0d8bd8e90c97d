// Two neurons or two layers side by side; a reference may name the lens beside this one.
import {h, hasBeside, label, message, model as loadModel, neuronData, neuronPath, number, params, root, setParams, table as load} from "./common.js";
import * as parts from "./parts.js";
import {COLUMNS, distribution} from "./plots.js";

const place = document.getElementById("compare");
const given = params();
const inputs = ["a", "b"].map(key => h("input", {"aria-label": key === "a" ? "Left" : "Right", placeholder: key === "a" ? "5.120" : hasBeside ? "beside:5.120" : "5.121", value: given.get(key) ?? "", id: key}));
const sheet = h("div", {class: "two"});

export function reference(text) {
  const found = /^\s*(beside:)?(\d+)(?:[.:](\d+))?\s*$/.exec(text);
  if (!found) throw new Error(`“${text}” is no reference: write 5.120, or 5 for a layer${hasBeside ? ", with beside: before it for the other lens" : ""}.`);
  if (found[1] && !hasBeside) throw new Error("No second lens is beside this one: start the explorer with --beside.");
  return {beside: Boolean(found[1]), layer: +found[2], neuron: found[3] === undefined ? null : +found[3]};
}

async function column(text) {
  const {beside, layer, neuron} = reference(text), model = await loadModel(beside);
  const about = h("p", {class: "quiet"}, model.name);
  if (!model.layers.includes(layer)) throw new Error(`${model.name} has no layer ${layer}.`);
  if (neuron === null) {
    const all = await load(beside), mine = values => values.filter((_, i) => all.layer[i] === layer);
    return h("div", {}, about, h("h2", {}, h("a", {href: `${root}${beside ? "beside/" : ""}layer/${layer}/`}, `Layer ${layer}`)), h("div", {class: "small-plots"}, COLUMNS.map(([key, title]) => distribution(mine(all[key]), key, title)).filter(Boolean)),
      h("dl", {class: "facts"}, COLUMNS.map(([key, title]) => {
        const sorted = mine(all[key]).filter(value => value !== null).sort((x, y) => x - y);
        return sorted.length ? h("div", {}, h("dt", {}, `${title}, median`), h("dd", {}, h("b", {}, number(sorted[sorted.length >> 1])))) : null;
      })));
  }
  const data = await neuronData(layer, neuron, beside);
  return h("div", {}, about, h("h2", {}, h("a", {href: neuronPath(layer, neuron, beside)}, label(layer, neuron)), " ", data.name), parts.facts(data), parts.namesCard(data, model, {beside}), parts.wordsCard(data, {compact: true}),
    data.shots ? h("section", {class: "card"}, h("h2", {}, "Strongest images"), parts.shotList(data, data.groups.strongest, model, {beside})) : null, parts.pathsCard(data, model), parts.distributionCard(data));
}

async function show() {
  setParams({a: inputs[0].value, b: inputs[1].value});
  const wanted = inputs.filter(input => input.value.trim());
  if (!wanted.length) {
    const {layers} = await loadModel(), [a, b] = [0, 1].map(n => `${layers.at(-1)}.${n}`);
    sheet.replaceChildren(h("p", {class: "quiet", id: "example"}, "Fill in one field or both, or begin with an example: ", h("a", {href: `?a=${a}&b=${b}`}, `${a} beside ${b}`), "."));
    return;
  }
  sheet.replaceChildren(message("Loading…"));
  sheet.replaceChildren(...await Promise.all(wanted.map(input => column(input.value).catch(error => message(error.message, true)))));
}
place.replaceChildren(h("form", {class: "bar-of-tools", onsubmit: event => { event.preventDefault(); show(); }}, inputs, h("button", {type: "submit", class: "primary"}, "Compare")), sheet);
show().catch(error => sheet.replaceChildren(message(error.message, true)));
