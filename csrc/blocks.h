// Blocks of channels: what a kernel takes at a time. A width that is no multiple of LANES is filled up with zeros.
#pragma once
#include "functions.h"

constexpr int LANES = 16;  // one cache line of floats
constexpr int K = LANES / WIDTH;

static inline int64_t blocks_of(int64_t channels) { return (channels + LANES - 1) / LANES; }

// How many channels of the block that begins at `first` exist.
static inline int64_t lanes_from(int64_t first, int64_t channels) { return channels - first < LANES ? channels - first : LANES; }

// How many of all blocks one task takes through a few tokens before it goes on to the next ones: rows of the activations lie on pages of
// memory of their own, and neighbours share the search for them.
static inline int64_t neighbours(int64_t blocks) {
    constexpr int64_t MOST = 8, TASKS = 16;
    return blocks < TASKS ? 1 : blocks / TASKS < MOST ? blocks / TASKS : MOST;
}

// LANES channels of a row, of which `m` exist in memory.
struct Block {
    Vec v[K];
};

static inline float total(const Block& x) {
    float all = 0;
    for (int k = 0; k < K; k++) all += sum(x.v[k]);
    return all;
}

template <class T>
static inline Block load_block(const T* p, int64_t m) {
    Block x;
    if (m == LANES) {
        for (int k = 0; k < K; k++) x.v[k] = load(p + k * WIDTH);
    } else {
        T full[LANES] = {};
        memcpy(full, p, m * sizeof(T));
        for (int k = 0; k < K; k++) x.v[k] = load(full + k * WIDTH);
    }
    return x;
}

template <class T>
static inline void store_block(T* p, const Block& x, int64_t m) {
    if (m == LANES) {
        for (int k = 0; k < K; k++) store(p + k * WIDTH, x.v[k]);
    } else {
        T full[LANES];
        for (int k = 0; k < K; k++) store(full + k * WIDTH, x.v[k]);
        memcpy(p, full, m * sizeof(T));
    }
}

// [m, n] in memory to [n, LANES], with zeros for the channels that do not exist, and back.
static inline void transpose_in(const float* from, float* to, int64_t m, int64_t n) {
    memset(to, 0, n * LANES * sizeof(float));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) to[j * LANES + i] = from[i * n + j];
}

static inline void transpose_out(const float* from, float* to, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) to[i * n + j] = from[j * LANES + i];
}
