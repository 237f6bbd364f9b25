// The sum or the mixture of all Gaussians at any points, and its gradient, on the CPU; see
// instantgi/render/points.py.
//
// Points are sorted into bands of equal numbers by y, and within a band by x, so that sixteen
// neighbors make a group: a vector, as the sixteen pixels of a block are. Forward: one thread owns a
// band, finds the Gaussians that reach it and draws them like rasterize_mixture_cpu.cpp. Backward: one
// thread owns a Gaussian and gathers over the groups that it reaches.
#include "rasterize_cpu.h"

namespace instantgi {
namespace {

constexpr int kBandPoints = 256;

template <typename T>
struct Reached {
    T mean_x, mean_y;
    Ellipse<T> form;
    T reach_x, reach_y;
    int32_t band_begin, band_end;
};

template <typename T>
class Points {
 public:
    Points(const T* points, int64_t num, int num_threads) : order_((num + kLanes - 1) / kLanes * kLanes, -1) {
        std::vector<int64_t> by_y(num);
        for (int64_t i = 0; i < num; ++i) by_y[i] = i;
        auto sort = [&](int64_t begin, int64_t end, int axis) {
            std::sort(by_y.begin() + begin, by_y.begin() + end, [&](int64_t a, int64_t b) {
                const T at_a = points[2 * a + axis], at_b = points[2 * b + axis];
                return at_a != at_b ? at_a < at_b : a < b;
            });
        };
        sort(0, num, 1);
        num_bands_ = (num + kBandPoints - 1) / kBandPoints;
        low_y_.resize(num_bands_), high_y_.resize(num_bands_);
        const int64_t num_groups = int64_t(order_.size()) / kLanes;
        low_x_.resize(num_groups), high_x_.resize(num_groups);
        x_.assign(order_.size(), std::numeric_limits<T>::quiet_NaN());
        y_ = x_;
        parallel_for(num_bands_, num_threads, [&](int64_t band) {
            const int64_t begin = band * kBandPoints, end = std::min<int64_t>(num, begin + kBandPoints);
            low_y_[band] = points[2 * by_y[begin] + 1], high_y_[band] = points[2 * by_y[end - 1] + 1];
            sort(begin, end, 0);
            for (int64_t i = begin; i < end; ++i) {
                order_[i] = by_y[i];
                x_[i] = points[2 * by_y[i]], y_[i] = points[2 * by_y[i] + 1];
                if (i % kLanes == 0) low_x_[i / kLanes] = x_[i];
                high_x_[i / kLanes] = x_[i];
            }
        });
    }

    int64_t num_bands() const { return num_bands_; }
    int64_t group_begin(int64_t band) const {
        return std::min<int64_t>(band * (kBandPoints / kLanes), int64_t(low_x_.size()));
    }
    int64_t num_groups() const { return int64_t(low_x_.size()); }
    // The point in lane i of all groups, or -1.
    int64_t original(int64_t i) const { return order_[i]; }

    void find_bands(Reached<T>& g) const {
        g.band_begin =
            int32_t(std::lower_bound(high_y_.begin(), high_y_.end(), g.mean_y - g.reach_y) - high_y_.begin());
        g.band_end =
            int32_t(std::upper_bound(low_y_.begin(), low_y_.end(), g.mean_y + g.reach_y) - low_y_.begin());
    }

    // Calls visit(group, offsets) for the groups of a band that the Gaussian may reach.
    template <typename Visit>
    INLINE void each_group(const Reached<T>& g, int64_t band, const Visit& visit) const {
        const T left = g.mean_x - g.reach_x, right = g.mean_x + g.reach_x;
        const auto last = high_x_.begin() + group_begin(band + 1);
        int64_t group = std::lower_bound(high_x_.begin() + group_begin(band), last, left) - high_x_.begin();
        for (; group < last - high_x_.begin() && low_x_[group] <= right; ++group) {
            const Vec<T> dx = load(x_.data() + group * kLanes) - Vec<T>(g.mean_x);
            const Vec<T> dy = load(y_.data() + group * kLanes) - Vec<T>(g.mean_y);
            visit(group, offsets(g.form, dx, dy));
        }
    }

 private:
    int64_t num_bands_;
    std::vector<int64_t> order_;
    std::vector<T> x_, y_;           // in groups of sixteen; not a number beyond the last point
    std::vector<T> low_y_, high_y_;  // of the bands
    std::vector<T> low_x_, high_x_;  // of the groups
};

template <typename T>
const char* find_reached(const Scene<T>& scene, const Points<T>& points, int num_threads,
                         Reached<T>* reached) {
    FirstBad bad(scene.num);
    parallel_ranges(scene.num, 1024, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            Reached<T>& g = reached[n];
            g.mean_x = scene.means[2 * n], g.mean_y = scene.means[2 * n + 1];
            g.band_begin = g.band_end = 0;
            Extent<double> reach;
            if (!is_finite(scene, n)) {
                bad.add(n);
            } else if (find_ellipse(scene.shapes + 3 * n, scene.cutoff, g.form, reach)) {
                // means far away round by more than the slack of a reach
                g.reach_x = T(reach.reach_x) + slack(T(reach.reach_x)) + T(1e-6) * std::abs(g.mean_x);
                g.reach_y = T(reach.reach_y) + slack(T(reach.reach_y)) + T(1e-6) * std::abs(g.mean_y);
                points.find_bands(g);
            }
        }
    });
    return bad.message();
}

