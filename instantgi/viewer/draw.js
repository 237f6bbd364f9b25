// Gaussians → pixels with WebGL2, by the definition of docs/format.md.

import * as shaders from "./shaders.js";
import { listTiles } from "./tiles.js";

const MOST_SAMPLES = 2 ** 23; // pixels of a floating point target
const MOST_COMPARED = 2 ** 26; // pixels of a picture that is compared with an original
// Of a Gaussian and a pixel that it may reach: more would hang the computer, some 10 s without a card.
const MOST_PAIRS = 2e10;
const MOST_PAIRS_IN_SOFTWARE = 1e9;
const CUTOFF = Math.log2(255);

// This browser cannot draw; the message says why.
export class Unsupported extends Error {}

export class Drawing {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: false, depth: false, powerPreference: "high-performance" });
    if (!gl) throw new Unsupported("This browser has no WebGL2, which drawing needs. Try a current Chrome, Firefox, Edge or Safari.");
    this.gl = gl;
    this.format = floatFormat(gl);
    this.isHalf = this.format === gl.RGBA16F;
    this.isSoftware = /swiftshader|llvmpipe|softpipe|software|basic render/i.test(nameOf(gl));
    this.mostPairs = this.isSoftware ? MOST_PAIRS_IN_SOFTWARE : MOST_PAIRS;
    this.programs = new Map();
    this.targets = new Map();
    this.empty = gl.createVertexArray();
    this.blank = texture(gl, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    this.mostTexels = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    this.picture = null;
    this.original = null;
  }

  // --- what is drawn -----------------------------------------------------------------------------

  // `picture`: {width, height, channels, renderer, parts: [{header, gaussians}]}.
  setPicture(picture) {
    const { gl } = this;
    const parts = picture.parts.map((part) => {
      const ratio = [0, 1].map((axis) => sides(picture)[axis] / sides(part.header)[axis]);
      const radius = Math.sqrt(1.39 * (CUTOFF - Math.log2(part.header.epsilon ?? 1)));
      return { ...part, ...upload(gl, part.gaussians), ratio, radius };
    });
    if (gl.getError() === gl.OUT_OF_MEMORY) {
      forget(gl, parts);
      throw new Unsupported(`This graphics card has no memory left for ${picture.num} Gaussians.`);
    }
    forget(gl, this.picture?.parts ?? []);
    this.picture = { ...picture, parts };
    this.area = parts.reduce((sum, part) => sum + areaOf(part), 0);
    this.compared = null;
    this.levels = null;
  }

  // An ImageBitmap of the picture's size, or null.
  setOriginal(bitmap) {
    const { gl } = this;
    if (this.original) gl.deleteTexture(this.original);
    this.original = null;
    this.compared = null;
    if (!bitmap || Math.max(bitmap.width, bitmap.height) > this.mostTexels) return;
    this.original = texture(gl, gl.NEAREST);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  }

  // Whether the picture can be held beside the original.
  canCompare() {
    const { width, height } = this.picture;
    return this.original !== null && Math.max(width, height) <= this.mostTexels && width * height <= MOST_COMPARED;
  }

  // --- the canvas --------------------------------------------------------------------------------

  // view: {x, y, scale}: where the picture's corner is on the canvas, px, and px for each of its own.
  // shown: {counts of each part, ellipses, centers, errors: whether they are seen, blocks: their side
  // in canvas px, 1 for a picture as it is, split: where the original ends, canvas px, and colors}.
  draw(view, shown) {
    const { gl, picture } = this;
    const { drawingBufferWidth: width, drawingBufferHeight: height } = gl;
    const box = boxOf(view, picture, width, height);
    const origin = [(box.x - view.x) / view.scale, (box.y - view.y) / view.scale];
    const [wide, high] = [box.width, box.height].map((side) => Math.ceil(side / shown.blocks));
    const samples = shown.blocks > 1 ? 1 : samplesOf(view.scale, wide * high);
    const scale = (view.scale * samples) / shown.blocks;
    if (shown.blocks > 1) { // what is refused at rest is not begun while it moves
      const most = samplesOf(view.scale, box.width * box.height);
      this.refuseTooMuch(shown.counts, box.width * most, box.height * most, origin, view.scale * most);
    }
    const drawn = wide && high
      ? this.render(shown.counts, wide * samples, high * samples, origin, scale)
      : { texture: this.blank };
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, width, height);
    this.fill("show", shaders.SHOW_FRAGMENT, {
      picture: drawn.texture, samples, blocks: shown.blocks, channels: picture.channels,
      box: [box.x, box.y, box.width, box.height],
      origin, stride: [1 / view.scale, 1 / view.scale], pictureSize: [picture.width, picture.height],
      canvasHeight: height, split: this.original ? shown.split : 0, cell: shown.cell,
      original: this.original ?? this.blank, errors: (shown.errors && this.compared?.texture) || this.blank,
      showsErrors: Boolean(shown.errors && this.compared), background: shown.background,
    });
    if (wide && high) this.mark(view, shown, box, width, height);
  }

  mark(view, shown, box, width, height) {
    const { gl, picture } = this;
    if (!shown.ellipses && !shown.centers) return;
    const left = Math.max(box.x, this.original ? Math.round(shown.split) : 0); // not on the original
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(left, height - box.y - box.height, Math.max(0, box.x + box.width - left), box.height);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const program = this.use("mark", shaders.MARK_VERTEX, shaders.MARK_FRAGMENT);
    picture.parts.forEach((part, i) => {
      const count = shown.counts[i];
      if (!count) return;
      const scale = [0, 1].map((axis) => (view.scale * sides(picture)[axis]) / sides(part.header)[axis]);
      const common = {
        ...placing([-view.x / scale[0], -view.y / scale[1]], scale), size: [width, height],
      };
      gl.bindVertexArray(part.array);
      if (shown.ellipses) {
        const corners = count > 100000 ? 16 : 40;
        this.set(program, { ...common, corners, pointSize: 1, ink: shown.ellipseInk });
        gl.drawArraysInstanced(gl.LINE_LOOP, 0, corners, count);
      }
      if (shown.centers) {
        this.set(program, { ...common, corners: 0, pointSize: shown.pointSize, ink: shown.centerInk });
        gl.drawArraysInstanced(gl.POINTS, 0, 1, count);
      }
    });
    gl.disable(gl.BLEND);
    gl.disable(gl.SCISSOR_TEST);
  }

  clear(color) {
    const { gl } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.clearColor(...color, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
  }

  // --- the picture -------------------------------------------------------------------------------

  // A floating point target whose lower left corner holds width x height pixels of the picture, of
  // which `scale` make one of its own, from `origin` on.
  render(counts, width, height, origin, scale) {
    const { picture } = this;
    this.refuseTooMuch(counts, width, height, origin, scale);
    if (picture.renderer === "levels") return this.renderLevels(counts, width, height, origin, scale);
    const target = this.target("picture", width, height);
    if (picture.renderer === "mixture") this.renderMixture(target, counts, width, height, origin, scale);
    else this.renderSum(target, picture.parts[0], counts[0], width, height, origin, [scale, scale]);
    return target;
  }

  // Bytes are hostile: a small file can hold a million Gaussians, each of the size of the picture.
  refuseTooMuch(counts, width, height, origin, scale) {
    const { picture } = this;
    if (this.area * scale ** 2 <= this.mostPairs) return;
    if (counts.reduce((sum, count) => sum + count, 0) * width * height <= this.mostPairs) return;
    const corner = origin.map((value) => value * scale);
    const pairs = picture.parts.map((part, i) => countPairs(part, counts[i], [width, height], corner, scale));
    if (pairs.reduce((sum, each) => sum + each, 0) > this.mostPairs) {
      throw new Unsupported("These Gaussians are too many and too large to be drawn at once. Show fewer, or a smaller part.");
    }
  }

  renderSum(target, part, count, width, height, origin, scale) {
    const { gl } = this;
    this.aim(target, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!count) return;
    const program = this.use("sum", shaders.SUM_VERTEX, shaders.SUM_FRAGMENT);
    this.set(program, { ...placing(origin, scale), size: [width, height] });
    gl.bindVertexArray(part.array);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
    gl.disable(gl.BLEND);
  }

  renderMixture(target, counts, width, height, origin, scale) {
    const { gl, picture } = this;
    const { topK, epsilon } = picture.parts[0].header;
    const cutoff = CUTOFF - Math.log2(epsilon);
    const parts = picture.parts.map((part, i) => ({ gaussians: part.gaussians, count: counts[i] }));
    const listed = listTiles(parts, width, height, origin, [scale, scale], cutoff);
    this.lists ??= ["values", "ranges", "lists"].map(() => texture(gl, gl.NEAREST));
    const [values, ranges, lists] = this.lists;
    this.hold(values, gl.RGBA32F, gl.RGBA, gl.FLOAT, listed.values.subarray(0, 12 * listed.seen), 4, 3 * 512);
    this.hold(ranges, gl.RG32UI, gl.RG_INTEGER, gl.UNSIGNED_INT, listed.ranges, 2, listed.columns);
    this.hold(lists, gl.R32UI, gl.RED_INTEGER, gl.UNSIGNED_INT, listed.lists, 1, 2048);
    this.aim(target, width, height);
    this.fill(`mixture ${topK}`, shaders.mixtureFragment(topK), {
      gaussians: values, tiles: ranges, lists, tileShift: listed.shift, cutoff, epsilon,
    });
  }

  // Levels below the last one that is seen are drawn at their own size, once.
  renderLevels(counts, width, height, origin, scale) {
    const { picture } = this;
    const last = Math.max(0, counts.findLastIndex((count) => count > 0));
    const key = counts.slice(0, last).join();
    if (this.levels?.key !== key) this.levels = { key, picture: last ? this.renderBelow(counts, last - 1) : null };
    const ratio = [0, 1].map((axis) => sides(picture.parts[last].header)[axis] / sides(picture)[axis]);
    const start = [origin[0] * ratio[0], origin[1] * ratio[1]];
    return this.renderLevel("picture", counts, last, this.levels.picture, width, height, start, ratio.map((r) => scale / r));
  }

  renderBelow(counts, level) {
    const below = level ? this.renderBelow(counts, level - 1) : null;
    const { width, height } = this.picture.parts[level].header;
    if (Math.max(width, height) > this.mostTexels) {
      throw new Unsupported(`A level of ${width}x${height} pixels is more than this graphics card can hold.`);
    }
    return this.renderLevel(`level ${level % 2}`, counts, level, below, width, height, [0, 0], [1, 1]);
  }

  renderLevel(name, counts, level, below, width, height, origin, scale) {
    const { low, high } = this.picture.parts[level].header;
    const sum = this.target("sum", width, height);
    this.renderSum(sum, this.picture.parts[level], counts[level], width, height, origin, scale);
    const target = this.target(name, width, height);
    this.aim(target, width, height);
    const [fine, coarse] = [level, Math.max(0, level - 1)].map((i) => sides(this.picture.parts[i].header));
    const ratio = [0, 1].map((axis) => coarse[axis] / fine[axis]);
    this.fill("level", shaders.LEVEL_FRAGMENT, {
      sum: sum.texture, below: below?.texture ?? this.blank, hasBelow: Boolean(below), range: [low, high],
      belowSize: coarse, origin: [origin[0] * ratio[0], origin[1] * ratio[1]],
      stride: [ratio[0] / scale[0], ratio[1] / scale[1]],
    });
    return target;
  }

  // --- 8 bits ------------------------------------------------------------------------------------

  // RGBA of a part of the picture at a scale, as a file of it would have them.
  pixels(counts, x, y, width, height, scale = 1) {
    const { gl } = this;
    const target = this.target("bytes", width, height, gl.RGBA8);
    this.renderBytes(target, [0, 0], counts, x, y, width, height, scale);
    const found = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, found);
    return found;
  }

  renderBytes(target, corner, counts, x, y, width, height, scale) {
    const { gl, picture } = this;
    const samples = samplesOf(scale, width * height);
    const drawn = this.render(counts, width * samples, height * samples, [x, y], scale * samples);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.frame);
    gl.viewport(...corner, width, height);
    this.fill("pixels", shaders.PIXELS_FRAGMENT, { picture: drawn.texture, samples, channels: picture.channels, corner });
  }

  // How the picture differs from the original: a texture, and the PSNR; kept until either changes.
  // The page stays awake; null once that is no longer wanted.
  async compare(counts, isWanted) {
    const { gl, picture } = this;
    const key = counts.join();
    if (this.compared?.key === key || !this.canCompare()) return this.compared;
    const { width, height } = picture;
    const whole = this.target("whole", width, height, gl.RGBA8, true);
    const errors = this.target("errors", width, height, gl.RGBA8, true);
    const rows = Math.max(1, Math.floor(MOST_SAMPLES / 4 / width));
    let squares = 0;
    for (let y = 0; y < height; y += rows) {
      const high = Math.min(rows, height - y);
      this.renderBytes(whole, [0, y], counts, 0, y, width, high, 1);
      await this.isDone(); // reading waits for it, and the page with it
      if (!isWanted()) return null;
      const before = this.frameOf(this.original);
      const [drawn, given] = [whole.frame, before].map((frame) => {
        const found = new Uint8Array(4 * width * high);
        gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
        gl.readPixels(0, y, width, high, gl.RGBA, gl.UNSIGNED_BYTE, found);
        return found;
      });
      gl.deleteFramebuffer(before);
      squares += squaredError(drawn, given, picture.channels);
    }
    this.aim(errors, width, height);
    this.fill("error", shaders.ERROR_FRAGMENT, { drawn: whole.texture, original: this.original });
    gl.bindTexture(gl.TEXTURE_2D, errors.texture);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    const mean = squares / (width * height * Math.min(4, picture.channels === 2 ? 2 : picture.channels));
    this.compared = { key, texture: errors.texture, psnr: 10 * Math.log10(255 ** 2 / mean) };
    return this.compared;
  }

  // Once the graphics card has done what it was asked to, or is lost.
  async isDone() {
    const { gl } = this;
    const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    const pause = () => new Promise((done) => setTimeout(done, 4));
    do await pause(); while (gl.clientWaitSync(fence, 0, 0) === gl.TIMEOUT_EXPIRED);
    gl.deleteSync(fence);
  }

  frameOf(texture) {
    const { gl } = this;
    const frame = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    return frame;
  }

  // --- WebGL -------------------------------------------------------------------------------------

  // A texture to draw into, at least so large; one of a name at a time.
  target(name, width, height, format = this.format, isExact = false) {
    const { gl } = this;
    const found = this.targets.get(name);
    const fits = isExact
      ? found?.width === width && found.height === height
      : found?.width >= width && found.height >= height;
    if (fits) return found;
    if (found) {
      gl.deleteTexture(found.texture);
      gl.deleteFramebuffer(found.frame);
    }
    if (!isExact) [width, height] = grown(width, height, found).map((side) => Math.min(this.mostTexels, side));
    const made = { texture: texture(gl, gl.NEAREST), format, width, height };
    gl.texStorage2D(gl.TEXTURE_2D, isExact ? Math.floor(Math.log2(Math.max(width, height))) + 1 : 1, format, width, height);
    made.frame = this.frameOf(made.texture);
    if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
      throw new Unsupported(`This graphics card cannot draw ${width}x${height} pixels at once.`);
    }
    this.targets.set(name, made);
    return made;
  }

  aim(target, width, height) {
    const { gl } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.frame);
    gl.viewport(0, 0, width, height);
  }

  // Numbers as a texture, row by row.
  hold(texture, internal, format, type, values, each, columns) {
    const { gl } = this;
    const rows = Math.max(1, Math.ceil(values.length / each / columns));
    if (rows > this.mostTexels) {
      throw new Unsupported("This mixture is more than this graphics card can hold. Show fewer Gaussians, or a smaller part.");
    }
    const padded = new values.constructor(rows * columns * each);
    padded.set(values);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, internal, columns, rows, 0, format, type, padded);
  }

  use(name, vertex, fragment) {
    const { gl } = this;
    if (!this.programs.has(name)) this.programs.set(name, compile(gl, vertex, fragment));
    const program = this.programs.get(name);
    gl.useProgram(program.handle);
    return program;
  }

  set({ uniforms }, values) {
    const { gl } = this;
    let unit = 0;
    for (const [name, { place, type }] of uniforms) {
      const value = values[name];
      if (type === gl.SAMPLER_2D || type === gl.UNSIGNED_INT_SAMPLER_2D) {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.bindTexture(gl.TEXTURE_2D, value);
        gl.uniform1i(place, unit++);
      } else if (type === gl.INT || type === gl.BOOL) gl.uniform1i(place, Number(value));
      else if (type === gl.FLOAT) gl.uniform1f(place, value);
      else if (type === gl.FLOAT_VEC2) gl.uniform2fv(place, value);
      else if (type === gl.FLOAT_VEC3) gl.uniform3fv(place, value);
      else if (type === gl.FLOAT_VEC4) gl.uniform4fv(place, value);
      else if (type === gl.INT_VEC2) gl.uniform2iv(place, value);
      else gl.uniform4iv(place, value);
    }
    gl.activeTexture(gl.TEXTURE0);
  }

  // One triangle over all of the target.
  fill(name, fragment, values) {
    const { gl } = this;
    this.set(this.use(name, shaders.SCREEN_VERTEX, fragment), values);
    gl.bindVertexArray(this.empty);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }
}

