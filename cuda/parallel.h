// Runs a function on several threads.
//
// PyTorch already has a pool of OpenMP threads; a second pool would fight it for the cores, since
// idle OpenMP threads spin. So `native.py` hands over the `GOMP_parallel` of the runtime that torch
// loaded. Where there is none (macOS, Windows) plain std::thread does.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace instantgi {

// The signature of libgomp's GOMP_parallel: runs body(data) once on each of num_threads threads.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);
extern ParallelRegion parallel_region;  // null until native.py sets it

// Calls function(item) for item = 0 … num_items - 1, each once, on up to num_threads threads.
// Which thread takes which item is left open, so items must write to different places.
template <typename Function>
void parallel_for(int64_t num_items, int num_threads, const Function& function) {
    if (num_threads > num_items) num_threads = static_cast<int>(num_items);
    if (num_threads <= 1) {
        for (int64_t item = 0; item < num_items; ++item) function(item);
        return;
    }
    struct Loop {
        const Function& function;
        const int64_t num_items;
        std::atomic<int64_t> next{0};
        std::atomic<bool> failed{false};
        std::exception_ptr error{};
    } loop{function, num_items};
    // No exception may leave a thread: the first is kept and thrown again by the caller.
    auto body = [](void* data) {
        auto& loop = *static_cast<Loop*>(data);
        try {
            for (int64_t item; !loop.failed && (item = loop.next.fetch_add(1)) < loop.num_items;)
                loop.function(item);
        } catch (...) {
            if (!loop.failed.exchange(true)) loop.error = std::current_exception();
        }
    };
    if (parallel_region) {
        parallel_region(body, &loop, static_cast<unsigned>(num_threads), 0);
    } else {
        std::vector<std::thread> threads;
        threads.reserve(num_threads);
        try {
            for (int t = 1; t < num_threads; ++t) threads.emplace_back(body, &loop);
        } catch (const std::system_error&) {
            // the system gives no more threads: those that exist do all the work
        }
        body(&loop);
        for (auto& thread : threads) thread.join();
    }
    if (loop.error) std::rethrow_exception(loop.error);
}

// Splits [0, count) into ranges of at most `grain` and calls function(begin, end) for each.
template <typename Function>
void parallel_ranges(int64_t count, int64_t grain, int num_threads, const Function& function) {
    parallel_for((count + grain - 1) / grain, num_threads, [&](int64_t chunk) {
        const int64_t begin = chunk * grain;
        function(begin, begin + grain < count ? begin + grain : count);
    });
}

}  // namespace instantgi

#if defined(_WIN32)
#define INSTANTGI_API extern "C" __declspec(dllexport)
#else
#define INSTANTGI_API extern "C" __attribute__((visibility("default")))
#endif
