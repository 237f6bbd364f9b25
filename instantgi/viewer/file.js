// A file of Gaussians: its chunks, headers, parts and blocks → Gaussians (docs/format.md).

import { FormatError, readChunks, viewOf } from "./bytes.js";
import { decodeBlock, kindsOf, writeGaussians } from "./numbers.js";
import { SEED_KINDS, decodeSeeds, readSeedsHeader } from "./seeds.js";

export const PROFILES = ["lossless", "fast", "compact", "seeds"];
export const RENDERERS = ["sum", "mixture", "levels"];
const MOST_GAUSSIANS = 2 ** 26;
const LUMA_PLANE = 3; // chunks of a block, up to the first of its colors
const SIZE_OF_HEADER = { lossless: 16, fast: 33, compact: 33, seeds: 16 };
const SIZE_OF_RENDERER = { sum: 0, mixture: 5, levels: 8 };

// What a file holds, or the beginning of one. Its parts have `header`, `num` Gaussians that are there
// and can `decode(planes, report)` them; more than one part is one picture, from coarse to fine.
// It is seen in `steps`: its parts, or the kinds of numbers of its only one.
export function readFile(bytes) {
  const { chunks, hasEnd, numBytes } = readChunks(bytes);
  if (!chunks.length) throw new FormatError("is damaged: it ends before its first chunk does");
  if (chunks[0].type !== "HEAD") throw new FormatError("is damaged: it has no header");
  const number = readNumberOfParts(chunks);
  const parts = readParts(chunks, numBytes);
  if (parts.length > number || (hasEnd && parts.length < number)) {
    throw new FormatError(`is damaged: ${parts.length} of ${number} parts`);
  }
  const isWhole = hasEnd && parts.at(-1).isWhole;
  if (parts.length > 1 && !parts.at(-1).isWhole && !parts.at(-1).num) parts.pop(); // as if missing
  const sumOf = (count) => parts.reduce((sum, part) => sum + count(part), 0);
  const num = sumOf((part) => part.num);
  if (!isWhole && !num) {
    throw new FormatError("is only the beginning of a file, and ends before any Gaussian can be drawn");
  }
  const { width, height, channels, profile, renderer } = parts.at(-1).header;
  const text = (type) => {
    const found = chunks.findLast((chunk) => chunk.type === type);
    return found && new TextDecoder().decode(found.payload);
  };
  const byParts = parts.length > 1;
  return {
    width, height, channels, profile, renderer, num, numBytes, isWhole, byParts, parts,
    steps: byParts ? parts.length : parts[0].planes,
    all: { num: sumOf((part) => part.header.num), parts: number },
    software: text("soft"),
    hasColorProfile: chunks.some((chunk) => chunk.type === "icc "),
  };
}

function readParts(chunks, numBytes) {
  const found = [];
  for (const { type, payload } of chunks) {
    if (type === "HEAD") {
      found.push({ header: readHeader(payload), needed: [] });
      if (found.length > 32) throw new FormatError("is damaged: more than 32 parts");
    } else if (type !== "PART" && !mayBeSkipped(type)) {
      found.at(-1).needed.push({ type, payload });
    }
  }
  checkParts(found.map((part) => part.header));
  const parts = found.map(({ header, needed }, i) => partOf(header, needed, i > 0));
  const present = parts.reduce((sum, part) => sum + part.weight, 0);
  const perByte = parts[0].header.profile === "seeds" ? 8 : 2;
  if (present > perByte * numBytes) {
    throw new FormatError(`is damaged: ${present} Gaussians in ${numBytes} bytes`); // bounds memory
  }
  if (parts.slice(0, -1).some((part) => !part.isWhole)) {
    throw new FormatError("is damaged: a part ends early, and another follows");
  }
  return parts;
}

// The Gaussians of all parts; `report` hears which share of them is done.
export function gaussiansOf(file, step = file.steps, report = () => {}) {
  let done = 0;
  return file.parts.map((part) => {
    const made = part.decode(file.byParts ? undefined : step, (num) => report((done + num) / file.num));
    done += part.num;
    return made;
  });
}

const mayBeSkipped = (type) => type[0] >= "a" && type[0] <= "z";

function readNumberOfParts(chunks) {
  const at = chunks.findIndex((chunk) => chunk.type === "PART");
  if (at < 0) return 1;
  if (at !== 1 || chunks.filter((chunk) => chunk.type === "PART").length > 1) {
    throw new FormatError("is damaged: its number of parts stands elsewhere");
  }
  if (chunks[1].payload.length !== 1) {
    throw new FormatError("is damaged: its number of parts has the wrong length");
  }
  return chunks[1].payload[0];
}

