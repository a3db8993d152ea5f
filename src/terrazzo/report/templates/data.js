// What the page holds: JSON, and compressed blocks that are unpacked when they are first asked for. Also: making
// elements. Texts of the data go into the document as text (textContent), never as HTML.
const held = JSON.parse(document.getElementById("data").textContent);
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
const unpacked = new Map();
const NO_LABEL = 255; // code of a cell without a label

async function inflate(name) {
  const packed = Uint8Array.from(atob(document.getElementById(name).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// the array, or list of texts, that a field of the data names
function unpack(field) {
  if (!unpacked.has(field.block)) {
    unpacked.set(field.block, inflate(field.block).then((buffer) =>
      field.kind === "json" ? JSON.parse(new TextDecoder().decode(buffer)) : new ARRAYS[field.kind](buffer)));
  }
  return unpacked.get(field.block);
}

async function unpackPlaces(field) {
  const steps = await unpack(field);
  const places = new Float32Array(steps.length);
  for (let i = 0; i < steps.length; i++) places[i] = field.low + field.step * steps[i];
  return places;
}

function make(tag, settings = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...inside);
  return element;
}

// a disc in a legend, with the pattern of its color
function makeDot(color) {
  const dot = make("span", { class: "dot", "aria-hidden": "true" }), pattern = held.patterns[color];
  dot.style.backgroundColor = color;
  const light = "rgb(255 255 255 / .65)", stripes = `transparent 0 2px, ${light} 2px 4px`;
  if (pattern === 3) dot.style.backgroundImage = `repeating-conic-gradient(${light} 0 25%, transparent 0 50%)`;
  else if (pattern) dot.style.backgroundImage = `repeating-linear-gradient(${pattern === 1 ? 45 : -45}deg, ${stripes})`;
  if (pattern === 3) dot.style.backgroundSize = "6px 6px";
  return dot;
}

// "#rrggbb" as the number that a pixel is in memory (little-endian: alpha, blue, green, red)
function pixelOf(color) {
  const rgb = parseInt(color.slice(1), 16);
  return (255 << 24) | ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
}

function number(value) {
  if (!Number.isFinite(value)) return "none";
  value += 0; // -0 is 0
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}
