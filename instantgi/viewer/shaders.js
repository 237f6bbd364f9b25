// What runs on the GPU. Textures that pictures are drawn into have their first row at the top.

// From pixels of a part to those of the target, as a difference of floats: the origin is given in
// two pieces, so that a picture can be enlarged a thousand times without trembling.
const PLACED = `
uniform vec2 originHigh, originLow, scale, size;
layout(location = 0) in vec2 mean;
layout(location = 1) in vec3 cholesky;
layout(location = 2) in vec4 color;
vec2 placed() { return ((mean - originHigh) - originLow) * scale; }
vec3 scaled() { return cholesky * scale.xyy; }
vec4 clip(vec2 pixel) { return vec4(pixel / size * 2.0 - 1.0, 0.0, 1.0); }
`;

const HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
precision highp usampler2D;
`;

// A Gaussian as a rectangle around its ellipse, along its axes; see cuda/rasterize_sum.h.
export const SUM_VERTEX = `${HEAD}${PLACED}
const float UNIT = 0.84932180028801905, RADIUS = 3.3290429691304455, THINNEST = 1e-6;
flat out vec2 center;
flat out vec3 whitening;
flat out vec4 light;

void main() {
  center = placed();
  vec3 l = scaled();
  whitening = UNIT * vec3(1.0 / l.x, -l.y / l.x / l.z, 1.0 / l.z);
  light = color;
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  float turn = 0.5 * atan(2.0 * l.x * l.y, l.x * l.x - l.y * l.y - l.z * l.z);
  vec2 along = vec2(cos(turn), sin(turn)), across = vec2(-along.y, along.x);
  vec2 reach = RADIUS * vec2(length(vec2(dot(l.xy, along), l.z * along.y)),
                             length(vec2(dot(l.xy, across), l.z * across.y)));
  reach = reach * 1.0001 + 0.15;  // a rasterizer sees corners to about 1/16 of a pixel
  bool isDrawn = abs(l.x) >= THINNEST && abs(l.z) >= THINNEST;
  bool isHuge = !(max(reach.x, reach.y) < 1e5);
  vec2 pixel = isHuge ? (corner * 0.5 + 0.5) * size : center + along * reach.x * corner.x + across * reach.y * corner.y;
  gl_Position = isDrawn ? clip(pixel) : vec4(2.0, 2.0, 0.0, 1.0);
}`;

export const SUM_FRAGMENT = `${HEAD}
const float CUTOFF = 7.99435343685885815;  // log2 255
flat in vec2 center;
flat in vec3 whitening;
flat in vec4 light;
out vec4 value;

void main() {
  vec2 d = gl_FragCoord.xy - center;
  vec2 z = vec2(whitening.x * d.x, whitening.y * d.x + whitening.z * d.y);
  float s = dot(z, z);
  value = s <= CUTOFF ? light * exp2(-s) : vec4(0.0);
}`;

export const SCREEN_VERTEX = `${HEAD}
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;

// The normalised mixture of the K largest, from lists of the Gaussians that each tile may see.
// The K smallest exponents are kept in order; then all up to the last of them are mixed.
export function mixtureFragment(topK) {
  const names = Array.from({ length: topK }, (_, k) => `best${k}`);
  const insert = names.map((name) => `t = min(${name}, s); s = max(${name}, s); ${name} = t;`);
  return `${HEAD}
uniform sampler2D gaussians;  // three texels each: (center, a, b), (c, -, -, -), color
uniform usampler2D tiles;     // begin and end in the lists
uniform usampler2D lists;
uniform int tileShift;
uniform float cutoff, epsilon;
out vec4 value;

vec4 texel(uint n, uint part) {
  uint at = 3u * n + part, width = uint(textureSize(gaussians, 0).x);
  return texelFetch(gaussians, ivec2(at % width, at / width), 0);
}

uint member(uint i) {
  uint width = uint(textureSize(lists, 0).x);
  return texelFetch(lists, ivec2(i % width, i / width), 0).x;
}

float exponent(uint n) {
  vec4 first = texel(n, 0u);
  vec2 d = gl_FragCoord.xy - first.xy;
  vec2 z = vec2(first.z * d.x, first.w * d.x + texel(n, 1u).x * d.y);
  return dot(z, z);
}

void main() {
  uvec2 range = texelFetch(tiles, ivec2(gl_FragCoord.xy) >> tileShift, 0).xy;
  float ${names.map((name) => `${name} = 1e30`).join(", ")};
  float s, t;
  for (uint i = range.x; i < range.y; i++) {
    s = exponent(member(i));
    if (s <= cutoff && s < ${names.at(-1)}) {
      ${insert.join("\n      ")}
    }
  }
  float limit = min(${names.at(-1)}, cutoff), total = epsilon;
  value = vec4(0.0);
  for (uint i = range.x; i < range.y; i++) {
    uint n = member(i);
    s = exponent(n);
    if (s <= limit) {
      float weight = exp2(-s);
      value += weight * texel(n, 2u);
      total += weight;
    }
  }
  value /= total;
}`;
}

