// Curves and bars over steps.

const DOTTED = 40; // up to this many points each is shown

function extent(chart) {
  let low = Infinity;
  let high = -Infinity;
  for (const curve of chart.curves) {
    for (const value of curve.y) {
      if (value === null) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (chart.zero) low = Math.min(0, low);
  if (high <= low) high = low + (Math.abs(low) || 1);
  const room = (high - low) * 0.06;
  return [chart.zero && low === 0 ? 0 : low - room, high + room];
}

function path(points) {
  let text = "";
  let pen = false;
  for (const [x, y] of points) {
    if (y === null) pen = false;
    else {
      text += `${pen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = true;
    }
  }
  return text;
}

function drawBand(area, curve, y, colour) {
  const clamp = (value) => Math.min(area.bottom, Math.max(area.top, y(value)));
  const up = [];
  const down = [];
  curve.x.forEach((step, place) => {
    if (curve.low[place] === null) return;
    up.push(`${area.x(step).toFixed(1)} ${clamp(curve.high[place]).toFixed(1)}`);
    down.unshift(`${area.x(step).toFixed(1)} ${clamp(curve.low[place]).toFixed(1)}`);
  });
  if (up.length) shape("path", { class: "band", d: `M${[...up, ...down].join("L")}Z` }, area.svg).style.fill = colour;
}

function drawCurve(area, curve, y, colour) {
  if (curve.low.length) drawBand(area, curve, y, colour);
  const points = curve.x.map((step, place) => [area.x(step), curve.y[place] === null ? null : y(curve.y[place])]);
  if (!curve.dots) shape("path", { class: "curve", d: path(points) }, area.svg).style.stroke = colour;
  if (!curve.dots && points.length > DOTTED) return;
  for (const [cx, cy] of points) {
    if (cy !== null) shape("circle", { class: "dot", cx, cy, r: curve.dots ? 3.2 : 2 }, area.svg).style.fill = colour;
  }
}

function drawBars(area, chart, y) {
  const edges = chart.edges;
  let text = "";
  chart.curves[0].y.forEach((value, place) => {
    if (!value) return;
    const [from, to] = [area.x(edges[place]), area.x(edges[place + 1])];
    const gap = to - from > 5 ? 1 : 0;
    text += `M${(from + gap).toFixed(1)} ${area.bottom}V${y(value).toFixed(1)}H${Math.max(from + gap + 0.8, to - gap).toFixed(1)}V${area.bottom}Z`;
  });
  shape("path", { class: "bars", d: text }, area.svg).style.fill = "var(--c2)";
}

function drawMarks(area, kinds) {
  for (const mark of data.marks) {
    const x = area.x(mark.step);
    if (mark.kind === "resume") {
      const line = shape("line", { class: "mark", x1: x, x2: x, y1: area.top, y2: area.bottom }, area.svg);
      shape("title", {}, line, mark.text);
    } else if (kinds && mark.text.startsWith(kinds)) {
      const flag = shape("path", { class: "flag", d: `M${x} ${area.top + 7}l-4 -7h8z` }, area.svg);
      shape("title", {}, flag, mark.text);
    }
  }
}

const FLAGS = { loss: "loss", grad: "gradient norm" };

function drawChart(figure) {
  const chart = data.charts[figure.dataset.chart];
  const area = canvas(figure, figure.classList.contains("wide") ? 260 : 180, chart.title);
  const y = drawHeights(area, ...extent(chart), chart.unit);
  drawSteps(area);
  const colour = (place) => (chart.curves.length === 1 && chart.edges ? "var(--c2)" : `var(--c${place % 4})`);
  if (chart.edges) drawBars(area, chart, y);
  else chart.curves.forEach((curve, place) => drawCurve(area, curve, y, colour(place)));
  drawMarks(area, FLAGS[chart.key]);
  const legend = drawLegend(figure, chart.curves.map((curve, place) => [curve.name, colour(place)]));
  follow(area, (step) => {
    const at = step === null ? data.steps[1] : step;
    const place = (curve) => (chart.edges ? Math.max(0, column(chart.edges, at)) : nearest(curve.x, at));
    const values = chart.curves.map((curve) => said(curve.y[place(curve)], chart.unit));
    const main = chart.curves[0];
    const where = chart.edges ? span(chart.edges, place(main)) : `step ${whole(main.x[place(main)])}`;
    legend.forEach((entry, number) => { entry.textContent = values[number]; });
    tell(figure, [...(step === null ? [] : [where]), ...(legend.length ? [] : values)]);
  });
}

// A line below the picture, where several curves are in it; returns where the value of each goes.
function drawLegend(figure, entries) {
  figure.querySelector(".legend")?.remove();
  if (entries.length < 2) return [];
  const legend = element("div", { class: "legend" }, figure);
  return entries.map(([name, colour]) => {
    const entry = element("span", {}, legend);
    element("span", { class: "swatch" }, entry).style.background = colour;
    entry.append(`${name} `);
    return element("span", { class: "value" }, entry);
  });
}
