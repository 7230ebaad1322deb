// A matrix times a few vectors, which reads each weight once: y = x w^T, x [rows, d], w [v, d] in floats or (`half`) bf16, y [rows, v].
#include "floats.h"
#include "parallel.h"
#include "weights.h"

namespace {

constexpr int64_t OUTPUTS = 64;  // of one task

template <class T>
int32_t product(ParallelFor pool, const float* x, const T* w, float* y, int64_t rows, int64_t d, int64_t v) {
    Floats placed;
    try {
        placed.resize(rows * d);
    } catch (...) {
        return 1;
    }
    for (int64_t row = 0; row < rows; row++) arrange<T>(x + row * d, placed.data() + row * d, d);
    auto task = [=, x = placed.data()](int64_t i) {
        each_product<OUTPUTS>(i, v, w, x, d, rows, [=](int64_t out, int64_t row, float value) { y[row * v + out] = value; });
    };
    return parallel(pool, (v + OUTPUTS - 1) / OUTPUTS, task);
}

}  // namespace

extern "C" KERNEL int32_t matvec(ParallelFor pool, const float* x, const void* w, float* y, int64_t half, int64_t rows, int64_t d,
                                 int64_t v) {
    return half ? product(pool, x, static_cast<const bf16*>(w), y, rows, d, v)
                : product(pool, x, static_cast<const float*>(w), y, rows, d, v);
}
