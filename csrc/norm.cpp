// RMSNorm of groups of a row, forward and backward (formula: postformer/ops/norm.py).
//
//     y = w v / rms(v)         with v = x, or x SiLU(gate); or, where `after` is 1,         y = w x / rms(x) SiLU(gate)
//
// x, gate and y [rows, d], of which x and gate have rows a stride apart; w [d]; gate may be null. The mean of squares is over each of
// `groups` equal parts of a row. x is floats, or bf16 where `half_x` is 1; gate and y are floats, or bf16 where `half_y` is 1.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "blocks.h"
#include "floats.h"
#include "parallel.h"

namespace {

constexpr int64_t ROWS = 16;  // of a task

struct Sizes {
    int64_t rows, d, groups, x_stride, gate_stride;
    double eps;
    bool after;
    int64_t width() const { return d / groups; }
    int64_t room() const { return blocks_of(width()) * LANES; }
};

template <class X, class Y>
struct Inputs {
    const X* x;
    const float* w;
    const Y* gate;
};

// One group of a row: what is normed, and SiLU's inner sigmoid.
template <class X, class Y>
struct Group {
    const Inputs<X, Y>& in;
    const Sizes& s;
    Floats v, open;
    int64_t row = 0, first = 0;
    float scale = 0;  // 1 / rms(v)

    Group(const Inputs<X, Y>& in, const Sizes& s) : in(in), s(s), v(s.room()), open(in.gate ? s.room() : 0) {}

    Block x(int64_t i) const { return load_block(in.x + row * s.x_stride + first + i, lanes_from(i, s.width())); }
    Block w(int64_t i) const { return load_block(in.w + first + i, lanes_from(i, s.width())); }
    Block gate(int64_t i) const { return load_block(in.gate + row * s.gate_stride + first + i, lanes_from(i, s.width())); }

    void read(int64_t at, int64_t group) {
        row = at, first = group * s.width();
        Block squares = {};
        for (int64_t i = 0; i < s.width(); i += LANES) {
            Block now = x(i);
            if (in.gate) {
                const Block g = gate(i);
                for (int k = 0; k < K; k++) {
                    const Vec o = sigmoid(g.v[k]);
                    store(open.data() + i + k * WIDTH, o);
                    if (!s.after) now.v[k] *= g.v[k] * o;
                }
            }
            for (int k = 0; k < K; k++) squares.v[k] += now.v[k] * now.v[k];
            store_block(v.data() + i, now, LANES);
        }
        scale = static_cast<float>(1 / std::sqrt(static_cast<double>(total(squares)) / s.width() + s.eps));
    }
};

template <class X, class Y>
int32_t forward(ParallelFor pool, const Inputs<X, Y> in, Y* y, const Sizes s) {
    auto task = [&](int64_t part) {
        Group<X, Y> group(in, s);
        for (int64_t row = part * ROWS; row < std::min(part * ROWS + ROWS, s.rows); row++)
            for (int64_t g = 0; g < s.groups; g++) {
                group.read(row, g);
                for (int64_t i = 0; i < s.width(); i += LANES) {
                    Block out = group.w(i);
                    for (int k = 0; k < K; k++) out.v[k] *= load(group.v.data() + i + k * WIDTH) * group.scale;
                    if (in.gate && s.after) {
                        const Block z = group.gate(i);
                        for (int k = 0; k < K; k++) out.v[k] *= z.v[k] * load(group.open.data() + i + k * WIDTH);
                    }
                    store_block(y + row * s.d + group.first + i, out, lanes_from(i, s.width()));
                }
            }
    };
    return parallel(pool, (s.rows + ROWS - 1) / ROWS, task);
}

template <class X, class Y>
struct Gradients {
    const Y* dy;
    X* dx;
    float* dw;
    Y* dgate;
};

// With n = v / rms(v): the gradient of v is (dn - n mean(dn n)) / rms(v). `dn` is room for a group.
template <class X, class Y>
void group_back(const Group<X, Y>& group, const Gradients<X, Y>& out, float* dw, float* dn) {
    const Sizes& s = group.s;
    const int64_t place = group.row * s.d + group.first;
    const bool after = group.in.gate && s.after, before = group.in.gate && !s.after;
    Block products = {};
    for (int64_t i = 0; i < s.width(); i += LANES) {
        const int64_t m = lanes_from(i, s.width());
        const Block dy = load_block(out.dy + place + i, m), w = group.w(i), z = after ? group.gate(i) : Block{};
        Block sums = load_block(dw + group.first + i, m), dgate = {};
        for (int k = 0; k < K; k++) {
            const Vec n = load(group.v.data() + i + k * WIDTH) * group.scale;
            Vec d = dy.v[k];
            if (after) {
                const Vec o = load(group.open.data() + i + k * WIDTH);
                dgate.v[k] = d * w.v[k] * n * o * (1.0f + z.v[k] * (1.0f - o));
                d *= z.v[k] * o;
            }
            sums.v[k] += d * n;
            d *= w.v[k];
            products.v[k] += d * n;
            store(dn + i + k * WIDTH, d);
        }
        store_block(dw + group.first + i, sums, m);
        if (after) store_block(out.dgate + place + i, dgate, m);
    }
    const float mean = total(products) / s.width();
    for (int64_t i = 0; i < s.width(); i += LANES) {
        const int64_t m = lanes_from(i, s.width());
        const Block x = before ? group.x(i) : Block{}, z = before ? group.gate(i) : Block{};
        Block dx, dgate = {};
        for (int k = 0; k < K; k++) {
            const Vec n = load(group.v.data() + i + k * WIDTH) * group.scale;
            dx.v[k] = (load(dn + i + k * WIDTH) - n * mean) * group.scale;
            if (before) {
                const Vec o = load(group.open.data() + i + k * WIDTH);
                dgate.v[k] = dx.v[k] * x.v[k] * o * (1.0f + z.v[k] * (1.0f - o));
                dx.v[k] *= z.v[k] * o;
            }
        }
        store_block(out.dx + place + i, dx, m);
        if (before) store_block(out.dgate + place + i, dgate, m);
    }
}

template <class X, class Y>
int32_t backward(ParallelFor pool, const Inputs<X, Y> in, const Gradients<X, Y> out, const Sizes s, int64_t splits) {
    const int64_t share = (s.rows + splits - 1) / splits;
    auto task = [&](int64_t split) {
        Group<X, Y> group(in, s);
        Floats dn(s.room());
        for (int64_t row = split * share; row < std::min(split * share + share, s.rows); row++)
            for (int64_t g = 0; g < s.groups; g++) {
                group.read(row, g);
                group_back(group, out, out.dw + split * s.d, dn.data());
            }
    };
    return parallel(pool, splits, task);
}

inline double number(int64_t bits) { return bits_as<double>(bits); }

// f with a null pointer to each of the types of x and y; x is never narrower than y is wide.
template <class F>
int32_t typed(int64_t half_x, int64_t half_y, F f) {
    if (half_x) return f(static_cast<bf16*>(nullptr), static_cast<bf16*>(nullptr));
    return half_y ? f(static_cast<float*>(nullptr), static_cast<bf16*>(nullptr))
                  : f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
}

}  // namespace

