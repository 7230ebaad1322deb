// One token through blocks of attention and a network (postformer/models/backbone.py) for a few rows, one block after the other: each weight
// is read once for all rows, the cache once for all queries of a group.
//
//     v = norm(x);  q, k, v = heads of v;  q, k = rotated(normed(q), normed(k));  x = x + out attention(q, cache of k and v)
//     v = norm(x);  x = x + network(v), which is one network of all tokens, or a router's choice of several and perhaps one of all besides
#include <limits>

#include "networks.h"

namespace {

constexpr int64_t ROWS = 16;   // outputs of a projection that one task computes
constexpr int64_t KEYS = 256;  // of a task's part of the cache
constexpr float TINY = 1e-20f;    // as in postformer/ops/routing.py

enum Router { SOFTMAX, SIGMOID, CHOSEN };

// One block, as postformer/ops/block_parts.py writes it. b rows, d width, h heads, g of keys and values, e their width.
struct Layer {
    // Of attention: norm [d]; q [h e, d], k and v [g e, d], out [d, h e]; biases; norms of a head, or of all heads where `whole` is 1.
    const void *norm, *q, *k, *v, *out, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;
    double eps, head_eps, base;
    int64_t heads, groups, width, window, whole;
    // Of the network: norm [d], null where there is none; matrices of experts with a gate's rows first, as in experts.cpp, or gate [f, d], up
    // [f, d] and down [d, f] of one network; the shared one's.
    const void *ffn_norm, *up, *down, *gate, *up_bias, *down_bias, *router, *router_bias, *correction, *shared_up, *shared_down, *shared_gate;
    double ffn_eps, scale;
    int64_t activation, top, kind, renormalise, parts, top_parts, experts, hidden, shared_hidden;
    // The cache [b, g, slots, e], and how many tokens each row has seen.
    void *keys, *values;
    const int64_t* seen;
    int64_t slots;

    int64_t slot(int64_t row) const { return window ? seen[row] % window : seen[row]; }
    int64_t held(int64_t row) const { return window ? std::min(seen[row] + 1, window) : seen[row] + 1; }
};

struct Sizes {
    int64_t b, d;
    bool half_small;
};

// cos and sin of each row's angles, for the last base, width and positions that were asked for.
struct Rotation {
    double base = 0;
    int64_t width = 0;
    std::vector<int64_t> position;
    std::vector<float> turn;  // [b, width / 2, 2]

