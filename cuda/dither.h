// Floyd–Steinberg error diffusion of one cell, for the CPU and CUDA alike.
//
// Compile without contraction (-ffp-contract=off, --fmad=false): a fused multiply-add rounds once
// instead of twice, and one different bit moves every point after it.
#pragma once

#if defined(__CUDACC__)
#define INSTANTGI_DITHER __host__ __device__ inline
#else
#define INSTANTGI_DITHER inline
#endif

namespace instantgi {

// The share of a cell's error that each of its four unvisited neighbors receives.
struct DitherWeights {
    float right, down_left, down, down_right;
};

// Instant-GI's borders: the four shares add up to 1 wherever a neighbor is left. A map one cell
// wide passes all of it down; the very last cell drops it.
INSTANTGI_DITHER DitherWeights dither_weights(long long row, long long column, long long height,
                                              long long width) {
    const bool first = column == 0, last = column == width - 1;
    if (row == height - 1) return {last ? 0.0f : 1.0f, 0.0f, 0.0f, 0.0f};
    if (first && last) return {0.0f, 0.0f, 1.0f, 0.0f};
    if (first) return {7.0f / 13.0f, 0.0f, 5.0f / 13.0f, 1.0f / 13.0f};
    if (last) return {0.0f, 3.0f / 8.0f, 5.0f / 8.0f, 0.0f};
    return {7.0f / 16.0f, 3.0f / 16.0f, 5.0f / 16.0f, 1.0f / 16.0f};
}

// The cell's value plus the shares it receives, in the order in which a serial loop sends them.
INSTANTGI_DITHER float dither_value(float cell, float from_up_left, float from_up, float from_up_right,
                                    float from_left) {
    return (((cell + from_up_left) + from_up) + from_up_right) + from_left;
}

INSTANTGI_DITHER bool dither_is_point(float value) { return !(value < 0.5f); }

}  // namespace instantgi
