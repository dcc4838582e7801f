// The samples on either side of a line, as thumbnails.
//
// The one decision: what is known of a chart's samples is parted anew in the frame in which the line moves, so a sample
// never stands on the wrong side; the server's answer, which comes after it, only brings nearer ones.

import { ask, of } from "./ask.js";
import { element, say } from "./markup.js";

const SHOWN = 6, KNOWN = 400, EVERY_MS = 60, STALE_MS = 250;

export class Near {
  #chart; #box; #lists; #line = null;
  #known = new Map(); // items with their nodes by key
  #answers = new Map(); // by place
  #running = null; #timer = 0; #last = 0;

  /** chart: its id. box: the element that the lists go into. open(key, keys): shows a sample. */
  constructor(chart, box, open) {
    [this.#chart, this.#box, this.open] = [chart, box, open];
    this.#lists = ["below", "above"].map(() => ({
      head: element("p", { class: "fate" }), list: element("ul", { class: "thumbs" }),
    }));
    this.error = element("p", { class: "note", role: "status" });
    box.append(...this.#lists.map(({ head, list }) => element("div", {}, head, list)), this.error);
  }

  /** Shows what is known beside this line now, and asks for more. then(): called when the answer is shown. */
  show(line, then = () => {}) {
    this.#line = line;
    this.#box.hidden = false;
    this.#draw();
    if (this.#answers.has(line.stand)) return then();
    clearTimeout(this.#timer);
    const wait = this.#last + (this.#running ? STALE_MS : EVERY_MS) - performance.now();
    this.#timer = setTimeout(() => this.#ask(then), Math.max(wait, 0));
  }

  /** Forgets answers, because the run has grown. */
  forget() {
    this.#answers.clear();
    if (this.#line && !this.#box.hidden) this.show(this.#line);
  }

  /** Takes the line of newer numbers. */
  follow(lines) { this.#line = lines.find((line) => line.id === this.#line?.id) ?? null; }

  async #ask(then) {
    if (!this.#line) return;
    const { stand, value, side } = this.#line, own = new AbortController();
    this.#running?.abort();
    [this.#running, this.#last] = [own, performance.now()];
    try {
      const answer = await ask(of("near", [["score", this.#chart], ["x", value], ["side", side], ["n", SHOWN]]), own);
      if (own.signal.aborted) return;
      this.#take(stand, answer);
      say(this.error, "");
    } catch (error) {
      if (own.signal.aborted) return;
      say(this.error, error.message);
      return;
    } finally {
      if (this.#running === own) this.#running = null;
    }
    if (!this.#line) return; // its threshold has gone
    this.#draw();
    if (this.#line.stand === stand) then();
    else this.show(this.#line, then); // it went on meanwhile
  }

  #take(stand, answer) {
    const keys = {};
    for (const side of ["below", "above"]) {
      keys[side] = answer[side].map((item) => item.key);
      for (const item of answer[side]) {
        const was = this.#known.get(item.key);
        this.#known.delete(item.key); // the youngest are last
        this.#known.set(item.key, was ?? { key: item.key, score: item.x, node: this.#thumb(item) });
      }
    }
    for (const key of [...this.#known.keys()].slice(0, -KNOWN)) this.#known.delete(key);
    if (this.#answers.size > KNOWN) this.#answers.clear();
    this.#answers.set(stand, keys);
  }

  #draw() {
    const { side, value, stand } = this.#line, answer = this.#answers.get(stand), known = [...this.#known.values()];
    const nearest = (items) => items.sort((a, b) => Math.abs(a.score - value) - Math.abs(b.score - value)).slice(0, SHOWN);
    const above = ({ score }) => this.#line.passes(score) === (side !== "max");
    const parts = answer
      ? ["below", "above"].map((name) => answer[name].map((key) => this.#known.get(key)).filter(Boolean))
      : [nearest(known.filter((item) => !above(item))), nearest(known.filter(above))];
    parts.forEach((items, index) => {
      const { head, list } = this.#lists[index], kept = (side === "min") === (index === 1);
      say(head, kept ? "passes here" : "fails here");
      if (head.className !== `fate ${kept ? "kept" : "dropped"}`) head.className = `fate ${kept ? "kept" : "dropped"}`;
      list.ariaLabel = head.textContent;
      const nodes = items.map((item) => item.node);
      if (nodes.length !== list.childElementCount || nodes.some((node, at) => node !== list.children[at])) {
        list.replaceChildren(...nodes);
      }
      list.classList.toggle("none", Boolean(answer) && !nodes.length);
    });
  }

  #thumb(item) {
    const told = item.kept ? "kept by the run" : `dropped by ${item.reason}`;
    const picture = element("img", { src: item.picture, alt: "", loading: "lazy", decoding: "async", width: 96, height: 96 });
    const words = element("span", { class: "words", dir: "auto" }, item.caption ?? "no caption");
    const button = element("button", { type: "button", "data-key": item.key },
      picture, element("b", {}, item.score), words, element("small", {}, told));
    button.addEventListener("click", () =>
      this.open(item.key, this.#lists.flatMap(({ list }) => [...list.querySelectorAll("button")].map((one) => one.dataset.key))));
    return element("li", {}, button);
  }
}
