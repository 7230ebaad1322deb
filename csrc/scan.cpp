// The selective scan of Mamba, forward and backward (formulas: postformer/ops/scan.py).
//
//     h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = (C_t h_t + D u_t) SiLU(z_t)
//
// u, dt, z, y [b, t, c]; A [c, n]; B, C [b, t, n]; D, bias [c]; h [b, c, n]. u, z, y and their gradients are floats, or bf16 where
// `half` is 1; all else are floats. All are contiguous, but the rows of z lie `z_stride` apart. D and z may be null, for which the
// formula ends earlier; with a bias, dt is softplus(dt + bias). `starts` [b, t] is null or true where a document begins, which sees
// no state before it. Work goes by blocks of LANES channels, along which it is vectorised; a block's state [n, LANES] stays in the
// first-level cache through all of time.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "blocks.h"
#include "floats.h"
#include "parallel.h"

namespace {

struct Sizes {
    int64_t b, t, c, n, chunk, z_stride;
    int64_t chunks() const { return (t + chunk - 1) / chunk; }
};

template <class T>
struct Inputs {
    const T* u;
    const float *dt, *A, *B, *C;
    const bool* starts;
    const float *bias, *D;
    const T* z;
};

// A block of channels `first` ... `first + m` of a row.
template <class T>
struct Channels {
    const Inputs<T>& in;
    const Sizes& s;
    int64_t row, first, m;
    Block bias, D;

    Channels(const Inputs<T>& in, const Sizes& s, int64_t row, int64_t first)
        : in(in), s(s), row(row), first(first), m(lanes_from(first, s.c)), bias(), D() {
        if (in.bias) bias = load_block(in.bias + first, m);
        if (in.D) D = load_block(in.D + first, m);
    }

    int64_t place(int64_t at) const { return (row * s.t + at) * s.c + first; }
    const float* B(int64_t at) const { return in.B + (row * s.t + at) * s.n; }
    const float* C(int64_t at) const { return in.C + (row * s.t + at) * s.n; }
    bool begins(int64_t at) const { return in.starts && in.starts[row * s.t + at]; }
    Block u(int64_t at) const { return load_block(in.u + place(at), m); }
    Block z(int64_t at) const { return load_block(in.z + (row * s.t + at) * s.z_stride + first, m); }

    Block dt(int64_t at) const {
        Block d = load_block(in.dt + place(at), m);
        if (in.bias)
            for (int k = 0; k < K; k++) d.v[k] = softplus(d.v[k] + bias.v[k]);
        return d;
    }

    void fetch(int64_t at) const {
        if (at >= s.t || at < 0) return;
        __builtin_prefetch(in.u + place(at));
        __builtin_prefetch(in.dt + place(at));
        if (in.z) __builtin_prefetch(in.z + (row * s.t + at) * s.z_stride + first);
    }
};

// A [m, n] as [n, LANES], ready for exp2.
inline void load_rates(const float* A, float* rates, int64_t m, int64_t n) {
    transpose_in(A, rates, m, n);
    for (int64_t i = 0; i < n * LANES; i++) rates[i] *= LOG2_E;
}

constexpr int TOGETHER = WIDTH == 16 ? 4 : 2;  // registers of a state that are computed at once: as many as registers hold
constexpr int STATES = TOGETHER < K ? 1 : TOGETHER / K;

// COUNT entries of a block's state after one step, whose input is x = dt u, from the j-th on; adds to y what C reads there.
template <int COUNT, bool BOUNDED>
INLINE static inline void advance(const float* rates, const float* B, const float* C, const Block& dt, const Block& x, float* h, int64_t j,
                                  Vec (&y)[STATES][K]) {
    Vec now[COUNT * K], rate[COUNT * K];
    unrolled<COUNT * K>([&](auto i) INLINE { now[i] = dt.v[i % K], rate[i] = load(rates + j * LANES + i * WIDTH); });
    if constexpr (BOUNDED) {
        exp2_bounded(now, rate);
    } else {
        unrolled<COUNT * K>([&](auto i) INLINE { now[i] *= rate[i]; });
        exp2(now);
    }
    unrolled<COUNT * K>([&](auto i) INLINE {
        float* place = h + j * LANES + i * WIDTH;
        now[i] = now[i] * load(place) + x.v[i % K] * B[j + i / K];
        store(place, now[i]);
        y[i / K][i % K] += now[i] * C[j + i / K];
    });
}

// One step of a block, whose input is x = dt u: h is overwritten; C h is returned. BOUNDED: all dt A lie within what exp2_bounded takes.
template <bool BOUNDED>
inline Block step(const float* rates, const float* B, const float* C, const Block& dt, const Block& x, float* h, int64_t n) {
    Vec y[STATES][K] = {};
    int64_t j = 0;
    for (; j + STATES <= n; j += STATES) advance<STATES, BOUNDED>(rates, B, C, dt, x, h, j, y);
    for (; j < n; j++) advance<1, BOUNDED>(rates, B, C, dt, x, h, j, y);
    Block sum;
    for (int k = 0; k < K; k++) {
        sum.v[k] = y[0][k];
        for (int i = 1; i < STATES; i++) sum.v[k] += y[i][k];
    }
    return sum;
}

constexpr int64_t TILE = 16;  // tokens whose dt is made at once, and whose outputs are gated at once: one token would wait for itself

// A block of channels on its way through time.
template <class T>
struct Walk {
    const Channels<T> block;
    Floats rates, state;
    float steepest = 0;  // of the rates

