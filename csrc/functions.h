// Functions of a register of floats. NaN stays NaN in all of them.
#pragma once
#include "simd.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

// x within [low, high].
static inline Vec clamp(Vec x, float low, float high) {
#if defined(__AVX512F__)
    return _mm512_min_ps(all(high), _mm512_max_ps(all(low), x));
#elif defined(__AVX2__)
    return _mm256_min_ps(all(high), _mm256_max_ps(all(low), x));
#elif defined(__SSE2__)
    return _mm_min_ps(all(high), _mm_max_ps(all(low), x));
#else
    x = x < all(low) ? all(low) : x;
    return x > all(high) ? all(high) : x;
#endif
}

// Whether all of x lies within [-bound, bound]; NaN does not.
static inline bool within(Vec x, float bound) {
    const Vec size = bits_as<Vec>(bits_as<IntVec>(x) & 0x7fffffff);
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(size, all(bound), _CMP_LE_OQ) == 0xffff;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps(size, all(bound), _CMP_LE_OQ)) == 0xff;
#elif defined(__SSE2__)
    return _mm_movemask_ps(_mm_cmple_ps(size, all(bound))) == 0xf;
#else
    for (int i = 0; i < WIDTH; i++)
        if (!(size[i] <= bound)) return false;
    return true;
#endif
}

constexpr float TO_WHOLE = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest whole number, which its lowest bits then hold

// p * 2^k for the whole number that `shifted` holds, from -126 to 127.
static inline Vec scaled(Vec p, Vec shifted) { return p * bits_as<Vec>((bits_as<IntVec>(shifted) + 127) << 23); }

// exp with a relative error below 2e-7 (Cephes' expf): x = k log 2 + r with |r| <= log(2) / 2, a polynomial for e^r, times 2^k.
// Arguments are clamped to [-87, 88], where float ends.
static inline Vec exp(Vec x) {
    x = clamp(x, -87.0f, 88.0f);
    const Vec shifted = x * 1.44269504f + TO_WHOLE;
    const Vec k = shifted - TO_WHOLE;
    const Vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // log 2 in two parts
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return scaled(p, shifted);
}

// The best polynomial of degree 5 for 2^r on [-1/2, 1/2] that is 1 at 0. Several registers take each step together, since one would wait for
// itself.
template <int COUNT>
INLINE static inline void exp2_polynomial(const Vec (&r)[COUNT], Vec (&p)[COUNT]) {
    constexpr float FACTORS[] = {9.671512786e-3f, 5.550733744e-2f, 2.402224208e-1f, 6.931469776e-1f, 1.0f};
    unrolled<COUNT>([&](auto i) INLINE { p[i] = all(1.326472725e-3f); });
    unrolled<5>([&](auto step) INLINE { unrolled<COUNT>([&](auto i) INLINE { p[i] = p[i] * r[i] + FACTORS[step]; }); });
}

// 2^x with a relative error below 2e-7, exact at 0.
template <int COUNT>
INLINE static inline void exp2(Vec (&x)[COUNT]) {
    Vec shifted[COUNT], p[COUNT];
    unrolled<COUNT>([&](auto i) INLINE { x[i] = clamp(x[i], -126.0f, 127.0f); });
    unrolled<COUNT>([&](auto i) INLINE { shifted[i] = x[i] + TO_WHOLE; });
    unrolled<COUNT>([&](auto i) INLINE { x[i] -= shifted[i] - TO_WHOLE; });
    exp2_polynomial(x, p);
    unrolled<COUNT>([&](auto i) INLINE { x[i] = scaled(p[i], shifted[i]); });
}

constexpr float BOUND = 125.0f;

// The same of x y to x, where all products are known to lie within [-BOUND, BOUND].
template <int COUNT>
INLINE static inline void exp2_bounded(Vec (&x)[COUNT], const Vec (&y)[COUNT]) {
    Vec shifted[COUNT], p[COUNT];
    unrolled<COUNT>([&](auto i) INLINE { shifted[i] = x[i] * y[i] + TO_WHOLE; });
    unrolled<COUNT>([&](auto i) INLINE { p[i] = shifted[i] - TO_WHOLE; });
    unrolled<COUNT>([&](auto i) INLINE { x[i] = x[i] * y[i] - p[i]; });
    exp2_polynomial(x, p);
    unrolled<COUNT>([&](auto i) INLINE { x[i] = bits_as<Vec>(bits_as<IntVec>(p[i]) + (bits_as<IntVec>(shifted[i]) << 23)); });
}

static inline Vec exp2(Vec x) {
    Vec one[1] = {x};
    exp2(one);
    return one[0];
}

constexpr float LOG2_E = 1.44269504f, LOG_2 = 0.693147181f;

static inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// The share of the normal distribution that lies below x, with an error below 2e-7 (Abramowitz & Stegun 1964, 7.1.26).
static inline Vec normal_below(Vec x) {
    const Vec z = 0.70710678f * (x > 0.0f ? x : -x), t = 1.0f / (1.0f + 0.3275911f * z);
    Vec p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vec tail = 0.5f * p * t * exp(-z * z);
    return x > 0.0f ? 1.0f - tail : tail;
}

// log(1 + e^x) = max(x, 0) + log(1 + e) with e = exp(-|x|); log(1 + e) = 2 artanh(e / (2 + e)) by its series, whose next term is
// 2e-8 of the whole at e = 1.
static inline Vec softplus(Vec x) {
    const Vec e = exp(x > 0.0f ? -x : x), s = e / (2.0f + e), q = s * s;
    Vec p = all(2.0f / 13);
    p = p * q + 2.0f / 11;
    p = p * q + 2.0f / 9;
    p = p * q + 2.0f / 7;
    p = p * q + 2.0f / 5;
    p = p * q + 2.0f / 3;
    p = p * q + 2.0f;
    return (x > 0.0f ? x : Vec{}) + p * s;
}
