// The sum or the mixture of all Gaussians at any points, and its gradient, on a GPU; see
// instantgi/render/points.py, and rasterize_cuda.h for who owns what.
//
// Points come in an order in which 32 that follow one another, a cell, are near one another; 64 cells
// make a group, and both have boxes. Forward: the region of a block is eight cells, a warp's part is a
// cell, a thread's place a point. Backward: a warp gathers over the cells that its Gaussian's box
// touches, from groups down.
#include "rasterize_cuda.h"

namespace instantgi {
namespace {

constexpr int kLargeGroups = 16;  // from which all warps share a Gaussian

struct Points {
    Index num;
    const Real* places;  // [num, 2], in cells
    const Index* order;  // [num], to original index
    const Box* cells;    // [num / kWarp, up]
    const Box* groups;   // [cells / kGroup, up]
    __device__ Index num_cells() const { return (num + kWarp - 1) / kWarp; }
    __device__ Index num_groups() const { return (num_cells() + kGroup - 1) / kGroup; }
};

// Around the ellipse, with slack: means far away round by more than that of a reach.
__device__ Box box_of(const Splat& g) {
    if (g.reach_x < 0) return nothing();
    const Real grown_x = g.reach_x + slack(g.reach_x) + Real(1e-6) * Real(fabs(g.mean_x));
    const Real grown_y = g.reach_y + slack(g.reach_y) + Real(1e-6) * Real(fabs(g.mean_y));
    return {edge(g.mean_x - grown_x), edge(g.mean_y - grown_y), edge(g.mean_x + grown_x),
            edge(g.mean_y + grown_y)};
}

// This thread's point, as it is sorted; it may be beyond the last.
__device__ Index own_point() { return Index(blockIdx.x) * kThreads + threadIdx.x; }

// Calls visit(Entry<C>, Offsets) for the Gaussians that may reach this thread's point; see visit_region.
template <int C, typename Visit>
__device__ void visit_cells(const Scene& scene, const Points& points, Index first, const Visit& visit) {
    const Index point = own_point(), first_cell = Index(blockIdx.x) * kWarps;
    const int num_cells = int(least(kWarps, points.num_cells() - first_cell));
    const Real x = point < points.num ? points.places[2 * point] : Real(0);
    const Real y = point < points.num ? points.places[2 * point + 1] : Real(0);
    Box region = nothing();
    for (int cell = 0; cell < num_cells; ++cell) region = around(region, points.cells[first_cell + cell]);
    auto touched = [&](Index i) {
        const Box box = box_of(scene.splats[i]);
        unsigned mask = 0;
        for (int cell = 0; cell < num_cells; ++cell)
            if (touch(box, points.cells[first_cell + cell])) mask |= 1u << cell;
        return mask;
    };
    visit_region<C, 1>(scene, first, region, touched,
                       [&](int, const Entry<C>& e) { visit(e, offsets(e, x - e.mean_x, y - e.mean_y)); });
}

// limits, in the original order: the exponents at which the terms end.
template <int Slots>
__device__ void find_limits(const Scene& scene, const Points& points, int num_terms, Real cutoff,
                            Real* limits) {
    Real slots[Slots];
    start_slots(slots, num_terms, cutoff);
    visit_cells<0>(scene, points, 0, [&](const Entry<0>&, const Offsets& at) { keep_smallest(slots, at.s); });
    if (own_point() < points.num) limits[points.order[own_point()]] = slots[Slots - 1];
}

// values [P, C], and of a mixture totals, the sums of the weights plus epsilon.
template <int C>
__device__ void draw_points(const Scene& scene, const Points& points, Index first, bool is_mixture,
                            Real epsilon, const Real* limits, Real* values, Real* totals) {
    const bool is_there = own_point() < points.num;
    const Index original = is_there ? points.order[own_point()] : 0;
    const Real limit = is_there ? limits[original] : Real(-1);
    Real total = epsilon, sums[C] = {};
    visit_cells<C>(scene, points, first, [&](const Entry<C>& e, const Offsets& at) {
        const Real w = weight(at.s, limit);
        total += w;
        for (int k = 0; k < C; ++k) sums[k] += e.color[k] * w;
    });
    if (!is_there) return;
    if (!is_mixture) total = 1;
    if (first == 0) totals[original] = total;
    for (int k = 0; k < C; ++k) values[original * scene.channels + first + k] = sums[k] / total;
}

// The gradient of the values, over the totals, in cells; limits; and of a mixture, what is common.
struct PointGradient {
    const Real *shares, *limits, *common;  // [P, C], [P], [P] or null
};

// Calls visit(group) for the groups begin, begin + step, … that the box touches.
template <typename Visit>
__device__ void each_group(const Points& points, const Box& box, int begin, int end, int step,
                           const Visit& visit) {
    for (int base = begin; base < end; base += step * kWarp) {
        const int own = base + lane_of() * step;
        unsigned near = __ballot_sync(kAll, own < end && touch(box, points.groups[own]));
        for (; near; near &= near - 1) visit(base + (__ffs(near) - 1) * step);
    }
}

__device__ Rows find_groups(const Points& points, const Splat& g) {
    if (g.reach_x < 0) return {0, 0, false};
    const int num = int(points.num_groups());
    int count = 0;
    each_group(points, box_of(g), 0, num, 1, [&](int) { ++count; });
    return {0, num, count >= kLargeGroups};
}

// Adds the moments over the points of groups begin, begin + step, …
template <int C>
__device__ void gather_points(const Scene& scene, const Points& points, Index i, const Splat& g,
                              const PointGradient& gradient, Index first, int begin, int end, int step,
                              Real (&sums)[5 + C]) {
    const Index n = scene.original(i), num_cells = points.num_cells();
    Real color[C];
    for (int k = 0; k < C; ++k) color[k] = scene.colors[n * scene.channels + first + k];
    const Box box = box_of(g);
    const int lane = lane_of();
    each_group(points, box, begin, end, step, [&](int group) {
        for (int half = 0; half < kGroup; half += kWarp) {
            const Index first_cell = Index(group) * kGroup + half, own = first_cell + lane;
            unsigned near = __ballot_sync(kAll, own < num_cells && touch(box, points.cells[own]));
            for (; near; near &= near - 1) {
                const Index point = (first_cell + __ffs(near) - 1) * kWarp + lane;
                if (point >= points.num) continue;
                const Offsets at =
                    offsets(g, points.places[2 * point] - g.mean_x, points.places[2 * point + 1] - g.mean_y);
                const Real limit = gradient.limits[point];
                if (!(at.s <= limit)) continue;
                const Real q = gradient.common && first == 0 ? -gradient.common[point] : Real(0);
                add_moments<C, true>(color, at, weight(at.s, limit), q,
                                     gradient.shares + point * scene.channels + first, 1, sums);
            }
        }
    });
}

template <int C>
__device__ void backward_of_points(const Scene& scene, const Points& points, Index first,
                                   const Real* cholesky, const PointGradient& gradient, Real* grad_geometry,
                                   Real* grad_colors) {
    backward<C, true>(
        scene, first, cholesky, 1.0, kParameters, grad_geometry, grad_colors,
        [&](const Splat& g) { return find_groups(points, g); },
        [&](Index i, const Splat& g, int begin, int end, int step, Real(&sums)[5 + C]) {
            gather_points<C>(scene, points, i, g, gradient, first, begin, end, step, sums);
        });
}

}  // namespace
}  // namespace instantgi

