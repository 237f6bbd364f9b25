// What the CPU and the CUDA kernel of instantgi/models/fields.py share.
#pragma once

#if defined(__CUDACC__)
#define INSTANTGI_TRIANGLE __host__ __device__ inline
#else
#include <math.h>
#define INSTANTGI_TRIANGLE inline
#endif

namespace instantgi {

constexpr float kRound = 0.05f;  // px², added to both variances of a triangle
constexpr float kFar = 8;        // frame units: places beyond count as so far
constexpr float kFlat = 0.01f;   // added to a patch's deviation: noise is not contrast
constexpr int kNumbers = 19;     // that follow the patch: 12 of places, 4 of shape and contrast, 3 colors

struct Frame {
    float l11, l21, l22;
};

INSTANTGI_TRIANGLE Frame frame_of(const float* covariance) {
    const float l11 = sqrtf(covariance[0] + kRound), l21 = covariance[1] / l11;
    return {l11, l21, sqrtf(covariance[2] + kRound - l21 * l21)};
}

INSTANTGI_TRIANGLE float limit_to(float value, float largest) {
    return value > largest ? largest : value < -largest ? -largest : value;
}

// The corners of triangle t and the centers of its neighbors in its frame, from the corner of least
// angle on: out [12]. A neighbor goes with the corner opposite it.
INSTANTGI_TRIANGLE void places_around(long long t, const Frame& l, const float* points,
                                      const long long* triangles, const long long* neighbors,
                                      const float* centers, float* out) {
    const float* center = centers + 2 * t;
    float zx[6], zy[6], least = 4;
    int start = 0;
    for (int i = 0; i < 6; ++i) {
        const float* place =
            i < 3 ? points + 2 * triangles[3 * t + i] : centers + 2 * neighbors[3 * t + i - 3];
        const float x = (place[0] - center[0]) / l.l11;
        zx[i] = limit_to(x, kFar);
        zy[i] = limit_to((place[1] - center[1] - l.l21 * x) / l.l22, kFar);
        const float angle = atan2f(zy[i], zx[i]);
        if (i < 3 && angle < least) least = angle, start = i;
    }
    for (int i = 0; i < 6; ++i) {
        const int from = i / 3 * 3 + (start + i) % 3;
        out[2 * i] = zx[from] / 3, out[2 * i + 1] = zy[from] / 3;
    }
}

// Shape, contrast and mean color of a patch: out [7].
INSTANTGI_TRIANGLE void shape_and_color(const Frame& l, float deviation, const float* mean, float* out) {
    out[0] = logf(l.l11 * l.l22) / 2;
    out[1] = logf(l.l11 / l.l22);
    out[2] = limit_to(l.l21 / l.l22, 4);
    out[3] = logf(deviation) / 2 + 1;
    for (int k = 0; k < 3; ++k) out[4 + k] = mean[k] - 0.5f;
}

// The mean of one of nine parts of the inner half of a side x side plane: corners, middles of the
// sides and the middle, the last two means of what lies between.
INSTANTGI_TRIANGLE float ninth_of(const float* plane, int side, int row, int column) {
    const int first = side / 4, last = side - 1 - first;
    const int from[3] = {first, first + 1, last}, to[3] = {first + 1, last, last + 1};
    float sum = 0;
    for (int y = from[row]; y < to[row]; ++y)
        for (int x = from[column]; x < to[column]; ++x) sum += plane[y * side + x];
    return sum / float((to[row] - from[row]) * (to[column] - from[column]));
}

}  // namespace instantgi
