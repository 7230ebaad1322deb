// Forward of the recurrence of ssd.h.
#include <vector>

#include "parallel.h"
#include "ssd.h"

namespace {

// to = d from + x B^T
inline void update(const float* from, float* to, float d, const Block& x, const float* B, int64_t n) {
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) {
            const int64_t at = j * LANES + k * WIDTH;
            store(to + at, load(from + at) * d + x.v[k] * B[j]);
        }
}

// The same in place, what C reads there, and what is added later; even and odd j are added up apart, so that no sum waits for the one
// before.
template <bool LATER>
inline Block update_and_read(float* h, float d, const Block& x, const Block& later, const float* B, const float* C, int64_t n) {
    Block y[2] = {};
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) {
            const int64_t at = j * LANES + k * WIDTH;
            const Vec now = load(h + at) * d + x.v[k] * B[j];
            store(h + at, LATER ? now + later.v[k] * B[j] : now);
            y[j & 1].v[k] += now * C[j];
        }
    for (int k = 0; k < K; k++) y[0].v[k] += y[1].v[k];
    return y[0];
}

inline Block read(const float* h, const float* C, int64_t n) {
    Block y[2] = {};
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) y[j & 1].v[k] += load(h + j * LANES + k * WIDTH) * C[j];
    for (int k = 0; k < K; k++) y[0].v[k] += y[1].v[k];
    return y[0];
}

// One token of one item: its outputs to y, and h after it.
inline void forward(const Item& it, int64_t at, float* h, float* y) {
    const int64_t r = it.s.r, n = it.s.n;
    const float d = it.d(at), w = it.w(at), v = it.v(at), D = it.D();
    if (r == 1) {
        const Block x = it.x(at, 0), now = times(x, w);
        const float *B = it.B(at, 0), *C = it.C(at, 0);
        const Block read = it.in.v ? update_and_read<true>(h, d, now, times(x, v), B, C, n) : update_and_read<false>(h, d, now, x, B, C, n);
        return store_block(y + it.y(at, 0), plus(read, x, D), it.m);
    }
    for (int64_t k = 0; k < r; k++) update(h, h, k ? 1 : d, times(it.x(at, k), w), it.B(at, k), n);
    for (int64_t k = 0; k < r; k++) store_block(y + it.y(at, k), plus(read(h, it.C(at, k), n), it.x(at, k), D), it.m);
    for (int64_t k = 0; it.in.v && k < r; k++) update(h, h, 1, times(it.x(at, k), v), it.B(at, k), n);
}

}  // namespace

// `state` holds the first state and then the last. `kept` [b, h, blocks, ceil(t / chunk), n, LANES] takes the state before each chunk;
// it may be null.
extern "C" KERNEL int32_t ssd_forward(ParallelFor pool, const float* x, const float* B, const float* C, const float* d, const float* w,
                                      const float* v, const float* D, float* state, float* y, float* kept, int64_t b, int64_t t,
                                      int64_t r, int64_t h, int64_t p, int64_t g, int64_t n, int64_t x_stride, int64_t B_stride,
                                      int64_t C_stride, int64_t chunk) {
    const Sizes s{b, t, r, h, p, g, n, x_stride, B_stride, C_stride};
    const Inputs in{x, B, C, d, w, v, D};
    const int64_t chunks = (t + chunk - 1) / chunk, size = n * LANES;
    auto task = [&](int64_t i) {
        const Item it(in, s, i / (h * s.blocks()), i / s.blocks() % h, i % s.blocks());
        std::vector<float> own(size);
        transpose_in(state + it.state(), own.data(), it.m, n);
        for (int64_t at = 0; at < t; at++) {
            if (kept && at % chunk == 0) memcpy(kept + (i * chunks + at / chunk) * size, own.data(), size * sizeof(float));
            forward(it, at, own.data(), y);
        }
        transpose_out(own.data(), state + it.state(), it.m, n);
    };
    return parallel(pool, b * h * s.blocks(), task);
}
