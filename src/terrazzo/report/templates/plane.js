// A plane of cells that is moved and zoomed: the tissue, or an embedding. Three canvases lie on one another: the
// histology, the cells, and in front what changes with the pointer. y grows downwards, as in images.
const ZOOM = 1.3; // a key or a notch of the wheel
const MOVE = 0.12; // of the width, an arrow key
const STILL = 4; // pixels: a pointer that moved less was a click
const NEAR = 9; // pixels: a pointer so close to a cell means it

// Cells by place: a grid of bins; nearest() looks at those that the reach touches.
class Bins {
  constructor(x, y) {
    const n = x.length;
    let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
    for (let i = 0; i < n; i++) {
      left = Math.min(left, x[i]); right = Math.max(right, x[i]);
      top = Math.min(top, y[i]); bottom = Math.max(bottom, y[i]);
    }
    Object.assign(this, { x, y, left, top });
    this.side = Math.max(Math.sqrt(((right - left) * (bottom - top)) / n), (right - left + bottom - top) / 1000) || 1;
    this.columns = Math.floor((right - left) / this.side) + 1;
    this.rows = Math.floor((bottom - top) / this.side) + 1;
    this.start = new Uint32Array(this.columns * this.rows + 1);
    const bin = new Uint32Array(n);
    for (let i = 0; i < n; i++) {
      bin[i] = Math.floor((y[i] - top) / this.side) * this.columns + Math.floor((x[i] - left) / this.side);
      this.start[bin[i] + 1]++;
    }
    for (let b = 0; b < this.columns * this.rows; b++) this.start[b + 1] += this.start[b];
    const next = this.start.slice();
    this.cells = new Uint32Array(n);
    for (let i = 0; i < n; i++) this.cells[next[bin[i]]++] = i;
  }

  // the cell nearest to a place within reach; -1 for none
  nearest(px, py, reach) {
    const bound = (value, most) => Math.min(Math.max(Math.floor(value / this.side), 0), most - 1);
    const c0 = bound(px - reach - this.left, this.columns), c1 = bound(px + reach - this.left, this.columns);
    const r0 = bound(py - reach - this.top, this.rows), r1 = bound(py + reach - this.top, this.rows);
    let best = -1, least = reach * reach;
    for (let row = r0; row <= r1; row++) {
      for (let k = this.start[row * this.columns + c0]; k < this.start[row * this.columns + c1 + 1]; k++) {
        const i = this.cells[k], d = (this.x[i] - px) ** 2 + (this.y[i] - py) ** 2;
        if (d <= least) { least = d; best = i; }
      }
    }
    return best;
  }
}

