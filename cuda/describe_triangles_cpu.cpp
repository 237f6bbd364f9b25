// What every triangle of a mesh sees of the picture, in its own frame; see
// instantgi/models/fields.py. A thread owns a range of triangles.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "describe_triangles.h"
#include "parallel.h"

namespace {
using namespace instantgi;

constexpr int kLanes = 16;
struct Picture {
    int64_t channels, height, width;
    const float* values;

    // Bilinear samples at (x, y) + L g for every place g of the grid; planar, `count` a channel.
    // Pixel (i, j) has its center at (j + 0.5, i + 0.5); beyond the border its values go on.
    void sample(float x, float y, const Frame& l, const float* grid, int64_t count, float* out) const {
        const float last_x = float(width - 1), last_y = float(height - 1);
        x -= 0.5f, y -= 0.5f;
        for (int64_t first = 0; first < count; first += kLanes) {
            const int lanes = int(std::min<int64_t>(kLanes, count - first));
            int32_t corner[kLanes] = {}, right[kLanes] = {}, down[kLanes] = {};
            float fx[kLanes] = {}, fy[kLanes] = {};
            for (int i = 0; i < lanes; ++i) {
                const float gx = grid[2 * (first + i)], gy = grid[2 * (first + i) + 1];
                // written so that NaN becomes 0
                const float px = std::min(std::max(0.f, x + l.l11 * gx), last_x);
                const float py = std::min(std::max(0.f, y + l.l21 * gx + l.l22 * gy), last_y);
                const int32_t column = int32_t(px), row = int32_t(py);
                fx[i] = px - float(column);
                fy[i] = py - float(row);
                corner[i] = row * int32_t(width) + column;
                right[i] = column < int32_t(width) - 1 ? 1 : 0;
                down[i] = row < int32_t(height) - 1 ? int32_t(width) : 0;
            }
            for (int64_t c = 0; c < channels; ++c) {
                const float* plane = values + c * height * width;
                float sampled[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    const float* at = plane + corner[i];
                    const float top = at[0] + fx[i] * (at[right[i]] - at[0]);
                    const float* below = at + down[i];
                    const float bottom = below[0] + fx[i] * (below[right[i]] - below[0]);
                    sampled[i] = top + fy[i] * (bottom - top);
                }
                std::copy(sampled, sampled + lanes, out + c * count + first);
            }
        }
    }
};

// A sum in kLanes parts, so that it needs no order between neighbors.
template <typename Term>
float sum_of(int64_t count, const Term& term) {
    float lanes[kLanes] = {};
    int64_t first = 0;
    for (; first + kLanes <= count; first += kLanes)
        for (int i = 0; i < kLanes; ++i) lanes[i] += term(first + i);
    float sum = 0;
    for (; first < count; ++first) sum += term(first);
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
}

// Three planes less their means and over their common deviation.
struct Contrast {
    float mean[3], deviation;
};

Contrast normalise(const float* const planes[3], int64_t count, float* out) {
    Contrast contrast{};
    float squares = 0;
    for (int k = 0; k < 3; ++k) {
        const float* plane = planes[k];
        const float mean = sum_of(count, [&](int64_t g) { return plane[g]; }) / float(count);
        squares += sum_of(count, [&](int64_t g) { return (plane[g] - mean) * (plane[g] - mean); });
        contrast.mean[k] = mean;
    }
    contrast.deviation = std::sqrt(squares / float(3 * count)) + kFlat;
    const float factor = 1 / contrast.deviation;
    for (int k = 0; k < 3; ++k)
        for (int64_t g = 0; g < count; ++g) out[k * count + g] = (planes[k][g] - contrast.mean[k]) * factor;
    return contrast;
}

}  // namespace

// Triangles first … first + num − 1 of a mesh: image [C, height, width]; points [P, 2]; triangles
// and neighbors [T, 3]; centers [T, 2]; covariances [T, 3]; grid [side², 2], row by row.
// known [num, 3 side² + 19], nine [num, 9, C], frames [num, 3] as in `describe_triangles_reference`.
INSTANTGI_API const char* instantgi_describe_triangles(
    int64_t channels, int64_t height, int64_t width, int64_t num_points, int64_t num_triangles, int64_t first,
    int64_t num, int64_t side, const float* image, const float* points, const long long* triangles,
    const long long* neighbors, const float* centers, const float* covariances, const float* grid,
    float* known, float* nine, float* frames, int64_t num_threads) {
    if (height * width >= int64_t(1) << 31 || std::max(height, width) > 1 << 24)
        return "pictures of 2^31 pixels or sides above 2^24 are not sampled";
    for (int64_t i = 3 * first; i < 3 * (first + num); ++i)
        if (triangles[i] < 0 || triangles[i] >= num_points || neighbors[i] < 0 ||
            neighbors[i] >= num_triangles)
            return "a triangle names a point or a neighbor that is not there";
    const Picture picture{channels, height, width, image};
    const int64_t places = side * side, length = 3 * places + kNumbers;
    instantgi::parallel_ranges(num, 512, int(num_threads), [&](int64_t begin, int64_t end) {
        std::vector<float> planes(size_t(channels * places));
        for (int64_t n = begin; n < end; ++n) {
            const int64_t t = first + n;
            const Frame l = frame_of(covariances + 3 * t);
            const float* center = centers + 2 * t;
            picture.sample(center[0], center[1], l, grid, places, planes.data());
            const float* rgb[3];
            for (int k = 0; k < 3; ++k) rgb[k] = planes.data() + (channels < 3 ? 0 : k * places);
            float* out = known + n * length;
            const Contrast contrast = normalise(rgb, places, out);
            out += 3 * places;

            places_around(t, l, points, triangles, neighbors, centers, out);
            shape_and_color(l, contrast.deviation, contrast.mean, out + 12);
            for (int64_t c = 0; c < channels; ++c)
                for (int ninth = 0; ninth < 9; ++ninth)
                    nine[(n * 9 + ninth) * channels + c] =
                        ninth_of(planes.data() + c * places, int(side), ninth / 3, ninth % 3);
            float* frame = frames + 3 * n;
            frame[0] = l.l11, frame[1] = l.l21, frame[2] = l.l22;
        }
    });
    return nullptr;
}
