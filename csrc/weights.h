// Weights in fp32 or bf16, loads and stores of part of a register, and products of rows of weights with rows of activations.
#pragma once
#include <cmath>

#include "functions.h"

constexpr int64_t MOST_ROWS = 8;  // as in postformer/ops/_cpu.py

// The first `m` values, followed by zeros.
template <class T>
static inline Vec load_some(const T* p, int64_t m) {
    if (m == WIDTH) return load(p);
    T full[WIDTH] = {};
    memcpy(full, p, m * sizeof(T));
    return load(full);
}

static inline void store_some(float* p, Vec v, int64_t m) {
    if (m == WIDTH) return store(p, v);
    float full[WIDTH];
    store(full, v);
    memcpy(p, full, m * sizeof(float));
}

// Where `dots` with weights of type T reads the i-th of n activations. Two bf16 in a word become floats by a shift and a mask, without
// being moved: so activations of even index precede those of odd index in each full pair of registers.
template <class T>
static inline int64_t place(int64_t i, int64_t n);

template <>
inline int64_t place<float>(int64_t i, int64_t) {
    return i;
}

template <>
inline int64_t place<bf16>(int64_t i, int64_t n) {
    constexpr int64_t PAIR = 2 * WIDTH;
    const int64_t first = i / PAIR * PAIR;
    return first + PAIR <= n ? first + i % 2 * WIDTH + (i - first) / 2 : i;
}

// The activations of a row [n] in their places.
template <class T>
static inline void arrange(const float* x, float* to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[place<T>(i, n)] = x[i];
}

static inline void add_products(Vec& sum, const float* w, Vec x0, Vec x1) {
    sum += load(w) * x0;
    sum += load(w + WIDTH) * x1;
}

static inline void add_products(Vec& sum, const bf16* w, Vec x0, Vec x1) {
    IntVec two;
    memcpy(&two, w, sizeof two);
    sum += bits_as<Vec>(two << 16) * x0;
    sum += bits_as<Vec>(two & ~0xffff) * x1;
}

static inline float single(float w) { return w; }

static inline float single(bf16 w) {
    const uint32_t bits = static_cast<uint32_t>(w) << 16;
    return bits_as<float>(bits);
}

// A float as it is stored: bf16 is rounded to the nearest, ties to even; NaN stays NaN.
template <class T>
static inline T rounded(float x);

template <>
inline float rounded<float>(float x) {
    return x;
}

template <>
inline bf16 rounded<bf16>(float x) {
    bf16 all_lanes[WIDTH];
    store(all_lanes, all(x));
    return all_lanes[0];
}

// What adds up to the inner product of a row of weights [n] and a row of activations in their places.
template <class T>
INLINE static inline Vec products(const T* w, const float* x, int64_t n) {
    constexpr int64_t PAIR = 2 * WIDTH;
    Vec even = {}, odd = {};
    int64_t i = 0;
    for (; i + 2 * PAIR <= n; i += 2 * PAIR) {
        add_products(even, w + i, load(x + i), load(x + i + WIDTH));
        add_products(odd, w + i + PAIR, load(x + i + PAIR), load(x + i + PAIR + WIDTH));
    }
    for (; i + PAIR <= n; i += PAIR) add_products(even, w + i, load(x + i), load(x + i + WIDTH));
    for (; i + WIDTH <= n; i += WIDTH) odd += load(w + i) * load(x + i);
    if (i < n) even += load_some(w + i, n - i) * load_some(x + i, n - i);
    return even + odd;
}

// The same of COUNT rows, which follow each other. The rows after them are asked for while these are read: hardware stops to read ahead
// where a page of memory ends.
template <int COUNT, class T>
INLINE static inline void products(const T* w, const float* x, int64_t n, Vec* sums) {
    constexpr int64_t PAIR = 2 * WIDTH;
    Vec own[COUNT] = {};
    int64_t i = 0;
    for (; i + PAIR <= n; i += PAIR) {
        const Vec x0 = load(x + i), x1 = load(x + i + WIDTH);
        unrolled<COUNT>([&](auto r) INLINE {
            const T* at = w + r * n + i;
            const char* next = reinterpret_cast<const char*>(at + COUNT * n);
            for (int64_t line = 0; line < static_cast<int64_t>(PAIR * sizeof(T)); line += 64) __builtin_prefetch(next + line);
            add_products(own[r], at, x0, x1);
        });
    }
    for (; i < n; i += WIDTH) {
        const int64_t m = n - i < WIDTH ? n - i : WIDTH;
        const Vec x0 = load_some(x + i, m);
        unrolled<COUNT>([&](auto r) INLINE { own[r] += load_some(w + r * n + i, m) * x0; });
    }
    unrolled<COUNT>([&](auto r) INLINE { sums[r] = own[r]; });
}

// The inner products of `count` rows of weights [n], at most WIDTH, which follow each other, and a row of activations in their places. Rows
// within a page are read one after the other, as they lie: that is twice as fast from memory as several at a time; longer ones are not.
template <class T>
static inline void dots(const T* w, const float* x, int64_t n, int64_t count, float* out) {
    constexpr int TOGETHER = 4;
    constexpr int64_t PAGE = 4096;
    Vec found[WIDTH] = {};
    int64_t r = 0;
    if (n * static_cast<int64_t>(sizeof(T)) > PAGE)
        for (; r + TOGETHER <= count; r += TOGETHER) products<TOGETHER>(w + r * n, x, n, found + r);
    for (; r < count; r++) found[r] = products(w + r * n, x, n);
    store_some(out, sums(found), count);
}

template <class T>
static inline float dot(const T* w, const float* x, int64_t n) {
    return sum(products(w, x, n));
}

// f(first, count) for the rows `begin` to `end` of a matrix, at most WIDTH at a time.
template <class F>
static inline void each_few(int64_t begin, int64_t end, const F& f) {
    for (int64_t i = begin; i < end; i += WIDTH) f(i, end - i < WIDTH ? end - i : WIDTH);
}

// f(i, row, value) for the outputs i of a task of COUNT outputs of w [outputs, n], and each row of x [b, n].
template <int64_t COUNT, class T, class F>
static inline void each_product(int64_t task, int64_t outputs, const T* w, const float* x, int64_t n, int64_t b, const F& f) {
    const int64_t begin = task * COUNT, end = begin + COUNT < outputs ? begin + COUNT : outputs;
    each_few(begin, end, [&](int64_t i, int64_t count) {
        float values[WIDTH];
        for (int64_t row = 0; row < b; row++) {
            dots(w + i * n, x + row * n, n, count, values);
            for (int64_t k = 0; k < count; k++) f(i + k, row, values[k]);
        }
    });
}

// A small tensor, of floats or bf16, which may be absent.
struct Small {
    const void* data = nullptr;
    bool half = false;
    explicit operator bool() const { return data; }
    float operator[](int64_t i) const { return half ? single(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i]; }
    Vec some(int64_t i, int64_t m) const {
        return half ? load_some(static_cast<const bf16*>(data) + i, m) : load_some(static_cast<const float*>(data) + i, m);
    }
    Small from(int64_t i) const { return {data ? static_cast<const char*>(data) + i * (half ? 2 : 4) : nullptr, half}; }
};

// 1 / sqrt(mean(x^2) + eps) of x [n].
static inline float over_rms(const float* x, int64_t n, double eps) {
    return static_cast<float>(1 / std::sqrt(static_cast<double>(dot(x, x, n)) / n + eps));
}
