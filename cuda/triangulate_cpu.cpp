// Delaunay triangulation of distinct integer points, exact and the same for any number of threads.
//
// Divide and conquer (Guibas and Stolfi, 1985, section 9; Dwyer's alternating cuts). Points are
// sorted along a Z-curve, whose ranges are separated by vertical or horizontal lines; each range is
// triangulated on its own and two halves are sewn together from one common tangent to the other.
// Ranges of about kGrain points are independent: a thread owns one, with its part of all arrays.
//
// All signs are of integers. Points on a common circle are told apart by lowering each point on
// the paraboloid z = x² + y² by an infinitesimal, more if it is earlier in reading order (y, x):
// this makes the triangulation unique, so it depends on the set of points and on nothing else.
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "parallel.h"

namespace {

constexpr int64_t kGrain = 4096;  // points; small enough for the second-level cache
constexpr int kNone = -1;

struct Point {
    int32_t x, y;  // at most 2**21 in absolute value
};

bool operator==(Point a, Point b) { return a.x == b.x && a.y == b.y; }
bool reads_before(Point a, Point b) { return a.y < b.y || (a.y == b.y && a.x < b.x); }

// Twice the signed area of a, b, c: positive if c is left of a → b for y up. Below 2**47.
int64_t orient(Point a, Point b, Point c) {
    return int64_t(b.x - a.x) * (c.y - a.y) - int64_t(b.y - a.y) * (c.x - a.x);
}

// Whether d is inside the circle through a, b, c (positively oriented); on it, the lowered point
// decides: d itself, or another one, whose lowering tilts the plane over a, b, c.
bool in_circle(Point a, Point b, Point c, Point d) {
    const int64_t ax = a.x - d.x, ay = a.y - d.y;
    const int64_t bx = b.x - d.x, by = b.y - d.y;
    const int64_t cx = c.x - d.x, cy = c.y - d.y;
    // lifts and minors below 2**46, their products need 128 bits
    __extension__ typedef __int128 Wide;
    const Wide determinant = Wide(ax * ax + ay * ay) * (bx * cy - by * cx) +
                             Wide(bx * bx + by * by) * (cx * ay - cy * ax) +
                             Wide(cx * cx + cy * cy) * (ax * by - ay * bx);
    if (determinant != 0) return determinant > 0;
    const Point ab = reads_before(a, b) ? a : b, cd = reads_before(c, d) ? c : d;
    const Point lowest = reads_before(ab, cd) ? ab : cd;
    if (lowest == a) return orient(b, c, d) < 0;
    if (lowest == b) return orient(c, a, d) < 0;
    if (lowest == c) return orient(a, b, d) < 0;
    return true;
}

// One direction of an edge; the other is at index ^ 1. `ccw` and `cw` are the next edges around the
// same origin, with the angle growing and falling; `face` is the triangle on the left, once known.
struct Edge {
    int origin, ccw, cw, face;
};

constexpr Edge kUnused{kNone, kNone, kNone, kNone};

// Unused edges: those given back, linked by `ccw`, and a range that was never used.
struct Pool {
    int free = kNone, last_free = kNone;
    int next = 0, end = 0;
};

// The extreme points of a triangulated range, in x and in y.
struct Part {
    int low[2], high[2];
};

class Triangulation {
 public:
    // Distinct points along the Z-curve, and their places on it.
    Triangulation(const std::vector<Point>& points, const std::vector<uint64_t>& keys)
        : points(points), keys(keys), edges(new Edge[6 * points.size()]), hull(points.size(), kNone) {}

    // Returns an edge whose left side is the outside, or kNone for fewer than two points.
    int run(int num_threads) {
        const int64_t count = static_cast<int64_t>(points.size());
        if (count < 2) return kNone;
        cut(0, count);
        instantgi::parallel_for(ranges.size(), num_threads, [&](int64_t i) {
            Range& range = ranges[i];
            std::fill(edges.get() + 6 * range.begin, edges.get() + 6 * range.end, kUnused);
            range.pool.next = static_cast<int>(6 * range.begin);
            range.pool.end = static_cast<int>(6 * range.end);
            range.part = solve(range.begin, range.end, range.pool);
        });
        const Range* first = ranges.data();
        Pool pool;
        return hull[join(0, count, first, pool).low[0]] ^ 1;
    }

    Edge* all_edges() const { return edges.get(); }

 private:
    int origin(int edge) const { return edges[edge].origin; }
    int target(int edge) const { return edges[edge ^ 1].origin; }

    struct Range {
        int64_t begin, end;
        Pool pool;
        Part part;
    };

