// One step of Adan on a flat parameter, in place; see instantgi/fit/adan.py for the equations.
// A thread owns a range of elements.
#include <cmath>
#include <cstdint>

#include "parallel.h"

// state [count, 4]: moments m, v, n and the gradient before. corrections: 1 − βᵗ.
INSTANTGI_API const char* instantgi_adan(int64_t count, float* parameter, const float* gradient, float* state,
                                         double rate, double beta1, double beta2, double beta3,
                                         double epsilon, double correction1, double correction2,
                                         double correction3, int64_t is_first, int64_t num_threads) {
    const float b1 = float(beta1), b2 = float(beta2), b3 = float(beta3);
    const float i1 = float(1 / correction1), i2 = float(beta2 / correction2), i3 = float(1 / correction3);
    instantgi::parallel_ranges(count, 16384, int(num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            float* s = state + 4 * i;
            const float g = gradient[i], difference = is_first ? 0.f : g - s[3];
            const float ahead = g + b2 * difference;
            s[0] = b1 * s[0] + (1 - b1) * g;
            s[1] = b2 * s[1] + (1 - b2) * difference;
            s[2] = b3 * s[2] + (1 - b3) * ahead * ahead;
            s[3] = g;
            parameter[i] -= float(rate) * (s[0] * i1 + s[1] * i2) / (std::sqrt(s[2] * i3) + float(epsilon));
        }
    });
    return nullptr;
}
