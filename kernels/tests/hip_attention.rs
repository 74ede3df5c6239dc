//! Rotation, cache and attention of the device kernels against the CPU backend, bit by bit: both cache types, odd
//! head sizes and groups, windows, caps, contexts over several partitions, whatever chunks a prompt comes in.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod device;
mod sample;

use kernels::cpu::{
    self, AttentionBatch, AttentionParams, AttentionSpan, BLOCK_TOKENS, Cpu, Isa, KvRows, KvSlot,
    RopePairing, RopeShape, RopeTable,
};
use kernels::hip::{
    AttentionPlan, AttentionShape, Gpu, KvCache, KvElement, KvLayout, Rotation, RotationArrays, Rows,
};
use sample::{assert_same_bits, floats};

#[derive(Debug, Clone, Copy)]
struct Model {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope_dims: usize,
    pairing: RopePairing,
    element: KvElement,
    window: Option<u32>,
    softcap: Option<f32>,
}

const PLAIN: Model = Model {
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    rope_dims: 32,
    pairing: RopePairing::Halves,
    element: KvElement::F16,
    window: None,
    softcap: None,
};

/// Blocks in the cache, handed out in another order than positions come.
const BLOCKS: usize = 160;

fn table(sequence: usize) -> Vec<u32> {
    (0..BLOCKS / 2).map(|block| ((block * 7 + 3) % (BLOCKS / 2) * 2 + sequence) as u32).collect()
}

/// Rows of one call: which sequence, from which position on, how many.
type Span = (usize, usize, usize);

struct Inputs {
    positions: Vec<u32>,
    slots: Vec<KvSlot>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Model {
    /// The same values for a (sequence, position), whatever call it comes in.
    fn inputs(&self, spans: &[Span]) -> Inputs {
        let mut inputs = Inputs { positions: vec![], slots: vec![], q: vec![], k: vec![], v: vec![] };
        for &(sequence, first, rows) in spans {
            for position in first..first + rows {
                let seed = (sequence * 100_000 + position * 3) as u64;
                inputs.positions.push(position as u32);
                let block = table(sequence)[position / BLOCK_TOKENS];
                inputs.slots.push(KvSlot { block, offset: (position % BLOCK_TOKENS) as u32 });
                inputs.q.extend(floats(seed, self.heads * self.head_dim));
                inputs.k.extend(floats(seed + 1, self.kv_heads * self.head_dim));
                inputs.v.extend(floats(seed + 2, self.kv_heads * self.head_dim));
            }
        }
        inputs
    }

    fn inv_freq(&self) -> Vec<f32> {
        let dims = self.rope_dims as f32;
        (0..self.rope_dims / 2).map(|pair| 10_000f32.powf(-2.0 * pair as f32 / dims)).collect()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Stores and attends call after call on the CPU; the attention of the last call.
    fn on_cpu(&self, calls: &[Vec<Span>]) -> Vec<f32> {
        let cpu = Cpu::new(Isa::detect(), 1).unwrap();
        let kv_type = if self.element == KvElement::F16 { cpu::KvType::F16 } else { cpu::KvType::F32 };
        let (kv_heads, head_dim) = (self.kv_heads, self.head_dim);
        let mut cache =
            cpu::KvCache::new(cpu::KvLayout { layers: 2, blocks: BLOCKS, kv_heads, head_dim, kv_type })
                .unwrap();
        let mut out = vec![];
        for spans in calls {
            let Inputs { positions, slots, mut q, mut k, v } = self.inputs(spans);
            let angles = RopeTable::compute(&positions, &self.inv_freq(), 1.0);
            for (x, heads) in [(&mut q, self.heads), (&mut k, kv_heads)] {
                let shape = RopeShape { heads, head_dim, rope_dims: self.rope_dims, pairing: self.pairing };
                cpu::rope_in_place(&cpu, x, shape, &angles).unwrap();
            }
            cpu::store_kv(&cpu, &mut cache, 1, &KvRows { k: &k, v: &v, slots: &slots }).unwrap();
            let tables: Vec<Vec<u32>> = spans.iter().map(|span| table(span.0)).collect();
            let params = AttentionParams {
                heads: self.heads,
                scale: self.scale(),
                window: self.window,
                softcap: self.softcap,
            };
            let batch = AttentionBatch { q: &q, spans: &attention_spans(spans, &tables), params };
            out = vec![0.0; q.len()];
            cpu::paged_attention(&cpu, &cache, 1, &batch, &mut out).unwrap();
        }
        out
    }

    fn on_device(&self, gpu: &Gpu, calls: &[Vec<Span>]) -> Vec<f32> {
        let Model { heads, kv_heads, head_dim, element, window, softcap, .. } = *self;
        let layout = KvLayout { layers: 2, blocks: BLOCKS, kv_heads, head_dim, element };
        let mut cache = KvCache::new(gpu, layout).unwrap();
        let mut out = Rows::new(gpu, heads * head_dim).unwrap();
        for spans in calls {
            let inputs = self.inputs(spans);
            let mut q = device::rows(gpu, heads * head_dim, &inputs.q);
            let mut k = device::rows(gpu, kv_heads * head_dim, &inputs.k);
            let v = device::rows(gpu, kv_heads * head_dim, &inputs.v);
            let inv_freq = self.inv_freq();
            let arrays = RotationArrays {
                positions: &inputs.positions,
                slots: &inputs.slots,
                inv_freq: &inv_freq,
                pairing: self.pairing,
                magnitude: 1.0,
            };
            let rotation = Rotation::new(gpu, &arrays).unwrap();
            gpu.rope_and_store_kv((&mut cache, 1), &rotation, (&mut q, &mut k, &v)).unwrap();
            let shape = AttentionShape { heads, kv_heads, head_dim, scale: self.scale(), window, softcap };
            let tables: Vec<Vec<u32>> = spans.iter().map(|span| table(span.0)).collect();
            let plan = AttentionPlan::new(gpu, shape, &attention_spans(spans, &tables)).unwrap();
            gpu.paged_attention((&cache, 1), &plan, &q, &mut out).unwrap();
        }
        out.download(gpu).unwrap()
    }
}

fn attention_spans<'a>(spans: &[Span], tables: &'a [Vec<u32>]) -> Vec<AttentionSpan<'a>> {
    let mut first_row = 0;
    let span = |(&(_, first_position, rows), table): (&Span, &'a Vec<u32>)| {
        first_row += rows;
        AttentionSpan { first_row: first_row - rows, rows, first_position, block_table: table }
    };
    spans.iter().zip(tables).map(span).collect()
}

