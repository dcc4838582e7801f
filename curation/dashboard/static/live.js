// Keeps the page's own sections up to date while a run goes on, and says when the dashboard has gone.
//
// The one decision: a section is the server's HTML, put in whole where its text has changed; what a reader has done to it
// (opened details, scrolled boxes, the focus) is carried over.

import { ask } from "./ask.js";
import { element, say } from "./markup.js";

const AT_WORK_MS = 2000, IDLE_MS = 10_000, GONE_MS = 3000;
const source = document.querySelector("[data-live]");
const told = element("p", { id: "connection", role: "status" });
const last = new Map(); // by fragment: the text that was put in
const waiting = new Map(); // texts that could not be put in yet
let version = source.dataset.version ?? "", atWork = true, timer = 0, asking = false;

async function poll() {
  if (asking) return;
  clearTimeout(timer);
  asking = true;
  let next = GONE_MS;
  try {
    const news = await ask(`${source.dataset.live}?${new URLSearchParams({ version })}`, { patience: 15_000 });
    say(told, "");
    if (news) take(news);
    for (const [name, html] of waiting) put(name, html);
    next = atWork && !document.hidden ? AT_WORK_MS : IDLE_MS;
  } catch (error) {
    say(told, `${error.message.replace(/\.$/, "")}; trying again …`);
  }
  asking = false;
  timer = setTimeout(poll, next);
}

function take(news) {
  const grown = version !== "" && news.version !== version && (atWork || news.at_work);
  [version, atWork] = [news.version, news.at_work];
  for (const [name, html] of Object.entries(news.fragments)) if (last.get(name) !== html) waiting.set(name, html);
  if (grown) document.dispatchEvent(new CustomEvent("grown"));
}

function put(name, html) {
  const box = document.querySelector(`[data-fragment="${CSS.escape(name)}"]`), chosen = getSelection();
  if (box && !chosen.isCollapsed && chosen.containsNode(box, true)) return; // someone is copying from it
  waiting.delete(name);
  last.set(name, html);
  if (!box) return;
  const made = element("template");
  made.innerHTML = html; // the server's own, escaped there
  const opened = all(box, "details[open]").map((one) => one.querySelector("summary")?.textContent);
  const scrolled = all(box, ".scroll").map((one) => [one.scrollLeft, one.scrollTop]);
  const focused = all(box, "*").indexOf(document.activeElement), tag = document.activeElement?.tagName;
  box.replaceChildren(made.content);
  for (const one of all(box, "details")) if (opened.includes(one.querySelector("summary")?.textContent)) one.open = true;
  all(box, ".scroll").forEach((one, index) => scrolled[index] && one.scrollTo(...scrolled[index]));
  const again = all(box, "*")[focused];
  if (again?.tagName === tag) again.focus({ preventScroll: true });
}

const all = (box, selector) => [...box.querySelectorAll(selector)];

document.body.append(told);
document.addEventListener("visibilitychange", () => document.hidden || poll());
poll();
