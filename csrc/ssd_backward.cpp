// Backward of the recurrence of ssd.h.
#include <algorithm>

#include "floats.h"
#include "parallel.h"
#include "ssd.h"

namespace {

struct Gradients {
    const float* dy;
    float *dx, *scalars, *dB, *dC;
    int64_t each;  // numbers in one of the four scalars, of d, w, v and the sum of x dy
};

// The way back is vectorised along n, since all but e are sums over p: a state is [LANES, n] here, with n filled up to a multiple of LANES.
// g is the gradient of the state after a token, and then of the state before it. Of the gradients of the token,
//     e_q = g B_q        dB_q = (w + v) g^T x_q + w sum_r (x_q . dy_r) C_r        dC_r = d before^T dy_r + w sum_q (x_q . dy_r) B_q
// with g as it was; the first terms, which are sums over p, and e are here; the rest is in `single_back` and `rest_back`.
constexpr int SIDE = 4;  // channels side by side, whose sums over p are stored once

struct Room {
    Floats grad, states, B, C, dB, dC;  // the last four [r, n] of one token
    std::vector<Block> e;
    int64_t n, size;
    Room(const Sizes& s, int64_t chunk)
        : n(blocks_of(s.n) * LANES), size(n * LANES) {
        grad.resize(size), states.resize(chunk * size), e.resize(s.r);
        for (auto* m : {&B, &C, &dB, &dC}) m->resize(s.r * n);
    }

