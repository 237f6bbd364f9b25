// The profile of seeds: points of a jittered grid, of each of which two small networks make several
// Gaussians; a third says how their numbers are coded (docs/format.md).

import { FormatError, viewOf } from "./bytes.js";
import { Decoder, ROOTS, coinTable, power } from "./entropy.js";

export const SEED_KINDS = ["FEAT", "SCAL", "OFFS"]; // payloads of a block
const PER_BLOCK = 2 ** 14; // seeds
const OFTEN = 2 ** 10; // seeds, after which it is said how many are done
const THINNEST = 0.05; // px
const XOR_FACTOR = 2654435761;
const RECIPROCALS = Array.from({ length: 25 }, (_, i) => {
  const quarters = 56 - (i - 12); // 2^(14 − t / 4)
  return Math.round(power(Math.floor(quarters / 4)) * ROOTS[quarters % 4]);
});

// What SEED holds.
export function readSeedsHeader(payload, gaussians) {
  const view = viewOf(payload);
  const levels = payload.length >= 34 ? payload[33] : 0;
  if (payload.length !== 34 + 4 * levels) {
    throw new FormatError("is damaged: its header of seeds has the wrong length");
  }
  const header = {
    random: view.getUint32(0, true),
    num: view.getUint32(4, true),
    features: view.getUint16(8, true),
    perSeed: payload[10],
    hidden: [11, 13, 15].map((at) => view.getUint16(at, true)),
    bases: [17, 21, 25].map((at) => view.getFloat32(at, true)),
    longest: view.getUint32(29, true),
    resolutions: Array.from({ length: levels }, (_, i) => view.getUint32(34 + 4 * i, true)),
  };
  const limits = [
    ["seeds", 1, 2 ** 26, [header.num]],
    ["features of a seed", 1, 255, [header.features]],
    ["Gaussians of a seed", 1, 255, [header.perSeed]],
    ["hidden values", 0, 512, header.hidden],
    ["nodes of a level", 1, 2 ** 16, [header.longest]],
    ["levels of a context", 0, 16, [levels]],
    ["cells of a level", 1, 2 ** 16, header.resolutions],
    ["as a step", 2 ** -16, 2 ** 16, header.bases],
  ];
  for (const [name, low, high, values] of limits) {
    for (const value of values) {
      if (!(value >= low && value <= high)) {
        throw new FormatError(`holds ${value} ${name}, outside ${low} to ${high}`);
      }
    }
  }
  if (header.num * header.perSeed !== gaussians) {
    throw new FormatError("is damaged: its seeds have another number of Gaussians");
  }
  header.counts = [header.features, 4, 2 * header.perSeed];
  const numbers = header.counts.reduce((a, b) => a + b);
  const [ofColors, ofShapes, ofContext] = header.hidden;
  const products =
    (ofColors + ofShapes) * (header.features + 4 * header.perSeed) +
    ofContext * (4 * levels + 2 * numbers + 3) + 64 * levels;
  // Gaussians that a seed counts as, for what it takes to decode
  const ofOne = Math.max(header.perSeed, Math.floor(numbers / 8), Math.floor(products / 1024));
  header.blocks = [];
  for (let first = 0; first < header.num; first += PER_BLOCK) {
    const num = Math.min(PER_BLOCK, header.num - first);
    header.blocks.push({ first, num, weight: num * ofOne });
  }
  return header;
}

// --- points --------------------------------------------------------------------------------------

// 64 bits as [high, low], each of 32.
const GOLDEN = [0x9e3779b9, 0x7f4a7c15];
const FACTORS = [
  [0xbf58476d, 0x1ce4e5b9],
  [0x94d049bb, 0x133111eb],
];

function sum64([a, b], [c, d]) {
  const low = b + d;
  return [(a + c + (low > 0xffffffff)) >>> 0, low >>> 0];
}

function product64([a, b], [c, d]) {
  const middle = (b >>> 16) * (d & 0xffff) + (((b & 0xffff) * (d & 0xffff)) >>> 16);
  const other = (b & 0xffff) * (d >>> 16) + (middle % 65536);
  const high = (b >>> 16) * (d >>> 16) + Math.floor(middle / 65536) + Math.floor(other / 65536);
  return [(high + Math.imul(a, d) + Math.imul(b, c)) >>> 0, Math.imul(b, d) >>> 0];
}

