// One step of Adan on a flat parameter, in place; see instantgi/fit/adan.py for the equations.
// A thread owns a range of elements.
#include <cmath>
#include <cstdint>

#include "parallel.h"

// state [4, count]: moments m, v, n and the gradient before. corrections: 1 − βᵗ.
INSTANTGI_API const char* instantgi_adan(int64_t count, float* parameter, const float* gradient, float* state,
                                         double rate, double beta1, double beta2, double beta3,
                                         double epsilon, double correction1, double correction2,
                                         double correction3, int64_t is_first, int64_t num_threads) {
    const float b1 = float(beta1), b2 = float(beta2), b3 = float(beta3);
    const float i1 = float(1 / correction1), i2 = float(beta2 / correction2), i3 = float(1 / correction3);
    const float first = is_first ? 0.f : 1.f;  // there is no gradient before the first
    instantgi::parallel_ranges(count, 16384, int(num_threads), [&](int64_t begin, int64_t end) {
        float* __restrict m = state, * __restrict v = state + count, * __restrict n = state + 2 * count;
        float* __restrict before = state + 3 * count, * __restrict x = parameter;
        const float* __restrict gradients = gradient;
        for (int64_t i = begin; i < end; ++i) {
            const float g = gradients[i], difference = first * (g - before[i]);
            const float ahead = g + b2 * difference;
            m[i] = b1 * m[i] + (1 - b1) * g;
            v[i] = b2 * v[i] + (1 - b2) * difference;
            n[i] = b3 * n[i] + (1 - b3) * ahead * ahead;
            before[i] = g;
            x[i] -= float(rate) * (m[i] * i1 + v[i] * i2) / (std::sqrt(n[i] * i3) + float(epsilon));
        }
    });
    return nullptr;
}
