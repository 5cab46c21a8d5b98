"use strict";
const model = JSON.parse(document.getElementById("data").textContent);
const el = id => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const GROUPS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#b8a400", "#66a61e", "#a6761d", "#e7298a", "#1b9e77"];
const LOCAL = "#6d7b84";

// Names come from strangers. As text of the page they only ever become text nodes; Plotly reads a few tags in labels,
// so that there every < and & is written as an entity.
const plain = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
function make(tag, content, className) {
  const made = document.createElement(tag);
  if (content instanceof Node) made.append(content); else if (content !== undefined) made.textContent = content;
  if (className) made.className = className;
  return made;
}
const short = (name, most) => name.length <= most ? name : "…" + name.slice(-(most - 1));
const ms = value => value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
const bytes = n => n < 1e3 ? n.toFixed(0) + " B" : n < 1e6 ? (n / 1e3).toFixed(n < 1e4 ? 1 : 0) + " kB" : (n / 1e6).toFixed(1) + " MB";
const rate = bps => bps < 1e6 ? (bps / 1e3).toPrecision(3) + " kbit/s" : bps < 1e9 ? (bps / 1e6).toPrecision(3) + " Mbit/s" : (bps / 1e9).toPrecision(3) + " Gbit/s";
const percent = share => share === null ? "–" : (100 * share).toFixed(1) + " %";
const narrow = () => innerWidth < 640;

// What is asked: the sliders' answers, exact where they have not been moved.
let state = {};
function planned() {
  const { link, conditions: c, constraints } = model;
  state = { bps: link.bps, rtt_s: link.rtt_s, device: c.device, server: c.server, load: c.load, objective: model.objective, bounds: { ...constraints } };
}
const predictions = (conditions = state) => model.points.map(point => narrows.predict(point, model, conditions));
const choose = (conditions = state) => narrows.best(predictions(conditions), state.bounds, state.objective);

function showControls() {
  el("bps").value = Math.log10(state.bps / 1e6); el("bps-said").textContent = rate(state.bps);
  el("rtt").value = state.rtt_s * 1000; el("rtt-said").textContent = (state.rtt_s * 1000).toFixed(state.rtt_s < .01 ? 1 : 0) + " ms";
  el("device").value = -Math.log2(state.device);
  el("device-said").textContent = Math.abs(Math.log2(state.device)) < .01 ? "as measured" : state.device > 1 ? state.device.toPrecision(2) + "× slower" : (1 / state.device).toPrecision(2) + "× faster";
  const at = model.loads.findIndex(load => load >= state.load - 1e-9);
  el("load").value = at < 0 ? model.loads.length - 1 : at; el("load-said").textContent = (100 * state.load).toFixed(0) + " %";
  el("objective").value = state.objective;
  if (document.activeElement !== el("drop")) el("drop").value = state.bounds.max_accuracy_drop ?? "";
  if (document.activeElement !== el("deadline")) el("deadline").value = state.bounds.deadline_ms ?? "";
}
function listen() {
  const bound = value => value.trim() === "" || !(Number(value) >= 0) ? null : Number(value);
  const moves = {
    bps: value => { state.bps = 1e6 * 10 ** Number(value); },
    rtt: value => { state.rtt_s = Number(value) / 1000; },
    device: value => { state.device = 2 ** -Number(value); },
    load: value => { state.load = model.loads[Number(value)]; },
    objective: value => { state.objective = value; },
    drop: value => { state.bounds.max_accuracy_drop = bound(value); },
    deadline: value => { state.bounds.deadline_ms = bound(value) || null; },
  };
  for (const [id, move] of Object.entries(moves)) el(id).addEventListener("input", event => { move(event.target.value); soon(); });
  el("bounds").addEventListener("reset", event => { event.preventDefault(); planned(); soon(); });
  for (const form of document.forms) form.addEventListener("submit", event => event.preventDefault());
  dark.addEventListener("change", soon);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; soon(); } });
}
// While a slider is dragged the answer and its bars follow; the rest is drawn when it rests.
let waiting = false, resting = 0;
function soon() {
  clearTimeout(resting);
  resting = setTimeout(showRest, 120);
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; showAnswers(); });
}

