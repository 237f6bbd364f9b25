// One step of Adan on a flat parameter, in place. A thread owns a range of elements.
#include <cstdint>
#include <cstring>

#include "adan.h"
#include "parallel.h"

// schedule [9]: the members of AdanStep; state [4, count]: moments m, v, n and the gradient before.
INSTANTGI_API const char* instantgi_adan(int64_t count, float* parameter, const float* gradient, float* state,
                                         const float* schedule, int64_t num_threads) {
    instantgi::AdanStep step;
    std::memcpy(&step, schedule, sizeof step);
    instantgi::parallel_ranges(count, 16384, int(num_threads), [&](int64_t begin, int64_t end) {
        float* __restrict m = state, * __restrict v = state + count, * __restrict n = state + 2 * count;
        float* __restrict before = state + 3 * count, * __restrict x = parameter;
        const float* __restrict gradients = gradient;
        const instantgi::AdanStep of_thread = step;  // which nobody else can change: the loop is vectorised
        for (int64_t i = begin; i < end; ++i)
            x[i] += adan_move(of_thread, gradients[i], m[i], v[i], n[i], before[i]);
    });
    return nullptr;
}
