// SSIM of one pixel from the means under its window, and its derivatives; see instantgi/similarity.py. The
// CPU and the CUDA kernels share it.
#pragma once

#if defined(__CUDACC__)
#define INSTANTGI_SSIM __host__ __device__ inline
#else
#define INSTANTGI_SSIM inline
#endif

namespace instantgi {

constexpr int kReach = 5;                      // of the window, px
constexpr double kLight = 1e-4, kDark = 9e-4;  // (0.01 L)² and (0.03 L)², L = 1

// Of the window's eleven weights along an axis, e^(−k² / 4.5) over their sum, that at a distance of k.
INSTANTGI_SSIM double window_weight(int k) {
    const double weights[kReach + 1] = {0.26601172486179436,  0.21300553771125369,  0.10936068950970002,
                                        0.036000772128430826, 0.007598758135239185, 0.00102838008447911};
    return weights[k];
}

// The value, and its derivatives by the means of a, a² and ab.
template <typename V>
struct Similarity {
    V value, by_a, by_aa, by_ab;
};

// (2ab + C₁)(2σab + C₂) / ((a² + b² + C₁)(σaa + σbb + C₂)) of the means of a, b, a², b² and ab.
template <typename V>
INSTANTGI_SSIM Similarity<V> similarity(const V& a, const V& b, const V& aa, const V& bb, const V& ab) {
    const V two = V(2), light = V(kLight), dark = V(kDark);
    const V squares = a * a + b * b, product = a * b;
    const V means = squares + light, variances = aa + bb - squares + dark;
    const V near = (two * product + light) / means, like = (two * (ab - product) + dark) / variances;
    const V value = near * like, by_ab = two * near / variances, by_aa = V(0) - value / variances;
    const V by_a = two * (like * (b - near * a) / means - by_aa * a) - by_ab * b;
    return {value, by_a, by_aa, by_ab};
}

}  // namespace instantgi