// `eps` holds the bits of a double.
extern "C" KERNEL int32_t norm_forward(ParallelFor pool, const void* x, const float* w, const void* gate, void* y, int64_t half_x,
                                       int64_t half_y, int64_t eps, int64_t after, int64_t rows, int64_t d, int64_t groups,
                                       int64_t x_stride, int64_t gate_stride) {
    const Sizes s{rows, d, groups, x_stride, gate_stride, number(eps), after != 0};
    return typed(half_x, half_y, [&](auto* of_x, auto* of_y) {
        using X = std::remove_pointer_t<decltype(of_x)>;
        using Y = std::remove_pointer_t<decltype(of_y)>;
        return forward<X, Y>(pool, {static_cast<const X*>(x), w, static_cast<const Y*>(gate)}, static_cast<Y*>(y), s);
    });
}

// dx, dgate [rows, d]; dw [splits, d], zeros, to be summed over splits, each of which adds up the rows of its own share.
extern "C" KERNEL int32_t norm_backward(ParallelFor pool, const void* x, const float* w, const void* gate, const void* dy, void* dx,
                                        float* dw, void* dgate, int64_t half_x, int64_t half_y, int64_t eps, int64_t after,
                                        int64_t rows, int64_t d, int64_t groups, int64_t x_stride, int64_t gate_stride,
                                        int64_t splits) {
    const Sizes s{rows, d, groups, x_stride, gate_stride, number(eps), after != 0};
    return typed(half_x, half_y, [&](auto* of_x, auto* of_y) {
        using X = std::remove_pointer_t<decltype(of_x)>;
        using Y = std::remove_pointer_t<decltype(of_y)>;
        const Gradients<X, Y> out{static_cast<const Y*>(dy), static_cast<X*>(dx), dw, static_cast<Y*>(dgate)};
        return backward<X, Y>(pool, {static_cast<const X*>(x), w, static_cast<const Y*>(gate)}, out, s, splits);
    });
}
