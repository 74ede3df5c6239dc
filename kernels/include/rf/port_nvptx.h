// The dialect on NVIDIA GPUs, for running the same kernels there through the shim. Included by `dialect.h` only.
//
// Compiled as CUDA (`-x cuda --cuda-device-only -nocudainc -nocudalib`), without NVIDIA's headers.
#pragma once

#define RF_INLINE static __attribute__((device)) inline __attribute__((always_inline))
#define RF_KERNEL(name, Args, a) \
  extern "C" __attribute__((global)) __attribute__((launch_bounds(rf::BLOCK_THREADS))) void name(const Args a)
#define RF_EXPORT(name, Args)
#define RF_SHARED(T, name, N) static __attribute__((shared)) T name[N]

namespace rf {

RF_INLINE u32 thread_index() { return __nvvm_read_ptx_sreg_tid_x(); }
RF_INLINE u32 block_x() { return __nvvm_read_ptx_sreg_ctaid_x(); }
RF_INLINE u32 block_y() { return __nvvm_read_ptx_sreg_ctaid_y(); }
RF_INLINE u32 block_z() { return __nvvm_read_ptx_sreg_ctaid_z(); }
RF_INLINE void barrier() { __syncthreads(); }

template <int MASK>
RF_INLINE i32 shuffle_xor(i32 value) {
  return __nvvm_shfl_sync_bfly_i32(0xffffffff, value, MASK, 0x1f);
}

RF_INLINE i32 dot4(u32 a, u32 b, i32 sum) {
  i32 result;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
  return result;
}

RF_INLINE u32x4 load16(const void* from) { return *static_cast<const u32x4*>(from); }

}  // namespace rf
