// What every triangle of a mesh sees of the picture, in its own frame; see
// instantgi/models/fields.py. A warp owns a triangle; its threads share the places of the grid. One
// plane of samples lies in shared memory, channel after channel.
#include "describe_triangles.h"

namespace {
using namespace instantgi;
using Index = long long;

constexpr int kWarp = 32, kWarps = 4;
constexpr int kPlaces = 256;  // of the grid at most
constexpr unsigned kAll = 0xffffffffu;

__device__ float sum_of_warp(float value) {
    for (int offset = kWarp / 2; offset; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
    return value;
}

// The value of a plane at (x, y), bilinear. Pixel (i, j) has its center at (j + 0.5, i + 0.5); beyond
// the border its values go on.
__device__ float sample(const float* plane, Index height, Index width, float x, float y) {
    const float last_x = float(width - 1), last_y = float(height - 1);
    // written so that NaN becomes 0
    const float px = x > 0 ? (x < last_x ? x : last_x) : 0, py = y > 0 ? (y < last_y ? y : last_y) : 0;
    const Index column = Index(px), row = Index(py);
    const float fx = px - float(column), fy = py - float(row);
    const float* at = plane + row * width + column;
    const Index right = column < width - 1 ? 1 : 0, down = row < height - 1 ? width : 0;
    const float top = at[0] + fx * (at[right] - at[0]);
    const float bottom = at[down] + fx * (at[down + right] - at[down]);
    return top + fy * (bottom - top);
}

}  // namespace

// Triangles first … first + num − 1 of a mesh, as `instantgi_describe_triangles` on the CPU has it.
// bad[0] becomes 1 if one names a point or a neighbor that is not there; nothing is written for it.
extern "C" __global__ void __launch_bounds__(128)
    describe_triangles(Index channels, Index height, Index width, Index num_points, Index num_triangles,
                       Index first, Index num, Index side, const float* image, const float* points,
                       const Index* triangles, const Index* neighbors, const float* centers,
                       const float* covariances, const float* grid, float* known, float* nine, float* frames,
                       int* bad) {
    __shared__ float planes[kWarps][kPlaces];
    const int lane = threadIdx.x % kWarp;
    const Index n = Index(blockIdx.x) * kWarps + threadIdx.x / kWarp, t = first + n;
    if (n >= num) return;
    for (int i = 0; i < 3; ++i) {
        const Index point = triangles[3 * t + i], neighbor = neighbors[3 * t + i];
        if (point < 0 || point >= num_points || neighbor < 0 || neighbor >= num_triangles) {
            *bad = 1;
            return;  // the whole warp
        }
    }
    float* plane = planes[threadIdx.x / kWarp];
    const Frame l = frame_of(covariances + 3 * t);
    const float x = centers[2 * t] - 0.5f, y = centers[2 * t + 1] - 0.5f;
    const int places = int(side * side), seen = channels < 3 ? 1 : 3;
    float* out = known + n * (3 * places + kNumbers);
    float mean[3], squares = 0;
    for (Index c = 0; c < channels; ++c) {
        float sum = 0;
        for (int g = lane; g < places; g += kWarp) {
            const float gx = grid[2 * g], gy = grid[2 * g + 1];
            plane[g] = sample(image + c * height * width, height, width, x + l.l11 * gx,
                              y + l.l21 * gx + l.l22 * gy);
            sum += plane[g];
        }
        __syncwarp();  // the ninths read what all threads sampled
        if (lane < 9) nine[(n * 9 + lane) * channels + c] = ninth_of(plane, int(side), lane / 3, lane % 3);
        sum = sum_of_warp(sum) / float(places);
        for (int k = 0; k < 3; ++k) {
            if (seen == 3 ? k != c : c != 0) continue;
            mean[k] = sum;
            for (int g = lane; g < places; g += kWarp) {
                const float contrast = plane[g] - sum;
                out[k * places + g] = contrast;
                squares += contrast * contrast;
            }
        }
        __syncwarp();  // the next channel overwrites the plane
    }
    const float deviation = sqrtf(sum_of_warp(squares) / float(3 * places)) + kFlat, factor = 1 / deviation;
    for (int k = 0; k < 3; ++k)  // every thread what it wrote itself
        for (int g = lane; g < places; g += kWarp) out[k * places + g] *= factor;
    if (lane) return;
    places_around(t, l, points, triangles, neighbors, centers, out + 3 * places);
    shape_and_color(l, deviation, mean, out + 3 * places + 12);
    float* frame = frames + 3 * n;
    frame[0] = l.l11, frame[1] = l.l21, frame[2] = l.l22;
}
