#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulator {

namespace {

std::string text_of(const char* name, const char* standard) {
  const char* value = getenv(name);
  return value && *value ? value : standard;
}

uint64_t number_of(const char* name, uint64_t standard) {
  std::string text = text_of(name, "");
  if (text.empty()) return standard;
  char* end = nullptr;
  uint64_t value = strtoull(text.c_str(), &end, 10);
  if (*end) {
    fprintf(stderr, "hip stand-in: %s is not a number: %s\n", name, text.c_str());
    abort();
  }
  return value;
}

std::map<std::string, uint64_t> parse_faults(const std::string& text) {
  std::map<std::string, uint64_t> faults;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find(',', at);
    std::string fault = text.substr(at, end == std::string::npos ? end : end - at);
    size_t colon = fault.find(':');
    uint64_t n = colon == std::string::npos ? 0 : strtoull(fault.c_str() + colon + 1, nullptr, 10);
    std::string kind = fault.substr(0, colon);
    bool known = kind == "oom" || kind == "launch" || kind == "illegal" || kind == "lost" || kind == "hang";
    if (!known || n == 0) {
      fprintf(stderr, "hip stand-in: fault %s is none of oom, launch, illegal, lost, hang with :n\n", fault.c_str());
      abort();
    }
    faults[kind] = n;
    at = end == std::string::npos ? text.size() : end + 1;
  }
  return faults;
}

/// The allocation that `pointer` lies in, and where in it.
bool lies_in(const std::map<uintptr_t, size_t>& allocations, const void* pointer, size_t bytes) {
  uintptr_t start = (uintptr_t)pointer;
  auto next = allocations.upper_bound(start);
  if (next == allocations.begin()) return false;
  auto [base, size] = *--next;
  return start - base <= size && bytes <= size - (start - base);
}

}  // namespace

Settings Settings::from_environment() {
  Settings settings;
  settings.arch = text_of("ROCMFORGE_EMULATOR_ARCH", "gfx1100");
  if (machine_of(settings.arch) == 0) {
    fprintf(stderr, "hip stand-in: unknown architecture %s\n", settings.arch.c_str());
    abort();
  }
  settings.wave = settings.arch.compare(0, 4, "gfx9") == 0 ? 64 : 32;
  settings.devices = (int)number_of("ROCMFORGE_EMULATOR_DEVICES", 1);
  settings.memory_bytes = number_of("ROCMFORGE_EMULATOR_MEMORY_MIB", 4096) << 20;
  settings.seed = number_of("ROCMFORGE_EMULATOR_SEED", 0);
  settings.faults = parse_faults(text_of("ROCMFORGE_EMULATOR_FAULT", ""));
  return settings;
}

bool Faults::allocation() {
  allocations_++;
  auto fault = faults_.find("oom");
  return fault != faults_.end() && fault->second == allocations_;
}

bool Faults::at_launch(const char* kind) const {
  auto fault = faults_.find(kind);
  return fault != faults_.end() && fault->second == launches_;
}

void* Memory::allocate(size_t bytes) {
  if (bytes > limit_ - used_) return nullptr;
  void* pointer = aligned_alloc(256, (bytes + 255) & ~(size_t)255);
  if (!pointer) return nullptr;
  memset(pointer, 0xfb, bytes);  // not-a-numbers of every width; absurd as a size or an index
  device_[(uintptr_t)pointer] = bytes;
  used_ += bytes;
  return pointer;
}

bool Memory::release(void* pointer) {
  auto found = device_.find((uintptr_t)pointer);
  if (found == device_.end()) return false;
  used_ -= found->second;
  device_.erase(found);
  free(pointer);
  return true;
}

void* Memory::allocate_pinned(size_t bytes) {
  void* pointer = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
  if (pointer) pinned_[(uintptr_t)pointer] = bytes;
  return pointer;
}

bool Memory::release_pinned(void* pointer) {
  if (pinned_.erase((uintptr_t)pointer) == 0) return false;
  free(pointer);
  return true;
}

bool Memory::is_device(const void* pointer, size_t bytes) const { return lies_in(device_, pointer, bytes); }

bool Memory::touches_device(const void* pointer) const { return lies_in(device_, pointer, 0); }

bool Memory::is_pinned(const void* pointer, size_t bytes) const { return lies_in(pinned_, pointer, bytes); }

uint32_t machine_of(const std::string& arch) {
  static const std::map<std::string, uint32_t> machines = {
      {"gfx906", 0x2f},  {"gfx90a", 0x3f},  {"gfx942", 0x4c},  {"gfx1030", 0x36}, {"gfx1100", 0x41},
      {"gfx1101", 0x46}, {"gfx1102", 0x47}, {"gfx1151", 0x4a}, {"gfx1200", 0x48}, {"gfx1201", 0x4e},
  };
  auto found = machines.find(arch);
  return found == machines.end() ? 0 : found->second;
}

}  // namespace emulator
