// Memory in weights (postformer/ops/memory.py): what its forward and backward share. One task reads one row's text in one head.
//
// Matrices of a piece of text have a column for each token, LANES or a multiple of columns in all; what is used as the right side of a product
// over features has a row for each token instead (`rows`). Weights are [outputs, inputs] with rows of a multiple of LANES.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "blocks.h"
#include "floats.h"
#include "parallel.h"
#include "products.h"

static inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// While it lives, its thread takes numbers too small to be normal for 0: a processor needs many times as long for them, and what fades,
// such as the shares of distant tokens, comes to them.
class Flushed {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();

  public:
    Flushed() { _mm_setcsr(before | 0x8040); }  // results, and what is read
    ~Flushed() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;

  public:
    Flushed() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" : : "r"(before | 1 << 24));
    }
    ~Flushed() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

enum Bias { L2, DOT, HUBER };

constexpr int64_t DEEPEST = 8;

struct Sizes {
    int64_t b, t, h, d, hidden, depth, bias, residual;
    float damping;  // of the layer norm, added to the variance
    int64_t anchored;  // whether the memory decays towards the fresh one's weights, home: then M is counted from them

    int64_t in(int64_t l) const { return l ? hidden : d; }
    int64_t out(int64_t l) const { return l < depth - 1 ? hidden : d; }
    int64_t apart(int64_t l) const { return padded(in(l)); }
    int64_t widest() const { return depth > 1 && hidden > d ? hidden : d; }
    // Where the l-th matrix begins, as it is stored between calls and as it is computed with; at `depth` the size of all.
    int64_t stored(int64_t l) const { return begin(l, false); }
    int64_t place(int64_t l) const { return begin(l, true); }
    int64_t weights() const { return place(depth); }

   private:
    int64_t begin(int64_t l, bool wide) const {
        int64_t at = 0;
        for (int64_t i = 0; i < l; i++) at += out(i) * (wide ? apart(i) : in(i));
        return at;
    }
};

// Tensors of a call. The memories hold parts of `stored(depth)` floats for each row and head: the start of the chunk, now and, with `carry`,
// the surprise.
struct Inputs {
    const float *q, *k, *v;             // [b, t, h, d]
    const float *rate, *keep, *carry, *limit;  // [b, t, h]; the last two may be null
    const float *held, *fresh;          // [b, h, parts, weights]; fresh may be null
    const uint8_t *begins, *starts, *real;  // [b, t]; the last two may be null

    int64_t parts() const { return carry ? 3 : 2; }
};

// Tokens that are read with one set of gradients' weights. `begins`: a chunk begins with it; `fresh`: a document does.
struct Piece {
    int64_t first, count;  // of the row's real tokens
    bool begins, fresh;
};

struct Plan {
    std::vector<int64_t> tokens;
    std::vector<Piece> pieces;
    int64_t longest = 0;

    Plan(const Inputs& in, const Sizes& s, int64_t row) {
        bool fresh = false;
        for (int64_t t = 0, at = row * s.t; t < s.t; t++, at++) {
            fresh |= in.starts && in.starts[at];
            if (in.real && !in.real[at]) continue;
            if (pieces.empty() || in.begins[at] || fresh)
                pieces.push_back({static_cast<int64_t>(tokens.size()), 0, in.begins[at] != 0, fresh}), fresh = false;
            tokens.push_back(t);
            longest = std::max(longest, ++pieces.back().count);
        }
    }

    bool own_weights(size_t piece) const { return pieces[piece].begins || pieces[piece].fresh; }

    // The pieces with which runs of about `size` pieces begin: the memory before them suffices to go on from there.
    std::vector<size_t> runs(int64_t size) const {
        std::vector<size_t> at;
        for (size_t i = 0; i < pieces.size(); i++)
            if (!i || (own_weights(i) && i - at.back() >= static_cast<size_t>(size))) at.push_back(i);
        return at;
    }
};

