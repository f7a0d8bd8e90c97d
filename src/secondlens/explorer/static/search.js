import {ask, h, how, live, message, model as loadModel, neuronLink, number, packed, params, root, setParams, table as load} from "./common.js";

const place = document.getElementById("search");
const input = h("input", {type: "search", id: "query", "aria-label": "Text", placeholder: "a ship", maxlength: 200, list: "known-texts", autocomplete: "off", value: params().get("q") ?? ""});
const results = h("div", {});
const side = (name, neurons, key = "search") => h("section", {class: "card"}, h("h2", {}, how(key, name)),
  neurons.length ? h("ul", {class: "rows"}, neurons.map(([layer, neuron, cosine, words]) => h("li", {}, neuronLink(layer, neuron, words), h("span", {class: `value ${cosine < 0 ? "minus" : "plus"}`}, number(cosine))))) : h("p", {class: "quiet"}, "None."));

// Neurons that have the text among their names; where there are no names, in what they push towards.
async function called(text) {
  const [all, model] = await Promise.all([load(), loadModel()]), rows = [], wanted = text.toLowerCase();
  for (let i = 0; i < all.name.length; i++)
    if ((model.names ? all.names[i] > 0 : true) && all.name[i].toLowerCase().includes(wanted)) rows.push([all.layer[i], all.neuron[i], all.area[i], all.name[i]]);
  rows.sort((a, b) => (b[2] ?? 0) - (a[2] ?? 0));
  return {rows: rows.slice(0, 12), named: Boolean(model.names), count: rows.length};
}

async function withoutModel(text) {
  const [{texts}, all] = await Promise.all([packed("data/words.json.gz"), load()]);
  const key = text.toLowerCase(), found = Object.hasOwn(texts, key) ? texts[key] : [];
  if (found.length) {
    const row = ([i, cosine]) => [all.layer[i], all.neuron[i], cosine, all.name[i]];
    return {for: found.filter(([, cosine]) => cosine > 0).map(row), against: found.filter(([, cosine]) => cosine < 0).map(row)};
  }
  return null;
}

let asked = 0;  // an answer that comes after a later question is not shown
async function search() {
  const text = input.value.trim(), turn = ++asked;
  setParams({q: text});
  if (!text) { results.replaceChildren(); return; }
  results.replaceChildren(message("Searching…"));
  try {
    const {rows, named, count} = await called(text);
    const own = named || rows.length ? [side(named ? `Fires on “${text}”: ${count}, by the area of the first name` : `“${text}” among its words`, rows, named ? "names" : "words")] : [];
    const found = live ? await ask(`live/search?text=${encodeURIComponent(text)}`) : await withoutModel(text);
    if (turn !== asked) return;
    if (!found) results.replaceChildren(message("No model is running here, so only texts of the vocabulary can be compared with directions."), ...own);
    else results.replaceChildren(...own, h("div", {class: "two"}, side(`Pushes towards “${text}”`, found.for), side("Away from it", found.against)));
  } catch (error) { if (turn === asked) results.replaceChildren(message(error.message, true)); }
}
const datalist = h("datalist", {id: "known-texts"});
place.replaceChildren(h("form", {class: "bar-of-tools", onsubmit: event => { event.preventDefault(); search(); }}, input, datalist, h("button", {type: "submit", class: "primary"}, "Search"),
  live ? h("a", {class: "button quiet", href: `${root}image/`}, "Search by a picture") : null), results);
search();
packed("data/words.json.gz").then(({texts}) => datalist.append(...Object.keys(texts).slice(0, 2000).map(value => h("option", {value}))), () => {});