    const float* at(const Layer& l, int64_t row, int64_t b) {
        const std::vector<int64_t> now(l.seen, l.seen + b);
        if (l.base != base || l.width != width || now != position) {
            base = l.base, width = l.width, position = now;
            turn.resize(b * width);
            for (int64_t i = 0; i < width / 2; i++) {
                const double frequency = std::pow(base, -2.0 * i / width);
                for (int64_t r = 0; r < b; r++) {
                    turn[r * width + 2 * i] = static_cast<float>(std::cos(position[r] * frequency));
                    turn[r * width + 2 * i + 1] = static_cast<float>(std::sin(position[r] * frequency));
                }
            }
        }
        return turn.data() + row * width;
    }
};

inline void rotate(float* x, const float* turn, int64_t e) {
    for (int64_t i = 0; i < e / 2; i++) {
        const float a = x[i], b = x[i + e / 2], cos = turn[2 * i], sin = turn[2 * i + 1];
        x[i] = a * cos - b * sin;
        x[i + e / 2] = b * cos + a * sin;
    }
}

// Norms of each of `count` vectors of width n, which follow each other.
inline void normalise(float* x, Small weight, int64_t count, int64_t n, double eps) {
    if (!weight) return;
    for (int64_t j = 0; j < count; j++, x += n) {
        const float scale = over_rms(x, n, eps);
        for (int64_t i = 0; i < n; i++) x[i] *= scale * weight[i];
    }
}

// The rows' normed activations in their places.
template <class T>
void enter(const float* x, Small norm, double eps, float* placed, const Sizes& s) {
    for (int64_t row = 0; row < s.b; row++, x += s.d, placed += s.d) {
        const float scale = over_rms(x, s.d, eps);
        for (int64_t i = 0; i < s.d; i++) placed[place<T>(i, s.d)] = x[i] * scale * norm[i];
    }
}

// ---------------------------------------------------------------- attention

// Softmax over part of the cache: its largest score, its sum, and its weighted values, each [r] or [r, e] for the r queries of a group.
struct Part {
    int64_t row, group, begin, end;
    float *most, *sum, *read;
};

// to [e] = sum of weight[j] values[j], values [count, e]
template <class P>
inline void weigh(const P* values, const float* weight, int64_t count, float* to, int64_t e) {
    constexpr int TOGETHER = 4;
    int64_t c = 0;
    for (; c + TOGETHER * WIDTH <= e; c += TOGETHER * WIDTH) {
        Vec sums[TOGETHER] = {};
        for (int64_t j = 0; j < count; j++) {
            const Vec by = all(weight[j]);
            unrolled<TOGETHER>([&](auto i) INLINE { sums[i] += by * load(values + j * e + c + i * WIDTH); });
        }
        unrolled<TOGETHER>([&](auto i) INLINE { store(to + c + i * WIDTH, sums[i]); });
    }
    for (; c < e; c += WIDTH) {
        const int64_t m = std::min<int64_t>(e - c, WIDTH);
        Vec sum = {};
        for (int64_t j = 0; j < count; j++) sum += all(weight[j]) * load_some(values + j * e + c, m);
        store_some(to + c, sum, m);
    }
}

// q [h, e] in places, already divided by sqrt(e).
template <class P>
void read_part(const Part& part, const Layer& l, const float* q) {
    const int64_t e = l.width, r = l.heads / l.groups, count = part.end - part.begin;
    const int64_t first = ((part.row * l.groups + part.group) * l.slots + part.begin) * e;
    const P *keys = static_cast<const P*>(l.keys) + first, *values = static_cast<const P*>(l.values) + first;
    for (int64_t j = 0; j < r; j++) {
        alignas(64) float score[KEYS];
        each_few(0, count, [&](int64_t i, int64_t some) { dots(keys + i * e, q + (part.group * r + j) * e, e, some, score + i); });
        const float most = *std::max_element(score, score + count);
        float sum = 0;
        for (int64_t i = 0; i < count; i += WIDTH) {
            const int64_t m = std::min<int64_t>(count - i, WIDTH);
            store_some(score + i, exp(load_some(score + i, m) - most), m);
        }
        for (int64_t i = 0; i < count; i++) sum += score[i];
        part.most[j] = most, part.sum[j] = sum;
        weigh(values, score, count, part.read + j * e, e);
    }
}

// The parts of one row and group, which follow each other, as one answer of r heads.
template <class T>
void merge(const Part* first, const Part* last, const Layer& l, float* inner) {
    const int64_t e = l.width, r = l.heads / l.groups, c = l.heads * e;
    for (int64_t j = 0; j < r; j++) {
        float most = first->most[j], sum = 0;
        for (const Part* p = first; p < last; p++) most = p->most[j] > most ? p->most[j] : most;
        float* weighed = first->read + j * e;
        for (const Part* p = first; p < last; p++) {
            const float by = std::exp(p->most[j] - most);
            sum += by * p->sum[j];
            for (int64_t i = 0; i < e; i++) weighed[i] = (p == first ? 0 : weighed[i]) + by * p->read[j * e + i];
        }
        for (int64_t i = 0; i < e; i++) inner[place<T>((first->group * r + j) * e + i, c)] = weighed[i] / sum;
    }
}

template <class T, class P>
int32_t attend(ParallelFor pool, const Layer& l, float* x, Rotation& rotation, const Sizes& s) {
    auto small = [&](const void* data) { return Small{data, s.half_small}; };
    const int64_t e = l.width, inner = l.heads * e, shared = l.groups * e, r = l.heads / l.groups;
    Floats placed(s.b * s.d), q(s.b * inner), k(s.b * shared), v(s.b * shared), asked(s.b * inner), answer(s.b * inner);
    enter<T>(x, small(l.norm), l.eps, placed.data(), s);

    struct Projection {
        const void *weight, *bias;
        int64_t outputs;
        float* to;
        int64_t tasks() const { return (outputs + ROWS - 1) / ROWS; }
    };
    const Projection three[] = {{l.q, l.q_bias, inner, q.data()}, {l.k, l.k_bias, shared, k.data()}, {l.v, l.v_bias, shared, v.data()}};
    auto project = [&](int64_t task) {
        const Projection* p = three;
        for (; task >= p->tasks(); p++) task -= p->tasks();
        const Small bias = small(p->bias);
        each_product<ROWS>(task, p->outputs, static_cast<const T*>(p->weight), placed.data(), s.d, s.b, [&](int64_t i, int64_t row, float value) {
            p->to[row * p->outputs + i] = value + (bias ? bias[i] : 0);
        });
    };
    if (parallel(pool, three[0].tasks() + three[1].tasks() + three[2].tasks(), project)) return 1;

    const float scale = 1 / std::sqrt(static_cast<float>(e));
    std::vector<Part> parts;
    for (int64_t row = 0; row < s.b; row++) {
        float *own_q = q.data() + row * inner, *own_k = k.data() + row * shared;
        const float* turn = rotation.at(l, row, s.b);
        normalise(own_q, small(l.q_norm), l.whole ? 1 : l.heads, l.whole ? inner : e, l.head_eps);
        normalise(own_k, small(l.k_norm), l.whole ? 1 : l.groups, l.whole ? shared : e, l.head_eps);
        for (int64_t j = 0; j < l.heads; j++) {
            rotate(own_q + j * e, turn, e);
            for (int64_t i = 0; i < e; i++) asked[row * inner + j * e + place<P>(i, e)] = scale * own_q[j * e + i];
        }
        for (int64_t j = 0; j < l.groups; j++) {
            rotate(own_k + j * e, turn, e);
            const int64_t at = ((row * l.groups + j) * l.slots + l.slot(row)) * e;
            for (int64_t i = 0; i < e; i++) {
                static_cast<P*>(l.keys)[at + i] = rounded<P>(own_k[j * e + i]);
                static_cast<P*>(l.values)[at + i] = rounded<P>(v[row * shared + j * e + i]);
            }
            for (int64_t i = 0; i < l.held(row); i += KEYS) parts.push_back({row, j, i, std::min(i + KEYS, l.held(row)), 0, 0, 0});
        }
    }
    Floats room(parts.size() * r * (e + 2));
    for (size_t i = 0; i < parts.size(); i++) {
        parts[i].read = room.data() + i * r * (e + 2);
        parts[i].most = parts[i].read + r * e;
        parts[i].sum = parts[i].most + r;
    }
    auto read = [&](int64_t task) { read_part<P>(parts[task], l, asked.data() + parts[task].row * inner); };
    if (parallel(pool, static_cast<int64_t>(parts.size()), read)) return 1;
    for (const Part *first = parts.data(), *end = first + parts.size(), *last; first < end; first = last) {
        for (last = first; last < end && last->row == first->row && last->group == first->group;) last++;
        merge<T>(first, last, l, answer.data() + first->row * inner);
    }

    auto leave = [&](int64_t task) {
        each_product<ROWS>(task, s.d, static_cast<const T*>(l.out), answer.data(), inner, s.b,
                           [&](int64_t i, int64_t row, float value) { x[row * s.d + i] += value; });
    };
    return parallel(pool, (s.d + ROWS - 1) / ROWS, leave);
}

// ---------------------------------------------------------------- the network

// The `count` largest of `values` [n], the largest first, to `found`; what is found becomes -inf. NaN is larger than all.
inline void largest(float* values, int64_t n, int64_t count, int64_t* found) {
    constexpr float TAKEN = -std::numeric_limits<float>::infinity();
    std::vector<bool> taken(n);
    for (int64_t j = 0; j < count; j++) {
        int64_t best = -1;
        for (int64_t i = 0; i < n; i++)
            if (!taken[i] && (best < 0 || values[i] > values[best] || (values[i] != values[i] && values[best] == values[best]))) best = i;
        found[j] = best;
        taken[best] = true;
    }
    for (int64_t j = 0; j < count; j++) values[found[j]] = TAKEN;
}

inline void softmax(float* x, int64_t n) {
    const float most = *std::max_element(x, x + n);
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] = std::exp(x[i] - most);
    for (int64_t i = 0; i < n; i++) x[i] /= sum;
}