    // Where the upper half of a range starts: the highest bit that differs is set from there on.
    int64_t middle(int64_t begin, int64_t end, int* axis) const {
        const int bit = 63 - __builtin_clzll(keys[begin] ^ keys[end - 1]);
        *axis = bit & 1;
        const uint64_t first = keys[end - 1] >> bit << bit;
        return std::lower_bound(keys.begin() + begin, keys.begin() + end, first) - keys.begin();
    }

    void cut(int64_t begin, int64_t end) {
        if (end - begin <= kGrain) {
            ranges.push_back({begin, end, {}, {}});
            return;
        }
        int axis;
        const int64_t half = middle(begin, end, &axis);
        cut(begin, half);
        cut(half, end);
    }

    Part solve(int64_t begin, int64_t end, Pool& pool) {
        const int point = static_cast<int>(begin);
        if (end - begin == 1) return {{point, point}, {point, point}};
        int axis;
        const int64_t half = middle(begin, end, &axis);
        const Part low = solve(begin, half, pool), high = solve(half, end, pool);
        return sew(low, high, axis, pool);
    }

    // As `solve`, down to the ranges of `cut`, of which `next` is the first not yet joined.
    Part join(int64_t begin, int64_t end, const Range*& next, Pool& pool) {
        if (end - begin <= kGrain) {
            pool = next->pool;
            return (next++)->part;
        }
        int axis;
        const int64_t half = middle(begin, end, &axis);
        Pool other;
        const Part low = join(begin, half, next, other), high = join(half, end, next, pool);
        absorb(pool, other);
        return sew(low, high, axis, pool);
    }

    // Joins the triangulations on the low and high side of an axis-parallel line.
    Part sew(const Part& low, const Part& high, int axis, Pool& pool) {
        const int first = lower_tangent(low.high[axis], high.low[axis], pool);
        int base = first;
        for (int next; (next = next_base(base, pool)) != kNone;) base = next;
        hull[origin(first)] = first;
        hull[target(base)] = base ^ 1;
        Part both = low;
        const Point *a = points.data(), *b = a;
        if (b[high.low[0]].x < a[low.low[0]].x) both.low[0] = high.low[0];
        if (b[high.low[1]].y < a[low.low[1]].y) both.low[1] = high.low[1];
        if (b[high.high[0]].x >= a[low.high[0]].x) both.high[0] = high.high[0];
        if (b[high.high[1]].y >= a[low.high[1]].y) both.high[1] = high.high[1];
        return both;
    }

    // Connects l and r by the edge l → r after moving them, clockwise and counterclockwise around
    // their hulls, until no point is on its right.
    int lower_tangent(int l, int r, Pool& pool) {
        int l_edge = hull[l], r_edge = hull[r];  // to the next point of the hull
        for (;;) {
            if (l_edge != kNone) {
                const int back = edges[l_edge].cw;
                if (orient(points[l], points[r], points[target(back)]) < 0) {
                    l_edge = back ^ 1;
                    l = origin(l_edge);
                    continue;
                }
            }
            if (r_edge != kNone && orient(points[l], points[r], points[target(r_edge)]) < 0) {
                r_edge = edges[r_edge ^ 1].ccw;
                r = origin(r_edge);
                continue;
            }
            return connect(l, l_edge, r, r_edge, pool);
        }
    }

    // Closes the triangle above the edge l → r, whose third corner is the one with an empty circle,
    // and returns its new side across the gap; kNone if nothing is above: the upper tangent.
    int next_base(int base, Pool& pool) {
        const int l = origin(base), r = target(base);
        const Point pl = points[l], pr = points[r];
        int left = edges[base].ccw, right = edges[base ^ 1].cw;
        Point above_left = points[target(left)], above_right = points[target(right)];
        const bool has_left = orient(pl, pr, above_left) > 0;
        const bool has_right = orient(pl, pr, above_right) > 0;
        while (has_left) {
            const int next = edges[left].ccw;
            const Point candidate = points[target(next)];
            if (!in_circle(pl, pr, above_left, candidate)) break;
            remove(left, pool);
            left = next;
            above_left = candidate;
        }
        while (has_right) {
            const int next = edges[right].cw;
            const Point candidate = points[target(next)];
            if (!in_circle(pl, pr, above_right, candidate)) break;
            remove(right, pool);
            right = next;
            above_right = candidate;
        }
        if (!has_left && !has_right) return kNone;
        if (!has_left || (has_right && in_circle(pl, pr, above_left, above_right))) {
            return connect(l, edges[base].ccw, target(right), right ^ 1, pool);
        }
        return connect(target(left), edges[left ^ 1].ccw, r, base ^ 1, pool);
    }