// Floats of one task, zero at first. A thread goes on with the same ones unless they are many: fresh memory costs more than its filling.
class Room {
    static constexpr int64_t KEPT = int64_t(1) << 22;
    Floats own;
    float* next;

    static Floats& shared() {
        static thread_local Floats floats;
        return floats;
    }

   public:
    explicit Room(int64_t count) {
        Floats& floats = count <= KEPT ? shared() : own;
        if (static_cast<int64_t>(floats.size()) < count) floats.resize(count);
        next = floats.data();
        std::fill(next, next + count, 0.0f);
    }
    float* take(int64_t count) {
        float* p = next;
        next += padded(count);
        return p;
    }
};

// What the weights after each token are made of: M_t = beta_t M_0 + f_t S_0 - sum_j G_tj u_j, S_t = fade_t S_0 - sum_j N_tj u_j.
struct Mix {
    float *G, *N;   // a row for each t
    float *turned;  // G with a column for each t
    float *beta, *f, *fade, *keep, *carry;

    Mix(Room& room, int64_t n)
        : G(room.take(n * n)), N(room.take(n * n)), turned(room.take(n * n)), beta(room.take(n)), f(room.take(n)), fade(room.take(n)),
          keep(room.take(n)), carry(room.take(n)) {}
};

// f(at) for each register of `count` floats.
template <class F>
INLINE static inline void each(int64_t count, F f) {
    for (int64_t at = 0; at < count; at += WIDTH) f(at);
}

// to += sign * from.
static inline void add_floats(int64_t count, const float* from, float sign, float* to) {
    each(count, [&](int64_t i) INLINE { store(to + i, load(to + i) + load(from + i) * sign); });
}

// [rows, columns] with rows from_apart apart to [columns, rows] with rows to_apart apart, in blocks that stay in the first-level cache.
static inline void turn(int64_t rows, int64_t columns, const float* from, int64_t from_apart, float* to, int64_t to_apart) {
    for (int64_t r0 = 0; r0 < rows; r0 += LANES)
        for (int64_t c0 = 0; c0 < columns; c0 += LANES) {
            const int64_t r1 = std::min(rows, r0 + LANES), c1 = std::min(columns, c0 + LANES);
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++) to[c * to_apart + r] = from[r * from_apart + c];
        }
}

// The derivatives of SiLU at z, with s = sigmoid(z).
static inline Vec slope(Vec z, Vec s) { return s * (1.0f + z * (1.0f - s)); }
static inline Vec bend(Vec z, Vec s) { return s * (1.0f - s) * (2.0f + z * (1.0f - 2.0f * s)); }

// Columns of `from` [d, n] without their mean, over sqrt(variance + damping), and what they were multiplied with.
static inline void norm_columns(int64_t d, int64_t n, float damping, const float* from, float* unit, float* scale) {
    each(n, [&](int64_t j) INLINE {
        Vec mean = {}, square = {};
        for (int64_t i = 0; i < d; i++) mean += load(from + i * n + j);
        mean /= static_cast<float>(d);
        for (int64_t i = 0; i < d; i++) {
            const Vec centred = load(from + i * n + j) - mean;
            square += centred * centred;
            store(unit + i * n + j, centred);
        }
        store(scale + j, square / static_cast<float>(d) + damping);
    });
    for (int64_t j = 0; j < n; j++) scale[j] = 1 / sqrtf(scale[j]);
    for (int64_t i = 0; i < d; i++) each(n, [&](int64_t j) INLINE { store(unit + i * n + j, load(unit + i * n + j) * load(scale + j)); });
}

// Gradients `dy` by what norm_columns makes, as those by what it took. The matrix is symmetric.
static inline void norm_back(int64_t d, int64_t n, const float* unit, const float* scale, const float* dy, float* to) {
    each(n, [&](int64_t j) INLINE {
        Vec mean = {}, along = {};
        for (int64_t i = 0; i < d; i++) mean += load(dy + i * n + j), along += load(dy + i * n + j) * load(unit + i * n + j);
        mean /= static_cast<float>(d), along /= static_cast<float>(d);
        for (int64_t i = 0; i < d; i++)
            store(to + i * n + j, load(scale + j) * (load(dy + i * n + j) - mean - load(unit + i * n + j) * along));
    });
}

