// One slice: the tissue beside an embedding, both colored by one field; pointing and selecting on either marks both.
const DIM = 0.16; // opacity of cells that are not selected
const TOLD = 6; // labels in a tooltip besides the one that is colored
const MOST_TOLD = 5; // labels that the status names
const OVER_IMAGE = 0.7; // size of cells over histology
const GENE = "gene"; // value of the option that is the gene on show
const ON_HISTOLOGY = 0.9; // its opacity at first

class Viewer {
  constructor(section, slice) {
    Object.assign(this, { section, slice, place: section.querySelector(".viewer") });
    this.columns = slice.columns.map((given) => new Field(slice, given, given.group));
    this.genes = new Map(slice.genes.map((given) => [given.name, new Field(slice, given, "gene")]));
    this.selected = new Set();
    this.chosen = new Set(); // codes of labels that are pressed
    this.gene = null;
  }

  async open() {
    const { slice } = this, told = this.columns.filter((field) => field.isLabel).slice(0, TOLD);
    const [x, y, names, totals] = await Promise.all([
      unpackPlaces(slice.x), unpackPlaces(slice.y), unpack(slice.names), unpack(slice.totals),
      ...told.map((field) => field.load()),
    ]);
    Object.assign(this, { names, totals, told, n: x.length, places: { x, y, stripe: stripeOf(slice) } });
    this.cells = { order: shuffled(this.n), colors: new Int32Array(this.n), raised: new Uint8Array(this.n) };
    const hooks = {
      hover: (plane, cell, at) => this.hover(plane, cell, at),
      lasso: (plane, found, adds) => this.select(adds ? [...this.selected, ...found] : found),
      clear: () => this.clear(),
    };
    this.tissue = new Plane(`Tissue of ${slice.name}: arrow keys move, plus and minus zoom, 0 shows all`, hooks);
    this.planes = [this.tissue];
    if (slice.layouts.length) {
      this.embedding = new Plane(`Embedding of ${slice.name}: arrow keys move, plus and minus zoom, 0 shows all`, hooks);
      this.planes.push(this.embedding);
    }
    this.build();
    this.section.classList.add("live");
    this.place.hidden = false;
    this.tissue.setCells({ x, y, low: slice.low, high: slice.high, diameter: slice.diameter, unit: slice.unit }, this.cells);
    await this.setHistology();
    if (this.embedding) await this.setLayout(0);
    await this.colorBy(this.columns[0]);
    this.section.dataset.ready = "yes";
  }

  async setHistology() {
    const image = this.section.querySelector(".histology");
    if (!image) return;
    await image.decode();
    this.tissue.size = OVER_IMAGE;
    this.tissue.setImage(image, this.slice.extent);
  }

  async setLayout(number) {
    const given = this.slice.layouts[number];
    const [x, y] = await Promise.all([unpackPlaces(given.x), unpackPlaces(given.y)]);
    const ends = [given.x, given.y].map((field) => [field.low, field.low + field.step * 65535]);
    const edge = ends.map(([low, high]) => 0.04 * (high - low));
    const low = ends.map(([least], k) => least - edge[k]), high = ends.map(([, most], k) => most + edge[k]);
    this.embedding.setCells({ x, y, low, high, diameter: 0 }, this.cells);
    this.method.textContent = `${given.key}: ${given.method}.`;
    this.hover(this.embedding, -1);
  }

  build() {
    this.tip = make("div", { class: "tip", hidden: true });
    this.legend = make("div", { class: "legend", role: "group", "aria-label": "Legend" });
    this.status = make("p", { class: "status", role: "status" });
    this.method = make("p", { class: "help" });
    const panels = [make("div", {}, make("h3", { text: "Tissue" }), this.tissue.box)];
    if (this.embedding) panels.push(make("div", {}, make("h3", { text: "Embedding" }), this.embedding.box, this.method));
    const stage = make("div", { class: this.embedding ? "stage" : "stage alone" }, ...panels, this.legend);
    const help = "Drag, or arrow keys: move. Wheel (after a click on the picture), + and −: zoom. 0: all. Shift and drag, or " +
      "Select: mark cells on either picture; a label of the legend marks its cells. Escape: nothing marked.";
    this.snapshot = make("img", { alt: "" });
    this.caption = make("figcaption");
    this.key = make("div", { class: "legend" });
    this.place.replaceChildren(this.controls(), stage, this.status, make("p", { class: "help", text: help }));
    this.place.after(make("figure", { class: "view" }, this.snapshot, this.key, this.caption));
  }

