// The sum of all Gaussians at every pixel, and its gradient, on a GPU.
//
// Gaussians are held in an order by place, a Hilbert curve, and 128 of them that follow one another
// make a chunk, with one box around all of their ellipses; 64 chunks make a group with a box of its
// own. There are no lists of Gaussians per tile to build, sort or bound: whoever draws a tile walks
// down boxes, groups to chunks to ellipses, and meets its Gaussians in the order of the curve.
//
// Forward: a block of threads owns a tile of 32x16 pixels, a warp two parts of 8x4 pixels of it, a
// thread one pixel of each. Gaussians that touch the tile are gathered in shared memory with a bit
// for each part that they touch; a warp draws those with its bits. A pixel's sum has one order.
// Backward: a warp owns a Gaussian, reads the gradient of the picture over the Gaussian's parts, and
// a thread alone writes its gradients. No atomics but a minimum: everything is deterministic.
//
// Compiled once for float and once for double, as REAL.
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
constexpr int kGroup = 64;                              // chunks that share a box
constexpr int kBatch = 512;                             // Gaussians in shared memory
constexpr int kPublishedTile = 16;                      // pixels along the side of GaussianImage's tile

// What all passes need of a Gaussian: (u, v) = (a dx, b dx + c dy), and its extent. One that is not
// drawn has a reach_x below zero.
struct alignas(16) Splat {
    Real mean_x, mean_y, a, b, c;
    Real reach_x, reach_y, slope, half, widest;
};

struct alignas(16) Box {
    float left, top, right, bottom;
};

__device__ bool touch(const Box& a, const Box& b) {
    return a.left <= b.right && b.left <= a.right && a.top <= b.bottom && b.top <= a.bottom;
}

__device__ Real smaller(Real a, Real b) { return a < b ? a : b; }
__device__ Real larger(Real a, Real b) { return a > b ? a : b; }
__device__ Index least(Index a, Index b) { return a < b ? a : b; }

// Pixels of slack for the rounding of an extent; the cut-off itself is decided pixel by pixel.
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

__device__ Real weight_of(Real u, Real v) {
    const Real s = u * u + v * v;
    return s <= Real(kCutoff) ? Real(exp2(-s)) : Real(0);
}

__device__ bool is_finite(Real x) { return x - x == 0; }

__device__ int lane_of() { return threadIdx.x % kWarp; }
__device__ int warp_of() { return threadIdx.x / kWarp; }

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

template <int C>
struct alignas(16) Entry {
    Real mean_x, mean_y, a, b, c;
    Real color[C];
};

