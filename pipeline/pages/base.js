"use strict";
const fixed = (x, digits = 2) => (Math.abs(x) < 0.5 * 10 ** -digits ? 0 : x).toFixed(digits).replace("-", "\u2212");

function add(parent, tag, text, className, scope) {
  const element = parent.appendChild(document.createElement(tag));
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  if (scope) element.scope = scope;
  return element;
}

function table(parent, caption, className) {
  const scroll = add(parent, "div", undefined, "scroll");
  scroll.tabIndex = 0;
  const element = add(scroll, "table", undefined, className);
  add(element, "caption", caption);
  return element;
}

function map(parent, caption, kind, rows, shade, digits, tell) {
  const dense = kind.columns.length > 14;
  const element = table(parent, caption, dense ? "map dense" : "map");
  const head = add(add(element, "thead"), "tr");
  add(head, "td", undefined, "masked");
  kind.columns.forEach((token) => add(add(head, "th", undefined, "token", "col"), "span", token).title = token);
  const body = add(element, "tbody");
  rows.forEach((row, t) => {
    const line = add(body, "tr");
    const name = add(line, "th", undefined, "token", "row");
    name.title = kind.rows[t];
    add(name, "bdi", kind.rows[t]);
    kind.columns.forEach((_, k) => {
      const seen = k < row.length;  // rows of the masked attention end where the future begins
      const cell = add(line, "td", seen ? fixed(row[k], digits) : "\u00b7", seen ? "" : "masked");
      if (seen) cell.style.setProperty("--w", shade(row[k]).toFixed(3));
      if (seen && shade(row[k]) > 0.6) cell.className = "hot";
      cell.title = tell(t, k);
      cell.dataset.at = tell(t, k);
    });
  });
  return element;
}
