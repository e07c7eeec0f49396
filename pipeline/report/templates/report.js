"use strict";
// The script of our pages: number formats, tables, plots, the slider. Without it, headline and short tables show.
const page = JSON.parse(document.getElementById("data").textContent);
const { texts, marks } = page;
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const el = (tag, properties = {}, ...children) => {
  const { data, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
};

// Numbers, as language.py writes them

const decimal = (value, digits) => {
  const [whole, part] = Math.abs(value).toFixed(digits).split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, marks.thousands);
  return (value < 0 ? "−" : "") + grouped + (part ? marks.decimal + part : "");
};
const percent = value =>
  value > 0 && value < 0.0005 ? `<${decimal(0.1, 1)}${marks.percent}`
  : value >= 0.9995 && value < 1 ? `>${decimal(99.9, 1)}${marks.percent}`
  : decimal(100 * value, 1) + marks.percent;
const significant = value => String(Number(value.toPrecision(4))).replace(".", marks.decimal);
const points = value => (value > 0 ? "+" : "") + decimal(100 * value, 1);
const yes = value => value ? texts.yes : texts.no;
const FORMATS = {
  count: value => decimal(value, 0), tenth: value => decimal(value, 1), percent, number: significant, points,
  target: value => String(Number((100 * value).toPrecision(6))).replace(".", marks.decimal) + marks.percent,
  interval: ([low, high]) => `${decimal(100 * low, 1)}–${decimal(100 * high, 1)}${marks.percent}`,
  points_interval: ([low, high]) => `${points(low)} … ${points(high)}`,
  p: value => value < 0.0001 ? "<" + decimal(0.0001, 4) : decimal(value, 4),
  status: value => page.statuses[value], flag: yes, name: String, text: String, code: String, figure: String,
};
const format = (kind, value) => value === null || value === undefined ? "–" : FORMATS[kind](value);
const NUMBERS = new Set(["count", "number", "percent", "target", "points", "signed", "interval", "points_interval", "p", "tenth", "figure"]);
const PICTURES = new Set(["photo", "curve"]);

// Cells

const photo = number => {
  const picture = el("img", { loading: "lazy", className: "photo" });
  picture.dataset.photo = number;
  show(picture);
  return picture;
};
// The photo, or where the network looked in it
let maps = false;
const show = picture => {
  const number = picture.dataset.photo, map = maps && page.maps[number];
  picture.alt = fill(map ? texts.photo_map : texts.photo, { product: page.photo_ids[number] });
  picture.src = "data:image/webp;base64," + (map || page.photos[number]);
};
const toggles = document.querySelectorAll(".maps input");
for (const toggle of toggles) {
  toggle.closest("p").hidden = false;
  toggle.onchange = () => {
    maps = toggle.checked;
    for (const other of toggles) other.checked = maps;
    for (const picture of document.querySelectorAll("img[data-photo]")) show(picture);
  };
}
const curve = (values, width, height) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const at = values.map((value, index) => [2 + index * (width - 4) / (values.length - 1), 2 + (100 - value) * (height - 4) / 100]);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", values.map(value => value + marks.percent).join(", "));
  const [x, y] = at[at.length - 1];
  svg.innerHTML = `<line x1="0" x2="${width}" y1="${height - 2}" y2="${height - 2}" stroke="#c9d3dc"/>
    <polyline points="${at.map(point => point.map(number => number.toFixed(1)).join()).join(" ")}" fill="none" stroke="#0063a0" stroke-width="1.5"/>
    <circle cx="${x}" cy="${y}" r="2" fill="#0063a0"/>`;
  return svg;
};
const cell = (kind, value, head) => {
  const made = el(head ? "th" : "td", { className: NUMBERS.has(kind) ? "n" : kind });
  if (head) made.scope = "row";
  if (kind === "name" || kind === "code") made.translate = false;
  if (value === null || value === undefined) made.append("–");
  else if (kind === "photo") made.append(photo(value));
  else if (kind === "curve") made.append(curve(value, 72, 26));
  else made.append(format(kind, value));
  return made;
};

// CSV: numbers as numbers, texts in quotation marks where needed, in the separators of the language's spreadsheets

