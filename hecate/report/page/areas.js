// Where time went: the bar of the whole run, and the phases of a step as they lay over each other.

const PHASES = ["data", "forward", "gather", "all_to_all", "experts", "backward", "reduce", "optimizer", "evaluation", "rest"];

function phaseColour(name) {
  const known = PHASES.includes(name);
  return known ? `var(--${name})` : `var(--c${[...name].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % 4})`;
}

function colourPhases() {
  for (const span of document.querySelectorAll("[data-phase]")) {
    span.style.background = phaseColour(span.dataset.phase);
    if (span.dataset.share) span.style.flex = `${span.dataset.share} 0 0`;
  }
}

function drawAreas(figure) {
  const { names, x: steps, seconds: rows } = data.areas;
  const sums = steps.map((_, place) => rows.reduce((sum, row) => sum + (row[place] || 0), 0));
  const area = canvas(figure, 240, "Seconds of each phase in a step");
  const y = drawHeights(area, 0, Math.max(...sums, 1e-9) * 1.05, "s");
  // A single point is drawn from one end to the other.
  const at = steps.length > 1 ? steps : [data.steps[0], data.steps[1]];
  const value = (row, place) => row[Math.min(place, row.length - 1)] || 0;
  const below = at.map(() => 0);
  names.forEach((name, number) => {
    const lower = at.map((step, place) => `${area.x(step).toFixed(1)} ${y(below[place]).toFixed(1)}`);
    at.forEach((_, place) => { below[place] += value(rows[number], place); });
    const upper = at.map((step, place) => `${area.x(step).toFixed(1)} ${y(below[place]).toFixed(1)}`);
    const d = `M${upper.join("L")}L${lower.reverse().join("L")}Z`;
    shape("path", { class: "area", d }, area.svg).style.fill = phaseColour(name);
  });
  drawSteps(area);
  drawMarks(area);
  follow(area, (step) => {
    const place = nearest(steps, step === null ? data.steps[1] : step);
    if (step === null) return tell(figure, [said(sums[place], "s")]);
    const greatest = rows.map((row, number) => [row[place] || 0, names[number]]).sort((a, b) => b[0] - a[0]);
    const parts = greatest.slice(0, 2).map(([spent, name]) => `${name.replaceAll("_", " ")} ${said(spent, "s", 3)}`);
    tell(figure, [`step ${whole(steps[place])}`, said(sums[place], "s"), ...parts]);
  });
}
