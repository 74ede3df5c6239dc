// Where keys and values of past tokens lie on the device.
//
// A *tile* is what one block of sixteen tokens holds for one layer and key/value head: keys in pieces of eight
// dimensions, [head_dim / 8][16 tokens][8], so that lanes on neighbouring tokens read neighbouring pieces; then
// values, [16 tokens][value_dim]. Both are padded to multiples of eight dimensions. Tiles of one layer and block lie
// together, a tile per head. Written by `rope_and_store_kv`, read by `paged_attention`.
#pragma once

#include "args.h"

namespace rf {

constexpr u32 BLOCK_TOKENS = 16;
/// Dimensions of a key that lie together.
constexpr u32 KEY_PIECE = 8;

RF_INLINE u32 padded_dim(u32 head_dim) { return (head_dim + KEY_PIECE - 1) / KEY_PIECE * KEY_PIECE; }

/// Elements of one tile, keys and values together.
RF_INLINE u64 tile_elements(u32 head_dim) { return 2 * padded_dim(head_dim) * BLOCK_TOKENS; }

/// Where dimension `dim` of the key of token `offset` lies in its tile.
RF_INLINE u32 key_at(u32 dim, u32 offset) {
  return (dim / KEY_PIECE * BLOCK_TOKENS + offset) * KEY_PIECE + dim % KEY_PIECE;
}

/// Where the value of token `offset` begins in its tile.
RF_INLINE u32 value_at(u32 head_dim, u32 offset) { return padded_dim(head_dim) * (BLOCK_TOKENS + offset); }

template <class T>
RF_INLINE const T* kv_tile(const u8* cache, u32 head_dim, u32 kv_heads, u32 block, u32 kv_head) {
  return (const T*)cache + ((u64)block * kv_heads + kv_head) * tile_elements(head_dim);
}

/// Eight consecutive elements as f32.
RF_INLINE void load_piece(const f16* from, float* out) {
  f16x8 piece = *(const f16x8*)from;
  for (u32 i = 0; i < 8; i++) out[i] = (float)piece[i];
}

RF_INLINE void load_piece(const float* from, float* out) {
  f32x4 first = *(const f32x4*)from, second = *(const f32x4*)(from + 4);
  for (u32 i = 0; i < 4; i++) {
    out[i] = first[i];
    out[4 + i] = second[i];
  }
}

}  // namespace rf
