// Products of many token rows with quantized weights: 64 outputs by 64 token rows at a time, limited by arithmetic.
//
// Stages of four units are unpacked into shared memory, a word (four columns) of 64 rows side by side; each thread
// then computes 4 x 4 outputs by `dot4` and runs their chains itself, in the order of `formats.h`.
#pragma once

#include "../include/rf/formats.h"

namespace rf {

constexpr u32 TILE = 64;         // outputs and token rows of a block of threads
constexpr u32 STAGE_UNITS = 4;   // units staged at once: one a thread for 64 rows
constexpr u32 PER_THREAD = 4;    // outputs and token rows of a thread
constexpr u32 STAGE_WORDS = STAGE_UNITS * 8 * TILE;

/// Shared memory of a tile, for weights and for token rows.
struct Stage {
  u32* weights;      // [unit][word][row]
  u32* tokens;       // [unit][word][token]
  u32* token_sums;   // [unit][token]
  float* token_scales;  // [unit][token], of the unit's block
};

/// Where a thread's outputs lie in the tile.
struct Place {
  u32 row, token;
};

/// 4 x 4 integers, [token][row].
struct Sums {
  i32 at[PER_THREAD][PER_THREAD];
};

/// The dot products of `words` staged words from `word` on.
RF_INLINE Sums dot_stage(const Stage& stage, u32 word, u32 words, Place place) {
  Sums sums = {};
  for (u32 w = word; w < word + words; w++) {
    u32x4 a = load16(stage.weights + w * TILE + place.row), b = load16(stage.tokens + w * TILE + place.token);
    for (u32 t = 0; t < PER_THREAD; t++) {
      for (u32 r = 0; r < PER_THREAD; r++) sums.at[t][r] = dot4(a[r], b[t], sums.at[t][r]);
    }
  }
  return sums;
}

/// The weights of a thread's rows.
template <class F>
struct Rows {
  const u8* records[PER_THREAD];
  u32 units;
};

/// Adds the staged `unit`, the row's unit `at`, to the sums of its block.
template <class F>
RF_INLINE void add_unit(const Stage& stage, const Rows<F>& rows, u32 at, u32 unit, Place place,
                        UnitSums (&block)[PER_THREAD][PER_THREAD]) {
  Sums low = dot_stage(stage, unit * 8, F::HALVES ? 4 : 8, place), high = {};
  if constexpr (F::HALVES) high = dot_stage(stage, unit * 8 + 4, 4, place);
  for (u32 r = 0; r < PER_THREAD; r++) {
    typename F::Sub sub = F::sub(rows.records[r], rows.units, at);
    for (u32 t = 0; t < PER_THREAD; t++) {
      TokenSums x = token_sums(stage.token_sums[unit * TILE + place.token + t]);
      UnitSums sums = F::sums(sub, low.at[t][r], high.at[t][r], x);
      block[t][r].dot += sums.dot;
      block[t][r].mins += sums.mins;
    }
  }
}

/// Ends the block whose last unit is the staged `unit`: the next links of the chains.
template <class F>
RF_INLINE void end_block(const Stage& stage, const Rows<F>& rows, u32 at, u32 unit, Place place,
                         UnitSums (&block)[PER_THREAD][PER_THREAD], float (&out)[PER_THREAD][PER_THREAD]) {
  for (u32 r = 0; r < PER_THREAD; r++) {
    typename F::Head head = F::head(rows.records[r], rows.units, at / F::UNITS);
    for (u32 t = 0; t < PER_THREAD; t++) {
      Pair pairs[F::PAIRS];
      F::pairs(head, block[t][r], stage.token_scales[unit * TILE + place.token + t], pairs);
      for (u32 p = 0; p < F::PAIRS; p++) out[t][r] = fma(pairs[p].factor, pairs[p].value, out[t][r]);
      block[t][r] = {0, 0};
    }
  }
}

/// Copies STAGE_UNITS units of TILE rows and TILE token rows from unit `start` on. Rows past the last repeat it.
template <class F>
RF_INLINE void fill_stage(const MatmulArgs& a, const Stage& stage, u32 first_row, u32 first_token, u32 start) {
  u32 row = thread_index() / STAGE_UNITS, unit = thread_index() % STAGE_UNITS;
  u32 at = smaller(start + unit, a.units - 1);
  const u8* record = a.weights + (u64)F::bytes(a.units) * smaller(first_row + row, a.outputs - 1);
  Unit codes = F::unit(record, a.units, at);
  u32 token = smaller(first_token + row, a.tokens - 1);
  TokenUnit x = token_unit(a.x, a.units, token, at);
  for (u32 w = 0; w < 8; w++) {
    stage.weights[(unit * 8 + w) * TILE + row] = codes.codes[w];
    stage.tokens[(unit * 8 + w) * TILE + row] = x.codes[w];
  }
  stage.token_sums[unit * TILE + row] = a.x.sums[(u64)token * a.units + at];
  stage.token_scales[unit * TILE + row] = a.x.scales[(u64)token * (a.units / F::UNITS) + at / F::UNITS];
}

template <class F>
RF_INLINE void matmul_tile(const MatmulArgs& a) {
  RF_SHARED(u32x4, weight_words, STAGE_WORDS / 4);
  RF_SHARED(u32x4, token_words, STAGE_WORDS / 4);
  RF_SHARED(u32, token_sums, STAGE_UNITS * TILE);
  RF_SHARED(float, token_scales, STAGE_UNITS * TILE);
  Stage stage{(u32*)weight_words, (u32*)token_words, token_sums, token_scales};

  u32 first_row = block_x() * TILE, first_token = block_y() * TILE;
  // Neighbouring threads take neighbouring rows, so that they write neighbouring outputs.
  Place place{thread_index() % (TILE / PER_THREAD) * PER_THREAD, thread_index() / (TILE / PER_THREAD) * PER_THREAD};
  Rows<F> rows{{}, a.units};
  for (u32 r = 0; r < PER_THREAD; r++) {
    rows.records[r] = a.weights + (u64)F::bytes(a.units) * smaller(first_row + place.row + r, a.outputs - 1);
  }
  float out[PER_THREAD][PER_THREAD] = {};
  UnitSums block[PER_THREAD][PER_THREAD] = {};
  for (u32 start = 0; start < a.units; start += STAGE_UNITS) {
    fill_stage<F>(a, stage, first_row, first_token, start);
    barrier();
    u32 here = smaller(a.units - start, STAGE_UNITS);
    for (u32 unit = 0; unit < here; unit++) {
      add_unit<F>(stage, rows, start + unit, unit, place, block);
      if ((start + unit + 1) % F::UNITS == 0) end_block<F>(stage, rows, start + unit, unit, place, block, out);
    }
    barrier();
  }
  for (u32 t = 0; t < PER_THREAD; t++) {
    for (u32 r = 0; r < PER_THREAD; r++) {
      u32 output = first_row + place.row + r, token = first_token + place.token + t;
      if (output >= a.outputs || token >= a.tokens) continue;
      float value = a.bias ? out[t][r] + a.bias[output] : out[t][r];
      float* to = a.out + (u64)token * a.outputs + output;
      *to = a.add ? *to + value : value;
    }
  }
}

}  // namespace rf