    // One vector, as it is or filled up to n in `copy`.
    const float* read(const Item& it, const float* from, Floats& copy) const {
        if (it.s.n == n) return from;
        memcpy(copy.data(), from, it.s.n * sizeof(float));
        return copy.data();
    }
};

// h = d h + x B^T
inline void update_rows(const float* from, float* to, float d, const float* x, const float* B, int64_t n) {
    for (int i = 0; i < LANES; i++)
        for (int64_t j = 0; j < n; j += WIDTH) store(to + i * n + j, load(from + i * n + j) * d + load(B + j) * x[i]);
}

// The sums of LANES registers.
inline Block sums_of(Vec (&rows)[LANES]) {
    Block all;
    unrolled<K>([&](auto k) INLINE {
        Vec some[WIDTH];
        unrolled<WIDTH>([&](auto i) INLINE { some[i] = rows[k * WIDTH + i]; });
        all.v[k] = sums(some);
    });
    return all;
}

// Returns e, for one of several inputs.
inline Block input_back(const float* g, const float* x, const float* B, float* dB, int64_t n) {
    Vec e[LANES];
    for (int i = 0; i < LANES; i += SIDE) {
        Vec seen[SIDE] = {};
        for (int64_t j = 0; j < n; j += WIDTH) {
            Vec db = load(dB + j);
            unrolled<SIDE>([&](auto k) INLINE {
                const Vec grad = load(g + (i + k) * n + j);
                seen[k] += grad * load(B + j);
                db += grad * x[i + k];
            });
            store(dB + j, db);
        }
        unrolled<SIDE>([&](auto k) INLINE { e[i + k] = seen[k]; });
    }
    return sums_of(e);
}

inline void output_back(float* g, const float* before, const float* dy, const float* C, float* dC, int64_t n) {
    for (int i = 0; i < LANES; i += SIDE)
        for (int64_t j = 0; j < n; j += WIDTH) {
            Vec dc = load(dC + j);
            unrolled<SIDE>([&](auto k) INLINE {
                const int64_t at = (i + k) * n + j;
                dc += load(before + at) * dy[i + k];
                store(g + at, load(g + at) + load(C + j) * dy[i + k]);
            });
            store(dC + j, dc);
        }
}

inline float decay_back(float* g, const float* before, float d, int64_t n) {
    Vec dd[2] = {};
    for (int64_t j = 0; j < LANES * n; j += 2 * WIDTH)
        unrolled<2>([&](auto k) INLINE {
            const Vec grad = load(g + j + k * WIDTH);
            dd[k] += grad * load(before + j + k * WIDTH);
            store(g + j + k * WIDTH, grad * d);
        });
    return sum(dd[0] + dd[1]);
}

// All three in one pass, for one input a token; returns e, and the gradient of d to `dd`. The first SIDE channels set dB and dC.
inline Block all_back(float* g, const float* before, const float* x, const float* dy, float d, const float* B, const float* C, float* dB,
                      float* dC, float& dd, int64_t n) {
    Vec decays[2] = {}, e[LANES];
    for (int i = 0; i < LANES; i += SIDE) {
        Vec seen[SIDE] = {};
        for (int64_t j = 0; j < n; j += WIDTH) {
            const Vec b = load(B + j), c = load(C + j);
            Vec db = i ? load(dB + j) : Vec{}, dc = i ? load(dC + j) : Vec{};
            unrolled<SIDE>([&](auto k) INLINE {
                const int64_t at = (i + k) * n + j;
                const Vec grad = load(g + at), own = load(before + at), with_output = grad + c * dy[i + k];
                seen[k] += grad * b;
                db += grad * x[i + k];
                dc += own * dy[i + k];
                decays[k % 2] += with_output * own;
                store(g + at, with_output * d);
            });
            store(dB + j, db), store(dC + j, dc);
        }
        unrolled<SIDE>([&](auto k) INLINE { e[i + k] = seen[k]; });
    }
    dd = sum(decays[0] + decays[1]);
    return sums_of(e);
}

// One token with one input: the rest of its gradients.
inline void single_back(const Item& it, int64_t at, const float* before, Room& room, const Gradients& out) {
    const int64_t n = room.n;
    const float d = it.d(at), w = it.w(at), v = it.v(at), *B = room.read(it, it.B(at, 0), room.B), *C = room.read(it, it.C(at, 0), room.C);
    float *dB = room.dB.data(), *dC = room.dC.data(), dd;
    alignas(LINE) float in[LANES], of_y[LANES];
    const Block x = it.x(at, 0), dy = load_block(out.dy + it.y(at, 0), it.m);
    store_block(in, times(x, w + v), LANES), store_block(of_y, dy, LANES);
    const Block e = all_back(room.grad.data(), before, in, of_y, d, B, C, dB, dC, dd, n);
    Vec both = {};
    for (int64_t j = 0; j < n; j += WIDTH) both += load(B + j) * load(C + j);
    const float seen = dot(x, e), xy = dot(x, dy), by = w * xy, alike = sum(both);
    store_block(out.dx + it.y(at, 0), plus(times(e, w + v), dy, w * alike + it.D()), it.m);
    float *to_B = out.dB + it.own(at, 0), *to_C = out.dC + it.own(at, 0);
    for (int64_t j = 0; j < it.s.n; j++) to_B[j] += dB[j] + C[j] * by;
    for (int64_t j = 0; j < it.s.n; j++) to_C[j] += dC[j] * d + B[j] * by;
    float* scalars = out.scalars + it.block * it.s.b * it.s.t * it.s.h + it.each(at);
    scalars[0] = dd, scalars[out.each] = seen + alike * xy, scalars[2 * out.each] = seen, scalars[3 * out.each] = xy;
}

// What a token's inputs have from its own outputs and from e, and the sums over p to where they belong.
inline void rest_back(const Item& it, int64_t at, Room& room, const Gradients& out) {
    const int64_t r = it.s.r, n = room.n;
    const float w = it.w(at), v = it.v(at), D = it.D();
    float dw = 0, dv = 0, skipped = 0;
    for (int64_t q = 0; q < r; q++) {
        const Block x = it.x(at, q);
        Block dx = times(room.e[q], w + v);
        float seen = dot(x, room.e[q]);
        dv += seen;
        for (int64_t k = 0; k < r; k++) {
            const Block dy = load_block(out.dy + it.y(at, k), it.m);
            const float *B = room.B.data() + q * n, *C = room.C.data() + k * n, xy = dot(x, dy), by = w * xy;
            float *dB = room.dB.data() + q * n, *dC = room.dC.data() + k * n;
            Vec alike = {};
            for (int64_t j = 0; j < n; j += WIDTH) {
                const Vec b = load(B + j), c = load(C + j);
                alike += b * c;
                store(dB + j, load(dB + j) + c * by);
                store(dC + j, load(dC + j) + b * by);
            }
            dx = plus(dx, dy, w * sum(alike) + (k == q ? D : 0));
            seen += sum(alike) * xy;
            skipped += k == q ? xy : 0;
        }
        dw += seen;
        store_block(out.dx + it.y(at, q), dx, it.m);
    }
    for (int64_t q = 0; q < r; q++)
        for (int64_t j = 0; j < it.s.n; j++) {
            out.dB[it.own(at, q) + j] += room.dB[q * n + j];
            out.dC[it.own(at, q) + j] += room.dC[q * n + j];
        }
    float* scalars = out.scalars + it.block * it.s.b * it.s.t * it.s.h + it.each(at);
    scalars[out.each] = dw, scalars[2 * out.each] = dv, scalars[3 * out.each] = skipped;
}

inline void fetch(const Item& it, int64_t at, Room& room) {
    for (int64_t k = 0; k < it.s.r; k++) {
        memcpy(room.B.data() + k * room.n, it.B(at, k), it.s.n * sizeof(float));
        memcpy(room.C.data() + k * room.n, it.C(at, k), it.s.n * sizeof(float));
    }
}

inline void update_rows(const Item& it, int64_t at, const float* before, float* after, Room& room) {
    for (int64_t k = 0; k < it.s.r; k++) {
        alignas(LINE) float in[LANES];
        store_block(in, times(it.x(at, k), it.w(at) + it.v(at)), LANES);
        update_rows(k ? after : before, after, k ? 1 : it.d(at), in, room.read(it, it.B(at, k), room.B), room.n);
    }
}

// One token of one item.
inline void backward(const Item& it, int64_t at, const float* before, Room& room, const Gradients& out) {
    const int64_t r = it.s.r, n = room.n;
    if (r == 1) return single_back(it, at, before, room, out);
    const float d = it.d(at);
    alignas(LINE) float in[LANES], dy[LANES];
    float* g = room.grad.data();
    fetch(it, at, room);
    std::fill(room.dB.begin(), room.dB.end(), 0.0f), std::fill(room.dC.begin(), room.dC.end(), 0.0f);
    for (int64_t k = 0; k < r; k++) {
        store_block(in, times(it.x(at, k), it.w(at) + it.v(at)), LANES);
        room.e[k] = input_back(g, in, room.B.data() + k * n, room.dB.data() + k * n, n);
    }
    for (int64_t k = 0; k < r; k++) {
        store_block(dy, load_block(out.dy + it.y(at, k), it.m), LANES);
        output_back(g, before, dy, room.C.data() + k * n, room.dC.data() + k * n, n);
    }
    out.scalars[it.block * it.s.b * it.s.t * it.s.h + it.each(at)] = decay_back(g, before, d, n);
    for (float& dc : room.dC) dc *= d;
    rest_back(it, at, room, out);
}

}  // namespace

