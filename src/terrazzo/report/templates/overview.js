// The first screen: what was found in all slices, with one legend, the table. A region is marked by its row of the
// table, or by a click on the tissue; then its cells, its neighbors and its marker genes are shown.
const MANY = 3; // more slices are drawn smaller, and nothing is beside what was found, at first
const LEAST_LEFT = 360; // pixels that pictures have at least: a page may begin with a long text
const NOTHING = { kind: "none", title: "nothing" };

// One slice in the first screen: its pictures, which show the same cells and move together.
class Row {
  constructor(overview, slice, section) {
    Object.assign(this, { overview, slice, section, planes: [], titles: [] });
    this.panes = make("div", { class: "panes" });
    this.box = make("figure", {}, make("figcaption", { text: slice.name }), this.panes);
    this.tip = make("div", { class: "tip", hidden: true });
    this.fields = new Map();
  }

  async open() {
    const { slice } = this;
    const image = this.section.querySelector(".histology");
    const [x, y, names] = await Promise.all([unpackPlaces(slice.x), unpackPlaces(slice.y), unpack(slice.names), image && image.decode()]);
    Object.assign(this, { x, y, names, image, order: shuffled(x.length) });
  }

  // the field of a layer; null where this slice does not have it
  async field(layer) {
    const { kind, name, colors } = layer, id = `${kind} ${name}`;
    if (!this.fields.has(id)) {
      const given = (kind === "gene" ? this.slice.genes : this.slice.columns).find((one) => one.name === name);
      let field = null;
      if (given) {
        const labels = given.labels && given.labels.map((label) => ({ ...label, color: colors.get(label.name) || label.color }));
        field = await new Field(this.slice, labels ? { ...given, labels } : given, kind === "gene" ? "gene" : given.group).load();
      }
      this.fields.set(id, field);
    }
    return this.fields.get(id);
  }

  setPlanes(count) {
    while (this.planes.length > count) {
      this.planes.pop().box.parentElement.remove();
      this.titles.pop();
    }
    while (this.planes.length < count) this.addPlane();
    this.box.parentElement.classList.toggle("single", count === 1);
  }

  addPlane() {
    const { slice } = this;
    const plane = new Plane(`Tissue of ${slice.name}: arrow keys move, plus and minus zoom, 0 shows all`, {
      hover: (from, cell) => this.hover(from, cell),
      lasso: () => {},
      clear: () => this.overview.choose(-1),
      press: (from, cell) => this.overview.choose(cell < 0 ? -1 : this.regionOf(cell), true),
      moved: (from) => this.planes.forEach((other) => other !== from && other.follow(from)),
    });
    const title = make("p", { class: "pane-title" });
    this.panes.append(make("div", {}, title, plane.box));
    const n = this.x.length;
    plane.setCells(
      { x: this.x, y: this.y, low: slice.low, high: slice.high, diameter: slice.diameter, unit: slice.unit },
      { order: this.order, colors: new Int32Array(n), raised: new Uint8Array(n) },
    );
    this.planes.push(plane);
    this.titles.push(title);
  }

  async setLayers(layers) {
    const { overview } = this;
    this.found = await this.field(overview.layers[0]);
    this.codes = this.found.given.labels.map((label) => overview.table.regions.findIndex((region) => region.name === label.name));
    this.setPlanes(layers.length);
    for (const [k, layer] of layers.entries()) {
      const plane = this.planes[k];
      plane.layer = layer;
      plane.field = layer.kind === "histology" ? null : await this.field(layer);
      if (plane.field && layer.low !== undefined) Object.assign(plane.field, { low: layer.low, high: layer.high });
      plane.base = plane.field && plane.field.colors({ x: this.x, y: this.y, stripe: stripeOf(this.slice) });
      plane.size = layer.kind === "histology" ? OVER_IMAGE : 1;
      Object.assign(plane, layer.kind === "histology" ? { image: this.image, extent: this.slice.extent } : { image: null });
      const lacks = layer.kind === "histology" ? !this.image : !plane.field;
      this.titles[k].textContent = lacks ? `${layer.title}: not in this slice` : layer.title;
    }
  }

  regionOf(cell) {
    const code = this.found.values[cell];
    return code === NO_LABEL ? -1 : this.codes[code];
  }

