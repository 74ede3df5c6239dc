//! Where the keys and values of past tokens lie: blocks of sixteen tokens, for every layer and head.
//!
//! The worker decides which block belongs to which sequence; this file stores, copies and hands out tiles. A
//! *tile* is what one block holds for one layer and key/value head: keys transposed, `[head_dim][16 tokens]`, so
//! that a vector holds one dimension of sixteen tokens and q·k needs no sum across lanes; then values,
//! `[16 tokens][head_dim]`, each padded with zeros to whole vectors; `quantized` says where the bytes of a q8_0
//! tile lie. Tiles of one layer and block lie together, a tile per head.
//! What holds always: a token's key and value are stored by one rounding to the cache's type, whatever it was
//! stored together with. Nothing here knows which slots are in use.

mod quantized;

use std::ops::Range;

use half::f16;

use super::math::{Kernel, LANES, Simd};
use super::shape::{expect_below, expect_len};
use super::{AlignedBuffer, Cpu, DisjointMut};
use crate::KernelError;
use quantized::{StoreQuantized, TileShape};

pub(super) use quantized::{KEY_GROUP, QuantizedTile, QuantizedTiles};

/// Tokens of a block: one per vector lane.
pub const BLOCK_TOKENS: usize = LANES;

/// The type keys and values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats, for comparisons.
    F32,
    /// IEEE half floats.
    F16,
    /// Bytes; keys with a scale for every 32 dimensions, values with one for each token.
    Q8_0,
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
    pub kv_type: KvType,
}

impl KvLayout {
    /// Bytes one block takes in all layers.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        let element_bytes = match self.kv_type {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Q8_0 => 1,
        };
        self.layers.saturating_mul(self.layer_elements()).saturating_mul(element_bytes)
    }

    /// Elements of one block in one layer.
    fn layer_elements(&self) -> usize {
        self.kv_heads.saturating_mul(self.tile_elements())
    }

    /// Elements of one tile, keys and values together; with q8_0 bytes, scales included.
    fn tile_elements(&self) -> usize {
        match self.kv_type {
            KvType::F32 | KvType::F16 => {
                self.key_elements().saturating_add(self.value_dim().saturating_mul(BLOCK_TOKENS))
            }
            KvType::Q8_0 => TileShape::of(self).bytes(),
        }
    }

    /// Elements of the keys of one tile.
    fn key_elements(&self) -> usize {
        self.head_dim.saturating_mul(BLOCK_TOKENS)
    }

    /// Elements of a value with its padding.
    pub(super) fn value_dim(&self) -> usize {
        self.head_dim.div_ceil(LANES).saturating_mul(LANES)
    }
}

/// The place of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSlot {
    /// The block.
    pub block: u32,
    /// The token inside the block, below [`BLOCK_TOKENS`].
    pub offset: u32,
}

/// The keys and values of every block.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    elements: Elements,
}

#[derive(Debug)]
enum Elements {
    F32(AlignedBuffer<f32>),
    F16(AlignedBuffer<u16>),
    Q8(AlignedBuffer<u8>),
}

impl KvCache {
    /// A zeroed cache. Errors: [`KernelError::OutOfMemory`], [`KernelError::Empty`] for a zero dimension.
    pub fn new(layout: KvLayout) -> Result<KvCache, KernelError> {
        let KvLayout { layers, blocks, kv_heads, head_dim, kv_type } = layout;
        for (what, value) in [("kv heads", kv_heads), ("head dimension", head_dim), ("kv layers", layers)] {
            if value == 0 {
                return Err(KernelError::Empty { what });
            }
        }
        let len = layers.saturating_mul(layout.layer_elements()).saturating_mul(blocks);
        let elements = match kv_type {
            KvType::F32 => Elements::F32(AlignedBuffer::zeroed(len, "the kv cache")?),
            KvType::F16 => Elements::F16(AlignedBuffer::zeroed(len, "the kv cache")?),
            KvType::Q8_0 => Elements::Q8(AlignedBuffer::zeroed(len, "the kv cache")?),
        };
        Ok(KvCache { layout, elements })
    }

