// The normalised mixture of the K largest Gaussians at every pixel, and its gradient, on a GPU; see
// instantgi/render/mixture.py for the definition and rasterize_cuda.h for who owns what.
//
// Forward: first each pixel keeps the K smallest exponents s, the last of which is where its terms end;
// then it is drawn as a sum of the terms up to there, and of their weights. Backward: with v/D for the
// gradient of the picture and C · v/D in common, a mixture's gradient is gathered like a sum's.
#include "rasterize_cuda.h"

namespace instantgi {
namespace {

// limits, in blocks: the exponents at which the terms end.
template <int Slots>
__device__ void find_limits(const Scene& scene, int num_terms, Real cutoff, Real* limits) {
    const Tile tile = tile_of(scene);
    Real slots[kOwned][Slots];
#pragma unroll
    for (int part = 0; part < kOwned; ++part) start_slots(slots[part], num_terms, cutoff);
    visit_tile<0>(scene, 0, tile,
                  [&](int part, const Entry<0>&, const Offsets& at) { keep_smallest(slots[part], at.s); });
#pragma unroll
    for (int part = 0; part < kOwned; ++part) {
        const Pixel at = pixel_of(tile, part);
        if (is_in_blocks(scene, at)) limits[in_blocks<1>(scene, 0, at)] = slots[part][Slots - 1];
    }
}

// image [C, H, W]; totals, in blocks: the sums of the weights plus epsilon.
template <int C>
__device__ void draw_mixture(const Scene& scene, Index first, Real epsilon, const Real* limits, Real* image,
                             Real* totals) {
    const Tile tile = tile_of(scene);
    Real limit[kOwned], total[kOwned], sums[kOwned][C];
    for (int part = 0; part < kOwned; ++part) {
        const Pixel at = pixel_of(tile, part);
        limit[part] = is_in_blocks(scene, at) ? limits[in_blocks<1>(scene, 0, at)] : Real(-1);
        total[part] = epsilon;
        for (int k = 0; k < C; ++k) sums[part][k] = 0;
    }
    visit_tile<C>(scene, first, tile, [&](int part, const Entry<C>& e, const Offsets& at) {
        const Real w = weight(at.s, limit[part]);
        total[part] += w;
        for (int k = 0; k < C; ++k) sums[part][k] += e.color[k] * w;
    });
    for (int part = 0; part < kOwned; ++part) {
        const Pixel at = pixel_of(tile, part);
        if (!is_in_blocks(scene, at)) continue;
        if (first == 0) totals[in_blocks<1>(scene, 0, at)] = total[part];
        if (at.x >= scene.width || at.y >= scene.height) continue;
        for (int k = 0; k < C; ++k)
            image[((first + k) * scene.height + at.y) * scene.width + at.x] = sums[part][k] / total[part];
    }
}

}  // namespace
}  // namespace instantgi

using namespace instantgi;

// A block for each tile, kernels by the most terms of a pixel.
#define FIND_LIMITS(SLOTS)                                                                    \
    extern "C" __global__ void __launch_bounds__(kThreads)                                    \
        find_limits_##SLOTS(SCENE_PARAMETERS, Index num_terms, double cutoff, Real* limits) { \
        find_limits<SLOTS>(SCENE, int(num_terms), Real(cutoff), limits);                      \
    }

FIND_LIMITS(4)
FIND_LIMITS(10)
FIND_LIMITS(16)
FIND_LIMITS(32)

// A block for each tile, or for each 64 Gaussians; kernels by the number of channels from `first` on.
#define DRAW(C)                                                                                             \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                  \
        draw_mixture_##C(SCENE_PARAMETERS, double epsilon, const Real* limits, Real* image, Real* totals) { \
        draw_mixture<C>(SCENE, first, Real(epsilon), limits, image, totals);                                \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                  \
        backward_##C(SCENE_PARAMETERS, const Real* cholesky, const Real* shares, const Real* limits,        \
                     const Real* common, Real* grad_geometry, Real* grad_colors) {                          \
        backward_of_picture<C, true, true>(SCENE, first, cholesky, {shares, limits, common}, 1.0,           \
                                           kParameters, grad_geometry, grad_colors);                        \
    }

DRAW(1)
DRAW(2)
DRAW(3)
DRAW(4)
