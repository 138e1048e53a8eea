"use strict";
const $ = (id) => document.getElementById(id);
const PAGE_SIZE = 20, LEVEL_HUE = 47, GOLDEN_ANGLE = 137.508;
const state = { history: [], filters: {}, prefix: [], seed: 0, token: "", catalogue: null, found: 0, asked: 0, sought: 0 };

// Builds an element; texts from the shop are only ever set as text.
function make(tag, { text, className, title, onclick, label } = {}, ...children) {
  const element = document.createElement(tag);
  if (tag === "button") element.type = "button";
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  if (title) element.title = title;
  if (label) element.setAttribute("aria-label", label);
  if (onclick) element.addEventListener("click", onclick);
  element.append(...children);
  return element;
}

async function call(path, body) {
  const options = { headers: {} };
  if (state.token) options.headers.Authorization = `Bearer ${state.token}`;
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path.slice(1), options);
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  const error = new Error(content.error ? content.error.message : `the server answered ${response.status}`);
  error.status = response.status;
  error.code = content.error && content.error.code;
  throw error;
}

function tell(message, isCalm) {
  $("banner").hidden = !message;
  $("banner").classList.toggle("calm", Boolean(isCalm));
  $("banner").textContent = message || "";
}

function tellError(error) {
  if (error.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
    tell(state.token ? "That token isn't the server's." : "");
  } else {
    tell(error.status ? error.message : "The server can't be reached.");
  }
}

// Semantic IDs ----------------------------------------------------------------

const hue = (codeword, level) => ((codeword * GOLDEN_ANGLE + level * LEVEL_HUE) % 360).toFixed(0);

// The learned levels as colours alone; the last one only tells equal codes apart.
function dots(codes) {
  return make("span", { className: "dots", title: `Semantic ID ${codes.join(" ")}` }, ...codes.slice(0, -1).map((codeword, level) => {
    const dot = make("i");
    dot.style.setProperty("--h", hue(codeword, level));
    return dot;
  }));
}

function chips(codes, withButtons) {
  const row = make("span", { className: "chips" });
  codes.forEach((codeword, level) => {
    const prefix = codes.slice(0, level + 1);
    const chip = make(withButtons ? "button" : "span", { text: String(codeword), className: "chip" });
    chip.title = `Level ${level}: codeword ${codeword} of ${state.catalogue.codebook_sizes[level]}`;
    if (level === codes.length - 1) chip.classList.add("last");
    chip.style.setProperty("--h", hue(codeword, level));
    if (withButtons) {
      chip.setAttribute("aria-label", `Only Semantic IDs that begin with ${prefix.join(", ")}`);
      chip.addEventListener("click", () => { state.prefix = prefix; showPills(); recommend(); });
    }
    row.append(chip);
  });
  return row;
}

// Items and history -----------------------------------------------------------

function itemRow(item, mark, onclick, label) {
  return make("button", { className: "row", onclick, label: `${label}: ${item.title}`, title: item.title },
    make("b", { text: item.title }), make("span", { text: mark, className: "mark" }),
    make("span", { className: "under" }, chips(item.semantic_id, false), make("small", { text: item.category })));
}

async function search(offset = 0) {
  const turn = ++state.sought;
  const query = new URLSearchParams({ q: $("query").value.slice(0, 200), limit: PAGE_SIZE, offset });
  try {
    const answer = await call(`/items?${query}`);
    if (turn !== state.sought) return;
    if (!offset) $("results").replaceChildren();
    for (const item of answer.items) $("results").append(make("li", {}, itemRow(item, "+", () => add(item), "Add")));
    state.found = offset + answer.items.length;
    const many = `${answer.total.toLocaleString("en")} ${answer.total === 1 ? "item" : "items"}`;
    $("found").textContent = $("query").value.trim() ? `${many} found, the best known first` : `${many}, the best known first`;
    $("more").hidden = state.found >= answer.total;
  } catch (error) {
    if (turn === state.sought) tellError(error);
  }
}

function add(item) {
  state.history.push(item);
  showHistory();
  recommend();
}

