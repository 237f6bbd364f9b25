// One step of Adan for one element; see instantgi/fit/adan.py for the equations. The CPU and the CUDA
// kernels share it.
#pragma once

#if defined(__CUDACC__)
#define INSTANTGI_ADAN __host__ __device__ inline
#else
#include <math.h>
#define INSTANTGI_ADAN inline
#endif

namespace instantgi {

struct AdanStep {
    float rate, beta1, beta2, beta3, epsilon;
    float correction1, correction2, correction3;  // 1 / (1 − βᵗ), the second times β₂
    float has_before;                             // 0 at the first step, which has no gradient before it
};

// What x moves by; m, v, n and the gradient before, in place.
INSTANTGI_ADAN float adan_move(const AdanStep& step, float g, float& m, float& v, float& n, float& before) {
    const float difference = step.has_before * (g - before);
    const float ahead = g + step.beta2 * difference;
    m = step.beta1 * m + (1 - step.beta1) * g;
    v = step.beta2 * v + (1 - step.beta2) * difference;
    n = step.beta3 * n + (1 - step.beta3) * ahead * ahead;
    before = g;
    return -step.rate * (m * step.correction1 + v * step.correction2) /
           (sqrtf(n * step.correction3) + step.epsilon);
}

}  // namespace instantgi