    Walk(const Inputs<T>& in, const Sizes& s, int64_t row, int64_t first, const float* h)
        : block(in, s, row, first), rates(s.n * LANES), state(s.n * LANES) {
        load_rates(in.A + first * s.n, rates.data(), block.m, s.n);
        transpose_in(h + (row * s.c + first) * s.n, state.data(), block.m, s.n);
        for (float rate : rates) steepest = std::isnan(rate) ? INFINITY : std::max(steepest, std::fabs(rate));
    }

    bool bounded(const Block& dt) const {
        bool all = true;
        for (int k = 0; k < K; k++) all &= within(dt.v[k] * steepest, BOUND);
        return all;
    }

    // `count` tokens, TILE at most, from `begin` on.
    void tile(int64_t begin, int64_t count, T* y, float* kept) {
        alignas(LINE) float dts[TILE * LANES], xs[TILE * LANES], ys[TILE * LANES];
        const Sizes& s = block.s;
        for (int64_t i = 0; i < count; i++) {
            block.fetch(begin + i + TILE);
            if (begin + i + TILE < s.t) __builtin_prefetch(y + block.place(begin + i + TILE), 1);
            const Block dt = block.dt(begin + i);
            Block x = block.u(begin + i);
            for (int k = 0; k < K; k++) x.v[k] *= dt.v[k];
            store_block(dts + i * LANES, dt, LANES);
            store_block(xs + i * LANES, x, LANES);
        }
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = begin + i;
            if (kept && at % s.chunk == 0) leave(kept + (block.row * s.chunks() + at / s.chunk) * s.c * s.n);
            if (block.begins(at)) memset(state.data(), 0, s.n * LANES * sizeof(float));
            const Block dt = load_block(dts + i * LANES, LANES), x = load_block(xs + i * LANES, LANES);
            const Block out = bounded(dt) ? step<true>(rates.data(), block.B(at), block.C(at), dt, x, state.data(), s.n)
                                          : step<false>(rates.data(), block.B(at), block.C(at), dt, x, state.data(), s.n);
            store_block(ys + i * LANES, out, LANES);
        }
        for (int64_t i = 0; i < count; i++) {
            const Block u = block.u(begin + i);
            Block out = load_block(ys + i * LANES, LANES);
            for (int k = 0; k < K; k++) out.v[k] += block.D.v[k] * u.v[k];
            if (block.in.z) {
                const Block z = block.z(begin + i);
                for (int k = 0; k < K; k++) out.v[k] *= z.v[k] * sigmoid(z.v[k]);
            }
            store_block(y + block.place(begin + i), out, block.m);
        }
    }

    // Writes the state to its place among all channels' [c, n].
    void leave(float* all) const { transpose_out(state.data(), all + block.first * block.s.n, block.m, block.s.n); }
};

template <class T>
int32_t forward(ParallelFor pool, const Inputs<T> in, float* h, T* y, float* kept, const Sizes s) {
    const int64_t each = neighbours(s.b * blocks_of(s.c)), tasks = (blocks_of(s.c) + each - 1) / each;
    auto task = [&](int64_t i) {
        const int64_t row = i / tasks, last = std::min((i % tasks + 1) * each, blocks_of(s.c));
        std::vector<Walk<T>> walks;
        for (int64_t block = i % tasks * each; block < last; block++) walks.emplace_back(in, s, row, block * LANES, h);
        for (int64_t begin = 0; begin < s.t; begin += TILE)
            for (Walk<T>& walk : walks) walk.tile(begin, std::min(TILE, s.t - begin), y, kept);
        for (const Walk<T>& walk : walks) walk.leave(h + row * s.c * s.n);
    };
    return parallel(pool, s.b * tasks, task);
}

