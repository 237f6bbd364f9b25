#include "parallel.h"

namespace instantgi {
ParallelRegion parallel_region = nullptr;
}

INSTANTGI_API void instantgi_set_parallel_region(instantgi::ParallelRegion region) {
    instantgi::parallel_region = region;
}
