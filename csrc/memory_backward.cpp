// Gradients of the memory of memory.h: a run of pieces is read again from the memory before it, and then gone through from its end.
#include "memory.h"

namespace {

// Gradients by what `Inputs` holds.
struct Gradients {
    const float *y, *after;
    const float* kept;
    float *q, *k, *v, *rate, *keep, *carry, *limit, *held, *fresh;
    int64_t runs, run;
};

struct Back : Task {
    const Gradients& by;
    float *da[DEEPEST], *ddelta[DEEPEST], *dz[DEEPEST];
    float *dp, *dx, *dy, *first, *rows;  // first, rows: for a moment
    float *dturned, *other, *turned_other;   // squares
    float *share, *share_S, *dG_last, *dN_last, *dbeta, *df, *gG, *gN;
    float dfade = 0;

    static int64_t floats(const Sizes& s, int64_t n) {
        return Task::floats(s, n) + n * (padded(s.widest()) * (3 * s.depth + 6) + 4 * n + 8) + (8 + n) * LANES;
    }

    Back(const Inputs& in, const Sizes& s, const Plan& plan, int64_t row, int64_t head, const Gradients& by, Room& room)
        : Task(in, s, plan, row, head, room), by(by) {
        const int64_t most = padded(plan.longest), widest = padded(s.widest());
        for (int64_t l = 0; l < s.depth; l++)
            da[l] = room.take(s.in(l) * most), ddelta[l] = room.take(s.out(l) * most), dz[l] = room.take(s.out(l) * most);
        for (float** some : {&dp, &dx, &dy, &first, &rows}) *some = room.take(widest * most);
        for (float** some : {&dturned, &other, &turned_other}) *some = room.take(most * most);
        for (float** some : {&share, &share_S, &dG_last, &dN_last, &dbeta, &df, &gG, &gN}) *some = room.take(most);
    }

    // A piece that was begun, learned and answered: dM and dS by the memory after it become those by the memory before it; dW grows by its.
    void piece_back(const float* W, const float* M, const float* S, const float* home, float* dW, float* dM, float* dS, float* dhome) {
        for (float* some : {dG_last, dN_last, dbeta, df}) std::fill(some, some + n, 0.0f);
        std::fill(dturned, dturned + n * n, 0.0f);
        dfade = 0;
        update_back(M, S, dM, dS);
        answer_back(M, S, home, dM, dS, dhome);
        learn_back(W, dW);
        mix_back();
    }

   private:
    void update_back(const float* M, const float* S, float* dM, float* dS) {
        each(n, [&](int64_t j) INLINE {
            store(share + j, -load(mix.G + (c - 1) * n + j)), store(share_S + j, -load(mix.N + (c - 1) * n + j));
        });
        for (int64_t l = 0; l < s.depth; l++) {
            const int64_t o = s.out(l), i = s.in(l), at = s.place(l), apart = s.apart(l);
            product(o, n, i, {dM + at, apart, 1}, a[l], n, {Into::PUT, first, n});
            scale_columns(o, first, share, ddelta[l]);
            add_column_products(o, delta[l], first, -1.0f, dG_last);
            scale_columns(o, delta[l], share, wide);
            product(i, n, o, {dM + at, 1, apart}, wide, n, {Into::PUT, da[l], n});
            if (!in.carry) continue;
            product(o, n, i, {dS + at, apart, 1}, a[l], n, {Into::PUT, first, n});
            for (int64_t r = 0; r < o; r++)
                each(n, [&](int64_t j) INLINE {
                    float* to = ddelta[l] + r * n + j;
                    store(to, load(to) + load(first + r * n + j) * load(share_S + j));
                });
            add_column_products(o, delta[l], first, -1.0f, dN_last);
            scale_columns(o, delta[l], share_S, wide);
            product(i, n, o, {dS + at, 1, apart}, wide, n, {Into::ADD, da[l], n});
        }
        const float beta = mix.beta[c - 1], f = mix.f[c - 1], fade = mix.fade[c - 1];
        Vec of_beta = {}, of_f = {}, of_fade = {};
        if (in.carry)
            each(s.weights(), [&](int64_t i) INLINE {
                const Vec m = load(dM + i), u = load(dS + i), was = load(S + i);
                of_beta += m * load(M + i), of_f += m * was, of_fade += u * was;
                store(dM + i, m * beta), store(dS + i, m * f + u * fade);
            });
        else
            each(s.weights(), [&](int64_t i) INLINE {
                const Vec m = load(dM + i);
                of_beta += m * load(M + i);
                store(dM + i, m * beta);
            });
        dbeta[c - 1] = sum(of_beta), df[c - 1] = sum(of_f), dfade = sum(of_fade);
    }