  controls() {
    const groups = new Map();
    this.columns.forEach((field, k) => {
      if (!groups.has(field.kind)) groups.set(field.kind, make("optgroup", { label: field.kind }));
      groups.get(field.kind).append(make("option", { value: k, text: field.name }));
    });
    this.shownGene = make("option", { value: GENE });
    this.geneGroup = make("optgroup", { label: "Gene" }, this.shownGene);
    const chosen = () => (this.picker.value === GENE ? this.gene : this.columns[this.picker.value]);
    this.picker = make("select", { onchange: () => this.colorBy(chosen()) }, ...groups.values());
    const list = `genes-${this.section.dataset.slice}`;
    this.geneBox = make("input", { type: "search", list, placeholder: "name", onchange: () => this.askGene() });
    const genes = make("datalist", { id: list }, ...[...this.genes.keys()].map((name) => make("option", { value: name })));
    this.cellBox = make("input", { type: "search", placeholder: "name", onchange: () => this.askCell() });
    const shown = [["Color by", this.picker], ["Gene", this.geneBox], ["Find a cell", this.cellBox]];
    if (this.slice.layouts.length > 1) {
      const options = this.slice.layouts.map((one, k) => make("option", { value: k, text: one.key }));
      this.layouts = make("select", { onchange: () => this.setLayout(Number(this.layouts.value)) }, ...options);
      shown.push(["Embedding", this.layouts]);
    }
    if (this.section.querySelector(".histology")) {
      shown.push(["Histology", this.slider(0, 1, ON_HISTOLOGY, (v) => { this.tissue.back.style.opacity = v; })]);
    }
    shown.push(["Cells", this.slider(0, 1, 1, (v) => { this.tissue.middle.style.opacity = v; })]);
    shown.push(["Size", this.slider(0.3, 2.5, 1, (v) => this.resizeCells(v))]);
    const labeled = shown.map(([text, control]) => make("label", {}, make("span", { text }), control));
    return make("div", { class: "controls" }, ...labeled, this.buttons(), genes);
  }

  buttons() {
    const button = (text, label, act) => make("button", { type: "button", text, "aria-label": label, onclick: act });
    const all = (act) => () => this.planes.forEach(act);
    this.selecting = button("Select", "Select by drawing around cells", () => {
      const on = this.selecting.getAttribute("aria-pressed") !== "true";
      this.selecting.setAttribute("aria-pressed", String(on));
      this.planes.forEach((plane) => { plane.selecting = on; plane.box.classList.toggle("selecting", on); });
    });
    this.selecting.setAttribute("aria-pressed", "false");
    this.clearing = button("Clear", "Clear the selection", () => this.clear());
    this.saving = button("Save names", "Save the names of the selected cells", () => this.save());
    this.clearing.disabled = this.saving.disabled = true;
    return make(
      "div", { class: "group", role: "group", "aria-label": "View and selection" },
      button("+", "Zoom in", all((plane) => plane.zoom(ZOOM))), button("−", "Zoom out", all((plane) => plane.zoom(1 / ZOOM))),
      button("All", "Show all cells", all((plane) => plane.fit())), this.selecting, this.clearing, this.saving,
    );
  }

  slider(min, max, value, act) {
    const range = make("input", { type: "range", min, max, step: "any", value, oninput: () => act(Number(range.value)) });
    act(value);
    return range;
  }

  resizeCells(factor) {
    this.planes.forEach((plane) => {
      plane.size = factor * (plane === this.tissue && plane.image ? OVER_IMAGE : 1);
      plane.draw();
    });
  }

  async colorBy(field) {
    await field.load();
    this.field = field;
    this.base = field.colors(this.places);
    this.chosen.clear();
    if (field.kind === "gene") {
      this.gene = field;
      this.shownGene.textContent = field.name;
      this.picker.append(this.geneGroup);
      this.picker.value = GENE;
      this.geneBox.value = field.name;
    } else {
      this.column = field;
      this.picker.value = this.columns.indexOf(field);
      this.geneBox.value = "";
    }
    this.repaint();
  }

  async askGene() {
    const name = this.geneBox.value.trim();
    if (!name) return this.colorBy(this.column);
    const match = [...this.genes.keys()].find((known) => known.toLowerCase() === name.toLowerCase());
    if (match) return this.colorBy(this.genes.get(match));
    const others = await unpack(this.slice.others);
    const measured = others.find((known) => known.toLowerCase() === name.toLowerCase());
    this.status.textContent = measured
      ? `${measured} was measured, but its values are not in this file: write the report again with --gene ${measured}.`
      : `There is no gene ${name} in this slice.`;
  }

  askCell() {
    const name = this.cellBox.value.trim();
    if (!name) return;
    let cell = this.names.indexOf(name);
    if (cell < 0) cell = this.names.findIndex((known) => known.includes(name));
    if (cell < 0) {
      this.status.textContent = `There is no cell ${name} in this slice.`;
      return;
    }
    this.planes.forEach((plane) => plane.centerOn(cell));
    this.hover(this.tissue, cell, [this.tissue.width / 2, this.tissue.height / 2]);
    this.tell(this.sayCell(cell));
  }

