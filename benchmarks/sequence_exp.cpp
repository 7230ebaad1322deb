// exp2_bounded of csrc/functions.h, on as many registers at once as the scan gives it: what the scan's exps take at the least.
#include "../csrc/parallel.h"
#include "../csrc/functions.h"

constexpr int TOGETHER = WIDTH == 16 ? 4 : 2;  // of csrc/scan.cpp

// Adds up exp2(scale * x) over `repeats` blocks of `size` floats (a multiple of 8 * WIDTH) in each of `tasks` tasks.
extern "C" KERNEL int32_t exps(ParallelFor pool, const float* x, float* sums, int64_t tasks, int64_t size, int64_t repeats) {
    auto task = [=](int64_t i) {
        Vec total[8] = {};
        for (int64_t r = 0; r < repeats; r++) {
            const Vec scale = all(1.0f / (1.0f + r));
            for (int64_t at = 0; at < size; at += 8 * WIDTH)
                unrolled<8 / TOGETHER>([&](auto group) INLINE {
                    constexpr int FIRST = group * TOGETHER;
                    Vec now[TOGETHER], rate[TOGETHER];
                    unrolled<TOGETHER>([&](auto k) INLINE { now[k] = load(x + at + (FIRST + k) * WIDTH), rate[k] = scale; });
                    exp2_bounded(now, rate);
                    unrolled<TOGETHER>([&](auto k) INLINE { total[FIRST + k] += now[k]; });
                });
        }
        for (int k = 1; k < 8; k++) total[0] += total[k];
        sums[i] = sum(total[0]);
    };
    return parallel(pool, tasks, task);
}
