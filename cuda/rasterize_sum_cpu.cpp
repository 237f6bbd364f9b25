// The sum of all Gaussians at every pixel, and its gradient, on the CPU.
//
// Pictures are held in blocks of 4x4 pixels, one vector of 16 lanes per channel: the ellipse of a
// typical Gaussian fills about half of the lanes of the blocks that it touches, where rows of 16
// pixels would waste more, and blocks are aligned, so a store is never followed by a load that
// overlaps it only in part.
//
// Forward: Gaussians are sorted to bands of block rows. One thread owns a band and adds its
// Gaussians in an order that is theirs, so a pixel's sum never depends on the number of threads.
// Backward: one thread owns a Gaussian, reads the gradient of the picture over the Gaussian's blocks
// and alone writes its gradients. No atomics, no order: the result is deterministic.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "rasterize_sum.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "parallel.h"

namespace instantgi {
namespace {

constexpr int kSide = 4;                 // pixels along the side of a block
constexpr int kLanes = kSide * kSide;    // pixels of a block, lanes of a vector
constexpr int kBandRows = 8;             // block rows of a band: 32 rows of pixels stay in the L2 cache
constexpr int kCellWidth = 128;          // pixels; a band is drawn from left to right
constexpr int kGroup = 4;                // channels drawn in one pass
constexpr int kTileBlocks = 16 / kSide;  // blocks along the side of the published 16x16 tile

template <typename T>
struct Vector {
    typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <typename T>
using Vec = typename Vector<T>::type;

#define INLINE inline __attribute__((always_inline))

template <typename T>
INLINE Vec<T> load(const T* from) {
    Vec<T> value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <typename T>
INLINE void store(T* to, Vec<T> value) {
    std::memcpy(to, &value, sizeof value);
}
template <typename T, int Lanes>
struct Part {
    typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};
template <typename T, int Lanes, typename Whole>
INLINE typename Part<T, Lanes>::type fold(Whole value) {
    typename Part<T, Lanes>::type halves[2];
    std::memcpy(halves, &value, sizeof halves);
    return halves[0] + halves[1];
}
// The sum of the lanes, in a fixed tree: the same rounding on every instruction set.
template <typename T>
INLINE T sum(Vec<T> value) {
    const auto four = fold<T, 4>(fold<T, 8>(value));
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// 2^−s for 0 ≤ s; lanes beyond the cut-off become 0. The polynomial's relative error is 7.5e-8.
INLINE Vec<float> weight(Vec<float> s) {
    const float round = 12582912.f;  // 1.5 · 2²³: adding it rounds to an integer, kept in the low bits
    const Vec<float> t = round - s;
    const Vec<float> g = s + (t - round);
    Vec<float> p = g * -0.001327647129073739f + 0.009675540961325169f;
    p = p * g + -0.05550713092088699f;
    p = p * g + 0.24022120237350464f;
    p = p * g + -0.6931469440460205f;
    p = p * g + 1.0000001192092896f;
    const Vec<int32_t> power = ((Vec<int32_t>)t << 23) + (Vec<int32_t>)p;
    return s <= float(kCutoff) ? (Vec<float>)power : Vec<float>{};
}
INLINE Vec<double> weight(Vec<double> s) {
    Vec<double> w;
    for (int lane = 0; lane < kLanes; ++lane) w[lane] = s[lane] <= kCutoff ? std::exp2(-s[lane]) : 0.0;
    return w;
}

// What both passes need of a Gaussian, computed once per pass.
template <typename T>
struct alignas(64) Splat {
    T mean_x, mean_y;
    Whitening<T> whiten;
    Extent<T> extent;
    int32_t row_begin, row_end;  // block rows that the ellipse may touch
};

template <typename T>
struct Scene {
    int64_t num, channels, height, width;
    const T *means, *cholesky, *colors;
    const int32_t* tile_limits;  // [⌈height/16⌉, ⌈width/16⌉]: last index drawn in a tile, or null
    int64_t rows() const { return (height + kSide - 1) / kSide; }
    int64_t cols() const { return (width + kSide - 1) / kSide; }
};

// Pixels of slack for the rounding of an extent; the cut-off itself is decided pixel by pixel.
template <typename T>
INLINE T slack(T reach) {
    return T(0.01) + T(1e-3) * reach;
}

template <typename T>
bool prepare(const Scene<T>& scene, int64_t n, Splat<T>& out) {
    const T* mean = scene.means + 2 * n;
    const T* l = scene.cholesky + 3 * n;
    bool finite = std::isfinite(mean[0]) && std::isfinite(mean[1]);
    for (int i = 0; i < 3; ++i) finite = finite && std::isfinite(l[i]);
    for (int64_t k = 0; k < scene.channels; ++k)
        finite = finite && std::isfinite(scene.colors[n * scene.channels + k]);
    out.mean_x = mean[0];
    out.mean_y = mean[1];
    out.row_begin = out.row_end = 0;
    if (!finite) return false;
    if (!(std::abs(l[0]) >= T(kThinnest) && std::abs(l[2]) >= T(kThinnest))) return true;
    // In double: the square of a float never overflows.
    const auto whiten = whitening<double>(l[0], l[1], l[2]);
    const auto reach = extent<double>(l[0], l[1], l[2], [](double x) { return std::sqrt(x); });
    if (!(std::abs(whiten.b) < 1e30))
        return true;  // 1e30 times longer than thin: its line misses all centers
    out.whiten = {T(whiten.a), T(whiten.b), T(whiten.c)};
    out.extent = {T(reach.reach_x), T(reach.reach_y), T(reach.slope), T(reach.half), T(reach.widest)};
    const double grown_x = reach.reach_x + slack(reach.reach_x);
    const double grown_y = reach.reach_y + slack(reach.reach_y);
    if (mean[0] + grown_x < 0 || mean[0] - grown_x > scene.width) return true;
    // The first block whose last row of centers, 4 r + 3.5, is inside, and the last whose first, 4 r + 0.5,
    // is.
    const double first = (mean[1] - grown_y - 3.5) / kSide + 1, last = (mean[1] + grown_y - 0.5) / kSide + 1;
    const double rows = double(scene.rows());
    out.row_begin = int32_t(std::min(std::max(first, 0.0), rows));
    out.row_end = int32_t(std::min(std::max(last, 0.0), rows));
    return true;
}

// The first Gaussian that cannot be drawn, found by several threads.
class FirstBad {
 public:
    explicit FirstBad(int64_t num) : first_(num), num_(num) {}
    void add(int64_t n) {
        int64_t seen = first_.load();
        while (n < seen && !first_.compare_exchange_weak(seen, n)) {
        }
    }
    const char* message() const {
        if (first_ == num_) return nullptr;
        static thread_local char text[96];
        std::snprintf(text, sizeof text, "Gaussian %lld has a parameter that is not finite",
                      (long long)first_.load());
        return text;
    }

 private:
    std::atomic<int64_t> first_;
    int64_t num_;
};

template <typename T>
const char* prepare_all(const Scene<T>& scene, int num_threads, Splat<T>* splats) {
    FirstBad bad(scene.num);
    parallel_ranges(scene.num, 1024, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            if (!prepare(scene, n, splats[n])) bad.add(n);
    });
    return bad.message();
}

// First and one past the last block column that the ellipse may touch, in 16 block rows from `row`.
struct Spans {
    int32_t begin[kLanes], end[kLanes];
};

template <typename T>
INLINE void find_spans(const Splat<T>& g, int64_t row, int64_t cols, Spans& spans) {
    const Extent<T>& e = g.extent;
    const T margin = slack(e.reach_x), reach = std::max(e.reach_y, T(1e-30));
    for (int lane = 0; lane < kLanes; ++lane) {
        const T top = T((row + lane) * kSide) + T(0.5) - g.mean_y, bottom = top + T(kSide - 1);
        const T low = std::max(top, -reach), high = std::min(bottom, reach);
        const Span<T> span =
            row_span(e.slope, e.half, e.widest, reach, low, high, [](T x) { return std::sqrt(x); });
        const T first = (g.mean_x + span.left - margin - T(3.5)) * T(0.25) + 1;
        const T last = (g.mean_x + span.right + margin - T(0.5)) * T(0.25) + 1;
        const int32_t begin = int32_t(std::min(std::max(first, T(0)), T(cols)));
        const int32_t end = int32_t(std::min(std::max(last, T(0)), T(cols)));
        // Whatever the arithmetic did, memory outside the picture is never touched.
        spans.begin[lane] = std::max(begin, 0);
        spans.end[lane] = std::min(end, int32_t(cols));
    }
}

template <typename T>
struct Lanes {
    Vec<T> x, y;         // offsets of a block's pixel centers from its corner
    Vec<T> corner_x;     // offsets of the corners of the blocks of a row
    Vec<int32_t> count;  // 0, 1, 2, …
    Lanes() {
        for (int lane = 0; lane < kLanes; ++lane) {
            x[lane] = T(lane % kSide) + T(0.5);
            y[lane] = T(lane / kSide) + T(0.5);
            corner_x[lane] = T(lane * kSide);
            count[lane] = lane;
        }
    }
};

INLINE bool beyond_limit(const int32_t* limits, int64_t row, int64_t col, int64_t cols, int64_t n) {
    const int64_t tile_cols = (cols + kTileBlocks - 1) / kTileBlocks;
    return limits && n > limits[(row / kTileBlocks) * tile_cols + col / kTileBlocks];
}

// Memory that is about to be written for the first time may come in pages of 2 MiB: the faults of
// small ones would cost more than drawing a large picture.
void expect_large(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = uintptr_t(1) << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

template <typename T>
std::unique_ptr<Splat<T>[]> new_splats(int64_t num) {
    std::unique_ptr<Splat<T>[]> splats(new Splat<T>[num]);
    expect_large(splats.get(), num * sizeof(Splat<T>));
    return splats;
}

// The blocks that a few Gaussians touch, listed before any is drawn: the list is made without
// waiting for the spans of the Gaussian before, and drawn with one hard-to-predict branch each.
template <typename T>
class Work {
 public:
    struct Segment {
        int64_t n;
        const Splat<T>* splat;
        int begin, end;  // items
    };

    // Lists block rows [begin, end) of Gaussian n; calls flush(*this) whenever the list is full.
    template <typename Flush>
    INLINE void add(const Scene<T>& scene, const Splat<T>& g, int64_t n, const Lanes<T>& lanes, int64_t begin,
                    int64_t end, int64_t origin, const Flush& flush) {
        const int64_t cols = scene.cols();
        Spans spans;
        open(n, g);
        for (int64_t row = begin; row < end; ++row) {
            const int64_t lane = (row - begin) % kLanes;
            if (lane == 0) find_spans(g, row, cols, spans);
            int64_t col = spans.begin[lane], left = spans.end[lane] - col;
            const T from_mean = T(row * kSide) - g.mean_y;
            while (left > 0) {
                if (size_ > kCapacity - kLanes || num_segments_ == kSegments) {
                    close();
                    flush(*this);
                    open(n, g);
                }
                // Always a whole vector: what lies beyond the count is overwritten by the next.
                store(block + size_, lanes.count + int32_t((row - origin) * cols + col));
                store(x + size_, lanes.corner_x + (T(col * kSide) - g.mean_x));
                store(y + size_, Vec<T>{} + from_mean);
                const int count = int(std::min<int64_t>(left, kLanes));
                size_ = scene.tile_limits ? keep_within_limits(scene, n, row, col, count) : size_ + count;
                left -= kLanes;
                col += kLanes;
            }
        }
        close();
        if (num_segments_ == kSegments) flush(*this);
    }

    template <typename Visit>
    INLINE void each(const Visit& visit) {
        for (int i = 0; i < num_segments_; ++i) visit(segments_[i]);
        size_ = num_segments_ = 0;
    }

    static constexpr int kCapacity = 1024, kSegments = 64;
    int32_t block[kCapacity];      // index of a block from the first of row `origin`
    T x[kCapacity], y[kCapacity];  // its corner, from the Gaussian's mean

 private:
    void open(int64_t n, const Splat<T>& g) { segments_[num_segments_] = {n, &g, size_, size_}; }
    void close() {
        segments_[num_segments_].end = size_;
        num_segments_ += size_ > segments_[num_segments_].begin;
    }
    int keep_within_limits(const Scene<T>& scene, int64_t n, int64_t row, int64_t col, int count) {
        int kept = size_;
        for (int i = size_; i < size_ + count; ++i) {
            if (beyond_limit(scene.tile_limits, row, col + i - size_, scene.cols(), n)) continue;
            block[kept] = block[i];
            x[kept] = x[i];
            y[kept++] = y[i];
        }
        return kept;
    }

    Segment segments_[kSegments + 1];
    int size_ = 0, num_segments_ = 0;
};

// The weights of one Gaussian in one listed block, and z in units of (u, v).
template <typename T>
struct Weights {
    Vec<T> u, v, w;
    INLINE Weights(const Whitening<T>& whiten, const Lanes<T>& lanes, T x, T y) {
        const Vec<T> dx = lanes.x + x, dy = lanes.y + y;
        u = whiten.a * dx;
        v = whiten.b * dx + whiten.c * dy;
        w = weight(u * u + v * v);
    }
};

// Gaussians by place: bands of block rows, and along a band cells of kCellWidth pixels, so that
// neighbors in the list touch the same memory. Within a cell in order of their index.
struct Places {
    int64_t num_bands, num_cells;  // cells of a band
    std::vector<int64_t> start;    // [num_bands · num_cells + 1] into `members`
    std::vector<int32_t> members;

    int64_t band_begin(int64_t band) const { return start[band * num_cells]; }
};

// With `every_band` a Gaussian is listed in all bands that it touches, else in its first one.
template <typename T>
Places sort_by_place(const Splat<T>* splats, const Scene<T>& scene, bool every_band, int num_threads) {
    Places places;
    places.num_bands = (scene.rows() + kBandRows - 1) / kBandRows;
    places.num_cells = (scene.width + kCellWidth - 1) / kCellWidth;
    const int64_t num = scene.num, num_places = places.num_bands * places.num_cells;
    const int64_t num_chunks = std::max<int64_t>(1, std::min<int64_t>(num_threads, num / 4096));
    // counts[chunk][place], then where the chunk's first member of the place goes
    std::vector<int64_t> counts(num_chunks * num_places);
    auto each_place = [&](int64_t chunk, auto&& visit) {
        for (int64_t n = num * chunk / num_chunks; n < num * (chunk + 1) / num_chunks; ++n) {
            if (splats[n].row_begin >= splats[n].row_end) continue;
            const T x = std::min(std::max(splats[n].mean_x, T(0)), T(scene.width - 1));
            int64_t band = splats[n].row_begin / kBandRows;
            do {
                const int64_t place = band * places.num_cells + int64_t(x) / kCellWidth;
                visit(n, counts[chunk * num_places + place]);
            } while (every_band && ++band * kBandRows < splats[n].row_end);
        }
    };
    parallel_for(num_chunks, num_threads,
                 [&](int64_t chunk) { each_place(chunk, [](int64_t, int64_t& count) { ++count; }); });
    int64_t total = 0;
    for (int64_t place = 0; place < num_places; ++place) {
        places.start.push_back(total);
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
            const int64_t count = counts[chunk * num_places + place];
            counts[chunk * num_places + place] = total;
            total += count;
        }
    }
    places.start.push_back(total);
    places.members.resize(total);
    parallel_for(num_chunks, num_threads, [&](int64_t chunk) {
        each_place(chunk, [&](int64_t n, int64_t& at) { places.members[at++] = int32_t(n); });
    });
    return places;
}

// Fetches what a member a few places ahead needs: in the picture they are neighbors, in memory not.
template <typename T>
INLINE void fetch_ahead(const Places& places, int64_t i, int64_t end, const Splat<T>* splats,
                        const Scene<T>& scene) {
    if (i + 8 >= end) return;
    __builtin_prefetch(splats + places.members[i + 8]);
    __builtin_prefetch(scene.colors + places.members[i + 8] * scene.channels);
}

// Draws channels [first, first + C), band by band, and hands each finished band to
// finish(band, row_begin, row_end, blocks).
template <typename T, int C, typename Finish>
void draw_bands(const Scene<T>& scene, const Splat<T>* splats, const Places& places, int64_t first,
                int num_threads, const Finish& finish) {
    const int64_t rows = scene.rows(), cols = scene.cols();
    const Lanes<T> lanes;
    parallel_for((rows + kBandRows - 1) / kBandRows, num_threads, [&](int64_t band) {
        const int64_t row_begin = band * kBandRows, row_end = std::min(rows, row_begin + kBandRows);
        std::vector<T> blocks((row_end - row_begin) * cols * C * kLanes);
        Work<T> work;
        auto draw = [&](Work<T>& listed) {
            listed.each([&](const typename Work<T>::Segment& segment) {
                const Whitening<T> whiten = segment.splat->whiten;
                T color[C];
                std::copy_n(scene.colors + segment.n * scene.channels + first, C, color);
                for (int i = segment.begin; i < segment.end; ++i) {
                    const Weights<T> at(whiten, lanes, listed.x[i], listed.y[i]);
                    T* block = blocks.data() + int64_t(listed.block[i]) * (C * kLanes);
                    for (int k = 0; k < C; ++k)
                        store(block + k * kLanes, load(block + k * kLanes) + color[k] * at.w);
                }
            });
        };
        const int64_t last = places.band_begin(band + 1);
        for (int64_t i = places.band_begin(band); i < last; ++i) {
            fetch_ahead(places, i, last, splats, scene);
            const int64_t n = places.members[i];
            const int64_t begin = std::max<int64_t>(row_begin, splats[n].row_begin);
            const int64_t end = std::min<int64_t>(row_end, splats[n].row_end);
            work.add(scene, splats[n], n, lanes, begin, end, row_begin, draw);
        }
        draw(work);
        finish(band, row_begin, row_end, blocks.data());
    });
}

// Calls function(std::integral_constant<int, C>) with the number of channels of the group.
template <typename Function>
void for_each_group(int64_t channels, const Function& function) {
    for (int64_t first = 0; first < channels; first += kGroup) {
        switch (std::min<int64_t>(kGroup, channels - first)) {
            case 1:
                function(first, std::integral_constant<int, 1>{});
                break;
            case 2:
                function(first, std::integral_constant<int, 2>{});
                break;
            case 3:
                function(first, std::integral_constant<int, 3>{});
                break;
            default:
                function(first, std::integral_constant<int, kGroup>{});
        }
    }
}

// Copies between the planes of a picture and block rows [row_begin, row_end); Copy(pixel, lane).
template <typename T, int C, typename Copy>
void each_pixel(const Scene<T>& scene, T* image, int64_t row_begin, int64_t row_end, T* blocks,
                const Copy& copy) {
    const int64_t cols = scene.cols();
    for (int64_t row = row_begin; row < row_end; ++row)
        for (int k = 0; k < C; ++k)
            for (int64_t y = row * kSide; y < std::min(scene.height, (row + 1) * kSide); ++y) {
                T* line = image + (k * scene.height + y) * scene.width;
                T* lane = blocks + ((row - row_begin) * cols * C + k) * kLanes + (y % kSide) * kSide;
                const int64_t whole = scene.width / kSide;
                for (int64_t col = 0; col < whole; ++col, lane += C * kLanes, line += kSide)
                    for (int x = 0; x < kSide; ++x) copy(line[x], lane[x]);
                for (int64_t x = 0; x < scene.width % kSide; ++x) copy(line[x], lane[x]);
            }
}

template <typename T>
const char* forward(const Scene<T>& scene, T* image, int num_threads) {
    expect_large(image, scene.channels * scene.height * scene.width * sizeof(T));
    const auto splats = new_splats<T>(scene.num);
    if (const char* error = prepare_all(scene, num_threads, splats.get())) return error;
    const Places places = sort_by_place(splats.get(), scene, true, num_threads);
    for_each_group(scene.channels, [&](int64_t first, auto group) {
        constexpr int C = decltype(group)::value;
        T* planes = image + first * scene.height * scene.width;
        auto finish = [&](int64_t, int64_t row_begin, int64_t row_end, T* blocks) {
            each_pixel<T, C>(scene, planes, row_begin, row_end, blocks,
                             [](T& pixel, T lane) { pixel = lane; });
        };
        draw_bands<T, C>(scene, splats.get(), places, first, num_threads, finish);
    });
    return nullptr;
}

// residual = sum − target in blocks, and Σ residual²; with `clamp`, of the sum clamped to [0, 1], and
// the residual (which stands for the gradient) is 0 where the clamp is active.
template <typename T>
const char* forward_error(const Scene<T>& scene, const T* target, bool clamp, T* residual, double* squares,
                          int num_threads) {
    const auto splats = new_splats<T>(scene.num);
    if (const char* error = prepare_all(scene, num_threads, splats.get())) return error;
    const int64_t rows = scene.rows(), cols = scene.cols();
    expect_large(residual, rows * cols * kLanes * scene.channels * sizeof(T));
    const Places places = sort_by_place(splats.get(), scene, true, num_threads);
    std::vector<double> parts((rows + kBandRows - 1) / kBandRows, 0.0);
    for_each_group(scene.channels, [&](int64_t first, auto group) {
        constexpr int C = decltype(group)::value;
        const int64_t offset = rows * cols * first * kLanes;
        auto finish = [&](int64_t band, int64_t row_begin, int64_t row_end, T* blocks) {
            const int64_t begin = offset + row_begin * cols * C * kLanes;
            double part = 0;
            for (int64_t row = row_begin; row < row_end; ++row) {
                Vec<T> inside{};
                for (int lane = 0; lane < kLanes; ++lane)
                    inside[lane] = row * kSide + lane / kSide < scene.height ? T(1) : T(0);
                Vec<T> corner = inside;
                for (int lane = 0; lane < kLanes; ++lane)
                    if ((cols - 1) * kSide + lane % kSide >= scene.width) corner[lane] = T(0);
                Vec<T> row_squares{};
                for (int64_t col = 0; col < cols; ++col) {
                    const Vec<T> keep = col + 1 < cols ? inside : corner;
                    for (int k = 0; k < C; ++k) {
                        const int64_t at = (((row - row_begin) * cols + col) * C + k) * kLanes;
                        Vec<T> drawn = load(blocks + at);
                        Vec<T> active = keep;
                        if (clamp) {
                            active = drawn < T(0) ? Vec<T>{} : drawn > T(1) ? Vec<T>{} : keep;
                            drawn = drawn < T(0) ? Vec<T>{} : drawn > T(1) ? Vec<T>{} + T(1) : drawn;
                        }
                        const Vec<T> difference = drawn - load(target + begin + at);
                        const Vec<T> kept = difference * keep;
                        row_squares += kept * kept;
                        store(residual + begin + at, difference * active);
                    }
                }
                part += double(sum<T>(row_squares));
            }
            parts[band] += part;
        };
        draw_bands<T, C>(scene, splats.get(), places, first, num_threads, finish);
    });
    *squares = 0;
    for (double part : parts) *squares += part;
    return nullptr;
}

// Adds the moments of the listed Gaussians, Σ w q z and Σ w q z zᵀ (q = color · gradient, z in units
// of (u, v)), to moments [N, 5], and Σ w gradient to grad_colors [N, channels].
template <typename T, int C, bool Geometry>
INLINE void gather(const Scene<T>& scene, Work<T>& work, int64_t first, const T* gradient,
                   const Lanes<T>& lanes, T* moments, T* grad_colors) {
    work.each([&](const typename Work<T>::Segment& segment) {
        const Whitening<T> whiten = segment.splat->whiten;
        T color[C];
        std::copy_n(scene.colors + segment.n * scene.channels + first, C, color);
        Vec<T> mean_u{}, mean_v{}, uu{}, uv{}, vv{}, colors[C] = {};
        for (int i = segment.begin; i < segment.end; ++i) {
            const Weights<T> at(whiten, lanes, work.x[i], work.y[i]);
            const T* block = gradient + int64_t(work.block[i]) * (C * kLanes);
            Vec<T> q{};
            for (int k = 0; k < C; ++k) {
                const Vec<T> value = load(block + k * kLanes);
                colors[k] += at.w * value;
                q += color[k] * value;
            }
            if (Geometry) {
                const Vec<T> wq = at.w * q, wqu = wq * at.u, wqv = wq * at.v;
                mean_u += wqu;
                mean_v += wqv;
                uu += wqu * at.u;
                uv += wqu * at.v;
                vv += wqv * at.v;
            }
        }
        T* out = grad_colors + segment.n * scene.channels + first;
        for (int k = 0; k < C; ++k) out[k] += sum<T>(colors[k]);
        if (Geometry) {
            const Vec<T> all[5] = {mean_u, mean_v, uu, uv, vv};
            for (int i = 0; i < 5; ++i) moments[5 * segment.n + i] += sum<T>(all[i]);
        }
    });
}

// Gradients of all Gaussians from the picture's gradient in blocks, times `scale`.
// grad_geometry [N, 5], see `finish_geometry`.
template <typename T>
const char* backward(const Scene<T>& scene, const T* gradient, double scale, Coordinates coordinates,
                     T* grad_geometry, T* grad_colors, int num_threads) {
    const int64_t rows = scene.rows(), cols = scene.cols(), channels = scene.channels;
    const Lanes<T> lanes;
    const auto splats = new_splats<T>(scene.num);
    if (const char* error = prepare_all(scene, num_threads, splats.get())) return error;
    const Places places = sort_by_place(splats.get(), scene, false, num_threads);
    expect_large(grad_colors, scene.num * channels * sizeof(T));
    expect_large(grad_geometry, coordinates == kColorsOnly ? 0 : scene.num * 5 * sizeof(T));
    std::fill_n(grad_colors, scene.num * channels, T(0));
    if (coordinates != kColorsOnly) std::fill_n(grad_geometry, scene.num * 5, T(0));
    parallel_ranges(int64_t(places.members.size()), 256, num_threads, [&](int64_t begin, int64_t end) {
        for_each_group(channels, [&](int64_t first, auto group) {
            constexpr int C = decltype(group)::value;
            const T* blocks = gradient + rows * cols * first * kLanes;
            Work<T> work;
            auto flush = [&](Work<T>& listed) {
                if (coordinates == kColorsOnly)
                    gather<T, C, false>(scene, listed, first, blocks, lanes, grad_geometry, grad_colors);
                else
                    gather<T, C, true>(scene, listed, first, blocks, lanes, grad_geometry, grad_colors);
            };
            for (int64_t i = begin; i < end; ++i) {
                fetch_ahead(places, i, end, splats.get(), scene);
                const int64_t n = places.members[i];
                __builtin_prefetch(grad_colors + n * channels, 1);
                if (coordinates != kColorsOnly) __builtin_prefetch(grad_geometry + n * 5, 1);
                work.add(scene, splats[n], n, lanes, splats[n].row_begin, splats[n].row_end, 0, flush);
            }
            flush(work);
        });
        for (int64_t i = begin; i < end; ++i) {
            const int64_t n = places.members[i];
            for (int64_t k = 0; k < channels; ++k) grad_colors[n * channels + k] *= T(scale);
            if (coordinates != kColorsOnly)
                finish_geometry(scene.cholesky + 3 * n, scale, coordinates, grad_geometry + 5 * n);
        }
    });
    return nullptr;
}

template <typename T>
const char* backward_planar(const Scene<T>& scene, const T* grad_image, T* grad_geometry, T* grad_colors,
                            int num_threads) {
    const int64_t rows = scene.rows(), cols = scene.cols();
    const int64_t count = rows * cols * scene.channels * kLanes;
    const std::unique_ptr<T[]> blocks(new T[count]);
    expect_large(blocks.get(), count * sizeof(T));
    for_each_group(scene.channels, [&](int64_t first, auto group) {
        constexpr int C = decltype(group)::value;
        T* planes = const_cast<T*>(grad_image) + first * scene.height * scene.width;
        parallel_for(rows, num_threads, [&](int64_t row) {
            T* at = blocks.get() + (rows * first + row * C) * cols * kLanes;
            std::fill_n(at, cols * C * kLanes, T(0));  // also what lies beyond the picture
            each_pixel<T, C>(scene, planes, row, row + 1, at, [](T pixel, T& lane) { lane = pixel; });
        });
    });
    return backward(scene, blocks.get(), 1.0, kParameters, grad_geometry, grad_colors, num_threads);
}

template <typename Function>
const char* guarded(const Function& function) {
    try {
        return function();
    } catch (const std::bad_alloc&) {
        return "not enough memory";
    }
}

template <typename T>
Scene<T> scene_of(int64_t num, int64_t channels, int64_t height, int64_t width, const void* means,
                  const void* cholesky, const void* colors, const int32_t* tile_limits) {
    return {num,
            channels,
            height,
            width,
            static_cast<const T*>(means),
            static_cast<const T*>(cholesky),
            static_cast<const T*>(colors),
            tile_limits};
}

}  // namespace
}  // namespace instantgi

using namespace instantgi;

#define SCENE_PARAMETERS                                                                                \
    int64_t is_double, int64_t num, int64_t channels, int64_t height, int64_t width, const void *means, \
        const void *cholesky, const void *colors, const int32_t *tile_limits
#define SCENE(T) scene_of<T>(num, channels, height, width, means, cholesky, colors, tile_limits)

INSTANTGI_API const char* instantgi_rasterize_sum(SCENE_PARAMETERS, void* image, int64_t num_threads) {
    return guarded([&] {
        return is_double ? forward(SCENE(double), static_cast<double*>(image), int(num_threads))
                         : forward(SCENE(float), static_cast<float*>(image), int(num_threads));
    });
}

INSTANTGI_API const char* instantgi_rasterize_sum_backward(SCENE_PARAMETERS, const void* grad_image,
                                                           void* grad_geometry, void* grad_colors,
                                                           int64_t num_threads) {
    return guarded([&] {
        return is_double ? backward_planar(SCENE(double), static_cast<const double*>(grad_image),
                                           static_cast<double*>(grad_geometry),
                                           static_cast<double*>(grad_colors), int(num_threads))
                         : backward_planar(SCENE(float), static_cast<const float*>(grad_image),
                                           static_cast<float*>(grad_geometry),
                                           static_cast<float*>(grad_colors), int(num_threads));
    });
}

// In blocks: target and residual are [channel group][⌈height/4⌉][⌈width/4⌉][channel of the group][16].
INSTANTGI_API const char* instantgi_rasterize_error(SCENE_PARAMETERS, const void* target, int64_t clamp,
                                                    void* residual, double* squares, int64_t num_threads) {
    return guarded([&] {
        return is_double ? forward_error(SCENE(double), static_cast<const double*>(target), clamp != 0,
                                         static_cast<double*>(residual), squares, int(num_threads))
                         : forward_error(SCENE(float), static_cast<const float*>(target), clamp != 0,
                                         static_cast<float*>(residual), squares, int(num_threads));
    });
}

INSTANTGI_API const char* instantgi_rasterize_error_backward(SCENE_PARAMETERS, const void* residual,
                                                             double scale, int64_t coordinates,
                                                             void* grad_geometry, void* grad_colors,
                                                             int64_t num_threads) {
    return guarded([&] {
        const auto kind = static_cast<Coordinates>(coordinates);
        return is_double ? backward(SCENE(double), static_cast<const double*>(residual), scale, kind,
                                    static_cast<double*>(grad_geometry), static_cast<double*>(grad_colors),
                                    int(num_threads))
                         : backward(SCENE(float), static_cast<const float*>(residual), scale, kind,
                                    static_cast<float*>(grad_geometry), static_cast<float*>(grad_colors),
                                    int(num_threads));
    });
}
