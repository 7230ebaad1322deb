// The selective scan of Mamba, forward and backward (formulas: postformer/ops/scan.py).
//
//     h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t h_t
//
// u, dt, y [b, t, c]; A [c, n]; B, C [b, t, n]; h [b, c, n]; all contiguous floats. `starts` [b, t] is null or true where a document
// begins, which sees no state before it. Work goes by blocks of LANES channels, along which it is vectorised; a block's state
// [n, LANES] stays in the first-level cache through all of time.
#include <vector>

#include "blocks.h"
#include "parallel.h"

namespace {

// One step of a block: h is overwritten; y_t is returned.
inline Block step(const float* A, const float* B, const float* C, const Block& dt, const Block& u, float* h, int64_t n) {
    Block x, y;
    for (int k = 0; k < K; k++) x.v[k] = dt.v[k] * u.v[k], y.v[k] = Vec{};
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) {
            const int64_t at = j * LANES + k * WIDTH;
            const Vec now = exp(dt.v[k] * load(A + at)) * load(h + at) + x.v[k] * B[j];
            store(h + at, now);
            y.v[k] += now * C[j];
        }
    return y;
}

}  // namespace

// `h` holds the first state and then the last. `kept` [b, ceil(t / chunk), c, n] takes the state before each chunk; it may be null.
extern "C" KERNEL int32_t scan_forward(ParallelFor pool, const float* u, const float* dt, const float* A, const float* B, const float* C,
                                       const bool* starts, float* h, float* y, float* kept, int64_t b, int64_t t, int64_t c,
                                       int64_t n, int64_t chunk) {
    const int64_t chunks = (t + chunk - 1) / chunk;
    auto task = [=](int64_t i) {
        const int64_t row = i / blocks_of(c), first = i % blocks_of(c) * LANES, m = lanes_from(first, c);
        std::vector<float> a_block(n * LANES), h_block(n * LANES);
        transpose_in(A + first * n, a_block.data(), m, n);
        float* own = h + (row * c + first) * n;
        transpose_in(own, h_block.data(), m, n);
        for (int64_t at = 0; at < t; at++) {
            if (kept && at % chunk == 0)
                transpose_out(h_block.data(), kept + ((row * chunks + at / chunk) * c + first) * n, m, n);
            const int64_t token = row * t + at, place = token * c + first;
            if (starts && starts[token]) memset(h_block.data(), 0, n * LANES * sizeof(float));
            const Block y_t = step(a_block.data(), B + token * n, C + token * n, load_block(dt + place, m),
                                   load_block(u + place, m), h_block.data(), n);
            store_block(y + place, y_t, m);
        }
        transpose_out(h_block.data(), own, m, n);
    };
    return parallel(pool, b * blocks_of(c), task);
}

// Gradients. `g` holds the gradient of the last state and then that of the first. du, ddt [b, t, c]; dA [b, c, n], to be summed over b;
// dB, dC [groups, b, t, n], zeros, to be summed over groups: each group of blocks adds up its own, so that the result does not
// depend on the number of threads.
extern "C" KERNEL int32_t scan_backward(ParallelFor pool, const float* u, const float* dt, const float* A, const float* B, const float* C,
                                        const bool* starts, const float* kept, const float* dy, float* g, float* du, float* ddt,
                                        float* dA, float* dB, float* dC, int64_t groups, int64_t b, int64_t t, int64_t c, int64_t n,
                                        int64_t chunk) {
    const int64_t chunks = (t + chunk - 1) / chunk, size = n * LANES;

    auto block = [=](int64_t row, int64_t group, int64_t first, std::vector<float>& room) {
        const int64_t m = lanes_from(first, c);
        float *a_block = room.data(), *g_block = a_block + size, *da_block = g_block + size;
        float *nothing = da_block + size, *hs = nothing + size;  // hs[i + 1] is the state after step i of a chunk
        float* decays = hs + (chunk + 1) * size;
        transpose_in(A + first * n, a_block, m, n);
        transpose_in(g + (row * c + first) * n, g_block, m, n);
        memset(da_block, 0, 2 * size * sizeof(float));  // and `nothing`: the state before a document
        for (int64_t part = chunks - 1; part >= 0; part--) {
            const int64_t begin = part * chunk, end = begin + chunk < t ? begin + chunk : t;
            transpose_in(kept + ((row * chunks + part) * c + first) * n, hs, m, n);
            for (int64_t at = begin; at < end; at++) {
                const int64_t token = row * t + at, place = token * c + first;
                const Block d = load_block(dt + place, m), x = load_block(u + place, m);
                const float *before = starts && starts[token] ? nothing : hs + (at - begin) * size, *b_t = B + token * n;
                float *after = hs + (at - begin + 1) * size, *decay = decays + (at - begin) * size;
                for (int64_t j = 0; j < n; j++)
                    for (int k = 0; k < K; k++) {
                        const int64_t i = j * LANES + k * WIDTH;
                        const Vec a = exp(d.v[k] * load(a_block + i));
                        store(decay + i, a);
                        store(after + i, a * load(before + i) + d.v[k] * x.v[k] * b_t[j]);
                    }
            }
            for (int64_t at = end - 1; at >= begin; at--) {
                const int64_t token = row * t + at, place = token * c + first;
                const Block d = load_block(dt + place, m), x = load_block(u + place, m), dy_t = load_block(dy + place, m);
                const bool begins = starts && starts[token];
                const float *after = hs + (at - begin + 1) * size, *before = begins ? nothing : after - size;
                const float *decay = decays + (at - begin) * size, *b_t = B + token * n, *c_t = C + token * n;
                float *db = dB + ((group * b + row) * t + at) * n, *dc = dC + ((group * b + row) * t + at) * n;
                Block dx = {}, dd = {};  // the gradients of dt u and, through the decay, of dt
                for (int64_t j = 0; j < n; j++) {
                    Vec db_sum = {}, dc_sum = {};
                    for (int k = 0; k < K; k++) {
                        const int64_t i = j * LANES + k * WIDTH;
                        const Vec grad = load(g_block + i) + dy_t.v[k] * c_t[j];
                        const Vec a = load(decay + i);
                        const Vec back = a * grad, q = back * load(before + i);
                        dc_sum += load(after + i) * dy_t.v[k];
                        db_sum += grad * (d.v[k] * x.v[k]);
                        dx.v[k] += grad * b_t[j];
                        dd.v[k] += q * load(a_block + i);
                        store(da_block + i, load(da_block + i) + q * d.v[k]);
                        store(g_block + i, back);
                    }
                    db[j] += sum(db_sum);
                    dc[j] += sum(dc_sum);
                }
                if (begins) memset(g_block, 0, size * sizeof(float));
                Block du_t;
                for (int k = 0; k < K; k++) du_t.v[k] = dx.v[k] * d.v[k], dd.v[k] += dx.v[k] * x.v[k];
                store_block(du + place, du_t, m);
                store_block(ddt + place, dd, m);
            }
        }
        transpose_out(g_block, g + (row * c + first) * n, m, n);
        transpose_out(da_block, dA + (row * c + first) * n, m, n);
    };

    auto task = [=](int64_t i) {
        const int64_t row = i / groups, group = i % groups;
        std::vector<float> room((5 + 2 * chunk) * size);
        for (int64_t at = group; at < blocks_of(c); at += groups) block(row, group, at * LANES, room);
    };
    return parallel(pool, b * groups, task);
}
