// Cross-entropy of rows of logits [n, v] against one target each, and its gradient (formula: postformer/ops/loss.py).
#include <cmath>
#include <limits>

#include "parallel.h"
#include "functions.h"

namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();
constexpr int CHAINS = 4;  // sums side by side, so that one addition does not wait for another

// `use(chain, x)` for all values of a row, a register at a time; the last one is filled up with minus infinity.
template <class F>
inline void each(const float* x, int64_t v, F use) {
    int64_t i = 0;
    for (; i + CHAINS * WIDTH <= v; i += CHAINS * WIDTH)
        for (int k = 0; k < CHAINS; k++) use(k, load(x + i + k * WIDTH));
    for (; i < v; i += WIDTH) {
        float end[WIDTH];
        for (int j = 0; j < WIDTH; j++) end[j] = i + j < v ? x[i + j] : LOWEST;
        use(0, load(end));
    }
}

inline float largest(const float* x, int64_t v) {
    Vec most[CHAINS];
    for (Vec& m : most) m = all(LOWEST);
    each(x, v, [&](int k, Vec value) { most[k] = value > most[k] ? value : most[k]; });
    float m = LOWEST;
    for (const Vec& each_chain : most)
        for (int j = 0; j < WIDTH; j++) m = each_chain[j] > m ? each_chain[j] : m;
    return m;
}

}  // namespace

// losses [n], maxima [n] and log_sums [n] of logits [n, v] and targets [n]: a row's largest logit m, and log sum exp(x - m). They are kept
// apart because their sum would lose digits where m is large.
extern "C" KERNEL int32_t cross_entropy_forward(ParallelFor pool, const float* logits, const int64_t* targets, float* losses,
                                                float* maxima, float* log_sums, int64_t n, int64_t v) {
    auto task = [=](int64_t row) {
        const float *x = logits + row * v, most = largest(x, v);
        Vec sums[CHAINS] = {};
        each(x, v, [&](int k, Vec value) { sums[k] += exp(value - most); });
        maxima[row] = most;
        log_sums[row] = std::log(sum((sums[0] + sums[1]) + (sums[2] + sums[3])));
        losses[row] = log_sums[row] - (x[targets[row]] - most);
    };
    return parallel(pool, n, task);
}

// The gradient of logits: (softmax - one at the target) times the gradient of the row's loss.
extern "C" KERNEL int32_t cross_entropy_backward(ParallelFor pool, const float* logits, const int64_t* targets, const float* maxima,
                                                 const float* log_sums, const float* dlosses, float* dlogits, int64_t n, int64_t v) {
    auto task = [=](int64_t row) {
        const float *x = logits + row * v, most = maxima[row], log_sum = log_sums[row], d = dlosses[row];
        float* dx = dlogits + row * v;
        int64_t i = 0;
        for (; i + WIDTH <= v; i += WIDTH) store(dx + i, exp((load(x + i) - most) - log_sum) * d);
        if (i < v) {
            float end[WIDTH] = {};
            memcpy(end, x + i, (v - i) * sizeof(float));
            store(end, exp((load(end) - most) - log_sum) * d);
            memcpy(dx + i, end, (v - i) * sizeof(float));
        }
        dx[targets[row]] -= d;
    };
    return parallel(pool, n, task);
}
