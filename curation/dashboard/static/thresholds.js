// The section of histograms: fetches the run's scores, keeps what was dragged, and ties charts, thumbnails and try-out.
//
// The one decision: the lines are the only state. Newer numbers of a growing run make new lines, which take over where
// the old ones stood.

import { ask, of } from "./ask.js";
import { Chart } from "./chart.js";
import { Line } from "./line.js";
import { element, say } from "./markup.js";
import { Near } from "./near.js";
import { openSample } from "./sample.js";
import { Tryout } from "./tryout.js";

const AGAIN_MS = 5000; // of a growing run, the numbers are fetched at most so often
const box = document.getElementById("charts");
const tryout = new Tryout(document.getElementById("tryout"), reset);
const charts = new Map(); // by id: {chart, near}
const error = element("p", { class: "alert", role: "alert", hidden: true });
const widths = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) if (contentRect.width) charts.get(target.dataset.of)?.chart.draw(contentRect.width);
  if (!performance.getEntriesByName("charts-drawn").length) painted(() => performance.mark("charts-drawn"));
});
let scores = null, fetched = 0, timer = 0;

const on = {
  move(chart, line, since) {
    const measure = (name) => painted(() => performance.measure(name, { start: since, end: performance.now() }));
    charts.get(chart.given.id).near.show(line, () => measure("near"));
    measure("drag");
  },
  settle() { tryout.show(scores, lines()); },
};

/** Calls back when the frame that is being made has been painted. */
function painted(then) {
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = then;
    channel.port2.postMessage(0);
  });
}

const lines = () => [...charts.values()].flatMap(({ chart }) => chart.lines);

async function load() {
  [timer, fetched] = [0, performance.now()];
  try {
    scores = await ask(of("scores"));
    error.hidden = true;
  } catch (refused) {
    say(error, refused.message);
    error.hidden = false;
    box.before(error);
    return;
  } finally {
    box.setAttribute("aria-busy", "false");
  }
  if ([...charts.values()].some(({ chart }) => chart.held)) again(); // not under the user's hand
  else take();
}

/** Later, and at most every AGAIN_MS. */
function again() {
  timer ||= setTimeout(load, Math.max(fetched + AGAIN_MS - performance.now(), 0));
}

function take() {
  const before = new Map(lines().map((line) => [line.id, line]));
  const made = scores.charts.map((given) => {
    const fresh = given.thresholds.map((threshold) => new Line(given, threshold, scores.kept));
    for (const line of fresh) if (before.has(line.id)) line.follow(before.get(line.id));
    const found = charts.get(given.id);
    if (!found) return add(given, fresh);
    found.chart.update(given, fresh, scores);
    found.near.follow(fresh);
    found.near.forget();
    return found.chart.figure;
  });
  if (made.some((figure, index) => box.children[index] !== figure)) box.replaceChildren(...made);
  if (!made.length) box.replaceChildren(element("p", {}, "There is no histogram yet: nothing has been scored."));
  if (lines().some((line) => line.moved)) tryout.show(scores, lines());
}

function add(given, fresh) {
  const chart = new Chart(given, fresh, scores, on);
  charts.set(given.id, { chart, near: new Near(given.id, chart.aside, openSample) });
  chart.plot.dataset.of = given.id;
  widths.observe(chart.plot);
  return chart.figure;
}

/** Every line back to the run's own value. */
function reset() {
  for (const { chart, near } of charts.values()) {
    for (const line of chart.lines) {
      if (!line.reset()) continue;
      chart.place(line);
      near.show(line);
    }
  }
  tryout.show(scores, lines());
  box.querySelector("[role=slider]")?.focus({ preventScroll: true }); // the button has gone
}

document.addEventListener("grown", again);
load();