// The Gaussians of each band, by index: members[start[band] … start[band + 1]).
struct Members {
    std::vector<int64_t> start;
    std::vector<int32_t> members;
};

template <typename T>
Members members_of_bands(const Reached<T>* reached, int64_t num, int64_t num_bands) {
    Members found;
    found.start.assign(num_bands + 1, 0);
    for (int64_t n = 0; n < num; ++n)
        for (int32_t band = reached[n].band_begin; band < reached[n].band_end; ++band)
            ++found.start[band + 1];
    for (int64_t band = 0; band < num_bands; ++band) found.start[band + 1] += found.start[band];
    found.members.resize(found.start[num_bands]);
    std::vector<int64_t> at(found.start.begin(), found.start.end() - 1);
    for (int64_t n = 0; n < num; ++n)
        for (int32_t band = reached[n].band_begin; band < reached[n].band_end; ++band)
            found.members[at[band]++] = int32_t(n);
    return found;
}

// Keeps the `num` smallest exponents s of each lane, the largest of them last; where fewer were seen, the
// last is what it was at first, the cut-off. `count` is of the slots before it that are filled.
template <typename T>
INLINE void keep_smallest(T* slots, int num, int& count, const Vec<T>& s) {
    T* last = slots + (num - 1) * kLanes;
    const Vec<T> limit = load(last);
    if (!any_less(s, limit)) return;
    Vec<T> moved = smaller(s, limit);
    if (count < num - 1) return store(slots + count++ * kLanes, moved);
    for (T* slot = slots; slot != last; slot += kLanes) {
        const Vec<T> before = load(slot);
        store(slot, smaller(before, moved));
        moved = larger(before, moved);
    }
    store(last, moved);
}

// values [P, C]; of a mixture also limits [P] and totals [P], see rasterize_mixture_cpu.cpp.
template <typename T>
const char* forward(const Scene<T>& scene, const T* places, int64_t num_points, int num_terms, double epsilon,
                    T* values, T* limits, T* totals, int num_threads) {
    const Points<T> points(places, num_points, num_threads);
    const std::unique_ptr<Reached<T>[]> reached(new Reached<T>[scene.num]);
    if (const char* error = find_reached(scene, points, num_threads, reached.get())) return error;
    const Members listed = members_of_bands(reached.get(), scene.num, points.num_bands());
    const int64_t channels = scene.channels;
    parallel_for(points.num_bands(), num_threads, [&](int64_t band) {
        const int64_t first = points.group_begin(band), num_groups = points.group_begin(band + 1) - first;
        auto each = [&](auto&& visit) {
            for (int64_t i = listed.start[band]; i < listed.start[band + 1]; ++i) {
                const int64_t n = listed.members[i];
                points.each_group(reached[n], band, [&](int64_t group, const Offsets<T>& at) {
                    visit(n, group - first, at.s);
                });
            }
        };
        const int num_slots = std::max(1, num_terms);
        std::vector<T> slots(num_groups * num_slots * kLanes, T(scene.cutoff));
        std::vector<int> counts(num_groups);
        if (num_terms > 0)
            each([&](int64_t, int64_t group, const Vec<T>& s) {
                keep_smallest(slots.data() + group * num_slots * kLanes, num_slots, counts[group], s);
            });
        std::vector<T> drawn(num_groups * channels * kLanes), total(num_groups * kLanes, T(epsilon));
        each([&](int64_t n, int64_t group, const Vec<T>& s) {
            const Vec<T> w = weight(s, load(slots.data() + ((group + 1) * num_slots - 1) * kLanes));
            T* sum = total.data() + group * kLanes;
            store(sum, load(sum) + w);
            for (int64_t k = 0; k < channels; ++k) {
                T* at = drawn.data() + (group * channels + k) * kLanes;
                store(at, multiply_add<T>(scene.colors[n * channels + k], w, load(at)));
            }
        });
        for (int64_t i = 0; i < num_groups * kLanes; ++i) {
            const int64_t point = points.original(first * kLanes + i), group = i / kLanes, lane = i % kLanes;
            if (point < 0) continue;
            const T divisor = num_terms > 0 ? total[i] : T(1);
            for (int64_t k = 0; k < channels; ++k)
                values[point * channels + k] = drawn[(group * channels + k) * kLanes + lane] / divisor;
            limits[point] = slots[((group + 1) * num_slots - 1) * kLanes + lane];
            totals[point] = divisor;
        }
    });
    return nullptr;
}

