// Bilinear samples of a picture on a small grid in every triangle's frame; see
// instantgi/models/fields.py. A thread owns a range of triangles.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "parallel.h"

// image [C, height, width]; centers [T, 2]; frames [T, 3] (l11, l21, l22); grid [G, 2];
// out [T, G, C]. Pixel (i, j) has its center at (j + 0.5, i + 0.5); beyond the border its values go on.
INSTANTGI_API const char* instantgi_sample_patches(int64_t channels, int64_t height, int64_t width,
                                                   int64_t num, int64_t num_places, const float* image,
                                                   const float* centers, const float* frames,
                                                   const float* grid, float* out, int64_t num_threads) {
    constexpr int kLanes = 16;
    if (height * width >= int64_t(1) << 31 || std::max(height, width) > 1 << 24)
        return "pictures of 2^31 pixels or sides above 2^24 are not sampled";
    const float last_x = float(width - 1), last_y = float(height - 1);
    const int64_t plane = height * width;
    instantgi::parallel_ranges(num, 512, int(num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const float* l = frames + 3 * t;
            const float center_x = centers[2 * t] - 0.5f, center_y = centers[2 * t + 1] - 0.5f;
            for (int64_t first = 0; first < num_places; first += kLanes) {
                const int count = int(std::min<int64_t>(kLanes, num_places - first));
                int32_t corner[kLanes] = {}, right[kLanes] = {}, down[kLanes] = {};
                float fx[kLanes] = {}, fy[kLanes] = {};
                for (int i = 0; i < count; ++i) {
                    const float gx = grid[2 * (first + i)], gy = grid[2 * (first + i) + 1];
                    // written so that NaN becomes 0
                    const float x = std::min(std::max(0.f, center_x + l[0] * gx), last_x);
                    const float y = std::min(std::max(0.f, center_y + l[1] * gx + l[2] * gy), last_y);
                    const int32_t column = int32_t(x), row = int32_t(y);
                    fx[i] = x - float(column);
                    fy[i] = y - float(row);
                    corner[i] = row * int32_t(width) + column;
                    right[i] = column < int32_t(width) - 1 ? 1 : 0;
                    down[i] = row < int32_t(height) - 1 ? int32_t(width) : 0;
                }
                for (int64_t c = 0; c < channels; ++c) {
                    const float* values = image + c * plane;
                    float sampled[kLanes];
                    for (int i = 0; i < kLanes; ++i) {
                        const float* at = values + corner[i];
                        const float top = at[0] + fx[i] * (at[right[i]] - at[0]);
                        const float* below = at + down[i];
                        const float bottom = below[0] + fx[i] * (below[right[i]] - below[0]);
                        sampled[i] = top + fy[i] * (bottom - top);
                    }
                    float* to = out + (t * num_places + first) * channels + c;
                    for (int i = 0; i < count; ++i) to[i * channels] = sampled[i];
                }
            }
        }
    });
    return nullptr;
}