    /// The shape it was made with.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Memory of all blocks; pages are taken as they are first written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layout.block_bytes().saturating_mul(self.layout.blocks)
    }

    /// Copies every layer of block `source` over block `target`.
    pub fn copy_block(&mut self, source: u32, target: u32) -> Result<(), KernelError> {
        expect_below("source kv block", source as usize, self.layout.blocks)?;
        expect_below("target kv block", target as usize, self.layout.blocks)?;
        for layer in 0..self.layout.layers {
            let from = self.block_range(layer, source as usize);
            let to = self.block_range(layer, target as usize).start;
            match &mut self.elements {
                Elements::F32(elements) => elements.copy_within(from, to),
                Elements::F16(elements) => elements.copy_within(from, to),
                Elements::Q8(elements) => elements.copy_within(from, to),
            }
        }
        Ok(())
    }

    fn block_range(&self, layer: usize, block: usize) -> Range<usize> {
        let elements = self.layout.layer_elements();
        let start = (layer * self.layout.blocks + block) * elements;
        start..start + elements
    }

    /// The elements of `layer`, by type.
    pub(super) fn layer(&self, layer: usize) -> LayerTiles<'_> {
        let range = self.block_range(layer, 0).start..self.block_range(layer + 1, 0).start;
        match &self.elements {
            Elements::F32(elements) => LayerTiles::F32(Tiles::new(&elements[range], self.layout)),
            Elements::F16(elements) => LayerTiles::F16(Tiles::new(&elements[range], self.layout)),
            Elements::Q8(elements) => LayerTiles::Q8(QuantizedTiles::new(&elements[range], &self.layout)),
        }
    }
}

/// The tiles of one layer.
pub(super) enum LayerTiles<'a> {
    F32(Tiles<'a, f32>),
    F16(Tiles<'a, u16>),
    Q8(QuantizedTiles<'a>),
}

/// The tiles of one layer, stored as `T`.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a, T> {
    elements: &'a [T],
    kv_heads: usize,
    key_elements: usize,
    tile_elements: usize,
}

impl<'a, T> Tiles<'a, T> {
    fn new(elements: &'a [T], layout: KvLayout) -> Self {
        let (key_elements, tile_elements) = (layout.key_elements(), layout.tile_elements());
        Tiles { elements, kv_heads: layout.kv_heads, key_elements, tile_elements }
    }

    #[inline(always)]
    fn tile(&self, block: u32, kv_head: usize) -> &'a [T] {
        let start = (block as usize * self.kv_heads + kv_head) * self.tile_elements;
        &self.elements[start..start + self.tile_elements]
    }

    /// The keys of a block, one vector of sixteen tokens for each dimension.
    #[inline(always)]
    pub(super) fn keys(&self, block: u32, kv_head: usize) -> &'a [[T; BLOCK_TOKENS]] {
        self.tile(block, kv_head)[..self.key_elements].as_chunks().0
    }

    /// The values of a block, `[16 tokens][value_dim]` as vectors.
    #[inline(always)]
    pub(super) fn values(&self, block: u32, kv_head: usize) -> &'a [[T; LANES]] {
        self.tile(block, kv_head)[self.key_elements..].as_chunks().0
    }
}

/// A type that keys and values can be stored in.
pub(super) trait KvElement: bytemuck::Pod + Send + Sync {
    /// Sixteen elements, widened exactly.
    fn widen<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
    /// Sixteen elements, rounded to nearest.
    fn narrow<S: Simd>(s: S, value: S::F) -> [Self; LANES];
    /// One element, rounded to nearest.
    fn narrow_one(value: f32) -> Self;
}

impl KvElement for f32 {
    #[inline(always)]
    fn widen<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }

    #[inline(always)]
    fn narrow<S: Simd>(s: S, value: S::F) -> [f32; LANES] {
        let mut to = [0.0; LANES];
        s.store(value, &mut to);
        to
    }

    #[inline(always)]
    fn narrow_one(value: f32) -> f32 {
        value
    }
}

impl KvElement for u16 {
    #[inline(always)]
    fn widen<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_f16(from)
    }

    #[inline(always)]
    fn narrow<S: Simd>(s: S, value: S::F) -> [u16; LANES] {
        let mut to = [0; LANES];
        s.store_f16(value, &mut to);
        to
    }

    #[inline(always)]
    fn narrow_one(value: f32) -> u16 {
        f16::from_f32(value).to_bits()
    }
}