template <typename T>
const char* backward(const Scene<T>& scene, const T* places, int64_t num_points, bool is_mixture,
                     const T* values, const T* limits, const T* totals, const T* grad_values,
                     T* grad_geometry, T* grad_colors, int num_threads) {
    const Points<T> points(places, num_points, num_threads);
    const std::unique_ptr<Reached<T>[]> reached(new Reached<T>[scene.num]);
    if (const char* error = find_reached(scene, points, num_threads, reached.get())) return error;
    const int64_t channels = scene.channels, num_lanes = points.num_groups() * kLanes;
    // by group: limits, what a mixture has in common, and the gradients of the channels
    std::vector<T> limit(num_lanes), common(num_lanes), gradient(num_lanes * channels);
    for (int64_t i = 0; i < num_lanes; ++i) {
        const int64_t point = points.original(i);
        if (point < 0) continue;
        limit[i] = limits[point];
        for (int64_t k = 0; k < channels; ++k) {
            const T share = grad_values[point * channels + k] / totals[point];
            gradient[(i / kLanes * channels + k) * kLanes + i % kLanes] = share;
            if (is_mixture) common[i] += share * values[point * channels + k];
        }
    }
    parallel_ranges(scene.num, 256, num_threads, [&](int64_t begin, int64_t end) {
        std::vector<Vec<T>> colors(channels);
        for (int64_t n = begin; n < end; ++n) {
            const T* color = scene.colors + n * channels;
            Vec<T> moments[5];
            for (auto& each : moments) each = T(0);
            for (auto& each : colors) each = T(0);
            for (int64_t band = reached[n].band_begin; band < reached[n].band_end; ++band)
                points.each_group(reached[n], band, [&](int64_t group, const Offsets<T>& at) {
                    // lanes without a point are not a number, and have no weight
                    const Vec<T> w = weight(at.s, load(limit.data() + group * kLanes));
                    Vec<T> q = Vec<T>(T(0)) - load(common.data() + group * kLanes);
                    for (int64_t k = 0; k < channels; ++k) {
                        const Vec<T> value = load(gradient.data() + (group * channels + k) * kLanes);
                        colors[k] = multiply_add(w, value, colors[k]);
                        q = multiply_add<T>(color[k], value, q);
                    }
                    const Vec<T> wq = w * q,
                                 u = keep_up_to(at.u, at.s, Vec<T>(std::numeric_limits<T>::max())),
                                 v = keep_up_to(at.v, at.s, Vec<T>(std::numeric_limits<T>::max()));
                    const Vec<T> wqu = wq * u, wqv = wq * v;
                    moments[0] += wqu;
                    moments[1] += wqv;
                    moments[2] = multiply_add(wqu, u, moments[2]);
                    moments[3] = multiply_add(wqu, v, moments[3]);
                    moments[4] = multiply_add(wqv, v, moments[4]);
                });
            T* geometry = grad_geometry + 5 * n;
            for (int i = 0; i < 5; ++i) geometry[i] = sum(moments[i]);
            for (int64_t k = 0; k < channels; ++k) grad_colors[n * channels + k] = sum(colors[k]);
            finish_geometry(scene.shapes + 3 * n, 1.0, kParameters, geometry);
            if (reached[n].band_begin >= reached[n].band_end) std::fill_n(geometry, 5, T(0));
        }
    });
    return nullptr;
}

}  // namespace
}  // namespace instantgi

using namespace instantgi;

#define SCENE_PARAMETERS                                                                     \
    int64_t is_double, int64_t num, int64_t channels, const void *means, const void *shapes, \
        const void *colors, double cutoff, int64_t num_points, const void *points, int64_t num_terms
#define SCENE(T) scene_of<T>(num, channels, 1, 1, means, shapes, colors, cutoff, nullptr)

// num_terms of 0 is the sum.
INSTANTGI_API const char* instantgi_rasterize_points(SCENE_PARAMETERS, double epsilon, void* values,
                                                     void* limits, void* totals, int64_t num_threads) {
    if (num_terms < 0 || num_terms > kMostTerms) return "the number of terms must be from 0 to 32";
    return dispatch(is_double, false, [&](auto real, auto) {
        using T = decltype(real);
        return forward(SCENE(T), static_cast<const T*>(points), num_points, int(num_terms), epsilon,
                       static_cast<T*>(values), static_cast<T*>(limits), static_cast<T*>(totals),
                       int(num_threads));
    });
}

INSTANTGI_API const char* instantgi_rasterize_points_backward(SCENE_PARAMETERS, const void* values,
                                                              const void* limits, const void* totals,
                                                              const void* grad_values, void* grad_geometry,
                                                              void* grad_colors, int64_t num_threads) {
    return dispatch(is_double, false, [&](auto real, auto) {
        using T = decltype(real);
        return backward(SCENE(T), static_cast<const T*>(points), num_points, num_terms > 0,
                        static_cast<const T*>(values), static_cast<const T*>(limits),
                        static_cast<const T*>(totals), static_cast<const T*>(grad_values),
                        static_cast<T*>(grad_geometry), static_cast<T*>(grad_colors), int(num_threads));
    });
}