// The sums of C channels from `first` on at this thread's pixels: sums[part][channel], where part p
// of a warp is 2 p part rows below its first.
template <int C>
__device__ void draw_tile(const Scene& scene, Index first, int tile_x, int tile_y, Real (&sums)[kOwned][C]) {
    __shared__ Entry<C> batch[kBatch];
    __shared__ unsigned short masks[kBatch];
    __shared__ int groups[kThreads], chunks[kThreads], warp_counts[kWarps];
    const int thread = threadIdx.x, lane = lane_of(), warp = warp_of();
    const int part_col = warp % kPartCols, part_row = warp / kPartCols;
    const Real x =
        Real(tile_x * kTileWidth + part_col * kPartWidth + lane / kLanes * kSide + lane % kSide) + Real(0.5);
    const Real y = Real(tile_y * kTileHeight + part_row * kPartHeight + lane % kLanes / kSide) + Real(0.5);
    for (int part = 0; part < kOwned; ++part)
        for (int k = 0; k < C; ++k) sums[part][k] = 0;

    int count = 0;
    auto draw = [&] {
        for (int base = 0; base < count; base += kWarp) {
            const unsigned mask = base + lane < count ? masks[base + lane] : 0;
            for (int part = 0; part < kOwned; ++part) {
                unsigned waiting = __ballot_sync(kAll, mask >> (warp + part * kWarps) & 1);
                const Real row = y + Real(part * (kPartRows / kOwned) * kPartHeight);
                while (waiting) {
                    const Entry<C>& e = batch[base + __ffs(waiting) - 1];
                    waiting &= waiting - 1;
                    const Real dx = x - e.mean_x, dy = row - e.mean_y;
                    const Real w = weight_of(e.a * dx, e.b * dx + e.c * dy);
                    for (int k = 0; k < C; ++k) sums[part][k] += e.color[k] * w;
                }
            }
        }
        count = 0;
        __syncthreads();  // slower warps may still read what the next batch overwrites
    };
    // one bit for each part of the tile that the ellipse touches
    auto touched = [&](Index i) {
        const Splat g = scene.splats[i];
        unsigned mask = 0;
        for (int row = 0; row < kPartRows; ++row) {
            const Real top = Real(tile_y * kTileHeight + row * kPartHeight) + Real(0.5) - g.mean_y;
            const Columns columns = find_columns(g, top, scene.columns());
            for (int col = 0; col < kPartCols; ++col) {
                const int at = tile_x * kPartCols + col;
                if (columns.begin <= at && at < columns.end) mask |= 1u << (row * kPartCols + col);
            }
        }
        if (mask && scene.tile_limits) {
            const Index n = scene.original(i);
            if (n > scene.limit(tile_y, 2 * tile_x)) mask &= ~0x3333u;
            if (n > scene.limit(tile_y, 2 * tile_x + 1)) mask &= ~0xccccu;
        }
        return mask;
    };

    const Box tile{float(tile_x * kTileWidth), float(tile_y * kTileHeight), float((tile_x + 1) * kTileWidth),
                   float((tile_y + 1) * kTileHeight)};
    const Index num_chunks = (scene.num + kChunk - 1) / kChunk,
                num_groups = (num_chunks + kGroup - 1) / kGroup;
    for (Index base = 0; base < num_groups; base += kThreads) {
        const bool near = base + thread < num_groups && touch(scene.groups[base + thread], tile);
        const int num_near =
            append(near, 0, warp_counts, [&](int place) { groups[place] = int(base) + thread; });
        for (int i = 0; i < num_near * kGroup; i += kThreads) {
            const int at = i + thread;
            const Index chunk =
                at < num_near * kGroup ? Index(groups[at / kGroup]) * kGroup + at % kGroup : num_chunks;
            const bool is_near = chunk < num_chunks && touch(scene.chunks[chunk], tile);
            const int num_found =
                append(is_near, 0, warp_counts, [&](int place) { chunks[place] = int(chunk); });
            for (int j = 0; j < num_found * kChunk; j += kThreads) {
                const int member = j + thread;
                const Index n = member < num_found * kChunk
                                    ? Index(chunks[member / kChunk]) * kChunk + member % kChunk
                                    : scene.num;
                const unsigned mask = n < scene.num ? touched(n) : 0;
                if (count + kThreads > kBatch) draw();
                count = append(mask != 0, count, warp_counts, [&](int place) {
                    const Splat& g = scene.splats[n];
                    Entry<C>& e = batch[place];
                    e.mean_x = g.mean_x, e.mean_y = g.mean_y, e.a = g.a, e.b = g.b, e.c = g.c;
                    const Real* color = scene.colors + scene.original(n) * scene.channels + first;
                    for (int k = 0; k < C; ++k) e.color[k] = color[k];
                    masks[place] = (unsigned short)mask;
                });
            }
        }
    }
    draw();
}

// This thread's pixel of one of its parts.
struct Pixel {
    Index x, y;
};

__device__ Pixel pixel_of(int tile_x, int tile_y, int part) {
    const int lane = lane_of(), warp = warp_of();
    const int row = warp / kPartCols + part * (kPartRows / kOwned);
    return {Index(tile_x) * kTileWidth + warp % kPartCols * kPartWidth + lane / kLanes * kSide + lane % kSide,
            Index(tile_y) * kTileHeight + row * kPartHeight + lane % kLanes / kSide};
}

