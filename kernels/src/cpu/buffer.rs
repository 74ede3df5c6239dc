//! Aligned memory for weights, cache and workspace, and the one way threads share a slice to write.
//!
//! [`AlignedBuffer`] holds what kernels stream: it starts on a cache line, and on a huge page once it is
//! large, since walking gigabytes through 4 KiB pages costs a tenth of the bandwidth. [`DisjointMut`] lets the
//! threads of one parallel region write their own ranges of a slice.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use bytemuck::Pod;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::KernelError;

/// A cache line, and the widest vector.
const LINE_BYTES: usize = 64;
/// The huge page size of x86-64; buffers at least this large are mapped on their own.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// The smallest page size; a kernel with larger ones rounds up by itself.
const PAGE_BYTES: usize = 4096;

/// A zeroed, fixed-length slice of `T` starting on a 64-byte boundary (2 MiB once it is 2 MiB large).
///
/// Large buffers take memory only as their pages are touched.
pub struct AlignedBuffer<T: Pod> {
    start: NonNull<T>,
    len: usize,
    memory: Memory,
    owns: PhantomData<T>,
}

enum Memory {
    Empty,
    Heap(Layout),
    Mapped(usize),
}

// SAFETY: the buffer owns its memory alone and `T: Pod` holds plain data, so it may move between threads.
unsafe impl<T: Pod + Send> Send for AlignedBuffer<T> {}
// SAFETY: shared access gives `&[T]` only.
unsafe impl<T: Pod + Sync> Sync for AlignedBuffer<T> {}

impl<T: Pod> AlignedBuffer<T> {
    /// `len` zeroed elements. Errors: [`KernelError::OutOfMemory`] naming `what`.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Self, KernelError> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= LINE_BYTES) };
        let bytes = len.saturating_mul(size_of::<T>());
        let (start, memory) = if len == 0 {
            // A dangling pointer that still keeps the alignment promised.
            (std::ptr::without_provenance_mut(LINE_BYTES), Memory::Empty)
        } else if bytes < HUGE_PAGE_BYTES {
            let refused = |_| KernelError::OutOfMemory { what, bytes };
            let layout = Layout::from_size_align(bytes, LINE_BYTES).map_err(refused)?;
            // SAFETY: the layout is not empty, since `len > 0` and `T` is not zero-sized.
            (unsafe { alloc_zeroed(layout) }, Memory::Heap(layout))
        } else {
            map_huge(bytes).ok_or(KernelError::OutOfMemory { what, bytes })?
        };
        let start = NonNull::new(start.cast()).ok_or(KernelError::OutOfMemory { what, bytes })?;
        Ok(AlignedBuffer { start, len, memory, owns: PhantomData })
    }
}

/// Maps `bytes` (rounded up to pages) of zeroed memory on a huge page boundary and asks for huge pages where whole
/// ones fit: the rest is left to small pages, so that no buffer holds more memory than it has elements for.
fn map_huge(bytes: usize) -> Option<(*mut u8, Memory)> {
    let bytes = bytes.checked_next_multiple_of(PAGE_BYTES)?;
    let mapped = NonZeroUsize::new(bytes.checked_add(HUGE_PAGE_BYTES)?)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh private mapping at an address of the kernel's choice touches no memory of ours.
    let raw = unsafe { mmap_anonymous(None, mapped, protection, MapFlags::MAP_PRIVATE) }.ok()?;
    let head = raw.as_ptr().align_offset(HUGE_PAGE_BYTES);
    // SAFETY: `head` is below one huge page, and the mapping is one huge page longer than `bytes`.
    let start = unsafe { raw.byte_add(head) };
    if head > 0 {
        // SAFETY: the first `head` bytes of the mapping, page-aligned and used by nobody.
        let _ = unsafe { munmap(raw, head) };
    }
    if head < HUGE_PAGE_BYTES {
        // SAFETY: `bytes` after `start` is inside the mapping.
        let end = unsafe { start.byte_add(bytes) };
        // SAFETY: the rest of the mapping behind `end`, page-aligned and used by nobody.
        let _ = unsafe { munmap(end, HUGE_PAGE_BYTES - head) };
    }
    // SAFETY: advice on our own mapping; a kernel without huge pages refuses it, which costs speed only.
    let _ = unsafe { madvise(start, bytes - bytes % HUGE_PAGE_BYTES, MmapAdvise::MADV_HUGEPAGE) };
    Some((start.as_ptr().cast(), Memory::Mapped(bytes)))
}

impl<T: Pod> Drop for AlignedBuffer<T> {
    fn drop(&mut self) {
        match self.memory {
            Memory::Empty => {}
            // SAFETY: `start` came from `alloc_zeroed` with this very layout.
            Memory::Heap(layout) => unsafe { dealloc(self.start.as_ptr().cast(), layout) },
            Memory::Mapped(bytes) => {
                // SAFETY: `start` begins a mapping of `bytes` that only this buffer uses.
                let _ = unsafe { munmap(self.start.cast(), bytes) };
            }
        }
    }
}

impl<T: Pod> Deref for AlignedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements from `start` are ours, aligned and initialised (zero is a value of a `Pod`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> std::fmt::Debug for AlignedBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// One mutable slice, written in disjoint ranges by the threads of a parallel region.
#[derive(Debug)]
pub struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    borrows: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut [T]` only, whose disjointness its callers promise; so `T: Send` is enough.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    /// Borrows `slice` for the parallel region.
    pub fn new(slice: &'a mut [T]) -> Self {
        DisjointMut { start: slice.as_mut_ptr(), len: slice.len(), borrows: PhantomData }
    }

    /// Elements of the whole slice.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the whole slice is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements of `range`. Panics if it does not lie inside the slice.
    ///
    /// # Safety
    /// While the returned slice lives, no other slice taken from this value may overlap it.
    #[must_use]
    #[expect(clippy::mut_from_ref, reason = "the caller promises that live ranges are disjoint")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {}", self.len);
        // SAFETY: the assertion keeps the start inside the slice (or one past its end).
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: inside the borrowed slice, and the caller promises that nobody else holds these elements.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_every_size_are_aligned_zeroed_and_writable() {
        for len in [0, 1, 63, 1000, (2 << 20) / 4 - 1, (2 << 20) / 4, (5 << 20) / 4 + 3] {
            let mut buffer = AlignedBuffer::<u32>::zeroed(len, "test").unwrap();
            let align = if len * 4 < HUGE_PAGE_BYTES { LINE_BYTES } else { HUGE_PAGE_BYTES };
            assert_eq!(buffer.as_ptr() as usize % align, 0);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&value| value == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|&value| value == 7));
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for len in [usize::MAX, usize::MAX / 8, 1 << 50] {
            let error = AlignedBuffer::<u64>::zeroed(len, "the moon").unwrap_err();
            assert!(matches!(error, KernelError::OutOfMemory { what: "the moon", .. }), "{error}");
        }
    }

    #[test]
    #[should_panic(expected = "range 2..5 of 4")]
    fn a_range_outside_the_slice_panics() {
        let mut values = [0u8; 4];
        let shared = DisjointMut::new(&mut values);
        // SAFETY: no other slice is taken.
        let _ = unsafe { shared.slice(2..5) };
    }
}
