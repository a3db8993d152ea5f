// Discs into pixels. All discs of a frame have one size, so each disc is stamped: its pixels are worked out once for
// 4 x 4 places of its center within a pixel. 100,000 cells take some 30 ms, without WebGL.
const PHASES = 4;
const LARGE = 24; // radius in pixels from which the canvas draws circles itself: then few cells are in sight

function stampsOf(radius, stride) {
  const reach = Math.ceil(radius) + 1, stamps = [];
  for (let phase = 0; phase < PHASES * PHASES; phase++) {
    const cx = ((phase % PHASES) + 0.5) / PHASES, cy = (Math.floor(phase / PHASES) + 0.5) / PHASES;
    const offsets = [], covers = [];
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const cover = Math.min(1, radius + 0.5 - Math.hypot(x + 0.5 - cx, y + 0.5 - cy));
        if (cover > 0.02) {
          offsets.push(y * stride + x);
          covers.push(Math.round(255 * cover));
        }
      }
    }
    stamps.push({ offsets: Int32Array.from(offsets), covers: Uint8Array.from(covers) });
  }
  return stamps;
}

// one pixel over another; cover is 0 to 255 of the upper one
function over(below, above, cover) {
  const alpha = (((above >>> 24) * cover * 257) >> 16) + 1, under = below >>> 24;
  if (under === 0) return (Math.min(alpha, 255) << 24) | (above & 0xffffff);
  const sum = alpha + (under * (255 - alpha)) / 255, share = Math.min(alpha / sum, 1);
  const r = below & 255, g = (below >>> 8) & 255, b = (below >>> 16) & 255;
  return (
    (Math.min(sum, 255) << 24) |
    ((b + (((above >>> 16) & 255) - b) * share) << 16) |
    ((g + (((above >>> 8) & 255) - g) * share) << 8) |
    (r + ((above & 255) - r) * share)
  );
}

// cells: x, y, order, colors (pixels; 0: not drawn), raised (1: drawn after the others); view: cx, cy, scale, radius
function stampCells(context, cells, view) {
  const { width, height } = context.canvas;
  context.clearRect(0, 0, width, height);
  if (view.radius > LARGE) return drawCircles(context, cells, view);
  const margin = 2 * Math.ceil(view.radius) + 4, stride = width + 2 * margin;
  const pixels = new Int32Array(stride * (height + 2 * margin));
  const stamps = stampsOf(view.radius, stride);
  const left = width / 2 + margin - view.cx * view.scale, top = height / 2 + margin - view.cy * view.scale;
  const far = Math.ceil(view.radius) + 2; // of a center from the edge of the array, at least: its stamp stays inside
  const right = stride - far - 1, bottom = height + 2 * margin - far - 1;
  for (let pass = 0; pass < 2; pass++) {
    for (let k = 0; k < cells.order.length; k++) {
      const i = cells.order[k], color = cells.colors[i];
      if (!color || cells.raised[i] !== pass) continue;
      const px = cells.x[i] * view.scale + left, py = cells.y[i] * view.scale + top;
      if (!(px >= far && py >= far && px < right && py < bottom)) continue;
      const column = Math.floor(px), row = Math.floor(py);
      const { offsets, covers } = stamps[Math.floor((py - row) * PHASES) * PHASES + Math.floor((px - column) * PHASES)];
      const base = row * stride + column, opaque = color >>> 24 === 255;
      for (let j = 0; j < offsets.length; j++) {
        const at = base + offsets[j], below = pixels[at];
        if (below !== color) pixels[at] = opaque && covers[j] === 255 ? color : over(below, color, covers[j]);
      }
    }
  }
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), stride, height + 2 * margin);
  context.putImageData(image, -margin, -margin);
}

function drawCircles(context, cells, view) {
  const { width, height } = context.canvas;
  for (let pass = 0; pass < 2; pass++) {
    for (const i of cells.order) {
      const color = cells.colors[i];
      if (!color || cells.raised[i] !== pass) continue;
      const px = (cells.x[i] - view.cx) * view.scale + width / 2, py = (cells.y[i] - view.cy) * view.scale + height / 2;
      if (px < -view.radius || py < -view.radius || px > width + view.radius || py > height + view.radius) continue;
      const alpha = (color >>> 24) / 255;
      context.fillStyle = `rgba(${color & 255}, ${(color >>> 8) & 255}, ${(color >>> 16) & 255}, ${alpha})`;
      context.beginPath();
      context.arc(px, py, view.radius, 0, 2 * Math.PI);
      context.fill();
    }
  }
}