template <int C>
__device__ void draw_picture(const Scene& scene, Index first, Real* image) {
    const int tile_cols = int((scene.width + kTileWidth - 1) / kTileWidth);
    const int tile_x = int(blockIdx.x) % tile_cols, tile_y = int(blockIdx.x) / tile_cols;
    Real sums[kOwned][C];
    draw_tile<C>(scene, first, tile_x, tile_y, sums);
    for (int part = 0; part < kOwned; ++part) {
        const Pixel at = pixel_of(tile_x, tile_y, part);
        if (at.x >= scene.width || at.y >= scene.height) continue;
        for (int k = 0; k < C; ++k)
            image[((first + k) * scene.height + at.y) * scene.width + at.x] = sums[part][k];
    }
}

// The place of a pixel's channel `first` in blocks of 4x4; the next channels are kLanes apart.
template <int C>
__device__ Index in_blocks(const Scene& scene, Index first, Pixel at) {
    const Index blocks = scene.block_rows() * scene.block_cols();
    const Index block = at.y / kSide * scene.block_cols() + at.x / kSide;
    return blocks * kLanes * first + block * C * kLanes + at.y % kSide * kSide + at.x % kSide;
}

template <int C>
__device__ void draw_error(const Scene& scene, Index first, const Real* target, bool clamp, Real* residual,
                           double* squares) {
    __shared__ double warp_squares[kWarps];
    const int tile_cols = int((scene.width + kTileWidth - 1) / kTileWidth);
    const int tile_x = int(blockIdx.x) % tile_cols, tile_y = int(blockIdx.x) / tile_cols;
    Real sums[kOwned][C];
    draw_tile<C>(scene, first, tile_x, tile_y, sums);
    double square = 0;
    for (int part = 0; part < kOwned; ++part) {
        const Pixel at = pixel_of(tile_x, tile_y, part);
        if (at.x >= scene.block_cols() * kSide || at.y >= scene.block_rows() * kSide) continue;
        const bool inside = at.x < scene.width && at.y < scene.height;
        const Index place = in_blocks<C>(scene, first, at);
        for (int k = 0; k < C; ++k) {
            Real drawn = sums[part][k];
            const bool active = inside && !(clamp && (drawn < 0 || drawn > 1));
            if (clamp) drawn = drawn < 0 ? Real(0) : drawn > 1 ? Real(1) : drawn;
            const Real difference = drawn - target[place + k * kLanes];
            if (inside) square += double(difference) * double(difference);
            residual[place + k * kLanes] = active ? difference : Real(0);
        }
    }
    for (int offset = kWarp / 2; offset; offset /= 2) square += __shfl_xor_sync(kAll, square, offset);
    if (lane_of() == 0) warp_squares[warp_of()] = square;
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < kWarps; ++warp) square += warp_squares[warp];
    squares[blockIdx.x] = square;
}

// --- backward ------------------------------------------------------------------------------------

constexpr int kBackward = 64;  // Gaussians of a block
constexpr int kLarge = 64;     // rows of parts, or parts, from which all warps share a Gaussian

