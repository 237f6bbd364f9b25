// The page: a file, its picture, and the controls.

import { FormatError, bytesOf } from "./bytes.js";
import { Decoding } from "./decoding.js";
import { Drawing, Unsupported } from "./draw.js";
import { gaussiansOf, readFile } from "./file.js";
import { kindsOf } from "./numbers.js";
import { View } from "./view.js";

const KINDS = {
  POSI: "positions", SIZE: "sizes", LUMA: "luma", CHRO: "chroma", SHAP: "shapes",
  FEAT: "features", SCAL: "scalings", OFFS: "offsets",
};
const INK = { ellipses: [1, 1, 1, 0.55], centers: [1, 0.82, 0.3, 0.9] };
const GROUND = [0x0d / 255, 0x0e / 255, 0x10 / 255];

const find = (id) => document.getElementById(id);
const canvas = find("canvas");
const view = new View();
const state = {
  file: null, // what readFile found; `gaussians` of its parts
  name: "",
  step: 1, // parts that are shown, or kinds of numbers
  count: Infinity, // the first so many Gaussians
  ellipses: false,
  centers: false,
  errors: false,
  split: null, // share of the canvas that shows the original; null: none of it
  original: null, // an ImageBitmap
};
let drawing = null;

// --- files ---------------------------------------------------------------------------------------

const SHORT = 200; // ms of decoding of which nothing is said

let decoding = null; // the file that is shown
let opening = null; // the one that shall be

let waiting = null; // for the last answer

// An answer, with its progress if it takes long.
async function answered(mine, name, question, isWanted) {
  const wait = { for: mine };
  waiting = wait;
  find("share").value = 0;
  find("progress-name").textContent = name;
  const shown = setTimeout(() => (find("progress").hidden = !waiting), SHORT);
  try {
    return await mine.ask(question, isWanted);
  } finally {
    clearTimeout(shown);
    if (waiting === wait) {
      waiting = null;
      find("progress").hidden = true;
    }
  }
}

// Shows a file, of bytes or a text in base64, or says in one line why not; what was shown before
// stays. One that is opened meanwhile takes its place.
async function open(data, name) {
  opening?.end();
  const mine = new Decoding((share) => {
    if (waiting?.for === mine) find("share").value = share;
  });
  opening = mine;
  try {
    const found = await answered(mine, name, { data });
    if (!found) return false;
    const file = withGaussians(found);
    drawing?.setPicture(file);
    decoding?.end();
    decoding = mine;
    Object.assign(state, { file, name, step: file.steps, count: Infinity });
    showFile();
    return true;
  } catch (error) {
    if (decoding !== mine) mine.end();
    return complain(error, name);
  } finally {
    if (opening === mine) opening = null;
  }
}

function withGaussians({ file, made }) {
  return { ...file, parts: file.parts.map((part, i) => ({ ...part, gaussians: made[i] })) };
}

// Another choice of numbers, unless the slider has moved on.
async function openStep(step) {
  const mine = decoding;
  const isWanted = () => mine === decoding && step === state.step;
  try {
    const found = await answered(mine, state.name, { step }, isWanted);
    if (!found || !isWanted()) return;
    state.file = withGaussians(found);
    drawing?.setPicture(state.file);
  } catch (error) {
    complain(error, state.name);
  }
  invalidate();
}

function showFile() {
  if (drawing) say("message", ""); // else it says why there is no picture
  failure = "";
  const { original, file } = state;
  if (original && !isOfSize(original, file)) setOriginal(null);
  view.show(file);
  [cost, slowness, losses, drawn] = [0, 0, 0, null];
  forgetQuality();
  describe();
  if (isMuchForSoftware()) invalidate();
  else move(); // and then at rest, without the time that shaders take to be compiled
}

const isMuchForSoftware = () => Boolean(drawing?.isSoftware) && state.file.num > MANY;

const isOfSize = (one, other) => one.width === other.width && one.height === other.height;

const isOurs = (error) => error instanceof FormatError || error instanceof Unsupported;

