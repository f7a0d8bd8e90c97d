import {ask, h, how, heatCanvas, imageData, live, message, model as loadModel, neuronLink, number, overlayOn, params, picturePath, root, setParams} from "./common.js";
import {attentionCard} from "./attention.js";

const place = document.getElementById("image");
let source = null;  // what requests are made with: ?at=… or the bytes of a file

const post = (path, values = []) => ask(`live/${path}?${new URLSearchParams([...values, ...(source.at === undefined ? [] : [["at", source.at]])])}`,
  {method: "POST", headers: {"content-type": "application/octet-stream"}, body: source.file ?? null});
const rows = list => h("ul", {class: "rows"}, list.map(([layer, neuron, value, name]) => h("li", {}, neuronLink(layer, neuron, name), h("span", {class: `value ${value < 0 ? "minus" : "plus"}`}, number(value)))));

function colours(found, threshold) {
  const [height, width] = found.size, canvas = h("canvas", {width, height, "aria-hidden": "true"});
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  const bytes = found.heat.map(text => Uint8Array.from(text.match(/../g), byte => parseInt(byte, 16)));
  const tones = [[43, 138, 214], [226, 112, 30]], shares = bytes.map(() => 0);
  for (let i = 0; i < width * height; i++) {
    let best = 0;
    for (let each = 1; each < bytes.length; each++) if (bytes[each][i] > bytes[best][i]) best = each;
    const on = bytes[best][i] / 255 >= threshold;
    if (on) shares[best]++;
    pixels.data.set(on ? [...tones[best], 150] : [8, 10, 22, 140], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  return [canvas, shares.map(share => share / (width * height))];
}

function segmentCard(figure) {
  const first = h("input", {type: "search", placeholder: "a dog", "aria-label": "Text to find", maxlength: 200}), second = h("input", {type: "search", placeholder: "against (optional)", "aria-label": "Second text", maxlength: 200});
  const threshold = h("input", {type: "range", min: 0, max: 100, value: 50, "aria-label": "Threshold", id: "threshold"}), status = h("div", {});
  let found = null;
  const show = () => {
    if (!found) return;
    const [canvas, shares] = colours(found, threshold.value / 100);
    figure.querySelector("canvas")?.remove();
    figure.querySelector("img").after(canvas);
    status.replaceChildren(message(found.texts.map((text, i) => `${text}: ${Math.round(100 * shares[i])} % of the picture`).join(" · ")));
  };
  threshold.addEventListener("input", show);
  return h("section", {class: "card"}, h("h2", {}, how("segment", "Where is it?")), h("form", {class: "bar-of-tools", id: "segment", onsubmit: async event => {
    event.preventDefault();
    const texts = [first.value.trim(), second.value.trim()].filter(Boolean);
    if (!texts.length) { status.replaceChildren(message("Type a text, such as “a dog”.")); return; }
    status.replaceChildren(message("Looking…"));
    try { found = await post("segment", texts.map(text => ["text", text])); show(); } catch (error) { status.replaceChildren(message(error.message, true)); }
  }}, first, second, h("button", {type: "submit"}, "Find"), h("label", {}, "threshold", threshold)), status);
}

async function analyse(url, about) {
  const model = await loadModel(), [gridRows, gridColumns] = model.grid;
  const figure = h("div", {class: "picture"}, h("img", {src: url, alt: about})), status = h("div", {}, message("Reading the picture…")), cards = h("div", {});
  const heat = digits => { figure.querySelector("canvas")?.remove(); if (digits && overlayOn()) figure.querySelector("img").after(heatCanvas(digits, model.grid)); };
  place.replaceChildren(h("div", {class: "columns of-picture"}, h("div", {id: "left"}, figure, status), cards), chooser());
  let answer;
  try { answer = await post("image"); } catch (error) { status.replaceChildren(message(error.message, true)); return; }
  status.replaceChildren(h("p", {class: "quiet"}, "Click a patch for the neurons that fire there."));
  const patchCard = h("section", {class: "card", id: "patch", hidden: true, "aria-live": "polite"});
  const patches = h("div", {class: "patches", role: "group", "aria-label": "Patches"});
  patches.style.gridTemplate = `repeat(${gridRows}, 1fr) / repeat(${gridColumns}, 1fr)`;
  const looked = attentionCard(post, model, answer.undivided, {heat, patches});
  answer.patches.forEach((list, i) => {
    const row = Math.floor(i / gridColumns) + 1, column = i % gridColumns + 1;
    patches.append(h("button", {type: "button", tabindex: i ? -1 : 0, "aria-pressed": "false", "aria-label": `patch in row ${row}, column ${column}`, onclick: event => {
      for (const other of patches.children) other.setAttribute("aria-pressed", String(other === event.currentTarget));
      patchCard.hidden = false;
      patchCard.replaceChildren(h("h2", {}, how("patch", "Neurons of this patch"), h("small", {}, `row ${row}, column ${column}`)), rows(list));
      looked.choose(i);
    }}));
  });
  patches.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: gridColumns, ArrowUp: -gridColumns}[event.key];
    const target = step && patches.children[[...patches.children].indexOf(document.activeElement) + step];
    if (!target) return;
    event.preventDefault();
    event.stopPropagation();
    document.activeElement.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  });
  figure.append(patches);
  const words = h("ul", {class: "rows"}, answer.words.map(word => h("li", {}, h("button", {type: "button", "aria-label": `Show where ${word.text} comes from`, onclick: () => { heat(word.heat); detail(word); }}, word.text), h("span", {class: "value"}, number(word.weight)))));
  const aboutWord = h("section", {class: "card", hidden: true, "aria-live": "polite"});
  function detail(word) {
    const flat = word.heads.flatMap((heads, block) => heads.map((weight, head) => [block, head, weight])).filter(([, , weight]) => weight).sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 6);
    aboutWord.hidden = false;
    aboutWord.replaceChildren(h("h2", {}, how("concepts", `Why “${word.text}”`)), h("h3", {}, "Neurons"), rows(word.neurons), h("h3", {}, "Heads"), h("ul", {class: "rows"}, flat.map(([block, head, weight]) => h("li", {}, `${block === model.depth ? "the pool" : `layer ${block}`}, head ${head}`, h("span", {class: "value"}, number(weight))))));
  }
  cards.replaceWith(h("div", {class: "cards"}, patchCard, h("section", {class: "card", id: "words"}, h("h2", {}, how("concepts", "Concepts")), answer.words.length ? words : h("p", {class: "quiet"}, "No neuron is above its threshold here.")), aboutWord,
    h("section", {class: "card"}, h("h2", {}, how("response", "Neurons")), rows(answer.neurons.slice(0, 12))), looked.card));
  document.getElementById("left").append(segmentCard(figure));
}