// Adds, over the Gaussian's parts in part rows begin, begin + step, …, the moments Σ w q z and
// Σ w q z zᵀ (q = color · gradient, z in units of (u, v)) and Σ w gradient: sums[0…4] and [5…].
template <int C, bool Geometry>
__device__ void gather(const Scene& scene, Index i, const Splat& g, const Real* gradient, Index first,
                       int begin, int end, int step, Real (&sums)[5 + C]) {
    const Index n = scene.original(i);
    Real color[C];
    for (int k = 0; k < C; ++k) color[k] = scene.colors[n * scene.channels + first + k];
    const int lane = lane_of(), block = lane / kLanes;
    const Real x = Real(block * kSide + lane % kSide) + Real(0.5) - g.mean_x;
    const Real y = Real(lane % kLanes / kSide) + Real(0.5) - g.mean_y;
    const int block_cols = int(scene.block_cols());
    for (int base = begin; base < end; base += step * kWarp) {
        Columns own{0, 0};
        const int own_row = base + lane * step;
        if (own_row < end)
            own = find_columns(g, Real(own_row * kPartHeight) + Real(0.5) - g.mean_y, scene.columns());
        const int rows = int(least((end - base + step - 1) / step, kWarp));
        for (int of_lane = 0; of_lane < rows; ++of_lane) {
            const int row = base + of_lane * step;
            const int from = __shfl_sync(kAll, own.begin, of_lane), to = __shfl_sync(kAll, own.end, of_lane);
            const Real dy = y + Real(row * kPartHeight);
            for (int col = from; col < to; ++col) {
                const int at = 2 * col + block;
                if (at >= block_cols) continue;
                if (scene.tile_limits &&
                    n > scene.limit(row * kPartHeight / kPublishedTile, col * kPartWidth / kPublishedTile))
                    continue;
                const Real dx = x + Real(col * kPartWidth);
                const Real u = g.a * dx, v = g.b * dx + g.c * dy, w = weight_of(u, v);
                const Real* value = gradient + (Index(row) * block_cols + at) * (C * kLanes) + lane % kLanes;
                Real q = 0;
                for (int k = 0; k < C; ++k) {
                    const Real of_pixel = value[k * kLanes];
                    sums[5 + k] += w * of_pixel;
                    q += color[k] * of_pixel;
                }
                if (Geometry) {
                    const Real wq = w * q, wqu = wq * u, wqv = wq * v;
                    sums[0] += wqu;
                    sums[1] += wqv;
                    sums[2] += wqu * u;
                    sums[3] += wqu * v;
                    sums[4] += wqv * v;
                }
            }
        }
    }
}

// Rows of parts that the ellipse may touch.
__device__ Columns find_rows(const Scene& scene, const Splat& g) {
    if (g.reach_x < 0) return {0, 0};
    const Real reach = g.reach_y + slack(g.reach_y);
    const Real rows = Real((scene.height + kPartHeight - 1) / kPartHeight);
    const Real first = (g.mean_y - reach - Real(kPartHeight - 0.5)) / kPartHeight + 1;
    const Real last = (g.mean_y + reach - Real(0.5)) / kPartHeight + 1;
    return {int(smaller(larger(first, 0), rows)), int(smaller(larger(last, 0), rows))};
}

// The sums over the lanes of all values, each in lane 0, by a fixed tree.
template <int N>
__device__ void sum_lanes(Real (&values)[N]) {
    for (int i = 0; i < N; ++i)
        for (int offset = kWarp / 2; offset; offset /= 2)
            values[i] += __shfl_xor_sync(kAll, values[i], offset);
}

