// Fields: what cells can be colored by, a label, a domain, a number or a gene; their colors, words and legends.
class Field {
  constructor(slice, given, kind) {
    Object.assign(this, { slice, given, kind, name: given.name });
    this.low = given.low;
    this.high = given.high;
  }

  get isLabel() {
    return Boolean(this.given.labels);
  }

  get title() {
    if (this.kind !== "gene") return this.name;
    return this.slice.isCounts ? `${this.name}, log1p of counts per 10,000` : this.name;
  }

  async load() {
    this.values = await unpack(this.given);
    if (this.kind === "gene") this.totals = await unpack(this.slice.totals);
    return this;
  }

  // a number as it is colored
  value(i) {
    if (this.kind !== "gene") return this.values[i];
    const count = this.values[i] * this.given.unit;
    if (!this.slice.isCounts) return count;
    return this.totals[i] > 0 ? Math.log1p((count / this.totals[i]) * 10000) : 0;
  }

  words(i) {
    if (this.isLabel) return this.values[i] === NO_LABEL ? held.missing : this.given.labels[this.values[i]].name;
    if (this.kind !== "gene" || !this.slice.isCounts) return number(this.value(i));
    return `${number(this.value(i))} (count ${number(this.values[i] * this.given.unit)})`;
  }

  // pixels; places: x and y of the cells and the width of a stripe, for labels whose shade has a pattern
  colors(places) {
    const n = this.values.length, out = new Int32Array(n), missing = pixelOf(held.missingColor);
    if (this.isLabel) {
      const table = this.given.labels.map((label) => pixelOf(label.color));
      const light = table.map(lighter), patterns = this.given.labels.map((label) => held.patterns[label.color] || 0);
      for (let i = 0; i < n; i++) {
        const code = this.values[i];
        if (code === NO_LABEL) out[i] = missing;
        else out[i] = patterns[code] && isLight(patterns[code], places, i) ? light[code] : table[code];
      }
      return out;
    }
    const shades = held.shades.map(pixelOf), span = this.high - this.low || 1;
    for (let i = 0; i < n; i++) {
      const share = (this.value(i) - this.low) / span;
      out[i] = Number.isNaN(share) ? missing : shades[Math.min(Math.max(Math.floor(share * 256), 0), 255)];
    }
    return out;
  }

  // labels and how many of some cells have each, most first
  count(cells) {
    const counts = new Map();
    for (const i of cells) counts.set(this.values[i], (counts.get(this.values[i]) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1])
      .map(([code, n]) => [code === NO_LABEL ? held.missing : this.given.labels[code].name, n]);
  }
}

// whether a cell is in a light part of a pattern: stripes one way, the other way, or squares
function isLight(pattern, { x, y, stripe }, i) {
  const odd = (value) => Math.floor(value / stripe) & 1;
  if (pattern === 3) return odd(x[i]) ^ odd(y[i]);
  return odd(pattern === 1 ? x[i] + y[i] : x[i] - y[i]);
}

// a pixel mixed with white, as in the dots of legends
function lighter(pixel) {
  const mixed = (shift) => Math.round(((pixel >>> shift) & 255) * 0.35 + 255 * 0.65) << shift;
  return (255 << 24) | mixed(16) | mixed(8) | mixed(0);
}

// two rows of cells, or what can be seen
function stripeOf({ diameter, low, high }) {
  return Math.max(2.5 * diameter, (high[0] - low[0]) / 90) || 1;
}

// The legend of a field; choose(code, add) is called when a label is pressed; chosen: codes that are pressed.
function drawLegend(place, field, chosen, choose) {
  const shown = [make("h3", { text: field.title })];
  if (field.isLabel) {
    const labels = field.given.labels.map((label, code) => [code, label.name, label.color, label.cells]);
    const known = labels.reduce((sum, label) => sum + label[3], 0);
    if (known < field.values.length) {
      labels.push([NO_LABEL, held.missing, held.missingColor, field.values.length - known]);
    }
    const items = labels.map(([code, name, color, cells]) => {
      const dot = makeDot(color);
      return make("li", {}, make(
        "button", { type: "button", "aria-pressed": String(chosen.has(code)), "data-code": code, onclick: () => choose(code) },
        dot, make("span", { class: "name", text: name }), make("span", { class: "cells", text: number(cells) }),
      ));
    });
    shown.push(make("ul", {}, ...items));
  } else {
    const bar = make("div", { class: "bar", role: "img", "aria-label": `colors from ${number(field.low)} to ${number(field.high)}` });
    bar.style.backgroundImage = `linear-gradient(to right, ${held.shades.filter((_, k) => k % 15 === 0).join(", ")})`;
    let under = false, above = false;
    for (let i = 0; i < field.values.length; i++) {
      const value = field.value(i);
      under ||= value < field.low - 1e-6;
      above ||= value > field.high + 1e-6;
    }
    const ends = [`${under ? "≤ " : ""}${number(field.low)}`, `${above ? "≥ " : ""}${number(field.high)}`];
    shown.push(bar, make("div", { class: "ends" }, ...ends.map((text) => make("span", { text }))));
  }
  place.replaceChildren(...shown);
}
