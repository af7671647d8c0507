// Everything, drawn once and again whenever the page has another width.

function drawAll() {
  frames = [];
  for (const figure of document.querySelectorAll("[data-chart]")) drawChart(figure);
  for (const figure of document.querySelectorAll("[data-areas]")) drawAreas(figure);
  drawPair();
  expertFigures();
  drawMore();
}

colourPhases();
makePicker();
document.querySelector("[data-more] select")?.addEventListener("change", drawMore);
drawAll();

let drawnWidth = document.body.clientWidth;
new ResizeObserver(() => {
  if (document.body.clientWidth === drawnWidth) return;
  drawnWidth = document.body.clientWidth;
  requestAnimationFrame(drawAll);
}).observe(document.body);
