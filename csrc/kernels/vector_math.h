// Small vector arithmetic of predictors, in float32, over the instruction set of
// kernels/expert_ffn.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace prophet {

// y[r] = sum over c of rows[r][c] * x[c]; rows [count, columns] float16, dense.
void dot_rows_f16(const std::uint16_t* rows, std::size_t count, std::size_t columns, const float* x,
                  float* y);

// y[i] += scale * row[i], row float16; `scratch` holds n floats.
void add_row_f16(const std::uint16_t* row, std::size_t n, float scale, float* scratch, float* y);

// y[i] = log(x[i]), x positive and normal; relative error below 1e-6.
void log_each(const float* x, float* y, std::size_t n);

// y[i] = 1 / (1 + exp(-x[i])); absolute error below 1e-6.
void sigmoid_each(const float* x, float* y, std::size_t n);

}  // namespace prophet
