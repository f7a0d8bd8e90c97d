// Tables of neurons: sorted, filtered and paged in the browser; every state is an address.
import {h, how, neuronPath, message, number, params, setParams, table as load, model as loadModel} from "./common.js";
import {COLUMNS, distribution} from "./plots.js";

const PER_PAGE = 50;
const place = document.getElementById("table"), only = place.dataset.layer === undefined ? null : +place.dataset.layer;

async function draw() {
  const [all, model] = await Promise.all([load(), loadModel()]);
  const columns = COLUMNS.filter(([key]) => all[key].some(value => value !== null));
  const lower = all.name.map((name, i) => `${name}\n${all.pushes[i]}`.toLowerCase());
  const given = params();
  const state = {filter: given.get("filter") ?? "", layer: only ?? (given.get("layer") ?? ""), sort: given.get("sort") ?? columns[0][0], up: given.get("order") === "up", page: +(given.get("page") ?? 1)};
  if (!columns.some(([key]) => key === state.sort) && state.sort !== "neuron") state.sort = columns[0][0];

  const filter = h("input", {type: "search", placeholder: "Filter by word", "aria-label": "Filter by word", value: state.filter, autocomplete: "off"});
  const layer = h("select", {"aria-label": "Layer"}, h("option", {value: ""}, "All layers"), model.layers.map(each => h("option", {value: each, selected: String(state.layer) === String(each)}, `Layer ${each}`)));
  const count = h("output", {role: "status"});
  const head = h("tr", {}), body = h("tbody", {}), pager = h("div", {class: "pager"});
  const heading = ([key, title]) => {
    const sorted = state.sort === key;
    return h("th", {scope: "col", "aria-sort": sorted ? state.up ? "ascending" : "descending" : "none"},
      h("button", {type: "button", "data-sort": key, onclick: () => { state.up = sorted ? !state.up : key === "neuron"; state.sort = key; state.page = 1; show(); }}, title, sorted ? state.up ? " ↑" : " ↓" : ""));
  };
  function found() {
    const wanted = state.filter.trim().toLowerCase(), rows = [];
    for (let i = 0; i < lower.length; i++)
      if ((state.layer === "" || all.layer[i] === +state.layer) && (!wanted || lower[i].includes(wanted))) rows.push(i);
    if (state.sort === "neuron") return state.up ? rows : rows.reverse();
    const values = all[state.sort], sign = state.up ? 1 : -1;
    return rows.sort((a, b) => (values[a] === null) - (values[b] === null) || sign * (values[a] - values[b]));
  }
  function show() {
    const rows = found(), pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
    state.page = Math.min(Math.max(1, state.page), pages);
    setParams({filter: state.filter, layer: only === null ? state.layer : "", sort: state.sort === columns[0][0] ? "" : state.sort, order: state.up ? "up" : "", page: state.page > 1 ? state.page : ""});
    const focused = document.activeElement?.dataset?.sort;
    head.replaceChildren(...[heading(["neuron", "neuron"]), model.names ? h("th", {scope: "col", class: "left"}, how("names", "fires on")) : null, h("th", {scope: "col", class: "left"}, how("words", "pushes towards, − away from")), ...columns.map(heading)].filter(Boolean));
    head.querySelector(`[data-sort="${focused}"]`)?.focus();
    body.replaceChildren(...rows.slice((state.page - 1) * PER_PAGE, state.page * PER_PAGE).map(i => h("tr", {},
      h("th", {scope: "row"}, h("a", {href: neuronPath(all.layer[i], all.neuron[i])}, `L${all.layer[i]} #${all.neuron[i]}`)), model.names ? h("td", {class: all.names[i] ? "left" : "left quiet"}, all.name[i]) : null, h("td", {class: "left"}, all.pushes[i]),
      columns.map(([key]) => h("td", {}, number(all[key][i]))))));
    count.value = `${rows.length.toLocaleString("en")} neuron${rows.length === 1 ? "" : "s"}`;
    const turn = (by, text) => h("button", {type: "button", disabled: state.page + by < 1 || state.page + by > pages, onclick: () => { state.page += by; show(); place.scrollIntoView(); }}, text);
    pager.replaceChildren(turn(-1, "← Previous"), h("span", {class: "quiet"}, `page ${state.page} of ${pages}`), turn(1, "Next →"));
  }
  filter.addEventListener("input", () => { state.filter = filter.value; state.page = 1; show(); });
  layer.addEventListener("input", () => { state.layer = layer.value; state.page = 1; show(); });
  place.replaceChildren(h("div", {class: "bar-of-tools"}, filter, only === null ? layer : null, count, h("span", {class: "quiet"}, columns.map(([key, title], i) => [i ? ", " : "what is ", how(key, title)]), "?")),
    h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Neurons"}, h("table", {class: "grid"}, h("thead", {}, head), body)), pager);
  show();
  const mine = values => only === null ? values : values.filter((_, i) => all.layer[i] === only);
  document.getElementById("distributions").replaceChildren(...columns.map(([key, title]) => distribution(mine(all[key]), key, title)).filter(Boolean));
}
draw().catch(error => place.replaceChildren(message(error.message, true)));
