// Products of small matrices that lie in the caches, on one thread.
#pragma once
#include "simd.h"

// An operand whose element (row, k) is p[row * rs + k * cs].
struct Left {
    const float* p;
    int64_t rs, cs;
};

// What is done with a product: element (row, column) times by[column] (where given) is put to c, added to it or taken from it.
struct Into {
    enum Mode { PUT, ADD, TAKE } mode;
    float* c;
    int64_t apart;  // of rows
    const float* by = nullptr;
};

constexpr bool MANY_REGISTERS = WIDTH == 16;

template <int ROWS, int COLUMNS>
INLINE static inline void product_tile(int64_t k, Left a, const float* b, int64_t b_apart, const Into& to, int64_t row, int64_t column) {
    Vec sum[ROWS][COLUMNS] = {};
    const float* at = a.p + row * a.rs;
    b += column;
    for (int64_t i = 0; i < k; i++, at += a.cs, b += b_apart) {
        Vec right[COLUMNS];
        unrolled<COLUMNS>([&](auto j) INLINE { right[j] = load(b + j * WIDTH); });
        unrolled<ROWS>([&](auto r) INLINE {
            const Vec left = all(at[r * a.rs]);
            unrolled<COLUMNS>([&](auto j) INLINE { sum[r][j] += left * right[j]; });
        });
    }
    unrolled<COLUMNS>([&](auto j) INLINE {
        const int64_t first = column + j * WIDTH;
        const Vec by = to.by ? load(to.by + first) : all(1.0f);
        unrolled<ROWS>([&](auto r) INLINE {
            float* c = to.c + (row + r) * to.apart + first;
            const Vec v = sum[r][j] * by;
            store(c, to.mode == Into::PUT ? v : to.mode == Into::ADD ? load(c) + v : load(c) - v);
        });
    });
}

template <int ROWS, int COLUMNS>
static inline void product_rows(int64_t m, int64_t k, Left a, const float* b, int64_t b_apart, const Into& to, int64_t row, int64_t column) {
    for (; row + ROWS <= m; row += ROWS) product_tile<ROWS, COLUMNS>(k, a, b, b_apart, to, row, column);
    if constexpr (ROWS > 1) product_rows<ROWS / 2, COLUMNS>(m, k, a, b, b_apart, to, row, column);
}

// a [m, k] b [k, n]; n is a multiple of WIDTH.
static void product(int64_t m, int64_t n, int64_t k, Left a, const float* b, int64_t b_apart, const Into& to) {
    int64_t column = 0;
    if constexpr (MANY_REGISTERS) {
        for (; column + 4 * WIDTH <= n; column += 4 * WIDTH) product_rows<6, 4>(m, k, a, b, b_apart, to, 0, column);
        for (; column + 2 * WIDTH <= n; column += 2 * WIDTH) product_rows<12, 2>(m, k, a, b, b_apart, to, 0, column);
        for (; column < n; column += WIDTH) product_rows<16, 1>(m, k, a, b, b_apart, to, 0, column);
    } else {
        for (; column + 2 * WIDTH <= n; column += 2 * WIDTH) product_rows<6, 2>(m, k, a, b, b_apart, to, 0, column);
        for (; column < n; column += WIDTH) product_rows<8, 1>(m, k, a, b, b_apart, to, 0, column);
    }
}
