// One step of Adam on Gaussians in their own frames, in place; see instantgi/fit/local_adam.py.
// A thread owns a range of Gaussians.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "parallel.h"

namespace {

constexpr int kGeometry = 5;
constexpr float kLargestShift = 1.0f;    // standard deviations a mean may move in a step
constexpr float kLargestStretch = 0.6f;  // largest entry of S in a step: L (I + S) Lᵀ stays positive
constexpr float kSmallest = 0.01f;       // px; thinner, a Gaussian falls between the pixel centers
constexpr float kTiny = 1e-20f;
// Where a gradient fades, m fades more slowly than √v if β₁² > β₂: their ratio must not explode.
constexpr float kLargestRatio = 1.0f;

struct Step {
    float rate, color_rate, beta1, beta2, correction1, correction2;
};

inline float limit(float value, float largest) { return std::min(std::max(value, -largest), largest); }

// The direction of one parameter: moments updated, then −rate · m̂ / √v̂.
inline float adam(const Step& step, float rate, float gradient, float* state) {
    state[0] += (1 - step.beta1) * (gradient - state[0]);
    state[1] += (1 - step.beta2) * (gradient * gradient - state[1]);
    const float ratio = (state[0] * step.correction1) / (std::sqrt(state[1] * step.correction2) + kTiny);
    return -rate * limit(ratio, kLargestRatio);
}

inline bool is_seen(const float* grad_geometry, const float* grad_color, int64_t channels) {
    for (int i = 0; i < kGeometry; ++i)
        if (grad_geometry[i] != 0) return true;
    for (int64_t k = 0; k < channels; ++k)
        if (grad_color[k] != 0) return true;
    return false;
}

}  // namespace

// state [N, 5 + C, 2]: first and second moments. correction: 1 / (1 − Π beta). A Gaussian whose
// standard deviation would pass `largest` keeps its geometry in this step.
INSTANTGI_API const char* instantgi_local_adam(int64_t num, int64_t channels, float* means, float* cholesky,
                                               float* colors, const float* grad_geometry,
                                               const float* grad_colors, float* state, double rate,
                                               double color_rate, double beta1, double beta2,
                                               double correction1, double correction2, double largest,
                                               int64_t num_threads) {
    const Step step{float(rate),  float(color_rate),  float(beta1),
                    float(beta2), float(correction1), float(correction2)};
    instantgi::parallel_ranges(num, 2048, int(num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            float* moments = state + n * (kGeometry + channels) * 2;
            // One that no pixel sees would be carried off by its momentum, and nothing would stop it.
            if (!is_seen(grad_geometry + n * kGeometry, grad_colors + n * channels, channels)) {
                std::fill(moments, moments + (kGeometry + channels) * 2, 0.f);
                continue;
            }
            float move[kGeometry];
            for (int i = 0; i < kGeometry; ++i)
                move[i] = limit(adam(step, step.rate, grad_geometry[n * kGeometry + i], moments + 2 * i),
                                i < 2 ? kLargestShift : kLargestStretch);
            for (int64_t k = 0; k < channels; ++k)
                colors[n * channels + k] +=
                    adam(step, step.color_rate, grad_colors[n * channels + k], moments + 2 * (kGeometry + k));
            float *mean = means + 2 * n, *l = cholesky + 3 * n;
            // L ← L · chol(I + S)
            const float a = std::sqrt(1 + move[2]), b = move[3] / a;
            const float c = std::sqrt(std::max(1 + move[4] - b * b, 0.05f));
            const float l11 = l[0] * a, l21 = l[1] * a + l[2] * b, l22 = l[2] * c;
            const bool sensible = std::min(std::abs(l11), std::abs(l22)) >= kSmallest &&
                                  std::max(std::abs(l11), std::hypot(l21, l22)) <= float(largest);
            if (!sensible) {
                std::fill(moments, moments + 2 * kGeometry, 0.f);
                continue;
            }
            mean[0] += l[0] * move[0];
            mean[1] += l[1] * move[0] + l[2] * move[1];
            l[0] = l11, l[1] = l21, l[2] = l22;
        }
    });
    return nullptr;
}
