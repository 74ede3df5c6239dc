// The calls of the HIP runtime, over the emulated device.
//
// Work given to a stream is kept and done when somebody waits for it: code that reads a result or reuses a buffer
// too early goes wrong here as it may on a GPU. Arguments of a launch are copied when it is made, as HIP does. Every
// call holds one lock; a hang keeps it, as a hung device hangs everybody who waits for it.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "block.h"
#include "device.h"

struct ihipStream_t {
  std::vector<std::function<void()>> work;
};

struct ihipEvent_t {
  hipStream_t stream = nullptr;  // on which it was recorded last, until that work is done
  uint64_t number = 0;           // how much had been done by then
};

struct ihipModule_t {
  std::set<std::string> names;
  std::vector<std::unique_ptr<ihipModuleSymbol_t>> functions;
};

struct ihipModuleSymbol_t {
  const emulator::Kernel* kernel;
};

namespace {

using namespace emulator;

struct Device {
  Settings settings = Settings::from_environment();
  Memory memory{settings.memory_bytes};
  Faults faults{settings.faults};
  hipError_t broken = hipSuccess;  // once set, every call fails with it
  hipError_t last = hipSuccess;
  bool hangs = false;
  uint64_t done = 0;  // pieces of work done
  ihipStream_t standard;
  std::set<hipStream_t> streams;
};

std::recursive_mutex lock;

Device& device() {
  static Device* device = new Device;
  return *device;
}

hipError_t result(hipError_t error) {
  if (error != hipSuccess) device().last = error;
  return error;
}

/// What every call begins with: a broken device fails all of them.
#define RF_CALL                                               \
  std::lock_guard<std::recursive_mutex> guard(lock);          \
  if (device().broken != hipSuccess) return result(device().broken); \
  if (device().settings.devices == 0) return result(hipErrorNoDevice)

ihipStream_t& stream_of(hipStream_t stream) { return stream ? *stream : device().standard; }

/// Does all that the stream was given.
hipError_t finish(ihipStream_t& stream) {
  std::vector<std::function<void()>> work;
  work.swap(stream.work);
  for (auto& piece : work) {
    if (device().broken == hipSuccess) piece();
    device().done++;
    while (device().hangs) pause();
  }
  return device().broken;
}

hipError_t finish_all() {
  finish(device().standard);
  for (hipStream_t stream : device().streams) finish(*stream);
  return device().broken;
}

/// Whether a copy of that kind may go from and to these places.
bool is_copy(void* to, const void* from, size_t bytes, hipMemcpyKind kind) {
  const Memory& memory = device().memory;
  bool to_device = kind == hipMemcpyHostToDevice || kind == hipMemcpyDeviceToDevice;
  bool from_device = kind == hipMemcpyDeviceToHost || kind == hipMemcpyDeviceToDevice;
  if (kind > hipMemcpyDeviceToDevice) return false;
  if (to_device ? !memory.is_device(to, bytes) : memory.touches_device(to)) return false;
  return from_device ? memory.is_device(from, bytes) : !memory.touches_device(from);
}

struct ErrorText {
  hipError_t error;
  const char *name, *text;
};

constexpr ErrorText ERRORS[] = {
    {hipSuccess, "hipSuccess", "no error"},
    {hipErrorInvalidValue, "hipErrorInvalidValue", "invalid argument"},
    {hipErrorOutOfMemory, "hipErrorOutOfMemory", "out of memory"},
    {hipErrorNotInitialized, "hipErrorNotInitialized", "initialization error"},
    {hipErrorNoDevice, "hipErrorNoDevice", "no ROCm-capable device is detected"},
    {hipErrorInvalidDevice, "hipErrorInvalidDevice", "invalid device ordinal"},
    {hipErrorInvalidImage, "hipErrorInvalidImage", "device kernel image is invalid"},
    {hipErrorNoBinaryForGpu, "hipErrorNoBinaryForGpu", "no kernel image is available for execution on the device"},
    {hipErrorInvalidHandle, "hipErrorInvalidHandle", "invalid resource handle"},
    {hipErrorNotFound, "hipErrorNotFound", "named symbol not found"},
    {hipErrorNotReady, "hipErrorNotReady", "device not ready"},
    {hipErrorIllegalAddress, "hipErrorIllegalAddress", "an illegal memory access was encountered"},
    {hipErrorLaunchOutOfResources, "hipErrorLaunchOutOfResources", "too many resources requested for launch"},
    {hipErrorLaunchFailure, "hipErrorLaunchFailure", "unspecified launch failure"},
};

const ErrorText* text_of(hipError_t error) {
  for (const ErrorText& entry : ERRORS) {
    if (entry.error == error) return &entry;
  }
  return nullptr;
}

}  // namespace

