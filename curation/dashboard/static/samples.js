// The search in the ledger and the gallery: a form, cards, more of them.

import { latest, of } from "./ask.js";
import { element, say } from "./markup.js";
import { hashOf, openSample } from "./sample.js";

const form = document.getElementById("search");
const [found, cards, more] = ["found", "cards", "more"].map((id) => document.getElementById(id));
const asked = latest();
let query = [];

/** Asks anew, or for what comes after the cards that are shown. */
async function search(offset = 0) {
  if (!offset) query = [...new FormData(form)].map(([name, value]) => [name, String(value).trim()]);
  cards.setAttribute("aria-busy", "true");
  found.classList.remove("alert");
  say(found, "searching …");
  try {
    const answer = await asked(of("search", [...query, ["offset", offset]]));
    if (!answer) return;
    const made = answer.rows.map(card);
    if (offset) cards.append(...made);
    else cards.replaceChildren(...made);
    say(found, answer.told);
    more.hidden = !answer.more;
    if (offset) made[0]?.querySelector("a").focus({ preventScroll: true });
  } catch (error) {
    say(found, error.message);
    found.classList.add("alert");
  }
  cards.setAttribute("aria-busy", "false");
}

function card(row) {
  const words = { lang: row.language, dir: "auto" };
  const shown = row.caption ?? row.raw;
  const link = element("a", { href: hashOf(row.key), "data-key": row.key, class: "open" },
    row.picture && element("img", { src: row.picture, alt: "", loading: "lazy", decoding: "async" }),
    shown ? element("span", { class: "caption", ...words }, shown) : element("span", { class: "caption none" }, "no caption"));
  const facts = row.scores.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
  const made = element("li", { class: "card" },
    link,
    row.caption !== null && row.raw !== null && row.raw !== row.caption
      ? element("p", { class: "raw" }, element("b", {}, "raw "), element("q", words, row.raw)) : null,
    element("p", { class: `fate ${row.kept ? "kept" : "dropped"}` }, row.kept ? "kept" : row.reason),
    element("dl", {}, facts),
    row.url ? element("p", { class: "url" }, row.url) : null);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // into another tab
    event.preventDefault();
    openSample(row.key, [...cards.querySelectorAll("a.open")].map((one) => one.dataset.key));
  });
  made.addEventListener("click", (event) => { // anywhere on it, unless its text is being chosen
    if (!event.target.closest("a") && getSelection().isCollapsed) link.click();
  });
  return made;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
form.elements.reason.addEventListener("change", () => search());
more.addEventListener("click", () => search(cards.childElementCount));
search();
