// Weights in fp32 or bf16, loads and stores of part of a register, and the product of a row of weights and one of activations.
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

// Where `dot` with weights of type T reads the i-th of n activations. Two bf16 in a word become floats by a shift and a mask, without
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

constexpr int64_t BYTES_AHEAD = 2048;  // hardware stops to read ahead where a page of memory ends

static inline Vec products(const float* w, const float* x) {
    return load(w) * load(x) + load(w + WIDTH) * load(x + WIDTH);
}

static inline Vec products(const bf16* w, const float* x) {
    IntVec two;
    memcpy(&two, w, sizeof two);
    return bits_as<Vec>(two << 16) * load(x) + bits_as<Vec>(two & ~0xffff) * load(x + WIDTH);
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

// The inner product of a row of weights [n] and a row of activations in their places.
template <class T>
static inline float dot(const T* w, const float* x, int64_t n) {
    constexpr int64_t PAIR = 2 * WIDTH, SUMS = 4;
    Vec sums[SUMS] = {};
    int64_t i = 0;
    for (; i + SUMS * PAIR <= n; i += SUMS * PAIR) {
        const char* next = reinterpret_cast<const char*>(w + i) + BYTES_AHEAD;
        for (int64_t line = 0; line < static_cast<int64_t>(SUMS * PAIR * sizeof(T)); line += 64) __builtin_prefetch(next + line);
        for (int64_t k = 0; k < SUMS; k++) sums[k] += products(w + i + k * PAIR, x + i + k * PAIR);
    }
    for (; i + PAIR <= n; i += PAIR) sums[0] += products(w + i, x + i);
    float rest = 0;
    for (; i < n; i++) rest += single(w[i]) * x[i];
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}
