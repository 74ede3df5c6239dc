//! The tile instructions, with a face that cannot leave a thread's tiles configured.
//!
//! [`Tiles`] is the proof that this thread's tiles are configured as [`SHAPES`] says, and its drop releases them.
//! What always holds: registers 0 to 3 are sums (16 token rows of 16 32-bit lanes), 4 and 5 activations (16
//! token rows of bytes), 6 and 7 weights (64 bytes a row: four columns of 16 weight rows, which is how the packed
//! vectors lie anyway). A tile product adds `sum over k of a[m][4k..][..4] * b[k][4n..][..4]` to the sums.
//!
//! Tiles are released at the end of every product: a thread whose tiles are in use carries 8 KiB more
//! through each signal frame and context switch and keeps its core from its deeper sleep states, while
//! configuring costs some hundred cycles for tens of thousands of work.

use bytemuck::Pod;
use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// One tile of sums, `[token row][weight row]`.
pub(crate) type SumTile = [[i32; 16]; TILE_ROWS];
/// 64 bytes a row, four columns of 16 weight rows.
pub(crate) type Vector = [u8; 64];

/// Columns that one tile product of a family covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// 32 columns: formats with a scale per 32.
    Half = 32,
    /// 64 columns, the whole width of a tile.
    Full = 64,
}

/// The operand of LDTILECFG (Intel SDM, volume 1, 18.2): palette 1 has 8 tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    const fn of(depth: Depth) -> Shapes {
        let columns = depth as u16;
        let (full, b_rows) = (TILE_ROWS as u8, (columns / 4) as u8);
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            let (rows, row_bytes) = match tile {
                0..4 => (full, 64),
                4 | 5 => (full, columns),
                _ => (b_rows, 64),
            };
            shapes.rows[tile] = rows;
            shapes.row_bytes[tile] = row_bytes;
            tile += 1;
        }
        shapes
    }
}

static SHAPES: [Shapes; 2] = [Shapes::of(Depth::Half), Shapes::of(Depth::Full)];

/// Proof that this thread's tiles are configured. Not `Send`: tiles belong to their thread.
pub(crate) struct Tiles {
    depth: Depth,
    of_this_thread: PhantomData<*mut ()>,
}

impl Tiles {
    /// Configures the tiles of this thread, all zero.
    ///
    /// # Safety
    /// The tile instructions work in this process (what [`crate::cpu::Isa::Amx`] stands for), and no other
    /// `Tiles` of this thread lives.
    #[inline(always)]
    pub(super) unsafe fn configure(depth: Depth) -> Tiles {
        let shapes = &SHAPES[usize::from(depth == Depth::Full)];
        // SAFETY: 64 readable bytes that describe valid shapes; the caller promises that the instruction exists.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(readonly, nostack, preserves_flags)) };
        Tiles { depth, of_this_thread: PhantomData }
    }

    /// Sets the sums in tile `C` to zero.
    #[inline(always)]
    pub(super) fn zero<const C: usize>(&self) {
        const { assert!(C < 4) };
        // SAFETY: `self` proves that the tiles are configured.
        unsafe { asm!("tilezero tmm{}", const C, options(nomem, nostack, preserves_flags)) };
    }

    /// Loads activations into tile `A`: `depth` bytes from `at_byte` on of each of 16 token rows' blocks.
    #[inline(always)]
    pub(super) fn load_activations<const A: usize, B: Pod>(&self, rows: &[B; TILE_ROWS], at_byte: usize) {
        const { assert!(A == 4 || A == 5) };
        assert!(at_byte + self.depth as usize <= size_of::<B>(), "columns outside of a block");
        let first = rows.as_ptr().cast::<u8>().wrapping_add(at_byte);
        // SAFETY: the tiles are configured; each row's bytes lie inside its block, behind the reference to all.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{rows} + {stride}*1]",
                tile = const A, rows = in(reg) first, stride = in(reg) size_of::<B>(),
                options(readonly, nostack, preserves_flags)
            );
        }
    }

    /// Loads weights into tile `B`: the vectors of one product, 8 of them at half depth, 16 at full.
    #[inline(always)]
    pub(super) fn load_weights<const B: usize>(&self, vectors: &[Vector]) {
        const { assert!(B == 6 || B == 7) };
        assert!(vectors.len() * 4 >= self.depth as usize, "too few vectors for a tile");
        // SAFETY: the tiles are configured, and as many vectors as the tile has rows lie behind the slice.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{rows} + {stride}*1]",
                tile = const B, rows = in(reg) vectors.as_ptr(), stride = in(reg) size_of::<Vector>(),
                options(readonly, nostack, preserves_flags)
            );
        }
    }

    /// Adds the products of signed activations `A` and signed weights `B` to the sums `C`, wrapping.
    #[inline(always)]
    pub(super) fn add_signed<const C: usize, const A: usize, const B: usize>(&self) {
        const { assert!(C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7)) };
        // SAFETY: the tiles are configured, with shapes that fit each other.
        unsafe {
            asm!(
                "tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    /// Adds the products of signed activations `A` and unsigned weights `B` to the sums `C`, wrapping.
    #[inline(always)]
    pub(super) fn add_unsigned<const C: usize, const A: usize, const B: usize>(&self) {
        const { assert!(C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7)) };
        // SAFETY: the tiles are configured, with shapes that fit each other.
        unsafe {
            asm!(
                "tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    /// Writes the sums in tile `C`.
    #[inline(always)]
    pub(super) fn store<const C: usize>(&self, sums: &mut SumTile) {
        const { assert!(C < 4) };
        // SAFETY: the tiles are configured, and 16 rows of 64 bytes lie behind the reference.
        unsafe {
            asm!(
                "tilestored [{rows} + {stride}*1], tmm{tile}",
                tile = const C, rows = in(reg) sums.as_mut_ptr(), stride = in(reg) size_of::<[i32; 16]>(),
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `self` proves that the instruction works here.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_lie_where_the_processor_reads_them() {
        assert_eq!((size_of::<Shapes>(), align_of::<Shapes>()), (64, 64));
        let [half, full] = &SHAPES;
        assert_eq!(std::mem::offset_of!(Shapes, row_bytes), 16);
        assert_eq!(std::mem::offset_of!(Shapes, rows), 48);
        assert_eq!((half.row_bytes[4], half.rows[6], full.row_bytes[4], full.rows[6]), (32, 8, 64, 16));
        for shapes in &SHAPES {
            // A product needs as many weight rows as activation words.
            assert_eq!(u16::from(shapes.rows[6]) * 4, shapes.row_bytes[4]);
            assert!(shapes.rows[8..].iter().all(|&rows| rows == 0) && shapes.row_bytes[8..] == [0; 8]);
        }
    }
}
