// Layer norm or RMSNorm of rows, then what a condition says (formula: postformer/ops/modulate.py).
//
// x and y [rows, d]; `scale` and `shift` have a row for each `run` of rows, `apart` numbers from one to the next; these are floats, or bf16
// where `half` is 1. w [d] floats, or null. `layer` is 1 where the mean is taken off.
#include <algorithm>
#include <cmath>

#include "blocks.h"
#include "floats.h"
#include "parallel.h"

namespace {

constexpr int64_t ROWS = 16;  // of a task

struct Sizes {
    int64_t rows, d, run, apart;
    double eps;
    bool layer;
};

// f(block, first, lanes) for each block of the row in `v`.
template <class F>
inline void over(float* v, int64_t d, F f) {
    for (int64_t i = 0; i < d; i += LANES) f(v + i, i, lanes_from(i, d));
}

template <class T>
void modulated(const T* x, const float* w, const T* scale, const T* shift, T* y, const Sizes& s, float* v) {
    Block sums = {};
    over(v, s.d, [&](float* at, int64_t i, int64_t m) {
        const Block now = load_block(x + i, m);
        for (int k = 0; k < K; k++) sums.v[k] += now.v[k];
        store_block(at, now, LANES);
    });
    const float mean = s.layer ? total(sums) / s.d : 0.0f;
    Block squares = {};
    over(v, s.d, [&](float* at, int64_t, int64_t m) {
        Block now = load_block(at, LANES);
        for (int k = 0; k < K; k++) now.v[k] -= mean;
        store_block(at, now, LANES);
        now = load_block(at, m);  // zeros past the end
        for (int k = 0; k < K; k++) squares.v[k] += now.v[k] * now.v[k];
    });
    const float by = static_cast<float>(1 / std::sqrt(static_cast<double>(total(squares)) / s.d + s.eps));
    over(v, s.d, [&](float* at, int64_t i, int64_t m) {
        const Block a = load_block(scale + i, m), b = load_block(shift + i, m);
        Block out;
        for (int k = 0; k < K; k++) out.v[k] = load(at + k * WIDTH) * by;
        if (w) {
            const Block own = load_block(w + i, m);
            for (int k = 0; k < K; k++) out.v[k] *= own.v[k];
        }
        for (int k = 0; k < K; k++) out.v[k] = out.v[k] * (1.0f + a.v[k]) + b.v[k];
        store_block(y + i, out, m);
    });
}

template <class T>
int32_t run(ParallelFor pool, const void* x, const float* w, const void* scale, const void* shift, void* y, const Sizes s) {
    auto task = [&](int64_t part) {
        Floats v(blocks_of(s.d) * LANES);
        for (int64_t row = part * ROWS; row < std::min(part * ROWS + ROWS, s.rows); row++) {
            const int64_t told = row / s.run * s.apart;
            modulated(static_cast<const T*>(x) + row * s.d, w, static_cast<const T*>(scale) + told, static_cast<const T*>(shift) + told,
                      static_cast<T*>(y) + row * s.d, s, v.data());
        }
    };
    return parallel(pool, (s.rows + ROWS - 1) / ROWS, task);
}

}  // namespace

// `eps` holds the bits of a double.
extern "C" KERNEL int32_t modulate(ParallelFor pool, const void* x, const float* w, const void* scale, const void* shift, void* y,
                                   int64_t half, int64_t layer, int64_t eps, int64_t rows, int64_t d, int64_t run_of, int64_t apart) {
    const Sizes s{rows, d, run_of, apart, bits_as<double>(eps), layer != 0};
    return half ? run<bf16>(pool, x, w, scale, shift, y, s) : run<float>(pool, x, w, scale, shift, y, s);
}
