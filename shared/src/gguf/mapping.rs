//! The bytes of one file: a read-only memory map, or memory that was there before (an embedded model). Holds
//! the only `unsafe` of this crate. Serves `file`; knows nothing of GGUF.
//!
//! A map shows the file as it is, not as it was: if another process truncates the file while it is mapped,
//! reading a lost page kills this process with SIGBUS, and no check here can prevent that. Replace a model by
//! renaming a new file over it, which leaves the mapped one intact. The length is checked again after mapping,
//! so a file still being written is refused if it shrinks meanwhile.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};

use super::error::GgufError;

/// Granularity of [`Mapping::advise_unneeded`]: the smallest page of any supported machine. Where pages are
/// larger, the kernel rounds to them, and a neighbour's page is read again on its next use.
const PAGE_BYTES: usize = 4096;

pub(super) enum Mapping {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Mapping {
    pub(super) fn open(path: &Path) -> Result<Self, GgufError> {
        let fail = |action| move |source| GgufError::Io { action, file: path.into(), source };
        // Asked before opening, since opening a FIFO would wait for its writer.
        if !fs::metadata(path).map_err(fail("find"))?.is_file() {
            return Err(GgufError::NotRegular { file: path.into() });
        }
        let file = File::open(path).map_err(fail("open"))?;
        let file_bytes = file.metadata().map_err(fail("read the length of"))?.len();
        let bytes = usize::try_from(file_bytes).map_err(|_| {
            fail("map")(io::Error::new(io::ErrorKind::FileTooLarge, "larger than the address space"))
        })?;
        if bytes == 0 {
            return Ok(Mapping::Memory(Cow::Borrowed(&[])));
        }
        // SAFETY: the map is read-only, and is only ever lent as `&[u8]` bounded by `self`, which owns it. That
        // nobody changes the file is a promise made by whoever runs the server; the module documentation says
        // what breaking it costs. Every byte pattern is a valid u8, and text is copied before it is used.
        let map = unsafe { MmapOptions::new().len(bytes).map(&file) }.map_err(fail("map"))?;
        let now_bytes = file.metadata().map_err(fail("read the length of"))?.len();
        if now_bytes < file_bytes {
            let shrunk = io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was opened");
            return Err(fail("map")(shrunk));
        }
        Ok(Mapping::Mapped(map))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Mapping::Mapped(map) => map,
            Mapping::Memory(bytes) => bytes,
        }
    }

    /// Starts reading the whole file ahead. A refusal only costs speed, so it is not reported.
    pub(super) fn prefetch(&self) {
        if let Mapping::Mapped(map) = self {
            map.advise(Advice::WillNeed).ok();
        }
    }

    /// Lets the kernel drop the whole pages inside `range` from this process's memory.
    pub(super) fn advise_unneeded(&self, range: Range<usize>) {
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end / PAGE_BYTES * PAGE_BYTES;
        if let Mapping::Mapped(map) = self
            && start < end
            && end <= map.len()
        {
            // SAFETY: the range lies in the map (checked above), and the map is of a file and never written to,
            // so dropped pages come back with the same content when they are next read.
            unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) }.ok();
        }
    }
}
