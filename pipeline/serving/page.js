const PAUSE = 400;  // ms without a key before what was typed is asked
const UNSURE = 0.5;  // tokens that the model gave less than this are marked

const form = document.getElementById("form"), fields = form.elements;
const byId = (id) => document.getElementById(id);
const answers = byId("answers"), progress = byId("status"), said = form.querySelector(".said");

// ---- what differs between tasks

const TASKS = {
  sequence_to_sequence: {
    kind: "sequence-to-sequence model", label: "Text", action: "Generate", heading: "Answers",
    route: "api/answer", body: generationBody, show: showAnswers,
  },
  language_modeling: {
    kind: "language model", label: "Beginning of a text", action: "Continue", heading: "Continuations",
    route: "api/answer", body: generationBody, show: showAnswers,
  },
  text_classification: {
    kind: "text classifier", label: "Text", action: "Classify", heading: "Classes",
    route: "api/classify", body: () => ({ text: fields.text.value }), show: showClasses,
  },
  forecasting: {
    kind: "forecaster", label: "Past values, as CSV", action: "Forecast", heading: "Forecast",
    route: "api/forecast", body: () => ({ csv: fields.text.value }), show: showForecast,
  },
};

let model = null;  // of api/model
let running = null;  // the AbortController of the newest request
let timer = null;
let changed = null;  // the field that was changed last

// ---- requests

class Refused extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

async function request(route, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {}, method = body ? "POST" : "GET";
  if (fields.token.value) headers.Authorization = `Bearer ${fields.token.value}`;
  let response;
  try {
    response = await fetch(route, { method, headers, body: body && JSON.stringify(body), signal });
  } catch {
    throw new Refused("The server cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => null);  // what stands between may answer with a page
  if (!response.ok || answer === null) {
    const unclear = `The server sent an answer that is not understood (${response.status}).`;
    throw new Refused(answer?.error ?? unclear, response.status);
  }
  return answer;
}

async function ask(isSubmitted) {
  clearTimeout(timer);
  running?.abort();  // a newer request overtakes it
  const { signal } = running = new AbortController();
  said.setAttribute("aria-busy", "false");
  for (const name of Object.keys(ERRORS)) setError(name, "");
  try {
    if (model === null) await load(signal);
    keepBeams();
    if (signal.aborted || !check(isSubmitted)) return;
    remember();
    said.setAttribute("aria-busy", "true");
    progress.textContent = "Computing …";
    const began = performance.now(), task = TASKS[model.task];
    const answer = await request(task.route, task.body(), signal);
    if (signal.aborted) return;
    const summary = task.show(answer);
    progress.textContent = `${summary} in ${fixed((performance.now() - began) / 1000)} s`;
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Refused)) throw error;
    showRefusal(error);
  } finally {
    if (!signal.aborted) said.setAttribute("aria-busy", "false");
  }
}

async function load(signal) {
  const answer = await request("api/model", null, signal);
  if (signal.aborted) return;
  model = answer;
  describe();
  recall();
}

// ---- errors, each beside its field

const ERRORS = Object.fromEntries([...form.querySelectorAll(".error")].map((p) => [p.id.replace("-error", ""), p]));

function setError(name, message) {
  ERRORS[name].textContent = message;
  if (message) fields[name].setAttribute("aria-invalid", "true");
  else fields[name].removeAttribute("aria-invalid");
}

function showRefusal({ message, code }) {
  progress.textContent = "";
  clearAnswers();
  if (code === 401 || code === 403) {
    byId("access").hidden = false;
    setError("token", message);
    return;
  }
  const named = /^(?:\w+\.)*(\w+):/.exec(message)?.[1];  // such as "settings.top_k: ..."
  setError(named in ERRORS && fields[named].offsetParent !== null ? named : "text", message);
}

function wrongNumber(input) {
  const { min, max, validity } = input;
  if (validity.valid) return "";
  const range = max ? `from ${min} to ${max}` : `of at least ${min}`;
  return `Give a ${input.step === "any" ? "number" : "whole number"} ${range}.`;
}

function check(isSubmitted) {
  const wrong = [];
  for (const input of form.querySelectorAll("input[type=number]")) {
    const message = input.offsetParent === null ? "" : wrongNumber(input);  // those that are hidden are not sent
    setError(input.name, message);
    if (message) wrong.push(input);
  }
  if (!fields.text.value.trim()) {
    if (isSubmitted) setError("text", "Type a text first.");
    wrong.unshift(fields.text);
  }
  if (wrong.length) {
    progress.textContent = "";
    clearAnswers();
    if (isSubmitted) wrong[0].focus();
  }
  return !wrong.length;
}

