"use strict";
// Asks the server what goes on, and shows it. What a robot sends is shown as text, never as markup.
import { chart, colour, scores } from "./charts.js";

const PAUSE_MS = 400, PATIENCE_MS = 8000;
const token = new URLSearchParams(location.hash.slice(1)).get("token");
let chosen = null; // name of the session that is shown
let observed = null; // number of the call whose pictures are shown
const film = { key: null, call: null, timer: null };

const at = (id) => document.getElementById(id);
const tag = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const duration = (ms) => (ms >= 10000 ? `${(ms / 1000).toFixed(0)} s` : ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);
const latency = (summary, key) => (summary ? duration(summary[key]) : "–");
const age = (seconds) => {
  if (seconds < 2) return "now";
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
};
const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

// Facts and numbers: pairs of a name and a text in a list, whose elements stay the same ones.
function list(place, pairs) {
  if (place.dataset.names !== pairs.map(([name]) => name).join("\n")) {
    place.replaceChildren(...pairs.map(([name, , id]) => {
      const part = tag("div");
      part.append(tag("dt", name), tag("dd", "", id ? { id } : {}));
      return part;
    }));
    place.dataset.names = pairs.map(([name]) => name).join("\n");
  }
  pairs.forEach(([, text], index) => put(place.children[index].lastChild, text));
}

function views(place, pictures) {
  const names = Object.keys(pictures);
  if (place.dataset.names !== names.join("\n")) {
    place.replaceChildren(...names.map((name) => {
      const part = tag("div"), image = tag("img", undefined, { alt: name });
      image.addEventListener("load", () => image.classList.toggle("coarse", image.naturalWidth < 200));
      part.append(image, tag("small", name));
      return part;
    }));
    place.dataset.names = names.join("\n");
  }
  names.forEach((name, index) => { place.children[index].firstChild.src = pictures[name]; });
}

function play(frames, steps, hz) {
  clearTimeout(film.timer);
  const count = Object.values(frames)[0].length;
  let index = 0;
  const next = () => {
    views(at("imagined"), Object.fromEntries(Object.entries(frames).map(([name, each]) => [name, each[index]])));
    at("imagined").dataset.frame = index;
    at("progress").value = (index + 1) / count;
    const step = steps[index];
    put(at("step"), step === undefined ? `frame ${index + 1} of ${count}` : `${many(step, "step")} ahead, ${(step / hz).toFixed(2)} s`);
    // At the robot's pace where the eye can follow, and a rest at the end.
    const pace = steps.length > 1 ? (1000 * (steps[1] - steps[0])) / hz : 200;
    index = (index + 1) % count;
    film.timer = setTimeout(next, Math.min(600, Math.max(120, pace)) + (index ? 0 : 600));
  };
  next();
}

function future(robot, state) {
  const told = robot.film, key = told ? `${robot.name}/${told.call}` : null;
  at("imagined").hidden = at("progress").parentElement.hidden = !told;
  at("no-future").hidden = Boolean(told);
  put(at("no-future"), state.imagine_every_s > 0
    ? "Nothing yet: the server imagines while this page is open, at the robot's next call."
    : "The server was told to imagine nothing for this page (--imagine-every-s 0).");
  put(at("dreamt"), told ? ago(robot.calls - told.call) : "");
  if (key === film.key) return;
  if (told && !told.frames) return; // a moment later
  film.key = key;
  film.call = told ? told.call : null;
  clearTimeout(film.timer);
  at("imagined").dataset.call = told ? told.call : "";
  if (told) play(told.frames, told.steps, state.control_hz);
}

const ago = (calls) => (calls <= 0 ? "at the last call" : `${many(calls, "call")} ago`);

