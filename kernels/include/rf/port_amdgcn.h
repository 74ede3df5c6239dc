// The dialect on AMD GPUs, in terms of clang's builtins. Included by `dialect.h` only.
//
// Compiled as HIP (`-x hip --cuda-device-only -nogpuinc -nogpulib`), by plain clang or by hipcc. Instructions that
// a target lacks are replaced by plain C++ with the same result.
#pragma once

#define RF_INLINE static __attribute__((device)) inline __attribute__((always_inline))
#define RF_KERNEL(name, Args, a)                                                                      \
  extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(rf::BLOCK_THREADS, \
                                                                                rf::BLOCK_THREADS))) void name(Args a)
#define RF_EXPORT(name, Args)
#define RF_SHARED(T, name, N) static __attribute__((shared)) T name[N]

namespace rf {

RF_INLINE u32 thread_index() { return __builtin_amdgcn_workitem_id_x(); }
RF_INLINE u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
RF_INLINE u32 block_y() { return __builtin_amdgcn_workgroup_id_y(); }
RF_INLINE u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }

RF_INLINE void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

template <int MASK>
RF_INLINE i32 shuffle_xor(i32 value) {
  static_assert(MASK > 0 && MASK < 32);
  if constexpr (MASK < 4) {
    // quad_perm: lane i of each four takes lane i ^ MASK.
    constexpr int QUAD = (0 ^ MASK) | (1 ^ MASK) << 2 | (2 ^ MASK) << 4 | (3 ^ MASK) << 6;
    return __builtin_amdgcn_update_dpp(0, value, QUAD, 0xf, 0xf, true);
#if !defined(__GFX9__)
  } else if constexpr (MASK < 16) {
    return __builtin_amdgcn_update_dpp(0, value, 0x160 | MASK, 0xf, 0xf, true);  // row_xmask
#endif
  } else {
    return __builtin_amdgcn_ds_swizzle(value, MASK << 10 | 0x1f);  // within 32 lanes: keep all bits, flip MASK
  }
}

RF_INLINE i32 dot4(u32 a, u32 b, i32 sum) {
#if defined(__GFX11__) || defined(__GFX12__)
  return __builtin_amdgcn_sudot4(true, (i32)a, true, (i32)b, sum, false);
#elif defined(__gfx906__) || defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx942__) || defined(__GFX10__)
  return __builtin_amdgcn_sdot4((i32)a, (i32)b, sum, false);
#else
  for (int i = 0; i < 4; i++) sum += (i32)(i8)(a >> 8 * i) * (i32)(i8)(b >> 8 * i);
  return sum;
#endif
}

RF_INLINE u32x4 load16(const void* from) { return *static_cast<const u32x4*>(from); }

}  // namespace rf
