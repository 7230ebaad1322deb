// Causal depthwise convolution along time, forward and backward (formula: postformer/ops/conv.py).
//
//     y_t = f(bias + sum_j w_j x_{t-k+1+j})        j = 0 ... k-1, with `past` before x; f is SiLU or nothing
//
// x [b, t, c] with rows `stride` apart; w [c, k]; bias [c] or null; past [b, k-1, c]; y [b, t, c]. x, past, y and their gradients are
// floats, or bf16 where `half` is 1; all else are floats. `starts` [b, t] is null or true where a document begins, before which no
// tap reaches. A task takes a strip of channels, which is contiguous in memory at each token.
#include <algorithm>
#include <type_traits>

#include "blocks.h"
#include "floats.h"
#include "parallel.h"

namespace {

constexpr int64_t STRIP = 8 * LANES;
constexpr int64_t TILE = 256;  // tokens of a task
constexpr int64_t AHEAD = 4;   // tokens between what is computed and what is fetched from memory

struct Sizes {
    int64_t b, t, c, k, stride;
    int64_t strips() const { return (c + STRIP - 1) / STRIP; }
};

template <class T>
struct Inputs {
    const T* x;
    const float *w, *bias;
    const T* past;
    const bool* starts;
    bool silu;
};

// The channels `first` ... `first + width` of a row.
template <class T>
struct Strip {
    const Inputs<T>& in;
    const Sizes& s;
    int64_t first, width;
    Floats taps, bias;  // [k, STRIP] and [STRIP], zeros where there is no channel

    Strip(const Inputs<T>& in, const Sizes& s, int64_t first)
        : in(in), s(s), first(first), width(std::min(STRIP, s.c - first)), taps(s.k * STRIP), bias(STRIP) {
        for (int64_t i = 0; i < width; i++)
            for (int64_t j = 0; j < s.k; j++) taps[j * STRIP + i] = in.w[(first + i) * s.k + j];
        if (in.bias) memcpy(bias.data(), in.bias + first, width * sizeof(float));
    }

    // The input at a time; before 0 it is the past.
    const T* x(int64_t row, int64_t time) const {
        return time >= 0 ? in.x + (row * s.t + time) * s.stride + first : in.past + (row * (s.k - 1) + s.k - 1 + time) * s.c + first;
    }

    bool begins(int64_t row, int64_t at) const { return in.starts && in.starts[row * s.t + at]; }

    // The first tap that lies in the token's document.
    int64_t first_tap(int64_t row, int64_t at) const {
        for (int64_t j = s.k - 1; in.starts && j > 0 && at - s.k + 1 + j >= 0; j--)
            if (begins(row, at - s.k + 1 + j)) return j;
        return 0;
    }

