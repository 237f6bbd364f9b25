// The weighted sum of SSIM over all pixels and channels, and its gradient; see instantgi/similarity.py.
//
// A block owns 16x16 pixels of a plane, a thread one of them. The block reads them and five more on each
// side into shared memory, blurs them along x there and then, each thread for itself, along y. The sum of
// a block is added up in a fixed tree; nothing is added by two blocks.
#include "ssim.h"

namespace {
using namespace instantgi;
using Index = long long;

constexpr int kSide = 16, kThreads = kSide * kSide;
constexpr int kAround = kSide + 2 * kReach;  // pixels that a block sees along an axis

// Where a block and a thread are.
struct Place {
    Index plane, top, left, y, x;
    bool is_inside;
};

__device__ Place place_of(Index height, Index width) {
    const Index across = (width + kSide - 1) / kSide, down = (height + kSide - 1) / kSide;
    const Index tile = Index(blockIdx.x) % (across * down);
    Place p{Index(blockIdx.x) / (across * down), tile / across * kSide, tile % across * kSide, 0, 0, false};
    p.y = p.top + threadIdx.x / kSide, p.x = p.left + threadIdx.x % kSide;
    p.is_inside = p.y < height && p.x < width;
    return p;
}

// A plane's pixels around a block, zeros beyond its border.
__device__ void read_around(const REAL* plane, const Place& p, Index height, Index width,
                            REAL (*seen)[kAround]) {
    for (int i = threadIdx.x; i < kAround * kAround; i += kThreads) {
        const Index y = p.top + i / kAround - kReach, x = p.left + i % kAround - kReach;
        const bool is_there = y >= 0 && y < height && x >= 0 && x < width;
        seen[i / kAround][i % kAround] = is_there ? plane[y * width + x] : REAL(0);
    }
}

template <typename At>
__device__ REAL window_sum(const At& at) {
    REAL sum = 0;
#pragma unroll
    for (int k = -kReach; k <= kReach; ++k) sum += REAL(window_weight(k < 0 ? -k : k)) * at(k);
    return sum;
}

// What `value` gives of the pixels around, blurred along x: [kAround][kSide].
template <typename Value>
__device__ void blur_rows(REAL (*rows)[kSide], const Value& value) {
    for (int i = threadIdx.x; i < kAround * kSide; i += kThreads) {
        const int y = i / kSide, x = i % kSide;
        rows[y][x] = window_sum([&](int k) { return value(y, x + kReach + k); });
    }
}

__device__ REAL blur_column(const REAL (*rows)[kSide]) {
    const int y = threadIdx.x / kSide, x = threadIdx.x % kSide;
    return window_sum([&](int k) { return rows[y + kReach + k][x]; });
}

}  // namespace

// a and b [channels, height, width], weights [height, width] or null → sums, one of each block, and,
// unless it is null, derivatives [3, channels, height, width] by the means of a, a² and ab.
extern "C" __global__ void __launch_bounds__(256)
    ssim_values(Index channels, Index height, Index width, const REAL* a, const REAL* b, const REAL* weights,
                double* sums, REAL* derivatives) {
    __shared__ REAL seen[2][kAround][kAround];
    __shared__ REAL rows[5][kAround][kSide];
    __shared__ double partial[kThreads];
    const Place p = place_of(height, width);
    const Index pixels = height * width;
    read_around(a + p.plane * pixels, p, height, width, seen[0]);
    read_around(b + p.plane * pixels, p, height, width, seen[1]);
    __syncthreads();  // blurred from what other threads have read
    blur_rows(rows[0], [&](int y, int x) { return seen[0][y][x]; });
    blur_rows(rows[1], [&](int y, int x) { return seen[1][y][x]; });
    blur_rows(rows[2], [&](int y, int x) { return seen[0][y][x] * seen[0][y][x]; });
    blur_rows(rows[3], [&](int y, int x) { return seen[1][y][x] * seen[1][y][x]; });
    blur_rows(rows[4], [&](int y, int x) { return seen[0][y][x] * seen[1][y][x]; });
    __syncthreads();  // as are the columns
    partial[threadIdx.x] = 0;
    if (p.is_inside) {
        const Similarity<REAL> s =
            similarity(blur_column(rows[0]), blur_column(rows[1]), blur_column(rows[2]), blur_column(rows[3]),
                       blur_column(rows[4]));
        const Index pixel = p.y * width + p.x, i = p.plane * pixels + pixel, planes = channels * pixels;
        const REAL weight = weights ? weights[pixel] : REAL(1);
        partial[threadIdx.x] = double(weight * s.value);
        if (derivatives) {
            derivatives[i] = weight * s.by_a;
            derivatives[planes + i] = weight * s.by_aa;
            derivatives[2 * planes + i] = weight * s.by_ab;
        }
    }
    for (int half = kThreads / 2; half; half /= 2) {
        __syncthreads();  // the other half is written by other threads
        if (int(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

// The gradient of the sum by a [channels, height, width].
extern "C" __global__ void __launch_bounds__(256)
    ssim_gradient(Index channels, Index height, Index width, const REAL* a, const REAL* b,
                  const REAL* derivatives, REAL* gradient) {
    __shared__ REAL seen[3][kAround][kAround];
    __shared__ REAL rows[3][kAround][kSide];
    const Place p = place_of(height, width);
    const Index pixels = height * width;
    for (int i = 0; i < 3; ++i)
        read_around(derivatives + (i * channels + p.plane) * pixels, p, height, width, seen[i]);
    __syncthreads();  // blurred from what other threads have read
    for (int i = 0; i < 3; ++i) blur_rows(rows[i], [&](int y, int x) { return seen[i][y][x]; });
    __syncthreads();  // as are the columns
    if (!p.is_inside) return;
    const Index i = p.plane * pixels + p.y * width + p.x;
    gradient[i] = blur_column(rows[0]) + 2 * a[i] * blur_column(rows[1]) + b[i] * blur_column(rows[2]);
}
