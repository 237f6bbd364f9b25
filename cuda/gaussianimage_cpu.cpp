// GaussianImage's raw parameters to Gaussians, and gradients back; see instantgi/fit/gaussianimage.py.
// A thread owns a range of Gaussians, sixteen at a time, one lane each.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.h"

namespace {

constexpr int kLanes = 16;
constexpr float kTiny = 1e-20f;
constexpr float kPi = 3.14159265358979f;
using Row = float[kLanes];

// exp(x), relative error 2e-7; beyond ±87 as at ±87.
inline float exponential(float x) {
    const float s = std::min(std::max(x, -87.f), 87.f) * 1.44269504f;
    const float round = 12582912.f;  // 1.5 · 2²³: adding it rounds to an integer, kept in the low bits
    const float t = s + round, f = s - (t - round);
    float p = 0.00015403530f;  // Taylor of 2^f, |f| ≤ ½
    p = p * f + 0.0013333558f;
    p = p * f + 0.0096181291f;
    p = p * f + 0.055504109f;
    p = p * f + 0.24022651f;
    p = p * f + 0.69314718f;
    p = p * f + 1.f;
    int32_t bits, power;
    std::memcpy(&power, &t, 4);
    std::memcpy(&bits, &p, 4);
    bits += int32_t(uint32_t(power) << 23);
    std::memcpy(&p, &bits, 4);
    return p;
}
inline float tanh_of(float x) { return 1 - 2 / (1 + exponential(2 * x)); }
inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

// Both Taylor series end below 1e-7 for |x| ≤ π/2.
inline float sine(float x) {
    const float y = x * x;
    float p = -2.5052108e-8f;
    p = p * y + 2.7557319e-6f;
    p = p * y - 1.9841270e-4f;
    p = p * y + 8.3333333e-3f;
    p = p * y - 0.16666667f;
    return x + x * y * p;
}
inline float cosine(float x) {
    const float y = x * x;
    float p = 2.0876757e-9f;
    p = p * y - 2.7557319e-7f;
    p = p * y + 2.4801587e-5f;
    p = p * y - 1.3888889e-3f;
    p = p * y + 4.1666667e-2f;
    p = p * y - 0.5f;
    return 1 + y * p;
}

// Standard deviations and direction of a Gaussian given by "rs": |raw + ½| px, 2π sigmoid(raw).
struct Axes {
    float s1, s2, cos, sin, turn;
};
inline Axes axes(float raw1, float raw2, float raw_angle) {
    const float turn = sigmoid(raw_angle);
    const float half = kPi * (turn - 0.5f);  // half of the angle less half a turn
    const float c = cosine(half), s = sine(half);
    return {std::abs(raw1 + 0.5f), std::abs(raw2 + 0.5f), s * s - c * c, -2 * s * c, turn};
}
inline float length(float x, float y) { return std::sqrt(x * x + y * y) + kTiny; }

// The values of raw [5, num] at `first` and beyond, a row per parameter; 0 past the end.
inline void load(const float* raw, int64_t num, int64_t first, int64_t count, Row* rows) {
    for (int i = 0; i < 5; ++i) {
        std::fill(rows[i], rows[i] + kLanes, 0.f);
        std::memcpy(rows[i], raw + i * num + first, size_t(count) * sizeof(float));
    }
}

template <typename Function>
void for_lanes(int64_t num, int64_t num_threads, const Function& function) {
    instantgi::parallel_ranges(num, 2048, int(num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += kLanes)
            function(first, std::min<int64_t>(kLanes, end - first));
    });
}

}  // namespace