    void answer_back(const float* M, const float* S, const float* home, float* dM, float* dS, float* dhome) {
        load_columns(by.y, dp);
        if (s.residual) {
            std::copy_n(dp, s.d * n, dy);
            norm_back(s.d, n, p_unit, p_scale, dy, dp);
        }
        for (int64_t l = s.depth - 1; l >= 0; l--) {
            const int64_t o = s.out(l), i = s.in(l), at = s.place(l), apart = s.apart(l);
            to_rows(x[l], i, rows);
            product(i, n, o, {M + at, 1, apart}, dp, n, {Into::PUT, first, n});
            add_column_products(i, x[l], first, 1.0f, dbeta);
            scale_columns(i, first, mix.beta, dx);
            scale_columns(o, dp, mix.beta, wide);
            product(o, apart, c, {wide, n, 1}, rows, apart, {Into::ADD, dM + at, apart});
            if (in.carry) {
                product(i, n, o, {S + at, 1, apart}, dp, n, {Into::PUT, first, n});
                add_column_products(i, x[l], first, 1.0f, df);
                for (int64_t r = 0; r < i; r++)
                    each(n, [&](int64_t j) INLINE {
                        float* to = dx + r * n + j;
                        store(to, load(to) + load(first + r * n + j) * load(mix.f + j));
                    });
                scale_columns(o, dp, mix.f, wide);
                product(o, apart, c, {wide, n, 1}, rows, apart, {Into::ADD, dS + at, apart});
            }
            if (home) {
                product(i, n, o, {home + at, 1, apart}, dp, n, {Into::ADD, dx, n});
                product(o, apart, c, {dp, n, 1}, rows, apart, {Into::ADD, dhome + at, apart});
            }
            pairs_back(l);
            if (!l) break;
            each(i * n, [&](int64_t j) INLINE {
                const Vec was = load(p[l - 1] + j);
                store(dp + j, load(dx + j) * slope(was, sigmoid(was)));
            });
        }
        if (s.residual) add_floats(s.d * n, dy, 1, dx);
        store_columns(dx, by.q);
    }

    // Through - delta (G * a^T x).
    void pairs_back(int64_t l) {
        const int64_t o = s.out(l), i = s.in(l);
        product(c, n, o, {delta[l], 1, n}, dp, n, {Into::PUT, square, n});
        each(c * n, [&](int64_t j) INLINE {
            const Vec back = -load(square + j), was = load(seen[l] + j), G = load(mix.turned + j);
            store(dturned + j, load(dturned + j) + back * was);
            store(square + j, G * back), store(other + j, G * was);
        });
        turn(c, n, other, n, turned_other, n);
        product(o, n, c, {dp, n, 1}, turned_other, n, {Into::TAKE, ddelta[l], n});
        product(i, n, c, {a[l], n, 1}, square, n, {Into::ADD, dx, n});
        turn(c, n, square, n, turned_other, n);
        product(i, n, c, {x[l], n, 1}, turned_other, n, {Into::ADD, da[l], n});
    }

