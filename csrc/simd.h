// One vector register of floats on whatever the file is compiled for, and floats or bf16 in memory. GCC and Clang.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t IntVec __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t bf16;  // the upper half of a float
typedef uint16_t HalfVec __attribute__((vector_size(WIDTH * 2)));

template <class To, class From>
static inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline Vec load(const float* p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline Vec load(const bf16* p) {
    HalfVec half;
    memcpy(&half, p, sizeof half);
    return bits_as<Vec>(__builtin_convertvector(half, IntVec) << 16);
}

static inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

// Rounded to the nearest, ties to even; NaN stays NaN.
static inline void store(bf16* p, Vec v) {
    const IntVec bits = bits_as<IntVec>(v);
    const IntVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const HalfVec half = __builtin_convertvector(v == v ? rounded : IntVec{} + 0x7fc0, HalfVec);
    memcpy(p, &half, sizeof half);
}

static inline Vec all(float x) { return x - Vec{}; }

static inline float sum(Vec v) {
    float s[WIDTH];
    store(s, v);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

#define INLINE __attribute__((always_inline))

template <class F, int... I>
INLINE static inline void written_out(F f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>()), ...);
}

// f(0), ..., f(COUNT - 1), written out: with indices that the compiler knows from the start, arrays stay in registers.
template <int COUNT, class F>
INLINE static inline void unrolled(F f) {
    written_out(f, std::make_integer_sequence<int, COUNT>());
}

// Elements 2 i + OFFSET of a and then of b.
template <int OFFSET, int... I>
INLINE static inline Vec every_other(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (2 * I + OFFSET)...);
#else
    return __builtin_shuffle(a, b, IntVec{(2 * I + OFFSET)...});
#endif
}

// The sums of WIDTH registers, in one; the registers are overwritten.
static inline Vec sums(Vec (&v)[WIDTH]) {
    constexpr std::make_integer_sequence<int, WIDTH> all;
    for (int count = WIDTH / 2; count; count /= 2)
        for (int i = 0; i < count; i++)
            v[i] = every_other<0>(v[2 * i], v[2 * i + 1], all) + every_other<1>(v[2 * i], v[2 * i + 1], all);
    return v[0];
}