// The most exact format that this browser can add in.
function floatFormat(gl) {
  if (gl.getExtension("EXT_color_buffer_float")) {
    return gl.getExtension("EXT_float_blend") ? gl.RGBA32F : gl.RGBA16F;
  }
  if (gl.getExtension("EXT_color_buffer_half_float")) return gl.RGBA16F;
  throw new Unsupported("This browser's WebGL2 cannot draw into floating point numbers, in which Gaussians are added.");
}

// Of what draws, where the browser says it.
function nameOf(gl) {
  const known = gl.getExtension("WEBGL_debug_renderer_info");
  return String(gl.getParameter(known ? known.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
}

function texture(gl, filter) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, filter);
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
  return made;
}

function compile(gl, vertex, fragment) {
  const handle = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(handle, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(handle);
  if (!gl.getProgramParameter(handle, gl.LINK_STATUS) && !gl.isContextLost()) {
    const logs = gl.getAttachedShaders(handle).map((shader) => gl.getShaderInfoLog(shader));
    throw new Unsupported(`This graphics driver does not compile a shader: ${logs.join(" ").trim()}`);
  }
  const uniforms = new Map();
  for (let i = 0; i < gl.getProgramParameter(handle, gl.ACTIVE_UNIFORMS); i++) {
    const { name, type } = gl.getActiveUniform(handle, i);
    uniforms.set(name, { place: gl.getUniformLocation(handle, name), type });
  }
  return { handle, uniforms };
}

// Gaussians as attributes of instances: two buffers, geometry and the first four channels.
function upload(gl, { num, channels, geometry, colors }) {
  const array = gl.createVertexArray();
  gl.bindVertexArray(array);
  const buffers = [geometry, colors].map((values) => {
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, num ? values : new Float32Array(16), gl.STATIC_DRAW);
    return buffer;
  });
  const attributes = [
    [0, 2, buffers[0], 20, 0],
    [1, 3, buffers[0], 20, 8],
    [2, Math.min(4, channels), buffers[1], 4 * channels, 0],
  ];
  for (const [place, count, buffer, stride, begin] of attributes) {
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, count, gl.FLOAT, false, stride, begin);
    gl.vertexAttribDivisor(place, 1);
  }
  gl.bindVertexArray(null);
  return { array, buffers };
}

