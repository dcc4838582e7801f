// A threshold that can be moved over its steps.
//
// The one decision: what a line would keep is read off the server's steps, never computed here.

const { bisectCenter, bisectLeft, bisectRight } = globalThis.d3;

export class Line {
  #index = null; // of the step where it stands; null: at the run's own value

  /** chart, given: as the server describes them. kept: samples that the run keeps. */
  constructor(chart, given, kept) {
    Object.assign(this, { chart: chart.id, id: given.id, name: given.name, side: given.side, why: given.why, kept });
    this.own = given.value;
    this.steps = given.steps?.at.length ? given.steps : null;
    const behind = given.side === "max" && chart.whole; // a maximum is still kept: its line stands behind its bar
    this.at = this.steps?.value.map((value, index) => (unit(chart) ? value + behind : this.steps.at[index])) ?? [];
    const step = this.steps?.value.indexOf(this.own) ?? -1;
    this.home = step >= 0 ? this.at[step] : this.own + (behind && Number.isInteger(this.own));
  }

  get moved() { return this.#index !== null; }
  get place() { return this.moved ? this.at[this.#index] : this.home; }
  /** Names where it stands. */
  get stand() { return `${this.side} ${this.value}`; }
  /** Whether a score passes it. Scores are floats of 32 bits, and so a filter compares them. */
  passes(score) {
    const [left, right] = [Math.fround(score), Math.fround(this.value)];
    return this.side === "max" ? left <= right : left >= right;
  }
  get value() { return this.moved ? this.steps.value[this.#index] : this.own; }
  /** Samples that would be kept, if nothing else changed: fewest and most. */
  get low() { return this.moved ? this.steps.low[this.#index] : this.kept; }
  get high() { return this.moved ? this.steps.high[this.#index] : this.kept; }

  /** To the step nearest to a place on the axis; says whether that is another one. */
  moveTo(place) { return this.#set(bisectCenter(this.at, place)); }

  /** So many steps to the right; says whether it moved. */
  moveBy(count) {
    const index = count > 0 ? bisectRight(this.at, this.place) - 1 : bisectLeft(this.at, this.place);
    return this.#set(Math.min(Math.max(index + count, 0), this.at.length - 1));
  }

  /** To the run's own value. */
  reset() { return this.#set(null); }

  /** To where another line stood, which was drawn from older numbers. */
  follow(older) {
    if (!older.moved || !this.steps) return;
    const same = this.steps.value.indexOf(older.value);
    this.#set(same >= 0 ? same : bisectCenter(this.at, older.place));
  }

  #set(index) {
    const before = this.#index;
    this.#index = index !== null && this.steps.value[index] === this.own ? null : index;
    return this.#index !== before;
  }
}

/** Whether bars are drawn from one whole number to the next: bins are narrower than that. */
export const unit = (chart) => chart.whole && chart.width <= 1;
