// Shapes, and the axes that every picture shares: steps across, from data.steps[0] to [1].

const data = JSON.parse(document.getElementById("data").textContent);
const MARGIN = { left: 52, right: 8, top: 8, bottom: 20 };

function element(name, attributes, parent, text) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function shape(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function ticks(low, high, most) {
  const raw = (high - low) / Math.max(1, most);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999);
  const found = [];
  for (let n = Math.ceil(low / size - 1e-9); n * size <= high + size * 1e-9; n++) found.push(n * size);
  return found;
}

// A drawing in `figure`, as wide as that is; what was drawn before goes.
function canvas(figure, height, label, left = MARGIN.left) {
  figure.querySelector("svg")?.remove();
  const width = Math.max(120, Math.floor(figure.clientWidth));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  figure.querySelector("figcaption").after(svg);
  const [first, last] = data.steps;
  const right = width - MARGIN.right;
  const x = (step) => left + ((step - first) / (last - first)) * (right - left);
  const step = (pixel) => first + ((pixel - left) / (right - left)) * (last - first);
  return { svg, width, height, left, right, top: MARGIN.top, bottom: height - MARGIN.bottom, x, step };
}

function drawSteps(area, label = true) {
  shape("line", { class: "base", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }, area.svg);
  for (const step of ticks(...data.steps, area.width < 380 ? 4 : 7)) {
    if (step % 1) continue;
    const x = area.x(step);
    const anchor = x > area.right - 14 ? "end" : "middle";
    const text = step === data.steps[0] && label ? `step ${short(step)}` : short(step);
    shape("text", { x, y: area.height - 5, "text-anchor": x < area.left + 14 ? "start" : anchor }, area.svg, text);
  }
}

function drawHeights(area, low, high, unit) {
  const y = (value) => area.bottom - ((value - low) / (high - low)) * (area.bottom - area.top);
  const unitSize = unit === "bytes" ? 1024 ** Math.max(0, Math.floor(Math.log(high) / Math.log(1024))) : 1;
  for (const tick of ticks(low / unitSize, high / unitSize, 4)) {
    const at = y(tick * unitSize);
    shape("line", { class: "gridline", x1: area.left, x2: area.right, y1: at, y2: at }, area.svg);
    const text = said(tick * unitSize, unit, 3);
    shape("text", { x: area.left - 6, y: at + 4, "text-anchor": "end" }, area.svg, text);
  }
  return y;
}

// Every picture shows the same step under the pointer; those that are told `null` show their last.
const pictures = new Set();

function follow(area, show) {
  const line = shape("line", { class: "cursor", y1: area.top, y2: area.bottom, visibility: "hidden" }, area.svg);
  const picture = {
    svg: area.svg,
    show(step, row) {
      line.setAttribute("visibility", step === null ? "hidden" : "visible");
      if (step !== null) {
        line.setAttribute("x1", area.x(step));
        line.setAttribute("x2", area.x(step));
      }
      show(step, row);
    },
  };
  for (const old of pictures) if (!old.svg.isConnected) pictures.delete(old);
  pictures.add(picture);
  area.svg.addEventListener("pointermove", (event) => {
    const box = area.svg.getBoundingClientRect();
    const step = Math.min(data.steps[1], Math.max(data.steps[0], area.step(event.clientX - box.left)));
    for (const each of pictures) each.show(step, each === picture ? event.clientY - box.top : null);
  });
  area.svg.addEventListener("pointerleave", () => {
    for (const each of pictures) each.show(null, null);
  });
  picture.show(null, null);
}

function tell(figure, parts) {
  const output = figure.querySelector("output");
  output.replaceChildren();
  parts.forEach((part, place) => {
    if (place) output.append(" · ");
    element("span", {}, output, part);
  });
}

// The place in the sorted list `steps` that is nearest to `step`.
function nearest(steps, step) {
  let low = 0;
  let high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle;
  }
  return Math.abs(steps[high] - step) < Math.abs(steps[low] - step) ? high : low;
}

// The column of `edges` that `step` lies in, or -1.
function column(edges, step) {
  if (step < edges[0] || step > edges[edges.length - 1]) return -1;
  let place = 0;
  while (place < edges.length - 2 && step > edges[place + 1]) place++;
  return place;
}

function span(edges, place) {
  const [first, last] = [edges[place] + 1, edges[place + 1]];
  return first >= last ? `step ${whole(last)}` : `steps ${whole(first)}–${whole(last)}`;
}