#define RF_API extern "C" __attribute__((visibility("default")))

RF_API hipError_t hipInit(unsigned int) {
  RF_CALL;
  return hipSuccess;
}

RF_API hipError_t hipGetDeviceCount(int* count) {
  *count = 0;
  RF_CALL;
  *count = device().settings.devices;
  return hipSuccess;
}

RF_API hipError_t hipSetDevice(int index) {
  RF_CALL;
  return result(index >= 0 && index < device().settings.devices ? hipSuccess : hipErrorInvalidDevice);
}

RF_API hipError_t hipDeviceGetName(char* name, int len, int) {
  RF_CALL;
  snprintf(name, (size_t)len, "emulated %s", device().settings.arch.c_str());
  return hipSuccess;
}

RF_API hipError_t hipDeviceGetPCIBusId(char* id, int len, int index) {
  RF_CALL;
  if (index < 0 || index >= device().settings.devices) return result(hipErrorInvalidDevice);
  snprintf(id, (size_t)len, "0000:%02x:00.0", index + 3);
  return hipSuccess;
}

RF_API hipError_t hipRuntimeGetVersion(int* version) {
  RF_CALL;
  *version = 60000000;
  return hipSuccess;
}

RF_API hipError_t hipDeviceSynchronize() {
  RF_CALL;
  return result(finish_all());
}

RF_API hipError_t hipMemGetInfo(size_t* free, size_t* total) {
  RF_CALL;
  *total = device().memory.limit();
  *free = *total - device().memory.used();
  return hipSuccess;
}

RF_API hipError_t hipMalloc(void** pointer, size_t bytes) {
  RF_CALL;
  *pointer = nullptr;
  if (bytes == 0) return hipSuccess;
  if (!device().faults.allocation()) *pointer = device().memory.allocate(bytes);
  return result(*pointer ? hipSuccess : hipErrorOutOfMemory);
}

RF_API hipError_t hipFree(void* pointer) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  // Freeing waits for the device, as HIP does. On a broken one it still gives the memory back.
  hipError_t error = finish_all();
  if (pointer && !device().memory.release(pointer)) return result(hipErrorInvalidValue);
  return result(error);
}

RF_API hipError_t hipHostMalloc(void** pointer, size_t bytes, unsigned int) {
  RF_CALL;
  *pointer = device().faults.allocation() ? nullptr : device().memory.allocate_pinned(bytes);
  return result(*pointer ? hipSuccess : hipErrorOutOfMemory);
}

RF_API hipError_t hipHostFree(void* pointer) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  hipError_t error = finish_all();
  if (pointer && !device().memory.release_pinned(pointer)) return result(hipErrorInvalidValue);
  return result(error);
}

RF_API hipError_t hipMemcpy(void* to, const void* from, size_t bytes, hipMemcpyKind kind) {
  RF_CALL;
  if (!is_copy(to, from, bytes, kind)) return result(hipErrorInvalidValue);
  hipError_t error = finish_all();
  if (error == hipSuccess) memmove(to, from, bytes);
  return result(error);
}

RF_API hipError_t hipMemcpyAsync(void* to, const void* from, size_t bytes, hipMemcpyKind kind, hipStream_t stream) {
  RF_CALL;
  if (!is_copy(to, from, bytes, kind)) return result(hipErrorInvalidValue);
  const Memory& memory = device().memory;
  bool waits = (kind == hipMemcpyHostToDevice && !memory.is_pinned(from, bytes)) ||
               (kind == hipMemcpyDeviceToHost && !memory.is_pinned(to, bytes));
  stream_of(stream).work.push_back([=] { memmove(to, from, bytes); });
  // Pageable memory is copied before the call returns.
  return result(waits ? finish(stream_of(stream)) : hipSuccess);
}

RF_API hipError_t hipMemsetAsync(void* to, int value, size_t bytes, hipStream_t stream) {
  RF_CALL;
  if (!device().memory.is_device(to, bytes)) return result(hipErrorInvalidValue);
  stream_of(stream).work.push_back([=] { memset(to, value, bytes); });
  return hipSuccess;
}

RF_API hipError_t hipStreamCreateWithFlags(hipStream_t* stream, unsigned int) {
  RF_CALL;
  *stream = new ihipStream_t;
  device().streams.insert(*stream);
  return hipSuccess;
}

RF_API hipError_t hipStreamDestroy(hipStream_t stream) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (device().streams.count(stream) == 0) return result(hipErrorInvalidHandle);
  finish(*stream);
  device().streams.erase(stream);
  delete stream;
  return hipSuccess;
}

