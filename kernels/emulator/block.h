// Runs the blocks of a kernel, one after the other, each thread as a fiber.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

/// A kernel compiled for the host.
struct Kernel {
  const char* name;
  uint32_t wave;
  uint64_t argument_bytes;
  void (*call)(void*);
};

/// The kernel of that name for that wave size, or null.
const Kernel* find_kernel(const std::string& name, uint32_t wave);

struct Grid {
  uint32_t x, y, z;
  uint32_t threads;
};

/// Runs every block of the grid. A barrier or shuffle that not all threads concerned reach ends the process with a
/// message: on a GPU it would be undefined. Between such points threads run in an order drawn from `seed` (0: in
/// their natural order), so that a missing barrier shows as a wrong result.
void run(const Kernel& kernel, const Grid& grid, const std::vector<char>& argument, uint64_t seed);

}  // namespace emulator