// raw [5, N]: x, y, then the shape, rs (s1, s2, angle) or Cholesky (l11, l21, l22).
INSTANTGI_API const char* instantgi_gaussianimage(int64_t num, const float* raw, double width, double height,
                                                  int64_t is_rs, float* means, float* cholesky,
                                                  int64_t num_threads) {
    const float half_width = float(width / 2), half_height = float(height / 2);
    for_lanes(num, num_threads, [&](int64_t first, int64_t count) {
        Row in[5], out[5];
        load(raw, num, first, count, in);
        for (int i = 0; i < kLanes; ++i) {
            out[0][i] = (tanh_of(in[0][i]) + 1) * half_width;
            out[1][i] = (tanh_of(in[1][i]) + 1) * half_height;
        }
        if (is_rs)
            for (int i = 0; i < kLanes; ++i) {
                const Axes a = axes(in[2][i], in[3][i], in[4][i]);
                const float l11 = length(a.s1 * a.cos, a.s2 * a.sin);
                out[2][i] = l11;
                out[3][i] = (a.s1 - a.s2) * (a.s1 + a.s2) * a.sin * a.cos / l11;
                out[4][i] = a.s1 * a.s2 / l11;
            }
        else
            for (int i = 0; i < kLanes; ++i) {
                out[2][i] = in[2][i] + 0.5f;
                out[3][i] = in[3][i];
                out[4][i] = in[4][i] + 0.5f;
            }
        for (int64_t i = 0; i < count; ++i) {
            for (int k = 0; k < 2; ++k) means[2 * (first + i) + k] = out[k][i];
            for (int k = 0; k < 3; ++k) cholesky[3 * (first + i) + k] = out[2 + k][i];
        }
    });
    return nullptr;
}

// grad_geometry [N, 5], of means and Cholesky factors, to grad_raw [5, N].
INSTANTGI_API const char* instantgi_gaussianimage_backward(int64_t num, const float* raw, double width,
                                                           double height, int64_t is_rs,
                                                           const float* grad_geometry, float* grad_raw,
                                                           int64_t num_threads) {
    const float half_width = float(width / 2), half_height = float(height / 2);
    for_lanes(num, num_threads, [&](int64_t first, int64_t count) {
        Row in[5], grad[5] = {}, out[5];
        load(raw, num, first, count, in);
        for (int64_t i = 0; i < count; ++i)
            for (int k = 0; k < 5; ++k) grad[k][i] = grad_geometry[5 * (first + i) + k];
        for (int i = 0; i < kLanes; ++i) {
            const float x = tanh_of(in[0][i]), y = tanh_of(in[1][i]);
            out[0][i] = grad[0][i] * half_width * (1 - x) * (1 + x);
            out[1][i] = grad[1][i] * half_height * (1 - y) * (1 + y);
        }
        if (is_rs)
            for (int i = 0; i < kLanes; ++i) {
                const Axes a = axes(in[2][i], in[3][i], in[4][i]);
                const float cos2 = a.cos * a.cos, sin2 = a.sin * a.sin, cross = a.sin * a.cos;
                const float difference = (a.s1 - a.s2) * (a.s1 + a.s2);
                const float l11 = length(a.s1 * a.cos, a.s2 * a.sin), inverse = 1 / l11;
                const float l21 = difference * cross * inverse, l22 = a.s1 * a.s2 * inverse;
                // l21 = p / l11 and l22 = q / l11, so l11 also gets what these two pass on
                const float of_p = grad[3][i] * inverse, of_q = grad[4][i] * inverse;
                const float of_l11 = grad[2][i] - of_p * l21 - of_q * l22;
                const float of_s1 = of_l11 * a.s1 * cos2 * inverse + of_p * 2 * a.s1 * cross + of_q * a.s2;
                const float of_s2 = of_l11 * a.s2 * sin2 * inverse - of_p * 2 * a.s2 * cross + of_q * a.s1;
                const float of_angle = -of_l11 * l21 + of_p * difference * (cos2 - sin2);
                out[2][i] = std::copysign(of_s1, of_s1 * (in[2][i] + 0.5f));
                out[3][i] = std::copysign(of_s2, of_s2 * (in[3][i] + 0.5f));
                out[4][i] = of_angle * 2 * kPi * a.turn * (1 - a.turn);
            }
        else
            for (int k = 2; k < 5; ++k) std::copy(grad[k], grad[k] + kLanes, out[k]);
        for (int k = 0; k < 5; ++k)
            std::memcpy(grad_raw + k * num + first, out[k], size_t(count) * sizeof(float));
    });
    return nullptr;
}
