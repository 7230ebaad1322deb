// A recurrence with one decay per head: what its forward (ssd.cpp) and its backward (ssd_backward.cpp) read (formulas: postformer/ops/ssd.py).
//
//     H_t = d_t h_{t-1} + w_t sum_r x_{t,r} B_{t,r}^T        y_{t,r} = H_t C_{t,r} + D x_{t,r}        h_t = H_t + v_t sum_r x_{t,r} B_{t,r}^T
//
// x, y [b, t, r, h, p]; d, w, v [b, t, h]; D [h]; B, C [b, t, r, g, n], each for h / g heads; state [b, h, p, n]; all floats. Tokens of x,
// B and C lie a stride apart; all else is contiguous. w, v and D may be null: 1, 0 and 0. Work goes by blocks of LANES of p, along which
// it is vectorised; a block's state [n, LANES] stays in the first-level cache through all of time.
#pragma once
#include "blocks.h"

namespace {

struct Sizes {
    int64_t b, t, r, h, p, g, n, x_stride, B_stride, C_stride;
    int64_t blocks() const { return blocks_of(p); }
    int64_t group(int64_t head) const { return head / (h / g); }
};

struct Inputs {
    const float *x, *B, *C, *d, *w, *v, *D;
};

// What one block of one head of one row reads, at any token, and where it writes.
struct Item {
    const Inputs& in;
    const Sizes& s;
    int64_t row, head, block, first, m;
    Item(const Inputs& in, const Sizes& s, int64_t row, int64_t head, int64_t block)
        : in(in), s(s), row(row), head(head), block(block), first(block * LANES), m(lanes_from(first, s.p)) {}

    int64_t token(int64_t at) const { return row * s.t + at; }
    int64_t each(int64_t at) const { return token(at) * s.h + head; }
    int64_t channel(int64_t r) const { return (r * s.h + head) * s.p + first; }
    int64_t vector(int64_t r) const { return (r * s.g + s.group(head)) * s.n; }

    Block x(int64_t at, int64_t r) const { return load_block(in.x + token(at) * s.x_stride + channel(r), m); }
    const float* B(int64_t at, int64_t r) const { return in.B + token(at) * s.B_stride + vector(r); }
    const float* C(int64_t at, int64_t r) const { return in.C + token(at) * s.C_stride + vector(r); }
    float d(int64_t at) const { return in.d[each(at)]; }
    float w(int64_t at) const { return in.w ? in.w[each(at)] : 1; }
    float v(int64_t at) const { return in.v ? in.v[each(at)] : 0; }
    float D() const { return in.D ? in.D[head] : 0; }

    int64_t y(int64_t at, int64_t r) const { return token(at) * s.r * s.h * s.p + channel(r); }
    void fetch(int64_t at, float* out) const {
        if (at >= s.t) return;
        __builtin_prefetch(in.x + token(at) * s.x_stride + channel(0));
        __builtin_prefetch(out + y(at, 0), 1);
    }
    int64_t own(int64_t at, int64_t r) const { return token(at) * s.r * s.g * s.n + vector(r); }
    int64_t state() const { return ((row * s.h + head) * s.p + first) * s.n; }
};

inline Block times(Block x, float by) {
    for (int k = 0; k < K; k++) x.v[k] *= by;
    return x;
}

inline Block plus(Block x, const Block& y, float by) {
    for (int k = 0; k < K; k++) x.v[k] += y.v[k] * by;
    return x;
}

inline float dot(const Block& x, const Block& y) {
    Vec products = {};
    for (int k = 0; k < K; k++) products += x.v[k] * y.v[k];
    return sum(products);
}

}  // namespace