// The answer in words.
function showAnswer(all, { best, misses }) {
  const missed = Object.entries(misses), name = best.point.label;
  el("sliders").className = missed.length ? "missed" : "";
  el("verdict").dataset.point = name;
  const lead = missed.length ? "Nothing keeps the bounds. The nearest miss: " : best.point.mode === "split" ? "" : "Do not split: ";
  const said = `${lead}${name}, ${ms(best.latency)} ms`;
  el("verdict").textContent = said[0].toUpperCase() + said.slice(1);
  const words = missed.map(([what, factor]) => `${what} at ${factor.toFixed(2)}× its bound`);
  if (best.bytes) words.push(bytes(best.bytes) + " a frame");
  if (best.drop !== null && best.point.mode !== "local") words.push(`${best.drop.toFixed(1)} points of accuracy ${best.point.drop_by === "agreement" ? "lost at most" : "lost"}`);
  for (const mode of ["split", "local", "offload"].filter(mode => mode !== best.point.mode)) {
    const others = all.filter(one => one.point.mode === mode);
    if (!others.length) continue;
    const other = narrows.best(others, state.bounds, state.objective).best;
    words.push(`${mode === "split" ? other.point.label : mode === "offload" ? other.point.label : "local"}: ${ms(other.latency)} ms`);
  }
  el("beside").textContent = words.join(" · ");
}

// The pictures.
const PARTS = { head: ["head"], coding: ["encode", "decode"], link: ["transport", "send", "trip"], queue: ["queue"], tail: ["tail", "final"] };
function layout(more) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), fixedrange: true, automargin: true };
  const { xaxis, yaxis, ...rest } = more;
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("ink"), size: 13, family: "system-ui, sans-serif" },
    margin: { l: 8, r: 12, t: 8, b: 40 }, dragmode: false, hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest };
}
function legend(id, entries) {
  el(id).replaceChildren(...entries.map(([name, shade]) => {
    const item = make("li"), box = make("i");
    box.style.background = shade;
    item.append(box, name);
    return item;
  }));
}
// The size is said outright: left to itself, Plotly takes a box's height for its own whenever the window changes.
function draw(id, traces, more) {
  el(id).style.height = more.height + "px";
  Plotly.react(el(id), traces, layout({ width: el(id).clientWidth, ...more }), { displayModeBar: false });
}

// Of each cut, and of each other way, the best point under the bounds; by the work before the cut.
function leaders(all) {
  const groups = Map.groupBy ? Map.groupBy(all, one => one.point.group) : all.reduce((map, one) => map.set(one.point.group, [...map.get(one.point.group) ?? [], one]), new Map());
  const rank = one => one.point.mode === "local" ? 1e12 : one.point.mode === "offload" ? -1 : one.stages.head;
  return [...groups.values()].map(group => narrows.best(group, state.bounds, state.objective).best).sort((a, b) => rank(a) - rank(b));
}
const tag = (point, most) => point.mode === "split" ? `${short(point.cut, most)} q${point.quality}` : point.mode === "offload" ? `${point.format === "jpeg" ? "JPEG" : "WebP"} ${point.quality}` : "local";
function showLatency(rows, best) {
  const most = narrow() ? 12 : 34;
  // Two long names may end alike; what tells the rows apart is their place, not their label.
  const places = rows.map((_, i) => i), labels = rows.map(one => (one === best ? "<b>▸ " : "") + plain(tag(one.point, most)) + (one === best ? "</b>" : ""));
  const traces = Object.entries(PARTS).map(([name, parts]) => ({
    type: "bar", orientation: "h", name, y: places, x: rows.map(one => parts.reduce((sum, part) => sum + one.stages[part], 0)), marker: { color: colour(name) },
    hovertemplate: rows.map(one => `${plain(one.point.label)}<br>${name} %{x:.2f} ms of ${ms(one.latency)}<extra></extra>`) }));
  const totals = { x: rows.map(one => one.latency), y: places, type: "scatter", mode: "text", text: rows.map(one => " " + ms(one.latency)), textposition: "middle right", cliponaxis: false, showlegend: false, hoverinfo: "skip", textfont: { color: colour("soft"), size: 11 } };
  const deadline = state.bounds.deadline_ms;
  legend("latency-legend", Object.keys(PARTS).map(name => [name, colour(name)]));
  draw("latency", [...traces, totals], {
    barmode: "stack", bargap: .28, height: 70 + 30 * rows.length, showlegend: false,
    xaxis: { title: { text: "ms" }, range: [0, 1.14 * Math.max(...rows.map(one => one.latency))] },
    yaxis: { tickvals: places, ticktext: labels, autorange: "reversed", showgrid: false, ticklabelstandoff: 6 }, margin: { l: 8, r: 34, t: 8, b: 40 },
    shapes: deadline ? [{ type: "line", x0: deadline, x1: deadline, yref: "paper", y0: 0, y1: 1, line: { color: colour("warn"), dash: "dot" } }] : [] });
}