RF_API hipError_t hipStreamSynchronize(hipStream_t stream) {
  RF_CALL;
  return result(finish(stream_of(stream)));
}

RF_API hipError_t hipStreamQuery(hipStream_t stream) {
  RF_CALL;
  // A device works while it is asked how far it is.
  return result(finish(stream_of(stream)));
}

RF_API hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned int) {
  RF_CALL;
  hipStream_t other = event->stream;
  if (other != stream) {
    stream_of(stream).work.push_back([other] { finish(stream_of(other)); });
  }
  return hipSuccess;
}

RF_API hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned int) {
  RF_CALL;
  *event = new ihipEvent_t;
  return hipSuccess;
}

RF_API hipError_t hipEventDestroy(hipEvent_t event) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  delete event;
  return hipSuccess;
}

RF_API hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
  RF_CALL;
  event->stream = stream;
  event->number = device().done + stream_of(stream).work.size();
  return hipSuccess;
}

RF_API hipError_t hipEventSynchronize(hipEvent_t event) {
  RF_CALL;
  return result(finish(stream_of(event->stream)));
}

RF_API hipError_t hipEventQuery(hipEvent_t event) { return hipEventSynchronize(event); }

RF_API hipError_t hipEventElapsedTime(float* ms, hipEvent_t start, hipEvent_t stop) {
  RF_CALL;
  // Time means nothing here: a microsecond a piece of work keeps it positive and in order.
  *ms = 0.001f * (float)(stop->number - start->number);
  return hipSuccess;
}

RF_API hipError_t hipModuleLoadData(hipModule_t* module, const void* image) {
  RF_CALL;
  const unsigned char* elf = (const unsigned char*)image;
  if (memcmp(elf, "\177ELF\2\1", 6) != 0 || elf[18] != 224) return result(hipErrorInvalidImage);
  uint32_t machine = elf[48];  // the lowest byte of e_flags
  if (machine != machine_of(device().settings.arch)) return result(hipErrorNoBinaryForGpu);
  *module = new ihipModule_t;
  return hipSuccess;
}

RF_API hipError_t hipModuleUnload(hipModule_t module) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  finish_all();
  delete module;
  return hipSuccess;
}

RF_API hipError_t hipModuleGetFunction(hipFunction_t* function, hipModule_t module, const char* name) {
  RF_CALL;
  const Kernel* kernel = find_kernel(name, device().settings.wave);
  if (!kernel) return result(hipErrorNotFound);
  module->functions.push_back(std::make_unique<ihipModuleSymbol_t>(ihipModuleSymbol_t{kernel}));
  *function = module->functions.back().get();
  return hipSuccess;
}

RF_API hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned int grid_x, unsigned int grid_y,
                                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                        unsigned int block_z, unsigned int shared_bytes, hipStream_t stream,
                                        void** parameters, void** extra) {
  RF_CALL;
  Device& gpu = device();
  uint32_t threads = block_x * block_y * block_z;
  bool fits = grid_x > 0 && grid_y > 0 && grid_z > 0 && grid_y < 65536 && grid_z < 65536 && threads > 0 &&
              threads <= 1024 && threads % function->kernel->wave == 0 && shared_bytes == 0 && !extra;
  if (!fits) return result(hipErrorInvalidValue);
  gpu.faults.launch();
  if (gpu.faults.at_launch("launch")) return result(hipErrorLaunchOutOfResources);
  const char* first = (const char*)parameters[0];
  std::vector<char> argument(first, first + function->kernel->argument_bytes);
  bool hangs = gpu.faults.at_launch("hang");
  hipError_t broken = gpu.faults.at_launch("illegal") ? hipErrorIllegalAddress
                      : gpu.faults.at_launch("lost")  ? hipErrorLaunchFailure
                                                      : hipSuccess;
  Grid grid{grid_x, grid_y, grid_z, threads};
  stream_of(stream).work.push_back([=, kernel = function->kernel, seed = gpu.settings.seed] {
    if (hangs) device().hangs = true;
    device().broken = broken;
    if (!hangs && broken == hipSuccess) run(*kernel, grid, argument, seed);
  });
  return hipSuccess;
}

RF_API hipError_t hipGetLastError() {
  std::lock_guard<std::recursive_mutex> guard(lock);
  hipError_t last = device().last;
  device().last = hipSuccess;
  return last;
}

RF_API const char* hipGetErrorName(hipError_t error) {
  const ErrorText* entry = text_of(error);
  return entry ? entry->name : "hipErrorUnknown";
}

RF_API const char* hipGetErrorString(hipError_t error) {
  const ErrorText* entry = text_of(error);
  return entry ? entry->text : "unknown error";
}
