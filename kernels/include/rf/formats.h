// Where each bit of a quantized weight lies on the device, and what its codes are worth.
//
// Written by `src/hip/pack.rs`. A row is one record: first the codes' low parts of all its *units* (32 columns),
// in planes of 16 bytes a unit, so that neighbouring lanes read neighbouring 16 bytes; then the planes of high
// bits, sub-scales and scales. Byte i of a low part holds column i in its low nibble and column 16 + i in its high
// one. Records begin on 16-byte boundaries. Packing moves bits and widens six-bit scales to bytes; codes and scales
// keep their values.
//
// What holds always: the dot product of a block is an exact integer, and a block contributes to its output by the
// pairs of `Product` in their order, each by one `fma`: the order of `src/cpu/matmul/tile.rs`.
#pragma once

#include "args.h"

namespace rf {

/// The codes of one unit as signed bytes, four columns a word.
struct Unit {
  u32 codes[8];
};

/// The sums of a token row's codes over the first and second 16 columns of a unit.
struct TokenSums {
  i32 low, high;
};

/// One token row's unit.
struct TokenUnit {
  u32 codes[8];
  TokenSums sums;
};

/// `sum = fma(factor, value, sum)`
struct Pair {
  float factor, value;
};

template <u32 LOW, u32 HIGH, u32 SUB, u32 HEAD, u32 UNITS_PER_BLOCK>
struct Record {
  static constexpr u32 UNITS = UNITS_PER_BLOCK;  // units under one scale, for weights and token rows
  static constexpr u32 LOW_PLANES = LOW;          // of 16 bytes a unit
  static constexpr u32 HIGH_BYTES = HIGH;         // of a unit
  static constexpr u32 SUB_BYTES = SUB;           // of a unit
  static constexpr u32 HEAD_BYTES = HEAD;         // of a block

  RF_INLINE u32 high_at(u32 units) { return units * 16 * LOW; }
  RF_INLINE u32 sub_at(u32 units) { return high_at(units) + units * HIGH; }
  RF_INLINE u32 head_at(u32 units) { return sub_at(units) + units * SUB; }
  RF_INLINE u32 bytes(u32 units) { return (head_at(units) + units / UNITS_PER_BLOCK * HEAD + 15) & ~15u; }
};

/// Splits a low part into codes: quads 0 to 3 from the low nibbles, 4 to 7 from the high ones.
RF_INLINE Unit nibbles(u32x4 low) {
  Unit unit;
  for (u32 j = 0; j < 4; j++) {
    unit.codes[j] = low[j] & 0x0f0f0f0f;
    unit.codes[4 + j] = low[j] >> 4 & 0x0f0f0f0f;
  }
  return unit;
}

/// Bit q of byte b is the fifth bit of column 4q + b.
RF_INLINE void add_fifth_bits(Unit& unit, u32 high) {
  for (u32 q = 0; q < 8; q++) unit.codes[q] |= (high >> q & 0x01010101) << 4;
}

/// What a unit adds to its block: integers, exact in any order. A format makes them of the plain dot products of
/// the first and second 16 columns (or, unless it scales HALVES apart, of any two parts of their sum).
struct UnitSums {
  i32 dot;   // of codes (with sub-scale and offset) and token codes
  i32 mins;  // of sub-minimums and token sums
};

/// Eight bits, or four or five around an offset, under one scale per 32.
template <class Derived, u32 LOW, u32 HIGH, i32 OFFSET>
struct Scaled : Record<LOW, HIGH, 0, 2, 1> {
  static constexpr u32 PAIRS = 1;
  static constexpr bool HALVES = false;
  struct Sub {};
  using Head = float;

  RF_INLINE Sub sub(const u8*, u32, u32) { return {}; }
  RF_INLINE Head head(const u8* row, u32 units, u32 block) {
    return from_f16(*at_byte<u16>(row, Derived::head_at(units) + 2 * block));
  }
  RF_INLINE UnitSums sums(Sub, i32 low, i32 high, TokenSums x) {
    return {low + high - OFFSET * (x.low + x.high), 0};
  }
  RF_INLINE void pairs(Head scale, UnitSums sums, float x_scale, Pair* out) {
    out[0] = {scale * x_scale, (float)sums.dot};
  }
  RF_INLINE float value(Sub, Head scale, u32, i32 code) { return (float)(code - OFFSET) * scale; }
};

struct Q8_0 : Scaled<Q8_0, 2, 0, 0> {
  RF_INLINE Unit unit(const u8* row, u32 units, u32 at) {
    u32x4 first = load16(row + at * 16), second = load16(row + (units + at) * 16);
    return {{first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3]}};
  }
};

struct Q4_0 : Scaled<Q4_0, 1, 0, 8> {
  RF_INLINE Unit unit(const u8* row, u32, u32 at) { return nibbles(load16(row + at * 16)); }
};

/// Codes of five bits; `Derived` is a record with four bytes of high bits a unit.
template <class Derived>
RF_INLINE Unit five_bits(const u8* row, u32 units, u32 at) {
  Unit unit = nibbles(load16(row + at * 16));
  add_fifth_bits(unit, *at_byte<u32>(row, Derived::high_at(units) + 4 * at));
  return unit;
}

struct Q5_0 : Scaled<Q5_0, 1, 4, 16> {
  RF_INLINE Unit unit(const u8* row, u32 units, u32 at) { return five_bits<Q5_0>(row, units, at); }
};

struct ScaleMin {
  float scale, min;
};

RF_INLINE ScaleMin scale_min(const u8* row, u32 at) {
  u32 bits = *at_byte<u32>(row, at);
  return {from_f16((u16)bits), from_f16((u16)(bits >> 16))};
}

