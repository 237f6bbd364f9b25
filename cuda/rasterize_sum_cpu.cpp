// The sum of all Gaussians at every pixel, and its gradient, on the CPU; see rasterize_cpu.h.
#include "rasterize_cpu.h"

namespace instantgi {
namespace {

// Draws channels [first, first + C), band by band, and hands each finished band to
// finish(band, row_begin, row_end, blocks).
template <typename T, template <typename> class Form, int C, typename Finish>
void draw_bands(const Scene<T>& scene, const Splat<T, Form>* splats, const Places& places, int64_t first,
                int num_threads, const Finish& finish) {
    const int64_t rows = scene.rows(), cols = scene.cols();
    const Lanes<T> lanes;
    const Vec<T> cutoff = T(scene.cutoff);
    parallel_for((rows + kBandRows - 1) / kBandRows, num_threads, [&](int64_t band) {
        const int64_t row_begin = band * kBandRows, row_end = std::min(rows, row_begin + kBandRows);
        std::vector<T> blocks((row_end - row_begin) * cols * C * kLanes);
        auto draw = [&](Work<T, Form>& listed) {
            listed.each([&](const typename Work<T, Form>::Segment& segment) {
                const Form<T> form = segment.splat->form;
                Vec<T> color[C];
                for (int k = 0; k < C; ++k) color[k] = scene.colors[segment.n * scene.channels + first + k];
                for (int i = segment.begin; i < segment.end; ++i) {
                    const Offsets<T> at =
                        offsets(form, lanes.x + Vec<T>(listed.x[i]), lanes.y + Vec<T>(listed.y[i]));
                    const Vec<T> w = capped(form, weight(at.s, cutoff), T(0.999));
                    T* block = blocks.data() + int64_t(listed.block[i]) * (C * kLanes);
                    for (int k = 0; k < C; ++k)
                        store(block + k * kLanes, multiply_add(color[k], w, load(block + k * kLanes)));
                }
            });
        };
        visit_band(scene, splats, places, band, lanes, draw);
        finish(band, row_begin, row_end, blocks.data());
    });
}

template <typename T, template <typename> class Form>
const char* forward(As<Form>, const Scene<T>& scene, T* image, int num_threads) {
    expect_large(image, scene.channels * scene.height * scene.width * sizeof(T));
    const auto splats = new_splats<T, Form>(scene.num);
    if (const char* error = prepare_all(scene, num_threads, splats.get())) return error;
    const Places places = sort_by_place(splats.get(), scene, true, num_threads);
    for_each_group(scene.channels, [&](int64_t first, auto group) {
        constexpr int C = decltype(group)::value;
        T* planes = image + first * scene.height * scene.width;
        auto finish = [&](int64_t, int64_t row_begin, int64_t row_end, T* blocks) {
            each_pixel<T, C>(scene, planes, row_begin, row_end, blocks,
                             [](T& pixel, T lane) { pixel = lane; });
        };
        draw_bands<T, Form, C>(scene, splats.get(), places, first, num_threads, finish);
    });
    return nullptr;
}

// residual = sum − target in blocks, and Σ residual²; with `clamp`, of the sum clamped to [0, 1], and
// the residual (which stands for the gradient) is 0 where the clamp is active.
template <typename T, template <typename> class Form>
const char* forward_error(As<Form>, const Scene<T>& scene, const T* target, bool clamp, T* residual,
                          double* squares, int num_threads) {
    const auto splats = new_splats<T, Form>(scene.num);
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
                Vec<T> inside, corner, row_squares = T(0);
                for (int lane = 0; lane < kLanes; ++lane) {
                    const bool is_row = row * kSide + lane / kSide < scene.height;
                    const bool is_col = (cols - 1) * kSide + lane % kSide < scene.width;
                    inside.set(lane, is_row ? T(1) : T(0));
                    corner.set(lane, is_row && is_col ? T(1) : T(0));
                }
                for (int64_t col = 0; col < cols; ++col) {
                    const Vec<T> keep = col + 1 < cols ? inside : corner;
                    for (int k = 0; k < C; ++k) {
                        const int64_t at = (((row - row_begin) * cols + col) * C + k) * kLanes;
                        Vec<T> drawn = load(blocks + at);
                        Vec<T> active = keep;
                        if (clamp) {
                            active = keep_up_to(keep_up_to<T>(keep, drawn, T(1)), Vec<T>(T(0)), drawn);
                            drawn = larger<T>(smaller<T>(drawn, T(1)), T(0));
                        }
                        const Vec<T> difference = drawn - load(target + begin + at);
                        const Vec<T> kept = difference * keep;
                        row_squares += kept * kept;
                        store(residual + begin + at, difference * active);
                    }
                }
                part += double(sum(row_squares));
            }
            parts[band] += part;
        };
        draw_bands<T, Form, C>(scene, splats.get(), places, first, num_threads, finish);
    });
    *squares = 0;
    for (double part : parts) *squares += part;
    return nullptr;
}