function showNarrow(best) {
  const places = model.positions;
  if (!places.length) { el("narrow").closest("section").hidden = true; return; }
  const end = Math.max(...places.map(one => one.head_ms), wholeMs()) || 1, share = one => 100 * one.head_ms / end;
  const least = Math.log10(Math.min(...places.map(one => one.symbols))), width = one => Math.log10(one.symbols) - least + .25;
  const x = [0, ...places.map(share), 100], w = [places[0], ...places, places.at(-1)].map(width);
  const bank = side => ({ x, y: w.map(v => side * v), type: "scatter", mode: "lines", line: { shape: "hvh", width: 1, color: colour("accent") }, hoverinfo: "skip", showlegend: false });
  const water = { ...bank(-1), fill: "tonexty", fillcolor: colour("water") };
  const text = one => `${plain(one.name)}<br>${bytes(one.symbols)} at 8 bits, ${bytes(one.raw_bytes)} as it is<br>${share(one).toFixed(0)} % of the work before it`;
  const everywhere = { x: places.map(share), y: places.map(() => 0), type: "scatter", mode: "markers", marker: { size: 14, opacity: 0 }, text: places.map(text), hovertemplate: "%{text}<extra></extra>", showlegend: false };
  const cuts = places.filter(one => one.measured), chosen = one => best.point.cut === one.name;
  const rings = { ...everywhere, x: cuts.map(share), y: cuts.map(() => 0), text: cuts.map(text),
    marker: { size: cuts.map(one => chosen(one) ? 16 : 10), color: cuts.map(one => chosen(one) ? colour("link") : colour("card")), line: { width: 2, color: colour("ink") } } };
  const top = Math.max(...w), ticks = [];
  for (let power = Math.ceil(least); power - least + .25 <= top; power++) ticks.push(power);
  draw("narrow", [bank(1), water, everywhere, rings], {
    height: 260, xaxis: { title: { text: "work before the cut, %" }, range: [0, 100], showgrid: false },
    yaxis: { tickvals: ticks.map(t => t - least + .25), ticktext: ticks.map(t => bytes(10 ** t)), range: [-1.08 * top, 1.08 * top], zeroline: false },
    shapes: cuts.map(one => ({ type: "line", x0: share(one), x1: share(one), y0: -width(one), y1: width(one), line: { color: chosen(one) ? colour("link") : colour("ink"), width: chosen(one) ? 3 : 1 } })) });
}
const wholeMs = () => model.points.find(point => point.mode === "local")?.head ?? 0;