function showHistory() {
  const read = state.catalogue ? state.catalogue.most_history : Infinity;
  const skipped = Math.max(0, state.history.length - read);
  $("history").replaceChildren(...state.history.map((item, place) => {
    const cross = make("button", { text: "×", className: "cross", label: `Remove ${item.title}`, onclick: () => {
      state.history.splice(place, 1);
      showHistory();
      recommend();
    } });
    const entry = make("li", { title: item.title }, dots(item.semantic_id), make("span", { text: item.title, className: "name" }), cross);
    if (place < skipped) entry.classList.add("unread");
    return entry;
  }));
  lightTree();
  $("clear").hidden = !state.history.length;
  $("history-note").textContent = !state.history.length ? "Click items to add them, oldest first."
    : skipped ? `The model reads the last ${read}.` : "Oldest first; the last counts most.";
}

// Options ---------------------------------------------------------------------

const temperature = () => Number($("temperature").value) / 20;
const epsilon = () => Number($("epsilon").value) / 20;

function options() {
  const asked = { history: state.history.map((item) => item.item_id), k: Number($("k").value) };
  asked.exclude_history = $("exclude-history").checked;
  asked.exact = $("exact").checked;
  if (temperature() > 0) Object.assign(asked, { temperature: temperature(), seed: state.seed });
  if (epsilon() >= 0) asked.epsilon = epsilon();
  if (Object.keys(state.filters).length) asked.filter = state.filters;
  if (state.prefix.length) asked.prefix = state.prefix;
  return asked;
}

function showOptions() {
  // The two contradict each other: the one touched last wins.
  $("k-value").textContent = $("k").value;
  $("temperature-value").textContent = temperature() > 0 ? temperature().toFixed(2) : "off";
  $("epsilon-value").textContent = epsilon() >= 0 ? epsilon().toFixed(2) : "off";
  $("redraw").hidden = !(temperature() > 0);
}

function showPills() {
  const tag = (text, remove) => make("span", { className: "tag", text }, make("button", { text: "×", className: "cross", label: `Remove ${text}`, onclick: () => {
    remove();
    showPills();
    recommend();
  } }));
  const pills = Object.entries(state.filters).map(([field, wanted]) => {
    const values = Array.isArray(wanted) ? wanted.join(" or ")
      : `${wanted.min ?? "…"} to ${wanted.max ?? "…"}`;
    return tag(`${field}: ${values}`, () => delete state.filters[field]);
  });
  if (state.prefix.length) pills.push(tag(`Semantic ID begins ${state.prefix.join(" ")}`, () => { state.prefix = []; }));
  $("pills").replaceChildren(...pills);
}

function showField() {
  const field = $("field").value;
  const isRange = field === "price";
  $("range").hidden = !isRange;
  $("value").hidden = isRange;
  $("value").value = "";
  const values = (state.catalogue.fields[field] || { values: {} }).values;
  $("values").replaceChildren(...Object.entries(values).map(([value, count]) => {
    const option = make("option", { text: `${count} items` });
    option.value = value;
    return option;
  }));
}

function addFilter(event) {
  event.preventDefault();
  const field = $("field").value;
  if (field === "price") {
    const wanted = {};
    if ($("low").value !== "") wanted.min = Number($("low").value);
    if ($("high").value !== "") wanted.max = Number($("high").value);
    if (!Object.keys(wanted).length) return;
    state.filters[field] = wanted;
  } else {
    const value = $("value").value.trim();
    if (!value) return;
    state.filters[field] = [...new Set([...(state.filters[field] || []), value])];
    $("value").value = "";
  }
  showPills();
  recommend();
}

// Recommendations -------------------------------------------------------------

async function recommend() {
  const turn = ++state.asked;
  if (!state.catalogue) return;
  if (!state.history.length) {
    $("recommended").replaceChildren(make("li", { className: "empty", text: "Nothing to go by yet: add an item on the left, or see what is popular." },
      make("br"), make("button", { text: "Show what is popular", className: "quiet", onclick: () => ask(++state.asked) })));
    $("timing").textContent = $("note").textContent = "";
    state.recommended = [];
    lightTree();
    for (const id of ["beams", "contributions", "explained-note"]) $(id).replaceChildren();
    return;
  }
  await ask(turn);
}

