// A few tokens through their experts, which reads the weights of each expert once (formula: postformer/ops/experts.py).
//
// x and y [n, d]; chosen and weights [n, k]; up [e, w, d] with w = 2 f where there is a gate and f elsewhere, out [e, d, f], both floats or
// (`half`) bf16; up_bias [e, w] and out_bias [e, d] floats or null.
#include "networks.h"

namespace {

template <class T>
int32_t experts(ParallelFor pool, const float* x, const Sent& sent, const T* up, const T* out, Small up_bias, Small out_bias, float* y,
                int64_t n, int64_t d, int64_t f, Activation kind) {
    Floats placed(n * d);
    for (int64_t row = 0; row < n; row++) arrange<T>(x + row * d, placed.data() + row * d, d);
    std::fill(y, y + n * d, 0.0f);
    return add_networks(pool, networks_hit(sent, up, out, up_bias, out_bias, kind, d, f), sent.pairs, kind, placed.data(), y, d);
}

constexpr int32_t ODD = 2;

}  // namespace

// ODD where a number in `chosen` is none of 0 to count - 1; nothing is written then.
extern "C" KERNEL int32_t experts_forward(ParallelFor pool, const float* x, const int64_t* chosen, const float* weights, const void* up,
                                          const void* out, const float* up_bias, const float* out_bias, float* y, int64_t half, int64_t n,
                                          int64_t k, int64_t count, int64_t d, int64_t f, int64_t activation) {
    const auto kind = static_cast<Activation>(activation);
    const Small biases[] = {{up_bias, false}, {out_bias, false}};
    if (!all_below(chosen, n * k, count)) return ODD;
    try {
        const Sent sent(chosen, weights, n, k, count);
        auto run = [&](auto* up, auto* out) { return experts(pool, x, sent, up, out, biases[0], biases[1], y, n, d, f, kind); };
        return half ? run(static_cast<const bf16*>(up), static_cast<const bf16*>(out))
                    : run(static_cast<const float*>(up), static_cast<const float*>(out));
    } catch (...) {
        return 1;
    }
}
