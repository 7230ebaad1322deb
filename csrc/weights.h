// Weights in fp32 or bf16, loads and stores of part of a register, and products of rows of weights with rows of activations.
#pragma once
#include "functions.h"

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

// The inner products of COUNT rows of weights [n], which follow each other, and a row of activations in their places. The rows after them
// are asked for while these are read: hardware stops to read ahead where a page of memory ends.
template <int COUNT, class T>
static inline void dots(const T* w, const float* x, int64_t n, float* out) {
    constexpr int64_t PAIR = 2 * WIDTH;
    Vec sums[COUNT] = {};
    int64_t i = 0;
    for (; i + PAIR <= n; i += PAIR) {
        const Vec x0 = load(x + i), x1 = load(x + i + WIDTH);
        unrolled<COUNT>([&](auto r) INLINE {
            const T* at = w + r * n + i;
            const char* next = reinterpret_cast<const char*>(at + COUNT * n);
            for (int64_t line = 0; line < static_cast<int64_t>(PAIR * sizeof(T)); line += 64) __builtin_prefetch(next + line);
            add_products(sums[r], at, x0, x1);
        });
    }
    for (; i + WIDTH <= n; i += WIDTH) unrolled<COUNT>([&](auto r) INLINE { sums[r] += load(w + r * n + i) * load(x + i); });
    unrolled<COUNT>([&](auto r) INLINE {
        float rest = sum(sums[r]);
        for (int64_t k = i; k < n; k++) rest += single(w[r * n + k]) * x[k];
        out[r] = rest;
    });
}

template <class T>
static inline float dot(const T* w, const float* x, int64_t n) {
    float out;
    dots<1>(w, x, n, &out);
    return out;
}

// f(i, row, value) for the outputs i of a task of COUNT outputs of w [outputs, n], and each row of x [b, n].
template <int64_t COUNT, class T, class F>
static inline void each_product(int64_t task, int64_t outputs, const T* w, const float* x, int64_t n, int64_t b, const F& f) {
    constexpr int TOGETHER = 4;
    int64_t i = task * COUNT;
    const int64_t end = i + COUNT < outputs ? i + COUNT : outputs;
    float values[TOGETHER];
    for (; i + TOGETHER <= end; i += TOGETHER)
        for (int64_t row = 0; row < b; row++) {
            dots<TOGETHER>(w + i * n, x + row * n, n, values);
            for (int k = 0; k < TOGETHER; k++) f(i + k, row, values[k]);
        }
    for (; i < end; i++)
        for (int64_t row = 0; row < b; row++) f(i, row, dot(w + i * n, x + row * n, n));
}
