// The tree of Semantic IDs: an icicle to zoom into, its items, and a map of the catalogue.
const codeTree = (() => {
  const NONE = 0xffff, ITEMS_SHOWN = 60, CHILDREN_SHOWN = 48, MAP_HEIGHT = 420;

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const numbers = (Kind, text) => new Kind(bytes(text).buffer);

  async function unpack(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  // Arrays and nodes: level l's node i holds the items starts[l][i] ... starts[l][i + 1] - 1.
  function read(packed) {
    const tree = { ...packed, n: packed.num_items };
    tree.codes = numbers(Math.max(...packed.sizes) > 65536 ? Uint32Array : Uint16Array, packed.codes);
    tree.category = numbers(Uint16Array, packed.category);
    tree.counts = numbers(Uint32Array, packed.counts);
    tree.places = packed.places && numbers(Int16Array, packed.places);
    tree.starts = [];
    for (let level = 0; level < tree.levels; level++) {
      const starts = [0];
      for (let i = 1; i < tree.n; i++) {
        for (let l = 0; l <= level; l++) {
          if (tree.codes[i * tree.length + l] !== tree.codes[(i - 1) * tree.length + l]) { starts.push(i); break; }
        }
      }
      starts.push(tree.n);
      tree.starts.push(Int32Array.from(starts));
    }
    // The last column: each item is a node.
    tree.starts.push(Int32Array.from({ length: tree.n + 1 }, (_, i) => i));
    tree.main = []; tree.purity = [];
    const seen = new Int32Array(tree.categories.length + 1);
    for (const starts of tree.starts) {
      const main = new Uint16Array(starts.length - 1), purity = new Float32Array(starts.length - 1);
      for (let node = 0; node < main.length; node++) {
        let best = NONE, most = 0;
        for (let i = starts[node]; i < starts[node + 1]; i++) {
          const c = tree.category[i];
          if (c !== NONE && ++seen[c] > most) { most = seen[c]; best = c; }
        }
        for (let i = starts[node]; i < starts[node + 1]; i++) if (tree.category[i] !== NONE) seen[tree.category[i]] = 0;
        main[node] = best;
        purity[node] = most / (starts[node + 1] - starts[node]);
      }
      tree.main.push(main); tree.purity.push(purity);
    }
    tree.position = new Map(tree.ids.map((id, i) => [id, i]));
    return tree;
  }

  // The last index of a rising array whose value is at most x.
  function find(array, x) {
    let low = 0, high = array.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (array[middle] <= x) low = middle; else high = middle - 1;
    }
    return low;
  }

  function element(tag, className, text, children = []) {
    const made = document.createElement(tag);
    if (tag === "button") made.type = "button";
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    made.append(...children);
    return made;
  }

  // Builds it in a container. `onPrefix(codes)` recommends below a prefix; `onItem(id)` takes an item.
  function show(container, packed, { onPrefix, onItem } = {}) {
    const tree = read(packed);
    const state = { level: -1, node: 0, hover: null, lit: { found: [], history: [], recommended: [] } };
    const style = (name) => getComputedStyle(container).getPropertyValue(name).trim();

    const query = element("input"); query.type = "search"; query.placeholder = "Light up titles"; query.setAttribute("aria-label", "Light up items by title");
    const choose = (label, options) => {
      const select = element("select", "", undefined, options.map((o) => { const made = element("option", "", o); made.value = o; return made; }));
      const wrapped = element("label", "", `${label} `, [select]);
      return [select, wrapped];
    };
    const [size, sizeLabel] = choose("size", ["items", "interactions"]);
    const [color, colorLabel] = choose("colour", tree.categories.some(Boolean) ? ["category", "purity"] : ["codeword"]);
    const path = element("nav", "tree-path"); path.setAttribute("aria-label", "Prefix shown");
    const canvas = element("canvas", "tree-canvas"); canvas.tabIndex = 0; canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Tree of Semantic IDs; arrow keys walk through it, the list beside it has the same nodes as buttons");
    const tip = element("div", "tree-tip"); tip.hidden = true;
    const said = element("p", "faint tree-said"); said.setAttribute("role", "status");
    const side = element("div", "tree-side");
    const frame = element("div", "tree-frame", undefined, [canvas, tip]);
    container.replaceChildren(element("div", "tree-bar", undefined, [query, sizeLabel, colorLabel]), path, said, element("div", "tree-body", undefined, [frame, side]));
    const first = tree.grouped ? "group of first codewords" : "first codeword";
    let map = null, mapNote = null;
    if (tree.places) {
      map = element("canvas", "tree-map"); map.setAttribute("role", "img");
      map.setAttribute("aria-label", `Map of the catalogue: each dot is an item, coloured by its ${first}`);
      mapNote = element("p", "faint", `A map of the catalogue: the two main directions of the items' vectors, coloured by ${first}. Rings: what is lit, the history, what is recommended.`);
      container.append(element("h3", "", "The catalogue as a map"), mapNote, map);
    }

    let weights;
    function weigh() {
      weights = new Float64Array(tree.n + 1);
      for (let i = 0; i < tree.n; i++) weights[i + 1] = weights[i] + (size.value === "items" ? 1 : tree.counts[i] + 0.5);
    }
    const range = (level, node) => level < 0 ? [0, tree.n] : [tree.starts[level][node], tree.starts[level][node + 1]];
    // Codewords alone: a group of first codewords, which may lead, is no part of an ID.
    const lead = tree.grouped ? 1 : 0;
    function prefix(level, node) {
      const at = range(level, node)[0] * tree.length;
      return level < 0 ? [] : [...tree.codes.slice(at + lead, at + Math.min(level + 1, tree.length))];
    }
    const isGroup = (level) => lead === 1 && level === 0;
    const called = (level, node) => isGroup(level) ? label(level, node) || `group ${node}` : `${prefix(level, node).at(-1)}  ${label(level, node)}`;
    const isItem = (level) => level === tree.levels;
    const nodeOf = (level, item) => find(tree.starts[level], item);
    function label(level, node) {
      const [begin, end] = range(level, node);
      if (level < 0) return "all items";
      return end - begin === 1 ? tree.titles[begin] : tree.labels[level] ? tree.labels[level][node] : "";
    }
    const hue = (number) => (number * 137.508) % 360;
    const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
    function fill(level, node, isFaint) {
      const dark = isDark(), faded = isFaint ? 0.16 : 1;
      const purity = tree.purity[level][node];
      if (color.value === "purity") return `hsl(18 ${30 + 55 * purity}% ${dark ? 18 + 40 * purity : 96 - 46 * purity}% / ${faded})`;
      const main = color.value === "codeword" ? tree.codes[range(level, node)[0] * tree.length] : tree.main[level][node];
      if (main === NONE) return `hsl(0 0% ${dark ? 30 : 82}% / ${faded})`;
      return `hsl(${hue(main)} ${18 + 46 * purity}% ${dark ? 36 : 74}% / ${faded})`;
    }

    let litSums = null;
    function light() {
      const on = new Uint8Array(tree.n);
      for (const items of Object.values(state.lit)) for (const i of items) on[i] = 1;
      litSums = on.some((x) => x) ? new Int32Array(tree.n + 1) : null;
      if (litSums) for (let i = 0; i < tree.n; i++) litSums[i + 1] = litSums[i] + on[i];
    }
    const isLit = (begin, end) => !litSums || litSums[end] > litSums[begin];

    function sized(target, height) {
      const width = target.clientWidth || 600, scale = Math.min(2, devicePixelRatio || 1);
      if (target.width !== Math.round(width * scale) || target.height !== Math.round(height * scale)) {
        target.width = Math.round(width * scale); target.height = Math.round(height * scale);
      }
      const pen = target.getContext("2d");
      pen.setTransform(scale, 0, 0, scale, 0, 0);
      pen.clearRect(0, 0, width, height);
      return [pen, width, height];
    }

    // The text, or as much of it as a width has room for.
    function shorten(pen, text, width) {
      const all = pen.measureText(text).width;
      if (all <= width) return text;
      let length = Math.floor(text.length * width / all);
      while (length > 0 && pen.measureText(`${text.slice(0, length)}…`).width > width) length--;
      return length > 0 ? `${text.slice(0, length).replace(/[\s·]+$/, "")}…` : "";
    }

    // Where a column's nodes lie: x, width, and the weights shown from top to bottom.
    function layout(width) {
      const [begin, end] = range(state.level, state.node);
      const columns = tree.levels + 1;
      return { low: weights[begin], high: weights[end], columnWidth: width / columns, columns };
    }

    function draw() {
      const [pen, width, height] = sized(canvas, canvas.clientHeight || 460);
      const { low, high, columnWidth, columns } = layout(width);
      const y = (weight) => (weight - low) / (high - low) * height;
      pen.font = "12px system-ui, sans-serif"; pen.textBaseline = "middle";
      const ink = style("--ink"), labels = [];
      for (let level = 0; level < columns; level++) {
        const starts = tree.starts[level], x = level * columnWidth;
        let node = find(starts, find(weights, low + 1e-9)), drawn = -1;
        const last = starts.length - 1;
        while (node < last && weights[starts[node]] < high) {
          const top = Math.max(0, y(weights[starts[node]])), bottom = Math.min(height, y(weights[starts[node + 1]]));
          const lit = isLit(starts[node], starts[node + 1]);
          if (bottom - drawn >= 0.8 || (litSums && lit && bottom - top > 0.05)) {
            pen.fillStyle = fill(level, node, !lit);
            const tall = Math.max(bottom - top - (bottom - top > 3 ? 1 : 0), litSums && lit ? 1.5 : 0.8);
            pen.fillRect(x, top, columnWidth - 2, tall);
            drawn = bottom;
            if (bottom - top >= 13) {
              const text = isItem(level) ? tree.titles[starts[node]] : called(level, node);
              labels.push([shorten(pen, text, columnWidth - 12), x + 5, (top + bottom) / 2, lit ? ink : style("--faint"), pen.fillStyle]);
            }
            node++;
          } else {
            // What is thinner than a pixel is passed over, to the node at the next one.
            const next = find(starts, find(weights, low + (drawn + 0.8) / height * (high - low)));
            node = litSums ? node + 1 : Math.max(node + 1, next);
          }
        }
      }
      for (const [kind, items] of Object.entries(state.lit)) {
        pen.strokeStyle = kind === "recommended" ? style("--accent") : ink;
        pen.lineWidth = kind === "found" ? 1 : 1.8;
        for (const item of items.slice(0, 400)) {
          if (weights[item] < low || weights[item] >= high) continue;
          // Up and down between the columns, where no label stands.
          pen.beginPath();
          for (let level = 0; level < columns; level++) {
            const [begin, end] = range(level, nodeOf(level, item));
            const middle = Math.min(height, Math.max(0, (Math.max(0, y(weights[begin])) + Math.min(height, y(weights[end]))) / 2));
            if (level) pen.lineTo(level * columnWidth - 1, middle); else pen.moveTo(columnWidth / 2, middle);
            pen.lineTo((level + (level === columns - 1 ? 0.5 : 1)) * columnWidth - 1, middle);
          }
          pen.globalAlpha = kind === "found" ? 0.35 : 0.9; pen.stroke(); pen.globalAlpha = 1;
        }
      }
      for (const [text, x, middle, color, ground] of labels) {
        pen.fillStyle = ground;
        if (litSums && color === ink) pen.fillRect(x - 2, middle - 7, pen.measureText(text).width + 4, 13);
        pen.fillStyle = color;
        pen.fillText(text, x, middle);
      }
      if (state.hover) {
        const [level, node] = state.hover, [begin, end] = range(level, node);
        pen.strokeStyle = ink; pen.lineWidth = 2;
        const top = Math.max(1, y(weights[begin])), bottom = Math.min(height - 1, y(weights[end]));
        pen.strokeRect(level * columnWidth + 1, top, columnWidth - 4, Math.max(2, bottom - top));
      }
    }

    function drawMap() {
      if (!map) return;
      const [pen, width, height] = sized(map, MAP_HEIGHT);
      const at = (i) => [(tree.places[2 * i] / 32767 * 0.48 + 0.5) * width, (0.5 - tree.places[2 * i + 1] / 32767 * 0.48) * height];
      const dot = tree.n > 20000 ? 1.2 : tree.n > 3000 ? 2 : tree.n > 600 ? 3.2 : 5, dark = isDark();
      for (let i = 0, before = NaN; i < tree.n; i++) {
        const [x, y] = at(i), code = tree.codes[i * tree.length], lit = isLit(i, i + 1);
        if (before !== (before = 2 * code + lit)) pen.fillStyle = `hsl(${hue(code)} 60% ${dark ? 62 : 46}% / ${lit ? 0.75 : 0.22})`;
        pen.fillRect(x - dot / 2, y - dot / 2, dot, dot);
      }
      for (const [kind, items] of Object.entries(state.lit)) {
        pen.strokeStyle = kind === "recommended" ? style("--accent") : style("--ink");
        pen.lineWidth = kind === "found" ? 1 : 2;
        for (const i of items.slice(0, 2000)) {
          const [x, y] = at(i);
          pen.beginPath(); pen.arc(x, y, kind === "found" ? 3 : kind === "history" ? 6 : 5, 0, 7); pen.stroke();
        }
      }
    }

    // The map, a dot for each item, stays as it is while one walks through the tree.
    let due = false, isMapDue = false;
    function redraw(withMap = false) {
      isMapDue ||= withMap;
      if (due) return;
      due = true;
      requestAnimationFrame(() => {
        due = false;
        draw();
        if (isMapDue) drawMap();
        isMapDue = false;
      });
    }

    function describe(level, node) {
      const [begin, end] = range(level, node);
      let interactions = 0;
      for (let i = begin; i < end; i++) interactions += tree.counts[i];
      const purity = level < 0 || tree.main[level][node] === NONE ? "" : ` · ${Math.round(100 * tree.purity[level][node])} % ${tree.categories[tree.main[level][node]]}`;
      return `${(end - begin).toLocaleString("en")} ${end - begin === 1 ? "item" : "items"} · ${interactions.toLocaleString("en")} interactions${purity}`;
    }

    function crumb(level, node) {
      const made = element("button", "quiet", level < 0 ? "all" : isGroup(level) ? called(level, node) : `${prefix(level, node).at(-1)}`);
      made.title = label(level, node);
      made.addEventListener("click", () => go(level, node));
      return made;
    }

    // Without sorting all of them.
    function bestKnown(begin, end) {
      const kept = [];
      for (let i = begin; i < end; i++) {
        const count = tree.counts[i];
        if (kept.length === ITEMS_SHOWN && count <= tree.counts[kept.at(-1)]) continue;
        let place = kept.length;
        while (place && tree.counts[kept[place - 1]] < count) place--;
        kept.splice(place, 0, i);
        kept.length = Math.min(kept.length, ITEMS_SHOWN);
      }
      return kept;
    }

    function showSide() {
      const { level, node } = state, [begin, end] = range(level, node);
      const trail = [crumb(-1, 0)];
      for (let l = 0; l <= level; l++) trail.push(element("span", "faint", "›"), crumb(l, nodeOf(l, begin)));
      path.replaceChildren(...trail);
      const codewords = prefix(level, node);
      const heading = level < 0 ? "All items" : label(level, node) || (isGroup(level) ? called(level, node) : `Prefix ${codewords.join(" ")}`);
      const parts = [element("h3", "", heading), element("p", "faint", `${codewords.length ? `(${codewords.join(", ")}${level < tree.levels - 1 ? ", …" : ""}) · ` : ""}${describe(level, node)}`)];
      if (onPrefix && codewords.length) {
        const below = element("button", "strong", "Recommend below this prefix");
        below.dataset.action = "prefix";
        below.addEventListener("click", () => onPrefix(codewords));
        parts.push(below);
      }
      if (level + 1 < tree.levels) {
        const first = nodeOf(level + 1, begin), last = nodeOf(level + 1, end - 1);
        const children = Array.from({ length: last - first + 1 }, (_, i) => first + i).sort((a, b) => {
          const of = (c) => weights[range(level + 1, c)[1]] - weights[range(level + 1, c)[0]];
          return of(b) - of(a);
        });
        const list = element("ul", "tree-children", undefined, children.slice(0, CHILDREN_SHOWN).map((child) => {
          const code = isGroup(level + 1) ? "" : `${prefix(level + 1, child).at(-1)} `;
          const button = element("button", "", code, [element("span", "faint", label(level + 1, child) || (code ? "" : called(level + 1, child)))]);
          button.addEventListener("click", () => go(level + 1, child));
          return element("li", "", undefined, [button]);
        }));
        parts.push(element("h4", "", `${children.length} ${isGroup(level + 1) ? "groups of first codewords" : "prefixes"} below, the largest first`), list);
      }
      parts.push(element("h4", "", "Its items, the best known first"));
      parts.push(element("ol", "tree-items", undefined, bestKnown(begin, end).map((i) => {
        const text = [element("span", "", tree.titles[i]), element("small", "", ` ${tree.category[i] === NONE ? "" : tree.categories[tree.category[i]]}`)];
        if (!onItem) return element("li", "", undefined, text);
        const take = element("button", "quiet", undefined, text);
        take.title = "Add to the history";
        take.addEventListener("click", () => onItem(tree.ids[i]));
        return element("li", "", undefined, [take]);
      })));
      side.replaceChildren(...parts);
      // For ears alone: eyes have it beside the tree.
      said.classList.add("unseen");
      said.textContent = level < 0 ? "" : `${codewords.length ? `Prefix ${codewords.join(" ")}` : "Group"}: ${label(level, node)}; ${describe(level, node)}`;
    }

    function go(level, node) {
      // An item is shown within its node.
      if (level === tree.levels) { const item = node; level = tree.levels - 1; node = nodeOf(level, item); }
      Object.assign(state, { level, node, hover: null });
      showSide();
      redraw();
    }

    function under(event) {
      const box = canvas.getBoundingClientRect();
      const { low, high, columnWidth, columns } = layout(box.width);
      const level = Math.floor((event.clientX - box.left) / columnWidth);
      if (level < 0 || level >= columns) return null;
      const weight = low + Math.min(0.999999, Math.max(0, (event.clientY - box.top) / box.height)) * (high - low);
      return [level, nodeOf(level, Math.min(tree.n - 1, find(weights, weight)))];
    }

    function point(event) {
      const at = under(event);
      if (!at) return;
      state.hover = at;
      const [begin, end] = range(...at);
      const titles = Array.from({ length: Math.min(3, end - begin) }, (_, i) => tree.titles[begin + i]);
      tip.replaceChildren(element("b", "", isGroup(at[0]) ? called(...at) : `${prefix(...at).join(" ")}  ${label(...at)}`), element("div", "faint", describe(...at)), ...(end - begin > 1 ? titles.map((t) => element("div", "", t)) : []));
      tip.hidden = false;
      const box = frame.getBoundingClientRect();
      const left = event.clientX - box.left, top = event.clientY - box.top;
      tip.style.left = `${Math.max(0, Math.min(left + 14, box.width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${Math.max(0, Math.min(top + 14, box.height - tip.offsetHeight - 4))}px`;
      redraw();
    }
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; state.hover = null; redraw(); });
    canvas.addEventListener("click", (event) => {
      const at = under(event);
      if (!at) return;
      // Clicked again, a node that is shown whole gives way to what is above it.
      if (at[0] === state.level && at[1] === state.node) go(state.level - 1, state.level ? nodeOf(state.level - 1, range(...at)[0]) : 0);
      else go(...at);
    });
    canvas.addEventListener("keydown", (event) => {
      const { level, node } = state, [begin] = range(level, node);
      const moves = {
        ArrowRight: () => level + 1 < tree.levels && go(level + 1, nodeOf(level + 1, begin)),
        ArrowLeft: () => level >= 0 && go(level - 1, level ? nodeOf(level - 1, begin) : 0),
        ArrowDown: () => level >= 0 && node + 2 < tree.starts[level].length && go(level, node + 1),
        ArrowUp: () => level >= 0 && node > 0 && go(level, node - 1),
      };
      if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
    });
    query.addEventListener("input", () => {
      const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
      state.lit.found = words.length ? tree.titles.flatMap((t, i) => words.every((w) => t.toLowerCase().includes(w)) ? [i] : []) : [];
      said.classList.remove("unseen");
      said.textContent = words.length ? `${state.lit.found.length.toLocaleString("en")} items lit up` : "";
      light(); redraw(true);
    });
    size.addEventListener("change", () => { weigh(); showSide(); redraw(); });
    color.addEventListener("change", () => redraw());
    new ResizeObserver(() => redraw(true)).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(true));
    weigh(); showSide(); redraw(true);
    return {
      tree, state, go,
      light(history, recommended) {
        const known = (ids) => ids.map((id) => tree.position.get(id)).filter((i) => i !== undefined);
        Object.assign(state.lit, { history: known(history), recommended: known(recommended) });
        light(); redraw(true);
      },
    };
  }
  return { show, unpack };
})();