function lineOf(error, name) {
  const text = isOurs(error) ? error.message : `cannot be shown (${error.message})`;
  return name && !(error instanceof Unsupported) ? `${name}: ${text}` : text;
}

function complain(error, name) {
  say("message", lineOf(error, name));
  if (!isOurs(error)) console.error(error);
  return false;
}

// A text that stays the same is not read out again.
function say(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
  find(id).hidden = !text;
}

// What has been read goes, unless it says why there is no picture.
function hideLines() {
  if (!drawing) return;
  say("message", failure);
  find("note").hidden = true;
}

let filesRead = 0;
let originalsRead = 0; // one that is read faster than an earlier one takes its place

async function openFile(file) {
  try {
    if (file.type.startsWith("image/")) await openOriginal(file, file.name);
    else {
      const mine = ++filesRead;
      const data = new Uint8Array(await file.arrayBuffer());
      if (mine === filesRead) await open(data, file.name);
    }
  } catch (error) {
    complain(error, file.name);
  }
}

// A picture to compare with.
async function openOriginal(blob, name) {
  const mine = ++originalsRead;
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => null);
  if (mine !== originalsRead) return;
  if (!bitmap) throw new FormatError("is no picture that this browser can read");
  const { file } = state;
  if (!file || !isOfSize(bitmap, file)) {
    const other = file ? `the file of Gaussians ${file.width}x${file.height}` : "there is no file yet";
    throw new FormatError(`has ${bitmap.width}x${bitmap.height} pixels, ${other}`);
  }
  if (drawing) say("message", "");
  setOriginal(bitmap);
  if (drawing && !drawing.canCompare()) {
    setOriginal(null);
    throw new FormatError(`has ${bitmap.width}x${bitmap.height} pixels, more than this graphics card compares`);
  }
}

function setOriginal(bitmap) {
  state.original = bitmap;
  drawing?.setOriginal(bitmap);
  forgetQuality();
  const canCompare = Boolean(drawing?.canCompare());
  state.split = canCompare ? 0.5 : null;
  state.errors = false;
  for (const id of ["compare", "errors", "quality-box"]) find(id).hidden = !canCompare;
  invalidate();
}

// --- what is shown -------------------------------------------------------------------------------

// How many Gaussians of each part: the first `count` of those parts that are shown.
function counts() {
  const { file, step } = state;
  let left = state.count;
  return file.parts.map(({ num }, i) => {
    const shown = file.byParts && i >= step ? 0 : Math.min(num, left);
    left -= shown;
    return shown;
  });
}

const LIST = new Intl.ListFormat("en");
const numberOf = (value) => value.toLocaleString("en");

function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  const [value, unit] = bytes < 1e6 ? [bytes / 1e3, "kB"] : [bytes / 1e6, "MB"];
  return `${value.toFixed(value < 100 ? 1 : 0)} ${unit}`;
}

// What only another file changes.
function describe() {
  const { file, name } = state;
  document.title = `${name} – instantgi`;
  find("name").textContent = name;
  find("name").title = name;
  const bpp = (8 * file.numBytes) / (file.width * file.height);
  const facts = [
    `${file.width} × ${file.height}`, `${numberOf(file.num)} Gaussians`, sizeText(file.numBytes),
    `${bpp.toFixed(bpp < 1 ? 3 : 2)} bpp`, file.profile, ...(file.renderer === "sum" ? [] : [file.renderer]),
  ];
  const spans = facts.map((text, i) => {
    const textContent = i + 1 < facts.length ? `${text} ·` : text;
    return Object.assign(document.createElement("span"), { textContent });
  });
  find("facts").replaceChildren(...spans.flatMap((span) => [span, " "])); // read as words of their own
  find("facts").title = find("facts").textContent.trim();
  canvas.setAttribute("aria-label", `${name}: a picture of ${file.width} by ${file.height} pixels, drawn from ${file.num} Gaussians`);
  find("empty").hidden = true;
  find("step-box").hidden = file.steps < 2;
  find("step").max = file.steps;
  find("step-name").textContent = file.renderer === "levels" ? "Level" : "Stage";
  showNotes();
}

