// GaussianImage's raw parameters to Gaussians, and gradients back; see instantgi/fit/gaussianimage.py.
// A thread owns a range of Gaussians, sixteen at a time, one lane each.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gaussianimage.h"
#include "parallel.h"

namespace {
using namespace instantgi;

constexpr int kLanes = 16;
using Row = float[kLanes];

// The values of raw [5, num] at `first` and beyond, a row per parameter; 0 past the end.
inline void load(const float* raw, int64_t num, int64_t first, int64_t count, Row* rows) {
    for (int i = 0; i < 5; ++i) {
        std::fill(rows[i], rows[i] + kLanes, 0.f);
        std::memcpy(rows[i], raw + i * num + first, size_t(count) * sizeof(float));
    }
}

template <typename Function>
void for_lanes(int64_t num, int64_t num_threads, const Function& function) {
    parallel_ranges(num, 2048, int(num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += kLanes)
            function(first, std::min<int64_t>(kLanes, end - first));
    });
}

}  // namespace

// raw [5, N]: x, y, then the shape, rs (s1, s2, angle) or Cholesky (l11, l21, l22).
INSTANTGI_API const char* instantgi_gaussianimage(int64_t num, const float* raw, double width, double height,
                                                  int64_t is_rs, float* means, float* cholesky,
                                                  int64_t num_threads) {
    const float half_width = float(width / 2), half_height = float(height / 2);
    for_lanes(num, num_threads, [&](int64_t first, int64_t count) {
        Row in[5], out[5];
        load(raw, num, first, count, in);
        for (int i = 0; i < kLanes; ++i) {
            out[0][i] = (tanh_of(in[0][i]) + 1) * half_width;
            out[1][i] = (tanh_of(in[1][i]) + 1) * half_height;
        }
        if (is_rs)
            for (int i = 0; i < kLanes; ++i) {
                float l[3];
                shape_of({in[2][i], in[3][i], in[4][i]}, l);
                for (int k = 0; k < 3; ++k) out[2 + k][i] = l[k];
            }
        else
            for (int i = 0; i < kLanes; ++i) {
                out[2][i] = in[2][i] + 0.5f;
                out[3][i] = in[3][i];
                out[4][i] = in[4][i] + 0.5f;
            }
        for (int64_t i = 0; i < count; ++i) {
            for (int k = 0; k < 2; ++k) means[2 * (first + i) + k] = out[k][i];
            for (int k = 0; k < 3; ++k) cholesky[3 * (first + i) + k] = out[2 + k][i];
        }
    });
    return nullptr;
}

// grad_geometry [N, 5], of means and Cholesky factors, to grad_raw [5, N].
INSTANTGI_API const char* instantgi_gaussianimage_backward(int64_t num, const float* raw, double width,
                                                           double height, int64_t is_rs,
                                                           const float* grad_geometry, float* grad_raw,
                                                           int64_t num_threads) {
    const float half_width = float(width / 2), half_height = float(height / 2);
    for_lanes(num, num_threads, [&](int64_t first, int64_t count) {
        Row in[5], grad[5] = {}, out[5];
        load(raw, num, first, count, in);
        for (int64_t i = 0; i < count; ++i)
            for (int k = 0; k < 5; ++k) grad[k][i] = grad_geometry[5 * (first + i) + k];
        for (int i = 0; i < kLanes; ++i) {
            const float x = tanh_of(in[0][i]), y = tanh_of(in[1][i]);
            out[0][i] = grad[0][i] * half_width * (1 - x) * (1 + x);
            out[1][i] = grad[1][i] * half_height * (1 - y) * (1 + y);
        }
        if (is_rs)
            for (int i = 0; i < kLanes; ++i) {
                float of_raw[3];
                shape_gradient({in[2][i], in[3][i], in[4][i]}, {grad[2][i], grad[3][i], grad[4][i]}, of_raw);
                for (int k = 0; k < 3; ++k) out[2 + k][i] = of_raw[k];
            }
        else
            for (int k = 2; k < 5; ++k) std::copy(grad[k], grad[k] + kLanes, out[k]);
        for (int k = 0; k < 5; ++k)
            std::memcpy(grad_raw + k * num + first, out[k], size_t(count) * sizeof(float));
    });
    return nullptr;
}