    void learn_back(const float* W, float* dW) {
        for (int64_t l = 0; l < s.depth - 1; l++) {
            const int64_t o = s.out(l + 1), i = s.in(l + 1), at = s.place(l + 1), apart = s.apart(l + 1);
            each(i * n, [&](int64_t j) INLINE {
                const Vec was = load(z[l] + j), half = sigmoid(was), d = load(ddelta[l] + j);
                store(first + j, d * slope(was, half)), store(dz[l] + j, d * load(back[l] + j) * bend(was, half));
            });
            product(o, n, i, {W + at, apart, 1}, first, n, {Into::ADD, ddelta[l + 1], n});
            to_rows(first, i, rows);
            product(o, apart, c, {delta[l + 1], n, 1}, rows, apart, {Into::ADD, dW + at, apart});
        }
        if (s.residual) delta_back();
        miss_back();
        for (int64_t l = s.depth - 1; l >= 0; l--) {
            const int64_t o = s.out(l), i = s.in(l), at = s.place(l), apart = s.apart(l);
            product(i, n, o, {W + at, 1, apart}, dz[l], n, {Into::ADD, da[l], n});
            product(o, apart, c, {dz[l], n, 1}, a_rows[l], apart, {Into::ADD, dW + at, apart});
            if (!l) break;
            each(i * n, [&](int64_t j) INLINE {
                const Vec was = load(z[l - 1] + j);
                store(dz[l - 1] + j, load(dz[l - 1] + j) + load(da[l] + j) * slope(was, sigmoid(was)));
            });
        }
        if (s.residual) add_floats(s.d * n, dy, 1, da[0]);
        store_columns(da[0], by.k);
    }

    // Through delta = J e, J that of norm_columns at the last z: ddelta becomes the gradient by e, and dz what comes through J.
    void delta_back() {
        const int64_t last = s.depth - 1;
        const float *g = ddelta[last], *e = missed, d = static_cast<float>(s.d);
        norm_back(s.d, n, unit, scale, g, first);
        each(n, [&](int64_t j) INLINE {
            Vec ge = {}, sum_g = {}, sum_e = {}, of_g = {}, of_e = {};
            for (int64_t i = 0; i < s.d; i++) {
                const Vec gi = load(g + i * n + j), ei = load(e + i * n + j), ui = load(unit + i * n + j);
                ge += gi * ei, sum_g += gi, sum_e += ei, of_g += ui * gi, of_e += ui * ei;
            }
            const Vec r = load(scale + j), both = (ge - sum_g * sum_e / d - of_g * of_e / d) * r * r / d;
            for (int64_t i = 0; i < s.d; i++)
                store(dz[last] + i * n + j, -both * load(unit + i * n + j) -
                                                r / d * (of_e * load(first + i * n + j) + of_g * load(delta[last] + i * n + j)));
        });
        std::copy_n(first, s.d * n, ddelta[last]);
    }

    // Through the gradients by the answers to the keys, to those answers (dy, or dz where they are z) and the values.
    void miss_back() {
        const float* of = ddelta[s.depth - 1];
        float* to = s.residual ? dy : dz[s.depth - 1];
        const float slope = s.bias == L2 ? 2.0f : 1.0f;
        if (s.bias == DOT) {
            std::fill(to, to + s.d * n, 0.0f);
            each(s.d * n, [&](int64_t i) INLINE { store(first + i, -load(of + i)); });
        } else {
            each(s.d * n, [&](int64_t i) INLINE { store(to + i, load(of + i) * slope); });
            if (s.bias == HUBER) limit_back(to);
            each(s.d * n, [&](int64_t i) INLINE { store(first + i, -load(to + i)); });
        }
        store_columns(first, by.v);
        if (!s.residual) return;
        norm_back(s.d, n, unit, scale, dy, first);
        add_floats(s.d * n, first, 1, dz[s.depth - 1]);
    }