// What is not as it should be, in the file or in this browser.
function showNotes() {
  const { file } = state;
  const notes = file.isWhole ? [] : [beginningText(file)];
  if (drawing?.isHalf) notes.push("This graphics card adds in half precision: colors are off by a level or two.");
  if (![1, 3, 4].includes(file.channels)) notes.push(`${file.channels} channels; the first ${Math.min(3, file.channels)} are shown.`);
  if (file.hasColorProfile) notes.push("The file has a color profile; its values are shown as if they were sRGB.");
  if (losses > 1) notes.push("This graphics card gives up on the whole picture: it is drawn in blocks.");
  else if (isMuchForSoftware() && !slowness) notes.push("There is no graphics card to draw so many Gaussians with: it takes a while.");
  else if (slowness) {
    const who = drawing?.isSoftware ? "There is no graphics card to draw with" : "This is much for this graphics card";
    notes.push(`${who}: a whole picture takes about ${(slowness / 1000).toFixed(0)} s. While it moves it is coarse.`);
  }
  say("note", notes.join(" "));
}

// What there is of a file that ends early.
function beginningText({ num, parts, all, renderer }) {
  if (parts.length === all.parts && parts.at(-1).isWhole) return "This file ends early, but all of its Gaussians are there.";
  const kind = renderer === "levels" ? "levels" : "stages";
  const found = [];
  if (parts.length < all.parts) found.push(`${parts.length} of ${all.parts} ${kind}`);
  if (num < all.num) found.push(`${numberOf(num)} of ${numberOf(all.num)} Gaussians`);
  const has = found.length ? [`has ${found.join(" and ")}`] : [];
  const missing = parts.at(-1).missing.map((kind) => KINDS[kind]);
  if (missing.length) has.push(`lacks ${LIST.format(missing)}`);
  return `This file ends early, so the picture is coarser: it ${has.join(" and ")}.`;
}

function stepText() {
  const { file, step } = state;
  return file.byParts ? `${step} of ${file.steps}` : `${step > 1 ? "+ " : ""}${KINDS[kindsOf(file.channels)[step - 1]]}`;
}

const percentText = (percent) => `${percent < 10 ? percent.toFixed(1) : numberOf(Math.round(percent))}%`;

// The controls as the state has them.
function showControls() {
  const { file, split } = state;
  const percent = file ? percentText(100 * view.scale) : "";
  find("scale").textContent = percent || "–";
  find("scale").setAttribute("aria-label", percent ? `Pixel by pixel, now ${percent}` : "Pixel by pixel");
  for (const id of ["ellipses", "centers", "errors"]) find(id).setAttribute("aria-pressed", state[id]);
  find("compare").setAttribute("aria-pressed", split !== null);
  find("split").hidden = split === null;
  find("legend").hidden = !state.errors;
  if (split !== null) {
    find("split").style.left = `${100 * split}%`;
    find("split").setAttribute("aria-valuenow", Math.round(100 * split));
    find("split").querySelector(".after").textContent = state.errors ? "Error" : "Gaussians";
  }
  if (!file) return;
  const most = file.parts.reduce((sum, { num }, i) => sum + (file.byParts && i >= state.step ? 0 : num), 0);
  find("count").max = most;
  find("count").value = Math.min(state.count, most);
  find("count-text").textContent = numberOf(Math.min(state.count, most));
  find("step").value = state.step;
  find("step-text").textContent = file.steps > 1 ? stepText() : "";
  find("step").setAttribute("aria-valuetext", file.byParts ? stepText() : `${state.step} of ${file.steps}, ${stepText()}`);
}

// --- drawing -------------------------------------------------------------------------------------

const PATIENCE = 60; // ms that a frame may take while something moves
const MANY = 100_000; // Gaussians, without a graphics card
const SLOW = 1500; // ms of a frame at rest of which a note is made

let isDue = false;
let isMoving = false;
let resting = 0; // a timer
let fence = null;
let cost = 0; // ms of a frame without blocks, about
let failure = ""; // why the last frame could not be drawn, as a message
let drawn = null; // where the picture's corner was on the canvas, in the last frame
let slowness = 0; // ms of a slow frame of this file
let losses = 0; // of the graphics card, while it drew this file

