// Finished runs, and a lab that attacks the model live, step by step.
import {ask, h, how, live, message, neuronLink, number, packed, params, percent, root, setParams, svg, table} from "./common.js";

const place = document.getElementById("runs");
const source = picture => typeof picture === "number" ? `${root}runs/pictures/${picture}` : picture.startsWith("data:") ? picture : root + picture;
const step = (title, ...content) => h("section", {class: "card"}, h("h2", {}, title), content);
const signed = value => (value > 0 ? "+" : "") + number(value);
const between = ([value, low, high]) => value === null ? "–" : `${signed(value)} [${signed(low)}, ${signed(high)}]`;

function attackParts(report) {
  const wrong = margin => margin > 0;
  return [
    step(how("push", `1 Words that push “${report.draw}” towards “${report.mistake_for}”`), h("ul", {class: "rows wraps"}, report.words.map(word => h("li", {}, h("b", {}, word.text), h("span", {}, (word.neurons ?? []).map(([layer, neuron], i) => [i ? " · " : null, neuronLink(layer, neuron, called.get(`${layer}.${neuron}`))])), h("span", {class: "value"}, number(word.score)))))),
    step("2 Captions", h("ul", {class: "rows"}, [...new Set(report.samples.map(sample => sample.caption))].slice(0, 12).map(caption => h("li", {}, caption)))),
    step(how("margin", "3 Pictures, and what the model says of them"), h("p", {class: "quiet"}, "Each beside the same picture without the words. A margin above 0 is a mistake."),
      h("div", {class: "holding"}, report.samples.slice(0, 60).map(sample => h("figure", {class: "pair"},
        h("div", {}, [["picture", sample.caption], ["plain", "the same without the words"]].map(([key, about]) => sample[key] === null ? null : h("img", {src: source(sample[key]), alt: about, loading: "lazy"}))),
        h("figcaption", {}, sample.caption, h("br"), h("small", {class: wrong(sample.margin) ? "minus" : ""}, `${sample.best}, margin ${number(sample.margin)}`), h("small", {}, ` · without: ${sample.plain_best}, ${number(sample.plain_margin)}${sample.counted ? "" : " · not counted"}`)))))),
    step(how("success", "4 Success"), Object.keys(report.rates).length ? h("dl", {class: "facts"}, Object.entries(report.rates).map(([name, rate]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, percent(rate.share ?? 0)), h("small", {}, `${rate.count} of ${rate.of} [${percent(rate.interval[0])}, ${percent(rate.interval[1])}]`))))) : h("p", {class: "quiet"}, "No picture passed the check.")),
  ];
}

const ROWS = 60;
function auditParts(report) {
  const flat = report.effect.flatMap((row, i) => row.map((value, j) => [value, i, j])).filter(([value]) => value !== null);
  const largest = Math.max(1e-12, ...flat.map(([value]) => Math.abs(value)));
  const ties = [...flat].sort((a, b) => b[0] - a[0]).slice(0, 12);
  const order = [...new Set([...flat].sort((a, b) => b[0] - a[0]).map(([, i]) => i))].slice(0, ROWS);
  const sure = (i, j) => Math.abs(report.effect[i][j]) > report.spread[i][j];
  return [
    step(how("tie", "Strongest ties"), h("ul", {class: "rows wraps"}, ties.map(([value, i, j]) => h("li", {}, h("b", {}, report.classes[i]), h("span", {}, `leans on ${report.cues[j]}`), h("span", {}, report.neurons[j].slice(0, 3).map(([layer, neuron], i) => [i ? " · " : null, neuronLink(layer, neuron, called.get(`${layer}.${neuron}`))])), h("span", {class: "value"}, `${number(value)} ± ${number(report.spread[i][j])}${report.drawn ? ` · drawn ${number(report.drawn[i][j])}` : ""}`))))),
    step(how("tie", "Classes by cues"), h("p", {class: "quiet"}, `How far a class's margin falls when the cue's neurons are mean-ablated, on images that show the cue and not the class. Bold: the 95 % interval leaves 0 out. The ${order.length} classes with the largest effects of ${report.classes.length}.`),
      h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Classes by cues"}, h("table", {class: "grid heat"}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "class"), report.cues.map(cue => h("th", {scope: "col"}, cue)))),
        h("tbody", {}, order.map(i => h("tr", {}, h("th", {scope: "row"}, report.classes[i]), report.effect[i].map((value, j) => value === null ? h("td", {}, "–") :
          h("td", {"--tone": value < 0 ? "var(--minus)" : "var(--plus)", "--weight": `${Math.round(42 * Math.abs(value) / largest)}%`}, sure(i, j) ? h("b", {}, number(value)) : number(value))))))))),
  ];
}