function readHeader(payload) {
  if (payload.length < 16) throw new FormatError("is damaged: its header is too short");
  const view = viewOf(payload);
  const [version, kind, profile, channels] = payload;
  if (version !== 1 || kind >= RENDERERS.length || profile >= PROFILES.length) {
    throw new FormatError(
      `has format version ${version}, renderer ${kind}, profile ${profile}; this page knows 1, ` +
        `0 to ${RENDERERS.length - 1} and 0 to ${PROFILES.length - 1}; make it anew with a newer instantgi`,
    );
  }
  const header = { profile: PROFILES[profile], renderer: RENDERERS[kind], channels };
  const begin = SIZE_OF_HEADER[header.profile];
  const expected = begin + SIZE_OF_RENDERER[header.renderer];
  if (payload.length !== expected) {
    throw new FormatError(`is damaged: a header of ${payload.length} bytes, not ${expected}`);
  }
  [header.height, header.width, header.num] = [4, 8, 12].map((at) => view.getUint32(at, true));
  const { width, height } = header;
  const hasSides = width >= 1 && width <= 2 ** 20 && height >= 1 && height <= 2 ** 20;
  if (!hasSides || width * height > 2 ** 33 || channels < 1 || channels > 16) {
    throw new FormatError(`holds a picture of ${width}x${height} pixels in ${channels} channels`);
  }
  if (header.num > MOST_GAUSSIANS) throw new FormatError(`holds ${header.num} Gaussians, too many`);
  if (begin === 33) readSteps(header, view);
  if (header.renderer === "mixture") {
    header.topK = payload[begin];
    header.epsilon = view.getFloat32(begin + 1, true);
    if (!(header.topK >= 1 && header.topK <= 32 && header.epsilon >= 1e-30 && header.epsilon <= 1)) {
      throw new FormatError(`holds a mixture of ${header.topK} terms and an epsilon of ${header.epsilon}`);
    }
  }
  if (header.renderer === "levels") {
    [header.low, header.high] = [begin, begin + 4].map((at) => view.getFloat32(at, true));
    if (!(-1e6 < header.low && header.low <= header.high && header.high < 1e6)) {
      throw new FormatError(`holds a level from ${header.low} to ${header.high}`);
    }
  }
  if (header.profile === "seeds" && header.renderer !== "sum") {
    throw new FormatError("holds seeds that are not drawn as a sum");
  }
  return header;
}

function readSteps(header, view) {
  header.position = view.getFloat32(16, true);
  header.sizes = view.getUint8(20);
  [header.shape, header.luma, header.chroma] = [21, 25, 29].map((at) => view.getFloat32(at, true));
  const limits = {
    position: [2 ** -8, 2 ** 8], sizes: [1, 64], shape: [2 ** -12, 16],
    luma: [2 ** -16, 2 ** 8], chroma: [2 ** -16, 2 ** 8],
  };
  for (const [name, [low, high]] of Object.entries(limits)) {
    if (!(header[name] >= low && header[name] <= high)) {
      throw new FormatError(`holds a step for ${name} of ${header[name]}, outside ${low} to ${high}`);
    }
  }
}

function checkParts(headers) {
  const [first] = headers;
  headers.slice(1).forEach((header, i) => {
    const before = headers[i];
    if (before.height > header.height || before.width > header.width) {
      throw new FormatError("holds a level that is larger than the next");
    }
    const same = ["channels", "profile", "renderer"];
    if (header.renderer === "mixture") same.push("height", "width", "topK", "epsilon");
    if (header.renderer === "sum" || same.some((name) => header[name] !== first[name])) {
      throw new FormatError("is damaged: its parts do not belong to one picture");
    }
  });
  if (headers.reduce((sum, { num }) => sum + num, 0) > MOST_GAUSSIANS) {
    throw new FormatError(`holds more than ${MOST_GAUSSIANS} Gaussians`);
  }
}

// --- parts ---------------------------------------------------------------------------------------

// A block that lacks its first chunk is not drawn. Behind another part a level's is from its luma on,
// since gray would hide what is below, and a stage's once it is whole: in an average, Gaussians that
// are round so far push aside those that have their shapes.
function partOf(header, needed, isBehind) {
  const { profile, channels } = header;
  if (profile === "seeds") return partOfSeeds(header, needed);
  const all = blocksOf(header, needed[0]?.type === "GRID" ? needed.shift().payload : null);
  const kinds = profile === "lossless" ? ["FULL"] : kindsOf(channels);
  const isWhole = needed.length === kinds.length * all.length;
  const begun = withPayloads(all, needed, kinds).filter(({ planes }) => planes);
  const behind = header.renderer === "mixture" ? kinds.length : Math.min(LUMA_PLANE, kinds.length);
  const least = isBehind ? behind : 1;
  const blocks = begun.filter(({ planes }) => planes >= least);
  const num = numOf(blocks);
  const part = { header, num, weight: numOf(begun), isWhole, missing: missingOf(blocks, kinds) };
  if (profile === "lossless") {
    return { ...part, planes: 1, decode: (_, report) => decodeLossless(header, num, blocks, report) };
  }
  const decode = (planes = kinds.length, report) => {
    const made = emptyGaussians(num, channels);
    let n = 0;
    for (const block of blocks) {
      // kept: each choice of planes makes Gaussians of them anew
      block.numbers ??= decodeBlock(header, block, block.payloads);
      const there = Math.min(planes, block.planes);
      const geometry = made.geometry.subarray(5 * n);
      writeGaussians(header, block, block.numbers, there, geometry, made.colors.subarray(channels * n));
      report((n += block.num));
    }
    return made;
  };
  return { ...part, planes: blocks.reduce((most, { planes }) => Math.max(most, planes), 1), decode };
}

