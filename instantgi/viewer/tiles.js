// Which Gaussians each tile of a target may see: for the mixture, which needs all weights of a pixel.

const UNIT = 0.84932180028801905;
const THINNEST = 1e-6; // px
const MOST_PAIRS = 2 ** 23;

// Args: parts: [{gaussians, count}]; width, height: of the target, pixels; origin, scale: of it;
// cutoff: the exponent s at which a weight 2^−s ends.
// Returns `values`, 12 floats of each Gaussian that is seen, `ranges`, begin and end for each tile,
// and `lists`, numbers of Gaussians.
export function listTiles(parts, width, height, origin, scale, cutoff) {
  const radius = Math.sqrt(cutoff) / UNIT;
  const { values, boxes, seen } = placeAll(parts, width, height, origin, scale, radius);
  let shift = 4;
  while (shift < 12 && countPairs(boxes, seen, shift) > MOST_PAIRS) shift++;
  const columns = ((width - 1) >> shift) + 1;
  const rows = ((height - 1) >> shift) + 1;
  const ends = new Uint32Array(columns * rows + 1);
  eachPair(boxes, seen, shift, columns, (tile) => ends[tile + 1]++);
  for (let tile = 0; tile < columns * rows; tile++) ends[tile + 1] += ends[tile];
  const next = ends.slice(0, -1);
  const lists = new Uint32Array(ends.at(-1));
  eachPair(boxes, seen, shift, columns, (tile, n) => (lists[next[tile]++] = n));
  const ranges = new Uint32Array(2 * columns * rows);
  for (let tile = 0; tile < columns * rows; tile++) ranges.set([ends[tile], ends[tile + 1]], 2 * tile);
  return { values, seen, ranges, lists, columns, rows, shift };
}

function placeAll(parts, width, height, origin, scale, radius) {
  const most = parts.reduce((sum, { count }) => sum + count, 0);
  const values = new Float32Array(12 * most);
  const boxes = new Int32Array(4 * most); // first and last pixel in x, in y
  let seen = 0;
  for (const { gaussians, count } of parts) {
    const { geometry, colors, channels } = gaussians;
    for (let n = 0; n < count; n++) {
      const x = (geometry[5 * n] - origin[0]) * scale[0];
      const y = (geometry[5 * n + 1] - origin[1]) * scale[1];
      const l11 = geometry[5 * n + 2] * scale[0];
      const l21 = geometry[5 * n + 3] * scale[1];
      const l22 = geometry[5 * n + 4] * scale[1];
      if (Math.abs(l11) < THINNEST || Math.abs(l22) < THINNEST) continue;
      const reachX = radius * Math.abs(l11) + 1;
      const reachY = radius * Math.hypot(l21, l22) + 1;
      if (x + reachX < 0 || y + reachY < 0 || x - reachX > width || y - reachY > height) continue;
      boxes[4 * seen] = Math.max(0, x - reachX);
      boxes[4 * seen + 1] = Math.min(width - 1, x + reachX);
      boxes[4 * seen + 2] = Math.max(0, y - reachY);
      boxes[4 * seen + 3] = Math.min(height - 1, y + reachY);
      const at = 12 * seen++;
      values[at] = x;
      values[at + 1] = y;
      values[at + 2] = UNIT / l11;
      values[at + 3] = (-UNIT * l21) / (l11 * l22);
      values[at + 4] = UNIT / l22;
      for (let c = 0; c < Math.min(4, channels); c++) values[at + 8 + c] = colors[channels * n + c];
    }
  }
  return { values, boxes, seen };
}

function countPairs(boxes, seen, shift) {
  let pairs = 0;
  for (let n = 0; n < seen; n++) {
    const [left, right, top, bottom] = [0, 1, 2, 3].map((i) => boxes[4 * n + i] >> shift);
    pairs += (right - left + 1) * (bottom - top + 1);
  }
  return pairs;
}

function eachPair(boxes, seen, shift, columns, visit) {
  for (let n = 0; n < seen; n++) {
    const left = boxes[4 * n] >> shift;
    const right = boxes[4 * n + 1] >> shift;
    const bottom = boxes[4 * n + 3] >> shift;
    for (let row = boxes[4 * n + 2] >> shift; row <= bottom; row++) {
      for (let column = left; column <= right; column++) visit(row * columns + column, n);
    }
  }
}
