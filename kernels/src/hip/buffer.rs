//! Memory of a device, and pinned memory of the host that it copies from and to.
//!
//! A [`DeviceBuffer`] is filled and read through a stream; its length is known, so every copy is checked. Copies
//! from ordinary memory end before the call does; copies from a [`PinnedBuffer`] end when the stream says so, which
//! is why they borrow it through [`PinnedBuffer::upload`]'s event.

use bytemuck::Pod;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use super::ffi::{self, check};
use super::stream::{Event, Stream};
use super::{Gpu, HipError};
use crate::KernelError;

/// The runtime's number for a device without memory left.
const OUT_OF_MEMORY: u32 = 2;

/// `len` elements in a device's memory.
#[derive(Debug)]
pub struct DeviceBuffer<T: Pod> {
    start: *mut c_void,
    len: usize,
    holds: PhantomData<T>,
}

// SAFETY: it owns device memory, which any thread may free, and copies go through a stream.
unsafe impl<T: Pod> Send for DeviceBuffer<T> {}

impl<T: Pod> DeviceBuffer<T> {
    /// No elements and no memory.
    pub(super) fn empty() -> Self {
        DeviceBuffer { start: ptr::null_mut(), len: 0, holds: PhantomData }
    }

    /// Room for `len` elements of any value.
    pub(super) fn allocate(gpu: &Gpu, len: usize, what: &'static str) -> Result<Self, HipError> {
        let bytes = len.saturating_mul(size_of::<T>());
        let mut start = ptr::null_mut();
        if bytes > 0 {
            gpu.choose()?;
            // SAFETY: writes one pointer to a place that lives.
            let status = unsafe { ffi::hipMalloc(&raw mut start, bytes) };
            if status == OUT_OF_MEMORY {
                let (free, total) = gpu.memory_bytes()?;
                return Err(HipError::OutOfMemory { device: gpu.index(), what, bytes, free, total });
            }
            check("hipMalloc", status)?;
        }
        Ok(DeviceBuffer { start, len, holds: PhantomData })
    }

    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Where it begins, for a kernel's argument; 0 if it is empty.
    pub(super) fn address(&self) -> u64 {
        self.start as u64
    }

    /// Where element `index` lies.
    pub(super) fn address_of(&self, index: usize) -> u64 {
        self.address() + (index * size_of::<T>()) as u64
    }

    fn expect_inside(&self, at: usize, len: usize) -> Result<(), HipError> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            end => {
                let (value, limit) = (end.unwrap_or(usize::MAX), self.len + 1);
                Err(KernelError::OutOfRange { what: "end of a copy", value, limit }.into())
            }
        }
    }

    /// Makes all bytes zero.
    #[track_caller]
    pub fn clear(&mut self, stream: &Stream) -> Result<(), HipError> {
        if self.is_empty() {
            return Ok(());
        }
        // SAFETY: `bytes` bytes at `start` are ours.
        check("hipMemsetAsync", unsafe { ffi::hipMemsetAsync(self.start, 0, self.bytes(), stream.raw()) })
    }

    /// Copies `from` to the elements from `at` on.
    #[track_caller]
    pub fn upload(&mut self, stream: &Stream, at: usize, from: &[T]) -> Result<(), HipError> {
        self.expect_inside(at, from.len())?;
        self.copy_in(stream, at, from)?;
        Ok(())
    }

    #[track_caller]
    fn copy_in(&mut self, stream: &Stream, at: usize, from: &[T]) -> Result<(), HipError> {
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: checked by the caller to lie inside the buffer; `from` lives until an unpinned copy returns.
        check("hipMemcpyAsync", unsafe {
            let to = self.start.cast::<T>().add(at).cast();
            ffi::hipMemcpyAsync(
                to,
                from.as_ptr().cast(),
                size_of_val(from),
                ffi::HOST_TO_DEVICE,
                stream.raw(),
            )
        })
    }

    /// Copies the elements from `at` on to `to`, and waits for it and all earlier work of the stream.
    #[track_caller]
    pub fn download(&self, stream: &Stream, at: usize, to: &mut [T]) -> Result<(), HipError> {
        self.expect_inside(at, to.len())?;
        if !to.is_empty() {
            // SAFETY: checked to lie inside the buffer; `to` lives until the synchronization below.
            check("hipMemcpyAsync", unsafe {
                let from = self.start.cast::<T>().add(at).cast_const().cast();
                let bytes = size_of_val(to);
                ffi::hipMemcpyAsync(to.as_mut_ptr().cast(), from, bytes, ffi::DEVICE_TO_HOST, stream.raw())
            })?;
        }
        stream.synchronize()
    }

    /// Copies `len` elements from `from` on over those from `to` on; the two do not overlap.
    pub fn copy_within(
        &mut self,
        stream: &Stream,
        from: usize,
        to: usize,
        len: usize,
    ) -> Result<(), HipError> {
        self.expect_inside(from, len)?;
        self.expect_inside(to, len)?;
        if len == 0 || from == to {
            return Ok(());
        }
        if from.abs_diff(to) < len {
            let (value, multiple) = (from.abs_diff(to), len);
            return Err(KernelError::Multiple { what: "distance of a copy", value, multiple }.into());
        }
        // SAFETY: both ranges lie inside the buffer and do not overlap.
        check("hipMemcpyAsync", unsafe {
            let start = self.start.cast::<T>();
            let (from, to) = (start.add(from).cast_const().cast(), start.add(to).cast());
            ffi::hipMemcpyAsync(to, from, len * size_of::<T>(), ffi::DEVICE_TO_DEVICE, stream.raw())
        })
    }
}

