// What the CUDA kernels that draw Gaussians share.
//
// Gaussians are held in an order by place, and 128 of them that follow one another make a chunk, with
// one box around all of their ellipses; 64 chunks make a group with a box of its own. There are no
// lists of Gaussians per tile to build, sort or bound: whoever draws a region walks down boxes, groups
// to chunks to ellipses, and meets its Gaussians in the order in which they are held.
//
// Forward: a block of threads owns a region, a warp one or two parts of it, a thread one place of each.
// Gaussians that touch the region are gathered in shared memory with a bit for each part that they
// touch; a warp draws those with its bits. A place's sum has one order. The region of a picture is a
// tile of 32x16 pixels, its parts have 8x4.
// Backward: a warp owns a Gaussian, reads the gradient over the parts that the Gaussian touches, and a
// thread alone writes its gradients. No atomics but a minimum: everything is deterministic.
//
// Compiled once for float and once for double, as REAL.
#pragma once
#include "rasterize_sum.h"

namespace instantgi {
namespace {

using Real = REAL;
using Index = long long;

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kSide = 4;                                // pixels along the side of a block in memory
constexpr int kLanes = kSide * kSide;                   // pixels of a block
constexpr int kPartWidth = 8, kPartHeight = 4;          // pixels of a part, one for each thread of a warp
constexpr int kTileWidth = 32, kTileHeight = 16;        // pixels of a tile
constexpr int kPartCols = kTileWidth / kPartWidth;      // parts along a tile
constexpr int kPartRows = kTileHeight / kPartHeight;    // and down it
constexpr int kOwned = kPartCols * kPartRows / kWarps;  // parts of a warp
constexpr int kChunk = 128;                             // Gaussians that share a box
constexpr int kGroup = 64;                              // boxes in a larger one
constexpr int kBatch = 512;                             // Gaussians in shared memory
constexpr int kPublishedTile = 16;                      // pixels along the side of GaussianImage's tile

// Where a Gaussian is, and how an offset from there becomes (u, v) = (a dx, b dx + c dy).
struct Frame {
    Real mean_x, mean_y, a, b, c;
};

// What all passes need of a Gaussian. One that is not drawn has a reach_x below zero.
struct alignas(16) Splat : Frame {
    Real reach_x, reach_y, slope, half, widest;
};

struct alignas(16) Box {
    float left, top, right, bottom;
};

__device__ bool touch(const Box& a, const Box& b) {
    return a.left <= b.right && b.left <= a.right && a.top <= b.bottom && b.top <= a.bottom;
}

__device__ Box around(const Box& a, const Box& b) {
    return {fminf(a.left, b.left), fminf(a.top, b.top), fmaxf(a.right, b.right), fmaxf(a.bottom, b.bottom)};
}

constexpr float kFar = 3e38f;  // what lies beyond shares an edge

__device__ Box nothing() { return {kFar, kFar, -kFar, -kFar}; }

template <typename T>
__device__ float edge(T x) {
    return float(x < -T(kFar) ? -T(kFar) : x > T(kFar) ? T(kFar) : x);
}

__device__ int lane_of() { return threadIdx.x % kWarp; }
__device__ int warp_of() { return threadIdx.x / kWarp; }

// Around the boxes of all lanes, in each lane.
__device__ Box around_lanes(Box box) {
    for (int offset = kWarp / 2; offset; offset /= 2)
        box = around(box,
                     {__shfl_xor_sync(kAll, box.left, offset), __shfl_xor_sync(kAll, box.top, offset),
                      __shfl_xor_sync(kAll, box.right, offset), __shfl_xor_sync(kAll, box.bottom, offset)});
    return box;
}

__device__ Real smaller(Real a, Real b) { return a < b ? a : b; }
__device__ Real larger(Real a, Real b) { return a > b ? a : b; }
__device__ Index least(Index a, Index b) { return a < b ? a : b; }

// Pixels of slack for the rounding of an extent; the cut-off itself is decided place by place.
__device__ Real slack(Real reach) { return Real(0.01) + Real(1e-3) * reach; }

// The columns of parts, first and one past the last, whose centers the ellipse may touch in pixel
// rows top to top + 3, from the mean; an empty range if there are none.
struct Columns {
    int begin, end;
};

__device__ Columns find_columns(const Splat& g, Real top, int num_columns) {
    const Real reach = larger(g.reach_y, Real(1e-30)), margin_y = slack(reach),
               bottom = top + Real(kPartHeight - 1);
    if (g.reach_x < 0 || top > reach + margin_y || bottom < -reach - margin_y) return {0, 0};
    const Real low = smaller(larger(top, -reach), reach), high = smaller(larger(bottom, -reach), reach);
    const Span<Real> span =
        row_span(g.slope, g.half, g.widest, reach, low, high, [](Real x) { return sqrt(x); });
    const Real margin = slack(g.reach_x);
    const Real first = (g.mean_x + span.left - margin - Real(kPartWidth - 0.5)) / kPartWidth + 1;
    const Real last = (g.mean_x + span.right + margin - Real(0.5)) / kPartWidth + 1;
    const int begin = int(smaller(larger(first, 0), Real(num_columns)));
    const int end = int(smaller(larger(last, 0), Real(num_columns)));
    return {begin, end};
}

// Of one Gaussian at one place: its weight there is 2^−s.
struct Offsets {
    Real u, v, s;
};

// Rounded alike wherever it is inlined: whether a place is inside must not depend on who asks, so the
// compiler is left no choice of what to fuse, and all ask with the place itself less the mean.
__device__ Offsets offsets(const Frame& g, Real dx, Real dy) {
    const Real u = g.a * dx, v = Real(fma(g.b, dx, g.c * dy));
    return {u, v, Real(fma(u, u, v * v))};
}

__device__ Real weight(Real s, Real limit) { return s <= limit ? Real(exp2(-s)) : Real(0); }

// Appends the values whose `keep` is set to list[count…] in the order of the threads; all threads of
// the block must call it. The new count is the same for all of them.
template <typename Put>
__device__ int append(bool keep, int count, int* warp_counts, const Put& put) {
    const unsigned kept = __ballot_sync(kAll, keep);
    if (lane_of() == 0) warp_counts[warp_of()] = __popc(kept);
    __syncthreads();
    int place = count + __popc(kept & ((1u << lane_of()) - 1)), total = count;
    for (int warp = 0; warp < kWarps; ++warp) {
        if (warp < warp_of()) place += warp_counts[warp];
        total += warp_counts[warp];
    }
    if (keep) put(place);
    __syncthreads();  // what was put may be read, and the counts of the warps written again
    return total;
}

struct Scene {
    Index num, channels, height, width;
    const Index* order;      // [num], or null: sorted to original index
    const Splat* splats;     // [num], sorted
    const Box* chunks;       // [num / kChunk, up]
    const Box* groups;       // [chunks / kGroup, up]
    const Real* colors;      // [num, channels], original
    const int* tile_limits;  // [⌈height/16⌉, ⌈width/16⌉]: last original index drawn in a tile, or null
    __device__ Index original(Index i) const { return order ? order[i] : i; }
    __device__ int columns() const { return int((width + kPartWidth - 1) / kPartWidth); }
    __device__ Index block_rows() const { return (height + kSide - 1) / kSide; }
    __device__ Index block_cols() const { return (width + kSide - 1) / kSide; }
    // The last original index that is drawn in the published tile in row y, column x of such tiles.
    __device__ Index limit(Index y, Index x) const {
        const Index cols = (width + kPublishedTile - 1) / kPublishedTile;
        return tile_limits && x < cols ? tile_limits[y * cols + x] : Index(1) << 40;
    }
};

#define SCENE_PARAMETERS                                                                           \
    Index num, Index channels, Index height, Index width, const Index *order, const Splat *splats, \
        const Box *chunks, const Box *groups, const Real *colors, const int *tile_limits, Index first
#define SCENE {num, channels, height, width, order, splats, chunks, groups, colors, tile_limits}

// --- forward -------------------------------------------------------------------------------------

// A Gaussian in shared memory, with C channels of its color.
template <int C>
struct alignas(16) Entry : Frame {
    Real color[C];
};
template <>
struct alignas(16) Entry<0> : Frame {};

// Calls visit(part, Entry<C>) for the Gaussians that may reach a part of the region, each warp for its
// own; touched(i) has bit warp + 8 part for each part that Gaussian i touches. Colors from channel
// `first` on. All threads of the block must call it.
template <int C, int Parts, typename Touched, typename Visit>
__device__ void visit_region(const Scene& scene, Index first, const Box& region, const Touched& touched,
                             const Visit& visit) {
    __shared__ Entry<C> batch[kBatch];
    __shared__ unsigned short masks[kBatch];
    __shared__ int groups[kThreads], chunks[kThreads], warp_counts[kWarps];
    const int thread = threadIdx.x, lane = lane_of(), warp = warp_of();

    int count = 0;
    auto visit_batch = [&] {
        for (int base = 0; base < count; base += kWarp) {
            const unsigned mask = base + lane < count ? masks[base + lane] : 0;
#pragma unroll
            for (int part = 0; part < Parts; ++part) {
                unsigned waiting = __ballot_sync(kAll, mask >> (warp + part * kWarps) & 1);
                while (waiting) {
                    visit(part, batch[base + __ffs(waiting) - 1]);
                    waiting &= waiting - 1;
                }
            }
        }
        count = 0;
        __syncthreads();  // slower warps may still read what the next batch overwrites
    };

    const Index num_chunks = (scene.num + kChunk - 1) / kChunk,
                num_groups = (num_chunks + kGroup - 1) / kGroup;
    for (Index base = 0; base < num_groups; base += kThreads) {
        const bool near = base + thread < num_groups && touch(scene.groups[base + thread], region);
        const int num_near =
            append(near, 0, warp_counts, [&](int place) { groups[place] = int(base) + thread; });
        for (int i = 0; i < num_near * kGroup; i += kThreads) {
            const int at = i + thread;
            const Index chunk =
                at < num_near * kGroup ? Index(groups[at / kGroup]) * kGroup + at % kGroup : num_chunks;
            const bool is_near = chunk < num_chunks && touch(scene.chunks[chunk], region);
            const int num_found =
                append(is_near, 0, warp_counts, [&](int place) { chunks[place] = int(chunk); });
            for (int j = 0; j < num_found * kChunk; j += kThreads) {
                const int member = j + thread;
                const Index n = member < num_found * kChunk
                                    ? Index(chunks[member / kChunk]) * kChunk + member % kChunk
                                    : scene.num;
                const unsigned mask = n < scene.num ? touched(n) : 0;
                if (count + kThreads > kBatch) visit_batch();
                count = append(mask != 0, count, warp_counts, [&](int place) {
                    const Splat& g = scene.splats[n];
                    Entry<C>& e = batch[place];
                    e.mean_x = g.mean_x, e.mean_y = g.mean_y, e.a = g.a, e.b = g.b, e.c = g.c;
                    if constexpr (C > 0) {
                        const Real* color = scene.colors + scene.original(n) * scene.channels + first;
                        for (int k = 0; k < C; ++k) e.color[k] = color[k];
                    }
                    masks[place] = (unsigned short)mask;
                });
            }
        }
    }
    visit_batch();
}

struct Tile {
    int x, y;
};

// A block's own.
__device__ Tile tile_of(const Scene& scene) {
    const int cols = int((scene.width + kTileWidth - 1) / kTileWidth);
    return {int(blockIdx.x) % cols, int(blockIdx.x) / cols};
}

struct Pixel {
    Index x, y;
};

// This thread's pixel of one of its parts.
__device__ Pixel pixel_of(Tile tile, int part) {
    const int lane = lane_of(), warp = warp_of();
    const int row = warp / kPartCols + part * (kPartRows / kOwned);
    return {Index(tile.x) * kTileWidth + warp % kPartCols * kPartWidth + lane / kLanes * kSide + lane % kSide,
            Index(tile.y) * kTileHeight + row * kPartHeight + lane % kLanes / kSide};
}

// Calls visit(part, Entry<C>, Offsets) for the Gaussians that may reach this thread's pixels; see above.
template <int C, typename Visit>
__device__ void visit_tile(const Scene& scene, Index first, Tile tile, const Visit& visit) {
    const Pixel at = pixel_of(tile, 0);
    const Real x = Real(int(at.x)) + Real(0.5), y = Real(int(at.y)) + Real(0.5);
    auto touched = [&](Index i) {
        const Splat g = scene.splats[i];
        unsigned mask = 0;
        for (int row = 0; row < kPartRows; ++row) {
            const Real top = Real(tile.y * kTileHeight + row * kPartHeight) + Real(0.5) - g.mean_y;
            const Columns columns = find_columns(g, top, scene.columns());
            for (int col = 0; col < kPartCols; ++col) {
                const int at_col = tile.x * kPartCols + col;
                if (columns.begin <= at_col && at_col < columns.end) mask |= 1u << (row * kPartCols + col);
            }
        }
        if (mask && scene.tile_limits) {
            const Index n = scene.original(i);
            if (n > scene.limit(tile.y, 2 * tile.x)) mask &= ~0x3333u;
            if (n > scene.limit(tile.y, 2 * tile.x + 1)) mask &= ~0xccccu;
        }
        return mask;
    };
    const Box region{float(tile.x * kTileWidth), float(tile.y * kTileHeight),
                     float((tile.x + 1) * kTileWidth), float((tile.y + 1) * kTileHeight)};
    visit_region<C, kOwned>(scene, first, region, touched, [&](int part, const Entry<C>& e) {
        const Real row = y + Real(part * (kPartRows / kOwned) * kPartHeight);
        visit(part, e, offsets(e, x - e.mean_x, row - e.mean_y));
    });
}

// The place of a pixel's channel `first` in blocks of 4x4; the next channels are kLanes apart.
template <int C>
__device__ Index in_blocks(const Scene& scene, Index first, Pixel at) {
    const Index blocks = scene.block_rows() * scene.block_cols();
    const Index block = at.y / kSide * scene.block_cols() + at.x / kSide;
    return blocks * kLanes * first + block * C * kLanes + at.y % kSide * kSide + at.x % kSide;
}

// Whether a pixel is in a block, if only to fill it.
__device__ bool is_in_blocks(const Scene& scene, Pixel at) {
    return at.x < scene.block_cols() * kSide && at.y < scene.block_rows() * kSide;
}

// Puts s in its place among the smallest so far, which are in increasing order.
template <int Slots>
__device__ void keep_smallest(Real (&slots)[Slots], Real s) {
    if (!(s < slots[Slots - 1])) return;
    slots[Slots - 1] = s;
#pragma unroll
    for (int k = Slots - 1; k > 0; --k) {
        const Real before = slots[k - 1], moved = slots[k];
        slots[k - 1] = smaller(before, moved);
        slots[k] = larger(before, moved);
    }
}

// So that the last slot is the smallest exponent but num − 1, or the cut-off if there are fewer: slots
// more than that hold less than any exponent for good.
template <int Slots>
__device__ void start_slots(Real (&slots)[Slots], int num, Real cutoff) {
#pragma unroll
    for (int k = 0; k < Slots; ++k) slots[k] = k < Slots - num ? Real(-1) : cutoff;
}

// --- backward ------------------------------------------------------------------------------------

constexpr int kBackward = 64;  // Gaussians of a block
constexpr int kLarge = 64;     // rows of parts, or parts, from which all warps share a Gaussian

// What a Gaussian is gathered over: rows, of whatever kind, shared by all warps if that is a lot.
struct Rows {
    int begin, end;
    bool large;
};

// Adds to the moments Σ w q z and Σ w q z zᵀ (q = color · gradient − common, z in units of (u, v)) and
// to Σ w gradient, sums[0…4] and [5…]. `q` is less what is common; values of channels are `stride` apart.
template <int C, bool Geometry>
__device__ void add_moments(const Real (&color)[C], const Offsets& at, Real w, Real q, const Real* values,
                            int stride, Real (&sums)[5 + C]) {
    for (int k = 0; k < C; ++k) {
        const Real value = values[k * stride];
        sums[5 + k] += w * value;
        q += color[k] * value;
    }
    if (Geometry) {
        const Real wq = w * q, wqu = wq * at.u, wqv = wq * at.v;
        sums[0] += wqu;
        sums[1] += wqv;
        sums[2] += wqu * at.u;
        sums[3] += wqu * at.v;
        sums[4] += wqv * at.v;
    }
}

// The gradient of a picture in blocks. Of a mixture also where its terms end, and what they share.
struct Gradient {
    const Real *blocks, *limits, *common;  // the last two null for a sum
};

// Rows of parts that the ellipse may touch.
__device__ Rows find_rows(const Scene& scene, const Splat& g) {
    if (g.reach_x < 0) return {0, 0, false};
    const Real reach = g.reach_y + slack(g.reach_y);
    const Real rows = Real((scene.height + kPartHeight - 1) / kPartHeight);
    const Real first = (g.mean_y - reach - Real(kPartHeight - 0.5)) / kPartHeight + 1;
    const Real last = (g.mean_y + reach - Real(0.5)) / kPartHeight + 1;
    const int begin = int(smaller(larger(first, 0), rows)), end = int(smaller(larger(last, 0), rows));
    return {begin, end, end - begin > kLarge || Real(end - begin) * g.reach_x > Real(kLarge * kPartWidth)};
}

// Adds the moments over the Gaussian's parts in part rows begin, begin + step, …
template <int C, bool Geometry, bool Mixture>
__device__ void gather(const Scene& scene, Index i, const Splat& g, const Gradient& gradient, Index first,
                       int begin, int end, int step, Real (&sums)[5 + C]) {
    const Index n = scene.original(i);
    Real color[C];
    for (int k = 0; k < C; ++k) color[k] = scene.colors[n * scene.channels + first + k];
    const int lane = lane_of(), block = lane / kLanes;
    const Real x = Real(block * kSide + lane % kSide) + Real(0.5);
    const Real y = Real(lane % kLanes / kSide) + Real(0.5);
    const int block_cols = int(scene.block_cols());
    const Real* blocks = gradient.blocks + scene.block_rows() * block_cols * kLanes * first;
    for (int base = begin; base < end; base += step * kWarp) {
        Columns own{0, 0};
        const int own_row = base + lane * step;
        if (own_row < end)
            own = find_columns(g, Real(own_row * kPartHeight) + Real(0.5) - g.mean_y, scene.columns());
        const int rows = int(least((end - base + step - 1) / step, kWarp));
        for (int of_lane = 0; of_lane < rows; ++of_lane) {
            const int row = base + of_lane * step;
            const int from = __shfl_sync(kAll, own.begin, of_lane), to = __shfl_sync(kAll, own.end, of_lane);
            const Real dy = y + Real(row * kPartHeight) - g.mean_y;
            Real column = x + Real(from * kPartWidth);
            for (int col = from; col < to; ++col, column += kPartWidth) {
                const int at = 2 * col + block;
                if (at >= block_cols) continue;
                if (scene.tile_limits &&
                    n > scene.limit(row * kPartHeight / kPublishedTile, col * kPartWidth / kPublishedTile))
                    continue;
                const Offsets o = offsets(g, column - g.mean_x, dy);
                const Index of_block = Index(row) * block_cols + at;
                const int within = lane % kLanes;
                Real limit = Real(kCutoff), q = 0;
                if (Mixture) {
                    limit = gradient.limits[of_block * kLanes + within];
                    if (!(o.s <= limit)) continue;
                    if (first == 0) q = -gradient.common[of_block * kLanes + within];
                }
                add_moments<C, Geometry>(color, o, weight(o.s, limit), q,
                                         blocks + of_block * (C * kLanes) + within, kLanes, sums);
            }
        }
    }
}

// The sums over the lanes of all values, each in lane 0, by a fixed tree.
template <int N>
__device__ void sum_lanes(Real (&values)[N]) {
    for (int i = 0; i < N; ++i)
        for (int offset = kWarp / 2; offset; offset /= 2)
            values[i] += __shfl_xor_sync(kAll, values[i], offset);
}

// Gradients, times `scale`: grad_geometry [num, 5], see `finish_geometry`, and grad_colors [num,
// channels], of channels first to first + C. Moments of earlier channels are found in grad_geometry;
// the last group of channels finishes them. find(Splat) gives Rows, and gather(i, Splat, begin, end,
// step, sums) adds the moments over those; whole warps call them.
template <int C, bool Geometry, typename Find, typename Gather>
__device__ void backward(const Scene& scene, Index first, const Real* cholesky, double scale, int coordinates,
                         Real* grad_geometry, Real* grad_colors, const Find& find, const Gather& gather) {
    __shared__ Real results[kBackward][5 + C];
    __shared__ Real shares[kWarps][5 + C];
    __shared__ unsigned char is_large[kBackward];
    const Index base = Index(blockIdx.x) * kBackward;
    const int warp = warp_of(), lane = lane_of();
    for (int member = warp; member < kBackward; member += kWarps) {
        const Index i = base + member;
        if (i >= scene.num) break;
        const Splat g = scene.splats[i];
        const Rows rows = find(g);
        if (lane == 0) is_large[member] = rows.large;
        if (rows.large) continue;
        Real sums[5 + C] = {};
        gather(i, g, rows.begin, rows.end, 1, sums);
        sum_lanes(sums);
        if (lane == 0)
            for (int k = 0; k < 5 + C; ++k) results[member][k] = sums[k];
    }
    __syncthreads();
    for (int member = 0; member < kBackward; ++member) {
        const Index i = base + member;
        if (i >= scene.num) break;
        if (!is_large[member]) continue;
        const Splat g = scene.splats[i];
        const Rows rows = find(g);
        Real sums[5 + C] = {};
        gather(i, g, rows.begin + warp, rows.end, kWarps, sums);
        sum_lanes(sums);
        if (lane == 0)
            for (int k = 0; k < 5 + C; ++k) shares[warp][k] = sums[k];
        __syncthreads();
        if (threadIdx.x < 5 + C) {
            Real sum = 0;
            for (int w = 0; w < kWarps; ++w) sum += shares[w][threadIdx.x];
            results[member][threadIdx.x] = sum;
        }
        __syncthreads();  // the shares are written again
    }
    const Index i = base + threadIdx.x;
    if (threadIdx.x >= kBackward || i >= scene.num) return;
    const Index n = scene.original(i);
    const Real* sums = results[threadIdx.x];
    for (int k = 0; k < C; ++k) grad_colors[n * scene.channels + first + k] = sums[5 + k] * Real(scale);
    if (!Geometry) return;
    Real moments[5];
    for (int k = 0; k < 5; ++k) moments[k] = sums[k] + (first ? grad_geometry[5 * n + k] : Real(0));
    // one that is not drawn has moments of zero, and no frame
    if (first + C == scene.channels && scene.splats[i].reach_x >= 0)
        finish_geometry(cholesky + 3 * n, scale, coordinates, moments);
    for (int k = 0; k < 5; ++k) grad_geometry[5 * n + k] = moments[k];
}

// The same of a picture, from its gradient.
template <int C, bool Geometry, bool Mixture>
__device__ void backward_of_picture(const Scene& scene, Index first, const Real* cholesky,
                                    const Gradient& gradient, double scale, int coordinates,
                                    Real* grad_geometry, Real* grad_colors) {
    backward<C, Geometry>(
        scene, first, cholesky, scale, coordinates, grad_geometry, grad_colors,
        [&](const Splat& g) { return find_rows(scene, g); },
        [&](Index i, const Splat& g, int begin, int end, int step, Real(&sums)[5 + C]) {
            gather<C, Geometry, Mixture>(scene, i, g, gradient, first, begin, end, step, sums);
        });
}

}  // namespace
}  // namespace instantgi
