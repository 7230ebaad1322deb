// Forward of the memory of memory.h.
#include "memory.h"

namespace {

struct Outputs {
    float *y, *after;
    float* kept;  // [b, h, runs, 2, weights]: M and S before each run but the first; may be null
    int64_t runs, run;
};

void read(const Inputs& in, const Sizes& s, const Outputs& out, int64_t row, int64_t head) {
    const Plan plan(in, s, row);
    const int64_t weights = s.weights();
    Room room(Task::floats(s, padded(plan.longest)) + 8 * weights);
    Task task(in, s, plan, row, head, room);
    float *loaded = room.take(weights), *Ms[3], *Ss[2];
    for (float*& M : Ms) M = room.take(weights);
    for (float*& S : Ss) S = room.take(weights);
    float *W = loaded, *M = Ms[0], *S = Ss[0], *own = room.take(weights), *home = s.anchored ? room.take(weights) : nullptr;
    if (home) task.load_weights(in.fresh + task.part(1), home);
    auto load = [&](const float* from) {
        W = loaded;
        task.load_weights(from + task.part(0), W), task.load_weights(from + task.part(1), M);
        if (in.carry) task.load_weights(from + task.part(2), S);
        if (home) add_floats(weights, home, -1, M);
    };
    load(in.held);
    const std::vector<size_t> runs = plan.runs(out.run);
    size_t run = 1;
    for (size_t i = 0; i < plan.pieces.size(); i++) {
        if (out.kept && run < runs.size() && runs[run] == i) {
            float* to = out.kept + ((row * s.h + head) * out.runs + run++) * 2 * weights;
            std::copy_n(M, weights, to);
            if (in.carry) std::copy_n(S, weights, to + weights);
        }
        const Piece& piece = plan.pieces[i];
        if (piece.fresh) load(in.fresh);
        if (piece.begins && home) W = own, std::copy_n(M, weights, W), add_floats(weights, home, 1, W);
        if (piece.begins && !home) W = M;
        float* M_after = *std::find_if(Ms, Ms + 3, [&](float* other) { return other != M && other != W; });
        float* S_after = S == Ss[0] ? Ss[1] : Ss[0];
        task.begin(piece);
        task.learn(W);
        task.answer(M, S, home);
        task.store_columns(task.answers(), out.y);
        task.update(M, S, M_after, S_after);
        M = M_after, S = S_after;
    }
    if (home) add_floats(weights, home, 1, M);
    task.store_weights(W, out.after + task.part(0)), task.store_weights(M, out.after + task.part(1));
    if (in.carry) task.store_weights(S, out.after + task.part(2));
}

}  // namespace

extern "C" KERNEL int32_t memory_forward(ParallelFor pool, const float* q, const float* k, const float* v, const float* rate, const float* keep,
                                         const float* carry, const float* limit, const float* held, const float* fresh, const uint8_t* begins,
                                         const uint8_t* starts, const uint8_t* real, float* y, float* after, float* kept, int64_t b, int64_t t,
                                         int64_t h, int64_t d, int64_t hidden, int64_t depth, int64_t bias, int64_t residual, int64_t damping,
                                         int64_t anchored, int64_t runs, int64_t run) {
    const Inputs in{q, k, v, rate, keep, carry, limit, held, fresh, begins, starts, real};
    const Sizes s{b, t, h, d, hidden, depth, bias, residual, static_cast<float>(bits_as<double>(damping)), anchored};
    const Outputs out{y, after, kept, runs, run};
    auto task = [&](int64_t i) {
        [[maybe_unused]] const Flushed flushed;
        read(in, s, out, i / h, i % h);
    };
    return parallel(pool, b * h, task);
}
