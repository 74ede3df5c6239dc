//! The loops around the tiles: a panel of token rows times some groups of weight rows.
//!
//! Two groups go through the panel together, so that activations come from the second-level cache half as often.
//! For each *chunk* of blocks the codes of both groups are expanded to bytes (once for all token rows of the panel);
//! then each *unit* (one or two tiles of token rows, one group) is multiplied, and its sums go through memory to the
//! f32 arithmetic. A unit's tiles are issued before the sums of the unit before it are read, so that the
//! processor can run both at once; hence two buffers of sums.
//!
//! What always holds: tiles always take 16 token rows. Behind a panel's last row they read whatever lies there (see
//! [`Panel::x`]); those sums are not read.

use super::tiles::{Depth, SumTile, TILE_ROWS, Tiles, Vector};
use crate::cpu::matmul::avx512::Avx512;
use crate::cpu::matmul::tile::{Group, TILE_TOKENS};
use crate::cpu::matmul::{PANEL_TOKENS, lanes::Lanes};
use crate::cpu::matrix::formats::Format;
use crate::cpu::matrix::layout::GROUP_ROWS;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

const _: () = assert!(TILE_TOKENS == TILE_ROWS, "a tile of activations lies as an AMX tile loads it");

/// Groups that go through a panel together.
const GROUPS: usize = 2;
/// Sum tiles of one unit, at most.
const UNIT_TILES: usize = 8;

/// The codes of one chunk of one group as bytes, in an order of the family's.
pub(crate) type Planes = [Vector; 128];
/// The sums of one unit, in an order of the family's.
pub(crate) type Sums = [SumTile; UNIT_TILES];
/// A token row's products with a group so far.
pub(crate) type Products = [f32; GROUP_ROWS];

/// A weight type that tiles can multiply.
pub(crate) trait TileFormat: Format {
    /// Columns of one tile product.
    const DEPTH: Depth;
    /// Blocks in a chunk.
    const CHUNK_BLOCKS: usize;
    /// Tiles of token rows in a unit.
    const UNIT_TOKEN_TILES: usize;
    /// Fewest token rows that go through tiles: expanding the codes costs the same for one row as for 64, and a
    /// tile product for one row as for 16. Not measured with tiles, since no processor with AMX was at hand; the
    /// vector work beside them alone, timed on Zen 4, falls behind the AVX-512 path below this number.
    const FEWEST_TOKENS: usize;

    /// Expands the codes of up to `CHUNK_BLOCKS` blocks.
    fn expand(lanes: Avx512, codes: &[Self::Codes], heads: &[Self::Head], planes: &mut Planes);

    /// Fills the sums of a unit: the products of expanded blocks with the token rows of `x`.
    fn multiply(tiles: &Tiles, planes: &Planes, x: &UnitRows<'_, Self::Activation>, sums: &mut Sums);

    /// Adds the sums of a unit to the products of its token rows, in the order that `matmul::tile` fixes.
    fn add(
        lanes: Avx512,
        heads: &[Self::Head],
        sums: &Sums,
        x: &UnitRows<'_, Self::Activation>,
        out: &mut [Products],
    );
}

/// The token rows of a panel. Its tiles are all full but the last.
pub(crate) struct Panel<'a, A> {
    /// The interleaved blocks of the panel, and at least [`TILE_TOKENS`] more, of any value.
    pub(crate) x: &'a [A],
    /// Token rows, at most [`PANEL_TOKENS`].
    pub(crate) tokens: usize,
}

/// The blocks of one chunk of a unit's token rows.
pub(crate) struct UnitRows<'a, A> {
    /// From the unit's first block on to the end of all; 16 blocks can be read wherever a block of it starts.
    x: &'a [A],
    /// Blocks of a whole token row.
    row_blocks: usize,
    /// Those of the chunk.
    blocks: Range<usize>,
    /// Token rows.
    pub(super) tokens: usize,
}

impl<'a, A> UnitRows<'a, A> {
    /// Blocks of the chunk.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Tiles of token rows.
    pub(super) fn tiles(&self) -> usize {
        self.tokens.div_ceil(TILE_TOKENS)
    }

    /// Token rows in a tile.
    pub(super) fn width(&self, tile: usize) -> usize {
        (self.tokens - tile * TILE_TOKENS).min(TILE_TOKENS)
    }

    /// The same block of 16 token rows of a tile, those behind the last row of any value.
    #[inline(always)]
    pub(super) fn block(&self, tile: usize, block: usize) -> &'a [A; TILE_TOKENS] {
        let at = tile * TILE_TOKENS * self.row_blocks + (self.blocks.start + block) * self.width(tile);
        match self.x[at..].first_chunk() {
            Some(rows) => rows,
            None => unreachable!("the panel has a whole tile behind its last block"),
        }
    }
}

/// What one thread works in: first-level cache, by size.
#[repr(C, align(64))]
struct Scratch {
    planes: [Planes; GROUPS],
    sums: [Sums; 2],
    products: [[Products; PANEL_TOKENS]; GROUPS],
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        planes: [[[0; 64]; 128]; GROUPS],
        sums: [[[[0; 16]; TILE_ROWS]; UNIT_TILES]; 2],
        products: [[[0.0; GROUP_ROWS]; PANEL_TOKENS]; GROUPS],
    }));
}

