"""How the page of a trace looks, and how its maps are chosen: the CSS and the JavaScript of `trace_page.py`."""

STYLE = """
:root { --paper: #fff; --ink: #1c2230; --muted: #586174; --line: #dde1e9; --soft: #f5f6f9; --bar: #8296b8;
  --right: #0a6c46; --link: #1b4fa0; --heat: #002364; --cool-text: #000; --hot-text: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171d; --ink: #e5e8ee; --muted: #a0a9b9; --line: #303743; --soft: #1b1f27; --bar: #5f7396;
    --right: #68cf9d; --link: #94bdf8; --heat: #8cb4f0; --cool-text: #fff; --hot-text: #000; } }
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .25rem; }
p { max-width: 46rem; margin: .5rem 0; }
a { color: var(--link); }
nav ol { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 1.5rem 0 0; padding: 0; list-style: none; }
.muted, caption, figcaption, dt { color: var(--muted); }
.equation { margin: .75rem 0; padding-left: 1rem; border-left: 3px solid var(--line); font-family: Cambria, Georgia,
  "Liberation Serif", "Times New Roman", serif; font-size: 1.1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; max-width: 100%; }
.scroll:focus-visible, select:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .4rem; font-size: .875rem; max-width: calc(100vw - 2.5rem); }
th, td { padding: .2rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 500; }
thead th { color: var(--muted); font-weight: 400; }
.token { text-align: left; font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
tbody th.token { position: sticky; left: 0; background: var(--paper); color: var(--ink); }
.first { border-left: 1px solid var(--line); }
th[scope=colgroup] { text-align: center; }
.side-by-side { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.projections .scroll { max-height: 26rem; overflow: auto; }
.projections thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; margin: .75rem 0 0; }
select { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--muted); border-radius: 4px;
  padding: .1rem .4rem; margin-left: .4rem; }
.map { border-spacing: 1px; border-collapse: separate; font-size: .75rem; }
.map th { border: 0; padding: .1rem .35rem; max-width: 9rem; overflow: hidden; text-overflow: ellipsis; }
.map thead th { vertical-align: bottom; text-align: center; padding: .35rem 0; color: var(--ink); }
.map thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden; }
.map tbody th { text-align: right; }
.map td { width: 2.25rem; min-width: 2.25rem; height: 1.6rem; padding: 0; border: 0; text-align: center;
  color: var(--cool-text); background: color-mix(in srgb, var(--heat) calc(var(--w) * 100%), var(--soft)); }
.map td.hot { color: var(--hot-text); }
.map td.masked { color: var(--muted); background: none; }
.map td:hover { outline: 2px solid var(--ink); outline-offset: -1px; }
.dense td { width: .95rem; min-width: .95rem; height: .95rem; font-size: 0; }
.dense th { line-height: .95rem; padding-block: 0; }
.scale { display: flex; align-items: center; gap: .5rem; font-size: .875rem; }
.scale span:first-child { white-space: nowrap; }
.scale i { flex: none; width: 8rem; height: .7rem; border: 1px solid var(--line);
  background: linear-gradient(to right in srgb, var(--soft), var(--heat)); }
.readout { position: sticky; bottom: 0; padding: .4rem 0; background: var(--paper); min-height: 2.4em;
  font-size: .875rem; font-variant-numeric: tabular-nums; max-width: none; }
.steps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  list-style: none; padding: 0; }
.steps li { padding: .75rem 1rem 1rem; border: 1px solid var(--line); border-radius: 6px; min-width: 0; }
.steps h3 { margin: 0; }
.prefix { font: .8125rem/1.7 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.prefix bdi { margin-right: .6em; color: var(--muted); }
.prefix bdi:last-child { color: var(--ink); font-weight: 700; }
.steps table { width: 100%; margin: .5rem 0; table-layout: fixed; }
.steps table th { width: 34%; overflow: hidden; text-overflow: ellipsis; padding-left: 0; }
.steps table td:last-child { width: 4rem; padding-right: 0; }
.steps table th, .steps table td { border: 0; padding-block: .1rem; }
.steps dl { gap: 0 1rem; margin: .25rem 0 0; font-size: .875rem; font-variant-numeric: tabular-nums; }
.bar i { display: block; height: .7rem; min-width: 1px; background: var(--bar); border-radius: 0 2px 2px 0; }
.right th, .right td, .total th, .total td { color: var(--right); font-weight: 700; }
.right .bar i { background: var(--right); }
.total th, .total td { color: var(--ink); }
.left { text-align: left; white-space: normal; }
.steps .beyond th, .steps .beyond td { border-top: 1px dotted var(--muted); }
@media print { .scroll { overflow: visible !important; max-height: none !important; }
  .steps li { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("numbers").textContent);
const fixed = (x, digits = 2) => (Math.abs(x) < 0.5 * 10 ** -digits ? 0 : x).toFixed(digits).replace("-", "\\u2212");

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

function vectors(parent, letter, name, tokens, rows, width) {
  const element = table(parent, `${name}: ${rows[0].length} of ${width} components`);
  const head = add(add(element, "thead"), "tr");
  add(head, "th", "token", "token", "col");
  rows[0].forEach((_, i) => add(head, "th", `${letter}${i}`, "", "col"));
  const body = add(element, "tbody");
  rows.forEach((row, t) => {
    const line = add(body, "tr");
    add(add(line, "th", undefined, "token", "row"), "bdi", tokens[t]);
    row.forEach((x) => add(line, "td", fixed(x)));
  });
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
      const cell = add(line, "td", seen ? fixed(row[k], digits) : "\\u00b7", seen ? "" : "masked");
      if (seen) cell.style.setProperty("--w", shade(row[k]).toFixed(3));
      if (seen && shade(row[k]) > 0.6) cell.className = "hot";
      cell.title = tell(t, k);
      cell.dataset.at = tell(t, k);
    });
  });
}

function draw(section, kind) {
  const [layer, head] = [...section.querySelectorAll("select")].map((select) => Number(select.value));
  const { q, k, v, scores, weights } = kind.layers[layer][head];
  const projections = section.querySelector(".projections"), maps = section.querySelector(".maps");
  const readout = section.querySelector(".readout");
  projections.replaceChildren();
  maps.replaceChildren();
  readout.textContent = "Point at a cell, or tap it, to read it.";
  vectors(projections, "q", "Q, queries", kind.rows, q, kind.width);
  vectors(projections, "k", "K, keys", kind.columns, k, kind.width);
  vectors(projections, "v", "V, values", kind.columns, v, kind.width);
  const tell = (t, j) => `\\u201c${kind.rows[t]}\\u201d (row ${t + 1}) looks at \\u201c${kind.columns[j]}\\u201d ` +
    `(column ${j + 1}): ` + (j < scores[t].length
      ? `score ${fixed(scores[t][j])}, weight ${fixed(weights[t][j], 3)}`
      : "in the future, so masked: score \\u2212\\u221e, weight 0");
  const all = scores.flat(), low = Math.min(...all), high = Math.max(...all);
  const name = `${kind.reader} in rows look at ${kind.read} in columns`;
  map(maps, `Scores: ${name}`, kind, scores, (x) => 0.5 * (x - low) / (high - low || 1), 1, tell);
  map(maps, "Weights: softmax of each row of scores", kind, weights, (x) => x, 2, tell);
  const show = (event) => { if (event.target.dataset.at) readout.textContent = event.target.dataset.at; };
  maps.onpointerover = maps.onclick = show;
}

for (const section of document.querySelectorAll("section[data-kind]")) {
  const kind = data[section.dataset.kind];
  for (const select of section.querySelectorAll("select")) select.onchange = () => draw(section, kind);
  draw(section, kind);
}
"""