function detail(robot, state) {
  at("shown").hidden = !robot;
  if (!robot) return;
  put(at("name"), robot.name);
  put(at("task"), robot.task || "no task yet");
  put(at("observed"), robot.calls ? `call ${robot.calls}, step ${robot.steps} of episode ${robot.episodes}` : "none yet");
  if (robot.observation) {
    views(at("observation"), robot.observation);
    observed = robot.calls;
  } else if (!robot.calls) {
    at("observation").replaceChildren();
    delete at("observation").dataset.names;
  }
  at("observation").dataset.calls = robot.calls;
  list(at("state"), (robot.state || []).map(([name, unit, value]) => [name, `${value.toFixed(3)}${unit === "1" ? "" : ` ${unit}`}`]));
  future(robot, state);

  const search = robot.search || {}, none = "no values: nothing was imagined yet";
  chart(at("values"), { curves: [{ points: robot.values, hasDots: robot.values.length < 60 }], x: "control step of the episode", y: "value", none });
  put(at("ahead"), search.value ? ago(robot.calls - search.call) : "");
  chart(at("value"), { curves: [{ points: (search.value || []).map((value, index) => [index + 1, value]) }], x: "action", y: "value", none, xs: search.value && [0.5, search.value.length + 0.5],
    mark: { x: state.execution_horizon + 0.5, text: "next call" } });
  put(at("candidates"), search.scores ? `${many(search.candidates, "candidate")}${search.not_finite ? `; ${search.not_finite} scores are no finite numbers` : ""}` : "");
  scores(at("scores"), search.scores || []);
  legend(at("score-legend"), search.scores ? { candidate: 0, median: 1, best: 2 } : {});
  actions(robot, state);
  latencies(robot, state);
}

function actions(robot, state) {
  const rows = robot.actions || [], names = robot.action_names || [];
  put(at("chunk"), rows.length ? `${rows.length} actions, ${(rows.length / state.control_hz).toFixed(2)} s at ${state.control_hz} Hz` : "");
  chart(at("actions"), {
    curves: rows.length ? names.map((_, channel) => ({ points: rows.map((row, step) => [step + 1, row[channel]]), colour: colour(channel), width: 1.5 })) : [],
    x: "action",
    y: "command",
    xs: [0.5, rows.length + 0.5],
    mark: { x: state.execution_horizon + 0.5, text: "next call" },
  });
  legend(at("legend"), Object.fromEntries(names.map((name, channel) => [name, channel])));
}

function latencies(robot, state) {
  const first = robot.calls - robot.latencies_ms.length + 1;
  const curve = (which) => robot.latencies_ms.map((pair, index) => [first + index, pair[which]]);
  chart(at("latencies"), { curves: [{ points: curve(0) }, { points: curve(1), colour: colour(1), width: 1.3 }], x: "call", y: "ms", zero: true,
    level: { y: (1000 * state.execution_horizon) / state.control_hz, text: `as long as ${many(state.execution_horizon, "action")} last` } });
  const phases = Object.entries(robot.timing_ms || {});
  put(at("phases"), phases.map(([phase, ms]) => `${phase} ${duration(ms)}`).join(", "));
  legend(at("latency-legend"), robot.calls ? { "whole answer": 0, "policy alone": 1 } : {});
}

// Names and the numbers of their colours.
function legend(place, entries) {
  const names = Object.keys(entries).join("\n");
  if (place.dataset.names === names) return;
  place.dataset.names = names;
  place.replaceChildren(...Object.entries(entries).map(([name, index]) => {
    const part = tag("span", name), key = tag("i");
    key.style.background = colour(index);
    part.prepend(key);
    return part;
  }));
}

// Rows stay the same elements, so that a click between two looks finds the one it began on.
function table(state) {
  const body = at("sessions"), rows = new Map([...body.children].map((row) => [row.dataset.session, row]));
  for (const robot of state.sessions) {
    let row = rows.get(robot.name);
    rows.delete(robot.name);
    if (!row) {
      row = tag("tr", undefined, { "data-session": robot.name, tabindex: 0 });
      row.append(...["name", "peer", "task", "number", "number", "number", "number", "number", "number"].map((kind) => tag("td", "", { class: kind })));
    }
    const cells = [robot.name, robot.peer, robot.task || "–", robot.episodes, robot.steps, robot.calls,
      latency(robot.latency_ms, "median"), latency(robot.latency_ms, "p95"), robot.idle_s === null ? "–" : age(robot.idle_s)];
    cells.forEach((cell, index) => put(row.children[index], String(cell)));
    row.children[2].title = robot.task;
    row.classList.toggle("chosen", Boolean(state.shown) && state.shown.name === robot.name);
    body.append(row);
  }
  for (const row of rows.values()) row.remove();
  at("nobody").hidden = state.sessions.length > 0;
  put(at("nobody"), `No robot is connected. Robots connect to ${location.protocol === "https:" ? "wss" : "ws"}://${location.host}, and are shown here from then on.`);
  at("table").hidden = state.sessions.length === 0;
}

