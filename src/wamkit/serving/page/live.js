"use strict";
// What a robot sends is shown as text, never as markup.
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const pause = 500;
let chosen = null, film = null, shown = null;

const at = (id) => document.getElementById(id);
const tag = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const drawn = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const ms = (latency, key) => (latency ? `${latency[key].toFixed(latency[key] < 10 ? 1 : 0)} ms` : "–");
const seconds = (value) => (value < 90 ? `${value.toFixed(0)} s` : `${(value / 60).toFixed(0)} min`);

// Curves of points [x, y] in one frame of their own.
function chart(id, curves, colour = (index) => `hsl(${(index * 47 + 210) % 360} 60% 48%)`) {
  const svg = at(id), box = svg.getBoundingClientRect(), width = box.width || 300, height = box.height || 140, edge = 6;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const points = curves.flat();
  svg.dataset.points = points.length;
  if (!points.length) { svg.append(drawn("text", { x: 8, y: 18 }, "nothing yet")); return; }
  const range = (index) => {
    const values = points.map((point) => point[index]);
    const low = Math.min(...values), high = Math.max(...values);
    return high > low ? [low, high] : [low - 0.5, high + 0.5];
  };
  const [left, right] = range(0), [low, high] = range(1);
  const x = (value) => edge + ((value - left) / (right - left)) * (width - 2 * edge);
  const y = (value) => height - edge - ((value - low) / (high - low)) * (height - 2 * edge);
  curves.forEach((curve, index) => {
    const line = curve.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
    svg.append(drawn("polyline", { points: line, fill: "none", stroke: colour(index), "stroke-width": 1.6 }));
    if (curve.length === 1) svg.append(drawn("circle", { cx: x(curve[0][0]), cy: y(curve[0][1]), r: 3, fill: colour(index) }));
  });
  svg.append(drawn("text", { x: 8, y: 14 }, high.toPrecision(3)), drawn("text", { x: 8, y: height - 8 }, low.toPrecision(3)));
}

// Candidates' scores: how many in each of 24 bins, one curve for each iteration.
function histogram(id, rows) {
  const all = rows.flat();
  if (!all.length) { chart(id, []); return; }
  const low = Math.min(...all), high = Math.max(...all), bins = 24, size = (high - low || 1) / bins;
  chart(id, rows.map((row) => {
    const counts = new Array(bins).fill(0);
    for (const score of row) counts[Math.min(bins - 1, Math.floor((score - low) / size))] += 1;
    return counts.map((count, bin) => [low + (bin + 0.5) * size, count]);
  }));
}

function views(id, pictures) {
  const place = at(id), names = Object.keys(pictures);
  if (place.dataset.names !== names.join()) {
    place.replaceChildren(...names.map((name) => {
      const part = tag("div");
      part.append(tag("img", undefined, { alt: name }), tag("small", name));
      return part;
    }));
    place.dataset.names = names.join();
  }
  names.forEach((name, index) => { place.children[index].firstChild.src = pictures[name]; });
}

function play(imagined) {
  clearInterval(film);
  const frames = imagined && imagined.frames;
  at("future").hidden = !frames;
  if (!frames) return;
  const count = Object.values(frames)[0].length;
  let index = 0;
  const next = () => {
    views("imagined", Object.fromEntries(Object.entries(frames).map(([name, film]) => [name, film[index]])));
    at("step").textContent = imagined.steps.length ? `+${imagined.steps[index]} steps` : "";
    at("imagined").dataset.call = imagined.call;
    index = (index + 1) % count;
  };
  next();
  film = setInterval(next, 200);
}

function detail(robot) {
  at("shown").hidden = !robot;
  if (!robot) return;
  at("name").textContent = `${robot.name}: ${robot.task || "no task yet"}`;
  if (robot.observation) views("observation", robot.observation);
  at("observation").dataset.calls = robot.calls;
  const key = robot.imagined ? `${robot.name}/${robot.imagined.call}` : null;
  if (key !== shown) { shown = key; play(robot.imagined); }
  const imagined = robot.imagined || {};
  chart("values", robot.values.length ? [robot.values] : []);
  chart("value", imagined.value ? [imagined.value.map((value, index) => [index, value])] : []);
  histogram("scores", imagined.scores || []);
  chart("latencies", robot.latencies_ms.length ? [robot.latencies_ms.map((value, index) => [index, value])] : []);
  const actions = robot.actions || [];
  chart("actions", actions.length ? actions[0].map((_, channel) => actions.map((row, step) => [step, row[channel]])) : []);
}

function show(state) {
  at("policy").textContent = state.policy;
  at("status").textContent = "serving";
  at("status").className = "ok";
  const facts = {
    robots: state.sessions.length,
    waiting: state.waiting,
    median: ms(state.latency_ms, "median"),
    "95 %": ms(state.latency_ms, "p95"),
    planner: state.planner ? `${state.planner.iterations} × ${state.planner.num_videos} futures` : "none",
    robot: state.robot,
    up: seconds(state.uptime_s),
  };
  at("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const fact = tag("span", `${name} `);
    fact.append(tag("b", value, { id: `fact-${name.replace(/\W+/g, "")}` }));
    return fact;
  }));
  at("nobody").hidden = state.sessions.length > 0;
  at("sessions").replaceChildren(...state.sessions.map((robot) => {
    const row = tag("tr", undefined, { class: state.shown && state.shown.name === robot.name ? "chosen" : "" });
    const cells = [robot.name, robot.peer, robot.task, robot.calls, ms(robot.latency_ms, "median"), ms(robot.latency_ms, "p95"),
      `${seconds(robot.idle_s)} ago`];
    row.append(...cells.map((cell) => tag("td", cell)));
    row.addEventListener("click", () => { chosen = robot.name; });
    return row;
  }));
  detail(state.shown);
}

async function look() {
  try {
    const query = chosen ? `?session=${encodeURIComponent(chosen)}` : "";
    const answer = await fetch(`live${query}`, token ? { headers: { Authorization: `Bearer ${token}` } } : {});
    if (answer.status === 401) throw new Error("expected a token: add #token=… to the address");
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    at("status").textContent = error instanceof TypeError ? "no answer" : error.message;
    at("status").className = "gone";
  }
  setTimeout(look, document.hidden ? 4 * pause : pause);
}
look();
