//! Keys and values of past tokens on the device, and the kernel that stores them.
//!
//! Blocks of sixteen tokens as on the CPU; where an element lies in a block's tile is this device's own
//! (`include/rf/kv_tiles.h`). A token's key and value are stored by one rounding to the cache's type.

use super::args::RopeArgs;
use super::{DeviceBuffer, Gpu, HipError, Rows};
use crate::KernelError;
use crate::cpu::{BLOCK_TOKENS, KvSlot, RopePairing};

/// Dimensions of a key that lie together; heads are padded to a multiple.
const KEY_PIECE: usize = 8;
/// The largest head that attention has registers for.
pub(super) const HEAD_DIM_MAX: usize = 256;

/// The type keys and values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvElement {
    /// 32-bit floats, for comparisons.
    F32,
    /// IEEE half floats.
    F16,
}

impl KvElement {
    fn bytes(self) -> usize {
        match self {
            KvElement::F32 => 4,
            KvElement::F16 => 2,
        }
    }

    /// In kernels' names.
    pub(super) fn name(self) -> &'static str {
        match self {
            KvElement::F32 => "f32",
            KvElement::F16 => "f16",
        }
    }
}

/// The shape of a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers of the model.
    pub layers: usize,
    /// Blocks in the pool.
    pub blocks: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Type of the stored elements.
    pub element: KvElement,
}

impl KvLayout {
    /// Elements of a head with its padding.
    pub(super) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(KEY_PIECE)
    }

    /// Bytes of one block in one layer.
    fn layer_block_bytes(&self) -> usize {
        let tile = 2 * self.padded_dim() * BLOCK_TOKENS * self.element.bytes();
        self.kv_heads.saturating_mul(tile)
    }

    /// Bytes one block takes in all layers.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.layers.saturating_mul(self.layer_block_bytes())
    }
}

/// The keys and values of every block.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    tiles: DeviceBuffer<u8>,
}

impl KvCache {
    /// A zeroed cache. Errors: a zero dimension, heads too large, too little memory.
    pub fn new(gpu: &Gpu, layout: KvLayout) -> Result<KvCache, HipError> {
        let KvLayout { layers, kv_heads, head_dim, .. } = layout;
        for (what, value) in [("kv heads", kv_heads), ("head dimension", head_dim), ("kv layers", layers)] {
            if value == 0 {
                return Err(KernelError::Empty { what }.into());
            }
        }
        if head_dim > HEAD_DIM_MAX {
            let (value, limit) = (head_dim, HEAD_DIM_MAX + 1);
            return Err(KernelError::OutOfRange { what: "head dimension", value, limit }.into());
        }
        let bytes = layout.block_bytes().saturating_mul(layout.blocks);
        let mut tiles = gpu.allocate(bytes, "the kv cache")?;
        // Padding is read and must be zero.
        tiles.clear(gpu.stream())?;
        Ok(KvCache { layout, tiles })
    }

    /// The shape it was made with.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Copies every layer of block `source` over block `target`.
    pub fn copy_block(&mut self, gpu: &Gpu, source: u32, target: u32) -> Result<(), HipError> {
        for (what, block) in [("source kv block", source), ("target kv block", target)] {
            expect_below(what, block as usize, self.layout.blocks)?;
        }
        let bytes = self.layout.layer_block_bytes();
        for layer in 0..self.layout.layers {
            let at = |block: u32| (layer * self.layout.blocks + block as usize) * bytes;
            self.tiles.copy_within(gpu.stream(), at(source), at(target), bytes)?;
        }
        Ok(())
    }

    /// Where the tiles of `layer` begin.
    pub(super) fn layer_address(&self, layer: usize) -> Result<u64, HipError> {
        expect_below("kv layer", layer, self.layout.layers)?;
        Ok(self.tiles.address_of(layer * self.layout.blocks * self.layout.layer_block_bytes()))
    }
}

pub(super) fn expect_below(what: &'static str, value: usize, limit: usize) -> Result<(), HipError> {
    if value < limit { Ok(()) } else { Err(KernelError::OutOfRange { what, value, limit }.into()) }
}