    // Through e limit / |e| of the errors e beyond their limit.
    void limit_back(float* to) {
        errors(first);
        for (int64_t j = 0; j < c; j++) {
            const float size = length(first, j), limit = in.limit[gate(j)];
            float along = 0;
            for (int64_t i = 0; i < s.d; i++) along += first[i * n + j] * to[i * n + j];
            by.limit[gate(j)] = size > limit ? along / size : 0;
            for (int64_t i = 0; size > limit && i < s.d; i++)
                to[i * n + j] = limit / size * (to[i * n + j] - first[i * n + j] * along / (size * size));
        }
    }

    // Through the recurrences of `begin`, from the last token on.
    void mix_back() {
        turn(c, n, dturned, n, turned_other, n);
        std::fill(gG, gG + n, 0.0f), std::fill(gN, gN + n, 0.0f);
        float gbeta = 0, gf = 0, gfade = 0, keep = 0, carry = 0;
        for (int64_t t = c - 1; t >= 0; t--) {
            const bool last = t == c - 1;
            const float *G = mix.G + t * n, *N = mix.N + t * n;
            Vec of_keep = {}, of_carry = {};
            each(n, [&](int64_t j) INLINE {
                Vec g = load(turned_other + t * n + j) + load(gG + j) * keep, m = load(gN + j) * carry;
                if (last) g += load(dG_last + j), m += load(dN_last + j);
                m += g;
                store(gG + j, g), store(gN + j, m);
                if (t) of_keep += g * load(G - n + j), of_carry += m * load(N - n + j);
            });
            gbeta = dbeta[t] + keep * gbeta, gf = df[t] + keep * gf, gfade = (last ? dfade : 0) + gf + carry * gfade;
            keep = mix.keep[t], carry = mix.carry[t];
            const int64_t at = gate(t);
            by.rate[at] = gN[t];
            by.keep[at] = keep * (sum(of_keep) + gbeta * (t ? mix.beta[t - 1] : 1) + gf * (t ? mix.f[t - 1] : 0));
            if (in.carry) by.carry[at] = carry * (sum(of_carry) + gfade * (t ? mix.fade[t - 1] : 1));
        }
    }

