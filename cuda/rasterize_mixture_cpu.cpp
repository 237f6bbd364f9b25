// The normalised mixture of the K largest Gaussians at every pixel, and its gradient, on the CPU; see
// instantgi/render/mixture.py for the definition and rasterize_cpu.h for what it shares with the sum.
//
// Forward, one thread to a band, block by block: where more than K Gaussians are listed, each pixel first
// keeps the K smallest exponents s, the last of which is where its terms end; then a block is drawn as a
// sum of the terms up to there, and of their weights.
// Backward: ∂C/∂wₙ = (cₙ − C) / D, so that with v/D for the gradient of the picture and C · v/D in
// common, a mixture's gradient is gathered like a sum's.
#include "rasterize_cpu.h"

namespace instantgi {
namespace {

struct Columns {
    int32_t begin, end;  // of blocks
};

// The Gaussians of every block of a band, from block column col_begin to col_end, in the band's order.
// They are copied: every block reads its own again, and over a large picture's array each of them would
// be a cache line, and a page, of its own.
template <typename T, template <typename> class Form>
struct Strip {
    int64_t row_begin, row_end, col_begin, col_end;
    std::vector<int64_t> start;    // [rows · columns + 1] into `members`
    std::vector<int32_t> members;  // into `splats` and `colors`
    std::vector<Splat<T, Form>> splats;
    std::vector<T> colors;       // [num, C]
    std::vector<Columns> spans;  // of each Gaussian and row

