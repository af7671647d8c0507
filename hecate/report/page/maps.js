// Tables coloured in: loads of layers, and of each layer's experts, over steps.

const LEVELS = 12; // shades on each side of even
const TOGETHER = 8; // up to this many layers are shown at once

const MIXES = CSS.supports("color", "color-mix(in oklab, red 50%, blue)"); // browsers since 2023

function paint(made, level) {
  const share = Math.abs(level) / LEVELS;
  const end = level < 0 ? "var(--cold)" : "var(--hot)";
  if (level === null) made.style.fill = "var(--none)";
  else if (level < -LEVELS) made.style.fill = "var(--dead)";
  else if (MIXES) made.style.fill = `color-mix(in oklab, ${end} ${(100 * share).toFixed(1)}%, var(--mid))`;
  else {
    made.style.fill = end;
    made.style.fillOpacity = share;
  }
}

// One path for each shade, with a rectangle for each cell; `level(row, column)`: -LEVELS to LEVELS,
// and one below for what has nothing at all.
function drawCells(area, edges, rows, level) {
  const texts = new Map();
  const height = (area.bottom - area.top) / rows;
  const xs = edges.map((edge) => area.x(edge).toFixed(2));
  for (let row = 0; row < rows; row++) {
    const [top, end] = [(area.top + row * height).toFixed(2), (area.top + (row + 1) * height).toFixed(2)];
    for (let place = 0; place + 1 < edges.length; place++) {
      const key = level(row, place);
      const cell = `M${xs[place]} ${top}H${xs[place + 1]}V${end}H${xs[place]}Z`;
      texts.set(key, (texts.get(key) || "") + cell);
    }
  }
  for (const [key, d] of texts) paint(shape("path", { class: "level", d }, area.svg), key);
}

function drawRows(area, rows) {
  const height = (area.bottom - area.top) / rows;
  for (const row of ticks(0, rows - 1, Math.min(rows, Math.floor((area.bottom - area.top) / 26)))) {
    if (row % 1) continue;
    shape("text", { x: area.left - 6, y: area.top + (row + 0.5) * height + 4, "text-anchor": "end" }, area.svg, row);
  }
  return (pixel) => Math.min(rows - 1, Math.max(0, Math.floor((pixel - area.top) / height)));
}

function drawScale(kind, levels, from, to, nothing) {
  const place = document.querySelector(`[data-scale="${kind}"]`);
  if (!place) return;
  place.replaceChildren();
  element("span", {}, place, from);
  const svg = shape("svg", { viewBox: `0 0 ${levels.length * 8} 10`, height: 10, preserveAspectRatio: "none" }, place);
  levels.forEach((level, at) => {
    paint(shape("rect", { class: "level", x: at * 8, y: 0, width: 8, height: 10 }, svg), level);
  });
  element("span", {}, place, to);
  if (nothing) {
    const entry = element("span", {}, place);
    element("span", { class: "swatch" }, entry).style.background = "var(--dead)";
    entry.append(nothing);
  }
}

function range(from, to) {
  return Array.from({ length: to - from + 1 }, (_, place) => from + place);
}

// From `map.even`, which is of no concern, to `worst`; ratios by their logarithm.
function levelOf(map, worst) {
  const from = (value) => (map.unit === "ratio" ? Math.log(Math.max(1, value)) : Math.abs(value - map.even));
  const whole = from(worst) || 1;
  return (value) => (value === null ? null : Math.round(LEVELS * Math.min(1, from(value) / whole)));
}

const layerMap = (key) => data.layers.maps.find((map) => map.key === key);

// The value of all `maps` that is farthest from even.
function farthest(maps) {
  let worst = maps[0].even;
  for (const map of maps) {
    for (const value of map.rows.flat()) {
      if (value !== null && Math.abs(value - map.even) > Math.abs(worst - map.even)) worst = value;
    }
  }
  return worst;
}

let chosen = 0;
let choose = () => {};
let frames = []; // what moves when another layer is chosen

function drawLayers(figure, map, end) {
  const rows = map.rows.length;
  const area = canvas(figure, Math.min(380, Math.max(56, rows * 16)) + MARGIN.top + MARGIN.bottom, map.title);
  const level = levelOf(map, end);
  drawCells(area, data.layers.edges, rows, (row, place) => level(map.rows[row][place]));
  const rowAt = drawRows(area, rows);
  drawSteps(area);
  const height = (area.bottom - area.top) / rows;
  if (rows > TOGETHER) {
    area.svg.classList.add("rows");
    const frame = shape("rect", { class: "chosen", x: area.left - 1, width: area.right - area.left + 2, height: height + 2 }, area.svg);
    frames.push(() => frame.setAttribute("y", area.top + Math.min(chosen, rows - 1) * height - 1));
    frames.at(-1)();
  }
  area.svg.addEventListener("click", (event) => {
    choose(rowAt(event.clientY - area.svg.getBoundingClientRect().top));
  });
  const values = map.rows.flat().filter((value) => value !== null);
  const mean = values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  const worst = farthest([map]);
  follow(area, (step, pixel) => {
    if (step === null) return tell(figure, [`mean ${said(mean, map.unit, 3)}`, `worst ${said(worst, map.unit, 3)}`]);
    const place = column(data.layers.edges, step);
    if (place < 0) return tell(figure, ["nothing logged"]);
    const row = pixel === null ? Math.min(chosen, rows - 1) : rowAt(pixel);
    tell(figure, [span(data.layers.edges, place), `layer ${row}`, said(map.rows[row][place], map.unit, 3)]);
  });
}