const xorShifted = ([a, b], by) => [(a ^ (a >>> by)) >>> 0, (b ^ ((a << (32 - by)) | (b >>> by))) >>> 0];

function mix(z) {
  z = product64(xorShifted(z, 30), FACTORS[0]);
  z = product64(xorShifted(z, 27), FACTORS[1]);
  return xorShifted(z, 31);
}

// ⌊a b / c⌋ of whole numbers.
function share(a, b, c) {
  if (a * b < 2 ** 53) return Math.floor((a * b) / c);
  return Number((BigInt(a) * BigInt(b)) / BigInt(c));
}

// x and y of the first `held` seeds, in 1/128 px, one after the other.
function placesOf({ num, random }, held, width, height) {
  const root = squareRootOf(share(4 * num, width, height));
  const columns = Math.min(Math.max(Math.floor((root + 1) / 2), 1), num);
  const rows = Math.ceil(num / columns);
  const first = mix(sum64([0, random], GOLDEN));
  const hash = (n, d) => mix(sum64(product64([0, 2 * n + d], GOLDEN), first));
  const total = rows * columns;
  const excess = total - num;
  const dropped = new Set();
  for (let e = 0; e < excess; e++) {
    const begin = share(e, total, excess);
    const [high, low] = hash(e, 1);
    const length = share(e + 1, total, excess) - begin;
    dropped.add(begin + (((high % length) * (2 ** 32 % length) + (low % length)) % length));
  }
  const places = new Float64Array(2 * held);
  for (let cell = 0, at = 0; at < 2 * held; cell++) {
    if (dropped.has(cell)) continue;
    const [, jitter] = hash(cell, 0);
    const column = cell % columns;
    const row = (cell - column) / columns;
    places[at++] = 2 * share(512 * column + 2 * (jitter & 255) + 1, width, 8 * columns) + 1;
    places[at++] = 2 * share(512 * row + 2 * ((jitter >>> 8) & 255) + 1, height, 8 * rows) + 1;
  }
  return places;
}

function squareRootOf(n) {
  let root = Math.floor(Math.sqrt(n));
  while (root * root > n) root--;
  while ((root + 1) * (root + 1) <= n) root++;
  return root;
}

// --- networks ------------------------------------------------------------------------------------

// {levels, networks: for colors, shapes and context} of NETS. Weights are numbers / 2^bits.
function readNetworks(payload, header, { width, height, channels }) {
  const side = Math.max(width, height);
  const levels = header.resolutions.map((resolution) => {
    const across = Math.ceil((resolution * width) / side) + 1;
    const nodes = across * (Math.ceil((resolution * height) / side) + 1);
    return { resolution, across, isHashed: nodes > header.longest, nodes: Math.min(nodes, header.longest) };
  });
  const { features, perSeed, hidden, counts } = header;
  const sizes = [
    [features, hidden[0], channels * perSeed],
    [features, hidden[1], 3 * perSeed],
    [4 * levels.length, hidden[2], 2 * (counts[0] + counts[1] + counts[2]) + 3],
  ];
  const length = levels.length + 15;
  if (payload.length < length || payload.subarray(0, levels.length).includes(0)) {
    throw new FormatError("is damaged: its networks are missing");
  }
  const decoder = new Decoder(payload.subarray(length));
  let at = 0;
  for (const level of levels) {
    level.signs = decoder.take(4 * level.nodes, coinTable(payload[at++])).map((bit) => 2 * bit - 1);
  }
  const networks = sizes.map(([inputs, inner, outputs], i) => {
    const bits = payload[at++];
    if (bits > (i < 2 ? 16 : 8)) throw new FormatError(`is damaged: weights in steps of 2^-${bits}`);
    const parts = [inputs * inner, inner, inner * outputs, outputs].map((count) => {
      const numbers = decoder.numbers(count, payload[at++]);
      const scaled = numbers.map((number) => number / 2 ** bits);
      const most = i < 2 ? 2 ** (24 - bits) : 32512 / 2 ** 8;
      if (scaled.some((value) => Math.abs(value) > most)) {
        throw new FormatError("is damaged: a weight is out of range");
      }
      return scaled;
    });
    return { inputs, inner, outputs, parts };
  });
  return { levels, networks };
}

