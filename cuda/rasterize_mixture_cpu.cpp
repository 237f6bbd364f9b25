// The normalised mixture of the K largest Gaussians at every pixel, and its gradient, on the CPU; see
// instantgi/render/mixture.py for the definition and rasterize_cpu.h for what it shares with the sum.
//
// Forward, one thread to a band: first each pixel keeps the K smallest exponents s, the last of which is
// where its terms end; then the band is drawn as a sum of the terms up to there, and of their weights.
// Backward: ∂C/∂wₙ = (cₙ − C) / D, so that with v/D for the gradient of the picture and C · v/D in
// common, a mixture's gradient is gathered like a sum's.
#include "rasterize_cpu.h"

namespace instantgi {
namespace {

// Calls visit(Gaussian, block, s) for every listed block.
template <typename T, template <typename> class Form, typename Visit>
INLINE void each_block(Work<T, Form>& listed, const Lanes<T>& lanes, const Visit& visit) {
    listed.each([&](const typename Work<T, Form>::Segment& segment) {
        const Form<T> form = segment.splat->form;
        for (int i = segment.begin; i < segment.end; ++i)
            visit(segment.n, int64_t(listed.block[i]),
                  offsets(form, lanes.x + Vec<T>(listed.x[i]), lanes.y + Vec<T>(listed.y[i])).s);
    });
}

// image [C, H, W]; in blocks [⌈height/4⌉][⌈width/4⌉][16]: limits, the exponents at which the terms end,
// and totals, the sums of the weights plus epsilon.
template <typename T, template <typename> class Form>
const char* forward(const Scene<T>& scene, int num_terms, double epsilon, T* image, T* limits, T* totals,
                    int num_threads) {
    const int64_t rows = scene.rows(), cols = scene.cols();
    expect_large(image, scene.channels * scene.height * scene.width * sizeof(T));
    const auto splats = new_splats<T, Form>(scene.num);
    if (const char* error = prepare_all(scene, num_threads, splats.get())) return error;
    const Places places = sort_by_place(splats.get(), scene, true, num_threads);
    const Lanes<T> lanes;
    parallel_for(places.num_bands, num_threads, [&](int64_t band) {
        const int64_t row_begin = band * kBandRows, row_end = std::min(rows, row_begin + kBandRows);
        const int64_t num_blocks = (row_end - row_begin) * cols;
        T* limit = limits + row_begin * cols * kLanes;
        T* total = totals + row_begin * cols * kLanes;
        auto visit = [&](const auto& draw) {
            visit_band(scene, splats.get(), places, band, lanes,
                       [&](Work<T, Form>& listed) { each_block(listed, lanes, draw); });
        };
        std::vector<T> slots(num_blocks * num_terms * kLanes, T(scene.cutoff));
        std::vector<int8_t> counts(num_blocks);
        visit([&](int64_t, int64_t block, const Vec<T>& s) {
            keep_smallest(slots.data() + block * num_terms * kLanes, num_terms, counts[block], s);
        });
        for (int64_t block = 0; block < num_blocks; ++block)
            store(limit + block * kLanes, load(&slots[((block + 1) * num_terms - 1) * kLanes]));
        for_each_group(scene.channels, [&](int64_t first, auto group) {
            constexpr int C = decltype(group)::value;
            std::vector<T> blocks(num_blocks * C * kLanes);
            std::fill_n(total, num_blocks * kLanes, T(epsilon));
            visit([&](int64_t n, int64_t block, const Vec<T>& s) {
                const Vec<T> end = load(limit + block * kLanes);
                if (!any_up_to(s, end)) return;
                const Vec<T> w = weight(s, end);
                store(total + block * kLanes, load(total + block * kLanes) + w);
                T* at = &blocks[block * C * kLanes];
                for (int k = 0; k < C; ++k)
                    store(at + k * kLanes, multiply_add<T>(scene.colors[n * scene.channels + first + k], w,
                                                           load(at + k * kLanes)));
            });
            for (int64_t block = 0; block < num_blocks; ++block)
                for (int k = 0; k < C; ++k) {
                    T* at = &blocks[(block * C + k) * kLanes];
                    store(at, load(at) / load(total + block * kLanes));
                }
            each_pixel<T, C>(scene, image + first * scene.height * scene.width, row_begin, row_end,
                             blocks.data(), [](T& pixel, T lane) { pixel = lane; });
        });
    });
    return nullptr;
}

template <typename T, template <typename> class Form>
const char* backward(const Scene<T>& scene, const T* image, const T* limits, const T* totals,
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
    return gather_all<T, Form, true>(scene, {blocks.get(), limits, common.get()}, 1.0, kParameters,
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
        return forward<T, decltype(form)::template Form>(SCENE(T), int(num_terms), epsilon,
                                                         static_cast<T*>(image), static_cast<T*>(limits),
                                                         static_cast<T*>(totals), int(num_threads));
    });
}

INSTANTGI_API const char* instantgi_rasterize_mixture_backward(SCENE_PARAMETERS, const void* image,
                                                               const void* limits, const void* totals,
                                                               const void* grad_image, void* grad_geometry,
                                                               void* grad_colors, int64_t num_threads) {
    return dispatch(is_double, published, [&](auto real, auto form) {
        using T = decltype(real);
        return backward<T, decltype(form)::template Form>(
            SCENE(T), static_cast<const T*>(image), static_cast<const T*>(limits),
            static_cast<const T*>(totals), static_cast<const T*>(grad_image), static_cast<T*>(grad_geometry),
            static_cast<T*>(grad_colors), int(num_threads));
    });
}