// Gradients from the picture's gradient in blocks, times `scale`: grad_geometry [num, 5], see
// `finish_geometry`, and grad_colors [num, channels], of channels first to first + C. Moments of
// earlier channels are found in grad_geometry; the last group of channels finishes them.
template <int C, bool Geometry>
__device__ void backward(const Scene& scene, Index first, const Real* cholesky, const Real* residual,
                         double scale, int coordinates, Real* grad_geometry, Real* grad_colors) {
    __shared__ Real results[kBackward][5 + C];
    __shared__ Real shares[kWarps][5 + C];
    __shared__ unsigned char is_large[kBackward];
    const Real* gradient = residual + scene.block_rows() * scene.block_cols() * kLanes * first;
    const Index base = Index(blockIdx.x) * kBackward;
    const int warp = warp_of(), lane = lane_of();
    for (int member = warp; member < kBackward; member += kWarps) {
        const Index i = base + member;
        if (i >= scene.num) break;
        const Splat g = scene.splats[i];
        const Columns rows = find_rows(scene, g);
        const int num_rows = rows.end - rows.begin;
        const bool large = num_rows > kLarge || Real(num_rows) * g.reach_x > Real(kLarge * kPartWidth);
        if (lane == 0) is_large[member] = large;
        if (large) continue;
        Real sums[5 + C] = {};
        gather<C, Geometry>(scene, i, g, gradient, first, rows.begin, rows.end, 1, sums);
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
        const Columns rows = find_rows(scene, g);
        Real sums[5 + C] = {};
        gather<C, Geometry>(scene, i, g, gradient, first, rows.begin + warp, rows.end, kWarps, sums);
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

__device__ unsigned as_part(float value, float limit) {  // written so that NaN becomes 0
    return unsigned(value > 0 ? (value < limit ? value : limit) : 0);
}

}  // namespace
}  // namespace instantgi

using namespace instantgi;

// keys[n]: the place of a mean on a Hilbert curve through 256x256 squares that cover the picture.
extern "C" __global__ void place_keys(Index num, Index height, Index width, const Real* means, short* keys) {
    const Index n = Index(blockIdx.x) * kThreads + threadIdx.x;
    if (n >= num) return;
    const float scale = 256.f / float(height > width ? height : width);
    unsigned x = as_part(float(means[2 * n]) * scale, 255), y = as_part(float(means[2 * n + 1]) * scale, 255);
    unsigned key = 0;
    for (unsigned side = 128; side; side /= 2) {
        const unsigned right = (x & side) != 0, down = (y & side) != 0;
        key += side * side * ((3 * right) ^ down);
        if (!down) {  // the quarters on one side run along the curve turned
            if (right) x = 255 - x, y = 255 - y;
            const unsigned swap = x;
            x = y, y = swap;
        }
    }
    keys[n] = short(int(key) - 32768);
}

// A block owns a chunk: its splats, in the sorted order, and the box around them. bad[0] becomes the
// smallest index of a Gaussian with a parameter that is not finite, of `num` if there is none.
extern "C" __global__ void prepare_splats(Index num, Index channels, Index height, Index width,
                                          const Index* order, const Real* means, const Real* cholesky,
                                          const Real* colors, Splat* splats, Box* chunks, int* bad) {
    __shared__ Box boxes[kChunk / kWarp];
    const Index i = Index(blockIdx.x) * kChunk + threadIdx.x;
    constexpr float kFar = 3e38f;
    Box box{kFar, kFar, -kFar, -kFar};
    if (i < num) {
        const Index n = order ? order[i] : i;
        const Real mean_x = means[2 * n], mean_y = means[2 * n + 1];
        const Real l11 = cholesky[3 * n], l21 = cholesky[3 * n + 1], l22 = cholesky[3 * n + 2];
        bool finite =
            is_finite(mean_x) && is_finite(mean_y) && is_finite(l11) && is_finite(l21) && is_finite(l22);
        for (Index k = 0; k < channels; ++k) finite = finite && is_finite(colors[n * channels + k]);
        if (!finite) atomicMin(bad, int(n));
        Splat out{};
        out.reach_x = -1;
        const bool is_thick = fabs(double(l11)) >= kThinnest && fabs(double(l22)) >= kThinnest;
        if (finite && is_thick) {
            // in double: the square of a float never overflows
            const auto whiten = whitening<double>(l11, l21, l22);
            const auto reach = extent<double>(l11, l21, l22, kRadius, [](double x) { return sqrt(x); });
            // else 1e30 times longer than thin: its line misses all centers
            if (fabs(whiten.b) < 1e30) {
                out = {mean_x,
                       mean_y,
                       Real(whiten.a),
                       Real(whiten.b),
                       Real(whiten.c),
                       Real(reach.reach_x),
                       Real(reach.reach_y),
                       Real(reach.slope),
                       Real(reach.half),
                       Real(reach.widest)};
                const double grown_x = reach.reach_x * 1.001 + 0.02, grown_y = reach.reach_y * 1.001 + 0.02;
                const double left = mean_x - grown_x, right = mean_x + grown_x;
                const double top = mean_y - grown_y, bottom = mean_y + grown_y;
                if (right < 0 || bottom < 0 || left > double(width) || top > double(height))
                    out.reach_x = -1;
                else
                    box = {float(left > -1 ? left : -1), float(top > -1 ? top : -1),
                           float(right < 1e9 ? right : 1e9), float(bottom < 1e9 ? bottom : 1e9)};
            }
        }
        splats[i] = out;
    }
    for (int offset = kWarp / 2; offset; offset /= 2) {
        box.left = fminf(box.left, __shfl_xor_sync(kAll, box.left, offset));
        box.top = fminf(box.top, __shfl_xor_sync(kAll, box.top, offset));
        box.right = fmaxf(box.right, __shfl_xor_sync(kAll, box.right, offset));
        box.bottom = fmaxf(box.bottom, __shfl_xor_sync(kAll, box.bottom, offset));
    }
    if (lane_of() == 0) boxes[warp_of()] = box;
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < kChunk / kWarp; ++warp) {
        box.left = fminf(box.left, boxes[warp].left);
        box.top = fminf(box.top, boxes[warp].top);
        box.right = fmaxf(box.right, boxes[warp].right);
        box.bottom = fmaxf(box.bottom, boxes[warp].bottom);
    }
    chunks[blockIdx.x] = box;
}

