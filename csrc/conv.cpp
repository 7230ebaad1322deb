// Causal depthwise convolution along time, forward and backward (formula: postformer/ops/conv.py).
//
//     y_t = bias + sum_j w_j x_{t-k+1+j}        j = 0 ... k-1, with `past` before x
//
// x [b, t, c] with rows `stride` floats apart; w [c, k]; bias [c] or null; past [b, k-1, c]; y [b, t, c]. `starts` [b, t] is null or
// true where a document begins, before which no tap reaches. Channels are vectorised.
#include <algorithm>
#include <vector>

#include "blocks.h"
#include "parallel.h"

namespace {

// The input at time `at` of a row; before 0 it is the past.
struct Input {
    const float *x, *past;
    int64_t t, c, k, stride;
    const float* at(int64_t row, int64_t time, int64_t first) const {
        return time >= 0 ? x + (row * t + time) * stride + first : past + (row * (k - 1) + k - 1 + time) * c + first;
    }
};

inline void add_product(Block& sum, const float* w, const Block& x) {
    for (int i = 0; i < K; i++) sum.v[i] += load(w + i * WIDTH) * x.v[i];
}

}  // namespace

extern "C" KERNEL int32_t conv_forward(ParallelFor pool, const float* x, const float* w, const float* bias, const float* past,
                                       const bool* starts, float* y, int64_t b, int64_t t, int64_t c, int64_t k, int64_t stride) {
    const Input input{x, past, t, c, k, stride};
    auto task = [=](int64_t i) {
        const int64_t row = i / blocks_of(c), first = i % blocks_of(c) * LANES, m = lanes_from(first, c);
        std::vector<float> taps(k * LANES);
        transpose_in(w + first * k, taps.data(), m, k);
        const Block start = bias ? load_block(bias + first, m) : Block{};
        int64_t reach = 1 - k;  // the first input that the token's document has
        for (int64_t at = 0; at < t; at++) {
            if (starts && starts[row * t + at]) reach = at;
            Block sum = start;
            for (int64_t j = std::max(reach - at + k - 1, int64_t{0}); j < k; j++)
                add_product(sum, taps.data() + j * LANES, load_block(input.at(row, at - k + 1 + j, first), m));
            store_block(y + (row * t + at) * c + first, sum, m);
        }
    };
    return parallel(pool, b * blocks_of(c), task);
}

// dx [b, t, c], dw [c, k], dbias [c], dpast [b, k-1, c]: each block of channels is summed over b and t by one thread.
extern "C" KERNEL int32_t conv_backward(ParallelFor pool, const float* x, const float* w, const float* past, const bool* starts,
                                        const float* dy, float* dx, float* dw, float* dbias, float* dpast, int64_t b, int64_t t,
                                        int64_t c, int64_t k, int64_t stride) {
    const Input input{x, past, t, c, k, stride};
    auto task = [=](int64_t i) {
        const int64_t first = i * LANES, m = lanes_from(first, c);
        std::vector<float> taps(k * LANES), sums(k * LANES);
        transpose_in(w + first * k, taps.data(), m, k);
        Block bias_sum = {};
        for (int64_t row = 0; row < b; row++) {
            int64_t reach = 1 - k;
            for (int64_t at = 0; at < t; at++) {
                if (starts && starts[row * t + at]) reach = at;
                const Block grad = load_block(dy + (row * t + at) * c + first, m);
                for (int n = 0; n < K; n++) bias_sum.v[n] += grad.v[n];
                for (int64_t j = std::max(reach - at + k - 1, int64_t{0}); j < k; j++) {
                    const Block x_j = load_block(input.at(row, at - k + 1 + j, first), m);
                    float* sum = sums.data() + j * LANES;
                    for (int n = 0; n < K; n++) store(sum + n * WIDTH, load(sum + n * WIDTH) + grad.v[n] * x_j.v[n]);
                }
            }
            for (int64_t at = 1 - k; at < t; at++) {  // each input reaches the outputs at ... at + k - 1 of its document
                Block sum = {};
                for (int64_t j = k - 1; j >= 0; j--) {
                    const int64_t reached = at + k - 1 - j;
                    if (reached < 0) continue;
                    if (reached >= t || (starts && reached > at && starts[row * t + reached])) break;
                    add_product(sum, taps.data() + j * LANES, load_block(dy + (row * t + reached) * c + first, m));
                }
                store_block(at >= 0 ? dx + (row * t + at) * c + first : dpast + (row * (k - 1) + k - 1 + at) * c + first, sum, m);
            }
        }
        store_block(dbias + first, bias_sum, m);
        transpose_out(sums.data(), dw + first * k, m, k);
    };
    return parallel(pool, blocks_of(c), task);
}