async function ask(turn) {
  $("recommended").classList.add("stale");
  const start = performance.now();
  try {
    const answer = await call("/recommend", options());
    if (turn !== state.asked) return;
    tell("");
    show(answer);
    $("timing").textContent = `${Math.round(performance.now() - start)} ms · catalogue version ${answer.version}`;
    if (answer.version !== state.catalogue.version) loadCatalogue();
  } catch (error) {
    if (turn === state.asked) tellError(error);
  } finally {
    if (turn === state.asked) $("recommended").classList.remove("stale");
  }
}

// A probability from its logarithm, as people read it.
function chance(logProb) {
  const p = Math.exp(logProb);
  if (p >= 0.1) return `${(100 * p).toFixed(0)} %`;
  if (p >= 0.0005) return `${(100 * p).toPrecision(2)} %`;
  return `1 in ${Number((1 / p).toPrecision(2)).toLocaleString("en")}`;
}

// What turns a list's scores into logarithms of probabilities: with a dense head they are
// log p(Semantic ID) + w log p(item), and their weighted mean is what is shown.
const scoreScale = () => 1 / (1 + (state.catalogue ? state.catalogue.dense_weight : 0));

function show(answer) {
  state.recommended = answer.items.map((item) => item.item_id);
  lightTree();
  explain();
  const notes = [];
  if (answer.by === "popularity") notes.push("No known item in the history: these are the most popular ones.");
  if (answer.unknown_items.length) notes.push(`Not in the catalogue, left out: ${answer.unknown_items.slice(0, 5).join(", ")}.`);
  if (answer.by !== "popularity" && temperature() > 0) notes.push(`Drawn, in this order, at temperature ${temperature().toFixed(2)}: the percentages are chances at that temperature, among the items that pass the filters.`);
  $("note").textContent = notes.join(" ");
  if (!answer.items.length) {
    $("recommended").replaceChildren(make("li", { className: "empty", text: "No item passes these filters." }));
    return;
  }
  const isCount = answer.by === "popularity";
  const best = Math.max(...answer.items.map((item) => item.score)), isDrawn = temperature() > 0;
  const scale = isDrawn ? 1 : scoreScale();  // draws are by codes alone
  const meaning = scale < 1 ? "The probabilities of the Semantic ID and of the item, as one: their weighted geometric mean"
    : `Probability of the Semantic ID${isDrawn ? " at this temperature" : ""}`;
  $("recommended").replaceChildren(...answer.items.map((item, place) => {
    const what = make("span", { className: "what" }, make("b", { text: item.title }));
    if (item.is_new) what.append(make("span", { text: "new", className: "new" }));
    what.append(make("small", { text: item.category }));
    const fill = make("i");
    const share = isCount ? item.score / Math.max(best, 1) : Math.exp(scale * (item.score - best));
    fill.style.setProperty("--w", `${Math.max(2, 100 * share).toFixed(1)}%`);
    const score = make("span", { className: "score", text: isCount ? `${item.score}×` : chance(scale * item.score),
      title: isCount ? "Interactions in the training data" : `${meaning}; score ${item.score.toFixed(2)}; the bar compares it with the best` },
      make("span", { className: "bar" }, fill));
    return make("li", {}, make("span", { text: String(place + 1), className: "place" }), what, score,
      make("button", { text: "+", className: "add", label: `Add to the history: ${item.title}`, title: "Add to the history", onclick: () => add(item) }),
      chips(item.semantic_id, true));
  }));
}

// The tree and the search -----------------------------------------------------

let shownTree = null;

async function showTree() {
  $("show-tree").hidden = true;
  $("tree").replaceChildren(make("p", { className: "faint", text: "Loading …" }));
  try {
    shownTree = codeTree.show($("tree"), await call("/catalogue/tree"), {
      onPrefix: (prefix) => { state.prefix = prefix; showPills(); recommend(); $("recommended").scrollIntoView({ block: "center" }); },
      onItem: async (id) => add(await call(`/items/${encodeURIComponent(id)}`)),
    });
    window.shownTree = shownTree;
    lightTree();
  } catch (error) {
    $("tree").replaceChildren();
    $("show-tree").hidden = false;
    tellError(error);
  }
}

function lightTree() {
  if (shownTree) shownTree.light(state.history.map((item) => item.item_id), state.recommended || []);
}

