// One step of Adam on Gaussians in their own frames, in place; see instantgi/fit/local_adam.py.
// A thread owns a range of Gaussians.
#include <cstdint>
#include <cstring>

#include "local_adam.h"
#include "parallel.h"

// schedule [6]: the members of AdamStep; state [N, 5 + C, 2]: first and second moments.
INSTANTGI_API const char* instantgi_local_adam(int64_t num, int64_t channels, float* means, float* cholesky,
                                               float* colors, const float* grad_geometry,
                                               const float* grad_colors, float* state, const float* schedule,
                                               double largest, int64_t num_threads) {
    using namespace instantgi;
    AdamStep step;
    std::memcpy(&step, schedule, sizeof step);
    parallel_ranges(num, 2048, int(num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            adam_gaussian(step, channels, float(largest), grad_geometry + n * kGeometry,
                          grad_colors + n * channels, means + 2 * n, cholesky + 3 * n, colors + n * channels,
                          state + n * (kGeometry + channels) * 2);
    });
    return nullptr;
}
