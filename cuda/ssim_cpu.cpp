// The weighted sum of SSIM over all pixels and channels, and its gradient; see instantgi/similarity.py.
//
// A thread owns a strip of rows of a plane and passes over it once: a row of the pictures is blurred
// along x into a ring of eleven, a column of the ring gives the means of the row in its middle, and the
// derivatives by these go through a second ring in the same way. What a strip needs of its neighbors'
// rows it computes again, so that nothing depends on the strips.
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "parallel.h"
#include "ssim.h"
#include "vec.h"

namespace instantgi {
namespace {

constexpr int kTaps = 2 * kReach + 1;
constexpr int64_t kStrip = 128;  // rows

// Lines of a picture's width, in whole vectors, with zeros for a window's reach at both ends.
template <typename T>
class Lines {
 public:
    Lines(int64_t num, int64_t width)
        : width_((width + kLanes - 1) / kLanes * kLanes),
          stride_(width_ + 2 * kLanes),
          data_(num * stride_) {}
    T* operator[](int64_t i) { return data_.data() + i * stride_ + kLanes; }
    int64_t width() const { return width_; }
    void clear(int64_t i) { std::fill_n((*this)[i], width_, T(0)); }

 private:
    int64_t width_, stride_;
    std::vector<T> data_;
};

// Σ w(k) (at(−k) + at(k)), each of them a vector.
template <typename T, typename At>
INLINE Vec<T> window_sum(const At& at) {
    Vec<T> sum = at(0) * Vec<T>(T(window_weight(0)));
    for (int k = 1; k <= kReach; ++k) sum = multiply_add(at(-k) + at(k), Vec<T>(T(window_weight(k))), sum);
    return sum;
}

// Rows blurred along x, the last eleven of so many quantities.
template <typename T, int kNum>
class Ring {
 public:
    explicit Ring(int64_t width) : lines_(kNum * kTaps, width) {}

    void push_zeros() {
        for (int i = 0; i < kNum; ++i) lines_.clear(next_ * kNum + i);
        next_ = (next_ + 1) % kTaps;
    }
    void push(Lines<T>& row) {
        for (int i = 0; i < kNum; ++i) {
            const T* from = row[i];
            T* to = lines_[next_ * kNum + i];
            for (int64_t x = 0; x < lines_.width(); x += kLanes)
                store(to + x, window_sum<T>([&](int k) { return load(from + x + k); }));
        }
        next_ = (next_ + 1) % kTaps;
    }
    // The line of a quantity k rows from the one in the middle.
    const T* line(int i, int k) { return lines_[(next_ + kReach + k) % kTaps * kNum + i]; }

 private:
    Lines<T> lines_;
    int next_ = 0;
};

// A ring's lines around the middle, to be summed along y.
template <typename T>
struct Column {
    const T* line[kTaps];
    template <int kNum>
    Column(Ring<T, kNum>& ring, int i) {
        for (int k = -kReach; k <= kReach; ++k) line[k + kReach] = ring.line(i, k);
    }
    INLINE Vec<T> operator()(int64_t x) const {
        return window_sum<T>([&](int k) { return load(line[k + kReach] + x); });
    }
};

template <typename T>
class Strip {
 public:
    Strip(int64_t height, int64_t width, const T* a, const T* b, const T* weights, T* gradient, double* sums)
        : height_(height),
          width_(width),
          a_(a),
          b_(b),
          weights_(weights),
          gradient_(gradient),
          sums_(sums),
          row_(5, width),
          derivatives_(3, width),
          line_(1, width),
          means_(width),
          blurred_(width) {}

    // Rows begin to end − 1 of sums and, if it is wanted, gradient.
    void run(int64_t begin, int64_t end) {
        const int64_t around = gradient_ ? 2 * kReach : kReach;
        for (int64_t y = begin - around; y < end + around; ++y) {
            push_row(y);
            const int64_t middle = y - kReach;
            if (middle < begin - around + kReach) continue;
            push_similarity(middle, begin <= middle && middle < end);
            if (gradient_ && middle - kReach >= begin) write_gradient(middle - kReach);
        }
    }

 private:
    bool has(int64_t y) const { return 0 <= y && y < height_; }

