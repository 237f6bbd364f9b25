// One Gaussian at one pixel: the formula that the CPU and the CUDA kernels share.
//
// A Gaussian has mean m and covariance L Lᵀ, L lower triangular (l11, l21, l22), in pixels. With
// z = L⁻¹ (p − m) its weight at p is w = exp(−½ zᵀz), dropped below 1/255. The kernels keep z in
// units in which w = 2^−(u² + v²), so that the cut-off is u² + v² ≤ log2 255.
#pragma once

#if defined(__CUDACC__)
#define INSTANTGI_FORMULA __host__ __device__ inline
#else
#define INSTANTGI_FORMULA inline
#endif

namespace instantgi {

constexpr double kUnit = 0.84932180028801905;    // √(½ log2 e): (u, v) = kUnit · z
constexpr double kCutoff = 7.99435343685885815;  // log2 255
constexpr double kRadius = 3.32904296913044548;  // √(2 ln 255), standard deviations
constexpr double kThinnest = 1e-6;               // px; a Gaussian with a smaller |l11| or |l22| is not drawn

// p − m to (u, v): u = a dx, v = b dx + c dy.
template <typename T>
struct Whitening {
    T a, b, c;
};

template <typename T>
INSTANTGI_FORMULA Whitening<T> whitening(T l11, T l21, T l22) {
    return {T(kUnit) / l11, -T(kUnit) * l21 / (l11 * l22), T(kUnit) / l22};
}

// The horizontal extent of the ellipse at height dy above the mean: slope · dy ± half · √(1 − (dy /
// reach_y)²). It is widest to the right at dy = widest and to the left at −widest.
template <typename T>
struct Extent {
    T reach_x, reach_y, slope, half, widest;
};

template <typename T, typename Sqrt>
INSTANTGI_FORMULA Extent<T> extent(T l11, T l21, T l22, Sqrt root) {
    const T deviation_y = root(l21 * l21 + l22 * l22);
    const T width = l11 < 0 ? -l11 : l11, signed_l21 = l11 < 0 ? -l21 : l21;
    const T depth = l22 < 0 ? -l22 : l22;
    return {T(kRadius) * width, T(kRadius) * deviation_y, width * signed_l21 / (deviation_y * deviation_y),
            T(kRadius) * width * depth / deviation_y, T(kRadius) * signed_l21};
}

}  // namespace instantgi
