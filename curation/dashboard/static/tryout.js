// What was tried: the changed thresholds, what they keep together, and how to make a decision of them.
//
// The one decision: steps are exact for one change at most; of several, only the ledger can tell, so it is asked.

import { latest, of } from "./ask.js";
import { element, say } from "./markup.js";
import { counts, exact, percent, points } from "./numbers.js";

const WAIT_MS = 250;

export class Tryout {
  #box; #ask = latest(); #timer = 0; #text = "";
  #list = element("ul", { class: "changes" });
  #joint = element("p", { class: "joint", role: "status" });
  #dropped = element("p", { class: "note" });
  #command = element("input", { type: "text", readonly: true, class: "code", spellcheck: "false" });
  #told = element("p", { class: "note", role: "status" });

  /** reset(): puts every line back. */
  constructor(box, reset) {
    this.#box = box;
    const copy = element("button", { type: "button", class: "main" }, "Copy as --set");
    const back = element("button", { type: "button" }, "Reset");
    copy.addEventListener("click", () => this.#copy());
    back.addEventListener("click", reset);
    this.#command.addEventListener("focus", () => this.#command.select());
    box.setAttribute("aria-label", "Changed thresholds");
    box.append(
      element("div", {}, element("h3", {}, "Changed thresholds"), this.#list),
      element("div", {}, element("h3", {}, "All together"), this.#joint, this.#dropped),
      element("div", { class: "command" },
        element("label", {}, "To make a decision of it", this.#command),
        element("div", { class: "buttons" }, copy, back), this.#told),
    );
  }

  /** Shows what has changed; asks for the exact count a moment later. */
  show(scores, lines) {
    const changed = lines.filter((line) => line.moved), { seen } = scores;
    this.#box.hidden = !changed.length;
    clearTimeout(this.#timer);
    this.#list.replaceChildren(...changed.map((line) => element("li", { "data-line": line.id },
      element("b", {}, line.id), `: ${exact(line.own)} → ${exact(line.value)}`,
      element("span", { class: "count" }, seen ? `alone ${percent(line.low / seen, line.high / seen)}` : ""))));
    const pairs = changed.map((line) => `${line.id}=${exact(line.value)}`);
    // A command begins at the run: what a decision changed of it goes first.
    const set = [...scores.own, ...pairs];
    this.#text = set.map((pair) => `--set ${quoted(pair)}`).join(" ");
    this.#command.value = `${scores.rescore} ${this.#text}`;
    say(this.#told, "");
    say(this.#dropped, "");
    if (!changed.length || !scores.countable) {
      this.#ask.stop();
      say(this.#joint, changed.length ? "Not counted for this run: call the command with --dry-run." : "");
      return;
    }
    say(this.#joint, "counting …");
    this.#timer = setTimeout(() => this.#count(scores, pairs), WAIT_MS);
  }

  async #count({ target, paper }, pairs) {
    try {
      const found = await this.#ask(of("count", pairs.map((pair) => ["set", pair])));
      if (!found) return;
      const { kept, seen, unscored, dropped } = found, most = kept + unscored;
      const goal = (name, share) => (share === null || !seen ? "" : `; ${name} ${points(kept / seen, most / seen, share)}`);
      say(this.#joint,
        `${counts(kept, most)} of ${counts(seen)} kept: ${seen ? percent(kept / seen, most / seen) : "–"}` +
        `${goal("target", target)}${goal("paper", paper)}.` +
        (unscored ? ` ${counts(unscored)} ${unscored === 1 ? "has" : "have"} no score yet: rescore with --score-missing.` : ""));
      const told = Object.entries(dropped).filter(([, count]) => count).map(([label, count]) => `${label} ${counts(count)}`);
      say(this.#dropped, told.length ? `Dropped first by: ${told.join(", ")}.` : "");
    } catch (error) {
      say(this.#joint, error.message);
    }
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.#text); // is not there where the page did not come over a safe way
      say(this.#told, "Copied.");
    } catch {
      const from = this.#command.value.length - this.#text.length;
      this.#command.focus();
      this.#command.setSelectionRange(from, this.#command.value.length);
      say(this.#told, "This browser does not let the page copy: it is selected, press Ctrl+C.");
    }
  }
}

/** A word of a shell's command line. */
const quoted = (text) => (/^[\w.=+:,@%/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