// Where a token with these logits [experts] goes (postformer/ops/routing.py): its `top` experts and their weights.
void route(std::vector<float>& scores, const Layer& l, Small correction, int64_t* chosen, float* weights) {
    const int64_t count = l.experts;
    if (l.kind == SOFTMAX) softmax(scores.data(), count);
    if (l.kind == SIGMOID)
        for (float& one : scores) one = 1 / (1 + std::exp(-one));
    std::vector<float> wanted(scores);
    if (correction)
        for (int64_t i = 0; i < count; i++) wanted[i] += correction[i];
    if (l.top_parts < l.parts) {
        const int64_t size = count / l.parts, best_of = std::min<int64_t>(l.kind == SIGMOID ? 2 : 1, size);
        std::vector<float> best(l.parts);
        std::vector<int64_t> found(std::max(best_of, l.top_parts));
        for (int64_t part = 0; part < l.parts; part++) {
            std::vector<float> own(wanted.begin() + part * size, wanted.begin() + (part + 1) * size);
            largest(own.data(), size, best_of, found.data());
            for (int64_t j = 0; j < best_of; j++) best[part] += wanted[part * size + found[j]];
        }
        largest(best.data(), l.parts, l.top_parts, found.data());
        std::vector<bool> open(l.parts);
        for (int64_t j = 0; j < l.top_parts; j++) open[found[j]] = true;
        for (int64_t i = 0; i < count; i++)
            if (!open[i / size]) wanted[i] = -std::numeric_limits<float>::infinity();
    }
    largest(wanted.data(), count, l.top, chosen);
    float sum = 0;
    for (int64_t j = 0; j < l.top; j++) sum += weights[j] = scores[chosen[j]];
    if (l.kind == CHOSEN) softmax(weights, l.top);
    const bool over_sum = l.kind != CHOSEN && l.renormalise;
    const float by = static_cast<float>(l.scale) / (over_sum ? sum + (l.kind == SIGMOID ? TINY : 0) : 1);
    for (int64_t j = 0; j < l.top; j++) weights[j] *= by;
}