// Draws once, at the next frame, or as soon as the graphics card is done with the one before.
function invalidate() {
  stopComparison();
  showControls();
  if (isDue) return;
  isDue = true;
  if (!fence) requestAnimationFrame(drawFrame);
}

// The same while something moves: a slow machine then draws in blocks, and all of it at rest.
function move() {
  isMoving = true;
  clearTimeout(resting);
  resting = setTimeout(() => {
    isMoving = false;
    invalidate();
  }, 180);
  invalidate();
}

function drawFrame() {
  isDue = false;
  if (!drawing) return;
  if (!state.file) return drawing.clear(GROUND);
  if (isMoving && isMuchForSoftware()) return moveCanvas(); // and draw at rest
  const frame = { began: performance.now(), atRest: !isMoving, of: decoding };
  const blocks = isMoving ? Math.min(Math.max(Math.ceil(Math.sqrt(cost / PATIENCE)), 1), 12) : leastBlocks();
  try {
    const dots = devicePixelRatio;
    drawing.draw(view.corner(), {
      counts: counts(), ellipses: state.ellipses, centers: state.centers, errors: state.errors, blocks,
      split: state.split === null ? 0 : state.split * canvas.width, background: GROUND, cell: 8 * dots,
      ellipseInk: INK.ellipses, centerInk: INK.centers, pointSize: Math.max(2, 3 * dots),
    });
  } catch (error) {
    drawing.clear(GROUND); // not the picture before, under another name
    const line = lineOf(error, state.name);
    // said once: a frame that fails again is no news, and what was said since stays
    if (line !== failure || find("message").hidden) complain(error, state.name);
    failure = line;
    return;
  }
  drawn = view.corner();
  canvas.style.transform = "";
  if (failure && find("message").textContent === failure) say("message", "");
  failure = "";
  const { gl } = drawing;
  fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
  gl.flush();
  awaitFence({ ...frame, blocks });
}

// What has been drawn, to where it would be drawn now.
function moveCanvas() {
  if (!drawn) return;
  const [now, share] = [view.corner(), canvas.clientWidth / canvas.width];
  const grown = now.scale / drawn.scale;
  const [x, y] = [now.x - grown * drawn.x, now.y - grown * drawn.y];
  canvas.style.transform = `translate(${x * share}px, ${y * share}px) scale(${grown})`;
}

// A picture that the graphics card has given up on twice is not drawn as a whole again.
const leastBlocks = () => (losses > 1 ? Math.min(4 * (losses - 1), 12) : 1);

const channel = new MessageChannel(); // a timer would wait for 4 ms
const PATIENT = 1000; // questions without one: some milliseconds

function awaitFence(frame) {
  const { gl } = drawing;
  let asked = 0;
  const askAgain = () => channel.port2.postMessage(null);
  channel.port1.onmessage = () => {
    if (!fence || gl.isContextLost()) return; // the page hears of it, and draws again
    if (gl.clientWaitSync(fence, 0, 0) === gl.TIMEOUT_EXPIRED) {
      if (++asked < PATIENT) askAgain();
      else setTimeout(askAgain, 4); // a slow frame: leave the processor to what draws it
      return;
    }
    gl.deleteSync(fence);
    fence = null;
    finishFrame(performance.now() - frame.began, frame);
  };
  askAgain();
}

function finishFrame(milliseconds, { blocks, atRest, of }) {
  if (of === decoding) measured(milliseconds, blocks, atRest); // else it was of the file before
  if (isDue) requestAnimationFrame(drawFrame);
  else if (!isMoving) scheduleComparison();
}

