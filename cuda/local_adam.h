// One step of Adam for one Gaussian in its own frame; see
// instantgi/fit/local_adam.py. The CPU and the CUDA kernels share it.
#pragma once

#if defined(__CUDACC__)
#define INSTANTGI_ADAM __host__ __device__ inline
#else
#include <math.h>
#define INSTANTGI_ADAM inline
#endif

namespace instantgi {

constexpr int kGeometry = 5;
constexpr float kLargestShift = 1.0f;    // standard deviations a mean may move in a step
constexpr float kLargestStretch = 0.6f;  // largest entry of S in a step: L (I + S) Lᵀ stays positive
constexpr float kSmallest = 0.01f;       // px; thinner, a Gaussian falls between the pixel centers
constexpr float kTiny = 1e-20f;
// Where a gradient fades, m fades more slowly than √v if β₁² > β₂: their ratio must not explode.
constexpr float kLargestRatio = 1.0f;

struct AdamStep {
    float rate, color_rate, beta1, beta2;
    float correction1, correction2;  // 1 / (1 − Π beta)
};

INSTANTGI_ADAM float adam_limit(float value, float largest) {
    return value > largest ? largest : value < -largest ? -largest : value;
}

// The move of one parameter: moments updated, then −rate · m̂ / √v̂.
INSTANTGI_ADAM float adam_move(const AdamStep& step, float rate, float gradient, float* state) {
    state[0] += (1 - step.beta1) * (gradient - state[0]);
    state[1] += (1 - step.beta2) * (gradient * gradient - state[1]);
    const float ratio = (state[0] * step.correction1) / (sqrtf(state[1] * step.correction2) + kTiny);
    return -rate * adam_limit(ratio, kLargestRatio);
}

// mean [2], l [3], color [channels] and state [5 + channels, 2] of one Gaussian, in place. One whose
// standard deviation would pass `largest` keeps its geometry in this step.
INSTANTGI_ADAM void adam_gaussian(const AdamStep& step, long long channels, float largest,
                                  const float* grad_geometry, const float* grad_color, float* mean, float* l,
                                  float* color, float* state) {
    bool seen = false;
    for (int i = 0; i < kGeometry; ++i) seen = seen || grad_geometry[i] != 0;
    for (long long k = 0; k < channels; ++k) seen = seen || grad_color[k] != 0;
    // One that no pixel sees would be carried off by its momentum, and nothing would stop it.
    if (!seen) {
        for (long long i = 0; i < (kGeometry + channels) * 2; ++i) state[i] = 0;
        return;
    }
    float move[kGeometry];
    for (int i = 0; i < kGeometry; ++i)
        move[i] = adam_limit(adam_move(step, step.rate, grad_geometry[i], state + 2 * i),
                             i < 2 ? kLargestShift : kLargestStretch);
    for (long long k = 0; k < channels; ++k)
        color[k] += adam_move(step, step.color_rate, grad_color[k], state + 2 * (kGeometry + k));
    // L ← L · chol(I + S)
    const float a = sqrtf(1 + move[2]), b = move[3] / a;
    const float left = 1 + move[4] - b * b, c = sqrtf(left > 0.05f ? left : 0.05f);
    const float l11 = l[0] * a, l21 = l[1] * a + l[2] * b, l22 = l[2] * c;
    const float width = fabsf(l11), depth = fabsf(l22), height = hypotf(l21, l22);
    const bool sensible = width >= kSmallest && depth >= kSmallest && width <= largest && height <= largest;
    if (!sensible) {
        for (int i = 0; i < 2 * kGeometry; ++i) state[i] = 0;
        return;
    }
    mean[0] += l[0] * move[0];
    mean[1] += l[1] * move[0] + l[2] * move[1];
    l[0] = l11, l[1] = l21, l[2] = l22;
}

}  // namespace instantgi