/// What all layers of a step share: angles and slots of its rows, on the device.
#[derive(Debug)]
pub struct Rotation {
    rows: usize,
    rope_dims: usize,
    pairing: RopePairing,
    /// The largest block of any slot, and one more.
    blocks: usize,
    cos: DeviceBuffer<f32>,
    sin: DeviceBuffer<f32>,
    slots: DeviceBuffer<u32>,
}

/// A step's arrays for [`Rotation::new`].
#[derive(Debug, Clone, Copy)]
pub struct RotationArrays<'a> {
    /// Position of each row.
    pub positions: &'a [u32],
    /// Where each row's key and value go.
    pub slots: &'a [KvSlot],
    /// Angle per position of each pair, [rope_dims / 2].
    pub inv_freq: &'a [f32],
    /// Which elements form a pair.
    pub pairing: RopePairing,
    /// Factor of cosine and sine, 1 but for YaRN.
    pub magnitude: f32,
}

impl Rotation {
    /// Computes and uploads the angles, in f64 as `cpu::RopeTable` does.
    pub fn new(gpu: &Gpu, arrays: &RotationArrays<'_>) -> Result<Rotation, HipError> {
        let RotationArrays { positions, slots, inv_freq, pairing, magnitude } = *arrays;
        if slots.len() != positions.len() {
            let (expected, actual) = (positions.len(), slots.len());
            return Err(KernelError::Length { what: "slots", expected, actual }.into());
        }
        let mut cos = Vec::with_capacity(positions.len() * inv_freq.len());
        let mut sin = Vec::with_capacity(positions.len() * inv_freq.len());
        for &position in positions {
            for &frequency in inv_freq {
                let (sine, cosine) = (f64::from(position) * f64::from(frequency)).sin_cos();
                cos.push((cosine * f64::from(magnitude)) as f32);
                sin.push((sine * f64::from(magnitude)) as f32);
            }
        }
        let mut flat = Vec::with_capacity(2 * slots.len());
        for slot in slots {
            expect_below("kv slot offset", slot.offset as usize, BLOCK_TOKENS)?;
            flat.extend([slot.block, slot.offset]);
        }
        Ok(Rotation {
            rows: positions.len(),
            rope_dims: 2 * inv_freq.len(),
            pairing,
            blocks: slots.iter().map(|slot| slot.block as usize + 1).max().unwrap_or(0),
            cos: gpu.upload(&cos, "angles")?,
            sin: gpu.upload(&sin, "angles")?,
            slots: gpu.upload(&flat, "kv slots")?,
        })
    }
}

impl Gpu {
    /// Rotates `q` [rows, heads · head_dim] and `k` [rows, kv_heads · head_dim] and stores `k` and `v` in `layer`.
    pub fn rope_and_store_kv(
        &self,
        (cache, layer): (&mut KvCache, usize),
        rotation: &Rotation,
        (q, k, v): (&mut Rows, &mut Rows, &Rows),
    ) -> Result<(), HipError> {
        let KvLayout { blocks, kv_heads, head_dim, element, .. } = cache.layout;
        let heads = q.width() / head_dim;
        expect_below("largest kv block", rotation.blocks, blocks + 1)?;
        expect_below("rope dimensions", rotation.rope_dims, head_dim + 1)?;
        let shapes = [
            ("width of queries", heads * head_dim, q.width()),
            ("width of keys", kv_heads * head_dim, k.width()),
            ("width of values", kv_heads * head_dim, v.width()),
            ("rows of queries", rotation.rows, q.rows()),
            ("rows of keys", rotation.rows, k.rows()),
            ("rows of values", rotation.rows, v.rows()),
        ];
        for (what, expected, actual) in shapes {
            if expected != actual {
                return Err(KernelError::Length { what, expected, actual }.into());
            }
        }
        let args = RopeArgs {
            q: q.address(),
            k: k.address(),
            v: v.address(),
            cos: rotation.cos.address(),
            sin: rotation.sin.address(),
            slots: rotation.slots.address(),
            cache: cache.layer_address(layer)?,
            rows: rotation.rows as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            rope_dims: rotation.rope_dims as u32,
            halves: u32::from(rotation.pairing == RopePairing::Halves),
        };
        q.changed();
        k.changed();
        let name = format!("rope_and_store_kv_{}", element.name());
        // SAFETY: shapes were checked above, and every slot lies in the cache.
        unsafe { self.launch(&name, [rotation.rows, heads + kv_heads], &args) }
    }
}