    // to += sign * the sums of a * b [rows, n] over rows.
    void add_column_products(int64_t rows, const float* a, const float* b, float sign, float* to) const {
        each(n, [&](int64_t j) INLINE {
            Vec total = {};
            for (int64_t r = 0; r < rows; r++) total += load(a + r * n + j) * load(b + r * n + j);
            store(to + j, load(to + j) + total * sign);
        });
    }
};

// The memories before each piece of a run.
struct Memories {
    float *W, *M, *S, *own;
};

void read_back(const Inputs& in, const Sizes& s, const Gradients& by, int64_t row, int64_t head) {
    const Plan plan(in, s, row);
    const int64_t weights = s.weights();
    std::vector<size_t> runs = plan.runs(by.run);
    runs.push_back(plan.pieces.size());
    size_t longest = 0;
    for (size_t r = 0; r + 1 < runs.size(); r++) longest = std::max(longest, runs[r + 1] - runs[r]);
    Room room(Back::floats(s, padded(plan.longest)) + ((2 + s.anchored) * (longest + 1) + 7) * weights);
    Back task(in, s, plan, row, head, by, room);
    float *held = room.take(weights), *fresh = room.take(weights), *dW = room.take(weights), *dM = room.take(weights), *dS = room.take(weights);
    std::vector<Memories> before(longest + 1);
    for (Memories& m : before) m.M = room.take(weights), m.S = room.take(weights), m.own = s.anchored ? room.take(weights) : nullptr;
    float *home = s.anchored ? room.take(weights) : nullptr, *dhome = s.anchored ? room.take(weights) : nullptr;
    if (home) task.load_weights(in.fresh + task.part(1), home);

    auto load = [&](const float* from, float* W, Memories& to) {
        to.W = W;
        task.load_weights(from + task.part(0), W), task.load_weights(from + task.part(1), to.M);
        if (in.carry) task.load_weights(from + task.part(2), to.S);
        if (home) add_floats(weights, home, -1, to.M);
    };
    task.load_weights(by.after + task.part(0), dW), task.load_weights(by.after + task.part(1), dM);
    if (in.carry) task.load_weights(by.after + task.part(2), dS);
    if (home) add_floats(weights, dM, 1, dhome);
    for (size_t r = runs.size() - 1; r-- > 0;) {
        if (r) {
            const float* from = by.kept + ((row * s.h + head) * by.runs + r) * 2 * weights;
            std::copy_n(from, weights, before[0].M);
            if (in.carry) std::copy_n(from + weights, weights, before[0].S);
        } else {
            load(in.held, held, before[0]);
        }
        for (size_t i = runs[r]; i < runs[r + 1]; i++) {
            Memories &now = before[i - runs[r]], &next = before[i - runs[r] + 1];
            if (plan.pieces[i].fresh) load(in.fresh, fresh, now);
            if (plan.pieces[i].begins && home) now.W = now.own, std::copy_n(now.M, weights, now.W), add_floats(weights, home, 1, now.W);
            if (plan.pieces[i].begins && !home) now.W = now.M;
            next.W = now.W;
            if (i + 1 == runs[r + 1]) break;
            task.begin(plan.pieces[i]);
            task.learn(now.W);
            task.update(now.M, now.S, next.M, next.S);
        }
        for (size_t i = runs[r + 1]; i-- > runs[r];) {
            const Memories& now = before[i - runs[r]];
            task.begin(plan.pieces[i]);
            task.learn(now.W);
            task.answer(now.M, now.S, home);
            task.piece_back(now.W, now.M, now.S, home, dW, dM, dS, dhome);
            if (plan.pieces[i].begins) {
                add_floats(weights, dW, 1, dM);
                if (home) add_floats(weights, dW, 1, dhome);
                std::fill(dW, dW + weights, 0.0f);
            }
            if (plan.pieces[i].fresh) {
                if (home) add_floats(weights, dM, -1, dhome);
                float* parts[] = {dW, dM, dS};
                for (int64_t part = 0; part < in.parts(); part++) {
                    task.add_weights(parts[part], by.fresh + task.part(part));
                    std::fill(parts[part], parts[part] + weights, 0.0f);
                }
            }
        }
    }
    if (home) add_floats(weights, dM, -1, dhome), task.add_weights(dhome, by.fresh + task.part(1));
    task.store_weights(dW, by.held + task.part(0)), task.store_weights(dM, by.held + task.part(1));
    if (in.carry) task.store_weights(dS, by.held + task.part(2));
}

}  // namespace

extern "C" KERNEL int32_t memory_backward(ParallelFor pool, const float* q, const float* k, const float* v, const float* rate, const float* keep,
                                          const float* carry, const float* limit, const float* held, const float* fresh, const uint8_t* begins,
                                          const uint8_t* starts, const uint8_t* real, const float* dy, const float* dafter, const float* kept,
                                          float* dq, float* dk, float* dv, float* drate, float* dkeep, float* dcarry, float* dlimit, float* dheld,
                                          float* dfresh, int64_t b, int64_t t, int64_t h, int64_t d, int64_t hidden, int64_t depth, int64_t bias,
                                          int64_t residual, int64_t damping, int64_t anchored, int64_t runs, int64_t run) {
    const Inputs in{q, k, v, rate, keep, carry, limit, held, fresh, begins, starts, real};
    const Sizes s{b, t, h, d, hidden, depth, bias, residual, static_cast<float>(bits_as<double>(damping)), anchored};
    const Gradients by{dy, dafter, kept, dq, dk, dv, drate, dkeep, dcarry, dlimit, dheld, dfresh, runs, run};
    auto task = [&](int64_t i) {
        [[maybe_unused]] const Flushed flushed;
        read_back(in, s, by, i / h, i % h);
    };
    return parallel(pool, b * h, task);
}