const fidelity = point => model.measured_accuracy ? point.accuracy : point.agreement;
function groupColours() {
  const names = [...new Set(model.points.map(point => point.group))];
  return new Map(names.map((name, i) => [name, name === "local" ? LOCAL : GROUPS[i % GROUPS.length]]));
}
function showRate(all, best) {
  const known = all.filter(one => fidelity(one.point) !== null && one.bytes > 0);
  el("fidelity").hidden = !known.length;
  if (!known.length) return;
  const colours = groupColours(), names = [...new Set(known.map(one => one.point.group))];
  const traces = names.map(name => {
    const line = known.filter(one => one.point.group === name).sort((a, b) => a.bytes - b.bytes);
    return { type: "scatter", mode: "lines+markers", x: line.map(one => one.bytes), y: line.map(one => 100 * fidelity(one.point)),
      line: { color: colours.get(name), dash: line[0].point.mode === "offload" ? "dot" : "solid" }, marker: { size: 6 },
      text: line.map(one => `${plain(one.point.label)}<br>${bytes(one.bytes)}, ${percent(fidelity(one.point))}, ${ms(one.latency)} ms`), hovertemplate: "%{text}<extra></extra>" };
  });
  if (known.includes(best)) traces.push({ type: "scatter", mode: "markers", x: [best.bytes], y: [100 * fidelity(best.point)], marker: { size: 17, color: "rgba(0,0,0,0)", line: { width: 3, color: colour("ink") } }, hoverinfo: "skip" });
  const sizes = known.map(one => one.bytes), ticks = [];
  for (let power = 0; power < 9; power++) for (const step of narrow() ? [1, 3] : [1, 2, 5]) ticks.push(step * 10 ** power);
  const inside = ticks.filter(tick => tick >= Math.min(...sizes) / 1.5 && tick <= Math.max(...sizes) * 1.5);
  draw("rate", traces, { height: 340, showlegend: false, yaxis: { ticksuffix: " %" },
    xaxis: { type: "log", title: { text: "bytes on the wire" }, tickvals: inside, ticktext: inside.map(bytes) } });
  legend("rate-legend", names.map(name => [name, colours.get(name)]));
}

const MAP = { columns: 41, rows: 31, slowest: -6, fastest: 4 };
function showMap() {
  const colours = groupColours(), names = [...colours.keys()];
  const across = Array.from({ length: MAP.columns }, (_, i) => -1 + 4 * i / (MAP.columns - 1)), up = Array.from({ length: MAP.rows }, (_, i) => MAP.slowest + (MAP.fastest - MAP.slowest) * i / (MAP.rows - 1));
  const cells = up.map(speed => across.map(power => choose({ ...state, bps: 1e6 * 10 ** power, device: 2 ** -speed }).best));
  const seen = new Set(cells.flat().map(one => one.point.group));
  const steps = names.flatMap((name, i) => [[i / names.length, colours.get(name)], [(i + 1) / names.length, colours.get(name)]]);
  const map = { type: "heatmap", x: across, y: up, z: cells.map(row => row.map(one => names.indexOf(one.point.group) + .5)), zmin: 0, zmax: names.length, colorscale: steps, showscale: false,
    text: cells.map(row => row.map(one => `${plain(one.point.label)}<br>${ms(one.latency)} ms`)), hovertemplate: "%{text}<extra></extra>" };
  const here = { type: "scatter", mode: "markers", x: [Math.log10(state.bps / 1e6)], y: [-Math.log2(state.device)], marker: { symbol: "x-thin", size: 16, line: { width: 4, color: "#fff" } }, hoverinfo: "skip", showlegend: false };
  const above = { ...here, marker: { symbol: "x-thin", size: 16, line: { width: 2, color: "#000" } } };
  const powers = [-1, 0, 1, 2, 3], speeds = narrow() ? [-6, -4, -2, 0, 2, 4] : [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4];
  draw("map", [map, here, above], { height: 360,
    xaxis: { title: { text: "Mbit/s" }, tickvals: powers, ticktext: powers.map(p => p === 3 ? "1k" : String(10 ** p)), range: [-1.05, 3.05], showgrid: false, zeroline: false },
    yaxis: { title: { text: "speed of the device" }, tickvals: speeds, ticktext: speeds.map(s => s < 0 ? `÷${2 ** -s}` : s ? `×${2 ** s}` : "1"), range: [MAP.slowest - .17, MAP.fastest + .17], showgrid: false, zeroline: false } });
  legend("map-legend", names.filter(name => seen.has(name)).map(name => [name, colours.get(name)]));
}