/// A scale and a minimum per 32.
template <class Derived, u32 HIGH>
struct WithMin : Record<1, HIGH, 0, 4, 1> {
  static constexpr u32 PAIRS = 2;
  static constexpr bool HALVES = false;
  struct Sub {};
  using Head = ScaleMin;

  RF_INLINE Sub sub(const u8*, u32, u32) { return {}; }
  RF_INLINE Head head(const u8* row, u32 units, u32 block) {
    return scale_min(row, Derived::head_at(units) + 4 * block);
  }
  RF_INLINE UnitSums sums(Sub, i32 low, i32 high, TokenSums x) { return {low + high, x.low + x.high}; }
  RF_INLINE void pairs(Head head, UnitSums sums, float x_scale, Pair* out) {
    out[0] = {head.scale * x_scale, (float)sums.dot};
    out[1] = {head.min, x_scale * (float)sums.mins};
  }
  RF_INLINE float value(Sub, Head head, u32, i32 code) { return (float)code * head.scale + head.min; }
};

struct Q4_1 : WithMin<Q4_1, 0> {
  RF_INLINE Unit unit(const u8* row, u32, u32 at) { return nibbles(load16(row + at * 16)); }
};

struct Q5_1 : WithMin<Q5_1, 4> {
  RF_INLINE Unit unit(const u8* row, u32 units, u32 at) { return five_bits<Q5_1>(row, units, at); }
};

/// Integer scales and minimums per 32 under one scale and one minimum per 256.
template <class Derived, u32 HIGH>
struct SubMin : Record<1, HIGH, 2, 4, 8> {
  static constexpr u32 PAIRS = 2;
  static constexpr bool HALVES = false;
  struct Sub {
    i32 scale, min;
  };
  using Head = ScaleMin;

  RF_INLINE Sub sub(const u8* row, u32 units, u32 at) {
    u32 bits = *at_byte<u16>(row, Derived::sub_at(units) + 2 * at);
    return {(i32)(bits & 0xff), (i32)(bits >> 8)};
  }
  RF_INLINE Head head(const u8* row, u32 units, u32 block) {
    return scale_min(row, Derived::head_at(units) + 4 * block);
  }
  RF_INLINE UnitSums sums(Sub sub, i32 low, i32 high, TokenSums x) {
    return {sub.scale * (low + high), sub.min * (x.low + x.high)};
  }
  RF_INLINE void pairs(Head head, UnitSums sums, float x_scale, Pair* out) {
    out[0] = {head.scale * x_scale, (float)sums.dot};
    out[1] = {-(head.min * x_scale), (float)sums.mins};
  }
  RF_INLINE float value(Sub sub, Head head, u32, i32 code) {
    return head.scale * (float)sub.scale * (float)code - head.min * (float)sub.min;
  }
};

struct Q4_K : SubMin<Q4_K, 0> {
  RF_INLINE Unit unit(const u8* row, u32, u32 at) { return nibbles(load16(row + at * 16)); }
};

struct Q5_K : SubMin<Q5_K, 4> {
  RF_INLINE Unit unit(const u8* row, u32 units, u32 at) { return five_bits<Q5_K>(row, units, at); }
};

/// Six bits around 32, integer scales per 16 under one scale per 256.
struct Q6_K : Record<1, 8, 2, 2, 8> {
  static constexpr u32 PAIRS = 1;
  static constexpr bool HALVES = true;
  struct Sub {
    i32 low, high;  // of the first and second 16 columns
  };
  using Head = float;

  /// Bits 2q and 2q + 1 of byte b of high word h are the upper bits of column 4 (4h + q) + b.
  RF_INLINE Unit unit(const u8* row, u32 units, u32 at) {
    Unit unit = nibbles(load16(row + at * 16));
    u32x2 high = *at_byte<u32x2>(row, high_at(units) + 8 * at);
    for (u32 q = 0; q < 8; q++) unit.codes[q] |= (high[q / 4] >> 2 * (q % 4) & 0x03030303) << 4;
    return unit;
  }
  RF_INLINE Sub sub(const u8* row, u32 units, u32 at) {
    u32 bits = *at_byte<u16>(row, sub_at(units) + 2 * at);
    return {(i32)(i8)bits, (i32)(i8)(bits >> 8)};
  }
  RF_INLINE Head head(const u8* row, u32 units, u32 block) {
    return from_f16(*at_byte<u16>(row, head_at(units) + 2 * block));
  }
  RF_INLINE UnitSums sums(Sub sub, i32 low, i32 high, TokenSums x) {
    return {sub.low * (low - 32 * x.low) + sub.high * (high - 32 * x.high), 0};
  }
  RF_INLINE void pairs(Head scale, UnitSums sums, float x_scale, Pair* out) {
    out[0] = {scale * x_scale, (float)sums.dot};
  }
  RF_INLINE float value(Sub sub, Head scale, u32 column, i32 code) {
    return scale * (float)(column < 16 ? sub.low : sub.high) * (float)(code - 32);
  }
};

RF_INLINE TokenSums token_sums(u32 sums) { return {(i32)(i16)(u16)sums, (i32)sums >> 16}; }

/// The unit `at` of token row `token`.
RF_INLINE TokenUnit token_unit(const Quantized& x, u64 units, u32 token, u32 at) {
  u64 unit = token * units + at;
  u32x4 first = load16(x.codes + unit * 32), second = load16(x.codes + unit * 32 + 16);
  u32 sums = x.sums[unit];
  return {{first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3]},
          token_sums(sums)};
}

}  // namespace rf
