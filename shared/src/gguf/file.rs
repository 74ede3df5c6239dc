//! An opened model: all its parts mapped, one metadata map, one tensor table. This is what callers hold.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{GgufError, Shown};
use super::header::Header;
use super::mapping::Mapping;
use super::metadata::Metadata;
use super::split::Split;
use super::tensor::TensorInfo;

/// An opened GGUF model, in one file or several. Its files must not be truncated while it lives: reading a
/// tensor whose pages are gone ends the process with SIGBUS. Rename a new file into place instead.
pub struct Gguf {
    parts: Vec<Part>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Indices of `tensors`, sorted by name.
    by_name: Vec<u32>,
}

struct Part {
    path: PathBuf,
    mapping: Mapping,
}

impl Gguf {
    /// Opens the file at `path`. If it is one part of a split model, any of them, its siblings in the same
    /// folder are opened too, and the metadata are those of the first part.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (part, header) = open_part(path, 0)?;
        match Split::of(&header.metadata)? {
            None => Self::join(vec![part], header),
            Some(split) => Self::open_split(path, split),
        }
    }

    /// Opens a file whose bytes are in memory, such as an embedded one; `name` stands for it in messages.
    /// Tensor data is then only as aligned as `bytes` are.
    pub fn from_bytes(name: &Path, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, GgufError> {
        let mapping = Mapping::Memory(bytes.into());
        let header = Header::read(mapping.bytes(), name, 0)?;
        if Split::of(&header.metadata)?.is_some() {
            return Err(GgufError::SplitInMemory { file: name.into() });
        }
        Self::join(vec![Part { path: name.into(), mapping }], header)
    }

    fn open_split(path: &Path, split: Split) -> Result<Self, GgufError> {
        let mut parts = Vec::new();
        let mut whole: Option<Header> = None;
        for (number, sibling) in (0..split.count).zip(split.paths(path)?) {
            let (part, header) = open_part(&sibling, number as usize).map_err(|error| match error {
                GgufError::Io { file, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                    GgufError::SplitMissing { file, part: number + 1, count: split.count }
                }
                other => other,
            })?;
            split.check_part(&header.metadata, number)?;
            parts.push(part);
            match &mut whole {
                None => whole = Some(header),
                Some(whole) => whole.tensors.extend(header.tensors),
            }
        }
        let Some(whole) = whole else {
            return Err(GgufError::SplitMissing { file: path.into(), part: 1, count: split.count });
        };
        split.check_tensors(path, whole.tensors.len())?;
        Self::join(parts, whole)
    }

    fn join(parts: Vec<Part>, header: Header) -> Result<Self, GgufError> {
        let Header { version, metadata, tensors } = header;
        // At most 1024 parts of 65536 tensors each, so every index fits u32.
        let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
        by_name.sort_unstable_by_key(|&index| (tensors[index as usize].name.as_str(), index));
        for pair in by_name.windows(2) {
            let (first, second) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
            if first.name == second.name {
                return Err(GgufError::DuplicateTensor {
                    file: parts[second.part].path.clone(),
                    tensor: Shown(&second.name).to_string(),
                    offset: second.offset,
                    other: parts[first.part].path.clone(),
                    other_offset: first.offset,
                });
            }
        }
        Ok(Gguf { parts, version, metadata, tensors, by_name })
    }

    /// The version of the format the (first) file is written in, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata; of a split model, those of its first part.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors in the order of the files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let found =
            self.by_name.binary_search_by_key(&name, |&index| self.tensors[index as usize].name.as_str());
        Some(&self.tensors[self.by_name[found.ok()?] as usize])
    }

    /// The stored bytes of one of this model's tensors, `tensor.bytes` long; in a mapped file, aligned to
    /// `general.alignment`. Panics when given a tensor of another model, which is a programmer's error.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.parts[tensor.part].mapping.bytes()[tensor.offset..tensor.offset + tensor.bytes]
    }

    /// Tells the kernel that the tensor's pages will not be read again soon, as after repacking its weights.
    /// They leave this process's resident memory; reading them later works and costs page faults.
    pub fn advise_unneeded(&self, tensor: &TensorInfo) {
        self.parts[tensor.part].mapping.advise_unneeded(tensor.offset..tensor.offset + tensor.bytes);
    }

    /// Asks the kernel to start reading all files into the page cache, and returns at once.
    pub fn prefetch(&self) {
        self.parts.iter().for_each(|part| part.mapping.prefetch());
    }

    /// Length of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.mapping.bytes().len() as u64).sum()
    }

    /// The paths of all parts in order.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }
}

fn open_part(path: &Path, number: usize) -> Result<(Part, Header), GgufError> {
    let mapping = Mapping::open(path)?;
    let header = Header::read(mapping.bytes(), path, number)?;
    Ok((Part { path: path.into(), mapping }, header))
}
