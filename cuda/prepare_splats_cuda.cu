// Gaussians as the kernels that draw them want them, see rasterize_cuda.h: in an order by place, with
// what every pass needs, and boxes around them.
#include "rasterize_cuda.h"

namespace instantgi {
namespace {

__device__ bool is_finite(Real x) { return x - x == 0; }

__device__ unsigned as_part(float value, float limit) {  // written so that NaN becomes 0
    return unsigned(value > 0 ? (value < limit ? value : limit) : 0);
}

// The splat of a Gaussian whose parameters are finite, and the box around its ellipse, which is where
// its weight 2^−s has s ≤ cutoff; reach_x is below zero, and the box holds nothing, if it is not drawn.
// A picture of width 0 is everywhere.
__device__ Splat make_splat(Real mean_x, Real mean_y, const Real* l, double cutoff, Index height, Index width,
                            Box& box) {
    Splat splat{};
    splat.reach_x = -1;
    if (!(fabs(double(l[0])) >= kThinnest && fabs(double(l[2])) >= kThinnest)) return splat;
    // in double: the square of a float never overflows
    const auto whiten = whitening<double>(l[0], l[1], l[2]);
    const auto reach =
        extent<double>(l[0], l[1], l[2], sqrt(cutoff) / kUnit, [](double x) { return sqrt(x); });
    // 1e30 times longer than thin: its line misses all centers
    if (!(fabs(whiten.b) < 1e30)) return splat;
    // means far away round by more than the slack of a reach
    const double grown_x = reach.reach_x * 1.001 + 0.02 + 1e-6 * fabs(double(mean_x));
    const double grown_y = reach.reach_y * 1.001 + 0.02 + 1e-6 * fabs(double(mean_y));
    const double left = mean_x - grown_x, right = mean_x + grown_x;
    const double top = mean_y - grown_y, bottom = mean_y + grown_y;
    if (width && (right < 0 || bottom < 0 || left > double(width) || top > double(height))) return splat;
    box = {edge(left), edge(top), edge(right), edge(bottom)};
    return {{mean_x, mean_y, Real(whiten.a), Real(whiten.b), Real(whiten.c)},
            Real(reach.reach_x),
            Real(reach.reach_y),
            Real(reach.slope),
            Real(reach.half),
            Real(reach.widest)};
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
                                          const Real* colors, double cutoff, Splat* splats, Box* chunks,
                                          int* bad) {
    __shared__ Box boxes[kChunk / kWarp];
    const Index i = Index(blockIdx.x) * kChunk + threadIdx.x;
    Box box = nothing();
    if (i < num) {
        const Index n = order ? order[i] : i;
        const Real mean_x = means[2 * n], mean_y = means[2 * n + 1];
        const Real* l = cholesky + 3 * n;
        bool finite =
            is_finite(mean_x) && is_finite(mean_y) && is_finite(l[0]) && is_finite(l[1]) && is_finite(l[2]);
        for (Index k = 0; k < channels; ++k) finite = finite && is_finite(colors[n * channels + k]);
        if (!finite) atomicMin(bad, int(n));
        Splat out{};
        out.reach_x = -1;
        if (finite) out = make_splat(mean_x, mean_y, l, cutoff, height, width, box);
        splats[i] = out;
    }
    box = around_lanes(box);
    if (lane_of() == 0) boxes[warp_of()] = box;
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < kChunk / kWarp; ++warp) box = around(box, boxes[warp]);
    chunks[blockIdx.x] = box;
}

// A thread owns a group of boxes: the one around them.
extern "C" __global__ void group_boxes(Index num_boxes, const Box* boxes, Box* groups) {
    const Index group = Index(blockIdx.x) * kWarp + threadIdx.x, first = group * kGroup;
    if (first >= num_boxes) return;
    Box box = boxes[first];
    for (Index i = first + 1; i < least(first + kGroup, num_boxes); ++i) box = around(box, boxes[i]);
    groups[group] = box;
}
