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
INSTANTGI_FORMULA Extent<T> extent(T l11, T l21, T l22, T radius, Sqrt root) {
    const T deviation_y = root(l21 * l21 + l22 * l22);
    const T width = l11 < 0 ? -l11 : l11, signed_l21 = l11 < 0 ? -l21 : l21;
    const T depth = l22 < 0 ? -l22 : l22;
    return {radius * width, radius * deviation_y, width * signed_l21 / (deviation_y * deviation_y),
            radius * width * depth / deviation_y, radius * signed_l21};
}

// Left and right of the ellipse, from the mean, over the heights low to high above it; both within
// reach, the ellipse's own.
template <typename T>
struct Span {
    T left, right;
};

template <typename T, typename Sqrt>
INSTANTGI_FORMULA Span<T> row_span(T slope, T half, T widest, T reach, T low, T high, Sqrt root) {
    const T inverse = 1 / reach;
    const T above = widest < low ? low : widest, below = -widest < low ? low : -widest;
    const T right_dy = above < high ? above : high, left_dy = below < high ? below : high;
    const T right_t = right_dy * inverse, left_t = left_dy * inverse;
    const T right_square = 1 - right_t * right_t, left_square = 1 - left_t * left_t;
    return {slope * left_dy - half * root(left_square < 0 ? T(0) : left_square),
            slope * right_dy + half * root(right_square < 0 ? T(0) : right_square)};
}

enum Coordinates { kColorsOnly = 0, kLocal = 1, kParameters = 2 };

// From the moments of one Gaussian, Σ w q z and Σ w q z zᵀ in units of (u, v), to its gradient times
// `scale`, in place. kLocal: of (u, S) in mean + L u and L (I + S) Lᵀ: u1, u2, s11, s12, s22;
// kParameters: of the mean (2) and cholesky (3).
template <typename T>
INSTANTGI_FORMULA void finish_geometry(const T* cholesky, double scale, int coordinates, T* moments) {
    const T one = T(scale / kUnit), two = T(scale / (kUnit * kUnit));
    const T z1 = moments[0] * one, z2 = moments[1] * one;
    const T z11 = moments[2] * two, z12 = moments[3] * two, z22 = moments[4] * two;
    if (coordinates == kLocal) {
        // ∂w/∂u = w z and ∂w/∂S = ½ w z zᵀ; s12 stands for two entries.
        moments[0] = z1, moments[1] = z2, moments[2] = z11 / 2, moments[3] = z12, moments[4] = z22 / 2;
    } else {
        // ∂w/∂mean = w L⁻ᵀ z and ∂w/∂L = w L⁻ᵀ z zᵀ, lower triangle.
        const T i11 = 1 / cholesky[0], i22 = 1 / cholesky[2];
        const T i21 = -cholesky[1] / (cholesky[0] * cholesky[2]);
        moments[0] = i11 * z1 + i21 * z2, moments[1] = i22 * z2;
        moments[2] = i11 * z11 + i21 * z12, moments[3] = i22 * z12, moments[4] = i22 * z22;
    }
}

// From the moments of one published Gaussian, Σ w q d and Σ w q d dᵀ with d = p − mean, to its
// gradient times `scale`, in place: of the mean (2) and of the covariance's (xx, xy, yy).
template <typename T>
INSTANTGI_FORMULA void finish_conic(const T* covariance, double scale, T* moments) {
    const double xx = covariance[0], xy = covariance[1], yy = covariance[2];
    const double inverse = 1 / (xx * yy - xy * xy);
    const double a = yy * inverse, b = -xy * inverse, c = xx * inverse;  // Σ⁻¹
    const double dx = moments[0], dy = moments[1], dxx = moments[2], dxy = moments[3], dyy = moments[4];
    // ∂w/∂mean = w Σ⁻¹ d and ∂w/∂Σ = ½ w Σ⁻¹ d dᵀ Σ⁻¹; xy stands for two entries.
    const double left = a * dxx + b * dxy, right = a * dxy + b * dyy;
    const double low_left = b * dxx + c * dxy, low_right = b * dxy + c * dyy;
    moments[0] = T(scale * (a * dx + b * dy)), moments[1] = T(scale * (b * dx + c * dy));
    moments[2] = T(scale * (left * a + right * b) / 2);
    moments[3] = T(scale * (low_left * a + low_right * b));
    moments[4] = T(scale * (low_left * b + low_right * c) / 2);
}

}  // namespace instantgi
