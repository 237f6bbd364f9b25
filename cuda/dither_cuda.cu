// Floyd–Steinberg dithering on one block of threads, exactly as if cell by cell in reading order.
//
// A thread owns a row, and runs two cells behind the row above it, when all three errors from above
// are known: they lie in shared memory, the last four of every row. All threads take a step together.
// Pictures of more rows than threads are done in bands; the last row of a band leaves its errors in
// `carry` for the next. Cells are fetched a few steps before their turn.
#include "dither.h"

namespace {
using namespace instantgi;
using Index = long long;

constexpr int kRows = 1024;  // threads of a block at most
constexpr int kRing = 4;     // errors kept of a row: the three that are read and the one being written
constexpr int kLag = 2;      // a row stays this many cells behind the row above it
constexpr int kAhead = 8;    // steps between the fetch of a cell and its turn
}  // namespace

// cells [height, width] → points [height, width], 0 or 1; carry [width] is room to work.
extern "C" __global__ void __launch_bounds__(1024)
    dither_map(const float* cells, unsigned char* points, float* carry, Index height, Index width) {
    __shared__ float errors[kRing][kRows];
    const int thread = threadIdx.x, threads = blockDim.x;
    for (Index top = 0; top < height; top += threads) {
        const Index row = top + thread;
        const bool owns = row < height;
        const Index rows = height - top < threads ? height - top : threads;
        const Index steps = width + kLag * (rows - 1), delay = kLag * thread;
        auto fetch = [&](Index column) {
            return owns && column >= 0 && column < width ? cells[row * width + column] : 0.0f;
        };
        // The error of the row above, times the share of it that comes here.
        auto from_above = [&](Index column, float DitherWeights::* share) {
            if (row == 0 || column < 0 || column >= width) return 0.0f;
            const float error = thread ? errors[column % kRing][thread - 1] : carry[column];
            return error * (dither_weights(row - 1, column, height, width).*share);
        };
        float ahead[kAhead], left = 0.0f;
        for (int i = 0; i < kAhead; ++i) ahead[i] = fetch(i - delay);
        for (Index begin = 0; begin < steps; begin += kAhead) {
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                const Index column = begin + i - delay;
                const float cell = ahead[i];
                ahead[i] = fetch(column + kAhead);
                if (owns && column >= 0 && column < width) {
                    const float from_left =
                        column ? left * dither_weights(row, column - 1, height, width).right : 0.0f;
                    const float value =
                        dither_value(cell, from_above(column - 1, &DitherWeights::down_right),
                                     from_above(column, &DitherWeights::down),
                                     from_above(column + 1, &DitherWeights::down_left), from_left);
                    const bool point = dither_is_point(value);
                    points[row * width + column] = point;
                    left = point ? value - 1.0f : value;
                    errors[column % kRing][thread] = left;
                    // read by the first thread of the next band; it reads far ahead of this one
                    if (thread == threads - 1 && row + 1 < height) carry[column] = left;
                }
                __syncthreads();  // the next step reads what this one wrote
            }
        }
    }
}