function forget(gl, parts) {
  for (const { array, buffers } of parts) {
    gl.deleteVertexArray(array);
    buffers.forEach((buffer) => gl.deleteBuffer(buffer));
  }
}

const sides = ({ width, height }) => [width, height];

// Pixels of the picture in the boxes around all ellipses of a part, also outside of it.
function areaOf({ gaussians: { geometry }, ratio, radius }) {
  let area = 0;
  for (let at = 0; at < geometry.length; at += 5) {
    area += Math.abs(geometry[at + 2]) * Math.sqrt(geometry[at + 3] ** 2 + geometry[at + 4] ** 2);
  }
  return 4 * radius ** 2 * ratio[0] * ratio[1] * area;
}

// Pixels in the boxes around the first `count` ellipses, within a target.
function countPairs({ gaussians: { geometry }, ratio, radius }, count, [width, height], [left, top], factor) {
  const scale = ratio.map((each) => each * factor);
  let pairs = 0;
  for (let at = 0; at < 5 * count; at += 5) { // of a million: without Math.hypot
    const [x, y] = [geometry[at] * scale[0] - left, geometry[at + 1] * scale[1] - top];
    const reachX = radius * scale[0] * Math.abs(geometry[at + 2]);
    const reachY = radius * scale[1] * Math.sqrt(geometry[at + 3] ** 2 + geometry[at + 4] ** 2);
    const wide = Math.min(x + reachX, width) - Math.max(x - reachX, 0);
    const high = Math.min(y + reachY, height) - Math.max(y - reachY, 0);
    if (wide > 0 && high > 0) pairs += wide * high;
  }
  return pairs;
}