/// Multiplies a panel with each group and hands every (token row, group) pair's products to `put`.
///
/// # Safety
/// The tile instructions and AVX-512 work in this process (what [`crate::cpu::Isa::Amx`] stands for).
pub(crate) unsafe fn multiply<F: TileFormat>(
    groups: &[Group<'_, F>],
    panel: &Panel<'_, F::Activation>,
    mut put: impl FnMut(usize, usize, &Products),
) {
    SCRATCH.with_borrow_mut(|scratch| {
        // SAFETY: the caller promises the instructions; whoever holds the scratch of a thread holds its tiles.
        let tiles = unsafe { Tiles::configure(F::DEPTH) };
        for (pair, groups) in groups.chunks(GROUPS).enumerate() {
            // SAFETY: the caller promises the instructions.
            unsafe { multiply_pair(&tiles, groups, panel, scratch) };
            for (g, products) in scratch.products.iter().enumerate().take(groups.len()) {
                for (token, products) in products.iter().enumerate().take(panel.tokens) {
                    put(token, pair * GROUPS + g, products);
                }
            }
        }
    });
}

/// One unit's place, kept until its sums are added.
struct Unit {
    chunk: Range<usize>,
    group: usize,
    tokens: Range<usize>,
}

/// Fills the products of up to [`GROUPS`] groups.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply_pair<F: TileFormat>(
    tiles: &Tiles,
    groups: &[Group<'_, F>],
    panel: &Panel<'_, F::Activation>,
    scratch: &mut Scratch,
) {
    // SAFETY: this function runs only where its features are.
    let lanes = unsafe { Avx512::assume() };
    let Scratch { planes, sums, products } = scratch;
    let [sums, sums_before] = sums;
    let (mut sums, mut sums_before) = (sums, sums_before);
    products.as_flattened_mut().fill([0.0; GROUP_ROWS]);
    let row_blocks = groups.first().map_or(0, |group| group.heads.len());
    assert!(panel.tokens <= PANEL_TOKENS && panel.x.len() >= panel.tokens * row_blocks + TILE_TOKENS);
    let rows_of = |unit: &Unit| UnitRows {
        x: &panel.x[unit.tokens.start * row_blocks..],
        row_blocks,
        blocks: unit.chunk.clone(),
        tokens: unit.tokens.len(),
    };
    let mut add = |unit: &Unit, sums: &Sums| {
        let out = &mut products[unit.group][unit.tokens.clone()];
        F::add(lanes, &groups[unit.group].heads[unit.chunk.clone()], sums, &rows_of(unit), out);
    };
    let mut before: Option<Unit> = None;
    for start in (0..row_blocks).step_by(F::CHUNK_BLOCKS) {
        let chunk = start..row_blocks.min(start + F::CHUNK_BLOCKS);
        for (group, planes) in groups.iter().zip(planes.iter_mut()) {
            F::expand(lanes, &group.codes[chunk.clone()], &group.heads[chunk.clone()], planes);
        }
        for first in (0..panel.tokens).step_by(F::UNIT_TOKEN_TILES * TILE_TOKENS) {
            let tokens = first..panel.tokens.min(first + F::UNIT_TOKEN_TILES * TILE_TOKENS);
            for (group, planes) in planes.iter().enumerate().take(groups.len()) {
                let unit = Unit { chunk: chunk.clone(), group, tokens: tokens.clone() };
                F::multiply(tiles, planes, &rows_of(&unit), sums);
                if let Some(before) = before.replace(unit) {
                    add(&before, sums_before);
                }
                std::mem::swap(&mut sums, &mut sums_before);
            }
        }
    }
    if let Some(last) = before {
        add(&last, sums_before);
    }
}

/// Adds up to 16 token rows' sums in strips that fit the registers. `add` gets the first token row of a strip,
/// and is called with the products of that strip.
macro_rules! in_strips {
    ($width:expr, $t:ident, $at:ident => $body:block) => {{
        let width: usize = $width;
        let mut $at = 0;
        while $at < width {
            match width - $at {
                8.. => {
                    const $t: usize = 8;
                    $body
                    $at += 8;
                }
                4.. => {
                    const $t: usize = 4;
                    $body
                    $at += 4;
                }
                2.. => {
                    const $t: usize = 2;
                    $body
                    $at += 2;
                }
                _ => {
                    const $t: usize = 1;
                    $body
                    $at += 1;
                }
            }
        }
    }};
}
pub(super) use in_strips;

/// The products of a strip, as registers.
#[inline(always)]
pub(super) fn load<const T: usize>(_lanes: Avx512, out: &[Products]) -> [__m512; T] {
    // SAFETY: 64 bytes behind a reference; an `Avx512` exists only where its instructions do.
    std::array::from_fn(|t| unsafe { _mm512_loadu_ps(out[t].as_ptr()) })
}

/// One row of a tile of sums.
#[inline(always)]
pub(super) fn load_sums(_lanes: Avx512, sums: &[i32; GROUP_ROWS]) -> __m512i {
    // SAFETY: as above.
    unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
}

/// Writes them back.
#[inline(always)]
pub(super) fn store<const T: usize>(lanes: Avx512, acc: &[__m512; T], out: &mut [Products]) {
    for (acc, out) in acc.iter().zip(out) {
        lanes.store(*acc, out);
    }
}