function refusals(told) {
  at("refused").hidden = told.length === 0;
  at("refusals").replaceChildren(...told.map(({ session, peer, told: message, ago_s: since }) => {
    const item = tag("li", message);
    item.append(tag("small", `${session} from ${peer}, ${since < 2 ? "now" : `${age(since)} ago`}`));
    return item;
  }));
}

function show(state) {
  const { planner, shown } = state;
  put(at("policy"), state.policy);
  put(at("kind"), `${state.family} for ${state.robot}`);
  document.title = `${state.policy || "wamkit"}: ${many(state.sessions.length, "robot")}`;
  list(at("facts"), [
    ["robots", String(state.sessions.length), "fact-robots"],
    ["waiting requests", String(state.waiting), "fact-waiting"],
    ["median latency", latency(state.latency_ms, "median"), "fact-median"],
    ["95 % within", latency(state.latency_ms, "p95"), "fact-p95"],
    [`${many(state.execution_horizon, "action")} last`, duration((1000 * state.execution_horizon) / state.control_hz), "fact-chunk"],
    ["rounds × candidates", planner ? `${planner.iterations} × ${planner.num_videos * planner.num_values}` : "no planner", "fact-planner"],
    ["up for", age(Math.max(2, state.uptime_s)), "fact-up"],
  ]);
  table(state);
  refusals(state.refused);
  // Stay with a robot until it leaves or another is chosen, but do not wait for one that has asked nothing.
  if (!shown || (shown.name !== chosen && chosen !== null)) forget();
  if (shown && shown.calls) chosen = shown.name;
  detail(shown, state);
}

function forget() {
  chosen = observed = null;
}

function choose(row) {
  if (!row || row.dataset.session === chosen) return;
  forget();
  chosen = row.dataset.session;
  look();
}

function tell(text, kind) {
  put(at("status"), text);
  at("status").className = kind;
  document.body.classList.toggle("stale", kind === "gone");
}

// What the server tells, or an error that says what is wrong with it.
async function ask() {
  const query = new URLSearchParams();
  if (chosen !== null) query.set("session", chosen);
  if (observed !== null) query.set("observed", observed);
  if (film.call !== null && film.key === `${chosen}/${film.call}`) query.set("film", film.call);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(`live?${query}`, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    throw new Error("no answer from the server; trying again");
  }
  if (answer.status === 401) throw new Error(token ? "the server wants another token than #token=… in the address" : "the server wants a token: add #token=… to the address");
  if (answer.status === 503) throw new Error("the server is stopping, or busy; trying again");
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return answer.json();
}

let timer = null, looks = 0;
async function look() {
  clearTimeout(timer);
  const mine = (looks += 1); // an older look that comes in later is of no interest
  try {
    const state = await ask();
    if (mine !== looks) return;
    tell("serving", "ok");
    show(state);
  } catch (error) {
    if (mine !== looks) return;
    tell(error.message, "gone");
    observed = film.call = film.key = null; // a server that comes back counts anew
  } finally {
    // A page in the background asks nothing, so that nothing is imagined for it.
    if (mine === looks && !document.hidden) timer = setTimeout(look, PAUSE_MS);
  }
}

at("sessions").addEventListener("click", (event) => choose(event.target.closest("tr")));
at("sessions").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(event.target.closest("tr")); } });
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
addEventListener("hashchange", () => location.reload());
look();
