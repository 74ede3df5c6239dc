// Where float weights lie on the device: 16 rows interleaved in pieces of 16 bytes.
//
// Written by `src/hip/pack.rs`. Piece (group, p, row) holds consecutive columns of one row, so that sixteen lanes on
// sixteen rows read 256 consecutive bytes. Rows and columns past the last are zeros.
#pragma once

#include "args.h"

namespace rf {

constexpr u32 GROUP_ROWS = 16;

struct F32 {
  static constexpr u32 PER_PIECE = 4;
  RF_INLINE void widen(u32x4 piece, float* out) {
    for (u32 i = 0; i < 4; i++) out[i] = bit_cast<float>((u32)piece[i]);
  }
};

struct F16 {
  static constexpr u32 PER_PIECE = 8;
  RF_INLINE void widen(u32x4 piece, float* out) {
    for (u32 i = 0; i < 4; i++) {
      out[2 * i] = from_f16((u16)piece[i]);
      out[2 * i + 1] = from_f16((u16)(piece[i] >> 16));
    }
  }
};

struct BF16 {
  static constexpr u32 PER_PIECE = 8;
  RF_INLINE void widen(u32x4 piece, float* out) {
    for (u32 i = 0; i < 4; i++) {
      out[2 * i] = from_bf16((u16)piece[i]);
      out[2 * i + 1] = from_bf16((u16)(piece[i] >> 16));
    }
  }
};

/// Piece `piece` of row `row`.
template <class F>
RF_INLINE const u8* float_piece(const u8* weights, u32 cols, u32 row, u32 piece) {
  u64 pieces = (cols + F::PER_PIECE - 1) / F::PER_PIECE;
  return weights + (((u64)(row / GROUP_ROWS) * pieces + piece) * GROUP_ROWS + row % GROUP_ROWS) * 16;
}

}  // namespace rf
