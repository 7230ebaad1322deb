// A recurrence with one decay per head, forward and backward (formulas: postformer/ops/ssd.py).
//
//     h_t = d_t h_{t-1} + sum_r x_{t,r} B_{t,r}^T        y_{t,r} = h_t C_{t,r}
//
// x, y [b, t, r, h, p]; d [b, t, h]; B, C [b, t, r, g, n], each for h / g heads; state [b, h, p, n]; all contiguous floats. Work goes
// by blocks of LANES of p, along which it is vectorised; a block's state [n, LANES] stays in the first-level cache through all of time.
#include <vector>

#include "blocks.h"
#include "parallel.h"

namespace {

struct Sizes {
    int64_t b, t, r, h, p, g, n;
    int64_t blocks() const { return blocks_of(p); }
    int64_t group(int64_t head) const { return head / (h / g); }
};

// What one block of one head of one row reads, at any token.
struct Item {
    Sizes s;
    int64_t row, head, first, m;
    int64_t token(int64_t at) const { return row * s.t + at; }
    int64_t x(int64_t at, int64_t r) const { return ((token(at) * s.r + r) * s.h + head) * s.p + first; }
    int64_t B(int64_t at, int64_t r) const { return ((token(at) * s.r + r) * s.g + s.group(head)) * s.n; }
    int64_t state() const { return ((row * s.h + head) * s.p + first) * s.n; }
};

inline Item item(const Sizes& s, int64_t row, int64_t head, int64_t block) {
    return {s, row, head, block * LANES, lanes_from(block * LANES, s.p)};
}

// to = d from + x B^T
inline void update(const float* from, float* to, float d, const Block& x, const float* B, int64_t n) {
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) {
            const int64_t at = j * LANES + k * WIDTH;
            store(to + at, load(from + at) * d + x.v[k] * B[j]);
        }
}

// The same in place, and what C reads there; even and odd j are added up apart, so that no sum waits for the one before.
inline Block update_and_read(float* h, float d, const Block& x, const float* B, const float* C, int64_t n) {
    Block y[2] = {};
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) {
            const int64_t at = j * LANES + k * WIDTH;
            const Vec now = load(h + at) * d + x.v[k] * B[j];
            store(h + at, now);
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

// The gradients of one input and one output at a token: g becomes that of the state there once all outputs were added.
inline void add_outputs(float* g, const float* after, const Block& dy, const float* C, float* dC, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        Vec dc = {};
        for (int k = 0; k < K; k++) {
            const int64_t at = j * LANES + k * WIDTH;
            store(g + at, load(g + at) + dy.v[k] * C[j]);
            dc += load(after + at) * dy.v[k];
        }
        dC[j] += sum(dc);
    }
}

inline Block add_inputs(const float* g, const Block& x, const float* B, float* dB, int64_t n) {
    Block dx = {};
    for (int64_t j = 0; j < n; j++) {
        Vec db = {};
        for (int k = 0; k < K; k++) {
            const Vec grad = load(g + j * LANES + k * WIDTH);
            dx.v[k] += grad * B[j];
            db += grad * x.v[k];
        }
        dB[j] += sum(db);
    }
    return dx;
}

// The gradient of the decay; g becomes that of the state before.
inline float step_back(float* g, const float* before, float d, int64_t n) {
    Block dd = {};
    for (int64_t j = 0; j < n; j++)
        for (int k = 0; k < K; k++) {
            const int64_t at = j * LANES + k * WIDTH;
            const Vec grad = load(g + at);
            dd.v[k] += grad * load(before + at);
            store(g + at, grad * d);
        }
    float total = 0;
    for (int k = 0; k < K; k++) total += sum(dd.v[k]);
    return total;
}

}  // namespace

