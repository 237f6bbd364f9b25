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
constexpr float kTiny = 1e-20f;

struct Step {
    float rate, color_rate, beta1, beta2, correction1, correction2;
};

// The direction of one parameter: moments updated, then −rate · m̂ / √v̂.
inline float adam(const Step& step, float rate, float gradient, float* state) {
    state[0] += (1 - step.beta1) * (gradient - state[0]);
    state[1] += (1 - step.beta2) * (gradient * gradient - state[1]);
    return -rate * (state[0] * step.correction1) / (std::sqrt(state[1] * step.correction2) + kTiny);
}

inline float limit(float value, float largest) { return std::min(std::max(value, -largest), largest); }

}  // namespace

// state [N, 5 + C, 2]: first and second moments. correction: 1 / (1 − Π beta).
INSTANTGI_API const char* instantgi_local_adam(int64_t num, int64_t channels, float* means, float* cholesky,
                                               float* colors, const float* grad_geometry, const float* grad_colors,
                                               float* state, double rate, double color_rate, double beta1,
                                               double beta2, double correction1, double correction2,
                                               int64_t num_threads) {
    const Step step{float(rate), float(color_rate), float(beta1), float(beta2), float(correction1), float(correction2)};
    instantgi::parallel_ranges(num, 2048, int(num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            float* moments = state + n * (kGeometry + channels) * 2;
            float move[kGeometry];
            for (int i = 0; i < kGeometry; ++i)
                move[i] = limit(adam(step, step.rate, grad_geometry[n * kGeometry + i], moments + 2 * i),
                                i < 2 ? kLargestShift : kLargestStretch);
            for (int64_t k = 0; k < channels; ++k)
                colors[n * channels + k] +=
                    adam(step, step.color_rate, grad_colors[n * channels + k], moments + 2 * (kGeometry + k));
            float *mean = means + 2 * n, *l = cholesky + 3 * n;
            mean[0] += l[0] * move[0];
            mean[1] += l[1] * move[0] + l[2] * move[1];
            // L ← L · chol(I + S)
            const float a = std::sqrt(1 + move[2]), b = move[3] / a;
            const float c = std::sqrt(std::max(1 + move[4] - b * b, 0.05f));
            l[1] = l[1] * a + l[2] * b;
            l[0] *= a;
            l[2] *= c;
        }
    });
    return nullptr;
}