    // bias + sum_j w_j x_j for the block of channels `i` ... `i + m` of the strip.
    Block sum(int64_t row, int64_t at, int64_t from, int64_t i, int64_t m) const {
        Block sum = load_block(bias.data() + i, LANES);
        for (int64_t j = from; j < s.k; j++) {
            const Block x_j = load_block(x(row, at - s.k + 1 + j) + i, m);
            for (int n = 0; n < K; n++) sum.v[n] += load(taps.data() + j * STRIP + i + n * WIDTH) * x_j.v[n];
        }
        return sum;
    }
};

template <class T>
int32_t forward(ParallelFor pool, const Inputs<T> in, T* y, const Sizes s) {
    const int64_t tiles = (s.t + TILE - 1) / TILE;
    auto run = [&](int64_t task) {
        const Strip<T> strip(in, s, task % s.strips() * STRIP);
        const int64_t row = task / s.strips() / tiles, begin = task / s.strips() % tiles * TILE;
        for (int64_t at = begin; at < std::min(begin + TILE, s.t); at++) {
            const int64_t from = strip.first_tap(row, at);
            for (int64_t i = 0; i < strip.width; i += LANES) {
                const int64_t m = lanes_from(i, strip.width);
                if (at + AHEAD < s.t) {
                    __builtin_prefetch(strip.x(row, at + AHEAD) + i);
                    __builtin_prefetch(y + (row * s.t + at + AHEAD) * s.c + strip.first + i, 1);
                }
                Block sum = strip.sum(row, at, from, i, m);
                if (in.silu)
                    for (int n = 0; n < K; n++) sum.v[n] *= sigmoid(sum.v[n]);
                store_block(y + (row * s.t + at) * s.c + strip.first + i, sum, m);
            }
        }
    };
    return parallel(pool, s.b * tiles * s.strips(), run);
}

template <class T>
struct Gradients {
    const T* dy;
    T* dx;
    float *dw, *dbias;
    T* dpast;
};

// The gradient of the sums at one token, to `grad` [STRIP], and its share of dw [k, STRIP] and dbias [STRIP].
template <class T>
void sum_back(const Strip<T>& strip, const T* dy, int64_t row, int64_t at, float* grad, float* dw, float* dbias) {
    const Sizes& s = strip.s;
    const int64_t from = strip.first_tap(row, at);
    for (int64_t i = 0; i < strip.width; i += LANES) {
        const int64_t m = lanes_from(i, strip.width);
        Block g = load_block(dy + i, m);
        if (strip.in.silu) {
            const Block sum = strip.sum(row, at, from, i, m);
            for (int n = 0; n < K; n++) {
                const Vec open = sigmoid(sum.v[n]);
                g.v[n] *= open * (1.0f + sum.v[n] * (1.0f - open));
            }
        }
        store_block(grad + i, g, LANES);
        for (int n = 0; n < K; n++) store(dbias + i + n * WIDTH, load(dbias + i + n * WIDTH) + g.v[n]);
        for (int64_t j = from; j < s.k; j++) {
            const Block x_j = load_block(strip.x(row, at - s.k + 1 + j) + i, m);
            float* sum = dw + j * STRIP + i;
            for (int n = 0; n < K; n++) store(sum + n * WIDTH, load(sum + n * WIDTH) + g.v[n] * x_j.v[n]);
        }
    }
}

// The gradient of the input at `at`, which reaches the sums at ... at + k - 1 of its document; `grads` [k, STRIP] holds theirs.
template <class T>
void input_back(const Strip<T>& strip, const float* grads, int64_t row, int64_t at, T* dx) {
    const Sizes& s = strip.s;
    int64_t end = std::max(at, int64_t{0});
    while (end < std::min(at + s.k, s.t) && (end == at || !strip.begins(row, end))) end++;
    for (int64_t i = 0; i < strip.width; i += LANES) {
        Block sum = {};
        for (int64_t reached = std::max(at, int64_t{0}); reached < end; reached++) {
            const float *w = strip.taps.data() + (at + s.k - 1 - reached) * STRIP + i, *g = grads + reached % s.k * STRIP + i;
            for (int n = 0; n < K; n++) sum.v[n] += load(w + n * WIDTH) * load(g + n * WIDTH);
        }
        store_block(dx + i, sum, lanes_from(i, strip.width));
    }
}

template <class T>
int32_t backward(ParallelFor pool, const Inputs<T> in, const Gradients<T> out, const Sizes s) {
    auto run = [&](int64_t task) {
        const Strip<T> strip(in, s, task * STRIP);
        Floats dw(s.k * STRIP), dbias(STRIP), grads(s.k * STRIP);
        for (int64_t row = 0; row < s.b; row++)
            for (int64_t step = 0; step < s.t + s.k - 1; step++) {
                const T* dy = out.dy + (row * s.t + step) * s.c + strip.first;
                if (step < s.t) sum_back(strip, dy, row, step, grads.data() + step % s.k * STRIP, dw.data(), dbias.data());
                const int64_t at = step - s.k + 1;
                T* dx = at >= 0 ? out.dx + (row * s.t + at) * s.c : out.dpast + (row * (s.k - 1) + step) * s.c;
                input_back(strip, grads.data(), row, at, dx + strip.first);
            }
        memcpy(out.dbias + strip.first, dbias.data(), strip.width * sizeof(float));
        for (int64_t i = 0; i < strip.width; i++)
            for (int64_t j = 0; j < s.k; j++) out.dw[(strip.first + i) * s.k + j] = dw[j * STRIP + i];
    };
    return parallel(pool, s.strips(), run);
}

template <class T>
Inputs<T> inputs(const void* x, const float* w, const float* bias, const void* past, const bool* starts, int64_t silu) {
    return {static_cast<const T*>(x), w, bias, static_cast<const T*>(past), starts, silu != 0};
}

}  // namespace

extern "C" KERNEL int32_t conv_forward(ParallelFor pool, const void* x, const float* w, const float* bias, const void* past,
                                       const bool* starts, void* y, int64_t half, int64_t silu, int64_t b, int64_t t, int64_t c,
                                       int64_t k, int64_t stride) {
    auto run = [&](auto* y) {
        using T = std::remove_pointer_t<decltype(y)>;
        return forward<T>(pool, inputs<T>(x, w, bias, past, starts, silu), y, {b, t, c, k, stride});
    };
    return half ? run(static_cast<bf16*>(y)) : run(static_cast<float*>(y));
}

// dx [b, t, c], dw [c, k], dbias [c], dpast [b, k-1, c]: each strip of channels is summed over b and t by one thread.
extern "C" KERNEL int32_t conv_backward(ParallelFor pool, const void* x, const float* w, const float* bias, const void* past,
                                        const bool* starts, const void* dy, void* dx, float* dw, float* dbias, void* dpast,
                                        int64_t half, int64_t silu, int64_t b, int64_t t, int64_t c, int64_t k, int64_t stride) {
    auto run = [&](auto* dx) {
        using T = std::remove_pointer_t<decltype(dx)>;
        const Gradients<T> out{static_cast<const T*>(dy), dx, dw, dbias, static_cast<T*>(dpast)};
        return backward<T>(pool, inputs<T>(x, w, bias, past, starts, silu), out, {b, t, c, k, stride});
    };
    return half ? run(static_cast<bf16*>(dx)) : run(static_cast<float*>(dx));
}
