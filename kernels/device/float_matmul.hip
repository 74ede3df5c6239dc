// Products with weights kept as floats. Token rows stay f32.
//
// The order of `src/cpu/float_matmul`, to the bit: columns are cut into blocks of 256; inside a block products are
// accumulated by `fma` in column order from zero; block sums are added in order. A thread computes one block of one
// output for up to TOKENS token rows, 16 rows and 16 blocks side by side; grid [outputs / 16, tokens / TOKENS], both
// rounded up. Argument: FloatMatmulArgs.
#include "../include/rf/float_weights.h"

namespace rf {

constexpr u32 BLOCK_COLUMNS = 256;
constexpr u32 BLOCKS_AT_ONCE = BLOCK_THREADS / GROUP_ROWS;

/// The sums of one block of columns for TOKENS token rows; `x` is the block's first column in each.
template <class F, u32 TOKENS>
RF_INLINE void sum_block(const FloatMatmulArgs& a, u32 row, u32 start, const float* const* x, float* sums) {
  u32 end = smaller(start + BLOCK_COLUMNS, a.cols);
  for (u32 column = start; column < end; column += F::PER_PIECE) {
    float w[F::PER_PIECE];
    F::widen(load16(float_piece<F>(a.weights, a.cols, row, column / F::PER_PIECE)), w);
    u32 here = smaller(end - column, F::PER_PIECE);
    if (here == F::PER_PIECE) {
      for (u32 t = 0; t < TOKENS; t++) {
        for (u32 i = 0; i < F::PER_PIECE; i++) sums[t] = fma(w[i], x[t][column + i], sums[t]);
      }
    } else {
      for (u32 t = 0; t < TOKENS; t++) {
        for (u32 i = 0; i < F::PER_PIECE; i++) {
          if (i < here) sums[t] = fma(w[i], x[t][column + i], sums[t]);
        }
      }
    }
  }
}

template <class F, u32 TOKENS>
RF_INLINE void float_matmul(const FloatMatmulArgs& a) {
  constexpr u32 CHAINS = GROUP_ROWS * TOKENS;
  static_assert(CHAINS <= BLOCK_THREADS);
  RF_SHARED(float, block_sums, BLOCKS_AT_ONCE * CHAINS);
  u32 local_row = thread_index() % GROUP_ROWS, block = thread_index() / GROUP_ROWS;
  u32 first_token = block_y() * TOKENS;
  const float* x[TOKENS];
  for (u32 t = 0; t < TOKENS; t++) x[t] = a.x + (u64)smaller(first_token + t, a.tokens - 1) * a.cols;
  float total = 0.0f;
  for (u32 start = 0; start < a.cols; start += BLOCKS_AT_ONCE * BLOCK_COLUMNS) {
    float sums[TOKENS] = {};
    // Rows past the last are zeros in the weights; blocks past the last have no columns.
    sum_block<F, TOKENS>(a, block_x() * GROUP_ROWS + local_row, start + block * BLOCK_COLUMNS, x, sums);
    for (u32 t = 0; t < TOKENS; t++) block_sums[block * CHAINS + t * GROUP_ROWS + local_row] = sums[t];
    barrier();
    if (thread_index() < CHAINS) {
      u32 blocks = smaller((a.cols - start + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS, BLOCKS_AT_ONCE);
      for (u32 b = 0; b < blocks; b++) total += block_sums[b * CHAINS + thread_index()];
    }
    barrier();
  }
  u32 row = block_x() * GROUP_ROWS + thread_index() % GROUP_ROWS;
  u32 token = first_token + thread_index() / GROUP_ROWS;
  if (thread_index() < CHAINS && row < a.outputs && token < a.tokens) {
    float value = a.bias ? total + a.bias[row] : total;
    float* out = a.out + (u64)token * a.outputs + row;
    *out = a.add ? *out + value : value;
  }
}

}  // namespace rf

#define RF_FLOAT_MATMUL(TYPE, name)                                                                          \
  RF_KERNEL(float_matmul_##name##_1, rf::FloatMatmulArgs, a) { rf::float_matmul<rf::TYPE, 1>(a); }          \
  RF_EXPORT(float_matmul_##name##_1, rf::FloatMatmulArgs)                                                    \
  RF_KERNEL(float_matmul_##name##_8, rf::FloatMatmulArgs, a) { rf::float_matmul<rf::TYPE, 8>(a); }          \
  RF_EXPORT(float_matmul_##name##_8, rf::FloatMatmulArgs)

RF_FLOAT_MATMUL(F32, f32)
RF_FLOAT_MATMUL(F16, f16)
RF_FLOAT_MATMUL(BF16, bf16)
