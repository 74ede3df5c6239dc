// The dialect that kernels are written in: what a kernel may use beyond plain C++20, and nothing else.
//
// Every file of `device/` includes this first. One port implements it for each way the same sources are compiled:
// amdgcn (what ships), host (the stand-in for the HIP runtime in `emulator/`) and NVPTX. No header or device
// library of a vendor is needed. What holds always: floating-point expressions are not contracted, so that an
// operation has the same bits on every port; a fused multiply-add is written as `fma`.
#pragma once

#pragma clang fp contract(off)

namespace rf {

using u8 = unsigned char;
using i8 = signed char;
using u16 = unsigned short;
using i16 = short;
using u32 = unsigned int;
using i32 = int;
using u64 = unsigned long long;
using f16 = _Float16;

using u32x2 = u32 __attribute__((ext_vector_type(2)));
using u32x4 = u32 __attribute__((ext_vector_type(4)));
using f32x2 = float __attribute__((ext_vector_type(2)));
using f32x4 = float __attribute__((ext_vector_type(4)));
using f16x2 = f16 __attribute__((ext_vector_type(2)));
using f16x8 = f16 __attribute__((ext_vector_type(8)));
using i32x4 = i32 __attribute__((ext_vector_type(4)));
using i32x8 = i32 __attribute__((ext_vector_type(8)));

/// Threads of a block, for every kernel here: a multiple of every wave size.
constexpr u32 BLOCK_THREADS = 256;

}  // namespace rf

// A port defines:
//   RF_KERNEL(name, Args, a)   begins the definition of kernel `name` with the one argument struct `a`
//   RF_EXPORT(name, Args)      after it: makes the kernel known to the loader (the host port's registry)
//   RF_INLINE                  a device function that is always inlined
//   RF_SHARED(T, name, N)      declares `name`, N elements of T that the threads of a block share
//   thread_index(), block_x(), block_y(), block_z()
//   barrier()                  all threads of the block; shared and global writes before it are seen after it
//   shuffle_xor<MASK>(v)       the value of lane `lane ^ MASK`, MASK below 32; all lanes of the wave take part
//   dot4(a, b, sum)            sum + four products of signed bytes, exact
//   load16(p)                  16 aligned bytes in one load
#if defined(__AMDGCN__)
#include "port_amdgcn.h"
#elif defined(__NVPTX__)
#include "port_nvptx.h"
#else
#include "port_host.h"
#endif

namespace rf {

template <class To, class From>
RF_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

/// a · b + c, rounded once.
RF_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

/// The value of lane `lane ^ MASK`.
template <int MASK>
RF_INLINE float shuffle_xor(float value) {
  return bit_cast<float>(shuffle_xor<MASK>(bit_cast<i32>(value)));
}

/// The smaller of two counts.
RF_INLINE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

/// Bytes of bfloat16 as f32.
RF_INLINE float from_bf16(u16 bits) { return bit_cast<float>((u32)bits << 16); }

/// Bytes of an IEEE half as f32.
RF_INLINE float from_f16(u16 bits) { return (float)bit_cast<f16>(bits); }

/// Rounded to nearest, ties to even.
RF_INLINE f16 to_f16(float value) { return (f16)value; }

template <class T>
RF_INLINE const T* at_byte(const u8* base, u64 offset) {
  return reinterpret_cast<const T*>(base + offset);
}

}  // namespace rf
