// The kernels that make rows: quantizing, root-mean-square norm, gated activation, gathering.
//
// Each has the bits of the CPU backend's kernel of the same name. Norm and activation quantize what they make on
// the way out when they are asked to, which spares a pass over memory.
#include "../include/rf/activations.h"
#include "../include/rf/math.h"

namespace rf {

/// The sum of squares of a row: element i goes to partial sum i mod 64 by `fma`; four vectors of sixteen partial
/// sums are added as (0 + 1) + (2 + 3), then their lanes as a tree. All threads of the block get it.
RF_INLINE float sum_of_squares(const float* x, const float* addend, float* to, u32 width, float* shared) {
  u32 thread = thread_index();
  if (thread < 64) {
    float sum = 0.0f;
    for (u32 i = thread; i < width; i += 64) {
      float value = x[i];
      if (addend) {
        value += addend[i];
        to[i] = value;
      }
      sum = fma(value, value, sum);
    }
    shared[thread] = sum;
  }
  barrier();
  u32 lane = thread % 16;
  float sum = (shared[lane] + shared[16 + lane]) + (shared[32 + lane] + shared[48 + lane]);
  sum += shuffle_xor<8>(sum);
  sum += shuffle_xor<4>(sum);
  sum += shuffle_xor<2>(sum);
  sum += shuffle_xor<1>(sum);
  return sum;
}

}  // namespace rf

/// `out` = `x` quantized. Grid [rows, cols / 1024 rounded up].
RF_KERNEL(quantize_rows, rf::QuantizeArgs, a) {
  using namespace rf;
  RF_SHARED(u32, shared, 16);
  u32 column = block_y() * COLUMNS_AT_ONCE + thread_index() * 4;
  bool inside = column < a.cols;
  u64 at = (u64)block_x() * a.cols + column;
  float values[4] = {};
  if (inside) {
    f32x4 loaded = *(const f32x4*)(a.x + at);
    for (u32 i = 0; i < 4; i++) values[i] = loaded[i];
  }
  quantize(a.out, values, at, inside, shared);
}
RF_EXPORT(quantize_rows, rf::QuantizeArgs)

/// Adds `addend` to `x`, then `out` = `x` scaled to unit root mean square times `gain`. Grid [rows].
/// Where it quantizes, `width` is whole blocks. Source: Zhang & Sennrich 2019 (RMSNorm).
RF_KERNEL(rms_norm, rf::NormArgs, a) {
  using namespace rf;
  RF_SHARED(float, sums, 64);
  RF_SHARED(u32, shared, 16);
  u64 row = (u64)block_x() * a.width;
  float* x = a.x + row;
  float mean = sum_of_squares(x, a.addend ? a.addend + row : nullptr, x, a.width, sums) / (float)a.width;
  float scale = 1.0f / __builtin_sqrtf(mean + a.eps);
  bool quantizes = a.quantized.per32.codes || a.quantized.per256.codes;
  // All sums were read before anybody writes into `x`.
  barrier();
  for (u32 start = 0; start < a.width; start += COLUMNS_AT_ONCE) {
    u32 column = start + thread_index() * 4;
    float values[4] = {};
    for (u32 i = 0; i < 4; i++) {
      if (column + i >= a.width) continue;
      values[i] = x[column + i] * scale * a.gain[column + i];
      if (a.out) a.out[row + column + i] = values[i];
    }
    if (quantizes) quantize(a.quantized, values, row + column, column < a.width, shared);
  }
}
RF_EXPORT(rms_norm, rf::NormArgs)

/// `out` = f(`gate`) · `up`. Grid [rows, width / 1024 rounded up]. Source: Shazeer 2020 (GLU variants).
RF_KERNEL(gated_activation, rf::GateArgs, a) {
  using namespace rf;
  RF_SHARED(u32, shared, 16);
  u64 row = (u64)block_x() * a.width;
  u32 column = block_y() * COLUMNS_AT_ONCE + thread_index() * 4;
  float values[4] = {};
  for (u32 i = 0; i < 4; i++) {
    if (column + i >= a.width) continue;
    float gate = a.gate[row + column + i];
    values[i] = (a.kind == 0 ? silu(gate) : gelu_tanh(gate)) * a.up[row + column + i];
    if (a.out) a.out[row + column + i] = values[i];
  }
  if (a.quantized.per32.codes || a.quantized.per256.codes) {
    quantize(a.quantized, values, row + column, column < a.width, shared);
  }
}
RF_EXPORT(gated_activation, rf::GateArgs)

/// `out[i] = x[chosen[i]]`. Grid [rows].
RF_KERNEL(gather, rf::GatherArgs, a) {
  using namespace rf;
  const float* from = a.x + (u64)a.chosen[block_x()] * a.width;
  float* to = a.out + (u64)block_x() * a.width;
  for (u32 i = thread_index(); i < a.width; i += BLOCK_THREADS) to[i] = from[i];
}
RF_EXPORT(gather, rf::GatherArgs)
