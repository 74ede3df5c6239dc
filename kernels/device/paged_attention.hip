// Causal attention of query rows over the blocks of their sequences, decoding and prefilling alike.
//
// The order of `src/cpu/attention`, to the bit: positions are cut into partitions of 512 at fixed places; inside a
// partition a score is `fma` over the dimensions in order, weights sum into sixteen partial sums by position and then
// as a tree, values are `fma` over the positions in order; partitions are merged in position order. So a row's result
// depends on its query and what its sequence has cached, on nothing else (promise P3).
//
// `paged_attention_*` makes a record per (row, head) pair of a tile, grid [units, kv_heads]; `merge_attention_*` adds
// a tile's records up, grid [tiles, kv_heads]. PAIRS and DIM are what a variant holds at most. Argument: AttentionArgs.
// Source: Vaswani et al. 2017; paging after Kwon et al. 2023, partitions after Dao et al. 2023 (split-KV).
#include "../include/rf/kv_tiles.h"
#include "../include/rf/math.h"

namespace rf {

constexpr u32 PARTITION = 512;
/// Shared memory for queries, later for values.
constexpr u32 STAGING = 4096;
/// Positions that a thread scores at once.
constexpr u32 POSITIONS = PARTITION / BLOCK_THREADS;

struct Range {
  u32 start, end;
};

RF_INLINE float minus_infinity() { return bit_cast<float>(0xff800000u); }

/// What is known of a pair's scores in a partition.
struct State {
  float highest, sum;
};

/// The tile, partition and table that a block of threads works on.
struct Work {
  AttentionTile tile;
  const u32* table;
  u32 partition, group, kv_head;
};

RF_INLINE u32 row_of(const Work& work, u32 pair) { return (work.tile.first_pair + pair) / work.group; }

RF_INLINE u32 head_of(const Work& work, u32 pair) {
  return work.kv_head * work.group + (work.tile.first_pair + pair) % work.group;
}

/// The positions of the partition that `pair` sees, counted from the partition's start. Both ends never fall from
/// one pair to the next.
RF_INLINE Range seen(const AttentionArgs& a, const Work& work, u32 pair) {
  u32 end = work.tile.first_position + row_of(work, pair) + 1;
  u32 start = a.window && end > a.window ? end - a.window : 0;
  u32 first = work.partition * PARTITION;
  Range range{start > first ? start - first : 0, end > first ? end - first : 0};
  return {smaller(range.start, PARTITION), smaller(range.end, PARTITION)};
}

/// Elements of a record: values, the greatest score, the sum of weights.
RF_INLINE u32 record_len(u32 head_dim) { return padded_dim(head_dim) + 2; }

template <u32 PAIRS>
RF_INLINE float* record_of(const AttentionArgs& a, u32 unit, u32 kv_head, u32 pair) {
  return a.records + (((u64)unit * a.kv_heads + kv_head) * PAIRS + pair) * record_len(a.head_dim);
}

/// Raw products q · k of all pairs with the positions of `range`, into `scores` [PAIRS][PARTITION].
template <class T, u32 PAIRS, u32 DIM>
RF_INLINE void score(const AttentionArgs& a, const Work& work, Range range, const float* q, float* scores) {
  float sums[POSITIONS][PAIRS] = {};
  const T* keys[POSITIONS];
  for (u32 i = 0; i < POSITIONS; i++) {
    // Threads without a position repeat one that exists.
    u32 position = thread_index() + i * BLOCK_THREADS;
    position = position < range.start ? range.start : smaller(position, range.end - 1);
    u32 block = work.table[work.partition * (PARTITION / BLOCK_TOKENS) + position / BLOCK_TOKENS];
    keys[i] = kv_tile<T>(a.cache, a.head_dim, a.kv_heads, block, work.kv_head) +
              key_at(0, position % BLOCK_TOKENS);
  }
  for (u32 dim = 0; dim < a.head_dim; dim += KEY_PIECE) {
    float key[POSITIONS][KEY_PIECE];
    for (u32 i = 0; i < POSITIONS; i++) load_piece(keys[i] + dim * BLOCK_TOKENS, key[i]);
    for (u32 pair = 0; pair < PAIRS; pair++) {
      // Dimensions past the last are zeros in `q`, and keys there are zeros too: they add nothing.
      f32x4 first = *(const f32x4*)(q + pair * DIM + dim), second = *(const f32x4*)(q + pair * DIM + dim + 4);
      for (u32 i = 0; i < POSITIONS; i++) {
        for (u32 d = 0; d < 4; d++) sums[i][pair] = fma(first[d], key[i][d], sums[i][pair]);
        for (u32 d = 0; d < 4; d++) sums[i][pair] = fma(second[d], key[i][4 + d], sums[i][pair]);
      }
    }
  }
  for (u32 i = 0; i < POSITIONS; i++) {
    for (u32 pair = 0; pair < PAIRS; pair++) {
      scores[pair * PARTITION + thread_index() + i * BLOCK_THREADS] = sums[i][pair];
    }
  }
}

RF_INLINE float greater_score(float a, float b) { return a > b ? a : b; }

/// Turns the products of one pair into weights, sixteen lanes a pair. All of them get greatest score and sum.
RF_INLINE State softmax(const AttentionArgs& a, Range range, float* scores) {
  u32 lane = thread_index() % BLOCK_TOKENS;
  u32 first = range.start / BLOCK_TOKENS, last = (range.end + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
  float highest = minus_infinity();
  for (u32 block = first; block < last; block++) {
    u32 position = block * BLOCK_TOKENS + lane;
    float score = scores[position] * a.scale;
    if (a.softcap != 0.0f) score = a.softcap * tanh(score / a.softcap);
    if (position < range.start || position >= range.end) score = minus_infinity();
    highest = greater_score(score, highest);
    scores[position] = score;
  }
  highest = greater_score(highest, shuffle_xor<8>(highest));
  highest = greater_score(highest, shuffle_xor<4>(highest));
  highest = greater_score(highest, shuffle_xor<2>(highest));
  highest = greater_score(highest, shuffle_xor<1>(highest));
  float sum = 0.0f;
  for (u32 block = first; block < last; block++) {
    float weight = exp(scores[block * BLOCK_TOKENS + lane] - highest);
    sum += weight;
    scores[block * BLOCK_TOKENS + lane] = weight;
  }
  sum += shuffle_xor<8>(sum);
  sum += shuffle_xor<4>(sum);
  sum += shuffle_xor<2>(sum);
  sum += shuffle_xor<1>(sum);
  return {highest, sum};
}

/// Copies the values of the block of tokens `block` of the partition to `to`, all threads together.
template <class T>
RF_INLINE void stage_values(const AttentionArgs& a, const Work& work, u32 block, T* to) {
  u32 id = work.table[work.partition * (PARTITION / BLOCK_TOKENS) + block];
  const T* tile = kv_tile<T>(a.cache, a.head_dim, a.kv_heads, id, work.kv_head);
  const u8* from = (const u8*)(tile + value_at(a.head_dim, 0));
  u32 bytes = padded_dim(a.head_dim) * BLOCK_TOKENS * sizeof(T);
  for (u32 at = thread_index() * 16; at < bytes; at += BLOCK_THREADS * 16) {
    *(u32x4*)((u8*)to + at) = load16(from + at);
  }
}

/// Two neighbouring elements as f32.
RF_INLINE f32x2 load_two(const f16* from) {
  f16x2 two = *(const f16x2*)from;
  return {(float)two[0], (float)two[1]};
}
RF_INLINE f32x2 load_two(const float* from) { return *(const f32x2*)from; }

/// Weighted values of all pairs into their records: a thread has two dimensions of every GROUPS-th pair.
template <class T, u32 PAIRS, u32 DIM>
RF_INLINE void add_values(const AttentionArgs& a, const Work& work, Range range, float* staging, const float* scores) {
  constexpr u32 GROUPS = BLOCK_THREADS / (DIM / 2);
  constexpr u32 MINE = (PAIRS + GROUPS - 1) / GROUPS;
  u32 dim = thread_index() % (DIM / 2) * 2, group = thread_index() / (DIM / 2);
  u32 padded = padded_dim(a.head_dim);
  u32 at_once = STAGING * 4 / (padded * BLOCK_TOKENS * (u32)sizeof(T));
  f32x2 sums[MINE] = {};
  Range ranges[MINE];
  for (u32 i = 0; i < MINE; i++) {
    u32 pair = group + i * GROUPS;
    ranges[i] = pair < work.tile.pairs ? seen(a, work, pair) : Range{0, 0};
  }
  u32 last = (range.end + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
  for (u32 block = range.start / BLOCK_TOKENS; block < last; block += at_once) {
    u32 here = smaller(at_once, last - block);
    barrier();
    for (u32 b = 0; b < here; b++) {
      stage_values<T>(a, work, block + b, (T*)staging + b * padded * BLOCK_TOKENS);
    }
    barrier();
    if (dim >= padded) continue;
    for (u32 token = 0; token < here * BLOCK_TOKENS; token++) {
      u32 position = block * BLOCK_TOKENS + token;
      f32x2 value = load_two((const T*)staging + token * padded + dim);
      for (u32 i = 0; i < MINE; i++) {
        // What a pair does not see may be anything, even not-a-number, and must not be multiplied.
        if (position < ranges[i].start || position >= ranges[i].end) continue;
        float weight = scores[(group + i * GROUPS) * PARTITION + position];
        sums[i][0] = fma(weight, value[0], sums[i][0]);
        sums[i][1] = fma(weight, value[1], sums[i][1]);
      }
    }
  }
  for (u32 i = 0; i < MINE; i++) {
    u32 pair = group + i * GROUPS;
    if (pair >= work.tile.pairs || dim >= padded) continue;
    *(f32x2*)(record_of<PAIRS>(a, block_x(), work.kv_head, pair) + dim) = sums[i];
  }
}

template <class T, u32 PAIRS, u32 DIM>
RF_INLINE void paged_attention(const AttentionArgs& a) {
  RF_SHARED(f32x4, staging_words, STAGING / 4);
  RF_SHARED(float, scores, PAIRS * PARTITION);
  static_assert(PAIRS * DIM <= STAGING && PAIRS * BLOCK_TOKENS <= BLOCK_THREADS);
  float* staging = (float*)staging_words;
  Work work;
  work.tile = a.tiles[a.units[2 * block_x()]];
  work.partition = a.units[2 * block_x() + 1];
  work.table = a.block_tables + work.tile.table;
  work.group = a.heads / a.kv_heads;
  work.kv_head = block_y();

  for (u32 i = thread_index(); i < PAIRS * DIM; i += BLOCK_THREADS) {
    u32 pair = i / DIM, dim = i % DIM;
    bool exists = pair < work.tile.pairs && dim < a.head_dim;
    u64 row = exists ? work.tile.first_row + row_of(work, pair) : 0;
    staging[i] = exists ? a.q[(row * a.heads + head_of(work, pair)) * a.head_dim + dim] : 0.0f;
  }
  barrier();
  // The first pair begins first and the last ends last; the host makes no unit that nobody sees.
  Range range{seen(a, work, 0).start, seen(a, work, work.tile.pairs - 1).end};
  score<T, PAIRS, DIM>(a, work, range, staging, scores);
  barrier();
  if (thread_index() < PAIRS * BLOCK_TOKENS) {
    u32 pair = thread_index() / BLOCK_TOKENS;
    bool exists = pair < work.tile.pairs;
    State state = softmax(a, exists ? seen(a, work, pair) : Range{0, 0}, scores + pair * PARTITION);
    if (exists && thread_index() % BLOCK_TOKENS == 0) {
      *(f32x2*)(record_of<PAIRS>(a, block_x(), work.kv_head, pair) + padded_dim(a.head_dim)) = {state.highest, state.sum};
    }
  }
  add_values<T, PAIRS, DIM>(a, work, range, staging, scores);
}

/// Merges the records of a tile in position order and writes the quotients of values and sums.
template <u32 PAIRS>
RF_INLINE void merge_attention(const AttentionArgs& a) {
  AttentionTile tile = a.tiles[block_x()];
  Work work{tile, nullptr, 0, a.heads / a.kv_heads, block_y()};
  for (u32 i = thread_index(); i < tile.pairs * a.head_dim; i += BLOCK_THREADS) {
    u32 pair = i / a.head_dim, dim = i % a.head_dim;
    float highest = minus_infinity(), sum = 0.0f, total = 0.0f;
    for (u32 unit = tile.first_unit; unit < tile.first_unit + tile.units; unit++) {
      const float* record = record_of<PAIRS>(a, unit, work.kv_head, pair);
      float part_highest = record[padded_dim(a.head_dim)], part_sum = record[padded_dim(a.head_dim) + 1];
      if (part_sum == 0.0f) continue;  // this pair sees nothing of the partition
      float next = greater_score(part_highest, highest);
      float keep = exp(highest - next), add = exp(part_highest - next);
      highest = next;
      sum = fma(part_sum, add, sum * keep);
      total = fma(record[dim], add, total * keep);
    }
    u64 row = tile.first_row + row_of(work, pair);
    a.out[(row * a.heads + head_of(work, pair)) * a.head_dim + dim] = total / sum;
  }
}

}  // namespace rf

#define RF_ATTENTION(PAIRS, DIM, T, name)                                                       \
  RF_KERNEL(paged_attention_p##PAIRS##_d##DIM##_##name, rf::AttentionArgs, a) {                  \
    rf::paged_attention<T, PAIRS, DIM>(a);                                                     \
  }                                                                                             \
  RF_EXPORT(paged_attention_p##PAIRS##_d##DIM##_##name, rf::AttentionArgs)

RF_ATTENTION(4, 128, rf::f16, f16)
RF_ATTENTION(16, 128, rf::f16, f16)
RF_ATTENTION(4, 256, rf::f16, f16)
RF_ATTENTION(16, 256, rf::f16, f16)
RF_ATTENTION(4, 128, float, f32)
RF_ATTENTION(16, 128, float, f32)
RF_ATTENTION(4, 256, float, f32)
RF_ATTENTION(16, 256, float, f32)

RF_KERNEL(merge_attention_p4, rf::AttentionArgs, a) { rf::merge_attention<4>(a); }
RF_EXPORT(merge_attention_p4, rf::AttentionArgs)
RF_KERNEL(merge_attention_p16, rf::AttentionArgs, a) { rf::merge_attention<16>(a); }
RF_EXPORT(merge_attention_p16, rf::AttentionArgs)