// One explanation at a time, as the server gives them: what changes meanwhile is looked at after it.
async function explain() {
  state.explainAgain = true;
  if (state.isExplaining) return;
  state.isExplaining = true;
  while (state.explainAgain && $("explained").open) {
    state.explainAgain = false;
    await explainOnce();
  }
  state.isExplaining = false;
}

async function explainOnce() {
  const turn = state.asked;
  const { exact, temperature: _, seed, epsilon: __, ...asked } = options();
  const isOther = exact || temperature() > 0 || epsilon() >= 0;
  $("explained-note").textContent = "Searching once more, level by level …";
  try {
    const found = await call("/explain", asked);
    if (turn !== state.asked) return;
    $("explained-note").textContent = found.levels.length
      ? `${isOther ? "Of the search by beams, without temperature, ε and exact scoring. " : ""}Each level keeps the likeliest prefixes; the faint ones lead to no item of the list. Percentages are probabilities of the prefix${scoreScale() < 1 ? "; an item's, of its Semantic ID and of the item itself, as one" : ""}.`
      : "Nothing was searched: these are the most popular items.";
    drawBeams(found);
    showContributions(found);
  } catch (error) {
    if (error.code === "busy") {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      state.explainAgain = true;
    } else if (turn === state.asked) $("explained-note").textContent = error.message;
  }
}

