// Products of a few token rows (up to 8) with quantized weights: reads every weight once, limited by memory.
//
// A block of threads computes 4 · ROWS outputs for all token rows. Lanes go along a row, a unit (32 columns) each,
// so that a wave reads consecutive 16-byte pieces; each makes the exact integer sums of its unit and puts the pairs
// that the order of `formats.h` asks for into shared memory. Then one lane per output runs the chain over them.
// So an output has the bits that `matmul_tile` and the CPU backend give it, however many token rows there are.
#pragma once

#include "../include/rf/formats.h"

namespace rf {

/// Units that lie side by side in one pass, and rows beside them.
constexpr u32 UNITS_AT_ONCE = 64;
constexpr u32 ROW_LANES = BLOCK_THREADS / UNITS_AT_ONCE;

/// Sums a unit's integers over the eight units of its block.
template <class F>
RF_INLINE UnitSums over_block(UnitSums sums) {
  if constexpr (F::UNITS == 8) {
    sums.dot += shuffle_xor<1>(sums.dot);
    sums.dot += shuffle_xor<2>(sums.dot);
    sums.dot += shuffle_xor<4>(sums.dot);
    if constexpr (F::PAIRS == 2) {
      sums.mins += shuffle_xor<1>(sums.mins);
      sums.mins += shuffle_xor<2>(sums.mins);
      sums.mins += shuffle_xor<4>(sums.mins);
    }
  }
  return sums;
}

template <class F>
RF_INLINE UnitSums unit_sums(const Unit& unit, typename F::Sub sub, const TokenUnit& x) {
  // Two chains, so that one product need not wait for the last.
  i32 low = 0, high = 0;
  for (u32 i = 0; i < 4; i++) {
    low = dot4(unit.codes[i], x.codes[i], low);
    high = dot4(unit.codes[4 + i], x.codes[4 + i], high);
  }
  return F::sums(sub, low, high, x.sums);
}

/// TOKENS token rows (those past the last repeat it), ROWS outputs a thread.
template <class F, u32 TOKENS, u32 ROWS>
RF_INLINE void matmul_vector(const MatmulArgs& a) {
  constexpr u32 BLOCKS = UNITS_AT_ONCE / F::UNITS;
  constexpr u32 OUTPUTS = ROW_LANES * ROWS;
  constexpr u32 CHAINS = OUTPUTS * TOKENS;
  static_assert(CHAINS <= BLOCK_THREADS);
  // One more than even, so that neighbouring blocks do not meet in one bank.
  constexpr u32 STRIDE = CHAINS + 1;
  RF_SHARED(Pair, pairs, BLOCKS * F::PAIRS * STRIDE);

  u32 lane = thread_index() % UNITS_AT_ONCE;
  u32 first_local = thread_index() / UNITS_AT_ONCE * ROWS;
  u32 first_row = block_x() * OUTPUTS;
  u64 record = F::bytes(a.units);
  const u8* rows[ROWS];
  for (u32 r = 0; r < ROWS; r++) {
    // Rows past the last repeat it; nothing of theirs is written.
    rows[r] = a.weights + record * smaller(first_row + first_local + r, a.outputs - 1);
  }
  u32 blocks = a.units / F::UNITS;
  float sum = 0.0f;
  for (u32 start = 0; start < a.units; start += UNITS_AT_ONCE) {
    bool inside = start + lane < a.units;
    u32 at = smaller(start + lane, a.units - 1);
    Unit units[ROWS];
    typename F::Sub subs[ROWS];
    typename F::Head heads[ROWS];
    for (u32 r = 0; r < ROWS; r++) {
      units[r] = F::unit(rows[r], a.units, at);
      subs[r] = F::sub(rows[r], a.units, at);
      heads[r] = F::head(rows[r], a.units, at / F::UNITS);
    }
    for (u32 t = 0; t < TOKENS; t++) {
      u32 token = smaller(t, a.tokens - 1);
      TokenUnit x = token_unit(a.x, a.units, token, at);
      float x_scale = a.x.scales[(u64)token * blocks + at / F::UNITS];
      for (u32 r = 0; r < ROWS; r++) {
        UnitSums sums = over_block<F>(unit_sums<F>(units[r], subs[r], x));
        if (inside && lane % F::UNITS == 0) {
          Pair pair[F::PAIRS];
          F::pairs(heads[r], sums, x_scale, pair);
          u32 chain = t * OUTPUTS + first_local + r;
          for (u32 p = 0; p < F::PAIRS; p++) pairs[(lane / F::UNITS * F::PAIRS + p) * STRIDE + chain] = pair[p];
        }
      }
    }
    barrier();
    if (thread_index() < CHAINS) {
      u32 here = smaller(blocks - start / F::UNITS, BLOCKS) * F::PAIRS;
      for (u32 i = 0; i < here; i++) {
        Pair pair = pairs[i * STRIDE + thread_index()];
        sum = fma(pair.factor, pair.value, sum);
      }
    }
    barrier();
  }
  u32 row = first_row + thread_index() % OUTPUTS, token = thread_index() / OUTPUTS;
  if (thread_index() < CHAINS && row < a.outputs && token < a.tokens) {
    float value = a.bias ? sum + a.bias[row] : sum;
    float* out = a.out + (u64)token * a.outputs + row;
    *out = a.add ? *out + value : value;
  }
}

}  // namespace rf
