// Rotary embedding of queries and keys, and storing keys and values in their slots, in one pass.
//
// One block of threads per row and key/value head or query head; grid [rows, heads + kv_heads]. Angles come as
// cosines and sines computed by the host in f64. Each element depends on its own pair alone; the roundings are those
// of `src/cpu/rope.rs` and `src/cpu/kv_cache.rs`. Argument: RopeArgs. Source: Su et al. 2021 (RoFormer).
#include "../include/rf/kv_tiles.h"

namespace rf {

/// The elements of pair `pair` of a head.
RF_INLINE void pair_places(const RopeArgs& a, u32 pair, u32& first, u32& second) {
  first = a.halves ? pair : 2 * pair;
  second = a.halves ? pair + a.rope_dims / 2 : 2 * pair + 1;
}

RF_INLINE void rotate_head(const RopeArgs& a, float* head) {
  u32 pairs = a.rope_dims / 2;
  for (u32 pair = thread_index(); pair < pairs; pair += BLOCK_THREADS) {
    u64 angle = (u64)block_x() * pairs + pair;
    float cos = a.cos[angle], sin = a.sin[angle];
    u32 first, second;
    pair_places(a, pair, first, second);
    float x = head[first], y = head[second];
    head[first] = fma(y, -sin, x * cos);
    head[second] = fma(x, sin, y * cos);
  }
}

template <class T>
RF_INLINE void rope_and_store_kv(const RopeArgs& a) {
  u32 row = block_x(), head = block_y();
  if (head < a.heads) {
    rotate_head(a, a.q + ((u64)row * a.heads + head) * a.head_dim);
    return;
  }
  head -= a.heads;
  u64 from = ((u64)row * a.kv_heads + head) * a.head_dim;
  rotate_head(a, a.k + from);
  barrier();
  u32 block = a.slots[2 * row], offset = a.slots[2 * row + 1];
  T* tile = (T*)a.cache + ((u64)block * a.kv_heads + head) * tile_elements(a.head_dim);
  for (u32 dim = thread_index(); dim < a.head_dim; dim += BLOCK_THREADS) {
    tile[key_at(dim, offset)] = (T)a.k[from + dim];
    tile[value_at(a.head_dim, offset) + dim] = (T)a.v[from + dim];
  }
}

}  // namespace rf

RF_KERNEL(rope_and_store_kv_f16, rf::RopeArgs, a) { rf::rope_and_store_kv<rf::f16>(a); }
RF_EXPORT(rope_and_store_kv_f16, rf::RopeArgs)
RF_KERNEL(rope_and_store_kv_f32, rf::RopeArgs, a) { rf::rope_and_store_kv<float>(a); }
RF_EXPORT(rope_and_store_kv_f32, rf::RopeArgs)
