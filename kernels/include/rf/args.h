// The one argument of each kernel, as the host writes it: mirrored field by field in `src/hip/args.rs`.
//
// Pointers come first, then 32-bit numbers, so that no compiler pads between fields. A null pointer means that the
// operand is absent where the field's comment says so. Shapes are in brackets, row-major.
#pragma once

#include "dialect.h"

namespace rf {

/// Token rows quantized to bytes, as `activations.h` writes them.
struct Quantized {
  u8* codes;     // i8 [rows, cols]
  float* scales;  // [rows, cols / 32] or [rows, cols / 256]
  u32* sums;     // [rows, cols / 32]: the exact sums of the first and second 16 codes, as two i16
};

/// What a kernel that makes rows also does: quantize them, in one of the two formats.
struct QuantizeOut {
  Quantized per32;   // codes absent: not wanted
  Quantized per256;  // codes absent: not wanted
};

struct QuantizeArgs {
  const float* x;  // [rows, cols]
  QuantizeOut out;
  u32 cols;
  u32 rows;
};

struct MatmulArgs {
  const u8* weights;  // records of `formats.h`, [outputs]
  Quantized x;        // [tokens, cols], in the weight's format
  const float* bias;  // [outputs], may be absent
  float* out;         // [tokens, outputs]
  u32 outputs;
  u32 units;  // cols / 32
  u32 tokens;
  u32 add;  // 1: add to `out`, 0: replace it
};

struct FloatMatmulArgs {
  const u8* weights;  // groups of 16 rows, see `float_weights.h`
  const float* x;     // [tokens, cols]
  const float* bias;  // [outputs], may be absent
  float* out;         // [tokens, outputs]
  u32 outputs;
  u32 cols;
  u32 tokens;
  u32 add;
};

struct EmbedArgs {
  const u8* table;    // as the weights of a product
  const u32* tokens;  // [rows]
  float* out;         // [rows, width]
  u32 width;
  u32 rows;
  u32 vocabulary;
  u32 reserved;
};

struct NormArgs {
  float* x;             // [rows, width]; the addend is added in place
  const float* addend;  // [rows, width], may be absent
  const float* gain;    // [width]
  float* out;           // [rows, width], may be `x`, may be absent
  QuantizeOut quantized;
  u32 width;
  u32 rows;
  float eps;
  u32 reserved;
};

struct RopeArgs {
  float* q;          // [rows, heads · head_dim], rotated in place
  float* k;          // [rows, kv_heads · head_dim], rotated in place and stored
  const float* v;    // [rows, kv_heads · head_dim], stored
  const float* cos;  // [rows, rope_dims / 2]
  const float* sin;  // [rows, rope_dims / 2]
  const u32* slots;  // [rows, 2]: block, offset
  u8* cache;         // this layer's tiles
  u32 rows;
  u32 heads;
  u32 kv_heads;
  u32 head_dim;
  u32 rope_dims;
  u32 halves;  // 1: pairs are i and i + rope_dims / 2; 0: 2i and 2i + 1
};

/// Up to a tile of (row, head) pairs of one span that share a pass over keys and values.
struct AttentionTile {
  u32 first_row;       // of the span in the batch
  u32 first_position;  // of the span's first row
  u32 first_pair;      // pair = row in span · group + head in group
  u32 pairs;
  u32 table;       // where the span's block table begins
  u32 first_unit;  // its partitions lie in consecutive units
  u32 units;
  u32 reserved;
};

struct AttentionArgs {
  const float* q;              // [rows, heads · head_dim]
  const u8* cache;             // this layer's tiles
  const u32* block_tables;     // all spans' tables
  const AttentionTile* tiles;  // [tiles]
  const u32* units;            // [units, 2]: tile, partition
  float* records;              // [units, kv_heads, PAIRS, value_dim + 2]
  float* out;                  // [rows, heads · head_dim]
  u32 heads;
  u32 kv_heads;
  u32 head_dim;
  u32 window;   // positions seen, 0: all
  float scale;  // of q · k
  float softcap;  // 0: none
};

struct GateArgs {
  const float* gate;  // [rows, width]
  const float* up;    // [rows, width]
  float* out;         // [rows, width], may be absent
  QuantizeOut quantized;
  u32 width;
  u32 rows;
  u32 kind;  // 0: SiLU, 1: GELU by tanh
  u32 reserved;
};

struct GatherArgs {
  const float* x;     // [any, width]
  const u32* chosen;  // [rows]
  float* out;         // [rows, width]
  u32 width;
  u32 rows;
};

// What the other side of the border asserts too.
static_assert(sizeof(QuantizeArgs) == 64 && sizeof(MatmulArgs) == 64 && sizeof(FloatMatmulArgs) == 48);
static_assert(sizeof(EmbedArgs) == 40 && sizeof(NormArgs) == 96 && sizeof(RopeArgs) == 80);
static_assert(sizeof(AttentionTile) == 32 && sizeof(AttentionArgs) == 80);
static_assert(sizeof(GateArgs) == 88 && sizeof(GatherArgs) == 32);

}  // namespace rf
