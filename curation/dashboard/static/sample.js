// The view of one sample, in a dialog. The address bar's hash says which one is open, so it can be shared and gone back.

import { latest, of } from "./ask.js";
import { element, table } from "./markup.js";

const dialog = document.getElementById("sample");
const asked = latest();
const START = "#sample=";
let keys = [], opened = null; // keys: of the list that it was opened from

export const hashOf = (key) => START + encodeURIComponent(key);

/** Opens a sample. around: keys of the list that it was opened from. */
export function openSample(key, around) {
  keys = around;
  if (location.hash === hashOf(key)) follow();
  else location.hash = hashOf(key);
}

/** Shows what the address says. */
function follow() {
  const key = location.hash.startsWith(START) ? decoded(location.hash.slice(START.length)) : null;
  if (key === null) return dialog.open && dialog.close();
  if (!keys.includes(key)) keys = []; // opened by its address
  return show(key);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not ours: the server will say that there is no such sample
  }
}

async function show(key) {
  opened = key;
  if (!dialog.open) {
    dialog.replaceChildren(...frame(element("p", {}, "…")));
    dialog.showModal();
  }
  dialog.setAttribute("aria-busy", "true");
  try {
    const told = await asked(of(`sample/${encodeURIComponent(key)}`));
    if (told) draw(key, view(told));
  } catch (error) {
    draw(key, [element("p", { class: "alert", role: "alert" }, error.message)]);
  }
}

function draw(key, parts) {
  if (opened !== key) return; // closed, or another one by now
  const pressed = document.activeElement?.dataset?.go;
  dialog.replaceChildren(...frame(...parts));
  dialog.setAttribute("aria-busy", "false");
  dialog.scrollTo(0, 0);
  (dialog.querySelector(`[data-go="${pressed}"]:not(:disabled)`) ?? dialog.querySelector("[data-go=close]")).focus();
}

function frame(...parts) {
  const at = keys.indexOf(opened), button = (go, name, disabled = false) => {
    const made = element("button", { type: "button", "data-go": go, disabled }, name);
    made.addEventListener("click", () => (go === "close" ? dialog.close() : step(go === "next" ? 1 : -1)));
    return made;
  };
  const buttons = [button("previous", "← Previous", at < 1), button("next", "Next →", at < 0 || at > keys.length - 2)];
  return [
    element("div", { class: "buttons" }, ...buttons, button("close", "Close")),
    element("h2", { id: "sample-key", class: "code" }, opened), ...parts,
  ];
}

function step(by) {
  const key = keys[keys.indexOf(opened) + by];
  if (!keys.includes(opened) || key === undefined) return;
  history.replaceState(null, "", hashOf(key)); // going back closes the view, however many were looked at
  show(key);
}

function view(told) {
  const words = { lang: told.language, dir: "auto" };
  const caption = told.caption
    ? element("p", { class: "caption", ...words }, told.caption) : element("p", { class: "caption none" }, "no caption");
  const raw = told.raw !== null && told.raw !== told.caption
    ? element("p", { class: "raw" }, element("b", {}, "raw "), element("q", words, told.raw)) : null;
  const lines = (pairs) => pairs.map(([name, value]) => element("div", {}, `${name} ${value}`));
  const rows = told.filters.map((filter) => [
    filter.label,
    element("span", { class: `verdict ${filter.verdict.replaceAll(" ", "-")}` }, filter.verdict + (filter.decided ? " ◀ decided" : "")),
    element("div", {}, lines(filter.scores)), element("div", {}, lines(filter.thresholds)),
  ]);
  const facts = (pairs) => element("dl", { class: "facts" }, pairs.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
  return [
    element("p", { class: `lead fate ${told.kept ? "kept" : "dropped"}` }, told.told),
    element("div", { class: "pair" },
      told.picture ? element("img", { src: told.picture, alt: told.caption ? `Image of the pair: ${told.caption}` : "Image of the pair" })
        : element("p", { class: "note" }, "There is no picture of it here."),
      element("div", {}, caption, raw, facts(told.facts))),
    rows.length ? table("Filters, in the order of execution", ["filter", "verdict", "scores", "thresholds"], rows,
      told.filters.findIndex((filter) => filter.decided)) : null,
    told.source.length
      ? element("details", {}, element("summary", {}, "What came with it"), facts(told.source)) : null,
  ].filter(Boolean);
}

dialog.setAttribute("aria-labelledby", "sample-key");
dialog.addEventListener("close", () => {
  opened = null;
  if (location.hash.startsWith(START)) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
dialog.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest(".scroll")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
addEventListener("hashchange", follow);
follow();
