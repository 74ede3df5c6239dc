// Embedding look-up: rows of a table in its packed form become f32, with the bits of ggml's `to_float`.
//
// One block of threads per token; grid [rows]. The caller checks tokens against the vocabulary; one past it gives
// a row of not-a-numbers, never a read outside the table. Argument: EmbedArgs.
#include "../include/rf/float_weights.h"
#include "../include/rf/formats.h"

namespace rf {

RF_INLINE bool outside(const EmbedArgs& a, u32 token, float* out) {
  if (token < a.vocabulary) return false;
  for (u32 i = thread_index(); i < a.width; i += BLOCK_THREADS) out[i] = bit_cast<float>(0x7fc00000u);
  return true;
}

template <class F>
RF_INLINE void embed(const EmbedArgs& a) {
  u32 token = a.tokens[block_x()], units = a.width / 32;
  float* out = a.out + (u64)block_x() * a.width;
  if (outside(a, token, out)) return;
  const u8* row = a.table + (u64)F::bytes(units) * token;
  for (u32 at = thread_index(); at < units; at += BLOCK_THREADS) {
    Unit unit = F::unit(row, units, at);
    typename F::Sub sub = F::sub(row, units, at);
    typename F::Head head = F::head(row, units, at / F::UNITS);
    for (u32 column = 0; column < 32; column++) {
      i32 code = (i32)(i8)(unit.codes[column / 4] >> 8 * (column % 4));
      out[at * 32 + column] = F::value(sub, head, column, code);
    }
  }
}

template <class F>
RF_INLINE void embed_float(const EmbedArgs& a) {
  u32 token = a.tokens[block_x()];
  float* out = a.out + (u64)block_x() * a.width;
  if (outside(a, token, out)) return;
  for (u32 piece = thread_index(); piece * F::PER_PIECE < a.width; piece += BLOCK_THREADS) {
    float values[F::PER_PIECE];
    F::widen(load16(float_piece<F>(a.table, a.width, token, piece)), values);
    for (u32 i = 0; i < F::PER_PIECE; i++) {
      if (piece * F::PER_PIECE + i < a.width) out[piece * F::PER_PIECE + i] = values[i];
    }
  }
}

}  // namespace rf

#define RF_EMBED(function, TYPE, name)                                       \
  RF_KERNEL(embed_##name, rf::EmbedArgs, a) { rf::function<rf::TYPE>(a); } \
  RF_EXPORT(embed_##name, rf::EmbedArgs)

RF_EMBED(embed_float, F32, f32)
RF_EMBED(embed_float, F16, f16)
RF_EMBED(embed_float, BF16, bf16)
RF_EMBED(embed, Q8_0, q8_0)
RF_EMBED(embed, Q4_0, q4_0)
RF_EMBED(embed, Q4_1, q4_1)
RF_EMBED(embed, Q5_0, q5_0)
RF_EMBED(embed, Q5_1, q5_1)
RF_EMBED(embed, Q4_K, q4_k)
RF_EMBED(embed, Q5_K, q5_k)
RF_EMBED(embed, Q6_K, q6_k)