    // A new edge a → b that comes just before a_ccw around a and before b_ccw around b (kNone: the
    // point has no edge yet).
    int connect(int a, int a_ccw, int b, int b_ccw, Pool& pool) {
        int edge = pool.free;
        if (edge != kNone) {
            pool.free = edges[edge].ccw;
        } else {
            edge = pool.next;
            pool.next += 2;
        }
        insert(edge, a, a_ccw);
        insert(edge ^ 1, b, b_ccw);
        return edge;
    }

    void insert(int edge, int point, int ccw) {
        if (ccw == kNone) {
            edges[edge] = {point, edge, edge, kNone};
            return;
        }
        const int cw = edges[ccw].cw;
        edges[edge] = {point, ccw, cw, kNone};
        edges[cw].ccw = edge;
        edges[ccw].cw = edge;
    }

    void remove(int edge, Pool& pool) {
        for (const int side : {edge, edge ^ 1}) {
            const Edge old = edges[side];
            edges[old.cw].ccw = old.ccw;
            edges[old.ccw].cw = old.cw;
        }
        edges[edge].origin = edges[edge ^ 1].origin = kNone;
        give_back(edge & ~1, pool);
    }

    void give_back(int edge, Pool& pool) {
        if (pool.free == kNone) pool.last_free = edge;
        edges[edge].ccw = pool.free;
        pool.free = edge;
    }

    void absorb(Pool& pool, Pool& other) {
        for (; other.next < other.end; other.next += 2) give_back(other.next, other);
        if (other.free == kNone) return;
        edges[other.last_free].ccw = pool.free;
        if (pool.free == kNone) pool.last_free = other.last_free;
        pool.free = other.free;
    }

    const std::vector<Point>& points;
    const std::vector<uint64_t>& keys;
    std::unique_ptr<Edge[]> edges;  // at most 3 per point, in two directions
    std::vector<int> hull;          // of an extreme point of a part: the edge to the next on the hull
    std::vector<Range> ranges;
};

// A point's place on the Z-curve: bits of x and y in turns, x lowest.
uint64_t z_key(uint64_t x, uint64_t y) {
    const auto spread = [](uint64_t v) {
        v = (v | v << 16) & 0x0000FFFF0000FFFFull;
        v = (v | v << 8) & 0x00FF00FF00FF00FFull;
        v = (v | v << 4) & 0x0F0F0F0F0F0F0F0Full;
        v = (v | v << 2) & 0x3333333333333333ull;
        return (v | v << 1) & 0x5555555555555555ull;
    };
    return spread(x) | spread(y) << 1;
}

struct Keyed {
    uint64_t key;
    int64_t index;
};

// Sorts by key, keeping the order of equal ones, 11 bits at a time.
void radix_sort(std::vector<Keyed>& items) {
    uint64_t all = 0;
    for (const Keyed& item : items) all |= item.key;
    std::vector<Keyed> sorted(items.size());
    for (int shift = 0; shift < 64 && all >> shift; shift += 11) {
        std::array<int64_t, 2049> starts{};
        for (const Keyed& item : items) ++starts[(item.key >> shift & 2047) + 1];
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        for (const Keyed& item : items) sorted[starts[item.key >> shift & 2047]++] = item;
        items.swap(sorted);
    }
}

std::vector<Keyed> along_z_curve(const Point* points, int64_t count) {
    Point low{INT32_MAX, INT32_MAX};
    for (int64_t i = 0; i < count; ++i) {
        low = {std::min(low.x, points[i].x), std::min(low.y, points[i].y)};
    }
    std::vector<Keyed> items(count);
    for (int64_t i = 0; i < count; ++i) {
        items[i] = {z_key(points[i].x - low.x, points[i].y - low.y), i};
    }
    radix_sort(items);
    return items;
}

// Writes the triangles in order of their first and then second corner; the first is the smallest.
// Loops run over edges or triangles and not around points: their steps are independent, so the
// processor overlaps the waits for memory.
class Output {
 public:
    Output(Edge* edges, const std::vector<Keyed>& order, int num_threads)
        : edges(edges), order(order), num_threads(num_threads), starts(order.size() + 1, 0) {}

    int64_t write(int outside, int64_t* triangles, int64_t* neighbors) {
        if (outside == kNone) return 0;
        int edge = outside;
        do {
            edges[edge].face = kOutside;
            edge = along_face(edge);
        } while (edge != outside);
        number_by_index();
        find_triangles();
        for_triangles([&](int64_t t) { write_corners(t, triangles + 3 * t); });
        for_triangles([&](int64_t t) { write_neighbors(t, neighbors + 3 * t); });
        return static_cast<int64_t>(first_edges.size());
    }

