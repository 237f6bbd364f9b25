// One step of Adan on a flat parameter, in place. A thread owns an element. The schedule is read from
// memory, so that a captured graph can follow it.
#include "adan.h"

using namespace instantgi;

// schedule [9]: the members of AdanStep; state [4, count]: moments m, v, n and the gradient before.
extern "C" __global__ void adan(long long count, float* parameter, const float* gradient, float* state,
                                const float* schedule) {
    const long long i = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const AdanStep step{schedule[0], schedule[1], schedule[2], schedule[3], schedule[4],
                        schedule[5], schedule[6], schedule[7], schedule[8]};
    float *m = state + i, *v = m + count, *n = v + count, *before = n + count;
    parameter[i] += adan_move(step, gradient[i], *m, *v, *n, *before);
}