const csvText = value => /["\r\n]/.test(value) || value.includes(marks.cells) ? `"${value.replaceAll('"', '""')}"` : value;
const csvNumber = value => String(value).replace(".", marks.decimal);
const csvCells = (kind, value) => {
  if (kind.endsWith("interval")) return value === null ? ["", ""] : value.map(csvNumber);
  if (value === null || value === undefined) return [""];
  return [typeof value === "number" ? csvNumber(value) : csvText(format(kind, value))];
};
const csv = table => {
  const chosen = table.columns.map((column, index) => [index, column]).filter(([, column]) => !PICTURES.has(column.kind));
  const titles = chosen.flatMap(([, { title, kind }]) =>
    kind.endsWith("interval") ? [`${title}, ${texts.lower}`, `${title}, ${texts.upper}`] : [title]);
  const lines = table.rows.map(row => chosen.flatMap(([index, { kind }]) => csvCells(kind, row[index])).join(marks.cells));
  return "\ufeff" + [titles.map(csvText).join(marks.cells), ...lines].join("\r\n") + "\r\n";
};
const csvButton = (name, table) => {
  const button = el("button", { type: "button", textContent: texts.csv, className: "csv" });
  button.setAttribute("aria-label", `${texts.csv}: ${table.title}`);
  button.onclick = () => {
    const link = el("a", { href: URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" })), download: `${page.run}-${name}.csv` });
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return button;
};

// Tables

const TREE = " / ";
const MOST_ADDED = 1000; // rows at once: thousands more take a browser seconds
const key = (kind, value) => value === null || value === undefined ? null
  : kind.endsWith("interval") ? value[0]
  : kind === "curve" ? value[value.length - 1]
  : typeof value === "number" ? value
  : typeof value === "boolean" ? Number(value) : format(kind, value);
const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, document.documentElement.lang) : a - b;

class PagedTable {
  constructor(name, block, table) {
    Object.assign(this, { name, block, table, shown: table.shown, query: "", branch: [], value: "" });
    [this.column, this.descending] = table.sort || [null, false];
    const textual = table.columns.map((column, index) => [column.kind, index]).filter(([kind]) => ["name", "code", "text", "status"].includes(kind));
    this.texts = table.rows.map(row => textual.map(([kind, index]) => format(kind, row[index])).join("\n").toLowerCase());
    this.order = table.rows.map((_, index) => index);
    this.body = el("tbody");
    this.status = el("span", { className: "soft" });
    this.status.setAttribute("role", "status");
    block.append(this.tools(), this.frame(), this.foot());
    this.show();
  }
  tools() {
    const find = el("input", { type: "search" });
    find.oninput = () => { this.query = find.value.trim().toLowerCase(); this.show(); };
    const bar = el("div", { className: "tools" }, el("label", {}, `${texts.find} `, find));
    if (this.table.tree !== null) bar.append(this.branches = el("span", { className: "branches" }));
    if (this.table.filter !== null) bar.append(this.values());
    this.drawBranches();
    bar.append(csvButton(this.name, this.table), this.status);
    return bar;
  }
  values() {
    const index = this.table.filter, kind = this.table.columns[index].kind;
    const select = el("select", {}, el("option", { value: "", textContent: texts.everything }));
    for (const value of new Set(this.table.rows.map(row => row[index]))) select.append(el("option", { value, textContent: format(kind, value) }));
    select.onchange = () => { this.value = select.value; this.show(); };
    return el("label", {}, `${texts.status} `, select);
  }
  // One list for each level of the tree, down to the branch that is chosen
  drawBranches() {
    if (this.table.tree === null) return;
    const paths = this.table.rows.map(row => row[this.table.tree].split(TREE));
    this.branches.replaceChildren();
    for (let level = 0; level <= this.branch.length; level++) {
      const inside = paths.filter(path => path.length > level + 1 && this.branch.slice(0, level).every((name, at) => path[at] === name));
      const names = [...new Set(inside.map(path => path[level]))].sort(compare);
      if (!names.length) return;
      const select = el("select", { translate: false }, el("option", { value: "", textContent: texts.everything }), ...names.map(name => el("option", { value: name, textContent: name })));
      select.value = this.branch[level] ?? "";
      select.onchange = () => {
        this.branch = [...this.branch.slice(0, level), ...(select.value ? [select.value] : [])];
        this.drawBranches();
        this.branches.querySelectorAll("select")[level].focus();
        this.show();
      };
      this.branches.append(el("label", {}, `${fill(texts.branch, { level: level + 1 })} `, select));
    }
  }
  frame() {
    const row = el("tr");
    this.heads = this.table.columns.map(({ title, kind }, index) => {
      const head = el("th", { className: NUMBERS.has(kind) ? "n" : kind, scope: "col" });
      if (PICTURES.has(kind)) head.append(title);
      else {
        const button = el("button", { type: "button", textContent: title });
        button.onclick = () => this.sortBy(index);
        head.append(button);
      }
      row.append(head);
      return head;
    });
    const region = el("div", { className: "wide", tabIndex: 0 }, el("table", { className: "paged" }, el("thead", {}, row), this.body));
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", this.table.title);
    return region;
  }
  foot() {
    this.more = el("button", { type: "button" });
    this.all = el("button", { type: "button" });
    this.fewer = el("button", { type: "button", textContent: texts.fewer });
    this.more.onclick = () => { this.shown += 100; this.show(); };
    this.all.onclick = () => { this.shown += MOST_ADDED; this.show(); };
    this.fewer.onclick = () => { this.shown = this.table.shown; this.show(); };
    return el("div", { className: "tools" }, this.more, this.all, this.fewer);
  }
  sortBy(column) {
    const first = NUMBERS.has(this.table.columns[column].kind);
    this.descending = this.column === column ? !this.descending : first;
    this.column = column;
    this.shown = Math.min(this.shown, MOST_ADDED);
    const { kind } = this.table.columns[column], sign = this.descending ? -1 : 1;
    const keys = this.table.rows.map(row => key(kind, row[column]));
    this.order.sort((a, b) => keys[a] === null || keys[b] === null ? (keys[a] === null) - (keys[b] === null) || a - b : sign * compare(keys[a], keys[b]) || a - b);
    this.show();
  }
  fits(index) {
    const row = this.table.rows[index];
    if (this.query && !this.texts[index].includes(this.query)) return false;
    if (this.value && row[this.table.filter] !== this.value) return false;
    return !this.branch.length || (row[this.table.tree] + TREE).startsWith(this.branch.join(TREE) + TREE);
  }
  show(all = false) {
    const fit = this.order.filter(index => this.fits(index)), shown = all ? fit : fit.slice(0, this.shown);
    this.body.replaceChildren(...shown.map(index => this.row(this.table.rows[index])));
    this.heads.forEach((head, index) => {
      if (index === this.column) head.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const counts = { shown: decimal(shown.length, 0), fit: decimal(fit.length, 0), all: decimal(this.order.length, 0) };
    this.status.textContent = fill(fit.length < this.order.length ? texts["rows.filtered"] : texts.rows, counts);
    const left = fit.length - shown.length;
    this.more.hidden = this.all.hidden = left <= 0;
    this.more.hidden ||= left <= 100;
    this.more.textContent = fill(texts.more, { count: decimal(100, 0) });
    this.all.textContent = left > MOST_ADDED ? fill(texts.more, { count: decimal(MOST_ADDED, 0) }) : texts.all;
    this.fewer.hidden = left > 0 || fit.length <= this.table.shown;
    hint(this.block);
  }
  row(values) {
    const made = el("tr", {}, ...this.table.columns.map(({ kind }, index) => cell(kind, values[index], index === this.head)));
    if (this.table.details) this.addDetails(made, values);
    return made;
  }
  get head() { return this.table.columns.findIndex(({ kind }) => kind === "name" || kind === "code"); }
  addDetails(row, values) {
    const head = row.cells[0], name = values[0], button = el("button", { type: "button", className: "open" }, ...head.childNodes);
    button.setAttribute("aria-expanded", "false");
    head.append(button);
    let opened = null;
    button.onclick = () => {
      if (opened) { opened.remove(); opened = null; } else row.after(opened = details(values, this.table.columns));
      button.setAttribute("aria-expanded", String(opened !== null));
    };
  }
}

// A category's larger curve and photos
const details = (values, columns) => {
  const category = values[values.length - 1], steps = values[columns.findIndex(({ kind }) => kind === "curve")];
  const inside = el("td", { colSpan: columns.length }), photos = page.details[category];
  if (steps) {
    const predicted = decimal(values[6], 0);
    inside.append(el("figure", {}, curve(steps, 260, 90), el("figcaption", { textContent: fill(texts.curve, { predicted }) })));
  }
  for (const kind of ["correct", "wrong", "doubtful"]) {
    if (photos?.[kind]?.length) inside.append(el("figure", {}, ...photos[kind].map(photo), el("figcaption", { textContent: texts[`photos.${kind}`] })));
  }
  if (!photos) inside.append(el("p", { className: "soft", textContent: fill(texts["photos.none"], { count: page.thumbnails }) }));
  return el("tr", { className: "details" }, inside);
};

// A line says that there are more columns than fit
const hint = block => {
  const region = block.querySelector(".wide");
  if (!region) return;
  let line = block.querySelector(".hint");
  if (!line) region.before(line = el("p", { className: "hint", textContent: texts.sideways, hidden: true }));
  line.hidden = region.scrollWidth <= region.clientWidth + 1;
};
const blocks = [...document.querySelectorAll("[data-table]")];
const paged = [];
for (const block of blocks) {
  const name = block.dataset.table, table = page.tables[name];
  if ("whole" in block.dataset) block.append(el("div", { className: "tools" }, csvButton(name, table)));
  else paged.push(new PagedTable(name, block, table));
  hint(block);
}
addEventListener("resize", () => blocks.forEach(hint));

// On paper every row that fits the filters is there
const print = matchMedia("print");
const onPaper = whole => paged.forEach(table => table.show(whole));
print.addEventListener("change", () => onPaper(print.matches));
addEventListener("beforeprint", () => { onPaper(true); plotsNear.forEach(draw); });
addEventListener("afterprint", () => onPaper(false));

// Contents

const contents = document.getElementById("contents");
for (const section of contents ? document.querySelectorAll("main > section[id]") : []) {
  contents.append(el("li", {}, el("a", { href: `#${section.id}`, textContent: section.querySelector("h2").textContent })));
}

// Plots: plotly.js is unpacked when the first plot comes near

let loading = null;
const plotly = () => loading ??= (async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(el("script", { textContent: await new Response(stream).text() }));
  return window.Plotly;
})();
const family = getComputedStyle(document.body).fontFamily;
const draw = async place => {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "begun";
  const { data, layout } = page.plots[place.dataset.plot];
  const narrow = place.clientWidth < 500 ? { margin: { ...layout.margin, l: 48, r: 8 } } : {};
  const shown = { ...layout, ...narrow, font: { ...layout.font, family }, height: place.clientHeight, paper_bgcolor: "transparent", plot_bgcolor: "transparent" };
  await (await plotly()).newPlot(place, data, shown, { displayModeBar: false, responsive: true });
  place.dataset.drawn = "done";
  if (place.dataset.plot === "acceptance") chooser?.mark();
};
const plotsNear = [...document.querySelectorAll("[data-plot]")];
const near = new IntersectionObserver(seen => seen.filter(one => one.isIntersecting).forEach(one => draw(one.target)), { rootMargin: "600px" });
plotsNear.forEach(place => near.observe(place));

// The slider

class Chooser {
  constructor(block, curve) {
    Object.assign(this, { block, curve, certified: new Map(curve.certified) });
    this.slider = block.querySelector("input[type=range]");
    this.slider.max = curve.rate.length - 1;
    this.slider.value = curve.start;
    const jumps = block.querySelector(".jumps");
    jumps.hidden = !curve.certified.length;
    for (const [at, target] of curve.certified) {
      const button = el("button", { type: "button", textContent: FORMATS.target(target) });
      button.onclick = () => { this.slider.value = at; this.move(); };
      jumps.append(button);
    }
    block.querySelectorAll("input").forEach(input => input.oninput = () => this.move());
    block.hidden = false;
    this.move();
  }
  set(name, text) {
    const place = this.block.querySelector(`[data-value=${name}]`);
    if (place) place.textContent = text;
  }
  field(name) { return Math.max(0, Number(this.block.querySelector(`[name=${name}]`).value) || 0); }
  move() {
    const at = Number(this.slider.value), { curve } = this;
    const rate = curve.rate[at], precision = curve.precision[at], products = rate * this.field("weekly");
    const hours = products * this.field("minutes") / 60;
    this.set("rate", percent(rate));
    this.set("precision", percent(precision));
    this.set("band", FORMATS.interval([curve.lower[at], curve.upper[at]]));
    this.set("products", decimal(products, 0));
    this.set("wrong", decimal(products * (1 - precision), 0));
    this.set("hours", decimal(hours, 1));
    this.set("money", `${decimal(hours * this.field("wage"), 0)} ${curve.currency}`);
    this.set("threshold", significant(curve.threshold[at]));
    this.slider.setAttribute("aria-valuetext", fill(texts.value, { rate: percent(rate), precision: percent(precision) }));
    this.judge(at);
    this.mark();
  }
  judge(at) {
    const verdict = this.block.querySelector(".verdict"), target = this.certified.get(at);
    const certainty = FORMATS.target(this.curve.certainty);
    const text = target === undefined ? texts.measured : fill(texts.certified, { target: FORMATS.target(target), certainty });
    verdict.textContent = (target === undefined ? "◇ " : "● ") + text + (at === this.curve.in_use ? ` ${texts.in_use}` : "");
    verdict.classList.toggle("certified", target !== undefined);
  }
  // The slider's place on the curve
  mark() {
    const place = document.querySelector("[data-plot=acceptance]");
    if (place?.dataset.drawn !== "done") return;
    const at = Number(this.slider.value), x = 100 * this.curve.rate[at];
    const line = { type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color: "#b34700", width: 2 } };
    window.Plotly.relayout(place, { shapes: [...page.plots.acceptance.layout.shapes, line] });
  }
}
const block = document.querySelector(".chooser");
const chooser = block && page.chooser ? new Chooser(block, page.chooser) : null;
