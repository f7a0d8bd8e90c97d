import {h, how, keys, live, root, ask, model as loadModel, neuronData, neuronPath, label, message, number, percent, mark, isMarked, params, setParams, setOverlay, overlayOn, shot, page} from "./common.js";
import * as parts from "./parts.js";

const place = document.getElementById("neuron");
const layer = +place.dataset.layer, neuron = +place.dataset.neuron;

function neighbours(model) {
  const at = model.layers.indexOf(layer), count = model.neurons[at];
  const near = step => (neuron + step + count) % count;
  const deeper = step => model.layers[(at + step + model.layers.length) % model.layers.length];
  return {
    ArrowLeft: [layer, near(-1)], ArrowRight: [layer, near(1)],
    ShiftArrowLeft: [deeper(-1), neuron], ShiftArrowRight: [deeper(1), neuron],
  };
}

function header(data, model, near) {
  const star = h("button", {type: "button", id: "mark", "aria-pressed": String(isMarked(layer, neuron))});
  const showMark = on => { star.setAttribute("aria-pressed", String(on)); star.replaceChildren(on ? "★ Marked" : "☆ Mark"); };
  showMark(isMarked(layer, neuron));
  star.addEventListener("click", () => showMark(mark(layer, neuron, data.name)));
  keys.m = () => star.click();
  const step = (key, text, about) => h("a", {href: neuronPath(...near[key]), "aria-label": about, rel: text === "→" ? "next" : "prev"}, text);
  return [
    h("nav", {class: "crumbs", "aria-label": "Where you are"}, h("a", {href: `${root}neurons/`}, "Neurons"), " › ", h("a", {href: `${root}layer/${layer}/`}, `layer ${layer}`), ` › neuron ${neuron}`,
      h("span", {class: "steps"}, step("ArrowLeft", "←", "Previous neuron"), step("ArrowRight", "→", "Next neuron"))),
    h("h1", {}, parts.title(data)),
    h("div", {class: "bar-of-tools"}, star, h("a", {class: "button quiet", href: `${root}compare/?a=${layer}.${neuron}`}, "Compare")),
  ];
}

function wallCard(data, model) {
  const body = h("div", {});
  const modes = [["effect", "Effect"], ["activation", "Activation"], ...(live ? [["text", "Along a text"]] : [])];
  const buttons = h("div", {class: "segments", role: "group", "aria-label": "What images are ranked by"}, modes.map(([mode, text]) => h("button", {type: "button", "data-mode": mode, "aria-pressed": "false", onclick: () => show(mode)}, text)));
  const text = h("input", {type: "search", placeholder: "a text", "aria-label": "Text to rank images along", maxlength: 200, value: params().get("text") ?? ""});
  const form = h("form", {hidden: true, class: "bar-of-tools", onsubmit: event => { event.preventDefault(); along(); }}, text, h("button", {type: "submit"}, "Rank"));
  const opacity = h("input", {type: "range", min: 0, max: 100, value: 60, "aria-label": "Opacity of the heat map", id: "opacity", oninput: () => page.style.setProperty("--overlay", opacity.value / 100)});
  const toggle = h("input", {type: "checkbox", id: "overlay", onchange: () => setOverlay(toggle.checked)});
  toggle.checked = overlayOn();
  addEventListener("overlay", event => { toggle.checked = event.detail; });
  const group = (key, name, indices, by) => [h("h3", {}, how(key, name)), parts.shotList(data, indices, model, {by})];

  function effect() {
    const [low, high] = data.extent, width = (high - low) / data.bands.length;
    return [
      group("effect", "Strongest effects", data.groups.strongest, 2),
      h("h3", {class: "gap"}, how("bands", "All the way down")),
      data.bands.map(([share, indices], i) => [share, indices, low + i * width]).reverse().map(([share, indices, from]) =>
        h("div", {class: "band"}, h("p", {}, h("b", {}, percent(share)), h("br"), h("small", {}, `${number(from)} to ${number(from + width)}`)), parts.shotList(data, indices, model))),
      group("bands", "Random images", data.groups.random, 2),
    ];
  }
  async function along() {
    if (!text.value.trim()) { body.replaceChildren(message("Type a text, such as “a ship”.")); return; }
    setParams({text: text.value});
    body.replaceChildren(message("Running the model over its images…"));
    try {
      const answer = await ask(`live/wall/${layer}/${neuron}?text=${encodeURIComponent(text.value)}`);
      if (form.hidden) return;  // another mode was chosen while the model ran
      const end = Math.min(12, Math.ceil(answer.shots.length / 2));
      const list = shots => h("ul", {class: "shots"}, shots.map(each => shot(each, model.grid)));
      body.replaceChildren(h("h3", {}, how("along", `Most towards “${answer.text}”`)), list(answer.shots.slice(0, end)), h("h3", {}, how("along", "Most away from it")), list(answer.shots.slice(-end).reverse()));
    } catch (error) { body.replaceChildren(message(error.message, true)); }
  }
  function show(mode) {
    for (const button of buttons.children) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    form.hidden = mode !== "text";
    setParams({by: mode === "effect" ? "" : mode});
    if (mode === "text") along();
    else body.replaceChildren(...(mode === "effect" ? effect() : group("activation", "Fires most on", data.groups.firing, 3)).flat(2));
  }
  const wanted = params().get("by");
  queueMicrotask(() => show(modes.some(([mode]) => mode === wanted) ? wanted : "effect"));
  return h("section", {class: "card", id: "wall"}, h("h2", {}, model.tower === "text" ? "Texts" : "Images"),
    h("div", {class: "bar-of-tools"}, buttons, ...(model.tower === "text" ? [] : [h("label", {}, toggle, how("activation", "where it fires"), h("kbd", {}, "o")), h("label", {}, "opacity", opacity)])), form, body);
}

