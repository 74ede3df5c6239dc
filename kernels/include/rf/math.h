// The functions of one variable that kernels need, with the polynomials of `src/cpu/math/exp.rs`.
//
// No library decides a bit: each operation and its order is the CPU backend's, so both backends agree exactly.
#pragma once

#include "dialect.h"

namespace rf {

/// e^x, at most 1.5 units in the last place off. e^−∞ = 0, e^∞ = ∞, not-a-number stays so, e^0 = 1.
RF_INLINE float exp(float x) {
  x = -104.0f > x ? -104.0f : x;  // not-a-number compares false and is kept
  x = 89.0f < x ? 89.0f : x;
  float power = __builtin_rintf(x * 1.4426950408889634f);
  float r = fma(power, -0.6931471805599453f, x);
  r = fma(power, 1.9046542e-9f, r);
  float p = 0.0013814538f;
  p = fma(p, r, 0.008368745f);
  p = fma(p, r, 0.04166839f);
  p = fma(p, r, 0.16666521f);
  p = fma(p, r, 0.49999994f);
  float value = fma(r * r, p, r) + 1.0f;
  // In two steps, since 2^power alone may leave the range; the first is exact. A not-a-number has no power.
  i32 whole = power == power ? (i32)power : 0;
  i32 first = whole >> 1;
  value *= bit_cast<float>((u32)(first + 127) << 23);
  return value * bit_cast<float>((u32)(whole - first + 127) << 23);
}

/// 1 − 2 / (e^2x + 1)
RF_INLINE float tanh(float x) { return 1.0f - 2.0f / (exp(x + x) + 1.0f); }

/// x · sigmoid(slope)
RF_INLINE float sigmoid_times(float x, float slope) { return x / (1.0f + exp(0.0f - slope)); }

RF_INLINE float silu(float x) { return sigmoid_times(x, x); }

/// The tanh approximation of GELU, as x · sigmoid(2u).
RF_INLINE float gelu_tanh(float x) {
  float cubic = fma(0.044715f * (x * x), x, x);
  return sigmoid_times(x, 1.595769f * cubic);
}

}  // namespace rf