// One row's text in one head, a piece at a time.
struct Task {
    const Inputs& in;
    const Sizes& s;
    const Plan& plan;
    int64_t row, head;

    const Piece* piece = nullptr;
    int64_t c = 0, n = 0;  // its tokens and columns
    Mix mix;
    float *a[DEEPEST], *z[DEEPEST];         // keys and activations, and what each matrix makes of them
    float *delta[DEEPEST], *back[DEEPEST];  // gradients by z, and before the slope
    float* a_rows[DEEPEST];
    float *v, *missed;  // values, and the gradients by the answers to the keys
    float *unit, *scale, *p_unit, *p_scale, *reply;  // with `residual`: of the last z and p, and the answers
    float *x[DEEPEST], *p[DEEPEST], *seen[DEEPEST];  // queries and activations, and what each matrix makes of them; a^T x
    float *wide, *square;

    static int64_t floats(const Sizes& s, int64_t n) {
        return n * (n * (4 + s.depth) + padded(s.widest()) * (8 * s.depth + 6)) + (8 + n) * LANES + 7 * n;
    }

    Task(const Inputs& in, const Sizes& s, const Plan& plan, int64_t row, int64_t head, Room& room)
        : in(in), s(s), plan(plan), row(row), head(head), mix(room, padded(plan.longest)) {
        const int64_t most = padded(plan.longest);
        for (int64_t l = 0; l < s.depth; l++) {
            a[l] = room.take(s.in(l) * most), x[l] = room.take(s.in(l) * most), a_rows[l] = room.take(s.apart(l) * most);
            z[l] = room.take(s.out(l) * most), p[l] = room.take(s.out(l) * most);
            delta[l] = room.take(s.out(l) * most), back[l] = room.take(s.out(l) * most);
            seen[l] = room.take(most * most);
        }
        for (float** some : {&missed, &unit, &p_unit, &reply}) *some = room.take(s.d * most);
        scale = room.take(most), p_scale = room.take(most);
        v = room.take(s.d * most), wide = room.take(padded(s.widest()) * most), square = room.take(most * most);
    }

    // Where the gates of the piece's i-th token lie, and its vectors.
    int64_t gate(int64_t i) const { return (row * s.t + plan.tokens[piece->first + i]) * s.h + head; }
    int64_t vector(int64_t i) const { return gate(i) * s.d; }

    // A part of a memory as it is stored, of this row and head.
    int64_t part(int64_t which) const { return ((row * s.h + head) * in.parts() + which) * s.stored(s.depth); }

    void load_weights(const float* from, float* to) const {
        for (int64_t l = 0; l < s.depth; l++)
            for (int64_t o = 0; o < s.out(l); o++)
                std::copy_n(from + s.stored(l) + o * s.in(l), s.in(l), to + s.place(l) + o * s.apart(l));
    }

    void store_weights(const float* from, float* to) const {
        for (int64_t l = 0; l < s.depth; l++)
            for (int64_t o = 0; o < s.out(l); o++)
                std::copy_n(from + s.place(l) + o * s.apart(l), s.in(l), to + s.stored(l) + o * s.in(l));
    }

    void add_weights(const float* from, float* to) const {
        for (int64_t l = 0; l < s.depth; l++)
            for (int64_t o = 0; o < s.out(l); o++)
                for (int64_t i = 0; i < s.in(l); i++) to[s.stored(l) + o * s.in(l) + i] += from[s.place(l) + o * s.apart(l) + i];
    }

    // Vectors [b, t, h, d] of the piece, with a column for each token and zeros in the columns after them.
    void load_columns(const float* from, float* to) const {
        for (int64_t i = 0; c < n && i < s.d; i++) std::fill(to + i * n + c, to + i * n + n, 0.0f);
        for (int64_t j0 = 0; j0 < c; j0 += LANES) {
            const float* at[LANES];
            const int64_t some = std::min<int64_t>(LANES, c - j0);
            for (int64_t j = 0; j < some; j++) at[j] = from + vector(j0 + j);
            for (int64_t i = 0; i < s.d; i++)
                for (int64_t j = 0; j < some; j++) to[i * n + j0 + j] = at[j][i];
        }
    }