// The tables.
function fill(id, heads, rows, bestRow) {
  const row = (cells, kind) => { const tr = make("tr"); tr.append(...cells.map(cell => make(kind, cell))); return tr; };
  const body = rows.map((cells, i) => { const tr = row(cells, "td"); if (i === bestRow) tr.className = "best"; return tr; });
  el(id).replaceChildren(row(heads, "th"), ...body);
}
function showTable(all, best) {
  const sorted = [...all].sort((a, b) => a.latency - b.latency);
  const heads = ["operating point", "ms", ...Object.keys(PARTS), "bytes", "frames/s", model.power.measured ? "mJ" : "mJ (model)", "agrees", "right", "drop", "memory", "disk"];
  const size = n => n === null ? "–" : bytes(n);
  fill("points", heads, sorted.map(one => [one.point.label, ms(one.latency), ...Object.values(PARTS).map(parts => ms(parts.reduce((sum, part) => sum + one.stages[part], 0))),
    one.bytes.toFixed(0), one.fps === Infinity ? "–" : one.fps.toPrecision(3), (1000 * one.energy).toPrecision(3), percent(one.point.agreement), percent(one.point.accuracy),
    one.drop === null ? "–" : one.drop.toFixed(1), size(one.point.memory_bytes), size(one.point.disk_bytes)]), sorted.indexOf(best));
}
async function copy(button) {
  const rows = [...el(button.dataset.table).rows].map(row => [...row.cells].map(cell => cell.textContent).join("\t"));
  try {
    await navigator.clipboard.writeText(rows.join("\n"));
  } catch { // an old browser, or a page that may not
    getSelection().selectAllChildren(el(button.dataset.table));
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function showAudit(audit) {
  el("audit").hidden = false;
  el("audit-said").textContent = audit.says;
  fill("leaks", ["made again from", "bytes", "PSNR, dB", "SSIM"], audit.rows.map(row => [row.what, row.bytes === null ? "–" : row.bytes.toFixed(0), row.psnr_db.toFixed(1), row.ssim.toFixed(3)]));
  const columns = make("table");
  for (const row of audit.examples) {
    const tr = make("tr");
    tr.append(make("td", row.what), ...row.pictures.map(data => { const image = make("img"); image.src = data; image.alt = row.what; return make("td", image); }));
    columns.append(tr);
  }
  el("examples").replaceChildren(columns);
}

function showAnswers() {
  const all = predictions(), answer = narrows.best(all, state.bounds, state.objective);
  showControls(); showAnswer(all, answer); showLatency(leaders(all), answer.best);
}
function showRest() {
  const all = predictions(), { best } = narrows.best(all, state.bounds, state.objective);
  showNarrow(best); showRate(all, best); showMap(); showTable(all, best);
}

document.querySelector("h1").textContent = model.title;
el("machines").textContent = model.subtitle;
document.querySelector("#notes ul").replaceChildren(...model.notes.map(note => make("li", note)));
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));
if (model.audit) showAudit(model.audit);
if (model.points) {
  el("plan").hidden = false;
  el("load").max = model.loads.length - 1;
  el("objective").replaceChildren(...Object.keys(narrows.COSTS).map(name => make("option", name)));
  el("fidelity-said").textContent = model.measured_accuracy ? "Share of right answers on the pictures that were given." : "Share of pictures on which the split has the whole model's best class.";
  planned(); listen(); showAnswers(); showRest();
}
