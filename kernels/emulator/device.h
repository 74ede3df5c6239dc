// The emulated device: its settings, its memory and its faults. One per process; `runtime.cpp` holds its lock.
//
// Settings come from the environment, read once:
//   ROCMFORGE_EMULATOR_ARCH      the architecture it takes itself for (gfx1100); decides the wave size
//   ROCMFORGE_EMULATOR_DEVICES   how many devices there are (1; 0 is a host without a GPU)
//   ROCMFORGE_EMULATOR_MEMORY_MIB  memory of a device (4096)
//   ROCMFORGE_EMULATOR_SEED      order of threads between barriers (0: the natural one)
//   ROCMFORGE_EMULATOR_FAULT     comma-separated `kind:n`, each with the n-th call counted from 1:
//     oom:n      allocation n fails, once        launch:n   launch n is refused, once
//     illegal:n  launch n touches a bad address: it and every later call fail
//     lost:n     as illegal, the device being gone   hang:n     launch n never ends
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "include/hip/hip_runtime_api.h"

namespace emulator {

struct Settings {
  std::string arch;
  uint32_t wave;
  int devices;
  size_t memory_bytes;
  uint64_t seed;
  std::map<std::string, uint64_t> faults;

  static Settings from_environment();
};

/// Whether the call being made is the one that a fault was asked for.
class Faults {
 public:
  explicit Faults(std::map<std::string, uint64_t> faults) : faults_(std::move(faults)) {}
  /// Counts an allocation; true if it fails.
  bool allocation();
  /// Counts a launch.
  void launch() { launches_++; }
  /// Whether this launch has that fault.
  bool at_launch(const char* kind) const;

 private:
  std::map<std::string, uint64_t> faults_;
  uint64_t allocations_ = 0, launches_ = 0;
};

/// Device memory and pinned host memory: what may be copied to and from.
class Memory {
 public:
  explicit Memory(size_t limit) : limit_(limit) {}
  /// Memory full of garbage, or null when the device has no more.
  void* allocate(size_t bytes);
  bool release(void* pointer);
  void* allocate_pinned(size_t bytes);
  bool release_pinned(void* pointer);
  /// Whether all of these bytes lie in one device allocation.
  bool is_device(const void* pointer, size_t bytes) const;
  /// Whether any of it is device memory.
  bool touches_device(const void* pointer) const;
  bool is_pinned(const void* pointer, size_t bytes) const;
  size_t limit() const { return limit_; }
  size_t used() const { return used_; }

 private:
  std::map<uintptr_t, size_t> device_, pinned_;
  size_t limit_, used_ = 0;
};

/// The number of `arch` in an ELF header of a code object (LLVM's AMDGPU usage guide), 0 if unknown.
uint32_t machine_of(const std::string& arch);

}  // namespace emulator