    void store_columns(const float* from, float* to) const {
        for (int64_t i0 = 0; i0 < s.d; i0 += LANES)
            for (int64_t j = 0; j < c; j++) {
                float* at = to + vector(j);
                for (int64_t i = i0; i < std::min(i0 + LANES, s.d); i++) at[i] = from[i * n + j];
            }
    }

    // [rows, n] with columns for tokens to [n, apart], with rows for them and zeros after them.
    void to_rows(const float* from, int64_t rows, float* to) const {
        const int64_t apart = padded(rows);
        if (apart > rows) std::fill(to, to + apart * n, 0.0f);
        turn(rows, n, from, n, to, apart);
    }

    void begin(const Piece& which) {
        piece = &which, c = which.count, n = padded(c);
        std::fill(mix.G, mix.G + n * n, 0.0f), std::fill(mix.N, mix.N + n * n, 0.0f);
        for (float* some : {mix.beta, mix.f, mix.fade}) std::fill(some, some + n, 0.0f);
        float beta = 1, f = 0, fade = in.carry ? 1 : 0;
        for (int64_t t = 0; t < c; t++) {
            const int64_t at = gate(t);
            const float keep = mix.keep[t] = expf(in.keep[at]), carry = mix.carry[t] = in.carry ? expf(in.carry[at]) : 0;
            float *G = mix.G + t * n, *N = mix.N + t * n;
            if (t && in.carry) each(padded(t), [&](int64_t j) INLINE { store(N + j, load(N - n + j) * carry); });
            N[t] = in.rate[at];
            if (t) each(padded(t), [&](int64_t j) INLINE { store(G + j, load(G - n + j) * keep + load(N + j)); });
            G[t] = N[t];
            fade *= carry;
            mix.beta[t] = beta *= keep, mix.f[t] = f = keep * f + fade, mix.fade[t] = fade;
        }
        turn(n, n, mix.G, n, mix.turned, n);
    }

    // What the weights W answer to the keys, and the gradients of that.
    void learn(const float* W) {
        load_columns(in.k, a[0]), load_columns(in.v, v);
        for (int64_t l = 0; l < s.depth; l++) {
            to_rows(a[l], s.in(l), a_rows[l]);
            product(s.out(l), n, s.in(l), {W + s.place(l), s.apart(l), 1}, a[l], n, {Into::PUT, z[l], n});
            if (l < s.depth - 1) activate(s.out(l), z[l], a[l + 1]);
        }
        if (s.residual) norm_columns(s.d, n, s.damping, z[s.depth - 1], unit, scale);
        miss();
        if (s.residual) norm_back(s.d, n, unit, scale, missed, delta[s.depth - 1]);
        for (int64_t l = s.depth - 2; l >= 0; l--) {
            product(s.out(l), n, s.out(l + 1), {W + s.place(l + 1), 1, s.apart(l + 1)}, delta[l + 1], n, {Into::PUT, back[l], n});
            each(s.out(l) * n, [&](int64_t i) INLINE {
                const Vec at = load(z[l] + i);
                store(delta[l] + i, load(back[l] + i) * slope(at, sigmoid(at)));
            });
        }
    }

