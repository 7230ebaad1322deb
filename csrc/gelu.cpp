// GELU by its tanh form, and its gradient (formulas: postformer/ops/gelu.py). x, y, dy and dx are n numbers each, floats or (`half`) bf16.
#include <algorithm>

#include "blocks.h"
#include "parallel.h"

namespace {

constexpr int64_t SHARE = 1 << 13;  // numbers of a task, whole blocks
constexpr float ROOT = 1.5957691216f, CUBE = 0.044715f;  // 2 sqrt(2 / pi)
constexpr float FAR = 12.0f;                            // beyond it the slope is 0 or 1

inline Vec share(Vec x) { return sigmoid(ROOT * x * (1.0f + CUBE * x * x)); }

inline Vec slope(Vec x) {
    x = clamp(x, -FAR, FAR);
    const Vec p = share(x);
    return p + x * p * (1.0f - p) * ROOT * (1.0f + 3.0f * CUBE * x * x);
}

// y = f(x) or f(x, dy), block by block.
template <class T, class F>
int32_t each(ParallelFor pool, const T* x, const T* dy, T* y, int64_t n, F f) {
    auto task = [&](int64_t part) {
        const int64_t end = std::min(n, (part + 1) * SHARE);
        for (int64_t i = part * SHARE; i < end; i += LANES) {
            const int64_t m = lanes_from(i, end);
            Block one = load_block(x + i, m);
            const Block other = dy ? load_block(dy + i, m) : Block{};
            for (int k = 0; k < K; k++) one.v[k] = f(one.v[k], other.v[k]);
            store_block(y + i, one, m);
        }
    };
    return parallel(pool, (n + SHARE - 1) / SHARE, task);
}

template <class T>
int32_t run(ParallelFor pool, const void* x, const void* dy, void* y, int64_t n) {
    const auto *in = static_cast<const T*>(x), *from = static_cast<const T*>(dy);
    auto* out = static_cast<T*>(y);
    return dy ? each(pool, in, from, out, n, [](Vec x, Vec dy) { return dy * slope(x); })
              : each(pool, in, from, out, n, [](Vec x, Vec) { return x * share(x); });
}

}  // namespace

// With dy its product with the slope at x; without it (null) GELU itself.
extern "C" KERNEL int32_t gelu_tanh(ParallelFor pool, const void* x, const void* dy, void* y, int64_t half, int64_t n) {
    return half ? run<bf16>(pool, x, dy, y, n) : run<float>(pool, x, dy, y, n);
}