#[track_caller]
fn check(gpu: &Gpu, model: Model, calls: &[Vec<Span>]) {
    assert_same_bits(&model.on_device(gpu, calls), &model.on_cpu(calls), &(model, calls));
}

#[test]
fn heads_of_any_size_have_the_bits_of_the_cpu() {
    let Some(gpu) = device::open() else { return };
    let calls = [vec![(0, 0, 37)], vec![(0, 37, 1), (1, 0, 5)]];
    for element in [KvElement::F16, KvElement::F32] {
        for (heads, kv_heads, head_dim, rope_dims) in
            [(1, 1, 8, 8), (2, 2, 20, 10), (4, 1, 64, 64), (6, 2, 80, 32), (3, 3, 128, 128), (8, 1, 256, 64)]
        {
            for pairing in [RopePairing::Halves, RopePairing::Adjacent] {
                check(
                    &gpu,
                    Model { heads, kv_heads, head_dim, rope_dims, pairing, element, ..PLAIN },
                    &calls,
                );
            }
        }
    }
}

#[test]
fn windows_caps_and_large_groups_have_the_bits_of_the_cpu() {
    let Some(gpu) = device::open() else { return };
    let calls = [vec![(0, 0, 70)], vec![(1, 0, 3), (0, 70, 9)]];
    for window in [None, Some(1), Some(7), Some(16), Some(40)] {
        check(&gpu, Model { window, ..PLAIN }, &calls);
    }
    check(&gpu, Model { softcap: Some(2.5), ..PLAIN }, &calls);
    // More heads on one key than a tile has pairs.
    check(&gpu, Model { heads: 20, kv_heads: 1, ..PLAIN }, &calls);
}

#[test]
fn several_partitions_have_the_bits_of_the_cpu() {
    let Some(gpu) = device::open() else { return };
    let calls = [vec![(0, 0, 505)], vec![(0, 505, 12), (1, 0, 30)], vec![(0, 517, 520)], vec![(0, 1037, 1)]];
    check(&gpu, PLAIN, &calls[..2]);
    check(&gpu, PLAIN, &calls);
    check(&gpu, Model { window: Some(600), ..PLAIN }, &calls);
}

/// The last token's attention is the same, in one pass, token by token or beside another sequence.
#[test]
fn chunks_and_neighbours_change_no_bit() {
    let Some(gpu) = device::open() else { return };
    let whole = PLAIN.on_device(&gpu, &[vec![(0, 0, 45)]]);
    let last = &whole[44 * 128..];
    let single: Vec<Vec<Span>> = (0..45).map(|position| vec![(0, position, 1)]).collect();
    assert_same_bits(&PLAIN.on_device(&gpu, &single), last, &"one by one");
    let beside = PLAIN.on_device(&gpu, &[vec![(0, 0, 20), (1, 0, 9)], vec![(1, 9, 1), (0, 20, 25)]]);
    assert_same_bits(&beside[25 * 128..], last, &"beside another");
}

#[test]
fn copied_blocks_hold_what_their_source_held() {
    let Some(gpu) = device::open() else { return };
    let layout = KvLayout { layers: 2, blocks: 4, kv_heads: 2, head_dim: 32, element: KvElement::F16 };
    let mut cache = KvCache::new(&gpu, layout).unwrap();
    let attend = |cache: &mut KvCache, block: u32, stores: bool| {
        let slots = [KvSlot { block, offset: 0 }];
        let arrays = RotationArrays {
            positions: &[0],
            slots: &slots,
            inv_freq: &[],
            pairing: RopePairing::Halves,
            magnitude: 1.0,
        };
        let mut q = device::rows(&gpu, 128, &floats(1, 128));
        if stores {
            let rotation = Rotation::new(&gpu, &arrays).unwrap();
            let (mut k, v) = (device::rows(&gpu, 64, &floats(2, 64)), device::rows(&gpu, 64, &floats(3, 64)));
            gpu.rope_and_store_kv((cache, 1), &rotation, (&mut q, &mut k, &v)).unwrap();
        }
        let shape =
            AttentionShape { heads: 4, kv_heads: 2, head_dim: 32, scale: 1.0, window: None, softcap: None };
        let span = AttentionSpan { first_row: 0, rows: 1, first_position: 0, block_table: &[block] };
        let plan = AttentionPlan::new(&gpu, shape, &[span]).unwrap();
        let mut out = Rows::new(&gpu, 128).unwrap();
        gpu.paged_attention((cache, 1), &plan, &q, &mut out).unwrap();
        out.download(&gpu).unwrap()
    };
    let stored = attend(&mut cache, 1, true);
    assert!(stored.iter().any(|value| *value != 0.0));
    cache.copy_block(&gpu, 1, 3).unwrap();
    assert_same_bits(&attend(&mut cache, 3, false), &stored, &"copied block");
    assert!(cache.copy_block(&gpu, 1, 4).is_err());
}
