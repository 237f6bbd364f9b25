// The profiles fast and compact: payloads → whole numbers → Gaussians (docs/format.md).

import { FormatError, shortNumber, viewOf } from "./bytes.js";
import { Decoder, ROOTS, exp, power, sortedBy, splitTable } from "./entropy.js";

const FEW = 16; // points of a cell whose halves have a split table
const EXACT = 16; // lattice points; a longer side counts as cut into equal halves
const EVENNESS = 12;
const LARGEST = 2 ** 29;
const LN_2 = 0.6931471805599453;

export const isChroma = (channel, channels) =>
  (channels === 3 || channels === 4) && (channel === 1 || channel === 2);

// The kinds of payloads of a block, in their order.
export function kindsOf(channels) {
  const all = ["POSI", "SIZE", "LUMA", "CHRO", "SHAP"];
  return all.filter((kind) => kind !== "CHRO" || channels === 3 || channels === 4);
}

// The numbers of a block: {x, y, sizes, colors: one each channel, shapes: two}, all Int32Array;
// those whose payloads are missing are 0.
export function decodeBlock(header, block, payloads) {
  const { num, wide, high } = block;
  const { channels } = header;
  const planes = Array.from({ length: channels }, () => null);
  const isCompact = header.profile === "compact";
  const read = (kind, classes, count) => {
    const payload = payloads[kind];
    if (!payload) return Array.from({ length: count }, () => new Int32Array(num));
    return isCompact ? readClasses(payload, classes(), count, num) : readFixed(payload, num, count);
  };
  const [x, y] = isCompact ? readPoints(payloads.POSI, num, wide, high) : readFixed(payloads.POSI, num, 2);
  expectWithin(x, 0, wide - 1);
  expectWithin(y, 0, high - 1);
  const [sizes] = read("SIZE", () => closeness(x, y), 1);
  expectWithin(sizes, -40 * header.sizes, 40 * header.sizes);
  for (const kind of ["LUMA", "CHRO"]) {
    const chosen = planes.map((_, c) => c).filter((c) => isChroma(c, channels) === (kind === "CHRO"));
    if (!chosen.length) continue;
    const classes = () => (kind === "LUMA" ? sizes : planes[0].map((value) => bits(square(value))));
    read(kind, classes, chosen.length).forEach((plane, i) => (planes[chosen[i]] = plane));
  }
  const shapes = read("SHAP", () => levelsOf(planes, num), 2);
  for (const plane of [...planes, ...shapes]) expectWithin(plane, -LARGEST, LARGEST);
  const whole = (numbers) => Int32Array.from(numbers);
  return { x: whole(x), y: whole(y), sizes: whole(sizes), colors: planes.map(whole), shapes: shapes.map(whole) };
}

function expectWithin(numbers, low, high) {
  for (let n = 0; n < numbers.length; n++) {
    if (!(numbers[n] >= low && numbers[n] <= high)) {
      throw new FormatError("is damaged: a position, size, color or shape is out of range");
    }
  }
}

// --- classes -------------------------------------------------------------------------------------

const double = new DataView(new ArrayBuffer(8));

// 1 + ⌊log2 value⌋, of 0 it is 0.
function bits(value) {
  if (value === 0) return 0;
  double.setFloat64(0, value);
  return ((double.getUint32(0) >>> 20) & 2047) - 1022;
}

function square(value) {
  const held = Math.min(Math.abs(value), 2 ** 25);
  return held * held;
}

function closeness(x, y) {
  const classes = new Float64Array(x.length);
  let before = Infinity; // squared distance
  for (let n = 0; n < x.length; n++) {
    const after =
      n + 1 < x.length ? (x[n + 1] - x[n]) ** 2 + (y[n + 1] - y[n]) ** 2 : Infinity;
    const closer = Math.min(before, after);
    classes[n] = closer === Infinity ? 0 : bits(square(closer));
    before = after;
  }
  return classes;
}

function levelsOf(colors, num) {
  const levels = new Float64Array(num);
  for (let n = 0; n < num; n++) {
    let sum = 1;
    for (const plane of colors) sum += square(plane[n]);
    levels[n] = Math.min(24, bits(sum) - 1);
  }
  return levels;
}

// Classes numbered from 0 such that none is rare, and how many there are.
function merged(classes) {
  const num = classes.length;
  const rare = Math.max(40, Math.floor(Math.floor(num / 12) / 2));
  const lowest = classes.reduce((a, b) => Math.min(a, b), 0); // of sizes at least −2560
  const counts = new Uint32Array(classes.reduce((a, b) => Math.max(a, b), 0) - lowest + 1);
  for (let n = 0; n < num; n++) counts[classes[n] - lowest]++;
  const names = new Uint8Array(counts.length);
  let number = 0;
  let filled = 0;
  let following = num;
  counts.forEach((count, value) => {
    if (!count) return;
    names[value] = number;
    filled += count;
    following -= count;
    if (filled >= rare && following >= rare && number + 1 < 12) {
      number += 1;
      filled = 0;
    }
  });
  return { names: Uint8Array.from(classes, (value) => names[value - lowest]), count: number + 1 };
}

