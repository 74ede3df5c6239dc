#include "fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RF_ASAN 1
#include <sanitizer/common_interface_defs.h>
#endif
#endif

namespace emulator {

namespace {

/// A kernel's locals are a few KiB; the sanitizer's redzones multiply them.
#if defined(RF_ASAN)
constexpr size_t STACK_BYTES = 512 << 10;
#else
constexpr size_t STACK_BYTES = 64 << 10;
#endif

#if defined(__x86_64__)
// Saves what the System V ABI lets a callee rely on, stores the stack pointer in *save and takes up `load`.
extern "C" void rf_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl rf_switch_stack
.hidden rf_switch_stack
.type rf_switch_stack,@function
rf_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rf_switch_stack,.-rf_switch_stack
)");

// A fresh stack returns into this; its fiber waits in rbx.
extern "C" void rf_fiber_begin();
asm(R"(
.text
.globl rf_fiber_begin
.hidden rf_fiber_begin
.type rf_fiber_begin,@function
rf_fiber_begin:
  movq %rbx, %rdi
  callq *%r12
  ud2
.size rf_fiber_begin,.-rf_fiber_begin
)");
#endif

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fprintf(stderr, "hip stand-in: no memory for a fiber's stack\n");
    abort();
  }
  // A kernel that outgrows its stack must not grow into the next one.
  mprotect(memory, 4096, PROT_NONE);
  stack_ = (char*)memory;
}

Fiber::~Fiber() { munmap(stack_, STACK_BYTES); }

void Fiber::main_of(Fiber* fiber) {
#if defined(RF_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &fiber->caller_stack_, &fiber->caller_bytes_);
#endif
  fiber->entry_(fiber->argument_);
  abort();
}

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  sanitizer_ = nullptr;
#if defined(__x86_64__)
  void** top = (void**)(stack_ + STACK_BYTES) - 2;  // keeps the stack aligned to 16 where main_of is called
  *--top = (void*)rf_fiber_begin;
  *--top = nullptr;           // rbp
  *--top = this;              // rbx
  *--top = (void*)&main_of;   // r12
  for (int i = 0; i < 3; i++) *--top = nullptr;
  own_ = top;
#else
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = STACK_BYTES;
  own_.uc_link = nullptr;
  makecontext(&own_, (void (*)())main_of, 1, this);
#endif
}

void Fiber::resume() {
#if defined(RF_ASAN)
  void* mine = nullptr;
  __sanitizer_start_switch_fiber(&mine, stack_, STACK_BYTES);
#endif
#if defined(__x86_64__)
  rf_switch_stack(&caller_, own_);
#else
  swapcontext(&caller_, &own_);
#endif
#if defined(RF_ASAN)
  __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#endif
}

void Fiber::yield(bool last) {
#if defined(RF_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &sanitizer_, caller_stack_, caller_bytes_);
#else
  (void)last;
#endif
#if defined(__x86_64__)
  rf_switch_stack(&own_, caller_);
#else
  swapcontext(&own_, &caller_);
#endif
#if defined(RF_ASAN)
  __sanitizer_finish_switch_fiber(sanitizer_, &caller_stack_, &caller_bytes_);
#endif
}

}  // namespace emulator