function placing(origin, scale) {
  const originHigh = origin.map(Math.fround);
  return { originHigh, originLow: origin.map((value, axis) => value - originHigh[axis]), scale };
}

// A little more than is needed, and no less than there was: windows and pictures change size often.
function grown(width, height, before) {
  const sides = [width, height].map((side) => Math.ceil(side / 64) * 64);
  const most = [Math.max(sides[0], before?.width ?? 0), Math.max(sides[1], before?.height ?? 0)];
  return most[0] * most[1] <= 2 * MOST_SAMPLES ? most : sides;
}

// The part of the canvas in which the picture shows.
function boxOf(view, picture, width, height) {
  const x = Math.min(Math.max(0, Math.round(view.x)), width);
  const y = Math.min(Math.max(0, Math.round(view.y)), height);
  const right = Math.min(width, Math.max(x, Math.round(view.x + picture.width * view.scale)));
  const bottom = Math.min(height, Math.max(y, Math.round(view.y + picture.height * view.scale)));
  return { x, y, width: right - x, height: bottom - y };
}

// Along each side of a pixel: a smaller picture is averaged, it would miss what lies between.
function samplesOf(scale, pixels) {
  const most = Math.floor(Math.sqrt(MOST_SAMPLES / Math.max(1, pixels)));
  return Math.max(1, Math.min(Math.ceil(1 / scale - 1e-9), most));
}

function squaredError(drawn, given, channels) {
  const compared = channels === 1 ? 1 : channels === 2 ? 2 : channels === 4 ? 4 : 3;
  let sum = 0;
  for (let at = 0; at < drawn.length; at += 4) {
    for (let c = 0; c < compared; c++) sum += (drawn[at + c] - given[at + c]) ** 2;
  }
  return sum;
}