function defenceParts(report) {
  const points = [report.before, ...report.points], [x, y] = ["usual", "unusual"];
  const methods = [...new Set(report.points.map(point => point.method))];
  const range = key => { const values = points.map(point => point[key]).filter(value => value !== null); const [low, high] = [Math.min(...values), Math.max(...values)]; return [low, high - low || 1]; };
  const [x0, dx] = range(x), [y0, dy] = range(y), place = point => [4 + 92 * (point[x] - x0) / dx, 56 - 52 * (point[y] - y0) / dy];
  const colour = i => `oklch(.62 .15 ${250 + 360 * i / methods.length})`;
  const picture = svg("svg", {viewBox: "0 0 100 60", class: "curve", role: "img", "aria-label": "Accuracy where cues mislead against accuracy on usual pictures, by method"});
  methods.forEach((method, i) => {
    const own = report.points.filter(point => point.method === method && point[x] !== null && point[y] !== null).map(place);
    picture.append(svg("polyline", {points: own.map(each => each.join(",")).join(" "), fill: "none", stroke: colour(i), "stroke-width": .5}), ...own.map(([cx, cy]) => svg("circle", {cx, cy, r: .8, fill: colour(i)})));
  });
  const [bx, by] = place(report.before);
  picture.append(svg("circle", {cx: bx, cy: by, r: 1.4, fill: "none", stroke: "currentColor", "stroke-width": .5}));
  const keys = Object.keys(report.points[0] ?? report.before).filter(key => typeof report.before[key] !== "object" || report.before[key] === null);
  const show = value => typeof value === "number" ? number(value) : value === null || value === undefined ? "–" : String(value);
  return [
    step(how("cut", "Trade-off"), h("p", {class: "quiet"}, "Up: accuracy where cues mislead. To the right: accuracy on usual pictures. The ring is the model as it was."), picture, h("div", {class: "axis"}, h("span", {}, `${percent(x0)} to ${percent(x0 + dx)} on usual pictures`), h("span", {}, `${percent(y0)} to ${percent(y0 + dy)} where cues mislead`)), h("ul", {class: "legend"}, methods.map((method, i) => h("li", {}, h("i", {"--dot": colour(i)}), method)))),
    step(how("chosen", "What each method chose"), h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "What each method chose"}, h("table", {class: "grid"},
      h("thead", {}, h("tr", {}, ["method", "cut", "strength", "usual", "where cues mislead", "fooled"].map(name => h("th", {scope: "col"}, name)))),
      h("tbody", {}, report.results.map(({point, usual_change, unusual_change, fooled_change}) => h("tr", {}, h("th", {scope: "row"}, point.method), h("td", {}, point.count), h("td", {}, number(point.strength)), [usual_change, unusual_change, fooled_change].map(change => h("td", {}, between(change))))))))),
    step("Neurons cut", h("p", {}, report.neurons.map(([layer, neuron], i) => [i ? " · " : null, neuronLink(layer, neuron, called.get(`${layer}.${neuron}`))]))),
    step(how("cut", "Everything that was tried"), h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Points"}, h("table", {class: "grid"}, h("thead", {}, h("tr", {}, keys.map(key => h("th", {scope: "col"}, key)))), h("tbody", {}, points.slice(0, 200).map(point => h("tr", {}, keys.map(key => h("td", {}, show(point[key]))))))))),
  ];
}
let called = new Map();  // what neurons are called, by layer and number
const PARTS = {attack: attackParts, audit: auditParts, defence: defenceParts};

function lab(classes) {
  const given = params(), out = h("div", {class: "steps-of-lab"});
  const field = (key, about, value) => h("label", {}, about, h("input", {id: key, list: "classes", value, autocomplete: "off", maxlength: 200}));
  const draw = field("draw", "Draw", given.get("draw") ?? "dog"), wrong = field("mistake_for", "to be mistaken for", given.get("mistake_for") ?? "deer");
  const values = () => ({draw: draw.querySelector("input").value, mistake_for: wrong.querySelector("input").value});
  const start = h("button", {type: "submit", class: "primary"}, "Attack");
  const form = h("form", {class: "bar-of-tools", onsubmit: async event => {
    event.preventDefault();
    start.disabled = true;
    setParams(values());
    out.replaceChildren(message("Choosing words, writing, drawing and judging…"));
    try { out.replaceChildren(...attackParts(await ask(`live/attack?${new URLSearchParams(values())}`, {method: "POST"}))); } catch (error) { out.replaceChildren(message(error.message, true)); }
    start.disabled = false;
  }}, draw, wrong, h("datalist", {id: "classes"}, classes.map(value => h("option", {value}))), start);
  return [step("Attack lab", h("p", {class: "quiet"}, "Pictures of one class that this model takes for another, drawn and judged here and now."), form), out];
}

function summary(report, i) {
  const title = report.kind === "attack" ? `${report.draw} → ${report.mistake_for}` : `${report.kind}: ${report.folder}`;
  const rate = report.rates?.flipped;
  return h("li", {}, h("a", {href: `?run=${i}`}, title), h("small", {}, report.kind), h("span", {class: "value"}, rate ? `${percent(rate.share ?? 0)} flipped` : ""));
}

async function draw() {
  const [{reports, classes}, all] = await Promise.all([packed("data/runs.json.gz"), table()]), wanted = params().get("run");
  called = new Map(all.name.map((name, i) => [`${all.layer[i]}.${all.neuron[i]}`, name]));
  if (wanted !== null && reports[+wanted]) {
    const report = reports[+wanted];
    place.replaceChildren(h("p", {}, h("a", {href: location.pathname}, "All runs"), ` › ${report.kind}: ${report.folder}`), ...PARTS[report.kind](report));
    return;
  }
  place.replaceChildren(...(live && classes.length ? lab(classes) : []), reports.length ? step("Finished runs", h("ul", {class: "rows"}, reports.map(summary))) : message("No finished runs were given: start with --runs FOLDER."));
}
draw().catch(error => place.replaceChildren(message(error.message, true)));