/// Stores the key and value of each row at its slot in `layer`.
///
/// Shapes: `k` and `v` [rows, kv_heads · head_dim], f32, row-major; `slots` [rows], no two equal. Errors:
/// [`KernelError`] where lengths do not fit, or a layer, block or offset lies outside the cache.
pub fn store_kv(cpu: &Cpu, kv: &mut KvCache, layer: usize, rows: &KvRows<'_>) -> Result<(), KernelError> {
    let layout = kv.layout;
    let width = layout.kv_heads * layout.head_dim;
    expect_below("kv layer", layer, layout.layers)?;
    expect_len("keys to store", rows.k.len(), rows.slots.len().saturating_mul(width))?;
    expect_len("values to store", rows.v.len(), rows.slots.len().saturating_mul(width))?;
    for slot in rows.slots {
        expect_below("kv block", slot.block as usize, layout.blocks)?;
        expect_below("kv slot offset", slot.offset as usize, BLOCK_TOKENS)?;
    }
    let start = kv.block_range(layer, 0).start;
    let end = kv.block_range(layer + 1, 0).start;
    match &mut kv.elements {
        Elements::F32(elements) => store_rows(cpu, &mut elements[start..end], layout, rows, store_floats),
        Elements::F16(elements) => store_rows(cpu, &mut elements[start..end], layout, rows, store_floats),
        Elements::Q8(elements) => store_rows(cpu, &mut elements[start..end], layout, rows, store_quantized),
    }
    Ok(())
}

/// The rows to store: see [`store_kv`].
#[derive(Debug, Clone, Copy)]
pub struct KvRows<'a> {
    /// Keys [rows, kv_heads · head_dim], rotated already.
    pub k: &'a [f32],
    /// Values, same shape.
    pub v: &'a [f32],
    /// Where each row goes.
    pub slots: &'a [KvSlot],
}

/// One token's key and value of one head, and where in its tile they go.
struct Token<'a, T> {
    layout: &'a KvLayout,
    k: &'a [f32],
    v: &'a [f32],
    offset: usize,
    tile: &'a mut [T],
}

/// Splits by head, so that two rows of one block never meet on two threads.
fn store_rows<T: Send>(
    cpu: &Cpu,
    elements: &mut [T],
    layout: KvLayout,
    rows: &KvRows<'_>,
    store: impl Fn(&Cpu, Token<'_, T>) + Sync,
) {
    let (dim, tile) = (layout.head_dim, layout.tile_elements());
    let shared = DisjointMut::new(elements);
    // One decoded token is too little work to wake anybody for.
    let grain = if rows.slots.len() < 8 { layout.kv_heads } else { 1 };
    cpu.for_each_chunk(layout.kv_heads, grain, &|heads| {
        for (row, slot) in rows.slots.iter().enumerate() {
            for head in heads.clone() {
                let from = (row * layout.kv_heads + head) * dim;
                let start = (slot.block as usize * layout.kv_heads + head) * tile;
                // SAFETY: tiles of different heads are disjoint, a head belongs to one chunk only, and the
                // slice is dropped before the next one is taken.
                let tile = unsafe { shared.slice(start..start + tile) };
                let (k, v) = (&rows.k[from..from + dim], &rows.v[from..from + dim]);
                store(cpu, Token { layout: &layout, k, v, offset: slot.offset as usize, tile });
            }
        }
    });
}

fn store_floats<T: KvElement>(cpu: &Cpu, token: Token<'_, T>) {
    let Token { layout, k, v, offset, tile } = token;
    let (keys, values) = tile.split_at_mut(layout.key_elements());
    let values = &mut values[offset * layout.value_dim()..][..layout.head_dim];
    cpu.launch(StoreToken { k, v, keys: keys.as_chunks_mut().0, values, offset });
}

fn store_quantized(cpu: &Cpu, token: Token<'_, u8>) {
    cpu.launch(StoreQuantized(token));
}

struct StoreToken<'a, T> {
    k: &'a [f32],
    v: &'a [f32],
    keys: &'a mut [[T; BLOCK_TOKENS]],
    values: &'a mut [T],
    offset: usize,
}

impl<T: KvElement> Kernel for StoreToken<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let offset = self.offset;
        let (k, k_tail) = self.k.as_chunks::<LANES>();
        let (v, v_tail) = self.v.as_chunks::<LANES>();
        let (values, values_tail) = self.values.as_chunks_mut::<LANES>();
        for (k, keys) in k.iter().zip(self.keys.chunks_exact_mut(LANES)) {
            let narrow = T::narrow(s, s.load(k));
            for (key, narrow) in keys.iter_mut().zip(narrow) {
                key[offset] = narrow;
            }
        }
        for (&k, key) in k_tail.iter().zip(&mut self.keys[k.len() * LANES..]) {
            key[offset] = T::narrow_one(k);
        }
        for (v, value) in v.iter().zip(values) {
            *value = T::narrow(s, s.load(v));
        }
        for (&v, value) in v_tail.iter().zip(values_tail) {
            *value = T::narrow_one(v);
        }
    }
}