  select(cells) {
    this.selected = new Set(cells);
    this.chosen.clear();
    this.repaint();
  }

  clear() {
    this.select([]);
  }

  // marks the cells of a label of a column, as the first screen does; null: of none
  async mark(column, name) {
    const field = this.columns.find((one) => one.isLabel && one.name === column);
    if (!field) return;
    await this.colorBy(field);
    const code = field.given.labels.findIndex((label) => label.name === name);
    this.chosen = new Set(code < 0 ? [] : [code]);
    this.selected = new Set();
    if (code >= 0) field.values.forEach((value, i) => value === code && this.selected.add(i));
    this.repaint();
  }

  choose(code) {
    if (!this.chosen.delete(code)) this.chosen.add(code);
    this.selected = new Set();
    if (this.chosen.size) this.field.values.forEach((value, i) => this.chosen.has(value) && this.selected.add(i));
    this.repaint();
    this.legend.querySelector(`[data-code="${code}"]`).focus();
  }

  // colors and order of drawing, from the field and the selection
  repaint() {
    const { colors, raised } = this.cells, some = this.selected.size > 0, dim = Math.round(255 * DIM) << 24;
    for (let i = 0; i < this.n; i++) {
      const here = this.selected.has(i);
      raised[i] = here ? 1 : 0;
      colors[i] = some && !here ? (this.base[i] & 0xffffff) | dim : this.base[i];
    }
    this.clearing.disabled = this.saving.disabled = !some;
    this.planes.forEach((plane) => plane.draw());
    this.hover(this.tissue, -1);
    drawLegend(this.legend, this.field, this.chosen, (code) => this.choose(code));
    this.tell(this.sayAll());
  }

  tell(text) {
    this.status.textContent = text;
  }

  sayAll() {
    const n = this.selected.size, { field } = this;
    if (!n) return `${number(this.n)} cells, colored by ${field.title}.`;
    const share = `${number(n)} of ${number(this.n)} cells selected`;
    if (field.isLabel) {
      const parts = field.count(this.selected);
      const named = parts.slice(0, MOST_TOLD).map(([name, count]) => `${name} ${Math.round((100 * count) / n)} %`);
      return `${share}: ${named.join(", ")}${parts.length > MOST_TOLD ? ", ..." : ""}.`;
    }
    let [inside, outside] = [0, 0];
    for (let i = 0; i < this.n; i++) {
      if (this.selected.has(i)) inside += field.value(i);
      else outside += field.value(i);
    }
    const mean = `mean ${number(inside / n)}, of the others ${number(outside / (this.n - n))}`;
    return `${share}: ${field.title}, ${mean}.`;
  }

  sayCell(cell) {
    return [this.names[cell], ...this.lines(cell).map(([name, words]) => `${name}: ${words}`)].join("; ");
  }

  lines(cell) {
    const fields = [this.field, ...this.told.filter((field) => field !== this.field)];
    if (this.gene && this.gene !== this.field) fields.push(this.gene);
    return [...fields.map((field) => [field.name, field.words(cell)]), ["counts", number(this.totals[cell])]];
  }

  hover(plane, cell, at) {
    this.planes.forEach((one) => one.mark(cell));
    this.tip.hidden = cell < 0;
    if (cell < 0) return;
    const lines = this.lines(cell).map(([name, words], k) => make("span", { class: k ? "" : "main", text: `${name}: ${words}` }));
    this.tip.replaceChildren(make("b", { text: this.names[cell] }), ...lines);
    plane.placeTip(this.tip, cell);
  }

  save() {
    const text = [...this.selected].sort((a, b) => a - b).map((i) => `${this.names[i]}\n`).join("");
    const link = make("a", { download: "selected-cells.txt", href: URL.createObjectURL(new Blob([text], { type: "text/plain" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // the pictures as they are shown now, for paper
  photograph() {
    const [wide, high] = [this.planes.reduce((sum, plane) => sum + plane.middle.width, 0), this.tissue.middle.height];
    if (!wide || !high) return;
    const sheet = Object.assign(document.createElement("canvas"), { width: wide, height: high });
    const context = sheet.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, wide, high);
    let left = 0;
    for (const plane of this.planes) {
      for (const canvas of [plane.back, plane.middle, plane.front]) {
        context.globalAlpha = canvas.style.opacity === "" ? 1 : Number(canvas.style.opacity);
        context.drawImage(canvas, left, 0);
      }
      left += plane.middle.width;
    }
    drawLegend(this.key, this.field, this.chosen, () => {});
    this.snapshot.src = sheet.toDataURL("image/png");
    const what = this.embedding ? "Tissue and embedding as shown when this was printed" : "Tissue as shown when this was printed";
    this.caption.textContent = `${what}. ${this.status.textContent}`;
  }
}

// one order for all frames in which no label lies above all others
function shuffled(n) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1, seed = 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = seed % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
