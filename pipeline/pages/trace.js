const data = JSON.parse(document.getElementById("numbers").textContent);

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
  const tell = (t, j) => `\u201c${kind.rows[t]}\u201d (row ${t + 1}) looks at \u201c${kind.columns[j]}\u201d ` +
    `(column ${j + 1}): ` + (j < scores[t].length
      ? `score ${fixed(scores[t][j])}, weight ${fixed(weights[t][j], 3)}`
      : "in the future, so masked: score \u2212\u221e, weight 0");
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
