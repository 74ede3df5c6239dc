// The dialect on the host: a kernel is a function run by one fiber per thread of a block. Included by `dialect.h`
// only; implemented by `emulator/block.cpp`.
//
// Compiled once per wave size (`-DRF_WAVE=32` or 64), each time with other symbol names. Shared memory starts with
// garbage, and every barrier and shuffle is checked to be reached by all threads concerned.
#pragma once

#ifndef RF_WAVE
#error "RF_WAVE is the wave size to emulate, 32 or 64"
#endif

#define RF_INLINE static inline __attribute__((always_inline))
#define RF_KERNEL(name, Args, a) static void name(Args a)
#define RF_EXPORT(name, Args)                                     \
  static void name##_thunk(void* a) { name(*(const Args*)a); } \
  static const rf::host::Registration name##_registration{#name, RF_WAVE, sizeof(Args), name##_thunk};
#define RF_SHARED(T, name, N) T* const name = (T*)rf::host::shared(__COUNTER__, sizeof(T) * (N))

namespace rf::host {

/// Where the running fiber stands in its grid.
struct Thread {
  u32 thread, x, y, z;
};
extern thread_local Thread* current;

/// Makes a kernel known by its name. `call` runs one thread of it with the argument struct.
struct Registration {
  Registration(const char* name, u32 wave, u64 argument_bytes, void (*call)(void*));
};

/// Shared memory of the running block; the same `id` gives the same memory to all its threads.
void* shared(u32 id, u64 bytes);
/// Waits for all threads of the block.
void wait_for_block();
/// Hands `value` to lane `lane ^ mask` and returns that lane's.
i32 exchange(i32 value, u32 mask);

}  // namespace rf::host

namespace rf {

RF_INLINE u32 thread_index() { return host::current->thread; }
RF_INLINE u32 block_x() { return host::current->x; }
RF_INLINE u32 block_y() { return host::current->y; }
RF_INLINE u32 block_z() { return host::current->z; }
RF_INLINE void barrier() { host::wait_for_block(); }

template <int MASK>
RF_INLINE i32 shuffle_xor(i32 value) {
  static_assert(MASK > 0 && MASK < 32);
  return host::exchange(value, MASK);
}

RF_INLINE i32 dot4(u32 a, u32 b, i32 sum) {
  for (int i = 0; i < 4; i++) sum += (i32)(i8)(a >> 8 * i) * (i32)(i8)(b >> 8 * i);
  return sum;
}

RF_INLINE u32x4 load16(const void* from) { return *static_cast<const u32x4*>(from); }

}  // namespace rf