    // What the weights after each token answer to its query, from M and S before the piece, and home, which may be null.
    void answer(const float* M, const float* S, const float* home) {
        load_columns(in.q, x[0]);
        for (int64_t l = 0; l < s.depth; l++) {
            const int64_t o = s.out(l), i = s.in(l), at = s.place(l);
            product(o, n, i, {M + at, s.apart(l), 1}, x[l], n, {Into::PUT, p[l], n, mix.beta});
            if (in.carry) product(o, n, i, {S + at, s.apart(l), 1}, x[l], n, {Into::ADD, p[l], n, mix.f});
            if (home) product(o, n, i, {home + at, s.apart(l), 1}, x[l], n, {Into::ADD, p[l], n});
            product(c, n, i, {a[l], 1, n}, x[l], n, {Into::PUT, seen[l], n});
            each(c * n, [&](int64_t j) INLINE { store(square + j, load(seen[l] + j) * load(mix.turned + j)); });
            product(o, n, c, {delta[l], n, 1}, square, n, {Into::TAKE, p[l], n});
            if (l < s.depth - 1) activate(o, p[l], x[l + 1]);
        }
        if (s.residual) {
            norm_columns(s.d, n, s.damping, p[s.depth - 1], p_unit, p_scale);
            each(s.d * n, [&](int64_t i) INLINE { store(reply + i, load(x[0] + i) + load(p_unit + i)); });
        }
    }

    const float* answers() const { return s.residual ? reply : p[s.depth - 1]; }

    // M and S after the piece, which lie apart from those before it.
    void update(const float* M, const float* S, float* M_after, float* S_after) {
        const float beta = mix.beta[c - 1], f = mix.f[c - 1], fade = mix.fade[c - 1];
        const float *share = mix.G + (c - 1) * n, *share_S = mix.N + (c - 1) * n;
        if (in.carry)
            each(s.weights(), [&](int64_t i) INLINE {
                const Vec was = load(S + i);
                store(M_after + i, load(M + i) * beta + was * f), store(S_after + i, was * fade);
            });
        else
            each(s.weights(), [&](int64_t i) INLINE { store(M_after + i, load(M + i) * beta); });
        for (int64_t l = 0; l < s.depth; l++) {
            add_gradients(l, share, M_after);
            if (in.carry) add_gradients(l, share_S, S_after);
        }
    }

    // `from` [rows, n] with each column times by[column].
    void scale_columns(int64_t rows, const float* from, const float* by, float* to) const {
        for (int64_t r = 0; r < rows; r++)
            each(n, [&](int64_t j) INLINE { store(to + r * n + j, load(from + r * n + j) * load(by + j)); });
    }

   private:
    void activate(int64_t rows, const float* from, float* to) const {
        each(rows * n, [&](int64_t i) INLINE {
            const Vec at = load(from + i);
            store(to + i, at * sigmoid(at));
        });
    }

    // The gradients by the answers to the keys.
    void miss() {
        float* to = s.residual ? missed : delta[s.depth - 1];
        if (s.bias == DOT) {
            each(s.d * n, [&](int64_t i) INLINE { store(to + i, -load(v + i)); });
        } else if (s.bias == L2) {
            errors(to);
            each(s.d * n, [&](int64_t i) INLINE { store(to + i, 2.0f * load(to + i)); });
        } else {
            errors(to);
            for (int64_t j = 0; j < c; j++) {
                const float size = length(to, j), limit = in.limit[gate(j)];
                for (int64_t i = 0; size > limit && i < s.d; i++) to[i * n + j] *= limit / size;
            }
        }
    }

    void add_gradients(int64_t l, const float* share, float* to) {
        scale_columns(s.out(l), delta[l], share, wide);
        product(s.out(l), s.apart(l), c, {wide, n, 1}, a_rows[l], s.apart(l), {Into::TAKE, to + s.place(l), s.apart(l)});
    }

   protected:
    // What the answers to the keys are more than the values.
    void errors(float* to) {
        const float* y = z[s.depth - 1];
        if (s.residual)
            each(s.d * n, [&](int64_t i) INLINE { store(to + i, load(a[0] + i) + load(unit + i) - load(v + i)); });
        else
            each(s.d * n, [&](int64_t i) INLINE { store(to + i, load(y + i) - load(v + i)); });
    }

    // Of a column of d floats.
    float length(const float* from, int64_t column) const {
        float square = 0;
        for (int64_t i = 0; i < s.d; i++) square += from[i * n + column] * from[i * n + column];
        return sqrtf(square);
    }
};