// A thread owns a group of chunks: the box around theirs.
extern "C" __global__ void group_boxes(Index num_chunks, const Box* chunks, Box* groups) {
    const Index group = Index(blockIdx.x) * kWarp + threadIdx.x, first = group * kGroup;
    if (first >= num_chunks) return;
    Box box = chunks[first];
    for (Index i = first + 1; i < least(first + kGroup, num_chunks); ++i) {
        const Box other = chunks[i];
        box.left = fminf(box.left, other.left);
        box.top = fminf(box.top, other.top);
        box.right = fmaxf(box.right, other.right);
        box.bottom = fmaxf(box.bottom, other.bottom);
    }
    groups[group] = box;
}

#define SCENE_PARAMETERS                                                                           \
    Index num, Index channels, Index height, Index width, const Index *order, const Splat *splats, \
        const Box *chunks, const Box *groups, const Real *colors, const int *tile_limits, Index first
#define SCENE {num, channels, height, width, order, splats, chunks, groups, colors, tile_limits}

// A block for each tile, kernels by the number of channels from `first` on that they draw.
#define DRAW(C)                                                                                              \
    extern "C" __global__ void __launch_bounds__(kThreads) draw_picture_##C(SCENE_PARAMETERS, Real* image) { \
        draw_picture<C>(SCENE, first, image);                                                                \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                   \
        draw_error_##C(SCENE_PARAMETERS, const Real* target, Index clamp, Real* residual, double* squares) { \
        draw_error<C>(SCENE, first, target, clamp != 0, residual, squares);                                  \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                   \
        backward_##C(SCENE_PARAMETERS, const Real* cholesky, const Real* residual, double scale,             \
                     Index coordinates, Real* grad_geometry, Real* grad_colors) {                            \
        backward<C, true>(SCENE, first, cholesky, residual, scale, int(coordinates), grad_geometry,          \
                          grad_colors);                                                                      \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                   \
        backward_colors_##C(SCENE_PARAMETERS, const Real* residual, double scale, Real* grad_colors) {       \
        backward<C, false>(SCENE, first, nullptr, residual, scale, 0, nullptr, grad_colors);                 \
    }

DRAW(1)
DRAW(2)
DRAW(3)
DRAW(4)