impl<T: Pod> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: from `hipMalloc`, freed once. It waits for work that uses the memory.
            let _ = unsafe { ffi::hipFree(self.start) };
        }
    }
}

/// Bytes of the host that a device copies by itself.
#[derive(Debug)]
pub struct PinnedBuffer {
    start: NonNull<u8>,
    len: usize,
    /// Marks the end of the last copy from here, which must pass before the bytes may change.
    copied: Event,
    copying: bool,
}

impl PinnedBuffer {
    /// `len` zeroed bytes, at least one.
    pub fn new(len: usize) -> Result<PinnedBuffer, HipError> {
        let len = len.max(1);
        let mut start = ptr::null_mut();
        // SAFETY: writes one pointer to a place that lives.
        check("hipHostMalloc", unsafe { ffi::hipHostMalloc(&raw mut start, len, 0) })?;
        let nothing = || KernelError::OutOfMemory { what: "pinned memory", bytes: len };
        let start: NonNull<u8> = NonNull::new(start.cast()).ok_or_else(nothing)?;
        // SAFETY: `len` fresh bytes.
        unsafe { start.write_bytes(0, len) };
        Ok(PinnedBuffer { start, len, copied: Event::new()?, copying: false })
    }

    /// The bytes for writing, once the last copy from here has ended.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], HipError> {
        if std::mem::take(&mut self.copying) {
            self.copied.synchronize()?;
        }
        // SAFETY: `len` initialised bytes that only this value owns, and no copy reads them any more.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) })
    }

    /// Copies the first `len` bytes to those of `to` from `at` on, without waiting for it.
    pub fn upload(
        &mut self,
        stream: &Stream,
        len: usize,
        to: &mut DeviceBuffer<u8>,
        at: usize,
    ) -> Result<(), HipError> {
        let len = len.min(self.len);
        to.expect_inside(at, len)?;
        // SAFETY: `len` initialised bytes; they do not change before `copied` has passed, see `bytes_mut` and `drop`.
        let from = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), len) };
        to.copy_in(stream, at, from)?;
        self.copying = true;
        self.copied.record(stream)
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.copying {
            // On a device that has failed nothing copies any more.
            let _ = self.copied.synchronize();
        }
        // SAFETY: from `hipHostMalloc`, freed once, and no copy reads it.
        let _ = unsafe { ffi::hipHostFree(self.start.as_ptr().cast()) };
    }
}
