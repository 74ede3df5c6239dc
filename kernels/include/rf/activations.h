// Quantizing rows to bytes while they are made: shared by the kernels that end in rows.
//
// The codes, scales and sums of `src/cpu/matmul/activations.rs`, to the bit: a block of 32 or 256 columns becomes
// codes within ±127 under one scale, rounded to nearest, ties to even, from its own values alone.
#pragma once

#include "args.h"

namespace rf {

/// Columns that a block of threads quantizes at once: four a thread.
constexpr u32 COLUMNS_AT_ONCE = 4 * BLOCK_THREADS;

/// Magnitudes compare as integers: not-a-number above infinity above all numbers.
RF_INLINE u32 magnitude(float x) { return bit_cast<u32>(x) & 0x7fffffff; }

RF_INLINE u32 greater(u32 a, u32 b) { return a > b ? a : b; }

template <int MASK>
RF_INLINE u32 greatest_with(u32 value) {
  return greater(value, (u32)shuffle_xor<MASK>((i32)value));
}

struct Scale {
  float inverse, scale;
};

RF_INLINE Scale scale_of(u32 amax_bits) {
  float amax = bit_cast<float>(amax_bits);
  if (amax_bits >= 0x7f800000) return {0.0f, bit_cast<float>(0x7fc00000)};  // shows in every product
  if (amax < bit_cast<float>((127u - 100) << 23)) return {0.0f, 0.0f};     // below 2^-100: zero
  return {127.0f / amax, amax / 127.0f};
}

/// Four codes of one thread, as a word and as their sum.
struct Codes {
  u32 word;
  i32 sum;
};

RF_INLINE Codes codes_of(const float* values, Scale scale) {
  Codes codes{0, 0};
  for (u32 i = 0; i < 4; i++) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    float rounded = values[i] * scale.inverse + 12582912.0f;
    i32 code = scale.inverse == 0.0f ? 0 : bit_cast<i32>(rounded) - bit_cast<i32>(12582912.0f);
    code = code > 127 ? 127 : code < -127 ? -127 : code;
    codes.word |= (u32)(code & 0xff) << 8 * i;
    codes.sum += code;
  }
  return codes;
}

/// Writes the codes of a thread's four columns; the first of each eight threads writes their unit's sums.
RF_INLINE void store_codes(const Quantized& out, Codes codes, u64 column, bool inside) {
  i32 sum = codes.sum;
  sum += shuffle_xor<1>(sum);
  sum += shuffle_xor<2>(sum);
  i32 other = shuffle_xor<4>(sum);
  if (!inside) return;
  *reinterpret_cast<u32*>(out.codes + column) = codes.word;
  if (column % 32 == 0) out.sums[column / 32] = ((u32)sum & 0xffff) | (u32)other << 16;
}

/// Quantizes `COLUMNS_AT_ONCE` columns of a row: thread i holds columns 4i to 4i + 3 in `values`, the first of them
/// being column `column` of the whole buffer, and `inside` says whether the row has them. All threads of the block
/// take part; `shared` has 16 words that nobody else uses at the time.
RF_INLINE void quantize(const QuantizeOut& out, const float* values, u64 column, bool inside, u32* shared) {
  u32 amax = 0;
  if (inside) {
    for (u32 i = 0; i < 4; i++) amax = greater(amax, magnitude(values[i]));
  }
  amax = greatest_with<1>(amax);
  amax = greatest_with<2>(amax);
  amax = greatest_with<4>(amax);
  if (out.per32.codes) {
    Scale scale = scale_of(amax);
    store_codes(out.per32, codes_of(values, scale), column, inside);
    if (inside && column % 32 == 0) out.per32.scales[column / 32] = scale.scale;
  }
  if (out.per256.codes) {
    amax = greatest_with<8>(amax);
    amax = greatest_with<16>(amax);
    u32 half = thread_index() / 32;
    barrier();
    if (thread_index() % 32 == 0) shared[half] = amax;
    barrier();
    Scale scale = scale_of(greater(shared[half & ~1u], shared[half | 1]));
    store_codes(out.per256, codes_of(values, scale), column, inside);
    if (inside && column % 256 == 0) out.per256.scales[column / 256] = scale.scale;
  }
}

}  // namespace rf
