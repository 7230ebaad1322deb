// exp2 of csrc/functions.h, which the scan calls, on registers alone: what the scan's exps take at the least.
#include "../csrc/parallel.h"
#include "../csrc/functions.h"

// Adds up exp2(scale * x) over `repeats` blocks of `size` floats (a multiple of 8 * WIDTH) in each of `tasks` tasks.
extern "C" KERNEL int32_t exps(ParallelFor pool, const float* x, float* sums, int64_t tasks, int64_t size, int64_t repeats) {
    auto task = [=](int64_t i) {
        Vec total[8] = {};
        for (int64_t r = 0; r < repeats; r++) {
            const Vec scale = all(1.0f / (1.0f + r));
            for (int64_t at = 0; at < size; at += 8 * WIDTH)
                for (int k = 0; k < 8; k++) total[k] += exp2(scale * load(x + at + k * WIDTH));
        }
        for (int k = 1; k < 8; k++) total[0] += total[k];
        sums[i] = sum(total[0]);
    };
    return parallel(pool, tasks, task);
}