  repaint() {
    const { chosen, table } = this.overview, dim = Math.round(255 * DIM) << 24;
    const color = chosen < 0 ? 0 : pixelOf(table.regions[chosen].color);
    for (const plane of this.planes) {
      const { colors, raised } = plane.cells, dims = plane.layer.kind === "label"; // numbers are compared with those around
      for (let i = 0; i < this.x.length; i++) {
        const here = chosen >= 0 && this.regionOf(i) === chosen;
        raised[i] = here ? 1 : 0;
        if (!plane.base) colors[i] = here ? color : 0;
        else colors[i] = dims && chosen >= 0 && !here ? (plane.base[i] & 0xffffff) | dim : plane.base[i];
      }
      plane.draw();
    }
  }

  hover(plane, cell) {
    this.planes.forEach((one) => one.mark(cell));
    this.tip.hidden = cell < 0;
    if (cell < 0) return;
    const fields = [this.found, ...this.planes.map((one) => one.field)];
    const lines = [...new Set(fields)].filter(Boolean).map((field) => make("span", { text: `${field.name}: ${field.words(cell)}` }));
    this.tip.replaceChildren(make("b", { text: this.names[cell] }), ...lines);
    plane.placeTip(this.tip, cell);
  }
}

class Overview {
  constructor(section, sections) {
    Object.assign(this, { section, sections, chosen: -1, rows: new Map() });
    this.place = section.querySelector(".pictures");
  }

  async open() {
    this.grid = make("div", { class: "slices" });
    this.controls = make("div", { class: "controls" });
    this.keys = make("div", { class: "keys" });
    this.place.replaceChildren(this.controls, this.grid, this.keys);
    this.place.hidden = false;
    this.section.querySelectorAll("tr[data-region]").forEach((row) => {
      row.querySelector("button").addEventListener("click", () => this.choose(Number(row.dataset.region)));
    });
    this.section.addEventListener("keydown", (event) => event.key === "Escape" && this.choose(-1));
    await this.show(0);
    this.fit();
    window.addEventListener("resize", () => this.fit());
    this.section.dataset.ready = "yes";
  }

  // the height that is left for pictures on the first screen, below what is above them
  fit() {
    const above = this.grid.getBoundingClientRect().top + window.scrollY;
    this.place.style.setProperty("--left", `${Math.max(window.innerHeight - above, LEAST_LEFT)}px`);
  }

  // one of the columns that were found
  async show(number) {
    this.table = held.found[number];
    this.number = number;
    this.chosen = -1;
    this.section.querySelectorAll("[data-found]").forEach((one) => { one.hidden = Number(one.dataset.found) !== number; });
    this.article = this.section.querySelector(`article.found[data-found="${number}"]`);
    this.layers = this.layersOf(this.table);
    const first = [this.layers[0], this.beside()];
    this.shown = first.map((layer) => this.layers.indexOf(layer));
    const here = held.slices.map((slice, k) => [slice, k]).filter(([slice]) => slice.columns.some((one) => one.name === this.table.key));
    const rows = [];
    for (const [slice, k] of here) {
      if (!this.rows.has(k)) {
        const row = new Row(this, slice, this.sections[k]);
        await row.open();
        this.rows.set(k, row);
      }
      rows.push(this.rows.get(k));
      this.rows.get(k).fields.clear();
    }
    this.openRows = rows;
    this.grid.className = `slices ${rows.length === 1 ? "alone" : rows.length > MANY ? "many" : "few"}`;
    this.grid.replaceChildren(...rows.map((row) => row.box));
    this.buildControls();
    await this.relayer();
    this.tell();
  }

  layersOf({ key, title, regions, known, agreement }) {
    const of = (labels) => new Map(labels.map((label) => [label.name, label.color]));
    const layers = [{ kind: "label", name: key, title, colors: of(regions) }];
    known.forEach((one) => layers.push({ kind: "label", name: one.column, title: one.column, colors: of(one.labels), labels: one.labels }));
    if (held.slices.some((slice) => slice.hasImage)) layers.push({ kind: "histology", title: "histology" });
    if (agreement) layers.push({ kind: "number", name: agreement, title: "reproducibility", low: 0, high: 1 });
    layers.push(NOTHING);
    return layers;
  }