template <typename T, template <typename> class Form>
const char* backward_planar(As<Form>, const Scene<T>& scene, const T* grad_image, T* grad_geometry,
                            T* grad_colors, int num_threads) {
    const int64_t rows = scene.rows(), cols = scene.cols();
    const auto blocks = new_values<T>(rows * cols * scene.channels * kLanes);
    for_each_group(scene.channels, [&](int64_t first, auto group) {
        constexpr int C = decltype(group)::value;
        parallel_for(rows, num_threads, [&](int64_t row) {
            row_to_blocks<T, C>(scene, grad_image + first * scene.height * scene.width, row,
                                blocks.get() + (rows * first + row * C) * cols * kLanes);
        });
    });
    return gather_all<false>(As<Form>(), scene, {blocks.get(), nullptr, nullptr}, 1.0, kParameters,
                             grad_geometry, grad_colors, num_threads);
}

}  // namespace
}  // namespace instantgi

using namespace instantgi;

// `published` draws conics, whose shapes are covariances, instead of ellipses.
#define SCENE_PARAMETERS                                                                                \
    int64_t is_double, int64_t published, int64_t num, int64_t channels, int64_t height, int64_t width, \
        const void *means, const void *shapes, const void *colors, const int32_t *tile_limits
#define SCENE(T) scene_of<T>(num, channels, height, width, means, shapes, colors, kCutoff, tile_limits)

INSTANTGI_API const char* instantgi_rasterize_sum(SCENE_PARAMETERS, void* image, int64_t num_threads) {
    return dispatch(is_double, published, [&](auto real, auto form) {
        using T = decltype(real);
        return forward(form, SCENE(T), static_cast<T*>(image), int(num_threads));
    });
}

INSTANTGI_API const char* instantgi_rasterize_sum_backward(SCENE_PARAMETERS, const void* grad_image,
                                                           void* grad_geometry, void* grad_colors,
                                                           int64_t num_threads) {
    return dispatch(is_double, published, [&](auto real, auto form) {
        using T = decltype(real);
        return backward_planar(form, SCENE(T), static_cast<const T*>(grad_image),
                               static_cast<T*>(grad_geometry), static_cast<T*>(grad_colors),
                               int(num_threads));
    });
}

// In blocks: target and residual are [channel group][⌈height/4⌉][⌈width/4⌉][channel of the group][16].
INSTANTGI_API const char* instantgi_rasterize_error(SCENE_PARAMETERS, const void* target, int64_t clamp,
                                                    void* residual, double* squares, int64_t num_threads) {
    return dispatch(is_double, published, [&](auto real, auto form) {
        using T = decltype(real);
        return forward_error(form, SCENE(T), static_cast<const T*>(target), clamp != 0,
                             static_cast<T*>(residual), squares, int(num_threads));
    });
}

INSTANTGI_API const char* instantgi_rasterize_error_backward(SCENE_PARAMETERS, const void* residual,
                                                             double scale, int64_t coordinates,
                                                             void* grad_geometry, void* grad_colors,
                                                             int64_t num_threads) {
    return dispatch(is_double, published, [&](auto real, auto form) {
        using T = decltype(real);
        const Gradient<T> gradient = {static_cast<const T*>(residual), nullptr, nullptr};
        return gather_all<false>(form, SCENE(T), gradient, scale, static_cast<Coordinates>(coordinates),
                                 static_cast<T*>(grad_geometry), static_cast<T*>(grad_colors),
                                 int(num_threads));
    });
}