using namespace instantgi;

// A warp owns a cell: the box around its points.
extern "C" __global__ void cell_boxes(Index num, const Real* places, Box* cells) {
    const Index point = own_point();
    Box box = nothing();
    if (point < num) {
        const float x = edge(places[2 * point]), y = edge(places[2 * point + 1]);
        box = {x, y, x, y};
    }
    box = around_lanes(box);
    if (lane_of() == 0 && point < num) cells[point / kWarp] = box;
}

#define POINT_PARAMETERS                                                                                \
    SCENE_PARAMETERS, Index num_points, const Real *places, const Index *point_order, const Box *cells, \
        const Box *cell_groups
#define POINTS {num_points, places, point_order, cells, cell_groups}

// A block for each 256 points, kernels by the most terms at a point.
#define FIND_LIMITS(SLOTS)                                                                    \
    extern "C" __global__ void __launch_bounds__(kThreads)                                    \
        find_limits_##SLOTS(POINT_PARAMETERS, Index num_terms, double cutoff, Real* limits) { \
        find_limits<SLOTS>(SCENE, POINTS, int(num_terms), Real(cutoff), limits);              \
    }

FIND_LIMITS(4)
FIND_LIMITS(10)
FIND_LIMITS(16)
FIND_LIMITS(32)

// A block for each 256 points or 64 Gaussians; kernels by the number of channels from `first` on.
#define DRAW(C)                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads)                                             \
        draw_points_##C(POINT_PARAMETERS, Index is_mixture, double epsilon, const Real* limits,        \
                        Real* values, Real* totals) {                                                  \
        draw_points<C>(SCENE, POINTS, first, is_mixture != 0, Real(epsilon), limits, values, totals);  \
    }                                                                                                  \
    extern "C" __global__ void __launch_bounds__(kThreads)                                             \
        backward_##C(POINT_PARAMETERS, const Real* cholesky, const Real* shares, const Real* limits,   \
                     const Real* common, Real* grad_geometry, Real* grad_colors) {                     \
        backward_of_points<C>(SCENE, POINTS, first, cholesky, {shares, limits, common}, grad_geometry, \
                              grad_colors);                                                            \
    }

DRAW(1)
DRAW(2)
DRAW(3)
DRAW(4)
