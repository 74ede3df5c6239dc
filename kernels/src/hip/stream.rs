//! Streams, in which a device does its work in order, and events, which mark places in them.

use std::ptr;

use super::HipError;
use super::ffi::{self, check};

/// An ordered queue of copies and kernels. Dropping it waits for its work.
#[derive(Debug)]
pub struct Stream {
    raw: ffi::RawStream,
}

// SAFETY: the runtime takes a stream from any thread, one at a time.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new() -> Result<Stream, HipError> {
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle to a place that lives.
        check("hipStreamCreateWithFlags", unsafe {
            ffi::hipStreamCreateWithFlags(&raw mut raw, ffi::STREAM_NON_BLOCKING)
        })?;
        Ok(Stream { raw })
    }

    pub(super) fn raw(&self) -> ffi::RawStream {
        self.raw
    }

    /// Waits until all work given so far is done. Errors: that of any of this work.
    #[track_caller]
    pub fn synchronize(&self) -> Result<(), HipError> {
        // SAFETY: the stream lives.
        check("hipStreamSynchronize", unsafe { ffi::hipStreamSynchronize(self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once. An error here was or will be reported by another call.
        let _ = unsafe { ffi::hipStreamDestroy(self.raw) };
    }
}

/// A place in a stream.
#[derive(Debug)]
pub struct Event {
    raw: ffi::RawEvent,
}

impl Event {
    /// An event that marks no place yet.
    pub fn new() -> Result<Event, HipError> {
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle to a place that lives.
        check("hipEventCreateWithFlags", unsafe { ffi::hipEventCreateWithFlags(&raw mut raw, 0) })?;
        Ok(Event { raw })
    }

    /// Marks the present end of `stream`.
    pub fn record(&self, stream: &Stream) -> Result<(), HipError> {
        // SAFETY: both live.
        check("hipEventRecord", unsafe { ffi::hipEventRecord(self.raw, stream.raw) })
    }

    /// Waits until the stream has come to the place marked.
    pub fn synchronize(&self) -> Result<(), HipError> {
        // SAFETY: the event lives.
        check("hipEventSynchronize", unsafe { ffi::hipEventSynchronize(self.raw) })
    }

    /// Milliseconds from `earlier` to this place, both passed.
    pub fn elapsed_ms_since(&self, earlier: &Event) -> Result<f32, HipError> {
        let mut ms = 0.0;
        // SAFETY: both live, and the result goes to a place that does.
        check("hipEventElapsedTime", unsafe {
            ffi::hipEventElapsedTime(&raw mut ms, earlier.raw, self.raw)
        })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once. An error here was or will be reported by another call.
        let _ = unsafe { ffi::hipEventDestroy(self.raw) };
    }
}