// Kinds of payloads that not all of these blocks have.
const missingOf = (blocks, kinds) => kinds.filter((_, i) => blocks.some(({ planes }) => planes <= i));

const numOf = (blocks) => blocks.reduce((sum, { num }) => sum + num, 0);

function emptyGaussians(num, channels) {
  return { num, channels, geometry: new Float32Array(5 * num), colors: new Float32Array(channels * num) };
}

// Blocks with their `payloads` by kind, of which `planes` are there: they follow kind by kind.
function withPayloads(blocks, needed, kinds) {
  const found = blocks.map((block) => ({ ...block, payloads: {}, planes: 0 }));
  needed.forEach(({ type, payload }, i) => {
    const expected = kinds[Math.floor(i / blocks.length)];
    if (type !== expected) {
      throw new FormatError(`is damaged: a chunk '${type}' where '${expected ?? "none"}' is expected`);
    }
    const block = found[i % blocks.length];
    block.payloads[type] = payload;
    block.planes += 1;
  });
  return found;
}

// Those blocks of the lattice that have Gaussians.
function blocksOf(header, grid) {
  const step = header.position ?? 1;
  const [wide, high] = [header.width, header.height].map((side) => Math.max(1, Math.ceil(side / step)));
  if (!grid) return header.num ? [{ num: header.num, x: 0, y: 0, wide, high }] : [];
  const view = viewOf(grid);
  const side = grid.length >= 4 ? view.getUint32(0, true) : 0;
  if (!side || 4 + 20 * Math.ceil(wide / side) * Math.ceil(high / side) !== grid.length) {
    throw new FormatError("is damaged: its list of blocks has the wrong length");
  }
  const blocks = [];
  let at = 4;
  for (let y = 0; y < high; y += side) {
    for (let x = 0; x < wide; x += side, at += 20) {
      const num = view.getUint32(at, true);
      blocks.push({ num, x, y, wide: Math.min(side, wide - x), high: Math.min(side, high - y) });
    }
  }
  if (numOf(blocks) !== header.num) {
    throw new FormatError("is damaged: its blocks hold another number of Gaussians");
  }
  return blocks.filter(({ num }) => num);
}

function decodeLossless({ channels }, total, blocks, report) {
  const made = emptyGaussians(total, channels);
  let first = 0;
  for (const { num, payloads } of blocks) {
    const payload = payloads.FULL;
    if (payload.length !== 4 * num * (5 + channels)) {
      throw new FormatError(`is damaged: ${payload.length} bytes of ${num} Gaussians`);
    }
    const view = viewOf(payload);
    for (let k = 0; k < 5 + channels; k++) {
      const [field, stride, begin] = k < 5 ? [made.geometry, 5, k] : [made.colors, channels, k - 5];
      for (let n = 0; n < num; n++) {
        const value = view.getFloat32(4 * (k * num + n), true);
        if (!Number.isFinite(value)) throw new FormatError("is damaged: a number is not finite");
        field[(first + n) * stride + begin] = value;
      }
    }
    report((first += num));
  }
  return made;
}

function partOfSeeds(header, needed) {
  const [shared, networks, ...rest] = needed;
  if ((shared && shared.type !== "SEED") || (networks && networks.type !== "NETS")) {
    throw new FormatError("is damaged: what its seeds have in common is missing");
  }
  const seeds = shared && readSeedsHeader(shared.payload, header.num);
  const all = withPayloads(networks ? seeds.blocks : [], rest, SEED_KINDS);
  const blocks = all.filter(({ planes }) => planes);
  const num = numOf(blocks) * (seeds?.perSeed ?? 0);
  const decode = (_, report) => {
    const made = emptyGaussians(num, header.channels);
    if (num) decodeSeeds(seeds, blocks, header, networks.payload, made, report);
    return made;
  };
  const weight = blocks.reduce((sum, block) => sum + block.weight, 0);
  const isWhole = Boolean(networks) && rest.length === SEED_KINDS.length * all.length;
  return { header, num, weight, isWhole, missing: missingOf(blocks, SEED_KINDS), planes: 1, decode };
}
