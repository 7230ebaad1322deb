// One token through a whole Mamba block (postformer/mixers/mamba.py) for a few rows: the projections, which read each weight once for
// all rows, and between them convolution, scan and gate.
//
//     u, z = inp x;  u = SiLU(conv(u));  low, B, C = select u;  dt = softplus(W low + b)
//     h = exp(dt A) h + dt B u;  out((C h + D u) SiLU(z))                              A = -exp(A_log)
#include <cmath>
#include <vector>

#include "parallel.h"
#include "weights.h"

namespace {

constexpr int64_t ROWS = 16;  // outputs of a projection that one task computes

inline float silu(float x) { return x / (1 + std::exp(-x)); }

inline float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

// One step of channel `h` [n]; returns C h.
inline float scan_step(float* h, const float* A_log, const float* B, const float* C, float dt, float u, int64_t n) {
    Vec y = {};
    for (int64_t j = 0; j < n; j += WIDTH) {
        const int64_t m = n - j < WIDTH ? n - j : WIDTH;
        const Vec now = exp(-dt * exp(load_some(A_log + j, m))) * load_some(h + j, m) + (dt * u) * load_some(B + j, m);
        store_some(h + j, now, m);
        y += now * load_some(C + j, m);
    }
    return sum(y);
}

struct Sizes {
    int64_t b, d, c, k, r, n;
};

template <class T>
int32_t step(ParallelFor pool, const float* x, float* past, float* h, const T* inp, const float* taps, const float* tap_bias,
             const T* select, const T* dt_weight, const float* dt_bias, const float* A_log, const float* D, const T* out, float* y,
             Sizes s) {
    const int64_t wide = s.r + 2 * s.n;
    std::vector<float> room;
    try {
        room.resize(s.b * (3 * s.c + wide));
    } catch (...) {
        return 1;
    }
    float *u = room.data(), *gate = u + s.b * s.c, *inner = gate + s.b * s.c, *chosen = inner + s.b * s.c;

    auto enter = [=](int64_t task) {
        for (int64_t i = task * ROWS; i < (task + 1) * ROWS && i < 2 * s.c; i++)
            for (int64_t row = 0; row < s.b; row++) {
                float value = dot(inp + i * s.d, x + row * s.d, s.d);
                if (i >= s.c) {
                    gate[row * s.c + i - s.c] = silu(value);
                    continue;
                }
                float* before = past + row * (s.k - 1) * s.c + i;  // k-1 inputs, s.c apart
                const float* w = taps + i * s.k;
                float sum = tap_bias[i] + w[s.k - 1] * value;
                for (int64_t j = 0; j < s.k - 1; j++) sum += w[j] * before[j * s.c];
                for (int64_t j = 0; j + 1 < s.k - 1; j++) before[j * s.c] = before[(j + 1) * s.c];
                if (s.k > 1) before[(s.k - 2) * s.c] = value;
                u[row * s.c + i] = silu(sum);
            }
    };
    auto choose = [=](int64_t task) {
        for (int64_t i = task * ROWS; i < (task + 1) * ROWS && i < wide; i++)
            for (int64_t row = 0; row < s.b; row++) chosen[row * wide + i] = dot(select + i * s.c, u + row * s.c, s.c);
    };
    auto scan = [=](int64_t task) {
        for (int64_t i = task * ROWS; i < (task + 1) * ROWS && i < s.c; i++)
            for (int64_t row = 0; row < s.b; row++) {
                const float *low = chosen + row * wide, *B = low + s.r, *C = B + s.n;
                const int64_t at = row * s.c + i;
                const float dt = softplus(dot(dt_weight + i * s.r, low, s.r) + dt_bias[i]);
                inner[at] = (scan_step(h + at * s.n, A_log + i * s.n, B, C, dt, u[at], s.n) + D[i] * u[at]) * gate[at];
            }
    };
    auto leave = [=](int64_t task) {
        for (int64_t i = task * ROWS; i < (task + 1) * ROWS && i < s.d; i++)
            for (int64_t row = 0; row < s.b; row++) y[row * s.d + i] = dot(out + i * s.c, inner + row * s.c, s.c);
    };
    auto tasks = [](int64_t rows) { return (rows + ROWS - 1) / ROWS; };
    return parallel(pool, tasks(2 * s.c), enter) || parallel(pool, tasks(wide), choose) || parallel(pool, tasks(s.c), scan) ||
           parallel(pool, tasks(s.d), leave);
}

}  // namespace

// x, y [b, d]; past [b, k-1, c] and h [b, c, n] hold the state before and then the one after; inp [2 c, d], taps [c, k], select [r + 2 n, c], dt_weight [c, r],
// out [d, c]. The four matrices are floats, or bf16 in `mamba_step_bf16`; all the rest are floats.
extern "C" KERNEL int32_t mamba_step_fp32(ParallelFor pool, const float* x, float* past, float* h, const float* inp, const float* taps,
                                          const float* tap_bias, const float* select, const float* dt_weight, const float* dt_bias,
                                          const float* A_log, const float* D, const float* out, float* y, int64_t b, int64_t d,
                                          int64_t c, int64_t k, int64_t r, int64_t n) {
    return step(pool, x, past, h, inp, taps, tap_bias, select, dt_weight, dt_bias, A_log, D, out, y, {b, d, c, k, r, n});
}

extern "C" KERNEL int32_t mamba_step_bf16(ParallelFor pool, const float* x, float* past, float* h, const bf16* inp, const float* taps,
                                          const float* tap_bias, const bf16* select, const bf16* dt_weight, const float* dt_bias,
                                          const float* A_log, const float* D, const bf16* out, float* y, int64_t b, int64_t d,
                                          int64_t c, int64_t k, int64_t r, int64_t n) {
    return step(pool, x, past, h, inp, taps, tap_bias, select, dt_weight, dt_bias, A_log, D, out, y, {b, d, c, k, r, n});
}