 private:
    static constexpr int kOutside = -2;

    int along_face(int edge) const { return edges[edge ^ 1].cw; }

    // All triangles along the Z-curve, so that their edges lie close in memory.
    template <typename Function>
    void for_triangles(const Function& function) const {
        const int64_t count = static_cast<int64_t>(order.size());
        instantgi::parallel_ranges(count, kGrain, num_threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t point = order[i].index;
                for (int64_t t = starts[point]; t < starts[point + 1]; ++t) function(t);
            }
        });
    }

    // Replaces places on the curve by the points' own indices.
    void number_by_index() {
        for (size_t edge = 0; edge < 6 * order.size(); ++edge) {
            int& origin = edges[edge].origin;
            if (origin != kNone) origin = static_cast<int>(order[origin].index);
        }
    }

    // Whether this edge goes from the first to the second corner of a triangle.
    bool is_first(int edge) const {
        const int second = along_face(edge);
        const int a = edges[edge].origin, b = edges[second].origin;
        const int c = edges[along_face(second)].origin;
        // & and not &&: which corner comes first is a coin toss, for a branch
        return (a < b) & (a < c) & (edges[edge].face != kOutside);
    }

    // Fills first_edges, sorted by first corner (counted) and then by second (few, compared).
    void find_triangles() {
        std::vector<int> found(2 * order.size());
        size_t count = 0;
        for (int edge = 0; edge < static_cast<int>(6 * order.size()); ++edge) {
            if (edges[edge].origin == kNone) continue;
            const bool first = is_first(edge);
            found[count] = edge;  // overwritten unless it counts: cheaper than a branch
            count += first;
            starts[edges[edge].origin] += first;
        }
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        first_edges.resize(count);
        for (size_t i = 0; i < count; ++i) first_edges[--starts[edges[found[i]].origin]] = found[i];
        const auto by_second = [&](int a, int b) { return edges[a ^ 1].origin < edges[b ^ 1].origin; };
        for (const Keyed& point : order) {
            const auto first = first_edges.begin();
            std::sort(first + starts[point.index], first + starts[point.index + 1], by_second);
        }
    }

    void write_corners(int64_t t, int64_t* corners) {
        int side = first_edges[t];
        for (int q = 0; q < 3; ++q) {
            corners[q] = edges[side].origin;
            edges[side].face = static_cast<int>(t);
            side = along_face(side);
        }
    }

    void write_neighbors(int64_t t, int64_t* across) const {
        int side = along_face(first_edges[t]);  // opposite the first corner
        for (int q = 0; q < 3; ++q) {
            const int face = edges[side ^ 1].face;
            across[q] = face == kOutside ? t : face;
            side = along_face(side);
        }
    }

    Edge* edges;
    const std::vector<Keyed>& order;
    const int num_threads;
    std::vector<int> starts;       // of a point: the first triangle it is the first corner of
    std::vector<int> first_edges;  // of a triangle: the edge from its first to its second corner
};

}  // namespace

// points [num_points, 2], distinct lattice points of at most 2**21 in absolute value →
// triangles, neighbors [at most 2 num_points, 3]; info: the number of triangles, or -1 and the
// indices of two points that are equal.
INSTANTGI_API const char* instantgi_triangulate(const int32_t* points, int64_t* triangles, int64_t* neighbors,
                                                int64_t* info, int64_t num_points, int64_t num_threads) {
    try {
        const auto* lattice = reinterpret_cast<const Point*>(points);
        if (num_points > INT32_MAX / 6) return "more points than 32-bit edge numbers allow";
        const std::vector<Keyed> order = along_z_curve(lattice, num_points);
        std::vector<Point> sorted(num_points);
        std::vector<uint64_t> keys(num_points);
        for (int64_t i = 0; i < num_points; ++i) {
            sorted[i] = lattice[order[i].index];
            keys[i] = order[i].key;
            if (i > 0 && keys[i] == keys[i - 1]) {
                info[0] = -1, info[1] = order[i - 1].index, info[2] = order[i].index;
                return nullptr;
            }
        }
        Triangulation triangulation(sorted, keys);
        const int outside = triangulation.run(static_cast<int>(num_threads));
        Output output(triangulation.all_edges(), order, static_cast<int>(num_threads));
        info[0] = output.write(outside, triangles, neighbors);
    } catch (const std::bad_alloc&) {
        return "out of memory";
    }
    return nullptr;
}
