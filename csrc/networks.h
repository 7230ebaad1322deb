// A few tokens through networks of two or three matrices, which reads each network's weights once.
#pragma once
#include <algorithm>
#include <vector>

#include "floats.h"
#include "parallel.h"
#include "weights.h"

enum Activation { SWIGLU, RELU, CLIPPED, GELU };

static inline bool gated(Activation kind) { return kind == SWIGLU || kind == CLIPPED; }

// A token on its way through a network, whose answer counts `weight` times.
struct Pair {
    int64_t token;
    float weight;
};

// y = out activated(gate x + gate_bias, up x + up_bias) + out_bias, for `rows` pairs from the `first` on; gate and up [f, d], out [d, f].
// Without a gate, gate is null; biases may be absent.
template <class T>
struct Network {
    const T *gate, *up, *out;
    Small gate_bias, up_bias, out_bias;
    int64_t f, first, rows;
};

// What stands between the matrices, of the values of `up` alone where nothing gates. ALPHA and LIMIT are gpt-oss's.
static inline Vec activated(Activation kind, Vec gate, Vec up) {
    constexpr float ALPHA = 1.702f, LIMIT = 7.0f, NONE = -3e38f;
    if (kind == RELU) return up > 0.0f ? up : Vec{} * up;  // NaN stays
    if (kind == GELU) return up * normal_below(up);
    if (kind == SWIGLU) return gate * sigmoid(gate) * up;
    gate = clamp(gate, NONE, LIMIT);
    return gate * sigmoid(ALPHA * gate) * (clamp(up, -LIMIT, LIMIT) + 1.0f);
}

// Adds to y [n, d] what the networks make of its tokens, of which `placed` [n, d] holds the inputs in their places.
template <class T>
static int32_t add_networks(ParallelFor pool, const std::vector<Network<T>>& networks, const std::vector<Pair>& pairs, Activation kind,
                            const float* placed, float* y, int64_t d) {
    constexpr int64_t CHANNELS = 32;  // of a task in the first half, a multiple of every WIDTH
    constexpr int64_t OUTPUTS = 64;   // of a task in the second
    struct Task {
        const Network<T>* network;
        int64_t begin;
        float* hidden;
    };
    std::vector<Task> tasks;
    std::vector<float*> answers;
    int64_t floats = 0;
    for (const auto& network : networks) floats += network.rows * network.f;
    Floats hidden(floats);
    float* next = hidden.data();
    for (const auto& network : networks) {
        answers.push_back(next);
        for (int64_t i = 0; i < network.f; i += CHANNELS) tasks.push_back({&network, i, next});
        next += network.rows * network.f;
    }

    auto inside = [&](int64_t task) {
        const Network<T>& own = *tasks[task].network;
        const int64_t begin = tasks[task].begin, end = std::min(begin + CHANNELS, own.f);
        Floats both(own.rows * 2 * CHANNELS);
        auto multiply = [&](const T* matrix, const Small& bias, int64_t half) {
            each_few(begin, end, [&](int64_t i, int64_t count) {
                for (int64_t r = 0; r < own.rows; r++) {
                    float* to = both.data() + (2 * r + half) * CHANNELS + i - begin;
                    dots(matrix + i * d, placed + pairs[own.first + r].token * d, d, count, to);
                    if (bias)
                        for (int64_t k = 0; k < count; k++) to[k] += bias[i + k];
                }
            });
        };
        if (own.gate) multiply(own.gate, own.gate_bias, 0);
        multiply(own.up, own.up_bias, 1);
        for (int64_t r = 0; r < own.rows; r++) {
            float* values = both.data() + 2 * r * CHANNELS;
            for (int64_t c = 0; c < CHANNELS; c += WIDTH)
                store(values + c, activated(kind, load(values + c), load(values + CHANNELS + c)) * pairs[own.first + r].weight);
            float* to = tasks[task].hidden + r * own.f;
            for (int64_t i = begin; i < end; i++) to[place<T>(i, own.f)] = values[i - begin];
        }
    };
    auto outside = [&](int64_t task) {
        const int64_t begin = task * OUTPUTS, end = std::min(begin + OUTPUTS, d);
        for (size_t j = 0; j < networks.size(); j++) {
            const Network<T>& own = networks[j];
            each_few(begin, end, [&](int64_t i, int64_t count) {
                for (int64_t r = 0; r < own.rows; r++) {
                    const Pair& pair = pairs[own.first + r];
                    float values[WIDTH];
                    dots(own.out + i * own.f, answers[j] + r * own.f, own.f, count, values);
                    float* to = y + pair.token * d + i;
                    for (int64_t k = 0; k < count; k++) to[k] += values[k] + (own.out_bias ? pair.weight * own.out_bias[i + k] : 0);
                }
            });
        }
    };
    const int32_t failed = parallel(pool, static_cast<int64_t>(tasks.size()), inside);
    return failed ? failed : parallel(pool, (d + OUTPUTS - 1) / OUTPUTS, outside);
}

// Whether each of n numbers is at least 0 and below `end`.
static inline bool all_below(const int64_t* numbers, int64_t n, int64_t end) {
    return std::all_of(numbers, numbers + n, [&](int64_t one) { return 0 <= one && one < end; });
}

// The pairs of n tokens with k networks each, in the order of networks and of tokens within each, and where those of each begin. `chosen`
// holds numbers of `networks` networks (`all_below`).
struct Sent {
    std::vector<Pair> pairs;
    std::vector<int64_t> begins;

    Sent(const int64_t* chosen, const float* weights, int64_t n, int64_t k, int64_t networks) : pairs(n * k), begins(networks + 1) {
        for (int64_t i = 0; i < n * k; i++) begins[chosen[i] + 1]++;
        for (int64_t e = 0; e < networks; e++) begins[e + 1] += begins[e];
        std::vector<int64_t> next(begins);
        for (int64_t i = 0; i < n * k; i++) pairs[next[chosen[i]]++] = {i / k, weights[i]};
    }
};

// Those of the experts that tokens were sent to. up [e, w, d] with the gate's rows first, out [e, d, f], up_bias [e, w], out_bias [e, d].
template <class T>
static std::vector<Network<T>> networks_hit(const Sent& sent, const T* up, const T* out, Small up_bias, Small out_bias, Activation kind,
                                            int64_t d, int64_t f) {
    std::vector<Network<T>> found;
    const int64_t w = gated(kind) ? 2 * f : f;
    for (int64_t e = 0; e + 1 < static_cast<int64_t>(sent.begins.size()); e++) {
        const int64_t rows = sent.begins[e + 1] - sent.begins[e], values = e * w + w - f;
        if (!rows) continue;
        found.push_back({gated(kind) ? up + e * w * d : nullptr, up + values * d, out + e * d * f, up_bias.from(e * w), up_bias.from(values),
                         out_bias.from(e * d), f, sent.begins[e], rows});
    }
    return found;
}
