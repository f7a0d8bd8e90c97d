// All neurons as points; a line drawn around some lists them.
import {h, how, label, message, mark, neuronLink, neuronPath, packed, model as loadModel, table as load, number} from "./common.js";

const place = document.getElementById("map");
const LISTED = 200;

export function inside(polygon, x, y) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if (yi > y !== yj > y && x < (xj - xi) * (y - yi) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}

async function draw() {
  const [{places}, all, model] = await Promise.all([packed("data/map.json.gz"), load(), loadModel()]);
  if (!places.length) { place.replaceChildren(message("There is no map of this lens: start the explorer with scikit-learn installed.")); return; }
  const canvas = h("canvas", {role: "img", "aria-label": "Map of neurons; the table of all neurons holds the same ones"}), tip = h("div", {class: "tip", hidden: true});
  const filter = h("input", {type: "search", placeholder: "Highlight by word", "aria-label": "Highlight by word"});
  const side = h("section", {class: "card", "aria-label": "Chosen neurons"});
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = i => `oklch(${dark.matches ? .76 : .56} .15 ${Math.round(250 + 300 * i / Math.max(1, model.layers.length))})`;
  const rank = new Map(model.layers.map((layer, i) => [layer, i])), lower = all.name.map((name, i) => `${name}\n${all.pushes[i]}`.toLowerCase());
  let line = [], chosen = new Set(), width = 1, height = 1;
  const at = i => [12 + places[2 * i] / 1000 * (width - 24), 12 + places[2 * i + 1] / 1000 * (height - 24)];

  function paint() {
    const ratio = devicePixelRatio || 1;
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const context = canvas.getContext("2d"), wanted = filter.value.trim().toLowerCase();
    context.scale(ratio, ratio);
    const lit = i => chosen.size ? chosen.has(i) : !wanted || lower[i].includes(wanted);
    for (const bright of [false, true]) for (let i = 0; i < lower.length; i++) {
      if (lit(i) !== bright) continue;
      const [x, y] = at(i);
      context.globalAlpha = bright ? .85 : .12;
      context.fillStyle = colour(rank.get(all.layer[i]));
      context.beginPath();
      context.arc(x, y, bright && (wanted || chosen.size) ? 3.2 : lower.length > 10000 ? 1.6 : 2.2, 0, 7);
      context.fill();
    }
    if (line.length > 1) {
      context.globalAlpha = 1;
      context.strokeStyle = dark.matches ? "#fff" : "#111";
      context.lineWidth = 1.5;
      context.beginPath();
      for (const [x, y] of line) context.lineTo(x, y);
      context.closePath();
      context.stroke();
    }
  }
  function list() {
    const found = [...chosen];
    if (!found.length) { side.replaceChildren(h("h2", {}, how("map", "Map")), h("p", {class: "quiet"}, "Draw a line around neurons to list them here. A click opens the nearest one.")); return; }
    side.replaceChildren(h("h2", {}, `${found.length.toLocaleString("en")} neuron${found.length === 1 ? "" : "s"}`, h("button", {type: "button", id: "mark-all", onclick: event => { for (const i of found.slice(0, LISTED)) mark(all.layer[i], all.neuron[i], all.name[i], true); event.target.textContent = "★ Marked"; }}, "☆ Mark them")),
      h("p", {class: "quiet"}, "Beside each: ", how("score", "finds unseen images"), "."),
      h("ul", {class: "rows"}, found.slice(0, LISTED).map(i => h("li", {}, neuronLink(all.layer[i], all.neuron[i], all.name[i]), h("span", {class: "value"}, number(all.score[i]))))),
      found.length > LISTED ? h("p", {class: "quiet"}, `The first ${LISTED} of them.`) : null);
  }
  const point = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  function nearest([x, y], reach = 12) {
    let best = -1, distance = reach * reach;
    for (let i = 0; i < lower.length; i++) {
      const [px, py] = at(i), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < distance) [best, distance] = [i, d];
    }
    return best;
  }
  canvas.addEventListener("pointerdown", event => { line = [point(event)]; canvas.setPointerCapture(event.pointerId); tip.hidden = true; });
  canvas.addEventListener("pointermove", event => {
    const here = point(event);
    if (line.length && event.buttons) { line.push(here); paint(); return; }
    const i = nearest(here);
    tip.hidden = i < 0;
    if (i < 0) return;
    tip.textContent = `${label(all.layer[i], all.neuron[i])} ${all.name[i]}`;
    tip.style.left = `${Math.min(here[0] + 14, width - 180)}px`;
    tip.style.top = `${here[1] + 14}px`;
  });
  canvas.addEventListener("pointerup", event => {
    const drawn = line;
    line = [];
    const size = drawn.length < 3 ? 0 : Math.max(...drawn.map(([x, y]) => Math.hypot(x - drawn[0][0], y - drawn[0][1])));
    if (size < 8) {
      const i = nearest(point(event));
      if (i >= 0 && !chosen.size) { location.href = neuronPath(all.layer[i], all.neuron[i]); return; }
      chosen = new Set();
    } else {
      chosen = new Set();
      for (let i = 0; i < lower.length; i++) if (inside(drawn, ...at(i))) chosen.add(i);
      line = drawn;
    }
    paint();
    line = [];
    list();
  });
  filter.addEventListener("input", paint);
  addEventListener("resize", paint);
  dark.addEventListener("change", paint);
  place.replaceChildren(h("div", {class: "bar-of-tools"}, filter), h("div", {class: "map"}, h("div", {}, h("div", {class: "sheet"}, canvas, tip),
    h("ul", {class: "legend"}, model.layers.map((layer, i) => h("li", {}, h("i", {"--dot": colour(i)}), `layer ${layer}`)))), side));
  list();
  paint();
}
draw().catch(error => place.replaceChildren(message(error.message, true)));
