// The host port's other half: fibers, barriers, shuffles and shared memory of one block at a time.
//
// A thread runs until it waits for its wave (shuffle) or its block (barrier) or ends. All state is per OS thread, so
// two OS threads can run kernels at once.
#include "block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#define RF_WAVE 0
#include "../include/rf/dialect.h"
#include "fiber.h"

namespace emulator {

namespace {

enum class Waits { Nothing, ForWave, ForBlock, Ended };

/// What shared memory holds before a kernel writes it: not-a-numbers, and absurd integers.
constexpr uint32_t GARBAGE = 0x7fe1bad1;

struct Lane {
  rf::host::Thread place;
  Waits waits;
  Fiber fiber;
  /// Two slots in turn: a lane may write its next value before a slow neighbour has read the last.
  rf::i32 handed[2];
  uint32_t exchanges;
};

struct Shared {
  std::unique_ptr<uint32_t[]> words;
  uint64_t bytes;
};

/// The block that this OS thread runs.
struct Block {
  const Kernel* kernel = nullptr;
  void* argument = nullptr;
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<uint32_t> order;
  std::map<uint32_t, Shared> shared;
};

thread_local Block block;
thread_local Lane* running = nullptr;

std::map<std::pair<std::string, uint32_t>, Kernel>& registry() {
  static std::map<std::pair<std::string, uint32_t>, Kernel> kernels;
  return kernels;
}

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "hip stand-in: kernel %s (wave %u), block (%u, %u, %u), thread %u: %s\n", block.kernel->name,
          block.kernel->wave, running->place.x, running->place.y, running->place.z, running->place.thread, what);
  abort();
}

void wait(Waits waits) {
  Lane* lane = running;
  lane->waits = waits;
  lane->fiber.yield(waits == Waits::Ended);
  running = lane;
  rf::host::current = &lane->place;
}

void thread_main(void* lane) {
  running = (Lane*)lane;
  rf::host::current = &running->place;
  block.kernel->call(block.argument);
  wait(Waits::Ended);
}

/// Runs a wave until all its lanes wait for the block or have ended.
void run_wave(uint32_t first, uint32_t wave) {
  for (;;) {
    for (uint32_t i = 0; i < wave; i++) {
      Lane& lane = *block.lanes[first + block.order[i] % wave];
      if (lane.waits == Waits::Nothing) lane.fiber.resume();
    }
    Waits waits = block.lanes[first]->waits;
    for (uint32_t i = 1; i < wave; i++) {
      running = block.lanes[first + i].get();
      if (running->waits != waits) fail("not all lanes of its wave reach the same shuffle, barrier or end");
    }
    if (waits != Waits::ForWave) return;
    for (uint32_t i = 0; i < wave; i++) block.lanes[first + i]->waits = Waits::Nothing;
  }
}

void run_block(const Grid& grid) {
  uint32_t waves = grid.threads / block.kernel->wave;
  for (auto& entry : block.shared) {
    for (uint64_t i = 0; i < entry.second.bytes / 4; i++) entry.second.words[i] = GARBAGE;
  }
  for (auto& lane : block.lanes) {
    lane->waits = Waits::Nothing;
    lane->exchanges = 0;
    lane->fiber.start(thread_main, lane.get());
  }
  for (;;) {
    for (uint32_t i = 0; i < waves; i++) run_wave(block.order[i] % waves * block.kernel->wave, block.kernel->wave);
    Waits waits = block.lanes[0]->waits;
    for (auto& lane : block.lanes) {
      running = lane.get();
      if (lane->waits != waits) fail("not all threads of its block reach the same barrier");
    }
    if (waits == Waits::Ended) return;
    for (auto& lane : block.lanes) lane->waits = Waits::Nothing;
  }
}

/// A permutation of each power-of-two range from 0 on: i ^ mask, with a mask drawn from the seed.
void shuffle_order(uint32_t threads, uint64_t seed) {
  block.order.resize(threads);
  uint32_t mask = (uint32_t)((seed * 0x9e3779b97f4a7c15ull) >> 40) % threads;
  for (uint32_t i = 0; i < threads; i++) block.order[i] = i ^ mask;
}

}  // namespace

const Kernel* find_kernel(const std::string& name, uint32_t wave) {
  auto found = registry().find({name, wave});
  return found == registry().end() ? nullptr : &found->second;
}

void run(const Kernel& kernel, const Grid& grid, const std::vector<char>& argument, uint64_t seed) {
  std::vector<char> copy = argument;
  block.kernel = &kernel;
  block.argument = copy.data();
  block.shared.clear();
  while (block.lanes.size() < grid.threads) block.lanes.push_back(std::make_unique<Lane>());
  block.lanes.resize(grid.threads);
  for (uint32_t z = 0; z < grid.z; z++) {
    for (uint32_t y = 0; y < grid.y; y++) {
      for (uint32_t x = 0; x < grid.x; x++) {
        shuffle_order(grid.threads, seed ? seed + x + 977ull * y : 0);
        for (uint32_t t = 0; t < grid.threads; t++) block.lanes[t]->place = {t, x, y, z};
        run_block(grid);
      }
    }
  }
}

}  // namespace emulator

namespace rf::host {

thread_local Thread* current = nullptr;

Registration::Registration(const char* name, u32 wave, u64 argument_bytes, void (*call)(void*)) {
  emulator::registry()[{name, wave}] = {name, wave, argument_bytes, call};
}

void* shared(u32 id, u64 bytes) {
  emulator::Shared& entry = emulator::block.shared[id];
  if (!entry.words) {
    // Not by make_unique, which would clear it. Operator new aligns to 16 bytes.
    entry = {std::unique_ptr<uint32_t[]>(new uint32_t[(bytes + 3) / 4]), bytes};
    for (u64 i = 0; i < bytes / 4; i++) entry.words[i] = emulator::GARBAGE;
  }
  if (entry.bytes != bytes) emulator::fail("one declaration of shared memory with two sizes");
  return entry.words.get();
}

void wait_for_block() { emulator::wait(emulator::Waits::ForBlock); }

i32 exchange(i32 value, u32 mask) {
  emulator::Lane* lane = emulator::running;
  u32 slot = lane->exchanges++ % 2;
  lane->handed[slot] = value;
  emulator::wait(emulator::Waits::ForWave);
  u32 wave = emulator::block.kernel->wave;
  u32 partner = lane->place.thread / wave * wave + (lane->place.thread % wave ^ mask);
  return emulator::block.lanes[partner]->handed[slot];
}

}  // namespace rf::host