  // what is beside the regions at first: known labels, histology, reproducibility
  beside() {
    const n = held.slices.filter((slice) => slice.columns.some((one) => one.name === this.table.key)).length;
    return n > MANY || this.layers.length < 3 ? NOTHING : this.layers[1];
  }

  buildControls() {
    const controls = [];
    if (held.found.length > 1) {
      const options = held.found.map((one, k) => make("option", { value: k, text: one.title, selected: k === this.number }));
      const picker = make("select", { onchange: () => this.show(Number(picker.value)) }, ...options);
      controls.push(["Found", picker]);
    }
    this.pickers = ["Picture", "Beside it"].map((text, k) => {
      const picker = make("select", { onchange: () => this.setLayer(k, Number(picker.value)) });
      controls.push([text, picker]);
      return picker;
    });
    this.clearing = make("button", { type: "button", text: "Show all", onclick: () => this.choose(-1) });
    const names = [...new Set(this.openRows.flatMap((row) => row.slice.genes.map((one) => one.name)))];
    const list = make("datalist", { id: "genes-found" }, ...names.map((name) => make("option", { value: name })));
    this.geneBox = make("input", { type: "search", list: "genes-found", placeholder: "name", onchange: () => this.askGene(names) });
    if (names.length) controls.push(["Gene", this.geneBox]);
    this.controls.replaceChildren(
      ...controls.map(([text, control]) => make("label", {}, make("span", { text }), control)), this.clearing, list,
    );
  }

  // the gene that was asked for, in all slices; none: what was beside the regions at first
  async askGene(names) {
    const name = this.geneBox.value.trim().toLowerCase();
    if (!name) return this.setLayer(1, this.layers.indexOf(this.beside()));
    const match = names.find((known) => known.toLowerCase() === name);
    if (match) return this.showGene(match);
    this.keys.replaceChildren(make("p", { class: "help", role: "status", text: `Values of ${this.geneBox.value} are not in this file.` }));
  }

  async setLayer(k, number) {
    this.shown[k] = number;
    const beside = this.layers[this.shown[1]];
    this.geneBox.value = beside.kind === "gene" ? beside.name : "";
    await this.relayer();
  }

  async relayer() {
    this.pickers.forEach((picker, k) => {
      const options = this.layers.map((layer, number) => [layer, number]).filter(([layer]) => k > 0 || layer !== NOTHING);
      picker.replaceChildren(...options.map(([layer, number]) => make("option", { value: number, text: layer.title })));
      picker.value = this.shown[k];
    });
    const layers = this.shown.map((k) => this.layers[k]).filter((layer) => layer !== NOTHING);
    for (const layer of layers) if (layer.kind === "gene") await this.setEnds(layer);
    for (const row of this.openRows) await row.setLayers(layers);
    this.drawKeys(layers);
    this.repaint();
  }

  // one scale of a gene's colors in all slices
  async setEnds(layer) {
    const fields = (await Promise.all(this.openRows.map((row) => row.field(layer)))).filter(Boolean);
    if (layer.low !== undefined || !fields.length) return;
    layer.low = Math.min(...fields.map((field) => field.low));
    layer.high = Math.max(...fields.map((field) => field.high));
  }

  drawKeys(layers) {
    const keys = [];
    for (const layer of layers) {
      if (layer.labels) {
        const items = layer.labels.map((label) => make("li", {}, makeDot(label.color), make("span", { text: label.name })));
        keys.push(make("ul", { "aria-label": `Labels of ${layer.title}` }, ...items));
      } else if (layer.low !== undefined) {
        const bar = make("span", { class: "bar", role: "img", "aria-label": "colors" });
        bar.style.backgroundImage = `linear-gradient(to right, ${held.shades.filter((_, k) => k % 15 === 0).join(", ")})`;
        keys.push(make("p", { class: "help" }, `${layer.title}: ${number(layer.low)} `, bar, ` ${number(layer.high)}`));
      }
    }
    this.keys.replaceChildren(...keys);
  }

