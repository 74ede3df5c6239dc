//! Writes f32 arrays in NumPy's .npy format, version 1.0 (NEP 1).

use std::io::{self, Write};
use std::path::Path;

/// Header and magic together are padded to a multiple of this.
const ALIGNMENT: usize = 64;
const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// Writes `values` as a C-ordered array of `shape` to `path`.
pub(super) fn write(path: &Path, shape: [usize; 2], values: &[f32]) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", shape[0], shape[1]);
    let unpadded = MAGIC.len() + size_of::<u16>() + dict.len() + 1;
    let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
    let header_len = (dict.len() + padding + 1) as u16;
    file.write_all(MAGIC)?;
    file.write_all(&header_len.to_le_bytes())?;
    writeln!(file, "{dict}{:padding$}", "")?;
    for value in values {
        file.write_all(&value.to_le_bytes())?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_padded_and_names_the_shape() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.npy");
        write(&path, [2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let header_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!((10 + header_len) % ALIGNMENT, 0);
        assert!(bytes[10..10 + header_len].ends_with(b"\n"));
        let header = String::from_utf8_lossy(&bytes[10..10 + header_len]).into_owned();
        assert!(header.contains("'shape': (2, 3)"), "{header}");
        assert_eq!(bytes.len(), 10 + header_len + 6 * 4);
        assert_eq!(bytes[bytes.len() - 4..], 6.5f32.to_le_bytes());
    }
}