// sums[j] = b[j] + Σ x[i] w[i, j]
function affine(x, weights, biases, sums) {
  sums.set(biases);
  const outputs = sums.length;
  for (let i = 0; i < x.length; i++) {
    const value = x[i];
    if (value === 0) continue;
    for (let j = 0, at = i * outputs; j < outputs; j++, at++) sums[j] += value * weights[at];
  }
}

// --- what is known of a number -------------------------------------------------------------------

function lookAround(levels, x, y, side, seen) {
  seen.fill(0);
  levels.forEach(({ resolution, across, isHashed, nodes, signs }, l) => {
    const atX = Math.floor((2 * resolution * x) / side);
    const atY = Math.floor((2 * resolution * y) / side);
    const [a, b] = [atX & 255, atY & 255];
    for (let corner = 0; corner < 4; corner++) {
      const i = Math.floor(atX / 256) + (corner & 1);
      const j = Math.floor(atY / 256) + (corner >> 1);
      const node = isHashed ? ((i ^ Math.imul(j, XOR_FACTOR)) >>> 0) % nodes : i + j * across;
      const weight = (corner & 1 ? a : 256 - a) * (corner >> 1 ? b : 256 - b);
      for (let k = 0; k < 4; k++) seen[4 * l + k] += weight * signs[4 * node + k];
    }
  });
}

// Of the first `held` seeds: means and levels [held x D], turns [held x 3]; in exact whole numbers.
function contextOf(header, held, places, side, { levels, networks }, report) {
  const { inputs, inner, parts, outputs } = networks[2];
  const [weights1, biases1, weights2, biases2] = parts.map((part) => part.map((value) => value * 256));
  const seen = new Float64Array(inputs);
  const hidden = new Float64Array(inner);
  const p = new Float64Array(outputs);
  const count = (outputs - 3) / 2;
  const kinds = header.counts.flatMap((length, kind) => Array(length).fill(kind));
  const means = new Float64Array(held * count);
  const deviations = new Uint8Array(held * count);
  const turns = new Int8Array(held * 3);
  const quarters = (value) => Math.floor((4 * value + 2 ** 19) / 2 ** 20);
  const raised1 = biases1.map((value) => value * 2 ** 16);
  const raised2 = biases2.map((value) => value * 2 ** 12);
  for (let n = 0; n < held; n++) {
    if (n % OFTEN === 0) report(n);
    lookAround(levels, places[2 * n], places[2 * n + 1], side, seen);
    affine(seen, weights1, raised1, hidden);
    for (let j = 0; j < inner; j++) {
      hidden[j] = Math.min(Math.max(Math.floor((hidden[j] + 2 ** 11) / 2 ** 12), 0), 2 ** 17 - 1);
    }
    affine(hidden, weights2, raised2, p);
    for (let kind = 0; kind < 3; kind++) {
      turns[3 * n + kind] = Math.min(Math.max(quarters(p[2 * count + kind]), -12), 12);
    }
    for (let k = 0; k < count; k++) {
      const turn = turns[3 * n + kinds[k]];
      const value = Math.min(Math.max(Math.floor(p[k] / 2 ** 12), -(2 ** 31)), 2 ** 31);
      means[n * count + k] = Math.floor((value * RECIPROCALS[turn + 12] + 2 ** 18) / 2 ** 19);
      deviations[n * count + k] = Math.min(Math.max(quarters(p[count + k]) + 24 - turn, 0), 63);
    }
  }
  return { means, deviations, turns, count };
}

// The rows first … first + num and columns begin … begin + length of a matrix, as one list.
function cut(matrix, columns, first, num, begin, length) {
  const found = new Float64Array(num * length);
  for (let n = 0; n < num; n++) {
    const at = (first + n) * columns + begin;
    for (let k = 0; k < length; k++) found[n * length + k] = matrix[at + k];
  }
  return found;
}

