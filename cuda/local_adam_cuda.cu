// One step of Adam on Gaussians in their own frames, in place; see instantgi/fit/local_adam.py.
// A thread owns a Gaussian. The schedule is read from memory, so that a captured graph can follow it.
#include "local_adam.h"

using namespace instantgi;

// schedule [6]: the members of AdamStep; state [N, 5 + C, 2]: first and second moments.
extern "C" __global__ void local_adam(long long num, long long channels, float* means, float* cholesky,
                                      float* colors, const float* grad_geometry, const float* grad_colors,
                                      float* state, const float* schedule, double largest) {
    const long long n = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= num) return;
    const AdamStep step{schedule[0], schedule[1], schedule[2], schedule[3], schedule[4], schedule[5]};
    adam_gaussian(step, channels, float(largest), grad_geometry + n * kGeometry, grad_colors + n * channels,
                  means + 2 * n, cholesky + 3 * n, colors + n * channels,
                  state + n * (kGeometry + channels) * 2);
}