function chooser() {
  const box = h("div", {class: "drop"});
  if (live) {
    const file = h("input", {type: "file", accept: "image/*", id: "file", hidden: true, "aria-label": "Picture", onchange: () => take(file.files[0])});
    box.append(h("p", {}, "Drop a picture here, or ", h("button", {type: "button", onclick: () => file.click()}, "choose one"), file), h("small", {}, "It is read in memory and never kept."));
    for (const kind of ["dragenter", "dragover"]) box.addEventListener(kind, event => { event.preventDefault(); box.classList.add("over"); });
    box.addEventListener("dragleave", () => box.classList.remove("over"));
    box.addEventListener("drop", event => { event.preventDefault(); box.classList.remove("over"); take(event.dataTransfer.files[0]); });
  } else box.append(h("p", {}, "No model is running here, so only the pictures of the fit can be shown, and not where heads look in them."));
  const gallery = h("div", {class: "gallery"});
  loadModel().then(model => gallery.append(...model.pictures.map(position => h("a", {href: `${root}image/?at=${position}`}, h("img", {src: picturePath(position), alt: `image ${position}`, loading: "lazy"})))));
  return h("section", {}, box, gallery);
}

function take(file) {
  if (!file) return;
  source = {file};
  setParams({at: ""});
  analyse(URL.createObjectURL(file), file.name);
}

async function start() {
  const at = params().get("at");
  if (at === null) { place.replaceChildren(chooser()); return; }
  const data = await imageData(+at);
  source = {at: data.position};
  if (live) { await analyse(picturePath(data.position), `image ${data.id}`); place.prepend(h("p", {class: "quiet"}, data.id)); return; }
  place.replaceChildren(h("p", {class: "quiet"}, data.id), h("div", {class: "columns of-picture"}, h("div", {}, h("div", {class: "picture"}, h("img", {src: picturePath(data.position), alt: `image ${data.id}`}))),
    h("div", {}, h("section", {class: "card"}, h("h2", {}, how("response", "Neurons")), rows(data.neurons ?? [])))), chooser());
}
start().catch(error => place.replaceChildren(message(error.message, true)));
