// Why a head looked there: the class token's attention over a picture, and a score as a sum.
import {h, how, label, message, neuronLink, number, percent} from "./common.js";

const signed = value => h("span", {class: `value ${value < 0 ? "minus" : "plus"}`}, number(value));
const neuron = ([layer, index, name]) => name === null ? h("span", {}, label(layer, index)) : neuronLink(layer, index, name);
const side = (role, part) => h("span", {class: "side"}, h("small", {}, role), " ", part);
const term = (query, key, value) => h("li", {}, h("span", {class: "pair-of"}, side("looking", query), side("looked at", key)), signed(value));
const others = ([count, value], one, many) => count ? h("li", {}, h("span", {class: "quiet"}, `${number(count)} other ${count === 1 ? one : many}`), signed(value)) : null;

const single = (role, list) => h("div", {}, h("h3", {class: "gap"}, "Single neurons, ", h("small", {}, `${role}, with all that is on the other side`)), h("ul", {class: "rows"}, list.map(each => h("li", {}, neuron(each), signed(each[3])))));

function sum(found, chosen) {
  const what = chosen === null ? "Scores are higher where it looks, by" : "The score adds up to";
  return [h("div", {class: "sides"},
    h("div", {}, h("h3", {}, "Pairs of neurons"),
      found.pairs.length ? h("ul", {class: "rows"}, found.pairs.map(pair => term(neuron(pair[0]), neuron(pair[1]), pair[2])), others(found.other_pairs, "pair", "pairs")) : h("p", {class: "quiet"}, "The first layer reads no neurons, only the embedding.")),
    h("div", {}, h("h3", {}, "Everything else"),
      h("ul", {class: "rows"}, found.rests.map(rest => term(...rest)), others(found.other_rests, "term", "terms")))),
    h("p", {class: "total"}, what, h("b", {class: "value", id: "score"}, number(found.score))),
    found.looking.length ? h("div", {class: "sides"}, single("looking", found.looking), single("looked at", found.looked_at)) : null];
}

/** The card, and what to call when a patch of the picture is chosen. */
export function attentionCard(post, model, refused, {heat, patches}) {
  const title = h("h2", {}, how("looked", "Why it looked there"));
  if (refused) return {card: h("section", {class: "card", id: "looked"}, title, h("p", {class: "quiet"}, refused)), choose: () => {}};
  const options = count => Array.from({length: count}, (_, i) => h("option", {value: i}, i));
  const layer = h("select", {"aria-label": "Layer of the head"}, options(model.depth)), head = h("select", {"aria-label": "Head"}, options(model.heads));
  layer.value = model.depth - 1;
  const contrast = h("input", {type: "checkbox", checked: true}), against = h("label", {hidden: true}, contrast, "and not elsewhere");
  const answer = h("div", {"aria-live": "polite"});
  let shown = false, chosen = null, asked = 0;
  async function look() {
    const own = ++asked;
    shown = true;
    against.hidden = chosen === null;
    answer.replaceChildren(message("Looking…"));
    const values = [["layer", layer.value], ["head", head.value], ["contrast", contrast.checked], ...(chosen === null ? [] : [["patch", chosen]])];
    let found;
    try { found = await post("attention", values); } catch (error) { if (own === asked) answer.replaceChildren(message(error.message, true)); return; }
    if (own !== asked) return;  // another head or patch was chosen meanwhile
    heat(found.heat);
    found.patches.forEach((share, i) => { patches.children[i].title = percent(share); });
    const row = Math.floor(chosen / model.grid[1]) + 1, column = chosen % model.grid[1] + 1;
    const where = chosen === null ? "Choose a patch to see why the head looks there." : `${percent(found.patches[chosen])} of its attention is at row ${row}, column ${column}.`;
    answer.replaceChildren(h("div", {}, h("p", {class: "quiet"}, `The class token keeps ${percent(found.elsewhere)} and takes the rest from the lit patches. ${where}`),
      chosen === null ? null : h("p", {}, h("button", {type: "button", onclick: () => { chosen = null; for (const each of patches.children) each.setAttribute("aria-pressed", "false"); look(); }}, "The whole row")), sum(found, chosen)));
  }
  for (const each of [layer, head, contrast]) each.addEventListener("change", () => { if (shown) look(); });
  const form = h("form", {class: "bar-of-tools", onsubmit: event => { event.preventDefault(); look(); }}, h("label", {}, "layer", layer), h("label", {}, "head", head), h("button", {type: "submit"}, "Look"), against);
  return {card: h("section", {class: "card wide", id: "looked"}, title, form, answer), choose: patch => { chosen = patch; if (shown) look(); }};
}