function drawPair() {
  const figures = [...document.querySelectorAll("[data-layers]")];
  if (!figures.length) return;
  const maps = figures.map((figure) => layerMap(figure.dataset.layers));
  const worst = farthest(maps);
  figures.forEach((figure, place) => drawLayers(figure, maps[place], worst));
  drawScale("layers", range(0, LEVELS), "even, 1", said(worst, "ratio", 3));
}

function drawMore() {
  const figure = document.querySelector("[data-more]");
  if (!figure) return;
  const map = layerMap(figure.querySelector("select").value);
  const worst = farthest([map]);
  drawLayers(figure, map, worst);
  drawScale("more", range(0, LEVELS), said(map.even, map.unit, 3), said(worst, map.unit, 3));
}

const decoded = new Map();

function codesOf(layer) {
  if (!decoded.has(layer)) {
    decoded.set(layer, Uint8Array.from(atob(data.experts.codes[layer]), (letter) => letter.charCodeAt(0)));
  }
  return decoded.get(layer);
}

// A code as a load over the layer's mean; 0 for no token, null for not known.
function ratioOf(code) {
  if (code === 255) return null;
  return code === 0 ? 0 : 2 ** (data.codes.lowest + (data.codes.octaves * (code - 1)) / 253);
}

const WIDEST = 3; // octaves from the mean at which shades end

function expertLevel(code) {
  const ratio = ratioOf(code);
  if (ratio === null) return null;
  if (ratio === 0) return -LEVELS - 1;
  return Math.round(LEVELS * Math.min(1, Math.max(-1, Math.log2(ratio) / WIDEST)));
}

function drawExperts(figure, layer) {
  const { edges, num_experts: sizes } = data.experts;
  const experts = sizes[layer];
  const codes = codesOf(layer);
  const most = sizes.length > TOGETHER ? 420 : 220;
  const area = canvas(figure, Math.min(most, Math.max(72, experts * 10)) + MARGIN.top + MARGIN.bottom, `Experts of layer ${layer}`);
  drawCells(area, edges, experts, (row, place) => expertLevel(codes[place * experts + row]));
  const rowAt = drawRows(area, experts);
  drawSteps(area);
  follow(area, (step, pixel) => {
    if (step === null || pixel === null) return tell(figure, [`${experts} experts`]);
    const place = column(edges, step);
    if (place < 0) return tell(figure, ["nothing recorded"]);
    const ratio = ratioOf(codes[place * experts + rowAt(pixel)]);
    const load = ratio === 0 ? "no token" : `${said(ratio, "ratio", 3)} × mean`;
    tell(figure, [span(edges, place), `expert ${rowAt(pixel)}`, load]);
  });
}

function expertFigures() {
  const place = document.querySelector("[data-experts]");
  if (!place || !data.experts) return;
  const layers = data.experts.num_experts.length;
  const picked = layers > TOGETHER ? [Math.min(chosen, layers - 1)] : range(0, layers - 1);
  place.replaceChildren();
  for (const layer of picked) {
    const figure = element("figure", { "data-layer": layer, class: picked.length === 1 ? "wide" : "" }, place);
    const caption = element("figcaption", {}, figure);
    element("b", {}, caption, `Layer ${layer}`);
    element("output", {}, caption);
    drawExperts(figure, layer);
  }
  drawScale("experts", range(-LEVELS, LEVELS), `1/${2 ** WIDEST} of the mean`, `${2 ** WIDEST} × the mean`, "no token at all");
}

function makePicker() {
  const place = document.querySelector("[data-picker]");
  const layers = data.experts ? data.experts.num_experts.length : 0;
  if (!place || layers <= TOGETHER) return;
  const back = element("button", { type: "button", "aria-label": "Layer before" }, place, "‹");
  const slider = element("input", { type: "range", min: 0, max: layers - 1, value: 0, "aria-label": "Layer" }, place);
  const on = element("button", { type: "button", "aria-label": "Next layer" }, place, "›");
  choose = (layer) => {
    chosen = Math.min(layers - 1, Math.max(0, layer));
    slider.value = chosen;
    expertFigures();
    for (const move of frames) move();
  };
  back.addEventListener("click", () => choose(chosen - 1));
  on.addEventListener("click", () => choose(chosen + 1));
  slider.addEventListener("input", () => choose(Number(slider.value)));
}