    int64_t num_cols() const { return col_end - col_begin; }
    const int64_t* of(int64_t row, int64_t col) const {
        return &start[(row - row_begin) * num_cols() + col - col_begin];
    }
};

constexpr int64_t kStripCols = 256;                // its lists stay in the L2 cache
constexpr int64_t kMostListed = int64_t(1) << 22;  // of a strip, if it is wider than a block

// Block columns that a Gaussian may touch, if that is a part of the picture.
template <typename T>
INLINE Columns columns_of(const Splat<T, Ellipse>& g, int64_t cols) {
    const T reach = g.form.extent.reach_x + slack(g.form.extent.reach_x) + kSide;
    const T begin = (g.mean_x - reach) / kSide, end = (g.mean_x + reach) / kSide + 1;
    return {int32_t(std::min(std::max(begin, T(0)), T(cols))),
            int32_t(std::min(std::max(end, T(0)), T(cols)))};
}
template <typename T>
INLINE Columns columns_of(const Splat<T, Conic>& g, int64_t) {
    return {g.form.col_begin, g.form.col_end};
}

// Lists a strip; false if it would be too long.
template <typename T, template <typename> class Form>
bool list_strip(const Scene<T>& scene, Strip<T, Form>& strip) {
    const int64_t rows = strip.row_end - strip.row_begin, cols = strip.num_cols();
    const int64_t num = int64_t(strip.splats.size());
    strip.spans.assign(num * rows, {0, 0});
    strip.start.assign(rows * cols + 2, 0);
    // as differences: of how many begin at a block less how many ended before it
    int64_t* change = strip.start.data() + 1;
    for (int64_t i = 0; i < num; ++i) {
        const Splat<T, Form>& g = strip.splats[i];
        const int64_t begin = std::max<int64_t>(strip.row_begin, g.row_begin) - strip.row_begin;
        const int64_t end = std::min<int64_t>(strip.row_end, g.row_end) - strip.row_begin;
        Spans found;
        find_spans(g, strip.row_begin + begin, scene.cols(), found);
        for (int64_t row = begin; row < end; ++row) {
            const int32_t from = std::max(found.begin[row - begin], int32_t(strip.col_begin));
            const int32_t to = std::min(found.end[row - begin], int32_t(strip.col_end));
            if (from >= to) continue;
            strip.spans[i * rows + row] = {from, to};
            ++change[row * cols + from - strip.col_begin];
            --change[row * cols + to - strip.col_begin];
        }
    }
    int64_t here = 0, total = 0;
    for (int64_t block = 0; block < rows * cols; ++block) {
        here += change[block];
        change[block] = total;  // where the block's first goes, then where its last ended
        total += here;
    }
    if (total > kMostListed && cols > 1) return false;
    strip.members.resize(total);
    for (int64_t i = 0; i < num; ++i)
        for (int64_t row = 0; row < rows; ++row) {
            const Columns span = strip.spans[i * rows + row];
            for (int32_t col = span.begin; col < span.end; ++col)
                strip.members[change[row * cols + col - strip.col_begin]++] = int32_t(i);
        }
    return true;
}

template <typename T, template <typename> class Form>
void copy_gaussians(const Scene<T>& scene, const Splat<T, Form>* splats, const std::vector<int32_t>& members,
                    Strip<T, Form>& strip) {
    const int64_t num = int64_t(members.size()), channels = scene.channels;
    strip.splats.resize(num);
    strip.colors.resize(num * channels);
    for (int64_t i = 0; i < num; ++i) {
        if (i + 8 < num) {
            __builtin_prefetch(splats + members[i + 8]);
            __builtin_prefetch(scene.colors + members[i + 8] * channels);
        }
        strip.splats[i] = splats[members[i]];
        std::copy_n(scene.colors + members[i] * channels, channels, &strip.colors[i * channels]);
    }
}

// Calls draw(strip) for strips that make up a band; narrower ones where their lists are long.
template <typename T, template <typename> class Form, typename Draw>
void each_strip(const Scene<T>& scene, const Splat<T, Form>* splats, const Places& places, int64_t band,
                const Draw& draw) {
    const int64_t cols = scene.cols(), row_begin = band * kBandRows;
    const int64_t num_strips = (cols + kStripCols - 1) / kStripCols;
    std::vector<std::vector<int32_t>> members(num_strips);
    for (int64_t i = places.band_begin(band); i < places.band_begin(band + 1); ++i) {
        const int32_t n = places.members[i];
        const Columns reached = columns_of(splats[n], cols);
        for (int64_t at = reached.begin / kStripCols; at * kStripCols < reached.end; ++at)
            members[at].push_back(n);
    }
    Strip<T, Form> strip;
    strip.row_begin = row_begin, strip.row_end = std::min(scene.rows(), row_begin + kBandRows);
    for (int64_t at = 0; at < num_strips; ++at) {
        // ends of strips that are still to be drawn, the next one last
        std::vector<int64_t> ends = {std::min(cols, (at + 1) * kStripCols)};
        copy_gaussians(scene, splats, members[at], strip);
        for (strip.col_begin = at * kStripCols; !ends.empty();) {
            strip.col_end = ends.back();
            if (list_strip(scene, strip)) {
                draw(strip);
                strip.col_begin = strip.col_end;
                ends.pop_back();
            } else {
                ends.push_back((strip.col_begin + strip.col_end) / 2);
            }
        }
    }
}

// Writes a block of C channels from `first` on into the planes of a picture.
template <typename T, int C>
INLINE void write_block(const Scene<T>& scene, const Vec<T> (&block)[C], int64_t first, int64_t row,
                        int64_t col, T* image) {
    const int64_t height = std::min<int64_t>(kSide, scene.height - row * kSide);
    const int64_t width = std::min<int64_t>(kSide, scene.width - col * kSide);
    T lanes[C][kLanes];
    for (int k = 0; k < C; ++k) store(lanes[k], block[k]);
    for (int k = 0; k < C; ++k)
        for (int64_t y = 0; y < height; ++y) {
            T* line = image + ((first + k) * scene.height + row * kSide + y) * scene.width + col * kSide;
            if (width == kSide)
                std::memcpy(line, lanes[k] + y * kSide, kSide * sizeof(T));
            else
                std::copy_n(lanes[k] + y * kSide, width, line);
        }
}

// The exponents of a block's Gaussians; the first few are kept.
template <typename T, template <typename> class Form>
class Exponents {
 public:
    explicit Exponents(const Lanes<T>& lanes) : lanes_(lanes) {}

