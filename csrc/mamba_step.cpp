// One token through Mamba layers (postformer/mixers/mamba.py) for a few rows, one layer after the other: the projections, which read each
// weight once for all rows, and between them convolution, scan and gate.
//
//     v = x / rms(x) * norm;  u, z = inp v;  u = SiLU(conv(u));  low, B, C = select u;  dt = softplus(W low + b)
//     h = exp(dt A) h + dt B u;  x = x + out((C h + D u) SiLU(z))                      A = -exp(A_log)
//
// Without a norm v = x, and x becomes out(...) alone.
#include "floats.h"
#include "parallel.h"
#include "weights.h"

namespace {

constexpr int64_t ROWS = 16;  // outputs of a projection that one task computes
constexpr int64_t FEW = 4;    // of the smallest one

// Tensors of one layer. past [b, k-1, c] and h [b, c, n] are the state before the token, past_after and h_after the one after;
// inp [2 c, d], taps [c, k], select [r + 2 n, c], dt [c, r], A_log [c, n], out [d, c]; tap_bias, dt_bias and D [c]; norm [d] or null.
struct Layer {
    const void *norm, *inp, *taps, *tap_bias, *select, *dt, *dt_bias, *A_log, *D, *out, *past;
    const float* h;
    void* past_after;
    float* h_after;
};

struct Sizes {
    int64_t b, d, c, k, r, n;
    double eps;
    bool half_small;
};

inline Vec silu(Vec x) { return x * sigmoid(x); }

// f over the first `count` of `values`, in place.
template <class F>
inline void each_register(float* values, int64_t count, const F& f) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        const int64_t m = count - i < WIDTH ? count - i : WIDTH;
        store_some(values + i, f(load_some(values + i, m)), m);
    }
}

// One step of a channel's state from `before` [n] to `h`; returns what adds up to C h.
inline Vec scan_step(const float* before, float* h, const Small& A_log, int64_t first, const float* B, const float* C, float dt, float u,
                     int64_t n) {
    Vec y = {};
    for (int64_t j = 0; j < n; j += WIDTH) {
        const int64_t m = n - j < WIDTH ? n - j : WIDTH;
        const Vec now = exp(-dt * exp(A_log.some(first + j, m))) * load_some(before + j, m) + (dt * u) * load_some(B + j, m);
        store_some(h + j, now, m);
        y += now * load_some(C + j, m);
    }
    return y;
}

// The convolution of channel i of a row after a new input; moves the inputs before it along.
template <class P>
inline float convolve(const P* before, P* after, const Small& taps, int64_t first, float bias, float value, int64_t k, int64_t c) {
    float sum = bias + taps[first + k - 1] * value;
    for (int64_t j = 0; j < k - 1; j++) sum += taps[first + j] * single(before[j * c]);
    for (int64_t j = 0; j + 1 < k - 1; j++) after[j * c] = before[(j + 1) * c];
    if (k > 1) after[(k - 2) * c] = rounded<P>(value);
    return sum;
}

struct Room {
    float *token, *u, *gate, *inner, *low, *chosen;  // rows of d, c, c, c, r and 2 n

    explicit Room(float* from, const Sizes& s)
        : token(from), u(token + s.b * s.d), gate(u + s.b * s.c), inner(gate + s.b * s.c), low(inner + s.b * s.c), chosen(low + s.b * s.r) {
    }

    static int64_t floats(const Sizes& s) { return s.b * (s.d + 3 * s.c + s.r + 2 * s.n); }
};

