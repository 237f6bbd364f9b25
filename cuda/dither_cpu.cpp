// Floyd–Steinberg dithering on one thread, exactly as if cell by cell in reading order.
//
// A row is one long chain of dependent additions, so several rows advance together: row r + 1 runs
// two cells behind row r, when all three errors from above are known. The chains overlap in the
// pipeline of one core. Errors of the rows in flight and of the row above them are kept in a small
// buffer with one zero on either side.
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "dither.h"
#include "parallel.h"

namespace {
using namespace instantgi;

constexpr int64_t kRows = 4;  // from here on the pipeline is full: more rows gain nothing
constexpr int64_t kLag = 2;   // a row stays this many cells behind the row above it

class Ditherer {
 public:
    Ditherer(const float* cells, uint8_t* points, int64_t height, int64_t width)
        : cells(cells),
          points(points),
          height(height),
          width(width),
          stride(width + 2),
          errors((kRows + 1) * stride, 0.0f) {}

    void run() {
        for (int64_t row = 0; row < height; row += kRows) {
            const bool inside = row + kRows < height;  // the last row has weights of its own
            const int64_t first = kLag * kRows, last = width - 2;
            if (inside && first < last) {
                steps(row, 0, first);
                inner_steps(row, first, last);
                steps(row, last, width + kLag * kRows);
            } else {
                steps(row, 0, width + kLag * kRows);
            }
            std::copy_n(error_row(kRows - 1), stride - 1, error_row(-1));
        }
    }

 private:
    // Errors of a row in flight; -1 is the row above them. Index -1 and width are readable zeros.
    float* error_row(int64_t lane) { return errors.data() + (lane + 1) * stride + 1; }

    // Any cell of the map, borders included.
    void visit(int64_t top, int64_t lane, int64_t column) {
        const int64_t row = top + lane;
        const float* above = error_row(lane - 1) + column;
        const float value =
            dither_value(cells[row * width + column],
                         above[-1] * dither_weights(row - 1, column - 1, height, width).down_right,
                         above[0] * dither_weights(row - 1, column, height, width).down,
                         above[1] * dither_weights(row - 1, column + 1, height, width).down_left,
                         error_row(lane)[column - 1] * dither_weights(row, column - 1, height, width).right);
        const bool point = dither_is_point(value);
        points[row * width + column] = point;
        error_row(lane)[column] = point ? value - 1.0f : value;
    }

    // Steps [begin, end) of the wavefront: step s visits column s - kLag * lane of each row.
    void steps(int64_t top, int64_t begin, int64_t end) {
        const int64_t lanes = std::min(kRows, height - top);
        for (int64_t step = begin; step < end; ++step) {
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int64_t column = step - kLag * lane;
                if (column >= 0 && column < width) visit(top, lane, column);
            }
        }
    }

    // The same where no cell of a step and none that sends to it lies on the border of the map.
    void inner_steps(int64_t top, int64_t begin, int64_t end) {
        const DitherWeights weights = dither_weights(0, 1, 3, 3);
        float left[kRows];
        for (int64_t lane = 0; lane < kRows; ++lane) {
            left[lane] = error_row(lane)[begin - kLag * lane - 1];
        }
        for (int64_t step = begin; step < end; ++step) {
#pragma GCC unroll 8
            for (int64_t lane = 0; lane < kRows; ++lane) {
                const int64_t column = step - kLag * lane;
                const float* above = error_row(lane - 1) + column;
                const float value = dither_value(cells[(top + lane) * width + column],
                                                 above[-1] * weights.down_right, above[0] * weights.down,
                                                 above[1] * weights.down_left, left[lane] * weights.right);
                const bool point = dither_is_point(value);
                points[(top + lane) * width + column] = point;
                left[lane] = value - (point ? 1.0f : 0.0f);
                error_row(lane)[column] = left[lane];
            }
        }
    }

    const float* cells;
    uint8_t* points;
    const int64_t height, width, stride;
    std::vector<float> errors;  // [kRows + 1, width + 2]
};

}  // namespace

// cells [height, width] float32 → points [height, width], 0 or 1.
INSTANTGI_API const char* instantgi_dither_map(const float* cells, uint8_t* points, int64_t height,
                                               int64_t width, int64_t /*num_threads*/) {
    try {
        Ditherer(cells, points, height, width).run();
    } catch (const std::bad_alloc&) {
        return "out of memory";
    }
    return nullptr;
}