// A level: its clamped sum, mapped to its range, plus the picture of those below, enlarged.
export const LEVEL_FRAGMENT = `${HEAD}
uniform sampler2D sum, below;
uniform vec2 range;
uniform bool hasBelow;
uniform vec2 origin, stride;  // of the target's pixels, in pixels of the picture below
uniform vec2 belowSize;
out vec4 value;

void main() {
  value = range.x + (range.y - range.x) * clamp(texelFetch(sum, ivec2(gl_FragCoord.xy), 0), 0.0, 1.0);
  if (!hasBelow) return;
  vec2 last = belowSize - 1.0;
  vec2 place = clamp(origin + gl_FragCoord.xy * stride - 0.5, vec2(0.0), last);
  ivec2 first = ivec2(place), next = min(first + 1, ivec2(last));
  vec2 share = place - vec2(first);
  vec4 upper = mix(texelFetch(below, first, 0), texelFetch(below, ivec2(next.x, first.y), 0), share.x);
  vec4 lower = mix(texelFetch(below, ivec2(first.x, next.y), 0), texelFetch(below, next, 0), share.x);
  value += mix(upper, lower, share.y);
}`;

// The mean of samples x samples values: what a file writes as 8 bits, before they are shown.
const AVERAGED = `
uniform sampler2D picture;
uniform int samples, channels;
vec4 averaged(ivec2 pixel) {
  vec4 total = vec4(0.0);
  for (int y = 0; y < samples; y++)
    for (int x = 0; x < samples; x++) total += texelFetch(picture, pixel * samples + ivec2(x, y), 0);
  vec4 mean = clamp(total / float(samples * samples), 0.0, 1.0);
  if (channels == 1) return vec4(mean.rrr, 1.0);
  return channels == 4 ? mean : vec4(mean.rgb, 1.0);
}
`;

export const PIXELS_FRAGMENT = `${HEAD}${AVERAGED}
uniform ivec2 corner;
out vec4 value;
void main() { value = averaged(ivec2(gl_FragCoord.xy) - corner); }`;

// How far two pictures are apart, 1 being 64/255 of the most different channel.
export const ERROR_FRAGMENT = `${HEAD}
uniform sampler2D drawn, original;
out vec4 value;
void main() {
  ivec2 pixel = ivec2(gl_FragCoord.xy);
  vec4 apart = abs(texelFetch(drawn, pixel, 0) - texelFetch(original, pixel, 0));
  value = vec4(max(max(apart.r, apart.g), max(apart.b, apart.a)) * 255.0 / 64.0);
}`;

// The canvas: the picture in its rectangle, left of the split the original, or the error.
export const SHOW_FRAGMENT = `${HEAD}${AVERAGED}
uniform ivec4 box;       // of the picture that is seen, canvas pixels: x, y, width, height
uniform vec2 origin, stride, pictureSize;  // of canvas pixels in the box, in pixels of the picture
uniform float canvasHeight, split, cell;
uniform int blocks;      // canvas pixels of a block that has one color, along each side
uniform sampler2D original, errors;
uniform bool showsErrors;
uniform vec3 background;
out vec4 value;

// From black over blue and orange to white; lightness rises all the way.
vec3 heat(float t) {
  vec3 a = mix(vec3(0.02, 0.02, 0.06), vec3(0.16, 0.20, 0.55), clamp(t * 4.0, 0.0, 1.0));
  vec3 b = mix(a, vec3(0.78, 0.25, 0.42), clamp(t * 4.0 - 1.0, 0.0, 1.0));
  vec3 c = mix(b, vec3(1.0, 0.66, 0.25), clamp(t * 4.0 - 2.0, 0.0, 1.0));
  return mix(c, vec3(1.0, 1.0, 0.92), clamp(t * 4.0 - 3.0, 0.0, 1.0));
}

void main() {
  ivec2 place = ivec2(gl_FragCoord.x, canvasHeight - gl_FragCoord.y);
  ivec2 pixel = place - box.xy;
  value = vec4(background, 1.0);
  vec2 at = (origin + (vec2(pixel) + 0.5) * stride) / pictureSize;
  vec4 before = texture(original, at);
  float error = texture(errors, at).r;
  if (any(lessThan(pixel, ivec2(0))) || any(greaterThanEqual(pixel, box.zw))) return;
  vec4 drawn = averaged(pixel / blocks);
  if (showsErrors) drawn = vec4(heat(min(1.0, 2.0 * error)), 1.0);
  if (float(place.x) + 0.5 < split) drawn = before;
  vec2 square = floor(vec2(place) / cell);
  float board = mod(square.x + square.y, 2.0) < 0.5 ? 0.42 : 0.58;
  value.rgb = mix(vec3(board), drawn.rgb, drawn.a);
}`;

// Ellipses of one standard deviation, and centers.
export const MARK_VERTEX = `${HEAD}${PLACED}
uniform int corners;  // of an ellipse; 0: a point
uniform float pointSize;
void main() {
  float turn = 6.283185307179586 * float(gl_VertexID) / float(max(corners, 1));
  vec2 z = vec2(cos(turn), sin(turn));
  vec3 l = scaled();
  vec2 away = corners > 0 ? vec2(l.x * z.x, l.y * z.x + l.z * z.y) : vec2(0.0);
  gl_Position = clip(placed() + away);
  gl_Position.y = -gl_Position.y;
  gl_PointSize = pointSize;
}`;

export const MARK_FRAGMENT = `${HEAD}
uniform vec4 ink;
out vec4 value;
void main() { value = vec4(ink.rgb * ink.a, ink.a); }`;