// What is missing of a block is at its mean.
function readNumbers(header, blocks, { means, deviations, count }) {
  const numbers = means.map((mean) => Math.floor((mean + 4) / 8));
  for (const { first, num, payloads } of blocks) {
    let begin = 0;
    SEED_KINDS.forEach((kind, i) => {
      const length = header.counts[i];
      if (payloads[kind]) {
        const found = new Decoder(payloads[kind]).logistic(
          cut(means, count, first, num, begin, length),
          cut(deviations, count, first, num, begin, length),
        );
        for (let k = 0; k < found.length; k++) {
          if (!(Math.abs(found[k]) <= 2 ** 30)) {
            throw new FormatError("is damaged: a number of a seed is out of range");
          }
          numbers[(first + Math.floor(k / length)) * count + begin + (k % length)] = found[k];
        }
      }
      begin += length;
    });
  }
  return numbers;
}

// --- Gaussians -----------------------------------------------------------------------------------

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// Writes the Gaussians of the seeds of these blocks, which are the first ones: five numbers each to
// `geometry`, C to `colors`. `report` hears how many are done, half of each when its context is known.
export function decodeSeeds(header, blocks, picture, networksPayload, { geometry, colors }, report) {
  const { width, height, channels } = picture;
  const held = blocks.reduce((sum, { num }) => sum + num, 0);
  const nets = readNetworks(networksPayload, header, picture);
  const places = placesOf(header, held, width, height);
  const { features, perSeed, bases } = header;
  const halfOf = (seeds) => (seeds * perSeed) / 2;
  const known = (n) => report(halfOf(n));
  const context = contextOf(header, held, places, Math.max(width, height), nets, known);
  const numbers = readNumbers(header, blocks, context);
  const feature = new Float64Array(features);
  const [makeColors, makeShapes] = nets.networks.slice(0, 2).map(({ inner, outputs, parts }) => {
    const hidden = new Float64Array(inner);
    const made = new Float64Array(outputs);
    return () => {
      affine(feature, parts[0], parts[1], hidden);
      for (let j = 0; j < inner; j++) hidden[j] = Math.max(hidden[j], 0);
      affine(hidden, parts[2], parts[3], made);
      return made;
    };
  });
  for (let n = 0; n < held; n++) {
    if (n % OFTEN === 0) report(halfOf(held + n));
    const row = numbers.subarray(n * context.count, (n + 1) * context.count);
    const steps = bases.map((base, kind) => {
      const turn = context.turns[3 * n + kind];
      return base * ROOTS[((turn % 4) + 4) % 4] * power(Math.floor(turn / 4));
    });
    for (let k = 0; k < features; k++) feature[k] = Math.fround(row[k] * steps[0]);
    const sizes = [0, 1, 2, 3].map((k) => Math.exp(Math.fround(row[features + k] * steps[1])));
    colors.set(makeColors(), n * perSeed * channels);
    const shapes = makeShapes();
    for (let k = 0; k < perSeed; k++) {
      const [dx, dy] = [0, 1].map((i) => Math.fround(row[features + 4 + 2 * k + i] * steps[2]));
      const s1 = Math.hypot(sizes[2] * sigmoid(shapes[3 * k]), THINNEST);
      const s2 = Math.hypot(sizes[3] * sigmoid(shapes[3 * k + 1]), THINNEST);
      const [cos, sin] = [Math.cos(shapes[3 * k + 2]), Math.sin(shapes[3 * k + 2])];
      const l11 = Math.hypot(s1 * cos, s2 * sin);
      const x = places[2 * n] / 128 + dx * sizes[0];
      const y = places[2 * n + 1] / 128 + dy * sizes[1];
      const l21 = ((s1 - s2) * (s1 + s2) * sin * cos) / l11;
      geometry.set([x, y, l11, l21, (s1 * s2) / l11], 5 * (n * perSeed + k));
    }
  }
  if (![geometry, colors].every((field) => field.every(Number.isFinite))) {
    throw new FormatError("is damaged: a seed's Gaussian is not finite");
  }
}