function unseenCard(data) {
  return h("section", {class: "card"}, h("h2", {}, "Strongest images"), h("p", {class: "quiet"}, "Their pictures have not been surveyed: start the explorer once with the model and --images."),
    h("ul", {class: "rows"}, data.top.map(([position, id, norm]) => h("li", {}, h("span", {}, id), h("span", {class: "value"}, number(norm))))));
}

function budgetCard() {
  const body = h("div", {}), start = h("button", {type: "button", id: "budget"}, "Measure it");
  start.addEventListener("click", async () => {
    body.replaceChildren(message("Running the network without it…"));
    try {
      const found = await ask(`live/budget/${layer}/${neuron}`);
      const rows = [["all of it", found.total], ["value paths", found.paths], ["straight", found.direct]], largest = Math.max(...rows.map(([, size]) => size));
      body.replaceChildren(h("ul", {class: "words"}, rows.map(([name, size]) => h("li", {}, h("span", {class: "word plus"}, name), h("span", {class: "bar plus"}, h("i", {"width%": 70 * size / largest}), h("small", {}, number(size)))))),
        h("p", {class: "quiet"}, `Cosine of all of it with the value paths: ${number(found.agreement)}, over ${found.images} image${found.images === 1 ? "" : "s"}.`));
    } catch (error) { body.replaceChildren(message(error.message, true)); }
  });
  return h("section", {class: "card"}, h("h2", {}, how("budget", "Effect budget")), start, body);
}

async function draw() {
  const [model, data] = await Promise.all([loadModel(), neuronData(layer, neuron)]);
  const near = neighbours(model);
  for (const [key, target] of Object.entries(near)) keys[key] = () => { location.href = neuronPath(...target); };
  let picked = null;
  const status = h("p", {class: "message", role: "status", hidden: true});
  const pick = (path, button) => {
    picked = picked === path ? null : path;
    for (const other of place.querySelectorAll(".matrix button")) other.setAttribute("aria-pressed", String(other === button && picked !== null));
    const items = [...place.querySelectorAll("#wall .shots li")], known = items.filter(item => +item.dataset.path >= 0);
    for (const item of items) item.classList.toggle("dim", picked !== null && known.includes(item) && +item.dataset.path !== picked);
    const kept = known.filter(item => +item.dataset.path === picked).length;
    status.hidden = picked === null;
    status.textContent = !known.length ? "Which head carries most is known of images ranked by effect or activation." : `${kept} of the images shown ${kept === 1 ? "owes most of its" : "owe most of their"} effect to ${parts.pathName(model, layer, path)}.`;
  };
  const paths = parts.pathsCard(data, model, pick);
  paths?.append(status);
  place.replaceChildren(...header(data, model, near), parts.facts(data),
    h("div", {class: "columns"},
      h("div", {}, parts.namesCard(data, model), data.shots ? wallCard(data, model) : unseenCard(data)),
      h("div", {}, parts.wordsCard(data), paths, parts.distributionCard(data), parts.classesCard(data), parts.similarCard(data), live ? budgetCard() : null)));
}
draw().catch(error => place.append(message(error.message, true)));