// hooks: hover(plane, cell, at), lasso(plane, inside, adds), clear(); and where they are there press(plane, cell), when a
// cell is clicked (-1: none), and moved(plane)
class Plane {
  constructor(label, hooks) {
    this.hooks = hooks;
    this.back = make("canvas", { "aria-hidden": "true" });
    this.middle = make("canvas", { "aria-hidden": "true" });
    this.front = make("canvas", { class: "front", tabindex: "0", role: "application", "aria-label": label });
    this.box = make("div", { class: "panel" }, this.back, this.middle, this.front);
    this.selecting = false;
    this.size = 1; // of cells, by the reader
    this.marked = -1;
    this.pointers = new Map();
    this.lasso = null;
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.box);
  }

  // places: x, y; frame: low, high; diameter in their units, or 0 for dots that fit their number
  setCells({ x, y, low, high, diameter, unit }, cells) {
    Object.assign(this, { x, y, low, high, diameter, unit, cells, bins: new Bins(x, y) });
    this.fit();
  }

  setImage(image, extent) {
    Object.assign(this, { image, extent });
    this.draw();
  }

  resize() {
    const { width, height } = this.box.getBoundingClientRect();
    if (!width || !height) return;
    const showsAll = !this.scale || Math.abs(this.scale / this.whole - 1) < 1e-6;
    Object.assign(this, { width, height, density: window.devicePixelRatio || 1 });
    for (const canvas of [this.back, this.middle, this.front]) {
      canvas.width = Math.round(width * this.density);
      canvas.height = Math.round(height * this.density);
    }
    if (showsAll) return this.fit();
    this.whole = this.wholeScale();
    this.draw();
  }

  fit() {
    if (!this.width || !this.low) return;
    this.whole = this.wholeScale();
    this.show((this.low[0] + this.high[0]) / 2, (this.low[1] + this.high[1]) / 2, this.whole);
  }

  // pixels a unit at which all is in sight
  wholeScale() {
    const [dx, dy] = [0, 1].map((k) => this.high[k] - this.low[k] || 1);
    return Math.min(this.width / dx, this.height / dy);
  }

  // center and pixels a unit; never so far that nothing is in sight
  show(cx, cy, scale) {
    this.scale = Math.min(Math.max(scale, this.whole / 4), this.whole * 400);
    this.cx = Math.min(Math.max(cx, this.low[0]), this.high[0]);
    this.cy = Math.min(Math.max(cy, this.low[1]), this.high[1]);
    this.draw();
    if (this.hooks.moved) this.hooks.moved(this);
  }

  // shows what another plane of the same cells shows
  follow({ cx, cy, scale }) {
    if (!this.scale) return;
    Object.assign(this, { cx, cy, scale });
    this.draw();
  }

  zoom(factor, at = [this.width / 2, this.height / 2]) {
    const [x, y] = this.toPlane(...at), scale = Math.min(Math.max(this.scale * factor, this.whole / 4), this.whole * 400);
    this.show(x - (at[0] - this.width / 2) / scale, y - (at[1] - this.height / 2) / scale, scale);
  }

  move(dx, dy) {
    this.show(this.cx - dx / this.scale, this.cy - dy / this.scale, this.scale);
  }

  toPlane(px, py) {
    return [(px - this.width / 2) / this.scale + this.cx, (py - this.height / 2) / this.scale + this.cy];
  }

  toScreen(i) {
    return [(this.x[i] - this.cx) * this.scale + this.width / 2, (this.y[i] - this.cy) * this.scale + this.height / 2];
  }

  // radius of a cell in pixels of the page
  radius() {
    if (this.diameter) return Math.max(0.6, (this.diameter / 2) * this.scale * this.size);
    const fits = Math.sqrt((0.3 * this.width * this.height) / (Math.PI * this.x.length));
    return Math.min(Math.max(fits, 1.2), 5) * Math.sqrt(Math.max(this.scale / this.whole, 0.25)) * this.size;
  }

  draw() {
    if (this.waiting || !this.scale || !this.cells) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  }

  paint() {
    const d = this.density, view = { cx: this.cx, cy: this.cy, scale: this.scale * d, radius: this.radius() * d };
    const back = this.back.getContext("2d");
    back.clearRect(0, 0, this.back.width, this.back.height);
    if (this.image) {
      const [left, top, right, bottom] = this.extent;
      back.drawImage(
        this.image, (left - this.cx) * view.scale + this.back.width / 2, (top - this.cy) * view.scale + this.back.height / 2,
        (right - left) * view.scale, (bottom - top) * view.scale,
      );
    }
    stampCells(this.middle.getContext("2d"), { x: this.x, y: this.y, ...this.cells }, view);
    this.paintFront();
  }

  paintFront() {
    const context = this.front.getContext("2d"), d = this.density;
    context.setTransform(d, 0, 0, d, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    if (this.marked >= 0) {
      const [x, y] = this.toScreen(this.marked), r = Math.max(this.radius(), 3) + 2;
      for (const [color, width] of [["#ffffff", 4], ["#000000", 2]]) {
        Object.assign(context, { strokeStyle: color, lineWidth: width });
        context.beginPath();
        context.arc(x, y, r, 0, 2 * Math.PI);
        context.stroke();
      }
    }
    if (this.lasso) {
      Object.assign(context, { strokeStyle: "#0b62c4", fillStyle: "rgba(11, 98, 196, 0.15)", lineWidth: 1.5 });
      context.beginPath();
      for (const [x, y] of this.lasso) context.lineTo(x, y);
      context.closePath();
      context.fill();
      context.stroke();
    }
    if (this.unit === "µm") this.paintScale(context);
  }

  paintScale(context) {
    const raw = this.width / 5 / this.scale, power = 10 ** Math.floor(Math.log10(raw));
    const length = [5, 2, 1].map((k) => k * power).find((value) => value <= raw) || power;
    const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`, px = length * this.scale, y = this.height - 12;
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = "rgba(255, 255, 255, 0.8)";
    context.fillRect(8, y - 18, Math.max(px, context.measureText(text).width) + 8, 24);
    context.fillStyle = "#111111";
    context.fillRect(12, y, px, 3);
    context.fillText(text, 12, y - 5);
  }

  mark(cell) {
    if (cell === this.marked || !this.scale) return;
    this.marked = cell;
    this.paintFront();
  }

  centerOn(cell) {
    this.show(this.x[cell], this.y[cell], Math.max(this.scale, this.whole * 4));
  }

  at(event) {
    const box = this.front.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  cellAt(at) {
    return this.bins.nearest(...this.toPlane(...at), Math.max(this.radius(), NEAR) / this.scale);
  }

  point(at) {
    this.hooks.hover(this, this.cellAt(at), at);
  }

  // a tooltip beside a cell
  placeTip(tip, cell) {
    this.box.append(tip);
    const { offsetWidth, offsetHeight } = tip, [x, y] = this.toScreen(cell);
    const left = x + 14 + offsetWidth < this.width ? x + 14 : x - 14 - offsetWidth;
    const top = y + 14 + offsetHeight < this.height ? y + 14 : y - 14 - offsetHeight;
    tip.style.left = `${Math.max(2, left)}px`;
    tip.style.top = `${Math.max(2, top)}px`;
  }

  listen() {
    const front = this.front;
    front.addEventListener("pointerdown", (event) => {
      if (event.button || !this.cells) return;
      front.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.at(event));
      this.down = this.pointers.size === 1 ? this.at(event) : null;
      if (this.pointers.size === 1 && (this.selecting || event.shiftKey)) this.lasso = [this.at(event)];
      else this.lasso = null;
    });
    front.addEventListener("pointermove", (event) => {
      if (!this.cells) return;
      const at = this.at(event), before = this.pointers.get(event.pointerId);
      if (!before) return this.point(at);
      this.pointers.set(event.pointerId, at);
      if (this.lasso) {
        this.lasso.push(at);
        this.paintFront();
      } else if (this.pointers.size === 1) this.move(at[0] - before[0], at[1] - before[1]);
      else this.pinch(event.pointerId, before, at);
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      front.addEventListener(kind, (event) => {
        this.pointers.delete(event.pointerId);
        const path = this.lasso;
        this.lasso = null;
        if (path && kind === "pointerup" && path.length > 2) {
          this.hooks.lasso(this, this.inside(path), this.selecting && event.shiftKey);
        }
        if (path) this.paintFront();
        const at = this.at(event), still = this.down && Math.hypot(at[0] - this.down[0], at[1] - this.down[1]) < STILL;
        if (kind === "pointerup" && still && this.hooks.press && this.cells) this.hooks.press(this, this.cellAt(at));
        this.down = null;
      });
    }
    front.addEventListener("pointerleave", () => this.pointers.size || this.hooks.hover(this, -1));
    front.addEventListener("blur", () => this.hooks.hover(this, -1));
    front.addEventListener("wheel", (event) => {
      if (!this.cells || (document.activeElement !== front && !event.ctrlKey)) return; // else the page scrolls
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? ZOOM : 1 / ZOOM, this.at(event));
    }, { passive: false });
    front.addEventListener("keydown", (event) => this.key(event));
  }

  pinch(id, before, at) {
    const other = [...this.pointers].find(([key]) => key !== id)[1];
    const apart = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
    this.zoom(apart(at) / apart(before), other);
  }

  key(event) {
    const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.ctrlKey || event.metaKey || event.altKey || !this.cells) return;
    if (event.key in moves) this.move(...moves[event.key].map((way) => way * MOVE * this.width));
    else if (event.key === "+" || event.key === "=") this.zoom(ZOOM);
    else if (event.key === "-" || event.key === "_") this.zoom(1 / ZOOM);
    else if (event.key === "0" || event.key === "Home") this.fit();
    else if (event.key === "Escape") return this.hooks.clear();
    else return;
    event.preventDefault();
    this.point([this.width / 2, this.height / 2]); // for those without a pointer: what lies in the middle
  }

  // cells within a closed path of the screen
  inside(path) {
    const corners = path.map(([x, y]) => this.toPlane(x, y)), found = [];
    const xs = corners.map((c) => c[0]), ys = corners.map((c) => c[1]);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    for (let i = 0; i < this.x.length; i++) {
      const x = this.x[i], y = this.y[i];
      if (x < left || x > right || y < top || y > bottom) continue;
      let within = false;
      for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
        const [xa, ya] = corners[a], [xb, yb] = corners[b];
        if (ya > y !== yb > y && x < ((xb - xa) * (y - ya)) / (yb - ya) + xa) within = !within;
      }
      if (within) found.push(i);
    }
    return found;
  }
}
