// One vector register of floats on whatever the file is compiled for, and exp on it. GCC and Clang.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t IntVec __attribute__((vector_size(WIDTH * 4)));

static inline Vec load(const float* p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

static inline Vec all(float x) { return x - Vec{}; }

static inline float sum(Vec v) {
    float s = 0;
    for (int i = 0; i < WIDTH; i++) s += v[i];
    return s;
}

// exp with a relative error below 2e-7 (Cephes' expf): x = k log 2 + r with |r| <= log(2) / 2, a polynomial for e^r, and k added
// to the exponent's bits. Arguments are clamped to [-87, 88], where float ends; NaN stays NaN.
static inline Vec exp(Vec x) {
    const Vec low = all(-87.0f), high = all(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest whole number
    const Vec shifted = x * 1.44269504f + magic;
    const Vec k = shifted - magic;
    const Vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // log 2 in two parts
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    IntVec bits, exponent, offset;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&offset, &magic, sizeof offset);
    memcpy(&bits, &p, sizeof bits);
    bits += (exponent - offset) << 23;
    memcpy(&p, &bits, sizeof p);
    return x == x ? p : x;
}