template <class T>
struct Gradients {
    const T* dy;
    float* g;
    T* du;
    float *ddt, *dA, *dB, *dC, *dbias, *dD;
    T* dz;
};

// What the gradients of a block need of one chunk of time, and its sums over all of time.
struct Room {
    int64_t size;
    Floats memory;
    float *rates, *g, *dA, *nothing;  // [n, LANES]; nothing is the state before a document
    float *hs, *decays, *dts;         // hs[i + 1] is the state after step i of a chunk; [chunk, LANES]

    explicit Room(const Sizes& s) : size(s.n * LANES), memory((5 + 2 * s.chunk) * size + s.chunk * LANES) {
        rates = memory.data(), g = rates + size, dA = g + size, nothing = dA + size;
        hs = nothing + size, decays = hs + (s.chunk + 1) * size, dts = decays + s.chunk * size;
    }
};

template <class T>
void recompute(const Channels<T>& block, Room& room, int64_t begin, int64_t end) {
    const float* rates = room.rates;
    const int64_t n = block.s.n;
    for (int64_t at = begin; at < end; at++) {
        const int64_t i = at - begin;
        const Block d = block.dt(at), u = block.u(at);
        store_block(room.dts + i * LANES, d, LANES);
        const float *before = block.begins(at) ? room.nothing : room.hs + i * room.size, *B = block.B(at);
        float *after = room.hs + (i + 1) * room.size, *decay = room.decays + i * room.size;
        for (int64_t j = 0; j < n; j++)
            for (int k = 0; k < K; k++) {
                const int64_t e = j * LANES + k * WIDTH;
                const Vec a = exp2(d.v[k] * load(rates + e));
                store(decay + e, a);
                store(after + e, a * load(before + e) + d.v[k] * u.v[k] * B[j]);
            }
    }
}

// The gradients at one token; room.g holds that of the state after it and then that of the state before it. y_t is
// computed a second time, for the gate.
template <class T>
void step_back(const Channels<T>& block, Room& room, const Gradients<T>& out, int64_t i, int64_t at, float* dB, float* dC, Block& dD,
               Block& dbias) {
    const float *after = room.hs + (i + 1) * room.size, *before = block.begins(at) ? room.nothing : after - room.size;
    const float *decay = room.decays + i * room.size, *B = block.B(at), *C = block.C(at);
    const Block d = load_block(room.dts + i * LANES, LANES), u = block.u(at), dout = load_block(out.dy + block.place(at), block.m);
    Block dy = dout, y = {}, dx = {}, dd = {};  // dx and dd: the gradients of dt u and, through the decay, of dt
    Block z = {}, open = {};
    if (block.in.z) {
        z = block.z(at);
        for (int k = 0; k < K; k++) open.v[k] = sigmoid(z.v[k]), dy.v[k] *= z.v[k] * open.v[k];
    }
    float *g = room.g, *dA = room.dA;
    const float* rates = room.rates;
    const int64_t n = block.s.n;
    for (int64_t j = 0; j < n; j++) {
        Vec db = {}, dc = {};
        for (int k = 0; k < K; k++) {
            const int64_t e = j * LANES + k * WIDTH;
            const Vec grad = load(g + e) + dy.v[k] * C[j];
            const Vec back = load(decay + e) * grad, q = back * load(before + e);
            const Vec h = load(after + e);
            dc += h * dy.v[k];
            y.v[k] += h * C[j];
            db += grad * (d.v[k] * u.v[k]);
            dx.v[k] += grad * B[j];
            dd.v[k] += q * load(rates + e);
            store(dA + e, load(dA + e) + q * d.v[k]);
            store(g + e, back);
        }
        dB[j] += sum(db);
        dC[j] += sum(dc);
    }
    if (block.begins(at)) memset(room.g, 0, room.size * sizeof(float));
    Block du;
    for (int k = 0; k < K; k++) {
        du.v[k] = dx.v[k] * d.v[k] + dy.v[k] * block.D.v[k];
        dD.v[k] += dy.v[k] * u.v[k];
        dd.v[k] = dd.v[k] * LOG_2 + dx.v[k] * u.v[k];
    }
    if (block.in.bias) {
        const Block raw = load_block(block.in.dt + block.place(at), block.m);
        for (int k = 0; k < K; k++) {
            dd.v[k] *= sigmoid(raw.v[k] + block.bias.v[k]);
            dbias.v[k] += dd.v[k];
        }
    }
    if (block.in.z) {
        Block dz;
        for (int k = 0; k < K; k++)
            dz.v[k] = dout.v[k] * (y.v[k] + block.D.v[k] * u.v[k]) * open.v[k] * (1.0f + z.v[k] * (1.0f - open.v[k]));
        store_block(out.dz + block.place(at), dz, block.m);
    }
    store_block(out.du + block.place(at), du, block.m);
    store_block(out.ddt + block.place(at), dd, block.m);
}

