"use strict";
// Charts with named axes, drawn anew at each look. A number that is null breaks its curve.

const SPACE = { left: 50, right: 10, top: 8, bottom: 32 };

export const colour = (index) => `var(--c${index % 8})`;

export function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers that cover a range, about `wanted` of them.
function ticks(low, high, wanted, isWhole) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  let size = [1, 2, 5, 10].map((step) => step * power).find((step) => step >= rough * 0.999);
  if (isWhole) size = Math.max(1, Math.round(size));
  const found = [];
  for (let tick = Math.ceil(low / size - 1e-9); tick * size <= high + size * 1e-9; tick += 1) found.push(tick * size);
  return { found, size };
}

const label = (value, size) => {
  const large = Math.abs(value);
  if (large >= 1e5 || (large > 0 && size < 1e-4)) return value.toExponential(1);
  return value.toFixed(Math.max(0, Math.min(4, -Math.floor(Math.log10(size) + 1e-9))));
};

function range(numbers, { zero = false } = {}) {
  let low = Infinity, high = -Infinity;
  for (const number of numbers) { low = Math.min(low, number); high = Math.max(high, number); }
  if (zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) {
    const room = Math.abs(high) / 2 || 0.5;
    return [zero && low >= 0 ? 0 : low - room, high + room];
  }
  const room = (high - low) * 0.06;
  return [zero && low === 0 ? 0 : low - room, zero && high === 0 ? 0 : high + room];
}

/**
 * Curves and points in one frame.
 *   curves: [{ points: [[x, y], ...], colour, width, hasDots }]
 *   dots: [[x, y, class], ...] beside the curves
 *   x, y: names of the axes; zero: the y axis holds 0; xs: range of x; xTicks: places of ticks of x
 *   mark: { x, text }, level: { y, text }: lines across the chart, where they fall into it
 */
export function chart(svg, { curves = [], dots = [], x, y, zero = false, xs, xTicks, mark, level, none = "nothing yet" }) {
  const width = svg.clientWidth || 300, height = svg.clientHeight || 170;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `${y} over ${x}`);
  const points = [...curves.flatMap((curve) => curve.points), ...dots].filter((point) => point[1] !== null);
  svg.dataset.points = points.length;
  if (!points.length) {
    svg.replaceChildren(drawn("text", { x: width / 2, y: height / 2, class: "none" }, none));
    return;
  }
  const [left, right] = xs || range(points.map((point) => point[0]));
  const [low, high] = range(points.map((point) => point[1]), { zero });
  const across = (value) => SPACE.left + ((value - left) / (right - left)) * (width - SPACE.left - SPACE.right);
  const up = (value) => height - SPACE.bottom - ((value - low) / (high - low)) * (height - SPACE.top - SPACE.bottom);
  const parts = [];
  const levels = ticks(low, high, 4, false);
  for (const value of levels.found) {
    parts.push(drawn("line", { class: value === 0 ? "zero" : "grid", x1: SPACE.left, x2: width - SPACE.right, y1: up(value), y2: up(value) }));
    parts.push(drawn("text", { x: SPACE.left - 5, y: up(value) + 3.5, class: "level" }, label(value, levels.size)));
  }
  const places = xTicks ? { found: xTicks, size: 1 } : ticks(left, right, Math.max(2, Math.min(8, width / 70)), true);
  for (const value of places.found) {
    parts.push(drawn("text", { x: across(value), y: height - SPACE.bottom + 14, class: "place" }, label(value, places.size)));
  }
  parts.push(drawn("text", { x: (SPACE.left + width - SPACE.right) / 2, y: height - 4, class: "axis" }, x));
  parts.push(drawn("text", { class: "axis", transform: `translate(11 ${(SPACE.top + height - SPACE.bottom) / 2}) rotate(-90)` }, y));
  if (mark && mark.x > left && mark.x < right) {
    parts.push(drawn("line", { class: "mark", x1: across(mark.x), x2: across(mark.x), y1: SPACE.top, y2: height - SPACE.bottom }));
    parts.push(drawn("text", { x: across(mark.x) + 4, y: SPACE.top + 9, class: "note" }, mark.text));
  }
  if (level && level.y > low && level.y < high) {
    parts.push(drawn("line", { class: "mark", x1: SPACE.left, x2: width - SPACE.right, y1: up(level.y), y2: up(level.y) }));
    parts.push(drawn("text", { x: width - SPACE.right, y: up(level.y) - 4, class: "note level" }, level.text));
  }
  for (const [a, b, kind] of dots) {
    if (b !== null) parts.push(drawn("circle", { cx: across(a).toFixed(1), cy: up(b).toFixed(1), r: 2, class: kind }));
  }
  for (const curve of curves) parts.push(...line(curve, across, up));
  svg.replaceChildren(...parts);
}

function line({ points, colour: stroke = colour(0), width = 1.8, hasDots = false }, across, up) {
  const parts = [];
  let run = [];
  const end = () => {
    if (run.length > 1) {
      const places = run.map(([a, b]) => `${across(a).toFixed(1)},${up(b).toFixed(1)}`).join(" ");
      parts.push(drawn("polyline", { points: places, class: "curve", stroke, "stroke-width": width }));
    }
    for (const [a, b] of hasDots || run.length === 1 ? run : run.slice(-1)) {
      parts.push(drawn("circle", { cx: across(a).toFixed(1), cy: up(b).toFixed(1), r: hasDots ? 2.2 : 2.8, fill: stroke }));
    }
    run = [];
  };
  for (const point of points) {
    if (point[1] === null) end();
    else run.push(point);
  }
  end();
  return parts;
}

/** Scores of the candidates of each planning iteration, and how their middle and their best move. */
export function scores(svg, rows) {
  const dots = [], middle = [], best = [];
  rows.forEach((row, index) => {
    const iteration = index + 1;
    // Spread sideways by a fixed pattern, so that equal looks draw equal pictures.
    row.forEach((score, rank) => dots.push([iteration + (((rank * 0.618) % 1) - 0.5) * 0.5, score, "candidate"]));
    if (row.length) {
      middle.push([iteration, row[Math.floor((row.length - 1) / 2)]]);
      best.push([iteration, row[row.length - 1]]);
    }
  });
  chart(svg, {
    curves: [
      { points: middle, colour: colour(1), hasDots: true },
      { points: best, colour: colour(2), hasDots: true },
    ],
    dots,
    x: "iteration",
    y: "score",
    xs: [0.5, rows.length + 0.5],
    xTicks: rows.map((_, index) => index + 1),
    none: "no planner",
  });
}
