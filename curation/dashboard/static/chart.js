// One histogram with its threshold lines: drawn when its numbers or its width change, and moved line by line.
//
// The one decision: what moves with the pointer (`place`) only writes, to a few nodes that exist already, and asks the
// browser for no measure: a step costs the same for one chart as for twelve.

import { unit } from "./line.js";
import { element, shape } from "./markup.js";
import { brief, changes, counts, percent, points, short } from "./numbers.js";

const d3 = globalThis.d3;
const HEIGHT = 150, ROW = 26, LEFT = 46, RIGHT = 12, BOTTOM = 22, KNOB = 9;
const KEYS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 };

export class Chart {
  #given; #lines; #goals; #on; #x; #bottom;
  #width = 0;
  #nodes = new Map(); // by the line's id: what moves with it
  #cells = new Map();
  #held = null;
  #readout = element("dl", { class: "readout" });
  #svg = d3.create("svg").attr("class", "histogram").attr("role", "group");
  #note = element("p", { class: "note" });
  #fixed = element("p", { class: "note", hidden: true });
  plot = element("div", { class: "plot" }, this.#svg.node());
  aside = element("div", { class: "near", hidden: true });
  figure;
  active = null; // the line that the readout tells of

  /** on: {move(chart, line, time), settle(chart, line)}, called when a line was moved, and when it was let go. */
  constructor(given, lines, goals, on) {
    this.#on = on;
    for (const name of ["all", "others", "shade", "levels", "ticks", "lines"]) {
      this.#svg.append("g").attr("class", name).attr("aria-hidden", name === "lines" ? null : "true");
    }
    const caption = element("figcaption", {}, element("h3", {}, given.title));
    this.figure = element("figure", { class: "chart", "data-chart": given.id },
      caption, this.plot, this.#readout, this.aside, this.#fixed, this.#note);
    this.update(given, lines, goals);
  }

  get given() { return this.#given; }
  get lines() { return this.#lines; }
  get held() { return this.#held !== null; }

  /** Takes other numbers. goals: {seen, target, paper}. Nothing is drawn before the width is known. */
  update(given, lines, goals) {
    Object.assign(this, { active: lines.find((line) => line.id === this.active?.id) ?? lines.find((line) => line.steps) });
    [this.#given, this.#lines, this.#goals] = [given, lines, goals];
    this.#svg.attr("height", this.#top + HEIGHT + BOTTOM).attr("aria-label", `Histogram of ${given.title}. ${given.note}`);
    this.#note.textContent = given.note;
    const fixed = lines.filter((line) => !line.steps);
    this.#fixed.hidden = !fixed.length;
    this.#fixed.textContent = fixed.map((line) => `${line.name} stays where it is: ${line.why ?? "it has no steps"}.`).join(" ");
    this.#tell();
    if (this.#width) this.draw(this.#width);
  }

  get #top() { return ROW * this.#lines.length + 8; }

  /** Draws everything anew. width: CSS pixels. */
  draw(width) {
    this.#width = width;
    const top = this.#top, bottom = (this.#bottom = top + HEIGHT), bars = barsOf(this.#given);
    const most = Math.max(...bars.map((bar) => bar[2]), 1), [start, stop] = [bars[0][0], bars.at(-1)[1]];
    const x = (this.#x = d3.scaleLinear([start, stop], [LEFT, width - RIGHT]));
    const y = (this.#given.log ? d3.scaleSymlog() : d3.scaleLinear()).domain([0, most]).range([bottom, top]);
    this.#svg.attr("width", width).attr("viewBox", `0 0 ${width} ${bottom + BOTTOM}`);
    for (const [name, at] of [["all", 2], ["others", 3]]) {
      this.#svg.select(`g.${name}`).selectAll("path").data([bars]).join("path").attr("class", name).attr("d", outline(x, y, at));
    }
    this.#svg.select("g.levels").selectAll("g").data(levels(most, this.#given.log)).join(grid)
      .attr("transform", (count) => `translate(0,${y(count)})`)
      .call((groups) => groups.select("line").attr("x1", LEFT).attr("x2", width - RIGHT))
      .call((groups) => groups.select("text").text(brief));
    const middle = unit(this.#given) && bars[0][1] - bars[0][0] === 1 ? 0.5 : 0;
    const ticks = x.ticks(width / 70).filter((tick) => tick + middle <= stop && !(this.#given.whole && tick % 1));
    this.#svg.select("g.ticks").selectAll("text").data(ticks).join("text").attr("class", "tick").text((tick) => short(tick))
      .attr("x", (tick) => x(tick + middle)).attr("y", bottom + 16)
      .attr("text-anchor", (tick) => (x(tick + middle) > width - 24 ? "end" : "middle"));
    this.#svg.select("g.ticks").selectAll("line").data([0]).join("line").attr("class", "axis")
      .attr("x1", LEFT).attr("x2", width - RIGHT).attr("y1", bottom).attr("y2", bottom);
    this.#drawLines();
  }

  #drawLines() {
    const key = (line) => line.id, chart = this;
    const shades = this.#svg.select("g.shade").selectAll("rect").data(this.#lines.filter((line) => line.side), key)
      .join("rect").attr("class", "gone").attr("y", this.#top).attr("height", HEIGHT);
    const groups = this.#svg.select("g.lines").selectChildren("g").data(this.#lines, key).join((enter) => {
      const made = enter.append("g").attr("data-line", key);
      made.append("line").attr("class", "home");
      const moves = made.append("g");
      moves.append("rect").attr("class", "grip");
      moves.append("line").attr("class", "threshold");
      moves.append("text").attr("class", "mark");
      moves.append("rect").attr("class", "knob");
      return made;
    });
    groups.each(function (line, row) {
      const group = d3.select(this), moves = group.select("g"), up = ROW * row + ROW / 2 + 2;
      moves.select(".threshold").attr("y1", up).attr("y2", chart.#bottom);
      group.select(".home").attr("y1", chart.#top).attr("y2", chart.#bottom);
      moves.select(".mark").attr("y", up + 4);
      const box = (name, wide, from, high) => moves.select(name).attr("x", -wide / 2).attr("width", wide).attr("y", from).attr("height", high);
      box(".grip", 30, up - ROW / 2, chart.#bottom - up + ROW / 2);
      box(".knob", KNOB, up - 9, 18).attr("rx", 3).attr("visibility", line.steps ? null : "hidden");
      if (line.steps) chart.#slider(moves, line);
      const shade = shades.filter((of) => of === line).node();
      chart.#nodes.set(line.id, {
        shade, moves: moves.node(), home: group.select(".home").node(), mark: moves.select(".mark").node(),
      });
      chart.place(line);
    });
  }

  /** Makes a line's group the slider that mouse, touch and keyboard move. */
  #slider(group, line) {
    group.attr("class", "slider").attr("role", "slider").attr("tabindex", 0)
      .attr("aria-label", `${this.#given.title}: ${line.name}`)
      .attr("aria-valuemin", line.steps.value[0]).attr("aria-valuemax", line.steps.value.at(-1))
      .on("focus", () => this.#activate(line))
      .on("keydown", (event) => this.#press(event, line));
    group.call(d3.drag().container(this.#svg.node()).subject(() => ({ x: this.#pixel(line), y: 0 }))
      .on("start", () => {
        group.node().focus({ preventScroll: true }); // d3 keeps the browser from doing so
        this.#held = { line };
      })
      .on("drag", (event) => this.#drag(event))
      .on("end", () => {
        if (this.#held?.frame) this.#frame();
        const moved = this.#held?.moved;
        this.#held = null;
        if (moved) this.#on.settle(this, line);
      }));
  }

  /** Moves come more often than frames: of those of a frame the last one counts, and its time is told of the first. */
  #drag(event) {
    const held = this.#held;
    if (!held) return; // let go by Escape
    held.to = event.x;
    held.since ??= event.sourceEvent.timeStamp;
    held.frame ??= requestAnimationFrame(() => this.#frame());
  }

  #frame() {
    const { line, to, since, frame } = this.#held ?? {};
    if (!frame) return;
    cancelAnimationFrame(frame);
    Object.assign(this.#held, { frame: null, since: undefined });
    if (line.moveTo(this.#x.invert(to))) {
      this.#held.moved = true;
      this.#move(line, since);
    }
  }

  #press(event, line) {
    const by = KEYS[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey || (by === undefined && event.key !== "Escape")) return;
    event.preventDefault();
    if (event.key === "Escape") {
      if (this.#held?.frame) cancelAnimationFrame(this.#held.frame);
      this.#held = null;
    }
    if (by === undefined ? line.reset() : line.moveBy(by)) {
      this.#move(line, event.timeStamp);
      this.#on.settle(this, line);
    }
  }

  #move(line, since) {
    this.active = line;
    this.place(line);
    this.#on.move(this, line, since);
  }

  #activate(line) {
    if (this.active === line) return;
    this.active = line;
    this.#tell();
  }

  #pixel(line) {
    const [left, right] = this.#x.range();
    return Math.min(Math.max(this.#x(line.place), left), right);
  }

  /** Puts a line where it stands now, and its texts with it. */
  place(line) {
    const { shade, moves, home, mark } = this.#nodes.get(line.id), [left, right] = this.#x.range();
    const at = this.#pixel(line), aside = at > (left + right) * 0.6 ? -1 : 1;
    moves.setAttribute("transform", `translate(${at},0)`);
    mark.textContent = `${line.name} ${short(line.value)}`;
    mark.setAttribute("x", aside * (KNOB / 2 + 5));
    mark.setAttribute("text-anchor", aside > 0 ? "start" : "end");
    if (shade) {
      shade.setAttribute("x", line.side === "min" ? left : at);
      shade.setAttribute("width", line.side === "min" ? at - left : right - at);
    }
    home.setAttribute("visibility", line.moved ? "visible" : "hidden");
    if (line.moved) home.setAttribute("transform", `translate(${Math.min(Math.max(this.#x(line.home), left), right)},0)`);
    if (line.steps) {
      moves.setAttribute("aria-valuenow", line.value);
      moves.setAttribute("aria-valuetext", `${short(line.value, 6)}: ${this.#retention(line)} kept`);
    }
    if (line === this.active) this.#tell();
  }

  #retention({ low, high }) {
    const { seen } = this.#goals;
    return seen ? percent(low / seen, high / seen) : "–";
  }

  /** The readout: what the active line would give if nothing else changed. */
  #tell() {
    const line = this.active, { seen, target, paper } = this.#goals, rows = [];
    if (line) {
      const goal = (share) => points(line.low / seen, line.high / seen, share);
      rows.push(["value", line.name, short(line.value, 7) + (line.moved ? ` (run: ${short(line.own)})` : "")]);
      rows.push(["retention", "retention", this.#retention(line)]);
      rows.push(["kept", "kept", counts(line.low, line.high)]);
      rows.push(["change", "samples", changes(line.low - line.kept, line.high - line.kept)]);
      if (seen && target !== null) rows.push(["target", `target ${percent(target)}`, goal(target)]);
      if (seen && paper !== null) rows.push(["paper", `paper ${percent(paper)}`, goal(paper)]);
    }
    if (this.#readout.childElementCount !== rows.length) {
      this.#cells = new Map(rows.map(([id]) => [id, [element("dt"), element("dd", { "data-of": id })]]));
      this.#readout.replaceChildren(...[...this.#cells.values()].map((pair) => element("div", {}, ...pair)));
    }
    for (const [id, name, text] of rows) {
      const [term, told] = this.#cells.get(id);
      if (term.textContent !== name) term.textContent = name;
      if (told.textContent !== text) told.textContent = text;
    }
  }
}

/** [from, to, all, others] of what is drawn: bins, or whole numbers where bins are narrower than these. */
export function barsOf({ low, width, first, last, all, others, ...chart }) {
  const bars = [];
  for (let index = first; index <= last; index++) {
    const left = low + index * width, right = left + width, whole = Math.ceil(left - 1e-9);
    if (!unit({ ...chart, width })) bars.push([left, right, all[index], others[index]]);
    else if (whole < right - 1e-9) bars.push([whole, whole + 1, all[index], others[index]]);
  }
  return bars;
}

/** The bars of a series as one path. at: where a bar has its count. */
function outline(x, y, at) {
  return (bars) => {
    const base = y(0), gap = x(bars[0][1]) - x(bars[0][0]) > 3 ? 0.4 : 0;
    const one = (bar) => `M${x(bar[0]) + gap},${base}V${y(bar[at])}H${x(bar[1]) - gap}V${base}`;
    return bars.filter((bar) => bar[at]).map(one).join("");
  };
}

function grid(enter) {
  const made = enter.append("g");
  made.append("line").attr("class", "grid");
  made.append("text").attr("class", "tick").attr("x", LEFT - 5).attr("y", 4).attr("text-anchor", "end");
  return made;
}

/** Counts that get a line across. */
function levels(most, log) {
  if (!log) return d3.ticks(0, most, 3).filter((count) => count && Number.isInteger(count));
  const powers = d3.range(Math.floor(Math.log10(most)) + 1);
  return powers.filter((power) => power % (1 + Math.floor(powers.length / 5)) === 0).map((power) => 10 ** power);
}