function drawing(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawBeams(found) {
  const FAINT = 4, ROW = 26, TOP = 30, WIDTH = 900;
  if (!found.levels.length) { $("beams").replaceChildren(); return; }
  const items = found.answer.items.slice(0, 10);
  // What is shown of a level: whatever leads to an item shown, and the likeliest of the rest.
  const leads = (prefix) => items.some((item) => prefix.every((codeword, i) => item.semantic_id[i] === codeword));
  const levels = found.levels.map((beams) => {
    const on = beams.filter((beam) => leads(beam.prefix)), off = beams.filter((beam) => !leads(beam.prefix)).slice(0, FAINT);
    return [...on, ...off].map((beam) => ({ key: beam.prefix.join(), above: beam.prefix.slice(0, -1).join(), isOn: on.includes(beam), text: `${beam.prefix.at(-1)}`, p: beam.log_prob }));
  });
  levels.push(items.map((item) => ({ key: item.semantic_id.join(), above: item.semantic_id.slice(0, -1).join(), isOn: true, text: item.title, p: scoreScale() * item.score })));
  const places = [new Map([["", 0]])];
  for (const level of levels) {
    level.sort((a, b) => (places.at(-1).get(a.above) ?? 1e9) - (places.at(-1).get(b.above) ?? 1e9) || b.p - a.p);
    places.push(new Map(level.map((node, i) => [node.key, i])));
  }
  const rows = Math.max(...levels.map((level) => level.length));
  const height = TOP + rows * ROW + 6, narrow = 118, gap = 34;
  const x = (depth) => depth * (narrow + gap);
  const y = (depth, i) => TOP + ((rows - levels[depth].length) / 2 + i) * ROW;
  const svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": "Prefixes kept at each level and the items they end in" });
  levels.forEach((level, depth) => {
    const width = depth === levels.length - 1 ? WIDTH - x(depth) - 2 : narrow;
    const kept = depth < found.levels.length ? found.levels[depth].length : found.answer.items.length;
    const head = drawing("text", { x: x(depth), y: 14, class: "head" });
    head.textContent = depth < found.levels.length ? `level ${depth}: ${kept} kept` : "items";
    svg.append(head);
    level.forEach((node, i) => {
      const at = y(depth, i), above = depth ? places[depth].get(node.above) : undefined;
      if (above !== undefined) {
        const from = y(depth - 1, above) + 10, start = x(depth) - gap;
        svg.append(drawing("path", { d: `M${start} ${from}C${start + gap / 2} ${from} ${start + gap / 2} ${at + 10} ${x(depth)} ${at + 10}`, class: node.isOn ? "on" : "off", "stroke-width": (0.8 + 5 * Math.exp(node.p - levels[depth].reduce((m, n) => Math.max(m, n.p), -1e9))).toFixed(1) }));
      }
      const text = drawing("text", { x: x(depth) + 7, y: at + 14.5 }), score = drawing("text", { x: x(depth) + width - 7, y: at + 14.5, "text-anchor": "end" });
      const most = Math.floor((width - 24) / 6.4) - chance(node.p).length;
      text.textContent = node.text.length > most ? `${node.text.slice(0, most - 1)}…` : node.text;
      score.textContent = chance(node.p);
      const title = drawing("title", {});
      title.textContent = `${node.key.replace(/,/g, " ")}: ${node.text}`;
      svg.append(drawing("g", { class: node.isOn ? "on" : "off" }, drawing("rect", { x: x(depth), y: at, width, height: 21, rx: 5 }), text, score, title));
    });
  });
  $("beams").replaceChildren(svg);
}

function showContributions(found) {
  if (!found.contributions.length) { $("contributions").replaceChildren(); return; }
  const titles = new Map(state.history.map((item) => [item.item_id, item.title]));
  const short = (x) => x < 10 ? x.toPrecision(2) : Number(x.toPrecision(2)).toLocaleString("en");
  const factor = (x) => `${x >= 0 ? "×" : "÷"}${short(Math.exp(scoreScale() * Math.abs(x)))}`;
  const head = make("tr", {}, make("th", { text: "How many times likelier with this item in the history than without" }), ...found.history.map((id) => make("th", { text: titles.get(id) || id })));
  const rows = found.answer.items.slice(0, 10).map((item, i) => make("tr", {}, make("td", { text: item.title }), ...found.contributions[i].map((x) => {
    const cell = make("td", { text: factor(x) });
    const strength = Math.min(45, 18 * scoreScale() * Math.abs(x)).toFixed(0);
    cell.style.background = `color-mix(in srgb, ${x >= 0 ? "var(--accent)" : "hsl(210 70% 50%)"} ${strength}%, transparent)`;
    return cell;
  })));
  $("contributions").replaceChildren(make("table", {}, head, ...rows));
}

// Start -----------------------------------------------------------------------

async function loadCatalogue() {
  const catalogue = await call("/catalogue");
  state.catalogue = catalogue;
  $("k").max = catalogue.most_k;
  const levels = catalogue.codebook_sizes.join(" × ");
  const unseen = catalogue.num_new ? `, ${catalogue.num_new.toLocaleString("en")} of them new to the model` : "";
  $("facts").textContent = `${catalogue.num_items.toLocaleString("en")} items${unseen} · Semantic IDs of ${levels} codewords · catalogue version ${catalogue.version}`;
  const before = $("field").value;
  $("field").replaceChildren(...Object.keys(catalogue.fields).map((field) => {
    const option = make("option", { text: field });
    option.value = field;
    return option;
  }));
  if (before in catalogue.fields) $("field").value = before;
  showField();
}

async function start() {
  try {
    await loadCatalogue();
    $("token-form").hidden = true;
    tell("");
    search();
    showHistory();
    await waitUntilReady();
    recommend();
  } catch (error) {
    tellError(error);
  }
}

async function waitUntilReady() {
  for (;;) {
    try {
      await call("/readyz");
      tell("");
      return;
    } catch (error) {
      if (error.code !== "compiling") throw error;
      tell("The server is compiling its searches; recommendations come in a moment.", true);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function debounced(action, milliseconds) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(action, milliseconds); };
}

const recommendSoon = debounced(recommend, 200);
$("show-tree").addEventListener("click", showTree);
$("explained").addEventListener("toggle", explain);
$("query").addEventListener("input", debounced(() => search(), 150));
$("more").addEventListener("click", () => search(state.found));
$("clear").addEventListener("click", () => { state.history = []; showHistory(); recommend(); });
$("field").addEventListener("change", showField);
$("filter-form").addEventListener("submit", addFilter);
$("redraw").addEventListener("click", () => { state.seed = (state.seed + 1) % 2 ** 32; recommend(); });
$("exact").addEventListener("change", () => { if ($("exact").checked) $("temperature").value = 0; showOptions(); recommend(); });
$("exclude-history").addEventListener("change", recommend);
$("temperature").addEventListener("input", () => { if (temperature() > 0) $("exact").checked = false; });
for (const id of ["k", "temperature", "epsilon"]) $(id).addEventListener("input", () => { showOptions(); recommendSoon(); });
$("token-form").addEventListener("submit", (event) => { event.preventDefault(); state.token = $("token").value.trim(); start(); });
showOptions();
start();
