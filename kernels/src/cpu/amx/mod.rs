//! The path of processors with AMX-INT8: products of many token rows in tiles of 16 x 16.
//!
//! `matmul` calls [`multiply`] for a panel of token rows where [`pays`] says so; everything else on such a
//! processor (few token rows, attention, norms) is the AVX-512 path. What always holds (promise P3): the integer
//! sums are exact, so they equal those of every other path, and `matmul::tile` alone adds them up in f32; the bits
//! are the same. [`presence`] compares them once before the path is offered.
//!
//! - `presence`: the processor, the system and Linux's permission. `self_check`: the comparison.
//! - `tiles`: the instructions. `panel`: the loops around them. `per_32`, `per_256`: the two families of formats.
//!
//! What it deliberately does not do: bfloat16 and f16 tiles (float weights stay with AVX-512), and a packed
//! layout of its own: packed vectors already are rows of a tile, once their codes are bytes.

mod panel;
mod per_256;
mod per_32;
mod presence;
mod self_check;
mod tiles;

pub(crate) use panel::{Panel, TileFormat, multiply};
pub(crate) use presence::{Absent, presence};

use crate::cpu::Isa;

/// Whether `tokens` token rows are multiplied with weights of `F` through tiles. Bits do not depend on it.
pub(crate) fn pays<F: TileFormat>(isa: Isa, tokens: usize) -> bool {
    isa == Isa::Amx && tokens >= F::FEWEST_TOKENS
}
