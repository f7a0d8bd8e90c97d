import {h, marks, message, neuronLink, setMarks, mark} from "./common.js";

const place = document.getElementById("lists");

function download(name, type, text) {
  const link = h("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A cell that begins like a formula would be run by spreadsheets.
export function cell(value) {
  const text = String(value), safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function draw() {
  const list = marks();
  if (!list.length) { place.replaceChildren(message("Nothing is marked yet.")); return; }
  place.replaceChildren(h("div", {class: "bar-of-tools"},
    h("button", {type: "button", id: "json", onclick: () => download("neurons.json", "application/json", JSON.stringify(list, null, 1))}, "Export JSON"),
    h("button", {type: "button", id: "csv", onclick: () => download("neurons.csv", "text/csv", ["layer,neuron,name", ...list.map(each => [each.layer, each.neuron, each.name].map(cell).join(","))].join("\r\n") + "\r\n")}, "Export CSV"),
    h("button", {type: "button", onclick: () => { setMarks([]); draw(); }}, "Clear"), h("span", {class: "quiet"}, `${list.length} marked`)),
    h("section", {class: "card"}, h("ul", {class: "rows"}, list.map(each => h("li", {}, neuronLink(each.layer, each.neuron, each.name), h("button", {type: "button", class: "value", "aria-label": `Unmark L${each.layer} #${each.neuron}`, onclick: () => { mark(each.layer, each.neuron, "", false); draw(); }}, "✕"))))));
}
draw();