// `state` holds the first state and then the last. `kept` [b, h, blocks, ceil(t / chunk), n, LANES] takes the state before each chunk;
// it may be null.
extern "C" KERNEL int32_t ssd_forward(ParallelFor pool, const float* x, const float* d, const float* B, const float* C, float* state,
                                      float* y, float* kept, int64_t b, int64_t t, int64_t r, int64_t h, int64_t p, int64_t g,
                                      int64_t n, int64_t chunk) {
    const Sizes s{b, t, r, h, p, g, n};
    const int64_t chunks = (t + chunk - 1) / chunk, size = n * LANES;
    auto task = [=](int64_t i) {
        const Item at_(item(s, i / (h * s.blocks()), i / s.blocks() % h, i % s.blocks()));
        std::vector<float> own(size);
        transpose_in(state + at_.state(), own.data(), at_.m, n);
        for (int64_t at = 0; at < t; at++) {
            if (kept && at % chunk == 0) memcpy(kept + (i * chunks + at / chunk) * size, own.data(), size * sizeof(float));
            const float decay = d[at_.token(at) * h + at_.head];
            const Block x_0 = load_block(x + at_.x(at, 0), at_.m);
            if (r == 1) {
                const Block y_t = update_and_read(own.data(), decay, x_0, B + at_.B(at, 0), C + at_.B(at, 0), n);
                store_block(y + at_.x(at, 0), y_t, at_.m);
                continue;
            }
            update(own.data(), own.data(), decay, x_0, B + at_.B(at, 0), n);
            for (int64_t k = 1; k < r; k++)
                update(own.data(), own.data(), 1, load_block(x + at_.x(at, k), at_.m), B + at_.B(at, k), n);
            for (int64_t k = 0; k < r; k++) store_block(y + at_.x(at, k), read(own.data(), C + at_.B(at, k), n), at_.m);
        }
        transpose_out(own.data(), state + at_.state(), at_.m, n);
    };
    return parallel(pool, b * h * s.blocks(), task);
}

// Gradients. `g_state` holds the gradient of the last state and then that of the first. dx [b, t, r, h, p]; dd [blocks, b, t, h], to be
// summed over blocks; dB, dC [splits, b, t, r, g, n], zeros, to be summed over splits: each split of a group's heads and blocks adds
// up its own, so that the result does not depend on the number of threads.
extern "C" KERNEL int32_t ssd_backward(ParallelFor pool, const float* x, const float* d, const float* B, const float* C, const float* kept,
                                       const float* dy, float* g_state, float* dx, float* dd, float* dB, float* dC, int64_t splits,
                                       int64_t b, int64_t t, int64_t r, int64_t h, int64_t p, int64_t g, int64_t n, int64_t chunk) {
    const Sizes s{b, t, r, h, p, g, n};
    const int64_t chunks = (t + chunk - 1) / chunk, size = n * LANES, shared = b * t * r * g * n;

    auto one = [=](const Item& it, int64_t block, int64_t split, std::vector<float>& room) {
        float *grad = room.data(), *hs = grad + size;  // hs[i + 1] is the state after token i of a chunk
        const float* own_kept = kept + ((it.row * h + it.head) * s.blocks() + block) * chunks * size;
        transpose_in(g_state + it.state(), grad, it.m, n);
        for (int64_t part = chunks - 1; part >= 0; part--) {
            const int64_t begin = part * chunk, end = begin + chunk < t ? begin + chunk : t;
            memcpy(hs, own_kept + part * size, size * sizeof(float));
            for (int64_t at = begin; at < end; at++) {
                float* after = hs + (at - begin + 1) * size;
                const float decay = d[it.token(at) * h + it.head];
                for (int64_t k = 0; k < r; k++)
                    update(k ? after : after - size, after, k ? 1 : decay, load_block(x + it.x(at, k), it.m), B + it.B(at, k), n);
            }
            for (int64_t at = end - 1; at >= begin; at--) {
                const float *before = hs + (at - begin) * size, *after = before + size;
                for (int64_t k = 0; k < r; k++)
                    add_outputs(grad, after, load_block(dy + it.x(at, k), it.m), C + it.B(at, k), dC + split * shared + it.B(at, k), n);
                for (int64_t k = 0; k < r; k++) {
                    const Block x_k = load_block(x + it.x(at, k), it.m);
                    store_block(dx + it.x(at, k), add_inputs(grad, x_k, B + it.B(at, k), dB + split * shared + it.B(at, k), n), it.m);
                }
                const int64_t place = it.token(at) * h + it.head;
                dd[block * b * t * h + place] = step_back(grad, before, d[place], n);
            }
        }
        transpose_out(grad, g_state + it.state(), it.m, n);
    };

    auto task = [=](int64_t i) {
        const int64_t row = i / (g * splits), group = i / splits % g, split = i % splits, heads = h / g;
        std::vector<float> room((chunk + 2) * size);
        for (int64_t j = split; j < heads * s.blocks(); j += splits)
            one(item(s, row, group * heads + j / s.blocks(), j % s.blocks()), j % s.blocks(), split, room);
    };
    return parallel(pool, b * g * splits, task);
}