// Gradients. `g_state` holds the gradient of the last state and then that of the first. dx [b, t, r, h, p]; scalars [4, blocks, b, t, h], to
// be summed over blocks; dB, dC [splits, b, t, r, g, n], zeros, to be summed over splits: each split of a group's heads and blocks adds
// up its own, so that the result does not depend on the number of threads.
extern "C" KERNEL int32_t ssd_backward(ParallelFor pool, const float* x, const float* B, const float* C, const float* d, const float* w,
                                       const float* v, const float* D, const float* kept, const float* dy, float* g_state, float* dx,
                                       float* scalars, float* dB, float* dC, int64_t splits, int64_t b, int64_t t, int64_t r,
                                       int64_t h, int64_t p, int64_t g, int64_t n, int64_t x_stride, int64_t B_stride,
                                       int64_t C_stride, int64_t chunk) {
    const Sizes s{b, t, r, h, p, g, n, x_stride, B_stride, C_stride};
    const Inputs in{x, B, C, d, w, v, D};
    const int64_t chunks = (t + chunk - 1) / chunk, size = n * LANES, shared = b * t * r * g * n;

    auto one = [&](const Item& it, int64_t split, Room& room) {
        const int64_t wide = room.n;
        float *grad = room.grad.data(), *hs = room.states.data();  // hs[i] is the state before token i of a chunk
        const float* own_kept = kept + ((it.row * h + it.head) * s.blocks() + it.block) * chunks * size;
        const Gradients out{dy, dx, scalars, dB + split * shared, dC + split * shared, s.blocks() * b * t * h};
        std::fill(room.grad.begin(), room.grad.end(), 0.0f);
        for (int64_t i = 0; i < it.m; i++) memcpy(grad + i * wide, g_state + it.state() + i * n, n * sizeof(float));
        for (int64_t part = chunks - 1; part >= 0; part--) {
            const int64_t begin = part * chunk, end = begin + chunk < t ? begin + chunk : t;
            for (int64_t i = 0; i < LANES; i++)
                for (int64_t j = 0; j < n; j++) hs[i * wide + j] = own_kept[part * size + j * LANES + i];
            for (int64_t at = begin; at < end; at++) {
                float* before = hs + (at - begin) * room.size;
                if (it.d(at) == 0) std::fill_n(before, room.size, 0.0f);  // nothing is left of it, even where it is not finite
                if (at + 1 < end) update_rows(it, at, before, before + room.size, room);
            }
            for (int64_t at = end - 1; at >= begin; at--) backward(it, at, hs + (at - begin) * room.size, room, out);
        }
        for (int64_t i = 0; i < it.m; i++) memcpy(g_state + it.state() + i * n, grad + i * wide, n * sizeof(float));
    };

    auto task = [&](int64_t i) {
        const int64_t row = i / (g * splits), group = i / splits % g, split = i % splits, heads = h / g;
        Room room(s, chunk);
        for (int64_t j = split; j < heads * s.blocks(); j += splits)
            one(Item(in, s, row, group * heads + j / s.blocks(), j % s.blocks()), split, room);
    };
    return parallel(pool, b * g * splits, task);
}
