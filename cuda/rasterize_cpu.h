// What the CPU kernels that draw Gaussians share.
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
//
// What is drawn of a Gaussian is its Form: an Ellipse, exactly, or a Conic, as the published kernels
// have it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "rasterize_sum.h"
#include "vec.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace instantgi {
namespace {

constexpr int kSide = 4;         // pixels along the side of a block
constexpr int kBandRows = 8;     // block rows of a band: 32 rows of pixels stay in the L2 cache
constexpr int kCellWidth = 128;  // pixels; a band is drawn from left to right
constexpr int kGroup = 4;        // channels drawn in one pass
constexpr int kTile = 16;        // pixels along the side of the published tile
constexpr int kTileBlocks = kTile / kSide;

template <typename T>
struct Scene {
    int64_t num, channels, height, width;
    const T *means, *shapes, *colors;  // shapes: Cholesky factors of ellipses, covariances of conics
    double cutoff;                     // a Gaussian is drawn where its weight 2^−s has s ≤ cutoff
    const int32_t* tile_limits;        // [⌈height/16⌉, ⌈width/16⌉]: last index drawn in a tile, or null
    int64_t rows() const { return (height + kSide - 1) / kSide; }
    int64_t cols() const { return (width + kSide - 1) / kSide; }
};

// --- forms ----------------------------------------------------------------------------------------

// Of one Gaussian at 16 points: its weight is 2^−s, and moments are taken of (u, v).
template <typename T>
struct Offsets {
    Vec<T> u, v, s;
};

// Drawn where its weight reaches the cut-off, and nowhere else.
template <typename T>
struct Ellipse {
    Whitening<T> whiten;
    Extent<T> extent;
};

// Rounded alike wherever it is inlined: whether a point is inside must not depend on who asks.
template <typename T>
INLINE Offsets<T> offsets(const Ellipse<T>& form, const Vec<T>& dx, const Vec<T>& dy) {
    const Vec<T> u = form.whiten.a * dx, v = multiply_add<T>(form.whiten.b, dx, form.whiten.c * dy);
    return {u, v, multiply_add<T>(u, u, v * v)};
}

// Any symmetric matrix, positive or not, in every pixel of the 16x16 tiles that a square of three
// standard deviations meets; not where s < 0.
template <typename T>
struct Conic {
    T xx, xy, yy;                // s = xx dx² + xy dx dy + yy dy²
    int32_t col_begin, col_end;  // block columns of the tiles
};

template <typename T>
INLINE Offsets<T> offsets(const Conic<T>& form, const Vec<T>& dx, const Vec<T>& dy) {
    Vec<T> s = multiply_add<T>(multiply_add<T>(form.xx, dx, form.xy * dy), dx, form.yy * dy * dy);
    for (auto& part : s.part)
        part = part >= typename Vec<T>::Part{} ? part : Vec<T>(std::numeric_limits<T>::infinity()).part[0];
    return {dx, dy, s};
}

// A form as an argument. (An alias of a template is that template to GCC and to some compilers not.)
template <template <typename> class Form>
struct As {};

// What both passes need of a Gaussian, computed once per pass.
template <typename T, template <typename> class Form>
struct alignas(64) Splat {
    T mean_x, mean_y;
    Form<T> form;
    int32_t row_begin, row_end;  // block rows that it may touch
};

// Pixels of slack for the rounding of an extent; the cut-off itself is decided pixel by pixel.
template <typename T>
INLINE T slack(T reach) {
    return T(0.01) + T(1e-3) * reach;
}

// Whether an ellipse can be drawn at all; `reach` is its extent before rounding.
template <typename T>
bool find_ellipse(const T* l, double cutoff, Ellipse<T>& out, Extent<double>& reach) {
    if (!(std::abs(l[0]) >= T(kThinnest) && std::abs(l[2]) >= T(kThinnest))) return false;
    // In double: the square of a float never overflows.
    const auto whiten = whitening<double>(l[0], l[1], l[2]);
    const double radius = std::sqrt(cutoff) / kUnit;
    reach = extent<double>(l[0], l[1], l[2], radius, [](double x) { return std::sqrt(x); });
    out.whiten = {T(whiten.a), T(whiten.b), T(whiten.c)};
    out.extent = {T(reach.reach_x), T(reach.reach_y), T(reach.slope), T(reach.half), T(reach.widest)};
    return std::abs(whiten.b) < 1e30;  // 1e30 times longer than thin: its line misses all centers
}

// The place of a Gaussian whose numbers are finite; out.row_begin = row_end if it is not drawn.
template <typename T>
void place(const Scene<T>& scene, const T* mean, const T* l, Splat<T, Ellipse>& out) {
    Extent<double> reach;
    if (!find_ellipse(l, scene.cutoff, out.form, reach)) return;
    const double grown_x = reach.reach_x + slack(reach.reach_x);
    const double grown_y = reach.reach_y + slack(reach.reach_y);
    if (mean[0] + grown_x < 0 || mean[0] - grown_x > scene.width) return;
    // The first block whose last row of centers, 4 r + 3.5, is inside, and the last whose first, 4 r + 0.5,
    // is.
    const double first = (mean[1] - grown_y - 3.5) / kSide + 1, last = (mean[1] + grown_y - 0.5) / kSide + 1;
    const double rows = double(scene.rows());
    out.row_begin = int32_t(std::min(std::max(first, 0.0), rows));
    out.row_end = int32_t(std::min(std::max(last, 0.0), rows));
}

// As gsplat's 2D kernels and those of LIG and Image-GS do it (their `project` step).
template <typename T>
void place(const Scene<T>& scene, const T* mean, const T* covariance, Splat<T, Conic>& out) {
    const double xx = covariance[0], xy = covariance[1], yy = covariance[2];
    const double determinant = xx * yy - xy * xy;
    if (determinant == 0) return;
    const double half = (xx + yy) / 2;
    const double large = half + std::sqrt(std::max(0.1, half * half - determinant));
    if (!(large > 0)) return;
    const double radius = std::ceil(3 * std::sqrt(large));
    auto tiles = [&](double center, int64_t side, int64_t blocks, int32_t& begin, int32_t& end) {
        const double count = double((side + kTile - 1) / kTile);
        const double low = std::trunc((center - radius) / kTile),
                     high = std::trunc((center + radius) / kTile + 1);
        begin = int32_t(std::min<double>(std::max(low, 0.0), count)) * kTileBlocks;
        end = int32_t(std::min<double>(std::max(high, 0.0), count)) * kTileBlocks;
        begin = std::min(begin, int32_t(blocks)), end = std::min(end, int32_t(blocks));
    };
    int32_t row_begin, row_end;
    tiles(mean[0], scene.width, scene.cols(), out.form.col_begin, out.form.col_end);
    tiles(mean[1], scene.height, scene.rows(), row_begin, row_end);
    if (out.form.col_begin >= out.form.col_end) return;
    const double unit = kUnit * kUnit / determinant;  // to a weight that is a power of 2
    out.form.xx = T(yy * unit), out.form.xy = T(-2 * xy * unit), out.form.yy = T(xx * unit);
    out.row_begin = row_begin, out.row_end = row_end;
}

template <typename T>
bool is_finite(const Scene<T>& scene, int64_t n) {
    const T *mean = scene.means + 2 * n, *shape = scene.shapes + 3 * n;
    bool finite = std::isfinite(mean[0]) && std::isfinite(mean[1]);
    for (int i = 0; i < 3; ++i) finite = finite && std::isfinite(shape[i]);
    for (int64_t k = 0; k < scene.channels; ++k)
        finite = finite && std::isfinite(scene.colors[n * scene.channels + k]);
    return finite;
}

template <typename T, template <typename> class Form>
bool prepare(const Scene<T>& scene, int64_t n, Splat<T, Form>& out) {
    const T* mean = scene.means + 2 * n;
    out.mean_x = mean[0];
    out.mean_y = mean[1];
    out.row_begin = out.row_end = 0;
    const bool finite = is_finite(scene, n);
    if (finite) place(scene, mean, scene.shapes + 3 * n, out);
    return finite;
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

template <typename T, template <typename> class Form>
const char* prepare_all(const Scene<T>& scene, int num_threads, Splat<T, Form>* splats) {
    FirstBad bad(scene.num);
    parallel_ranges(scene.num, 1024, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            if (!prepare(scene, n, splats[n])) bad.add(n);
    });
    return bad.message();
}

// Memory that is about to be written for the first time may come in pages of 2 MiB: the faults of
// small ones would cost more than drawing a large picture.
[[maybe_unused]] void expect_large(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = uintptr_t(1) << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

template <typename T, template <typename> class Form>
std::unique_ptr<Splat<T, Form>[]> new_splats(int64_t num) {
    std::unique_ptr<Splat<T, Form>[]> splats(new Splat<T, Form>[num]);
    expect_large(splats.get(), num * sizeof(Splat<T, Form>));
    return splats;
}

// --- blocks ---------------------------------------------------------------------------------------

// First and one past the last block column that the ellipse may touch, in 16 block rows from `row`.
struct Spans {
    int32_t begin[kLanes], end[kLanes];
};

template <typename T>
INLINE void find_spans(const Splat<T, Ellipse>& g, int64_t row, int64_t cols, Spans& spans) {
    const Extent<T>& e = g.form.extent;
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
INLINE void find_spans(const Splat<T, Conic>& g, int64_t, int64_t, Spans& spans) {
    std::fill_n(spans.begin, kLanes, g.form.col_begin);
    std::fill_n(spans.end, kLanes, g.form.col_end);
}

template <typename T>
struct Lanes {
    Vec<T> x, y;         // offsets of a block's pixel centers from its corner
    Vec<T> corner_x;     // offsets of the corners of the blocks of a row
    Vec<int32_t> count;  // 0, 1, 2, …
    Lanes() {
        for (int lane = 0; lane < kLanes; ++lane) {
            x.set(lane, T(lane % kSide) + T(0.5));
            y.set(lane, T(lane / kSide) + T(0.5));
            corner_x.set(lane, T(lane * kSide));
            count.set(lane, lane);
        }
    }
};

INLINE bool beyond_limit(const int32_t* limits, int64_t row, int64_t col, int64_t cols, int64_t n) {
    const int64_t tile_cols = (cols + kTileBlocks - 1) / kTileBlocks;
    return limits && n > limits[(row / kTileBlocks) * tile_cols + col / kTileBlocks];
}

// The blocks that a few Gaussians touch, listed before any is drawn: the list is made without
// waiting for the spans of the Gaussian before, and drawn with one hard-to-predict branch each.
template <typename T, template <typename> class Form>
class Work {
 public:
    struct Segment {
        int64_t n;
        const Splat<T, Form>* splat;
        int begin, end;  // items
    };

    // Lists block rows [begin, end) of Gaussian n; calls flush(*this) whenever the list is full.
    template <typename Flush>
    INLINE void add(const Scene<T>& scene, const Splat<T, Form>& g, int64_t n, const Lanes<T>& lanes,
                    int64_t begin, int64_t end, int64_t origin, const Flush& flush) {
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
                store(block + size_, lanes.count + Vec<int32_t>(int32_t((row - origin) * cols + col)));
                store(x + size_, (lanes.corner_x + Vec<T>(T(col * kSide))) - Vec<T>(g.mean_x));
                store(y + size_, Vec<T>(from_mean));
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
    void open(int64_t n, const Splat<T, Form>& g) { segments_[num_segments_] = {n, &g, size_, size_}; }
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

// Gaussians by place: bands of block rows, and along a band cells of kCellWidth pixels, so that
// neighbors in the list touch the same memory. Within a cell in order of their index.
struct Places {
    int64_t num_bands, num_cells;  // cells of a band
    std::vector<int64_t> start;    // [num_bands · num_cells + 1] into `members`
    std::vector<int32_t> members;

    int64_t band_begin(int64_t band) const { return start[band * num_cells]; }
};

// With `every_band` a Gaussian is listed in all bands that it touches, else in its first one.
template <typename T, template <typename> class Form>
Places sort_by_place(const Splat<T, Form>* splats, const Scene<T>& scene, bool every_band, int num_threads) {
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
template <typename T, template <typename> class Form>
INLINE void fetch_ahead(const Places& places, int64_t i, int64_t end, const Splat<T, Form>* splats,
                        const Scene<T>& scene) {
    if (i + 8 >= end) return;
    __builtin_prefetch(splats + places.members[i + 8]);
    __builtin_prefetch(scene.colors + places.members[i + 8] * scene.channels);
}

// Calls draw(listed) until all blocks of a band are drawn; they count from its first row.
template <typename T, template <typename> class Form, typename Draw>
void visit_band(const Scene<T>& scene, const Splat<T, Form>* splats, const Places& places, int64_t band,
                const Lanes<T>& lanes, const Draw& draw) {
    const int64_t row_begin = band * kBandRows, row_end = std::min(scene.rows(), row_begin + kBandRows);
    Work<T, Form> work;
    const int64_t last = places.band_begin(band + 1);
    for (int64_t i = places.band_begin(band); i < last; ++i) {
        fetch_ahead(places, i, last, splats, scene);
        const int64_t n = places.members[i];
        const int64_t begin = std::max<int64_t>(row_begin, splats[n].row_begin);
        const int64_t end = std::min<int64_t>(row_end, splats[n].row_end);
        work.add(scene, splats[n], n, lanes, begin, end, row_begin, draw);
    }
    draw(work);
}

// Calls function(first, std::integral_constant<int, C>) for every group of channels.
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

constexpr int kMostTerms = 32;  // of a mixture at a pixel

// The `num` smallest exponents s of each lane, in increasing order; where fewer were seen, the cut-off.
template <typename T, int Num>
class Smallest {
 public:
    INLINE Smallest(T cutoff) {
        for (auto& slot : slots_) slot = cutoff;
    }
    INLINE void add(Vec<T> s) {
        for (auto& slot : slots_) {
            const Vec<T> before = slot;
            slot = smaller(s, before);
            s = larger(s, before);
        }
    }
    INLINE const Vec<T>& operator[](int i) const { return slots_[i]; }

 private:
    Vec<T> slots_[Num];
};

// Weights are capped in the published sum: the picture's at 0.999, the gradient's of colors at 0.99.
template <typename T>
INLINE Vec<T> capped(const Ellipse<T>&, const Vec<T>& w, T) {
    return w;
}
template <typename T>
INLINE Vec<T> capped(const Conic<T>&, const Vec<T>& w, T most) {
    return smaller<T>(w, most);
}

template <typename T>
INLINE void finish(const Ellipse<T>*, const T* cholesky, double scale, int coordinates, T* moments) {
    finish_geometry(cholesky, scale, coordinates, moments);
}
template <typename T>
INLINE void finish(const Conic<T>*, const T* covariance, double scale, int, T* moments) {
    finish_conic(covariance, scale, moments);
}

// The gradient of the picture in blocks. Of a mixture also where its terms end, and what they share:
// the gradient of a weight is then the color's part less `common`.
template <typename T>
struct Gradient {
    const T *blocks, *limits, *common;  // the last two null for a sum
};

// Adds the moments of the listed Gaussians, Σ w q (u, v) and Σ w q of uu, uv, vv, to moments [N, 5], q =
// color · gradient, and Σ w gradient to grad_colors [N, channels].
template <typename T, template <typename> class Form, int C, bool Geometry, bool Mixture>
INLINE void gather(const Scene<T>& scene, Work<T, Form>& work, int64_t first, const Gradient<T>& gradient,
                   const Lanes<T>& lanes, T* moments, T* grad_colors) {
    const Vec<T> cutoff = T(scene.cutoff);
    work.each([&](const typename Work<T, Form>::Segment& segment) {
        const Form<T> form = segment.splat->form;
        T color[C];
        std::copy_n(scene.colors + segment.n * scene.channels + first, C, color);
        Vec<T> mean_u = T(0), mean_v = T(0), uu = T(0), uv = T(0), vv = T(0), colors[C];
        for (auto& each : colors) each = T(0);
        for (int i = segment.begin; i < segment.end; ++i) {
            const Offsets<T> at = offsets(form, lanes.x + Vec<T>(work.x[i]), lanes.y + Vec<T>(work.y[i]));
            const int64_t block = work.block[i];
            const Vec<T> limit = Mixture ? load(gradient.limits + block * kLanes) : cutoff;
            if (Mixture && !any_up_to(at.s, limit)) continue;
            const Vec<T> w = weight(at.s, limit);
            const Vec<T> of_color = Mixture ? w : capped(form, w, T(0.99));
            Vec<T> q = T(0);
            if (Mixture && first == 0) q = q - load(gradient.common + block * kLanes);
            for (int k = 0; k < C; ++k) {
                const Vec<T> value = load(gradient.blocks + (block * C + k) * kLanes);
                colors[k] = multiply_add(of_color, value, colors[k]);
                q = multiply_add<T>(color[k], value, q);
            }
            if (Geometry) {
                const Vec<T> wq = w * q, wqu = wq * at.u, wqv = wq * at.v;
                mean_u += wqu;
                mean_v += wqv;
                uu = multiply_add(wqu, at.u, uu);
                uv = multiply_add(wqu, at.v, uv);
                vv = multiply_add(wqv, at.v, vv);
            }
        }
        T* out = grad_colors + segment.n * scene.channels + first;
        for (int k = 0; k < C; ++k) out[k] += sum(colors[k]);
        if (Geometry) {
            const Vec<T> all[5] = {mean_u, mean_v, uu, uv, vv};
            for (int i = 0; i < 5; ++i) moments[5 * segment.n + i] += sum(all[i]);
        }
    });
}

// Gradients of all Gaussians, times `scale`. grad_geometry [N, 5], see `finish`; gradient.blocks holds
// all groups of channels.
template <bool Mixture, typename T, template <typename> class Form>
const char* gather_all(As<Form>, const Scene<T>& scene, const Gradient<T>& gradient, double scale,
                       Coordinates coordinates, T* grad_geometry, T* grad_colors, int num_threads) {
    const int64_t rows = scene.rows(), cols = scene.cols(), channels = scene.channels;
    const Lanes<T> lanes;
    const auto splats = new_splats<T, Form>(scene.num);
    if (const char* error = prepare_all(scene, num_threads, splats.get())) return error;
    const Places places = sort_by_place(splats.get(), scene, false, num_threads);
    expect_large(grad_colors, scene.num * channels * sizeof(T));
    expect_large(grad_geometry, coordinates == kColorsOnly ? 0 : scene.num * 5 * sizeof(T));
    std::fill_n(grad_colors, scene.num * channels, T(0));
    if (coordinates != kColorsOnly) std::fill_n(grad_geometry, scene.num * 5, T(0));
    parallel_ranges(int64_t(places.members.size()), 256, num_threads, [&](int64_t begin, int64_t end) {
        for_each_group(channels, [&](int64_t first, auto group) {
            constexpr int C = decltype(group)::value;
            const Gradient<T> part = {gradient.blocks + rows * cols * first * kLanes, gradient.limits,
                                      gradient.common};
            Work<T, Form> work;
            auto flush = [&](Work<T, Form>& listed) {
                if constexpr (!Mixture && std::is_same_v<Form<T>, Ellipse<T>>)
                    if (coordinates == kColorsOnly)
                        return gather<T, Form, C, false, Mixture>(scene, listed, first, part, lanes,
                                                                  grad_geometry, grad_colors);
                gather<T, Form, C, true, Mixture>(scene, listed, first, part, lanes, grad_geometry,
                                                  grad_colors);
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
                finish(static_cast<const Form<T>*>(nullptr), scene.shapes + 3 * n, scale, coordinates,
                       grad_geometry + 5 * n);
        }
    });
    return nullptr;
}

// Memory of `count` values, in which pages may be large.
template <typename T>
std::unique_ptr<T[]> new_values(int64_t count) {
    std::unique_ptr<T[]> values(new T[count]);
    expect_large(values.get(), count * sizeof(T));
    return values;
}

// A group of C planes of a picture, block rows [row, row + 1), into blocks; 0 beyond the picture.
template <typename T, int C>
void row_to_blocks(const Scene<T>& scene, const T* planes, int64_t row, T* blocks) {
    std::fill_n(blocks, scene.cols() * C * kLanes, T(0));
    each_pixel<T, C>(scene, const_cast<T*>(planes), row, row + 1, blocks,
                     [](T pixel, T& lane) { lane = pixel; });
}

template <typename Function>
const char* guarded(const Function& function) {
    try {
        return function();
    } catch (const std::bad_alloc&) {
        return "not enough memory";
    }
}

// Calls function(T(), As<Form>()) for float or double, ellipses or conics.
template <typename Function>
const char* dispatch(bool is_double, bool published, const Function& function) {
    if (is_double && published) return "what is published is drawn in float32";
    return guarded([&] {
        if (is_double) return function(double(), As<Ellipse>());
        return published ? function(float(), As<Conic>()) : function(float(), As<Ellipse>());
    });
}

template <typename T>
Scene<T> scene_of(int64_t num, int64_t channels, int64_t height, int64_t width, const void* means,
                  const void* shapes, const void* colors, double cutoff, const int32_t* tile_limits) {
    return {num,
            channels,
            height,
            width,
            static_cast<const T*>(means),
            static_cast<const T*>(shapes),
            static_cast<const T*>(colors),
            cutoff,
            tile_limits};
}

}  // namespace
}  // namespace instantgi