function measured(milliseconds, blocks, atRest) {
  cost = milliseconds * blocks ** 2;
  if (atRest && blocks === 1 && milliseconds > SLOW !== slowness > 0) {
    slowness = milliseconds > SLOW ? milliseconds : 0;
    showNotes();
  }
  find("time").textContent = `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

let comparison = null; // the one that is under way; one that is replaced is given up

// The PSNR and the error are of the whole picture: once nothing moves, and where they are not much
// more than what is seen.
function scheduleComparison() {
  stopComparison();
  if ((leastBlocks() > 1 || isMuchForSoftware()) && !state.errors) return forgetQuality();
  const mine = { timer: setTimeout(() => compare(mine), 200) };
  comparison = mine;
}

function stopComparison() {
  clearTimeout(comparison?.timer);
  comparison = null;
}

async function compare(mine) {
  const isWanted = () => comparison === mine;
  try {
    const before = drawing?.compared;
    const compared = await drawing?.compare(counts(), isWanted);
    if (!isWanted()) return;
    comparison = null;
    if (!compared) return; // there is no original, or none any more
    find("quality").textContent = Number.isFinite(compared.psnr) ? `${compared.psnr.toFixed(2)} dB` : "lossless";
    if (state.errors && compared !== before) invalidate();
  } catch (error) {
    if (!isWanted()) return;
    forgetQuality();
    if (!(error instanceof Unsupported)) complain(error, state.name); // what is seen may be drawn
  }
}

// It was of another picture.
function forgetQuality() {
  stopComparison();
  find("quality").textContent = "–";
}

function startDrawing() {
  try {
    drawing = new Drawing(canvas);
  } catch (error) {
    complain(error, "");
    return;
  }
}

// All again, on a graphics card that has forgotten it.
function restoreDrawing() {
  startDrawing();
  if (!drawing || !state.file) return;
  try {
    drawing.setPicture(state.file);
    drawing.setOriginal(state.original);
  } catch (error) {
    complain(error, state.name);
  }
  showNotes();
  invalidate();
}

canvas.addEventListener("webglcontextlost", (event) => {
  event.preventDefault();
  drawing = null;
  stopComparison();
  if (fence) losses += 1; // it drew
  fence = null;
  say("message", "The graphics card has dropped this page; waiting for it.");
});
canvas.addEventListener("webglcontextrestored", () => {
  say("message", "");
  restoreDrawing();
});

new ResizeObserver(([entry]) => {
  const [exact] = entry.devicePixelContentBoxSize ?? [];
  canvas.width = Math.max(1, exact?.inlineSize ?? Math.round(entry.contentRect.width * devicePixelRatio));
  canvas.height = Math.max(1, exact?.blockSize ?? Math.round(entry.contentRect.height * devicePixelRatio));
  view.resize(canvas.width, canvas.height);
  isDue = false; // a new size has cleared the canvas: draw before it is seen
  showControls();
  if (fence) isDue = true;
  else drawFrame();
}).observe(canvas);

// --- mouse, touch and keys -----------------------------------------------------------------------

const pointers = new Map(); // where each one is, canvas pixels

function place(event) {
  const box = find("stage").getBoundingClientRect(); // the canvas itself may be moved
  const dots = canvas.width / box.width;
  return { x: (event.clientX - box.left) * dots, y: (event.clientY - box.top) * dots };
}

function middle() {
  const all = [...pointers.values()];
  const x = all.reduce((sum, each) => sum + each.x, 0) / all.length;
  const y = all.reduce((sum, each) => sum + each.y, 0) / all.length;
  const spread = all.reduce((sum, each) => sum + Math.hypot(each.x - x, each.y - y), 0) / all.length;
  return { x, y, spread };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  hideLines();
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, place(event));
  canvas.classList.add("moving");
});
canvas.addEventListener("pointermove", (event) => {
  if (!pointers.has(event.pointerId)) return;
  const before = middle();
  pointers.set(event.pointerId, place(event));
  const after = middle();
  view.pan(after.x - before.x, after.y - before.y);
  if (before.spread > 0 && after.spread > 0) view.zoom(after.spread / before.spread, after.x, after.y);
  move();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    canvas.classList.toggle("moving", pointers.size > 0);
  });
}
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 : 1;
  const { x, y } = place(event);
  const factor = Math.exp(-(event.ctrlKey ? 0.01 : 0.002) * event.deltaY * lines);
  view.zoom(Math.min(Math.max(factor, 0.25), 4), x, y);
  move();
}, { passive: false });
canvas.addEventListener("dblclick", (event) => {
  const { x, y } = place(event);
  view.zoom(event.shiftKey ? 0.5 : 2, x, y);
  move();
});

function zoomTo(scale) {
  view.zoom(scale / view.scale);
  move();
}

function fit() {
  view.fit();
  move();
}

const KEYS = {
  "+": () => zoomTo(view.scale * 1.5),
  "=": () => zoomTo(view.scale * 1.5),
  "-": () => zoomTo(view.scale / 1.5),
  0: fit,
  1: () => zoomTo(1),
  Escape: hideLines,
};
const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  if (arrow && event.target === canvas) {
    view.pan(...arrow.map((way) => 0.1 * way * Math.min(canvas.width, canvas.height)));
    move();
  } else if (KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
});

const split = find("split");
split.addEventListener("pointerdown", (event) => {
  split.setPointerCapture(event.pointerId);
  event.preventDefault();
  split.focus({ focusVisible: false });
});
split.addEventListener("pointermove", (event) => {
  if (!split.hasPointerCapture(event.pointerId)) return;
  setSplit(place(event).x / canvas.width);
});
split.addEventListener("keydown", (event) => {
  const moved = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, Home: -1, End: 1 }[event.key];
  if (moved === undefined) return;
  event.preventDefault();
  setSplit(state.split + moved);
});

function setSplit(share) {
  state.split = Math.min(Math.max(share, 0), 1);
  move();
}

// --- controls ------------------------------------------------------------------------------------

find("smaller").onclick = KEYS["-"];
find("larger").onclick = KEYS["+"];
find("scale").onclick = KEYS[1];
find("fit").onclick = fit;
for (const id of ["ellipses", "centers", "errors"]) {
  find(id).onclick = () => {
    state[id] = !state[id];
    invalidate();
  };
}
find("compare").onclick = () => {
  state.split = state.split === null ? 0.5 : null;
  invalidate();
};
find("count").oninput = ({ target }) => {
  state.count = Number(target.value) === Number(target.max) ? Infinity : Number(target.value);
  move();
};
find("step").oninput = ({ target }) => {
  state.step = Number(target.value);
  if (state.file.byParts) return invalidate();
  showControls(); // now: numbers may take seconds
  openStep(state.step);
};
find("open").onclick = () => find("files").click();
find("files").onchange = async ({ target }) => {
  await openAll([...target.files]);
  target.value = "";
};

// Files of Gaussians first: a picture is compared with one of them.
async function openAll(files) {
  const isPicture = (file) => file.type.startsWith("image/");
  for (const file of files.sort((a, b) => isPicture(a) - isPicture(b))) await openFile(file);
}

let depth = 0; // of elements that something is dragged over
document.addEventListener("dragenter", () => find("stage").classList.toggle("over", ++depth > 0));
document.addEventListener("dragleave", () => find("stage").classList.toggle("over", --depth > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  find("stage").classList.remove("over");
  openAll([...event.dataTransfer.files]);
});

// --- start ---------------------------------------------------------------------------------------

async function start() {
  startDrawing();
  const given = JSON.parse(find("given").textContent);
  find("empty").hidden = Boolean(given.file);
  if (given.file && (await open(given.file, given.name)) && given.original) {
    await openOriginal(new Blob([bytesOf(given.original)]), given.originalName).catch((error) => complain(error, given.originalName));
  }
}

// For scripts, and for tests of this page.
globalThis.instantgi = {
  ready: start(),
  open,
  decode: (bytes) => gaussiansOf(readFile(bytes)),
  openOriginal: (bytes, name) => openOriginal(new Blob([bytes]), name),
  state,
  view,
  redraw: invalidate,
  idle: () => decoding?.isIdle, // once what was asked for is decoded
  isAtRest: () => !(isDue || fence || isMoving || comparison || opening || waiting), // and drawn, and compared
  gaussians: () => state.file.parts.map(({ gaussians }) => gaussians),
  pixels: (x, y, width, height, scale) => drawing.pixels(counts(), x, y, width, height, scale),
};