template <class T>
int32_t think(ParallelFor pool, const Layer& l, float* x, const Sizes& s) {
    auto small = [&](const void* data) { return Small{data, s.half_small}; };
    auto matrix = [](const void* data) { return static_cast<const T*>(data); };
    const auto kind = static_cast<Activation>(l.activation);
    Floats placed(s.b * s.d);
    enter<T>(x, small(l.ffn_norm), l.ffn_eps, placed.data(), s);
    std::vector<Pair> pairs;
    std::vector<Network<T>> networks;
    auto all_tokens = [&](const T* gate, const T* up, const T* out, int64_t hidden, const T* scale) {
        networks.push_back({gate, up, out, {}, {}, {}, hidden, static_cast<int64_t>(pairs.size()), s.b});
        for (int64_t row = 0; row < s.b; row++)
            pairs.push_back({row, scale ? 1 / (1 + std::exp(-dot(scale, placed.data() + row * s.d, s.d))) : 1});
    };
    if (!l.experts) {
        all_tokens(matrix(l.gate), matrix(l.up), matrix(l.down), l.hidden, nullptr);
        return add_networks(pool, networks, pairs, kind, placed.data(), x, s.d);
    }
    std::vector<float> logits(s.b * l.experts), weights(s.b * l.top);
    std::vector<int64_t> chosen(s.b * l.top);
    const Small bias = small(l.router_bias);
    auto ask = [&](int64_t task) {
        each_product<ROWS>(task, l.experts, matrix(l.router), placed.data(), s.d, s.b, [&](int64_t i, int64_t row, float value) {
            logits[row * l.experts + i] = value + (bias ? bias[i] : 0);
        });
    };
    if (parallel(pool, (l.experts + ROWS - 1) / ROWS, ask)) return 1;
    for (int64_t row = 0; row < s.b; row++) {
        std::vector<float> own(logits.begin() + row * l.experts, logits.begin() + (row + 1) * l.experts);
        route(own, l, Small{l.correction, false}, chosen.data() + row * l.top, weights.data() + row * l.top);
    }
    const Sent sent(chosen.data(), weights.data(), s.b, l.top, l.experts);
    pairs = sent.pairs;
    networks = networks_hit(sent, matrix(l.up), matrix(l.down), small(l.up_bias), small(l.down_bias), kind, s.d, l.hidden);
    if (l.shared_up) {
        const T* up = matrix(l.shared_up);
        const T* values = gated(kind) ? up + l.shared_hidden * s.d : up;
        all_tokens(gated(kind) ? up : nullptr, values, matrix(l.shared_down), l.shared_hidden, matrix(l.shared_gate));
    }
    return add_networks(pool, networks, pairs, kind, placed.data(), x, s.d);
}

template <class T, class P>
int32_t steps(ParallelFor pool, const Layer* layers, float* x, int64_t depth, const Sizes& s) {
    Rotation rotation;
    for (const Layer* l = layers; l < layers + depth; l++)
        if (attend<T, P>(pool, *l, x, rotation, s) || (l->ffn_norm && think<T>(pool, *l, x, s))) return 1;
    return 0;
}

constexpr int32_t NO_ROOM = 2, ODD = 3;

}  // namespace

// x [b, d] in floats, before and after, b at most MOST_ROWS. The matrices of all layers are floats, or bf16 where `half` is 1; so are all
// other weights by `half_small`, and the caches by `half_cache`. The new token's keys and values are written to the caches in place. NO_ROOM
// where one has no slot for it and ODD where rows have seen less than nothing; nothing is written then.
extern "C" KERNEL int32_t block_steps(ParallelFor pool, const void* layers, float* x, int64_t depth, int64_t half, int64_t half_small,
                                      int64_t half_cache, int64_t b, int64_t d) {
    if (b > MOST_ROWS) return 1;
    const Layer* all = static_cast<const Layer*>(layers);
    for (const Layer* l = all; l < all + depth; l++)
        for (int64_t row = 0; row < b; row++) {
            if (l->seen[row] < 0) return ODD;
            if (l->slot(row) >= l->slots) return NO_ROOM;
        }
    const Sizes s{b, d, half_small != 0};
    try {
        if (half) return half_cache ? steps<bf16, bf16>(pool, all, x, depth, s) : steps<bf16, float>(pool, all, x, depth, s);
        return half_cache ? steps<float, bf16>(pool, all, x, depth, s) : steps<float, float>(pool, all, x, depth, s);
    } catch (...) {
        return 1;
    }
}
