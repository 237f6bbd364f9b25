// GaussianImage's raw parameters to a Gaussian, and its gradient back; see
// instantgi/fit/gaussianimage.py. The CPU and the CUDA kernels share it.
#pragma once

#if defined(__CUDACC__)
#define INSTANTGI_RAW __host__ __device__ inline
#else
#include <math.h>
#include <string.h>
#define INSTANTGI_RAW inline
#endif

namespace instantgi {

constexpr float kTinyLength = 1e-20f;
constexpr float kPi = 3.14159265358979f;

// exp(x), relative error 2e-7; beyond ±87 as at ±87.
INSTANTGI_RAW float exponential(float x) {
    const float least = x < -87.f ? -87.f : x;
    const float s = (least > 87.f ? 87.f : least) * 1.44269504f;
    const float round = 12582912.f;  // 1.5 · 2²³: adding it rounds to an integer, kept in the low bits
    const float t = s + round, f = s - (t - round);
    float p = 0.00015403530f;  // Taylor of 2^f, |f| ≤ ½
    p = p * f + 0.0013333558f;
    p = p * f + 0.0096181291f;
    p = p * f + 0.055504109f;
    p = p * f + 0.24022651f;
    p = p * f + 0.69314718f;
    p = p * f + 1.f;
    int bits, power;
    memcpy(&power, &t, 4);
    memcpy(&bits, &p, 4);
    bits += int(unsigned(power) << 23);
    memcpy(&p, &bits, 4);
    return p;
}
INSTANTGI_RAW float tanh_of(float x) { return 1 - 2 / (1 + exponential(2 * x)); }
INSTANTGI_RAW float sigmoid_of(float x) { return 1 / (1 + exponential(-x)); }

// Both Taylor series end below 1e-7 for |x| ≤ π/2.
INSTANTGI_RAW float sine(float x) {
    const float y = x * x;
    float p = -2.5052108e-8f;
    p = p * y + 2.7557319e-6f;
    p = p * y - 1.9841270e-4f;
    p = p * y + 8.3333333e-3f;
    p = p * y - 0.16666667f;
    return x + x * y * p;
}
INSTANTGI_RAW float cosine(float x) {
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
INSTANTGI_RAW Axes axes_of(float raw1, float raw2, float raw_angle) {
    const float turn = sigmoid_of(raw_angle);
    const float half = kPi * (turn - 0.5f);  // half of the angle less half a turn
    const float c = cosine(half), s = sine(half);
    return {fabsf(raw1 + 0.5f), fabsf(raw2 + 0.5f), s * s - c * c, -2 * s * c, turn};
}
INSTANTGI_RAW float length_of(float x, float y) { return sqrtf(x * x + y * y) + kTinyLength; }

// raw: the shape, rs (s1, s2, angle), to a Cholesky factor (l11, l21, l22).
INSTANTGI_RAW void shape_of(const float (&raw)[3], float (&l)[3]) {
    const Axes a = axes_of(raw[0], raw[1], raw[2]);
    l[0] = length_of(a.s1 * a.cos, a.s2 * a.sin);
    l[1] = (a.s1 - a.s2) * (a.s1 + a.s2) * a.sin * a.cos / l[0];
    l[2] = a.s1 * a.s2 / l[0];
}

// The gradient of raw from that of the Cholesky factor.
INSTANTGI_RAW void shape_gradient(const float (&raw)[3], const float (&grad)[3], float (&grad_raw)[3]) {
    const Axes a = axes_of(raw[0], raw[1], raw[2]);
    const float cos2 = a.cos * a.cos, sin2 = a.sin * a.sin, cross = a.sin * a.cos;
    const float difference = (a.s1 - a.s2) * (a.s1 + a.s2);
    const float inverse = 1 / length_of(a.s1 * a.cos, a.s2 * a.sin);
    const float l21 = difference * cross * inverse, l22 = a.s1 * a.s2 * inverse;
    // l21 = p / l11 and l22 = q / l11, so l11 also gets what these two pass on
    const float of_p = grad[1] * inverse, of_q = grad[2] * inverse;
    const float of_l11 = grad[0] - of_p * l21 - of_q * l22;
    const float of_s1 = of_l11 * a.s1 * cos2 * inverse + of_p * 2 * a.s1 * cross + of_q * a.s2;
    const float of_s2 = of_l11 * a.s2 * sin2 * inverse - of_p * 2 * a.s2 * cross + of_q * a.s1;
    const float of_angle = -of_l11 * l21 + of_p * difference * (cos2 - sin2);
    grad_raw[0] = copysignf(of_s1, of_s1 * (raw[0] + 0.5f));
    grad_raw[1] = copysignf(of_s2, of_s2 * (raw[1] + 0.5f));
    grad_raw[2] = of_angle * 2 * kPi * a.turn * (1 - a.turn);
}

}  // namespace instantgi
