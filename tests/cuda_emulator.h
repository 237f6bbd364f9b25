// Runs CUDA kernels on a CPU, so that what they compute is tested on machines without a GPU.
//
// A block's threads are fibers. They run one at a time, in an order that is drawn anew each time all
// have moved, until each waits at a barrier or an exchange between the lanes of its warp: a kernel
// that lacks a barrier is likely to compute something else. What it cannot show: speed, and faults in
// the order of memory that need two threads at the same instant.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#define __CUDACC__
#define __host__
#define __device__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)
#define __forceinline__ inline

namespace emulator {

struct Dim {
    unsigned x, y, z;
};

enum class Wait { kNothing, kWarp, kBlock, kDone };
constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 17;

struct Fiber {
    ucontext_t context;
    Wait wait;
    unsigned exchanges;  // so far: two in a row use different slots
    std::vector<char> stack;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline int current;
inline uint64_t slots[2][2048];
inline const char* error;
inline void (*body)(const uint64_t*);
inline const uint64_t* arguments;

}  // namespace emulator

inline emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline void wait_for(Wait what) {
    fibers[current].wait = what;
    const int mine = current;
    swapcontext(&fibers[mine].context, &scheduler);
}

inline void start() {
    body(arguments);
    fibers[current].wait = Wait::kDone;
    swapcontext(&fibers[current].context, &scheduler);
}

// Wakes the warps and the block whose threads have all arrived; whether any thread can run.
inline bool release() {
    const int num = int(fibers.size());
    bool all_at_block = true, any = false;
    for (int first = 0; first < num; first += kWarp) {
        const int last = std::min(first + kWarp, num);
        int at_warp = 0, done = 0;
        for (int i = first; i < last; ++i) {
            at_warp += fibers[i].wait == Wait::kWarp;
            done += fibers[i].wait == Wait::kDone;
            all_at_block = all_at_block && (fibers[i].wait == Wait::kBlock || fibers[i].wait == Wait::kDone);
        }
        if (at_warp && done) error = "an exchange in a warp of which some threads have returned";
        if (at_warp && last - first < kWarp) error = "an exchange in a warp that is not whole";
        if (at_warp == last - first)
            for (int i = first; i < last; ++i) fibers[i].wait = Wait::kNothing;
    }
    if (all_at_block)
        for (Fiber& fiber : fibers)
            if (fiber.wait == Wait::kBlock) fiber.wait = Wait::kNothing;
    for (const Fiber& fiber : fibers) any = any || fiber.wait == Wait::kNothing;
    return any && !error;
}

inline void run_block(std::mt19937& random) {
    const int num = int(fibers.size());
    std::vector<int> order(num);
    for (int i = 0; i < num; ++i) {
        order[i] = i;
        Fiber& fiber = fibers[i];
        fiber.wait = Wait::kNothing;
        fiber.exchanges = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
    }
    while (release()) {
        std::shuffle(order.begin(), order.end(), random);
        for (int i : order) {
            if (fibers[i].wait != Wait::kNothing) continue;
            current = i;
            threadIdx = {unsigned(i), 0, 0};
            swapcontext(&scheduler, &fibers[i].context);
        }
    }
    for (const Fiber& fiber : fibers)
        if (fiber.wait != Wait::kDone && !error) error = "threads wait for one another for ever";
}

// Bits of every argument, in eight bytes each.
template <typename... A, size_t... I>
void call(void (*kernel)(A...), const uint64_t* raw, std::index_sequence<I...>) {
    auto as = [raw](size_t i, auto* kind) {
        std::remove_pointer_t<decltype(kind)> value;
        static_assert(sizeof value == 8, "arguments of kernels are pointers, 64-bit integers and doubles");
        std::memcpy(&value, raw + i, 8);
        return value;
    };
    kernel(as(I, static_cast<A*>(nullptr))...);
}

template <auto Kernel, typename... A>
const char* launch_as(void (*)(A...), int64_t blocks, int64_t threads, const uint64_t* raw, int64_t count) {
    if (count != int64_t(sizeof...(A))) return "another number of arguments than the kernel has";
    error = nullptr;
    fibers.resize(size_t(threads));
    for (Fiber& fiber : fibers) fiber.stack.resize(kStack);
    arguments = raw;
    body = [](const uint64_t* bits) { call(Kernel, bits, std::index_sequence_for<A...>{}); };
    blockDim = {unsigned(threads), 1, 1}, gridDim = {unsigned(blocks), 1, 1};
    std::mt19937 random(1);
    for (int64_t block = 0; block < blocks && !error; ++block) {
        blockIdx = {unsigned(block), 0, 0};
        run_block(random);
    }
    return error;
}

template <auto Kernel>
const char* launch(int64_t blocks, int64_t threads, const uint64_t* raw, int64_t count) {
    return launch_as<Kernel>(Kernel, blocks, threads, raw, count);
}

// What `pick` takes out of the values of all lanes.
template <typename T, typename Pick>
auto exchange(T value, const Pick& pick) {
    uint64_t* all = slots[fibers[current].exchanges++ % 2] + current / kWarp * kWarp;
    all[current % kWarp] = 0;
    std::memcpy(all + current % kWarp, &value, sizeof value);
    wait_for(Wait::kWarp);
    return pick([all](int lane) {
        T other;
        std::memcpy(&other, all + lane, sizeof other);
        return other;
    });
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_for(emulator::Wait::kBlock); }
inline void __syncwarp(unsigned = 0) {
    emulator::exchange(0, [](auto) { return 0; });
}
inline unsigned __ballot_sync(unsigned, bool value) {
    return emulator::exchange(int(value), [](auto at) {
        unsigned bits = 0;
        for (int lane = 0; lane < emulator::kWarp; ++lane) bits |= unsigned(at(lane)) << lane;
        return bits;
    });
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulator::exchange(value, [lane](auto at) { return at(lane % emulator::kWarp); });
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    const int lane = emulator::current % emulator::kWarp;
    return emulator::exchange(value, [=](auto at) { return at(lane ^ mask); });
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int atomicMin(int* address, int value) {
    const int before = *address;
    *address = std::min(before, value);
    return before;
}
