//! The calls of the HIP runtime that this crate makes, declared by hand, and the one place where errors are read.
//!
//! `hip-sys` says what to link with; its own declarations are not called: they return a Rust enum, and a runtime
//! newer than its HIP 5.4 may return a number that the enum does not have, which would be undefined behaviour. Every
//! call here has the same ABI in ROCm 5, 6 and 7. Those that changed (`hipGetDeviceProperties`, device attributes)
//! are not used: architecture and sizes come from [`super::topology`] and `hipMemGetInfo`.

use hip_sys as _;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::panic::Location;

use super::HipError;

pub(super) type Status = c_uint;
pub(super) type RawStream = *mut c_void;
pub(super) type RawEvent = *mut c_void;
pub(super) type RawModule = *mut c_void;
pub(super) type RawFunction = *mut c_void;

pub(super) const SUCCESS: Status = 0;
pub(super) const HOST_TO_DEVICE: c_uint = 1;
pub(super) const DEVICE_TO_HOST: c_uint = 2;
pub(super) const DEVICE_TO_DEVICE: c_uint = 3;
/// A stream that does not wait for the null stream.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;

unsafe extern "C" {
    pub(super) fn hipInit(flags: c_uint) -> Status;
    pub(super) fn hipGetDeviceCount(count: *mut c_int) -> Status;
    pub(super) fn hipSetDevice(device: c_int) -> Status;
    pub(super) fn hipDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> Status;
    pub(super) fn hipDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: c_int) -> Status;
    pub(super) fn hipMemGetInfo(free: *mut usize, total: *mut usize) -> Status;
    pub(super) fn hipMalloc(pointer: *mut *mut c_void, bytes: usize) -> Status;
    pub(super) fn hipFree(pointer: *mut c_void) -> Status;
    pub(super) fn hipHostMalloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint) -> Status;
    pub(super) fn hipHostFree(pointer: *mut c_void) -> Status;
    pub(super) fn hipMemcpyAsync(
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        kind: c_uint,
        stream: RawStream,
    ) -> Status;
    pub(super) fn hipMemsetAsync(to: *mut c_void, value: c_int, bytes: usize, stream: RawStream) -> Status;
    pub(super) fn hipStreamCreateWithFlags(stream: *mut RawStream, flags: c_uint) -> Status;
    pub(super) fn hipStreamDestroy(stream: RawStream) -> Status;
    pub(super) fn hipStreamSynchronize(stream: RawStream) -> Status;
    pub(super) fn hipEventCreateWithFlags(event: *mut RawEvent, flags: c_uint) -> Status;
    pub(super) fn hipEventDestroy(event: RawEvent) -> Status;
    pub(super) fn hipEventRecord(event: RawEvent, stream: RawStream) -> Status;
    pub(super) fn hipEventSynchronize(event: RawEvent) -> Status;
    pub(super) fn hipEventElapsedTime(ms: *mut f32, start: RawEvent, stop: RawEvent) -> Status;
    pub(super) fn hipModuleLoadData(module: *mut RawModule, image: *const c_void) -> Status;
    pub(super) fn hipModuleUnload(module: RawModule) -> Status;
    pub(super) fn hipModuleGetFunction(
        function: *mut RawFunction,
        module: RawModule,
        name: *const c_char,
    ) -> Status;
    pub(super) fn hipModuleLaunchKernel(
        function: RawFunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: RawStream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> Status;
    fn hipGetErrorName(error: Status) -> *const c_char;
    fn hipGetErrorString(error: Status) -> *const c_char;
}

/// An error unless `status` is success; `call` is the function that returned it.
#[track_caller]
pub(super) fn check(call: &'static str, status: Status) -> Result<(), HipError> {
    if status == SUCCESS {
        return Ok(());
    }
    // SAFETY: both take any number and give null or a string that lives as long as the library.
    let (name, text) = unsafe { (hipGetErrorName(status), hipGetErrorString(status)) };
    let owned = |text: *const c_char| {
        if text.is_null() {
            return format!("error {status}");
        }
        // SAFETY: not null, and a terminated string that lives as long as the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    let (name, text) = (owned(name), owned(text));
    Err(HipError::Call { call, status, name, text, site: Location::caller() })
}
