// Numbers as people read them.

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function digits(value, significant) {
  return String(Number(value.toPrecision(significant)));
}

// 1234567 -> "1.23M"; what is below a thousand keeps its digits.
function short(value, significant = 3) {
  if (value === 0) return "0";
  for (const [size, name] of UNITS) {
    if (Math.abs(value) >= size * 0.99995) return digits(value / size, significant) + name;
  }
  if (Math.abs(value) < 1e-3) return Number(value.toPrecision(significant)).toExponential();
  return digits(value, significant);
}

function binary(value, significant = 3) {
  for (const [power, name] of [[4, "TiB"], [3, "GiB"], [2, "MiB"], [1, "KiB"]]) {
    if (Math.abs(value) >= 1024 ** power) return `${digits(value / 1024 ** power, significant)} ${name}`;
  }
  return value === 0 ? "0" : `${digits(value, significant)} B`;
}

function seconds(value, significant = 3) {
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-3) return `${digits(value * 1e6, significant)} µs`;
  if (Math.abs(value) < 1) return `${digits(value * 1e3, significant)} ms`;
  return `${digits(value, significant)} s`;
}

function said(value, unit, significant = 4) {
  if (value === null || value === undefined) return "–";
  if (unit === "bytes") return binary(value, 3);
  if (unit === "s") return seconds(value, 3);
  if (unit === "share") return `${digits(100 * value, 3)} %`;
  if (unit === "ratio" && value < 100) return value.toFixed(2);
  return short(value, significant);
}

function whole(step) {
  return Math.round(step).toLocaleString("en");
}
