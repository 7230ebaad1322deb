// Forward of the recurrence of ssd.h.
#include <algorithm>
#include <vector>

#include "floats.h"
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

constexpr int64_t TILE = 16;  // tokens through which the blocks of a task go in turn: they share B and C, and the pages of x and y
constexpr int TOGETHER = K < 4 ? 4 : 1;  // tokens for which h is loaded and stored once, in registers

// A decay of 0 leaves nothing of a state, even where it is not finite.
inline void forget(const Item& it, int64_t at, float* h) {
    if (it.d(at) == 0) memset(h, 0, it.s.n * LANES * sizeof(float));
}

// One input a token, for COUNT tokens from `at` on: h = d h + now B^T, of which C reads y, and `later` B^T is added after that.
template <int COUNT, bool LATER>
inline void forward_some(const Item& it, int64_t at, float* h, float* y) {
    Block now[COUNT], later[COUNT], out[COUNT];
    float d[COUNT];
    const float *B[COUNT], *C[COUNT];
    for (int i = 0; i < COUNT; i++) {
        it.fetch(at + i + TILE, y);
        const Block x = it.x(at + i, 0);
        now[i] = times(x, it.w(at + i)), later[i] = times(x, it.v(at + i)), out[i] = times(x, it.D());
        d[i] = it.d(at + i), B[i] = it.B(at + i, 0), C[i] = it.C(at + i, 0);
    }
    Vec read[COUNT][K] = {};
    for (int64_t j = 0; j < it.s.n; j++)
        unrolled<K>([&](auto k) INLINE {
            float* place = h + j * LANES + k * WIDTH;
            Vec state = load(place);
            unrolled<COUNT>([&](auto i) INLINE {
                state = state * d[i] + now[i].v[k] * B[i][j];
                read[i][k] += state * C[i][j];
                if (LATER) state += later[i].v[k] * B[i][j];
            });
            store(place, state);
        });
    for (int i = 0; i < COUNT; i++) {
        for (int k = 0; k < K; k++) out[i].v[k] += read[i][k];
        store_block(y + it.y(at + i, 0), out[i], it.m);
    }
}

inline Block read(const float* h, const float* C, int64_t n) {
    Block y[2] = {};
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) y[j & 1].v[k] += load(h + j * LANES + k * WIDTH) * C[j];
    for (int k = 0; k < K; k++) y[0].v[k] += y[1].v[k];
    return y[0];
}

// One token of several inputs: its outputs to y, and h after it.
inline void forward_ranks(const Item& it, int64_t at, float* h, float* y) {
    const int64_t r = it.s.r, n = it.s.n;
    const float d = it.d(at), w = it.w(at), v = it.v(at), D = it.D();
    for (int64_t k = 0; k < r; k++) update(h, h, k ? 1 : d, times(it.x(at, k), w), it.B(at, k), n);
    for (int64_t k = 0; k < r; k++) store_block(y + it.y(at, k), plus(read(h, it.C(at, k), n), it.x(at, k), D), it.m);
    for (int64_t k = 0; it.in.v && k < r; k++) update(h, h, 1, times(it.x(at, k), v), it.B(at, k), n);
}

template <bool LATER>
inline void forward_single(const Item& it, int64_t at, int64_t end, float* h, float* y) {
    while (at < end) {
        int64_t joined = 0;  // tokens that lie in one document
        while (joined < TOGETHER && at + joined < end && it.d(at + joined) != 0) joined++;
        if (joined == TOGETHER) {
            forward_some<TOGETHER, LATER>(it, at, h, y);
            at += TOGETHER;
        } else {
            forget(it, at, h);
            forward_some<1, LATER>(it, at++, h, y);
        }
    }
}

inline void forward(const Item& it, int64_t begin, int64_t end, float* h, float* y) {
    if (it.s.r == 1) return it.in.v ? forward_single<true>(it, begin, end, h, y) : forward_single<false>(it, begin, end, h, y);
    for (int64_t at = begin; at < end; at++) {
        forget(it, at, h);
        forward_ranks(it, at, h, y);
    }
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
    const int64_t chunks = (t + chunk - 1) / chunk, size = n * LANES, of_row = h * s.blocks(), each = neighbours(b * of_row);
    const int64_t tasks = (of_row + each - 1) / each;
    auto task = [&](int64_t i) {
        const int64_t row = i / tasks, first = i % tasks * each, count = std::min(each, of_row - first);
        Floats states(count * size);
        std::vector<Item> items;
        for (int64_t k = 0; k < count; k++) {
            items.emplace_back(in, s, row, (first + k) / s.blocks(), (first + k) % s.blocks());
            transpose_in(state + items[k].state(), states.data() + k * size, items[k].m, n);
        }
        for (int64_t begin = 0; begin < t; begin += chunk) {
            const int64_t end = std::min(begin + chunk, t);
            for (int64_t k = 0; kept && k < count; k++)
                memcpy(kept + ((row * of_row + first + k) * chunks + begin / chunk) * size, states.data() + k * size, size * sizeof(float));
            for (int64_t at = begin; at < end; at += TILE)
                for (int64_t k = 0; k < count; k++) forward(items[k], at, std::min(at + TILE, end), states.data() + k * size, y);
        }
        for (int64_t k = 0; k < count; k++) transpose_out(states.data() + k * size, state + items[k].state(), items[k].m, n);
    };
    return parallel(pool, b * tasks, task);
}