function readClasses(payload, classes, planes, num) {
  const { names, count } = merged(classes);
  const heads = [];
  let at = 0;
  for (let i = 0; i < planes * count; i++) {
    let center;
    [center, at] = shortNumber(payload, at);
    heads.push({ center: center % 2 ? -(center + 1) / 2 : center / 2, code: payload[at++] });
  }
  if (at > payload.length) throw new FormatError("is damaged: tables of a payload are missing");
  const decoder = new Decoder(payload.subarray(at));
  const members = Array.from({ length: count }, () => new Uint32Array(0));
  for (const group of sortedBy(num, count, (n) => names[n])) members[group.key] = group.members;
  const found = Array.from({ length: planes }, () => new Float64Array(num));
  heads.forEach(({ center, code }, i) => {
    const chosen = members[i % count];
    const numbers = decoder.numbers(chosen.length, code);
    const plane = found[Math.floor(i / count)];
    for (let k = 0; k < chosen.length; k++) plane[chosen[k]] = center + numbers[k];
  });
  return found;
}

// --- positions -----------------------------------------------------------------------------------

function readPoints(payload, num, wide, high) {
  const [length, begin] = shortNumber(payload, 0);
  if (length > payload.length - begin) {
    throw new FormatError("is damaged: tables of positions are missing");
  }
  const choices = payload.subarray(begin, begin + length);
  const decoder = new Decoder(payload.subarray(begin + length));
  let used = 0;
  const choice = (limit) => {
    if (used >= choices.length || choices[used] >= limit) {
      throw new FormatError("is damaged: tables of positions are missing");
    }
    return choices[used++];
  };
  let cells = cellsOf(num ? 1 : 0);
  if (num) [cells.x[0], cells.y[0], cells.wide[0], cells.high[0], cells.num[0]] = [0, 0, wide, high, num];
  while (cells.num.some((_, i) => cells.wide[i] > 1 || cells.high[i] > 1)) {
    cells = halved(cells, countLeft(cells, choice, decoder));
  }
  if (used !== length) throw new FormatError("is damaged: more tables of positions than are used");
  const x = new Float64Array(num);
  const y = new Float64Array(num);
  let n = 0;
  cells.num.forEach((count, i) => {
    x.fill(cells.x[i], n, n + count);
    y.fill(cells.y[i], n, n + count);
    n += count;
  });
  return [x, y];
}

function cellsOf(count) {
  const fields = ["x", "y", "wide", "high", "num"].map((name) => [name, new Int32Array(count)]);
  return Object.fromEntries(fields);
}

// How many points of each cell lie on the left of its cut.
function countLeft(cells, choice, decoder) {
  const onLeft = cells.num.slice();
  const sideOf = (i) => Math.max(cells.wide[i], cells.high[i]);
  const groups = sortedBy(cells.num.length, (FEW + 1) * EXACT, (i) => {
    const side = sideOf(i);
    if (side === 1) return -1;
    if (cells.num[i] > FEW) return 0;
    const isEven = side % 2 === 0 || side >= EXACT;
    return cells.num[i] * EXACT + (isEven ? 0 : (side + 1) >> 1);
  }).reverse();
  const evenness = groups.some(({ key }) => key >= 2 * EXACT) ? choice(EVENNESS) : 0;
  for (const { key, members } of groups) {
    const left = key % EXACT;
    const found = key
      ? decoder.take(members.length, splitTable(key >> 4, left || 1, left ? left - 1 : 1, evenness))
      : decoder.numbers(members.length, choice(256));
    members.forEach((i, k) => {
      const side = sideOf(i);
      const middle = key ? 0 : Math.floor((cells.num[i] * ((side + 1) >> 1)) / side);
      const count = middle + found[k];
      if (!(count >= 0 && count <= cells.num[i])) {
        throw new FormatError("is damaged: a part of the picture holds fewer than no points");
      }
      onLeft[i] = count;
    });
  }
  return onLeft;
}