// T: the matrices; P: the convolution's past.
template <class T, class P>
int32_t step(ParallelFor pool, const Layer& l, float* x, Room at, const Sizes& s) {
    const T *inp = static_cast<const T*>(l.inp), *select = static_cast<const T*>(l.select);
    const T *dt_weight = static_cast<const T*>(l.dt), *out = static_cast<const T*>(l.out);
    auto small = [&](const void* data) { return Small{data, s.half_small}; };
    const Small norm = small(l.norm), taps = small(l.taps), tap_bias = small(l.tap_bias), dt_bias = small(l.dt_bias);
    const Small A_log = small(l.A_log), D = small(l.D);
    for (int64_t row = 0; row < s.b; row++) {
        const float scale = l.norm ? over_rms(x + row * s.d, s.d, s.eps) : 1;
        for (int64_t i = 0; i < s.d; i++)
            at.token[row * s.d + place<T>(i, s.d)] = x[row * s.d + i] * scale * (l.norm ? norm[i] : 1);
    }

    auto enter = [=, &l](int64_t task) {
        const int64_t begin = task * ROWS, count = 2 * s.c - begin < ROWS ? 2 * s.c - begin : ROWS;
        float values[MOST_ROWS * ROWS];
        each_product<ROWS>(task, 2 * s.c, inp, at.token, s.d, s.b, [&](int64_t i, int64_t row, float value) {
            if (i < s.c) {
                const int64_t first = row * (s.k - 1) * s.c + i;
                const P* before = static_cast<const P*>(l.past) + first;
                value = convolve(before, static_cast<P*>(l.past_after) + first, taps, i * s.k, tap_bias[i], value, s.k, s.c);
            }
            values[row * ROWS + i - begin] = value;
        });
        for (int64_t row = 0; row < s.b; row++) {
            each_register(values + row * ROWS, count, [](Vec x) { return silu(x); });
            for (int64_t i = begin; i < begin + count; i++)
                (i < s.c ? at.u[row * s.c + place<T>(i, s.c)] : at.gate[row * s.c + i - s.c]) = values[row * ROWS + i - begin];
        }
    };
    auto choose = [=](int64_t task) {
        each_product<FEW>(task, s.r + 2 * s.n, select, at.u, s.c, s.b, [&](int64_t i, int64_t row, float value) {
            (i < s.r ? at.low[row * s.r + place<T>(i, s.r)] : at.chosen[row * 2 * s.n + i - s.r]) = value;
        });
    };
    auto scan = [=, &l](int64_t task) {
        const int64_t begin = task * ROWS, count = s.c - begin < ROWS ? s.c - begin : ROWS;
        float dts[MOST_ROWS * ROWS];
        each_product<ROWS>(task, s.c, dt_weight, at.low, s.r, s.b, [&](int64_t i, int64_t row, float value) {
            dts[row * ROWS + i - begin] = value + dt_bias[i];
        });
        for (int64_t row = 0; row < s.b; row++) {
            const float *B = at.chosen + row * 2 * s.n, *C = B + s.n;
            each_register(dts + row * ROWS, count, [](Vec x) { return softplus(x); });
            for (int64_t first = begin; first < begin + count; first += WIDTH) {
                const int64_t m = begin + count - first < WIDTH ? begin + count - first : WIDTH;
                Vec parts[WIDTH] = {};
                for (int64_t j = 0; j < m; j++) {
                    const int64_t i = first + j, at_h = (row * s.c + i) * s.n;
                    const float u = at.u[row * s.c + place<T>(i, s.c)], dt = dts[row * ROWS + i - begin];
                    parts[j] = scan_step(l.h + at_h, l.h_after + at_h, A_log, i * s.n, B, C, dt, u, s.n);
                }
                float read[WIDTH];
                store(read, sums(parts));
                for (int64_t j = 0; j < m; j++) {
                    const int64_t i = first + j, placed = row * s.c + place<T>(i, s.c);
                    at.inner[placed] = (read[j] + D[i] * at.u[placed]) * at.gate[row * s.c + i];
                }
            }
        }
    };
    auto leave = [=, &l](int64_t task) {
        each_product<ROWS>(task, s.d, out, at.inner, s.c, s.b, [&](int64_t i, int64_t row, float value) {
            x[row * s.d + i] = l.norm ? x[row * s.d + i] + value : value;
        });
    };
    auto tasks = [](int64_t rows, int64_t each) { return (rows + each - 1) / each; };
    return parallel(pool, tasks(2 * s.c, ROWS), enter) || parallel(pool, tasks(s.r + 2 * s.n, FEW), choose) ||
           parallel(pool, tasks(s.c, ROWS), scan) || parallel(pool, tasks(s.d, ROWS), leave);
}

template <class T, class P>
int32_t steps(ParallelFor pool, const Layer* layers, float* x, int64_t depth, const Sizes& s) {
    Floats room;
    try {
        room.resize(Room::floats(s));
    } catch (...) {
        return 1;
    }
    for (int64_t i = 0; i < depth; i++)
        if (step<T, P>(pool, layers[i], x, Room(room.data(), s), s)) return 1;
    return 0;
}

}  // namespace

// x [b, d] in floats, before and after, b at most MOST_ROWS. The four matrices of all layers are floats, or bf16 where `half` is 1; so are
// all other weights by `half_small`, and the convolution's past by `half_past`; h is floats. eps: the bits of a double.
extern "C" KERNEL int32_t mamba_steps(ParallelFor pool, const void* layers, float* x, int64_t depth, int64_t half, int64_t half_small,
                                      int64_t half_past, int64_t eps, int64_t b, int64_t d, int64_t c, int64_t k, int64_t r, int64_t n) {
    if (b > MOST_ROWS) return 1;
    const Sizes s{b, d, c, k, r, n, bits_as<double>(eps), half_small != 0};
    const Layer* all = static_cast<const Layer*>(layers);
    if (half) return half_past ? steps<bf16, bf16>(pool, all, x, depth, s) : steps<bf16, float>(pool, all, x, depth, s);
    return half_past ? steps<float, bf16>(pool, all, x, depth, s) : steps<float, float>(pool, all, x, depth, s);
}
