// Weights in fp32 or bf16 as registers of floats, loads and stores of part of a register, and the product of two rows.
#pragma once
#include "functions.h"

static inline float single(const float* p) { return *p; }

static inline float single(const bf16* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// The first `m` values, followed by zeros.
static inline Vec load_some(const float* p, int64_t m) {
    if (m == WIDTH) return load(p);
    float full[WIDTH] = {};
    memcpy(full, p, m * sizeof(float));
    return load(full);
}

static inline void store_some(float* p, Vec v, int64_t m) {
    float full[WIDTH];
    store(full, v);
    memcpy(p, full, m * sizeof(float));
}

// The inner product of a row of weights and a row of activations, in several sums at once.
template <class T>
static inline float dot(const T* w, const float* x, int64_t n) {
    Vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
        for (int k = 0; k < 4; k++) sums[k] += load(w + i + k * WIDTH) * load(x + i + k * WIDTH);
    for (; i + WIDTH <= n; i += WIDTH) sums[0] += load(w + i) * load(x + i);
    float rest = 0;
    for (; i < n; i++) rest += single(w + i) * x[i];
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}
