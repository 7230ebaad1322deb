// Threads come from the caller's pool: libtorch's `torch_parallel_for`, passed in as a function pointer.
#pragma once
#include <cstdint>

#define KERNEL __attribute__((visibility("default")))

typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// Runs tasks 0 ... tasks - 1; 0, or something else when one of them ran out of memory.
template <class F>
static inline int32_t parallel(ParallelFor pool, int64_t tasks, F& task) {
    auto body = [](int64_t begin, int64_t end, void* context) {
        for (int64_t i = begin; i < end; i++) (*static_cast<F*>(context))(i);
    };
    if (pool && tasks > 1) return pool(0, tasks, 1, body, &task);
    try {
        body(0, tasks, &task);
    } catch (...) {
        return 1;
    }
    return 0;
}
