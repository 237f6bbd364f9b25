// Symbols as bytes: rANS with tables of integers, the same on every machine (docs/format.md).

import { FormatError, shortNumber, viewOf } from "./bytes.js";

const TOTAL = 2 ** 24;
const REACH = 127; // signed tables hold −127 … 127; the outermost two say "beyond"
const LN_2 = 0.6931471805599453;
export const ROOTS = [1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429];

// 2^n for whole n, exactly.
export function power(n) {
  let value = 1;
  for (; n > 0; n--) value *= 2;
  for (; n < 0; n++) value /= 2;
  return value;
}

// e^x, x ≥ 0, and e^−x, by the operations of docs/format.md.
export function exp(x) {
  const doublings = Math.floor(x / LN_2);
  const rest = x - doublings * LN_2;
  let y = 1.0;
  for (let n = 18; n > 0; n--) y = 1.0 + (y * rest) / n;
  return y * power(doublings);
}

function expMinus(x) {
  if (x >= 40) return 0;
  const halvings = Math.floor(x / LN_2);
  const rest = x - halvings * LN_2;
  let y = 1.0;
  for (let n = 16; n > 0; n--) y = 1.0 - (y * rest) / n;
  return y * power(-halvings);
}

// --- tables --------------------------------------------------------------------------------------

// Where each symbol begins among 2^24, and the end: from its frequencies.
function tableOf(frequencies, lowest, hasBeyond) {
  const starts = new Uint32Array(frequencies.length + 1);
  frequencies.forEach((frequency, i) => (starts[i + 1] = starts[i] + frequency));
  return { starts, lowest, hasBeyond };
}

function tableOfDensities(densities) {
  const total = densities.reduce((sum, density) => sum + density, 0);
  const free = TOTAL - densities.length;
  const frequencies = densities.map((density) => 1 + Math.floor(density * (free / total)));
  frequencies[REACH] += TOTAL - frequencies.reduce((sum, each) => sum + each, 0);
  return tableOf(frequencies, -REACH, true);
}

const cached = new Map();

function once(key, make) {
  if (!cached.has(key)) cached.set(key, make());
  return cached.get(key);
}

const symbols = Array.from({ length: 2 * REACH + 1 }, (_, i) => i - REACH);
const deviation = (level, zero) =>
  power(Math.floor((level - zero) / 4)) * ROOTS[(((level - zero) % 4) + 4) % 4];

function signedTable(index) {
  return once(`signed ${index}`, () => {
    const s = deviation(index % 32, 8);
    const density = index < 32 ? (p) => expMinus(p * (ROOTS[2] / s)) : (p) => expMinus((p * p) / (2 * s * s));
    return tableOfDensities(symbols.map((symbol) => density(Math.abs(symbol))));
  });
}

function logisticTable(level, eighths) {
  return once(`logistic ${level} ${eighths}`, () => {
    const s = deviation(level, 24);
    const beyond = (x) => expMinus(x) / (1.0 + expMinus(x));
    const density = (p) =>
      p >= 0.5
        ? beyond((p - 0.5) / s) - beyond((p + 0.5) / s)
        : 1.0 - beyond((p + 0.5) / s) - beyond((0.5 - p) / s);
    return tableOfDensities(symbols.map((symbol) => density(Math.abs(symbol - eighths / 8))));
  });
}

export const coinTable = (share) => tableOf([2 ** 16 * (256 - share), 2 ** 16 * share], 0, false);

function squareRoot(n) {
  if (n < 2n) return n;
  let x = 1n << BigInt((n.toString(2).length + 1) >> 1);
  for (;;) {
    const next = (x + n / x) >> 1n;
    if (next >= x) return x;
    x = next;
  }
}

function choose(n, k) {
  let found = 1n;
  for (let i = 1n; i <= k; i++) found = (found * (BigInt(n) - i + 1n)) / i;
  return found;
}

// How many of `num` points lie in the left of two parts of these lengths.
export function splitTable(num, left, right, evenness) {
  return once(`split ${num} ${left} ${right} ${evenness}`, () => {
    const roots = once(`roots ${num} ${evenness}`, () =>
      Array.from({ length: num + 1 }, (_, k) =>
        squareRoot(squareRoot(choose(num, k) ** BigInt(evenness) << 128n)),
      ),
    );
    const weights = roots.map(
      (root, k) => root * BigInt(left) ** BigInt(k) * BigInt(right) ** BigInt(num - k),
    );
    const sum = weights.reduce((a, b) => a + b);
    const free = BigInt(TOTAL - num - 1);
    const frequencies = weights.map((weight) => 1 + Number((weight * free) / sum));
    frequencies[num >> 1] += TOTAL - frequencies.reduce((a, b) => a + b);
    return tableOf(frequencies, 0, false);
  });
}

// --- the coder -----------------------------------------------------------------------------------

