// Planes weighted by the same few taps along both axes, zero beyond the borders; see
// instantgi/filters.py. A thread owns a range of rows, and takes the columns' sums of a row before its own.
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "parallel.h"

namespace instantgi {
namespace {

template <typename T>
void blur(int64_t num, int64_t height, int64_t width, int64_t num_taps, const T* taps, const T* in, T* out,
          int num_threads) {
    const int64_t reach = num_taps / 2;
    parallel_ranges(num * height, 32, num_threads, [&](int64_t begin, int64_t end) {
        std::vector<T> line(width + 2 * reach, T(0));  // zeros at both ends
        T* middle = line.data() + reach;
        for (int64_t row = begin; row < end; ++row) {
            const T* plane = in + row / height * height * width;
            const int64_t y = row % height;
            std::fill_n(middle, width, T(0));
            for (int64_t t = std::max<int64_t>(0, reach - y); t < std::min(num_taps, height + reach - y);
                 ++t) {
                const T* from = plane + (y + t - reach) * width;
                const T weight = taps[t];
                for (int64_t x = 0; x < width; ++x) middle[x] += weight * from[x];
            }
            T* to = out + row * width;
            std::fill_n(to, width, T(0));
            for (int64_t t = 0; t < num_taps; ++t) {
                const T* from = line.data() + t;
                const T weight = taps[t];
                for (int64_t x = 0; x < width; ++x) to[x] += weight * from[x];
            }
        }
    });
}

}  // namespace
}  // namespace instantgi

// in and out [num, height, width]; num_taps is odd.
INSTANTGI_API const char* instantgi_blur(int64_t is_double, int64_t num, int64_t height, int64_t width,
                                         int64_t num_taps, const void* taps, const void* in, void* out,
                                         int64_t num_threads) {
    using namespace instantgi;
    try {
        if (is_double)
            blur(num, height, width, num_taps, static_cast<const double*>(taps),
                 static_cast<const double*>(in), static_cast<double*>(out), int(num_threads));
        else
            blur(num, height, width, num_taps, static_cast<const float*>(taps), static_cast<const float*>(in),
                 static_cast<float*>(out), int(num_threads));
    } catch (const std::bad_alloc&) {
        return "not enough memory";
    }
    return nullptr;
}
