// A few tokens through their experts, which reads the weights of each expert once (formula: postformer/ops/experts.py).
//
// x and y [n, d]; chosen and weights [n, k]; up [e, w, d] with w = 2 f where there is a gate and f elsewhere, out [e, d, f], both floats or
// (`half`) bf16; up_bias [e, w] and out_bias [e, d] floats or null.
#include <algorithm>

#include "floats.h"
#include "parallel.h"
#include "weights.h"

namespace {

constexpr int64_t CHANNELS = 32;  // of a task in the first half, a multiple of every WIDTH
constexpr int64_t OUTPUTS = 64;   // of a task in the second
constexpr int TOGETHER = 4;

enum Activation { SWIGLU, RELU, CLIPPED };

struct Sizes {
    int64_t n, k, experts, d, f;
    Activation activation;
    int64_t w() const { return activation == RELU ? f : 2 * f; }
};

// The pairs of a token and an expert in the order of experts, and of tokens within each; those of expert i from begins[i] to begins[i + 1].
struct Pairs {
    std::vector<int64_t> token, begins, hit;
    std::vector<float> weight;

    Pairs(const int64_t* chosen, const float* weights, const Sizes& s) : token(s.n * s.k), begins(s.experts + 1), weight(s.n * s.k) {
        for (int64_t i = 0; i < s.n * s.k; i++) begins[chosen[i] + 1]++;
        for (int64_t e = 0; e < s.experts; e++) {
            if (begins[e + 1]) hit.push_back(e);
            begins[e + 1] += begins[e];
        }
        std::vector<int64_t> next(begins);
        for (int64_t i = 0; i < s.n * s.k; i++) {
            const int64_t at = next[chosen[i]]++;
            token[at] = i / s.k;
            weight[at] = weights[i];
        }
    }
};

// What stands between the matrices; ALPHA and LIMIT are gpt-oss's.
static inline Vec activated(Activation kind, Vec gate, Vec up) {
    constexpr float ALPHA = 1.702f, LIMIT = 7.0f, NONE = -3e38f;
    if (kind == RELU) return gate > 0.0f ? gate : Vec{} * gate;  // NaN stays
    if (kind == SWIGLU) return gate * sigmoid(gate) * up;
    gate = clamp(gate, NONE, LIMIT);
    return gate * sigmoid(ALPHA * gate) * (clamp(up, -LIMIT, LIMIT) + 1.0f);
}

// f(first, count) for the rows `begin` to `end` of a matrix, TOGETHER at a time and then one by one.
template <class F>
static inline void each_few(int64_t begin, int64_t end, const F& f) {
    int64_t i = begin;
    for (; i + TOGETHER <= end; i += TOGETHER) f(i, std::integral_constant<int, TOGETHER>());
    for (; i < end; i++) f(i, std::integral_constant<int, 1>());
}

template <class T>
int32_t experts(ParallelFor pool, const float* x, const Pairs& pairs, const T* up, const T* out, const float* up_bias, const float* out_bias,
                float* y, const Sizes& s) {
    Floats placed(s.n * s.d), hidden(s.n * s.k * s.f);
    const std::vector<int64_t>& hit = pairs.hit;
    for (int64_t row = 0; row < s.n; row++) arrange<T>(x + row * s.d, placed.data() + row * s.d, s.d);
    const int64_t blocks = (s.f + CHANNELS - 1) / CHANNELS, w = s.w();

    auto inside = [&](int64_t task) {
        const int64_t e = hit[task / blocks], begin = task % blocks * CHANNELS, end = std::min(begin + CHANNELS, s.f);
        const int64_t first = pairs.begins[e], rows = pairs.begins[e + 1] - first;
        Floats both(rows * 2 * CHANNELS);
        for (int64_t half = 0; half < w / s.f; half++)
            each_few(begin, end, [&](int64_t i, auto count) {
                const int64_t place_of = e * w + half * s.f + i;
                for (int64_t r = 0; r < rows; r++) {
                    float values[count];
                    dots<count>(up + place_of * s.d, placed.data() + pairs.token[first + r] * s.d, s.d, values);
                    float* to = both.data() + (2 * r + half) * CHANNELS + i - begin;
                    for (int k = 0; k < count; k++) to[k] = values[k] + (up_bias ? up_bias[place_of + k] : 0);
                }
            });
        for (int64_t r = 0; r < rows; r++) {
            float* own = both.data() + 2 * r * CHANNELS;
            for (int64_t c = 0; c < CHANNELS; c += WIDTH)
                store(own + c, activated(s.activation, load(own + c), load(own + CHANNELS + c)) * pairs.weight[first + r]);
            float* to = hidden.data() + (first + r) * s.f;
            for (int64_t i = begin; i < end; i++) to[place<T>(i, s.f)] = own[i - begin];
        }
    };
    auto outside = [&](int64_t task) {
        const int64_t begin = task * OUTPUTS, end = std::min(begin + OUTPUTS, s.d);
        for (int64_t row = 0; row < s.n; row++) std::fill(y + row * s.d + begin, y + row * s.d + end, 0.0f);
        for (const int64_t e : hit)
            each_few(begin, end, [&](int64_t i, auto count) {
                for (int64_t p = pairs.begins[e]; p < pairs.begins[e + 1]; p++) {
                    float values[count];
                    dots<count>(out + (e * s.d + i) * s.f, hidden.data() + p * s.f, s.f, values);
                    float* to = y + pairs.token[p] * s.d + i;
                    for (int k = 0; k < count; k++) to[k] += values[k] + (out_bias ? pairs.weight[p] * out_bias[e * s.d + i + k] : 0);
                }
            });
    };
    const int32_t failed = parallel(pool, static_cast<int64_t>(hit.size()) * blocks, inside);
    return failed ? failed : parallel(pool, (s.d + OUTPUTS - 1) / OUTPUTS, outside);
}

}  // namespace

extern "C" KERNEL int32_t experts_forward(ParallelFor pool, const float* x, const int64_t* chosen, const float* weights, const void* up,
                                          const void* out, const float* up_bias, const float* out_bias, float* y, int64_t half, int64_t n,
                                          int64_t k, int64_t count, int64_t d, int64_t f, int64_t activation) {
    const Sizes s{n, k, count, d, f, static_cast<Activation>(activation)};
    try {
        const Pairs pairs(chosen, weights, s);
        return half ? experts(pool, x, pairs, static_cast<const bf16*>(up), static_cast<const bf16*>(out), up_bias, out_bias, y, s)
                    : experts(pool, x, pairs, static_cast<const float*>(up), static_cast<const float*>(out), up_bias, out_bias, y, s);
    } catch (...) {
        return 1;
    }
}