template <class T>
int32_t backward(ParallelFor pool, const Inputs<T> in, const float* kept, const Gradients<T> out, int64_t groups, const Sizes s) {
    auto one = [&](int64_t row, int64_t group, int64_t first, Room& room) {
        const Channels<T> block(in, s, row, first);
        const int64_t m = block.m, n = s.n, own = row * s.c + first;
        Block dD = {}, dbias = {};
        load_rates(in.A + first * n, room.rates, m, n);
        transpose_in(out.g + own * n, room.g, m, n);
        memset(room.dA, 0, 2 * room.size * sizeof(float));  // and room.nothing
        for (int64_t part = s.chunks() - 1; part >= 0; part--) {
            const int64_t begin = part * s.chunk, end = begin + s.chunk < s.t ? begin + s.chunk : s.t;
            transpose_in(kept + ((row * s.chunks() + part) * s.c + first) * n, room.hs, m, n);
            recompute(block, room, begin, end);
            for (int64_t at = end - 1; at >= begin; at--) {
                block.fetch(at - s.chunk);
                const int64_t share = ((group * s.b + row) * s.t + at) * n;
                step_back(block, room, out, at - begin, at, out.dB + share, out.dC + share, dD, dbias);
            }
        }
        transpose_out(room.g, out.g + own * n, m, n);
        transpose_out(room.dA, out.dA + own * n, m, n);
        if (out.dD) store_block(out.dD + own, dD, m);
        if (out.dbias) store_block(out.dbias + own, dbias, m);
    };
    auto task = [&](int64_t i) {
        Room room(s);
        for (int64_t at = i % groups; at < blocks_of(s.c); at += groups) one(i / groups, i % groups, at * LANES, room);
    };
    return parallel(pool, s.b * groups, task);
}

template <class T>
Inputs<T> inputs(const void* u, const float* dt, const float* A, const float* B, const float* C, const bool* starts,
                 const float* bias, const float* D, const void* z) {
    return {static_cast<const T*>(u), dt, A, B, C, starts, bias, D, static_cast<const T*>(z)};
}

}  // namespace

// `h` holds the first state and then the last. `kept` [b, ceil(t / chunk), c, n] takes the state before each chunk; it may be null.
extern "C" KERNEL int32_t scan_forward(ParallelFor pool, const void* u, const float* dt, const float* A, const float* B, const float* C,
                                       const bool* starts, const float* bias, const float* D, const void* z, float* h, void* y,
                                       float* kept, int64_t half, int64_t b, int64_t t, int64_t c, int64_t n, int64_t chunk,
                                       int64_t z_stride) {
    const Sizes s{b, t, c, n, chunk, z_stride};
    auto run = [&](auto* y) {
        using T = std::remove_pointer_t<decltype(y)>;
        return forward<T>(pool, inputs<T>(u, dt, A, B, C, starts, bias, D, z), h, y, kept, s);
    };
    return half ? run(static_cast<bf16*>(y)) : run(static_cast<float*>(y));
}

// Gradients. `g` holds the gradient of the last state and then that of the first. du, ddt, dz [b, t, c]; dA [b, c, n], dbias and
// dD [b, c], to be summed over b, null where there are none; dB, dC [groups, b, t, n], zeros, to be summed over groups: each group of blocks
// adds up its own, so that the result does not depend on the number of threads.
extern "C" KERNEL int32_t scan_backward(ParallelFor pool, const void* u, const float* dt, const float* A, const float* B, const float* C,
                                        const bool* starts, const float* bias, const float* D, const void* z, const float* kept,
                                        const void* dy, float* g, void* du, float* ddt, float* dA, float* dB, float* dC,
                                        float* dbias, float* dD, void* dz, int64_t half, int64_t b, int64_t t, int64_t c, int64_t n,
                                        int64_t chunk, int64_t z_stride, int64_t groups) {
    const Sizes s{b, t, c, n, chunk, z_stride};
    auto run = [&](auto* du) {
        using T = std::remove_pointer_t<decltype(du)>;
        const Gradients<T> out{static_cast<const T*>(dy), g, du, ddt, dA, dB, dC, dbias, dD, static_cast<T*>(dz)};
        return backward<T>(pool, inputs<T>(u, dt, A, B, C, starts, bias, D, z), kept, out, groups, s);
    };
    return half ? run(static_cast<bf16*>(du)) : run(static_cast<float*>(du));
}