    INLINE void begin(int64_t row, int64_t col, const Splat<T, Form>* splats, const int32_t* members) {
        x_ = T(col * kSide), y_ = T(row * kSide);
        splats_ = splats, members_ = members;
    }
    // Rounded as in `Work`: the backward pass must see the same terms.
    INLINE Vec<T> find(int64_t i) const {
        const Splat<T, Form>& g = splats_[members_[i]];
        return offsets(g.form, lanes_.x + Vec<T>(x_ - g.mean_x), lanes_.y + Vec<T>(y_ - g.mean_y)).s;
    }
    INLINE Vec<T> find_and_keep(int64_t i) {
        const Vec<T> s = find(i);
        if (i < kKept) kept_[i] = s;
        return s;
    }
    INLINE Vec<T> operator[](int64_t i) const { return i < kKept ? kept_[i] : find(i); }

 private:
    static constexpr int kKept = 96;
    const Lanes<T>& lanes_;
    const Splat<T, Form>* splats_;
    const int32_t* members_;
    T x_, y_;  // the corner of the block
    Vec<T> kept_[kKept];
};

// The num_terms-th smallest exponent of each pixel, or the cut-off.
template <typename T, template <typename> class Form>
Vec<T> end_of_terms(int num_terms, double cutoff, int64_t num, Exponents<T, Form>& exponents) {
    auto among = [&](auto slots) {
        Smallest<T, decltype(slots)::value> smallest{T(cutoff)};
        // the cut-off also where an exponent is not a number
        for (int64_t i = 0; i < num; ++i)
            smallest.add(smaller(exponents.find_and_keep(i), Vec<T>(T(cutoff))));
        return smallest[num_terms - 1];
    };
    if (num_terms <= 4) return among(std::integral_constant<int, 4>{});
    if (num_terms <= 10) return among(std::integral_constant<int, 10>{});
    if (num_terms <= 16) return among(std::integral_constant<int, 16>{});
    return among(std::integral_constant<int, kMostTerms>{});
}

// image [C, H, W]; in blocks [⌈height/4⌉][⌈width/4⌉][16]: limits, the exponents at which the terms end,
// and totals, the sums of the weights plus epsilon; or null where no gradient will be asked for.
template <typename T, template <typename> class Form>
const char* forward(As<Form>, const Scene<T>& scene, int num_terms, double epsilon, T* image, T* limits,
                    T* totals, int num_threads) {
    const int64_t cols = scene.cols();
    expect_large(image, scene.channels * scene.height * scene.width * sizeof(T));
    for (T* kept : {limits, totals})
        if (kept) expect_large(kept, scene.rows() * cols * kLanes * sizeof(T));
    const auto splats = new_splats<T, Form>(scene.num);
    if (const char* error = prepare_all(scene, num_threads, splats.get())) return error;
    const Places places = sort_by_place(splats.get(), scene, true, num_threads);
    const Lanes<T> lanes;
    parallel_for(places.num_bands, num_threads, [&](int64_t band) {
        Exponents<T, Form> exponents(lanes);
        each_strip(scene, splats.get(), places, band, [&](const Strip<T, Form>& strip) {
            for (int64_t row = strip.row_begin; row < strip.row_end; ++row)
                for (int64_t col = strip.col_begin; col < strip.col_end; ++col) {
                    const int64_t block = row * cols + col,
                                  num = strip.of(row, col)[1] - strip.of(row, col)[0];
                    const int32_t* members = strip.members.data() + strip.of(row, col)[0];
                    exponents.begin(row, col, strip.splats.data(), members);
                    Vec<T> end = T(scene.cutoff);
                    if (num > num_terms)
                        end = end_of_terms(num_terms, scene.cutoff, num, exponents);
                    else
                        for (int64_t i = 0; i < num; ++i) exponents.find_and_keep(i);
                    if (limits) store(limits + block * kLanes, end);
                    for_each_group(scene.channels, [&](int64_t first, auto group) {
                        constexpr int C = decltype(group)::value;
                        Vec<T> total = T(epsilon), drawn[C];
                        for (auto& channel : drawn) channel = T(0);
                        for (int64_t i = 0; i < num; ++i) {
                            const T* color = &strip.colors[members[i] * scene.channels + first];
                            const Vec<T> w = weight(exponents[i], end);
                            total += w;
                            for (int k = 0; k < C; ++k) drawn[k] = multiply_add<T>(color[k], w, drawn[k]);
                        }
                        if (totals) store(totals + block * kLanes, total);
                        for (auto& channel : drawn) channel = channel / total;
                        write_block<T, C>(scene, drawn, first, row, col, image);
                    });
                }
        });
    });
    return nullptr;
}

template <typename T, template <typename> class Form>
const char* backward(As<Form>, const Scene<T>& scene, const T* image, const T* limits, const T* totals,
                     const T* grad_image, T* grad_geometry, T* grad_colors, int num_threads) {
    const int64_t rows = scene.rows(), cols = scene.cols();
    const auto blocks = new_values<T>(rows * cols * scene.channels * kLanes);
    const auto common = new_values<T>(rows * cols * kLanes);
    parallel_for(rows, num_threads, [&](int64_t row) {
        T* of_row = common.get() + row * cols * kLanes;
        std::fill_n(of_row, cols * kLanes, T(0));
        for_each_group(scene.channels, [&](int64_t first, auto group) {
            constexpr int C = decltype(group)::value;
            const int64_t plane = first * scene.height * scene.width;
            T* at = blocks.get() + (rows * first + row * C) * cols * kLanes;
            row_to_blocks<T, C>(scene, grad_image + plane, row, at);
            std::vector<T> drawn(cols * C * kLanes);
            row_to_blocks<T, C>(scene, image + plane, row, drawn.data());
            for (int64_t col = 0; col < cols; ++col)
                for (int k = 0; k < C; ++k) {
                    T* value = at + (col * C + k) * kLanes;
                    const Vec<T> share = load(value) / load(totals + (row * cols + col) * kLanes);
                    store(value, share);
                    T* sum = of_row + col * kLanes;
                    store(sum, multiply_add(share, load(drawn.data() + (col * C + k) * kLanes), load(sum)));
                }
        });
    });
    return gather_all<true>(As<Form>(), scene, {blocks.get(), limits, common.get()}, 1.0, kParameters,
                            grad_geometry, grad_colors, num_threads);
}

}  // namespace
}  // namespace instantgi