// Reads symbols back. The state, below 2^64, is held as two halves of 32 bits.
export class Decoder {
  constructor(payload) {
    const [count, begin] = shortNumber(payload, 0);
    const words = (payload.length - begin) / 4;
    if (words !== Math.floor(words)) {
      throw new FormatError("is damaged: coded symbols are not whole words");
    }
    if (count > words) {
      throw new FormatError("is damaged: more symbols beyond the tables than there are words");
    }
    this.view = viewOf(payload);
    this.beyond = begin; // of the next number that no table holds
    this.first = begin + 4 * count; // of the words
    this.at = payload.length; // words are taken from the end
    this.high = this.low = 0;
    if (this.at > this.first && this.view.getUint32(this.at - 4, true) === 0) {
      throw new FormatError("is damaged: no state of the coder");
    }
    this.fill();
  }

  fill() {
    while (this.high === 0 && this.at > this.first) {
      this.at -= 4;
      this.high = this.low;
      this.low = this.view.getUint32(this.at, true);
    }
  }

  // state = ⌊state / 2^24⌋ frequency + state mod 2^24 − start, in products below 2^53.
  advance(start, frequency) {
    const { high, low } = this;
    const below = (high & 0xffff) * frequency * 256 + (low >>> 24) * frequency + ((low & 0xffffff) - start);
    const above = (high >>> 16) * frequency; // of 2^24
    const sum = (above % 256) * TOTAL + below;
    this.low = sum >>> 0;
    this.high = Math.floor(above / 256) + Math.floor(sum / 2 ** 32);
    if (this.high === 0) this.fill();
  }

  // The next `count` symbols.
  take(count, table) {
    const { starts, lowest, hasBeyond } = table;
    const last = starts.length - 2;
    const found = new Float64Array(count);
    for (let n = 0; n < count; n++) {
      const rest = this.low & 0xffffff;
      let from = 0;
      let to = last;
      while (from < to) {
        const middle = (from + to + 1) >> 1;
        if (starts[middle] <= rest) from = middle;
        else to = middle - 1;
      }
      this.advance(starts[from], starts[from + 1] - starts[from]);
      found[n] = from + lowest;
      if (hasBeyond && (from === 0 || from === last)) found[n] = this.takeBeyond();
    }
    return found;
  }

  takeBeyond() {
    if (this.beyond >= this.first) {
      throw new FormatError("is damaged: symbols beyond the tables are missing");
    }
    this.beyond += 4;
    return this.view.getInt32(this.beyond - 4, true);
  }

  // Each found number · 2^bits + a symbol of the even table.
  refine(found, bits) {
    for (let n = 0; bits > 0 && n < found.length; n++) {
      const rest = this.low & 0xffffff;
      const symbol = rest >>> (24 - bits);
      this.advance(symbol << (24 - bits), 2 ** (24 - bits));
      found[n] = found[n] * 2 ** bits + symbol;
    }
    return found;
  }

  // The next numbers of a code.
  numbers(count, code) {
    return this.refine(this.take(count, signedTable(code & 63)), 2 * (code >> 6));
  }

  // The next numbers around means, in eighths, with deviations of these levels.
  logistic(means, levels) {
    const order = sortedBy(means.length, 1024, (n) => {
      const low = lowBits(levels[n]);
      return levels[n] * 8 + (shifted(means[n], low) - 8 * centerOf(means[n], low)) + 4;
    });
    const found = new Float64Array(means.length);
    for (const { key, members } of order) {
      const level = key >> 3;
      const low = lowBits(level);
      const numbers = this.take(members.length, logisticTable(level - 4 * low, (key & 7) - 4));
      members.forEach((n, i) => (numbers[i] += centerOf(means[n], low)));
      this.refine(numbers, low);
      members.forEach((n, i) => (found[n] = numbers[i]));
    }
    return found;
  }
}

const lowBits = (level) => Math.max(0, (level - 41) >> 2); // ⌈(level − 44) / 4⌉
const shifted = (mean, low) => Math.floor((mean - 4 * (2 ** low - 1)) / 2 ** low);
const centerOf = (mean, low) => Math.floor((shifted(mean, low) + 4) / 8);

// Indices 0 … count − 1 by rising key, each group in order; keys are from 0 to below `limit`,
// of −1 an index is left out.
export function sortedBy(count, limit, keyOf) {
  const keys = new Int32Array(count);
  const ends = new Uint32Array(limit + 1);
  for (let n = 0; n < count; n++) {
    keys[n] = keyOf(n);
    if (keys[n] >= 0) ends[keys[n] + 1]++;
  }
  for (let key = 0; key < limit; key++) ends[key + 1] += ends[key];
  const order = new Uint32Array(ends[limit]);
  const next = ends.slice();
  for (let n = 0; n < count; n++) if (keys[n] >= 0) order[next[keys[n]]++] = n;
  const groups = [];
  for (let key = 0; key < limit; key++) {
    if (ends[key + 1] > ends[key]) {
      groups.push({ key, members: order.subarray(ends[key], ends[key + 1]) });
    }
  }
  return groups;
}
