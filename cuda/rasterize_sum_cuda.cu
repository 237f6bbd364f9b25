// The sum of all Gaussians at every pixel, and its gradient, on a GPU; see rasterize_cuda.h for who
// owns what.
#include "rasterize_cuda.h"

namespace instantgi {
namespace {

// The sums of C channels from `first` on at this thread's pixels: sums[part][channel].
template <int C>
__device__ void draw_tile(const Scene& scene, Index first, Tile tile, Real (&sums)[kOwned][C]) {
    for (int part = 0; part < kOwned; ++part)
        for (int k = 0; k < C; ++k) sums[part][k] = 0;
    visit_tile<C>(scene, first, tile, [&](int part, const Entry<C>& e, const Offsets& at) {
        const Real w = weight(at.s, Real(kCutoff));
        for (int k = 0; k < C; ++k) sums[part][k] += e.color[k] * w;
    });
}

template <int C>
__device__ void draw_picture(const Scene& scene, Index first, Real* image) {
    const Tile tile = tile_of(scene);
    Real sums[kOwned][C];
    draw_tile<C>(scene, first, tile, sums);
    for (int part = 0; part < kOwned; ++part) {
        const Pixel at = pixel_of(tile, part);
        if (at.x >= scene.width || at.y >= scene.height) continue;
        for (int k = 0; k < C; ++k)
            image[((first + k) * scene.height + at.y) * scene.width + at.x] = sums[part][k];
    }
}

template <int C>
__device__ void draw_error(const Scene& scene, Index first, const Real* target, bool clamp, Real* residual,
                           double* squares) {
    __shared__ double warp_squares[kWarps];
    const Tile tile = tile_of(scene);
    Real sums[kOwned][C];
    draw_tile<C>(scene, first, tile, sums);
    double square = 0;
    for (int part = 0; part < kOwned; ++part) {
        const Pixel at = pixel_of(tile, part);
        if (!is_in_blocks(scene, at)) continue;
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

}  // namespace
}  // namespace instantgi

using namespace instantgi;

// A block for each tile, or for each 64 Gaussians; kernels by the number of channels from `first` on.
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
        backward_of_picture<C, true, false>(SCENE, first, cholesky, {residual, nullptr, nullptr}, scale,     \
                                            int(coordinates), grad_geometry, grad_colors);                   \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                   \
        backward_colors_##C(SCENE_PARAMETERS, const Real* residual, double scale, Real* grad_colors) {       \
        backward_of_picture<C, false, false>(SCENE, first, nullptr, {residual, nullptr, nullptr}, scale, 0,  \
                                             nullptr, grad_colors);                                          \
    }

DRAW(1)
DRAW(2)
DRAW(3)
DRAW(4)