// ---- the fields

const numberOf = (name) => Number(fields[name].value);
const isSampling = () => fields.method.value === "sampling";

function generationBody() {
  const body = {
    text: fields.text.value, num_alternatives: numberOf("num_alternatives"), attention: model.has_attention,
  };
  for (const name of ["source_lang", "target_lang"]) if (fields[name].value) body[name] = fields[name].value;
  body.settings = { do_sample: isSampling(), num_beams: isSampling() ? 1 : numberOf("num_beams") };
  if (isSampling()) {
    for (const name of ["temperature", "top_k", "top_p"]) body.settings[name] = numberOf(name);
    if (fields.seed.value) body.settings.seed = numberOf("seed");
  }
  return body;
}

/** Keep answers and beams consistent: a search finds as many answers as it has beams. */
function keepBeams() {
  const count = fields.num_alternatives, beams = fields.num_beams;
  if (isSampling() || wrongNumber(count) || wrongNumber(beams) || Number(beams.value) >= Number(count.value)) return;
  if (changed === beams) count.value = beams.value;
  else beams.value = count.value;
}

function showMethod() {
  form.querySelector(".of-beams").hidden = isSampling();
  form.querySelector(".of-sampling").hidden = !isSampling();
  byId("num_alternatives-hint").textContent = isSampling() ? "1 to 10" : "1 to 10, each needs a beam";
}

function languageName(code) {
  try {
    return `${new Intl.DisplayNames(["en"], { type: "language" }).of(code)} (${code})`;
  } catch (error) {
    if (error instanceof RangeError) return code;  // codes may be of other kinds than the browser's, such as fra_Latn
    throw error;
  }
}

function describe() {
  const task = TASKS[model.task], generation = model.generation ?? {};
  document.title = byId("name").textContent = model.name;
  const pairs = [model.languages?.source ?? [], model.languages?.target ?? []];
  ["source_lang", "target_lang"].forEach((name, side) => {
    fields[name].replaceChildren();
    for (const code of pairs[side]) add(fields[name], "option", languageName(code)).value = code;
    fields[name].parentElement.hidden = !pairs[side].length;
  });
  byId("languages").hidden = !pairs.some((codes) => codes.length);
  byId("about").textContent = `${task.kind}, engine ${model.engine}`;
  byId("text-label").textContent = task.label;
  byId("send").textContent = pairs[1].length ? "Translate" : task.action;
  byId("said").textContent = pairs[1].length ? "Translations" : task.heading;
  byId("settings").hidden = task.body !== generationBody;
  form.classList.toggle("wide", model.task === "forecasting");
  form.classList.toggle("csv", model.task === "forecasting");
  if (model.task === "forecasting") {
    byId("text-hint").textContent = `First line: names of columns, among them ${model.series.join(", ")}. Then a ` +
      `line for each step, at least ${model.context_length}; the last ${model.context_length} are read, and the next ` +
      `${model.prediction_length} forecast.`;
  }
  for (const name of ["num_beams", "temperature", "top_k", "top_p"]) {
    if (![null, undefined].includes(generation[name])) fields[name].value = generation[name];
  }
  fields.num_alternatives.value = Math.min(3, numberOf("num_beams"));
  fields.method.value = generation.do_sample ? "sampling" : "beams";
  showMethod();
}

// ---- what survives a reload: in this tab only, and never the token

const REMEMBERED = ["text", "source_lang", "target_lang", "method", "num_alternatives", "num_beams", "temperature",
  "top_k", "top_p", "seed"];

function remember() {
  const values = Object.fromEntries(REMEMBERED.map((name) => [name, fields[name].value]));
  try {
    sessionStorage.setItem(model.task, JSON.stringify(values));
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;  // storage is forbidden, or too small for this text
  }
}

