// What all pages share: building elements, loading data, pictures with heat, keys, marks, help.
// Texts reach the page as text nodes and attributes only, never as HTML.
export const page = document.documentElement;
export const root = page.dataset.root;
export const live = "live" in page.dataset;
export const served = "served" in page.dataset;
export const hasBeside = "beside" in page.dataset;

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name === "width%") element.style.width = `${value}%`;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// As people read it: two significant digits, whole numbers in full, 1.02 as 1.
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.floor(Math.log10(Math.abs(value.toPrecision(2))));
  return value.toFixed(Math.min(8, Math.max(0, 1 - size))).replace(/\.0$/, "").replace("-", "−");
}
export const percent = share => share === 0 ? "0 %" : share < .001 ? "< 0.1 %" : `${(100 * share).toFixed(share < .1 ? 1 : 0)} %`;

const known = new Map();
export function packed(path) {
  if (!known.has(path)) known.set(path, fetch(root + path).then(async response => {
    if (!response.ok) throw new Error(`${path} cannot be read`);
    return new Response(response.body.pipeThrough(new DecompressionStream("gzip"))).json();
  }));
  return known.get(path);
}

export async function ask(path, options) {
  const response = await fetch(root + path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(typeof answer.detail === "string" ? answer.detail : "That cannot be asked for.");
  return answer;
}

const PACK = 64;
const whose = beside => beside ? "beside/" : "";
export const model = (beside = false) => packed(`${whose(beside)}data/model.json.gz`);
export const table = (beside = false) => packed(`${whose(beside)}data/neurons.json.gz`);
export async function neuronData(layer, neuron, beside = false) {
  const inline = document.getElementById("data");
  const own = document.getElementById("neuron")?.dataset;
  if (inline && !beside && own && +own.layer === layer && +own.neuron === neuron) return JSON.parse(inline.textContent);
  if (served) return ask(`${whose(beside)}data/neuron/${layer}/${neuron}.json`);
  const pack = await packed(`${whose(beside)}data/neuron/${layer}/${Math.floor(neuron / PACK)}.json.gz`);
  if (!pack[neuron % PACK]) throw new Error(`There is no neuron ${neuron} in layer ${layer}.`);
  return pack[neuron % PACK];
}
export async function imageData(position) {
  if (served) return ask(`data/image/${position}.json`);
  const pack = await packed(`data/image/${Math.floor(position / PACK)}.json.gz`);
  if (!pack[position % PACK]) throw new Error(`There is no image ${position}.`);
  return pack[position % PACK];
}

export const label = (layer, neuron) => `L${layer} #${neuron}`;
export const neuronPath = (layer, neuron, beside = false) => `${root}${whose(beside)}neuron/${layer}/${neuron}/`;
export const neuronLink = (layer, neuron, name) => h("a", {href: neuronPath(layer, neuron)}, h("small", {}, label(layer, neuron)), " ", name || "");
export const picturePath = (position, beside = false) => `${root}${whose(beside)}pictures/${position}.webp`;
export const how = (key, text) => h("button", {class: "what", type: "button", "data-how": key}, text);
export const message = (text, wrong = false) => h("p", {class: wrong ? "message wrong" : "message", role: wrong ? "alert" : "status"}, text);
export const params = () => new URLSearchParams(location.search);
export function setParams(values) {
  const found = params();
  for (const [name, value] of Object.entries(values)) value === "" || value === null ? found.delete(name) : found.set(name, value);
  const text = found.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}

// Heat: one hexadecimal digit a patch; dark where the neuron is silent.
export function heatCanvas(heat, [rows, columns]) {
  const canvas = h("canvas", {width: columns, height: rows, class: "heat", "aria-hidden": "true"});
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let i = 0; i < heat.length; i++) {
    pixels.data.set([8, 10, 22], 4 * i);
    pixels.data[4 * i + 3] = 17 * (15 - parseInt(heat[i], 16));
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

export function shot([position, id, value, peak, path, heat], grid, {beside = false, showing = value} = {}) {
  const about = `image ${id}: effect ${number(value)}, fires up to ${number(peak)}`;
  return h("li", {"data-path": path},
    h("a", {class: "shot", href: `${root}${whose(beside)}image/?at=${position}`, title: about},
      h("img", {src: picturePath(position, beside), alt: about, loading: "lazy", decoding: "async"}),
      heat ? heatCanvas(heat, grid) : null),
    h("small", {}, number(showing)));
}

// Marks live in this browser only.
const MARKS = "secondlens-marks";
export const marks = () => { try { return JSON.parse(localStorage.getItem(MARKS)) ?? []; } catch { return []; } };
export function setMarks(list) { localStorage.setItem(MARKS, JSON.stringify(list)); }
export const isMarked = (layer, neuron) => marks().some(mark => mark.layer === layer && mark.neuron === neuron);
export function mark(layer, neuron, name, on = !isMarked(layer, neuron)) {
  const others = marks().filter(each => each.layer !== layer || each.neuron !== neuron);
  setMarks(on ? [...others, {layer, neuron, name}] : others);
  return on;
}

// The overlay of all pictures is one choice.
const OVERLAY = "secondlens-overlay";
export function setOverlay(on) {
  page.classList.toggle("no-overlay", !on);
  localStorage.setItem(OVERLAY, on ? "on" : "off");
  dispatchEvent(new CustomEvent("overlay", {detail: on}));
}
export const overlayOn = () => !page.classList.contains("no-overlay");
if (localStorage.getItem(OVERLAY) === "off") page.classList.add("no-overlay");

export function openDialog(title, ...content) {
  const dialog = h("dialog", {"aria-label": title},
    h("form", {method: "dialog"}, h("button", {"aria-label": "Close"}, "✕")), ...content);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

let explanations;
async function explain(key) {
  explanations ??= fetch(`${root}how/`).then(response => response.text()).then(text => new DOMParser().parseFromString(text, "text/html"));
  const section = (await explanations).getElementById(key);
  if (!section) return;
  openDialog(section.querySelector("h2").textContent, ...[...section.children].map(child => document.importNode(child, true)));
}
document.addEventListener("click", event => {
  const key = event.target.closest?.("[data-how]")?.dataset.how;
  if (key) explain(key);
});

function help() {
  if (document.querySelector("dialog[open]")) return;
  const keys = [["←  →", "previous and next neuron"], ["Shift ←  →", "previous and next layer"], ["/", "search"], ["o", "show or hide where a neuron fires"], ["m", "mark the neuron"], ["?", "this help"], ["Esc", "close"]];
  openDialog("Keys and help", h("h2", {}, "Keys"),
    h("dl", {class: "keys"}, keys.map(([key, text]) => [h("dt", {}, key.split("  ").map(each => h("kbd", {}, each))), h("dd", {}, text)])),
    h("p", {}, "Whatever is ", h("span", {class: "what"}, "underlined with dots"), " tells how it is computed. ", h("a", {href: `${root}how/`}, "All explanations"), "."));
}
document.getElementById("help").addEventListener("click", help);

export const keys = {
  "/": () => document.querySelector(".top input[type=search]").focus(),
  o: () => setOverlay(!overlayOn()),
  "?": help,
};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select, textarea") || document.querySelector("dialog[open]")) return;
  const key = (event.shiftKey && event.key.startsWith("Arrow") ? "Shift" : "") + event.key;
  if (key in keys) { event.preventDefault(); keys[key](event); }
});