// The halves of all cells that have points, left before right, in the place of their cell.
function halved(cells, onLeft) {
  let count = 0;
  onLeft.forEach((left, i) => (count += (left > 0) + (left < cells.num[i])));
  const made = cellsOf(count);
  let n = 0;
  const put = (i, isWide, begin, length, points) => {
    if (!points) return;
    made.x[n] = cells.x[i] + (isWide ? begin : 0);
    made.y[n] = cells.y[i] + (isWide ? 0 : begin);
    made.wide[n] = isWide ? length : cells.wide[i];
    made.high[n] = isWide ? cells.high[i] : length;
    made.num[n++] = points;
  };
  for (let i = 0; i < onLeft.length; i++) {
    const isWide = cells.wide[i] >= cells.high[i];
    const side = isWide ? cells.wide[i] : cells.high[i];
    const first = (side + 1) >> 1;
    put(i, isWide, 0, first, onLeft[i]);
    put(i, isWide, first, side - first, cells.num[i] - onLeft[i]);
  }
  return made;
}

// --- the fast profile ----------------------------------------------------------------------------

function readFixed(payload, num, columns) {
  const view = viewOf(payload);
  const found = [];
  let at = 0;
  for (let column = 0; column < columns; column++) {
    const width = at + 5 <= payload.length ? payload[at + 4] : 64;
    const end = at + 5 + Math.floor((num * width + 7) / 8);
    if (width > 32 || end > payload.length) {
      throw new FormatError("is damaged: its numbers have too few bits");
    }
    const numbers = new Float64Array(num).fill(view.getInt32(at, true));
    at += 5;
    let held = 0; // of `left` bits
    let left = 0;
    for (let n = 0; width > 0 && n < num; n++) {
      while (left < width) {
        held = held * 256 + payload[at++];
        left += 8;
      }
      left -= width;
      const above = Math.floor(held / 2 ** left);
      held -= above * 2 ** left;
      numbers[n] += above;
    }
    at = end;
    found.push(numbers);
  }
  if (at !== payload.length) throw new FormatError("is damaged: more bits than its numbers need");
  return found;
}

// --- numbers to Gaussians ------------------------------------------------------------------------

// Writes a block's Gaussians: five numbers x, y, l11, l21, l22 each to `geometry`, C to `colors`.
// `planes` payloads are taken, the others as missing: gray, round Gaussians of a pixel.
export function writeGaussians(header, block, numbers, planes, geometry, colors) {
  const { channels, position, luma, chroma } = header;
  const isThere = (kind) => kindsOf(channels).indexOf(kind) < planes;
  const amounts = new Int32Array(channels);
  const values = new Float64Array(channels);
  const roots = Float64Array.from({ length: 25 }, (_, level) =>
    Math.min(header.shape / luma / (ROOTS[level % 2 ? 2 : 0] * power(level >> 1)), 1),
  );
  const hasSizes = isThere("SIZE");
  const hasLuma = isThere("LUMA");
  const hasShapes = isThere("SHAP");
  for (let n = 0; n < block.num; n++) {
    const size = sizeOf(hasSizes ? numbers.sizes[n] : 0, header.sizes);
    let sum = 1;
    for (let c = 0; c < channels; c++) {
      const there = isChroma(c, channels) ? isThere("CHRO") : hasLuma;
      amounts[c] = there ? numbers.colors[c][n] : 0;
      if (!hasLuma && (c === 0 || (channels === 4 && c === 3))) {
        amounts[c] = Math.floor(Math.min(((c ? 0.5 : 0.25) * size) / luma, LARGEST));
      }
      sum += square(amounts[c]);
      values[c] = (amounts[c] * (isChroma(c, channels) ? chroma : luma)) / size;
    }
    if (channels === 3 || channels === 4) {
      const [y, a, g] = values;
      const middle = y - (g * 2) / 3;
      values[0] = middle + a;
      values[1] = y + (g * 4) / 3;
      values[2] = middle - a;
    }
    const step = roots[Math.min(24, bits(sum) - 1)];
    const d = hasShapes ? within4(numbers.shapes[0][n] * step) : 0;
    const o = hasShapes ? within4(numbers.shapes[1][n] * step) : 0;
    const r = Math.min(Math.sqrt(d * d + o * o), 4);
    const grown = exp(2 * r);
    const slope = r > 1e-4 ? (grown - 1 / grown) / 2 / r : 2.0;
    const x = Math.sqrt(Math.max((grown + 1 / grown) / 2 + slope * d, 1e-6));
    const at = 5 * n;
    geometry[at] = (numbers.x[n] + block.x + 0.5) * position;
    geometry[at + 1] = (numbers.y[n] + block.y + 0.5) * position;
    geometry[at + 2] = size * x;
    geometry[at + 3] = (size * (slope * o)) / x;
    geometry[at + 4] = size / x;
    for (let c = 0; c < channels; c++) colors[channels * n + c] = values[c];
  }
}

const within4 = (value) => Math.min(Math.max(value, -4), 4);

function sizeOf(number, steps) {
  const octave = Math.floor(number / steps);
  return exp((number - octave * steps) * (LN_2 / steps)) * power(octave);
}
