// A fiber: a stack of its own that runs until it yields to whoever resumed it. One per thread of a block.
//
// Used by `block.cpp` only. Switching saves the registers a call preserves and nothing else, so it costs a few
// nanoseconds; processors without a hand-written switch use the C library's. AddressSanitizer is told of switches.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next `resume` begins `entry(argument)` on an empty stack. `entry` ends by a last `yield` and never returns.
  void start(void (*entry)(void*), void* argument);
  /// Runs the fiber until it yields.
  void resume();
  /// Called on the fiber: goes back to `resume`. The last time tells the sanitizer that the stack is given up.
  void yield(bool last);

 private:
  static void main_of(Fiber* fiber);

  char* stack_;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
#if defined(__x86_64__)
  void* own_ = nullptr;     // stack pointer while it waits
  void* caller_ = nullptr;  // of `resume`
#else
  ucontext_t own_, caller_;
#endif
  // What AddressSanitizer wants to know of a switch.
  [[maybe_unused]] void* sanitizer_ = nullptr;
  [[maybe_unused]] const void* caller_stack_ = nullptr;
  [[maybe_unused]] size_t caller_bytes_ = 0;
};

}  // namespace emulator
