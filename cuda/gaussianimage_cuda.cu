// GaussianImage's raw parameters to Gaussians, and gradients back; see instantgi/fit/gaussianimage.py.
// A thread owns a Gaussian.
#include "gaussianimage.h"

using namespace instantgi;
using Index = long long;

// raw [5, N]: x, y, then the shape, rs (s1, s2, angle) or Cholesky (l11, l21, l22).
extern "C" __global__ void gaussianimage(Index num, const float* raw, double width, double height,
                                         Index is_rs, float* means, float* cholesky) {
    const Index n = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= num) return;
    means[2 * n] = (tanh_of(raw[n]) + 1) * float(width / 2);
    means[2 * n + 1] = (tanh_of(raw[num + n]) + 1) * float(height / 2);
    const float shape[3] = {raw[2 * num + n], raw[3 * num + n], raw[4 * num + n]};
    float l[3] = {shape[0] + 0.5f, shape[1], shape[2] + 0.5f};
    if (is_rs) shape_of(shape, l);
    for (int k = 0; k < 3; ++k) cholesky[3 * n + k] = l[k];
}

// grad_geometry [N, 5], of means and Cholesky factors, to grad_raw [5, N].
extern "C" __global__ void gaussianimage_backward(Index num, const float* raw, double width, double height,
                                                  Index is_rs, const float* grad_geometry, float* grad_raw) {
    const Index n = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= num) return;
    const float* grad = grad_geometry + 5 * n;
    const float x = tanh_of(raw[n]), y = tanh_of(raw[num + n]);
    grad_raw[n] = grad[0] * float(width / 2) * (1 - x) * (1 + x);
    grad_raw[num + n] = grad[1] * float(height / 2) * (1 - y) * (1 + y);
    const float shape[3] = {raw[2 * num + n], raw[3 * num + n], raw[4 * num + n]};
    const float of_shape[3] = {grad[2], grad[3], grad[4]};
    float of_raw[3] = {grad[2], grad[3], grad[4]};
    if (is_rs) shape_gradient(shape, of_shape, of_raw);
    for (int k = 0; k < 3; ++k) grad_raw[(2 + k) * num + n] = of_raw[k];
}