function recall() {
  let values = null;
  try {
    values = JSON.parse(sessionStorage.getItem(model.task));
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
  const typed = fields.text.value;  // before the model was known
  for (const name of REMEMBERED) {
    const field = fields[name], value = values?.[name];
    const isOffered = !field.options || [...field.options].some((option) => option.value === value);
    if (value !== undefined && isOffered) field.value = value;
  }
  if (typed) fields.text.value = typed;
  showMethod();
}

// ---- answers

function clearAnswers() {
  answers.replaceChildren();
  byId("attention").hidden = byId("of-tokens").hidden = true;
}

const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;
const share = (p) => p >= 0.0005 ? fixed(p, 3) : p.toExponential(0).replace("-", "\u2212");

function showAnswers(answer) {
  clearAnswers();
  const list = add(answers, "ol", undefined, "answers");
  for (const { text, score, tokens, probabilities } of answer.answers) {
    const item = add(list, "li"), line = add(item, "div");
    const words = add(line, "span", text || "empty", text ? "text" : "text empty");
    words.dir = "auto";
    if (text && fields.target_lang.value) words.lang = fields.target_lang.value;
    if (score !== null) add(line, "span", `score ${fixed(score, 3)}`, "score");
    if (probabilities === null) continue;
    byId("of-tokens").hidden = false;
    const row = add(item, "ol", undefined, "tokens");
    row.hidden = !fields.show_tokens.checked;
    tokens.forEach((token, t) => {
      const place = add(row, "li", undefined, probabilities[t] < UNSURE ? "unsure" : "");
      add(place, "bdi", token);
      add(place, "span", share(probabilities[t]));
    });
  }
  if (answer.answers.some(({ score }) => score !== null)) {
    const isOfBeams = !isSampling() && numberOf("num_beams") > 1;
    const divisor = isOfBeams ? ", divided by the length to the power of length_penalty" : "";
    add(answers, "p", `Score: log-probability in nats${divisor}; the nearer to 0, the more probable.`, "hint");
  }
  if (answer.attention) showAttention(answer.answers[0], answer.source_tokens, answer.attention);
  return counted(answer.answers.length, "answer", "answers");
}

function showClasses({ classes }) {
  clearAnswers();
  const element = add(answers, "table", undefined, "classes");
  add(element, "caption", "Probability of each class");
  const body = add(element, "tbody");
  for (const { name, probability } of [...classes].sort((a, b) => b.probability - a.probability)) {
    const line = add(body, "tr");
    add(add(line, "th", undefined, "", "row"), "bdi", name);
    const bar = add(line, "td", undefined, "bar");
    bar.setAttribute("aria-hidden", "true");
    add(bar, "i").style.width = `${(100 * probability).toFixed(1)}%`;
    add(line, "td", share(probability));
  }
  return counted(classes.length, "class", "classes");
}

// ---- attention: (T, S), of which the pointer or the keyboard shows a row, a column or a cell

function showAttention({ tokens, probabilities }, sourceTokens, weights) {
  const readout = byId("readout");
  byId("attention").hidden = false;
  byId("map").replaceChildren();
  const quoted = (token) => `\u201c${token}\u201d`;
  const tell = (t, s) => `${quoted(tokens[t])} looks at ${quoted(sourceTokens[s])}: ${fixed(weights[t][s])}`;
  const element = map(byId("map"), "Tokens of the answer in rows look at tokens of the source in columns",
    { rows: tokens, columns: sourceTokens }, weights, (x) => x, 2, tell);
  element.setAttribute("role", "grid");
  const rows = [...element.tBodies[0].rows].map((line) => [...line.cells]);  // a heading, then S cells
  const headings = [...element.tHead.rows[0].cells].slice(1);
  const strips = { target: strip("target", "Answer", tokens), source: strip("source", "Source", sourceTokens) };
  rows.forEach(([, ...cells]) => cells.forEach((cell) => {
    cell.tabIndex = -1;
    cell.removeAttribute("title");  // the readout says it, and a tooltip would cover the map
  }));
  rows[0][1].tabIndex = 0;

  const shade = (token, weight) => {
    token.style.setProperty("--w", weight.toFixed(3));
    token.classList.toggle("hot", weight > 0.6);
  };
  const most = (weight, names) => weight.map((w, i) => [w, names[i]]).sort((a, b) => b[0] - a[0]).slice(0, 3)
    .filter(([w], i) => !i || w >= 0.05).map(([w, name]) => `${quoted(name)} (${fixed(w)})`).join(", ");

  function show(t, s) {  // either may be null
    for (const old of byId("attention").querySelectorAll(".here")) old.classList.remove("here");
    strips.source.forEach((token, i) => shade(token, t === null ? 0 : weights[t][i]));
    strips.target.forEach((token, i) => shade(token, t === null ? weights[i][s] : 0));
    const marked = [];
    if (t !== null) marked.push(strips.target[t], rows[t][0]);
    if (s !== null) marked.push(strips.source[s], headings[s]);
    if (t !== null && s !== null) marked.push(rows[t][s + 1]);
    for (const one of marked) one.classList.add("here");
    readout.textContent = describePlace(t, s);
  }

  function describePlace(t, s) {
    if (t === null) return `Most at ${quoted(sourceTokens[s])} look ${most(weights.map((row) => row[s]), tokens)}.`;
    const looks = s === null ? `${quoted(tokens[t])} looks most at ${most(weights[t], sourceTokens)}` : tell(t, s);
    if (!probabilities) return `${looks}.`;
    return `${looks}. The model gave ${quoted(tokens[t])} the probability ${share(probabilities[t])}.`;
  }

  strips.target.forEach((token, t) => { token.onpointerover = token.onclick = () => show(t, null); });
  strips.source.forEach((token, s) => { token.onpointerover = token.onclick = () => show(null, s); });
  const place = (cell) => [cell.parentElement.rowIndex - 1, cell.cellIndex - 1];
  const body = element.tBodies[0];
  const point = ({ target }) => {
    const cell = target.closest("td, th");
    if (!cell) return;
    const [t, s] = place(cell);
    show(t, s < 0 ? null : s);
  };
  body.onpointerover = body.onclick = point;
  body.addEventListener("focusin", (event) => {
    body.querySelector("td[tabindex='0']").tabIndex = -1;
    event.target.tabIndex = 0;  // Tab comes back to where the keyboard was
    point(event);
  });
  element.tHead.onpointerover = element.tHead.onclick = ({ target }) => {
    const cell = target.closest("th");
    if (cell) show(null, cell.cellIndex - 1);
  };
  body.onkeydown = (event) => {
    const [t, s] = place(event.target), lastRow = tokens.length - 1, last = sourceTokens.length - 1;
    const next = { ArrowUp: [t - 1, s], ArrowDown: [t + 1, s], ArrowLeft: [t, s - 1], ArrowRight: [t, s + 1],
      Home: [event.ctrlKey ? 0 : t, 0], End: [event.ctrlKey ? lastRow : t, last] }[event.key];
    const cell = next && next[1] >= 0 && rows[next[0]]?.[next[1] + 1];
    if (!next) return;
    event.preventDefault();
    if (cell) cell.focus();
  };
  show(0, null);
}

function strip(name, label, tokens) {
  const parent = byId(`${name}-strip`);
  parent.replaceChildren();
  add(parent, "span", label);
  return tokens.map((token) => add(parent, "bdi", token));
}

// ---- forecasts: L past steps, of which the last is step 0, and H steps to come

const SVG = "http://www.w3.org/2000/svg";

function draw(parent, tag, attributes, text) {
  const element = parent.appendChild(document.createElementNS(SVG, tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step), length = Math.floor(high / step) - first + 1;
  return Array.from({ length }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function formatValue(x) {
  if (x === null || x === undefined) return "none";
  const size = Math.abs(x);
  const text = size >= 1e7 || (size > 0 && size < 1e-4) ? x.toExponential(3)
    : x.toLocaleString("en", { maximumFractionDigits: size >= 1000 ? 1 : size >= 1 ? 3 : 5 });
  return text.replace("-", "\u2212");
}

const signed = (step) => step > 0 ? `+${step}` : String(step).replace("-", "\u2212");

let redraw = () => {};

function showForecast({ series }) {
  clearAnswers();
  const all = Object.entries(series), [, { past, forecast }] = all[0];
  const control = add(answers, "p", undefined, "step");
  const label = add(control, "label"), slider = add(control, "input");
  slider.type = "range";
  slider.id = label.htmlFor = "step";
  slider.min = 1 - past.length;
  slider.max = forecast.length;
  slider.value = 1;
  let plots = [];
  const show = () => {
    const step = Number(slider.value), texts = plots.map((plot) => plot(step));
    label.textContent = `Step ${signed(step)}`;
    slider.setAttribute("aria-valuetext", `step ${signed(step)}: ${texts.join(", ")}`);
  };
  const point = (step) => {
    slider.value = step;
    show();
  };
  slider.oninput = show;
  const place = add(answers, "div");
  const scales = all.map(([, values]) => scaleOf([...values.past, ...values.forecast]));
  const left = 14 + 7 * Math.max(...scales.flatMap(({ marks }) => marks.map((mark) => formatValue(mark).length)));
  redraw = () => {
    place.replaceChildren();
    plots = all.map(([name, values], i) => plotSeries(place, name, values, scales[i], left, point));
    show();
  };
  redraw();
  const numbers = add(answers, "details", undefined, "numbers");
  add(numbers, "summary", "The forecast as a table");
  numbers.ontoggle = () => {
    numbers.ontoggle = null;  // filled when it is first opened
    const element = table(numbers, `${forecast.length} steps to come`);
    const head = add(add(element, "thead"), "tr"), body = add(element, "tbody");
    add(head, "th", "step", "", "col");
    for (const [name] of all) add(add(head, "th", undefined, "", "col"), "bdi", name);
    forecast.forEach((_, i) => {
      const line = add(body, "tr");
      add(line, "th", signed(i + 1), "", "row");
      for (const [, values] of all) add(line, "td", formatValue(values.forecast[i]));
    });
  };
  return `${counted(forecast.length, "step", "steps")} of ${counted(all.length, "series", "series")}`;
}

function scaleOf(values) {
  const known = values.filter(Number.isFinite), least = Math.min(...known), most = Math.max(...known);
  if (!known.length) return { low: 0, high: 1, marks: [0, 1] };
  const around = least < most ? 0 : Math.abs(least) || 1;  // a line in the middle, where nothing changes
  const [low, high] = [least - around, most + around];
  return { low, high, marks: ticks(low, high, 4) };
}

/** Draw one series, and return a function that marks a step in it and returns what it says. */
function plotSeries(parent, name, { past, forecast }, { low, high, marks }, left, point) {
  const figure = add(parent, "figure", undefined, "plot"), caption = add(figure, "figcaption");
  add(caption, "bdi", name);
  const readout = add(caption, "span"), svg = draw(figure, "svg", { "aria-hidden": "true" });  // the slider speaks
  const width = svg.clientWidth, height = svg.clientHeight, values = [...past, ...forecast];
  const first = 1 - past.length;
  const x = (step) => left + (width - left - 8) * (step - first) / (forecast.length - first || 1);
  const y = (value) => height - 26 - (height - 46) * (value - low) / (high - low);
  for (const mark of marks) {
    draw(svg, "path", { class: "grid", d: `M${left} ${y(mark)}H${width - 8}` });
    draw(svg, "text", { x: left - 8, y: y(mark) + 4, "text-anchor": "end" }, formatValue(mark));
  }
  for (const mark of ticks(first, forecast.length, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger)) {
    draw(svg, "text", { x: x(mark), y: height - 6, "text-anchor": "middle" }, signed(mark));
  }
  draw(svg, "path", { class: "now", d: `M${x(0)} 0V${height - 26}` });
  draw(svg, "text", { x: x(0) - 6, y: 10, "text-anchor": "end" }, "past");
  draw(svg, "text", { x: x(0) + 6, y: 10, class: "forecast" }, "forecast");
  const line = (from, to) => values.slice(from, to).map((value, i, part) => {
    if (!Number.isFinite(value)) return "";  // a gap
    return `${Number.isFinite(part[i - 1]) ? "L" : "M"}${x(first + from + i).toFixed(1)} ${y(value).toFixed(1)}`;
  }).join("");
  draw(svg, "path", { class: "past", d: line(0, past.length) });
  draw(svg, "path", { class: "forecast", d: line(past.length - 1, values.length) });
  const cursor = draw(svg, "path", { class: "cursor" }), dot = draw(svg, "circle", { r: 4 });
  svg.onpointermove = svg.onpointerdown = (event) => {
    const part = Math.min(1, Math.max(0, (event.offsetX - left) / (width - left - 8)));
    point(Math.round(first + part * (forecast.length - first)));
  };
  return (step) => {
    const value = values[step - first];
    cursor.setAttribute("d", `M${x(step)} 12V${height - 26}`);
    dot.setAttribute("visibility", Number.isFinite(value) ? "visible" : "hidden");
    if (Number.isFinite(value)) {
      dot.setAttribute("cx", x(step));
      dot.setAttribute("cy", y(value));
    }
    readout.textContent = `${step > 0 ? "forecast" : "past"} ${signed(step)}: ${formatValue(value)}`;
    return `${name} ${formatValue(value)}`;
  };
}

// ---- events

form.oninput = ({ target }) => {
  clearTimeout(timer);
  if (target.name === "show_tokens") {
    for (const row of answers.querySelectorAll(".tokens")) row.hidden = !target.checked;
    return;
  }
  if (target.id === "step") return;
  if (target.name === "method") showMethod();
  changed = target;
  timer = setTimeout(() => ask(false), PAUSE);
};
form.onsubmit = (event) => {
  event.preventDefault();
  ask(true);
};
form.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
};
let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width) redraw();  // its own change of height is none of its business
  width = contentRect.width;
}).observe(answers);
ask(false);
