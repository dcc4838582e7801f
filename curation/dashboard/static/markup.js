// Elements from parts: the one door through which text comes into the document.
//
// The one decision: a string becomes a text node or the value of an attribute, never HTML, so a caption or a url cannot
// become an element. (The server has written out the characters that nobody sees already.)

/** An element. attributes: null and false leave one out, true gives it without a value. children: nodes and strings. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for a part of a drawing. */
export function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Sets a text where it differs: what stays the same is not laid out again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table like the report's. rows: lists of cells, the first one its head; a cell is a node or a string. */
export function table(caption, heads, rows, marked = -1) {
  const cell = (name, scope, text) => element(name, { scope }, text);
  const lines = rows.map(([first, ...rest], index) =>
    element("tr", { class: index === marked ? "marked" : null },
      cell("th", "row", first), rest.map((text) => cell("td", null, text))));
  const made = element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, heads.map((text) => cell("th", "col", text)))),
    element("tbody", {}, lines));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, made);
}