    void push_row(int64_t y) {
        if (!has(y)) return means_.push_zeros();
        const T *a = a_ + y * width_, *b = b_ + y * width_;
        for (int64_t x = 0; x < width_; ++x) {
            row_[0][x] = a[x];
            row_[1][x] = b[x];
            row_[2][x] = a[x] * a[x];
            row_[3][x] = b[x] * b[x];
            row_[4][x] = a[x] * b[x];
        }
        means_.push(row_);
    }

    void push_similarity(int64_t y, bool is_own) {
        if (!has(y)) {
            if (gradient_) blurred_.push_zeros();
            return;
        }
        const Column<T> a(means_, 0), b(means_, 1), aa(means_, 2), bb(means_, 3), ab(means_, 4);
        T* weight = line_[0];
        if (weights_)
            std::copy_n(weights_ + y * width_, width_, weight);
        else
            std::fill_n(weight, width_, T(1));
        Vec<T> total(T(0));  // beyond the last column the weight is 0
        for (int64_t x = 0; x < line_.width(); x += kLanes) {
            const Vec<T> w = load(weight + x);
            const Similarity<Vec<T>> s = similarity(a(x), b(x), aa(x), bb(x), ab(x));
            total += w * s.value;
            store(derivatives_[0] + x, w * s.by_a);
            store(derivatives_[1] + x, w * s.by_aa);
            store(derivatives_[2] + x, w * s.by_ab);
        }
        if (is_own) sums_[y] = double(sum(total));
        if (gradient_) blurred_.push(derivatives_);
    }

    void write_gradient(int64_t y) {
        const Column<T> by_a(blurred_, 0), by_aa(blurred_, 1), by_ab(blurred_, 2);
        T* line = line_[0];
        for (int64_t x = 0; x < line_.width(); x += kLanes) {
            // a and b of a row that has left the ring, from the pictures; the last few one by one
            Vec<T> a(T(0)), b(T(0));
            const T *from_a = a_ + y * width_ + x, *from_b = b_ + y * width_ + x;
            if (x + kLanes <= width_) {
                a = load(from_a), b = load(from_b);
            } else {
                for (int i = 0; x + i < width_; ++i) a.set(i, from_a[i]), b.set(i, from_b[i]);
            }
            store(line + x, by_a(x) + Vec<T>(T(2)) * a * by_aa(x) + b * by_ab(x));
        }
        std::copy_n(line, width_, gradient_ + y * width_);
        std::fill(line + width_, line + line_.width(), T(0));  // as weights they are 0
    }

    int64_t height_, width_;
    const T *a_, *b_, *weights_;
    T* gradient_;
    double* sums_;
    Lines<T> row_, derivatives_, line_;
    Ring<T, 5> means_;
    Ring<T, 3> blurred_;
};

template <typename T>
void ssim(int64_t channels, int64_t height, int64_t width, const T* a, const T* b, const T* weights,
          double* total, T* gradient, int num_threads) {
    const int64_t strips = (height + kStrip - 1) / kStrip, pixels = height * width;
    std::vector<double> sums(channels * height);
    parallel_for(channels * strips, num_threads, [&](int64_t item) {
        const int64_t c = item / strips, begin = item % strips * kStrip;
        Strip<T> strip(height, width, a + c * pixels, b + c * pixels, weights,
                       gradient ? gradient + c * pixels : nullptr, sums.data() + c * height);
        strip.run(begin, std::min(height, begin + kStrip));
    });
    *total = 0;
    for (double row : sums) *total += row;
}

}  // namespace
}  // namespace instantgi

// a, b and gradient [channels, height, width], weights [height, width] or null; gradient may be null.
INSTANTGI_API const char* instantgi_ssim(int64_t is_double, int64_t channels, int64_t height, int64_t width,
                                         const void* a, const void* b, const void* weights, void* total,
                                         void* gradient, int64_t num_threads) {
    using namespace instantgi;
    try {
        auto run = [&](auto kind) {
            using T = decltype(kind);
            ssim(channels, height, width, static_cast<const T*>(a), static_cast<const T*>(b),
                 static_cast<const T*>(weights), static_cast<double*>(total), static_cast<T*>(gradient),
                 int(num_threads));
        };
        is_double ? run(double()) : run(float());
    } catch (const std::bad_alloc&) {
        return "not enough memory";
    }
    return nullptr;
}