  // marks a region, or with -1 none; one that is marked already is marked no longer
  choose(region, fromTissue = false) {
    this.chosen = region === this.chosen ? -1 : region;
    this.repaint();
    this.tell();
    if (fromTissue && this.chosen >= 0) this.rowOf(this.chosen).scrollIntoView({ block: "nearest" });
    const name = this.chosen < 0 ? null : this.table.regions[this.chosen].name;
    for (const section of this.sections) if (section.dataset.ready) section.viewer.mark(this.table.key, name);
  }

  rowOf(region) {
    return this.article.querySelector(`tr[data-region="${region}"]`);
  }

  repaint() {
    this.openRows.forEach((row) => row.repaint());
    this.clearing.disabled = this.chosen < 0;
    this.article.querySelectorAll("tr[data-region]").forEach((row) => {
      row.querySelector("button").setAttribute("aria-pressed", String(Number(row.dataset.region) === this.chosen));
    });
  }

  // what is known of the region that is marked
  tell() {
    const place = this.article.querySelector(".detail");
    if (this.chosen < 0) return place.replaceChildren();
    const region = this.table.regions[this.chosen], percent = (share) => `${(100 * share).toFixed(1)} %`;
    const facts = [`${number(region.cells)} cells, ${percent(region.share)} of all`];
    if (region.sure !== null) facts.push(`reproducibility ${region.sure.toFixed(2)}`);
    if (region.genesSure !== null) facts.push(`agreement over draws of genes ${region.genesSure.toFixed(2)}`);
    const shown = [make("h3", {}, makeDot(region.color), make("span", { text: region.name })), make("p", { text: `${facts.join("; ")}.` })];
    const slices = held.slices.map((slice, k) => [slice.name, region.slices[k]]).filter(([, share]) => share !== null);
    if (slices.length > 1) shown.push(make("p", { text: `Share of each slice: ${slices.map(([name, share]) => `${name} ${percent(share)}`).join(", ")}.` }));
    shown.push(make("p", { text: region.neighbors.length ? "Neighbors, and their share of the border:" : "It touches no other." }));
    shown.push(make("ul", {}, ...region.neighbors.map(([other, share]) => make("li", {}, make(
      "button", { type: "button", onclick: () => this.choose(other) },
      makeDot(this.table.regions[other].color), make("span", { class: "name", text: `${this.table.regions[other].name} ${Math.round(100 * share)} %` }),
    )))));
    for (const [against, text] of [["rest", "Marker genes, against all others"], ["touching", "Against those that it touches"]]) {
      const markers = region.markers.filter((marker) => marker.against === against);
      if (markers.length) shown.push(this.markerTable(text, markers));
    }
    if (this.table.hasAnswer && !region.markers.length) shown.push(make("p", { text: "No gene marks it: none passed the test." }));
    place.replaceChildren(...shown);
  }

  markerTable(text, markers) {
    const shown = (value, digits) => (value === null ? "" : (Number(value.toFixed(digits)) + 0).toFixed(digits)); // -0 is 0
    const part = (value) => (value === null ? "" : `${Math.round(100 * value)} %`);
    const head = ["gene", "log2 change", "in", "outside", "p, adjusted"].map((name) => make("th", { scope: "col", text: name }));
    const inFile = new Set(this.openRows.flatMap((row) => row.slice.genes.map((one) => one.name)));
    const nameOf = ({ gene }) => inFile.has(gene)
      ? make("button", { type: "button", text: gene, title: "Show this gene beside", onclick: () => this.showGene(gene) })
      : make("span", { text: gene, title: "Its values are not in this file" });
    const rows = markers.map((marker) => make("tr", {},
      make("td", {}, nameOf(marker)),
      make("td", { text: shown(marker.change, 2) }), make("td", { text: part(marker.inside) }), make("td", { text: part(marker.outside) }),
      make("td", { text: marker.p === null ? "no test" : marker.p < 1e-3 ? marker.p.toExponential(0) : marker.p.toFixed(3) }),
    ));
    return make("table", {}, make("caption", { text }), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  }

  // a gene beside the regions
  async showGene(name) {
    let place = this.layers.findIndex((layer) => layer.kind === "gene" && layer.name === name);
    if (place < 0) place = this.layers.push({ kind: "gene", name, title: name, colors: new Map() }) - 1;
    await this.setLayer(1, place);
  }
}