using namespace instantgi;

// `published` draws conics, whose shapes are covariances, instead of ellipses.
#define SCENE_PARAMETERS                                                                                \
    int64_t is_double, int64_t published, int64_t num, int64_t channels, int64_t height, int64_t width, \
        const void *means, const void *shapes, const void *colors, double cutoff
#define SCENE(T) scene_of<T>(num, channels, height, width, means, shapes, colors, cutoff, nullptr)

INSTANTGI_API const char* instantgi_rasterize_mixture(SCENE_PARAMETERS, int64_t num_terms, double epsilon,
                                                      void* image, void* limits, void* totals,
                                                      int64_t num_threads) {
    if (num_terms < 1 || num_terms > kMostTerms) return "the number of terms must be from 1 to 32";
    return dispatch(is_double, published, [&](auto real, auto form) {
        using T = decltype(real);
        return forward(form, SCENE(T), int(num_terms), epsilon, static_cast<T*>(image),
                       static_cast<T*>(limits), static_cast<T*>(totals), int(num_threads));
    });
}

INSTANTGI_API const char* instantgi_rasterize_mixture_backward(SCENE_PARAMETERS, const void* image,
                                                               const void* limits, const void* totals,
                                                               const void* grad_image, void* grad_geometry,
                                                               void* grad_colors, int64_t num_threads) {
    return dispatch(is_double, published, [&](auto real, auto form) {
        using T = decltype(real);
        return backward(form, SCENE(T), static_cast<const T*>(image), static_cast<const T*>(limits),
                        static_cast<const T*>(totals), static_cast<const T*>(grad_image),
                        static_cast<T*>(grad_geometry), static_cast<T*>(grad_colors), int(num_threads));
    });
}
