//! Paged attention against f64, and the same bits however the same rows are batched, chunked, paged or threaded.

#![expect(clippy::unwrap_used, reason = "a failed call fails the test")]

mod sample;

use half::f16;
use kernels::cpu::{
    AttentionBatch, AttentionParams, AttentionSpan, BLOCK_TOKENS, Cpu, Isa, KvCache, KvLayout, KvRows,
    KvSlot, KvType, paged_attention, store_kv,
};
use proptest::prelude::*;
use sample::{assert_close, assert_same_bits, floats, same_everywhere};

/// One sequence with its queries, keys and values for every position.
#[derive(Debug, Clone)]
struct Case {
    kv_heads: usize,
    head_dim: usize,
    kv_type: KvType,
    params: AttentionParams,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// The second of two layers is used, so that a layer mixed up would show.
const LAYERS: usize = 2;
const LAYER: usize = 1;

impl Case {
    fn new(tokens: usize, kv_heads: usize, group: usize, head_dim: usize, seed: u64) -> Case {
        let (heads, width) = (kv_heads * group, kv_heads * head_dim);
        let scale = 3.0 / (head_dim as f32).sqrt();
        Case {
            kv_heads,
            head_dim,
            kv_type: KvType::F16,
            params: AttentionParams { heads, scale, window: None, softcap: None },
            q: floats(seed, tokens * heads * head_dim),
            k: floats(seed + 1, tokens * width),
            v: floats(seed + 2, tokens * width),
        }
    }

    fn tokens(&self) -> usize {
        self.k.len() / self.kv_width()
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn q_width(&self) -> usize {
        self.params.heads * self.head_dim
    }

    fn cache(&self, blocks: usize) -> KvCache {
        let Case { kv_heads, head_dim, kv_type, .. } = *self;
        KvCache::new(KvLayout { layers: LAYERS, blocks, kv_heads, head_dim, kv_type }).unwrap()
    }

    fn store(&self, cpu: &Cpu, kv: &mut KvCache, table: &[u32], positions: std::ops::Range<usize>) {
        let slot = |position: usize| KvSlot {
            block: table[position / BLOCK_TOKENS],
            offset: (position % BLOCK_TOKENS) as u32,
        };
        let slots: Vec<KvSlot> = positions.clone().map(slot).collect();
        let range = positions.start * self.kv_width()..positions.end * self.kv_width();
        let rows = KvRows { k: &self.k[range.clone()], v: &self.v[range], slots: &slots };
        store_kv(cpu, kv, LAYER, &rows).unwrap();
    }

    /// Stores and attends the positions in chunks of the given sizes, the last size repeated.
    fn run(&self, cpu: &Cpu, table: &[u32], chunks: &[usize]) -> Vec<f32> {
        let mut kv = self.cache(table.iter().max().map_or(0, |&block| block as usize + 1));
        let (mut out, mut start, mut sizes) = (Vec::new(), 0, chunks.iter());
        let mut size = 0;
        while start < self.tokens() {
            size = sizes.next().copied().unwrap_or(size);
            let end = self.tokens().min(start + size);
            self.store(cpu, &mut kv, table, start..end);
            let span =
                AttentionSpan { first_row: 0, rows: end - start, first_position: start, block_table: table };
            let q = &self.q[start * self.q_width()..end * self.q_width()];
            let batch = AttentionBatch { q, spans: &[span], params: self.params };
            let mut rows = vec![f32::NAN; q.len()];
            paged_attention(cpu, &kv, LAYER, &batch, &mut rows).unwrap();
            out.extend(rows);
            start = end;
        }
        out
    }

    /// What the cache keeps of one head's key: half precision and bytes are documented roundings.
    fn kept(&self, row: &[f32], group: usize) -> Vec<f64> {
        match self.kv_type {
            KvType::F32 => row.iter().map(|&x| x.into()).collect(),
            KvType::F16 => row.iter().map(|&x| f16::from_f32(x).to_f64()).collect(),
            KvType::Q8_0 => row.chunks(group).flat_map(rounded_to_bytes).collect(),
        }
    }

    /// Attention of the row at `position` in f64, over keys and values as the cache keeps them.
    fn exact(&self, position: usize) -> Vec<f64> {
        let first = self.params.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        let mut out = Vec::new();
        for head in 0..self.params.heads {
            let kv_head = head / (self.params.heads / self.kv_heads);
            let q = &self.q[position * self.q_width() + head * self.head_dim..][..self.head_dim];
            let row = |x: &[f32], at: usize, group: usize| {
                self.kept(&x[at * self.kv_width() + kv_head * self.head_dim..][..self.head_dim], group)
            };
            let score = |at: usize| {
                let dot: f64 = row(&self.k, at, 32).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum();
                let score = dot * f64::from(self.params.scale);
                self.params.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = (first..=position).map(score).collect();
            let highest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut mixed = vec![0.0; self.head_dim];
            for (weight, at) in weights.iter().zip(first..) {
                for (mixed, v) in mixed.iter_mut().zip(row(&self.v, at, self.head_dim)) {
                    *mixed += weight / sum * v;
                }
            }
            out.extend(mixed);
        }
        out
    }

    fn check_exact(&self, out: &[f32], step: usize) {
        for position in (0..self.tokens()).step_by(step).chain([self.tokens() - 1]) {
            let row = &out[position * self.q_width()..(position + 1) * self.q_width()];
            // Scores are below 3√dim in size and rounded relative to that. Over bytes, a query is rounded to
            // 1/65534 of its largest element: times keys and the scale of scores, 3/√dim, at most 3√dim/65534 in
            // a score (5.2e-4 at 128, and far less when roundings are not all one way), which changes weights by
            // that share; weights are then rounded to 1/65534 of the largest, so an average of n values
            // within ±1 moves by n/65534 at the very most, and by √n times less as roundings go either way.
            let bound = if self.kv_type == KvType::Q8_0 { 3e-4 } else { 3e-6 };
            assert_close(row, &self.exact(position), |_| bound);
        }
    }
}

/// A q8_0 group as documented: a scale in half precision, codes to nearest.
fn rounded_to_bytes(group: &[f32]) -> Vec<f64> {
    let largest = group.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let scale = f16::from_f32(largest / 127.0).to_f64();
    let code = |x: f32| (f64::from(x) / scale).round_ties_even().clamp(-127.0, 127.0);
    group.iter().map(|&x| if scale == 0.0 { 0.0 } else { scale * code(x) }).collect()
}

/// The blocks of `tokens` positions in a shuffled order, from a pool one third larger.
fn shuffled_table(tokens: usize, seed: usize) -> Vec<u32> {
    let blocks = tokens.div_ceil(BLOCK_TOKENS);
    let mut pool: Vec<u32> = (0..(blocks + blocks / 3 + 1) as u32).collect();
    for i in 0..pool.len() {
        let other = (i * 7919 + seed * 104_729 + 13) % pool.len();
        pool.swap(i, other);
    }
    pool.truncate(blocks);
    pool
}

fn plain_table(tokens: usize) -> Vec<u32> {
    (0..tokens.div_ceil(BLOCK_TOKENS) as u32).collect()
}

prop_compose! {
    fn cases()(
        tokens in 1usize..70,
        kv_heads in 1usize..4,
        group in 1usize..9,
        head_dim in prop::sample::select(vec![16usize, 32, 48, 64, 80, 96, 128, 20, 7]),
        kv_type in prop::sample::select(vec![KvType::F16, KvType::F32, KvType::Q8_0]),
        window in prop::option::of(1u32..50),
        softcap in prop::option::of(2f32..50.0),
        seed in 0u64..1000,
    ) -> Case {
        let mut case = Case { kv_type, ..Case::new(tokens, kv_heads, group, head_dim, seed) };
        (case.params.window, case.params.softcap) = (window, softcap);
        case
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_case_matches_f64_and_any_chunking_gives_the_same_bits(
        case in cases(),
        chunks in prop::collection::vec(1usize..40, 1..6),
    ) {
        let cpu = Cpu::new(Isa::detect(), 2).unwrap();
        let tokens = case.tokens();
        let whole = case.run(&cpu, &plain_table(tokens), &[tokens]);
        case.check_exact(&whole, 5);
        let one_by_one = same_everywhere(|cpu| case.run(cpu, &shuffled_table(tokens, 3), &[1]));
        assert_same_bits(&one_by_one, &whole, &"one by one");
        let chunked = case.run(&cpu, &shuffled_table(tokens, 5), &chunks);
        assert_same_bits(&chunked, &whole, &chunks);
    }
}

#[test]
fn contexts_of_several_partitions_keep_their_bits() {
    let kinds = [(1, 4, None), (2, 1, Some(600)), (1, 3, Some(40))];
    for ((kv_heads, group, window), kv_type) in
        kinds.into_iter().flat_map(|kind| [KvType::F16, KvType::Q8_0].map(|kv_type| (kind, kv_type)))
    {
        let mut case = Case { kv_type, ..Case::new(1300, kv_heads, group, 32, 11) };
        case.params.window = window;
        let cpu = Cpu::new(Isa::detect(), 3).unwrap();
        let whole = case.run(&cpu, &plain_table(1300), &[1300]);
        case.check_exact(&whole, 97);
        for chunks in [&[512, 1][..], &[1000, 7], &[37], &[511, 2, 600]] {
            let chunked = case.run(&cpu, &shuffled_table(1300, 2), chunks);
            assert_same_bits(&chunked, &whole, &chunks);
        }
        let everywhere = same_everywhere(|cpu| case.run(cpu, &plain_table(1300), &[1200, 1]));
        assert_same_bits(&everywhere, &whole, &"all instruction sets");
    }
}

#[test]
fn a_sequence_in_a_batch_gets_the_bits_it_gets_alone() {
    beside_others(KvType::F16);
    beside_others(KvType::Q8_0);
}

fn beside_others(kv_type: KvType) {
    let case = |i: usize| Case { kv_type, ..Case::new(30 + 130 * i, 2, 4, 64, 50 + i as u64) };
    let cases: Vec<Case> = (0..6).map(case).collect();
    for cpu in sample::contexts() {
        let mut kv = cases[0].cache(400);
        let mut tables = Vec::new();
        for (i, case) in cases.iter().enumerate() {
            let first = 60 * i as u32;
            let blocks = case.tokens().div_ceil(BLOCK_TOKENS) as u32;
            let table: Vec<u32> = (first..first + blocks).rev().collect();
            case.store(&cpu, &mut kv, &table, 0..case.tokens());
            tables.push(table);
        }
        // Sequences 0, 2 and 4 decode one token, the others prefill their last nine; rows between are no one's.
        let (mut q, mut spans) = (Vec::new(), Vec::new());
        for (i, case) in cases.iter().enumerate() {
            let rows = if i % 2 == 0 { 1 } else { 9 };
            let first_position = case.tokens() - rows;
            q.extend(vec![7.0; case.q_width()]);
            let first_row = q.len() / case.q_width();
            spans.push(AttentionSpan { first_row, rows, first_position, block_table: &tables[i] });
            q.extend(&case.q[first_position * case.q_width()..]);
        }
        let mut out = vec![5.0; q.len()];
        let batch = AttentionBatch { q: &q, spans: &spans, params: cases[0].params };
        paged_attention(&cpu, &kv, LAYER, &batch, &mut out).unwrap();
        let width = cases[0].q_width();
        for (case, span) in cases.iter().zip(&spans) {
            assert!(out[(span.first_row - 1) * width..span.first_row * width].iter().all(|&x| x == 5.0));
            let alone = case.run(&cpu, &plain_table(case.tokens()), &[case.tokens()]);
            let rows = &out[span.first_row * width..(span.first_row + span.rows) * width];
            assert_same_bits(rows, &alone[span.first_position * width..], &(span.first_row, &cpu));
        }
    }
}

#[test]
fn what_a_block_held_before_does_not_matter() {
    for kv_type in [KvType::F16, KvType::Q8_0] {
        over_rubbish(&Case { kv_type, ..Case::new(21, 2, 3, 48, 5) });
    }
}

fn over_rubbish(case: &Case) {
    let mut case = case.clone();
    case.params.window = Some(9);
    for cpu in sample::contexts() {
        let clean = case.run(&cpu, &[1, 0], &[21]);
        let mut kv = case.cache(2);
        let mut rubbish = Case { kv_type: case.kv_type, ..Case::new(32, 2, 3, 48, 6) };
        rubbish.k.fill(f32::NAN);
        rubbish.v.fill(f32::INFINITY);
        rubbish.store(&cpu, &mut kv, &[1, 0], 0..32);
        case.store(&cpu, &mut kv, &[1, 0], 5..21);
        let span = AttentionSpan { first_row: 0, rows: 8, first_position: 13, block_table: &[1, 0] };
        let width = case.q_width();
        let batch = AttentionBatch { q: &case.q[13 * width..], spans: &[span], params: case.params };
        let mut out = vec![0.0; 8 * width];
        paged_attention(&cpu, &kv, LAYER, &batch, &mut out).unwrap();
        assert_same_bits(&out, &clean[13 * width..], &cpu);
    }
}

#[test]
fn a_copied_block_serves_as_the_original() {
    // Bytes of 64 dimensions of keys and values of one token, scales included.
    for (kv_type, token_bytes) in
        [(KvType::F32, 512), (KvType::F16, 256), (KvType::Q8_0, 64 + 2 * 2 + 64 + 2)]
    {
        let case = Case { kv_type, ..Case::new(30, 2, 2, 64, 8) };
        let cpu = Cpu::new(Isa::detect(), 2).unwrap();
        let mut kv = case.cache(4);
        case.store(&cpu, &mut kv, &[0, 1], 0..30);
        kv.copy_block(1, 3).unwrap();
        kv.copy_block(0, 2).unwrap();
        let attend = |table: &[u32]| {
            let span = AttentionSpan { first_row: 0, rows: 30, first_position: 0, block_table: table };
            let mut out = vec![0.0; case.q.len()];
            let batch = AttentionBatch { q: &case.q, spans: &[span], params: case.params };
            paged_attention(&cpu, &kv, LAYER, &batch, &mut out).unwrap();
            out
        };
        assert_same_bits(&attend(&[2, 3]), &attend(&[0, 1]), &"copies");
        assert!(kv.copy_block(0, 4).is_err() && kv.copy_block(4, 0).is_err());
        assert_eq!(kv.bytes(), 4 * LAYERS * 2 * BLOCK_TOKENS * token_bytes);
    }
}

#[test]
fn a_number_that_is_not_finite_reaches_every_row_that_sees_it() {
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
        for (place, defect) in [(0, f32::NAN), (1, f32::NAN), (1, f32::INFINITY), (2, f32::NAN)] {
            let mut case = Case { kv_type, ..Case::new(40, 1, 3, 64, 9) };
            let (q_width, kv_width) = (case.q_width(), case.kv_width());
            match place {
                0 => case.k[20 * kv_width + 37] = defect,
                1 => case.v[20 * kv_width + 37] = defect,
                _ => (0..3).for_each(|head| case.q[20 * q_width + 64 * head + 37] = defect),
            }
            for cpu in sample::contexts() {
                let out = case.run(&cpu, &plain_table(40), &[7, 20]);
                let shows = |row: usize| {
                    let row = &out[row * q_width..(row + 1) * q_width];
                    row.iter().any(|x| !x.is_finite())
                };
                assert!((0..20).all(|row| !shows(row)), "{kv_type:?} {place} {cpu:?}");
                let hit = if place == 2 { 20..21 } else { 20..40 };
                assert!(hit.clone().all(shows), "{kv_type:?} {place} {cpu:?}");
                assert!((hit.end..40).all(|row| !shows(row)), "{kv_type:?} {place} {cpu:?}");
            }
        }
    }
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let case = Case::new(20, 2, 2, 32, 1);
    let cpu = Cpu::new(Isa::Portable, 1).unwrap();
    let mut kv = case.cache(2);
    case.store(&cpu, &mut kv, &[0, 1], 0..20);
    let good = AttentionSpan { first_row: 0, rows: 20, first_position: 0, block_table: &[0, 1] };
    let attend = |layer: usize, spans: &[AttentionSpan<'_>], params: AttentionParams| {
        let batch = AttentionBatch { q: &case.q, spans, params };
        paged_attention(&cpu, &kv, layer, &batch, &mut vec![0.0; case.q.len()])
    };
    assert!(attend(0, &[good], case.params).is_ok());
    assert!(attend(0, &[], case.params).is_ok());
    assert!(attend(2, &[good], case.params).is_err());
    assert!(attend(0, &[AttentionSpan { rows: 21, ..good }], case.params).is_err());
    assert!(attend(0, &[AttentionSpan { first_position: 13, ..good }], case.params).is_err());
    assert!(attend(0, &[AttentionSpan { first_position: usize::MAX, ..good }], case.params).is_err());
    assert!(attend(0, &[AttentionSpan { block_table: &[0, 2], ..good }], case.params).is_err());
    assert!(attend(0, &[good, AttentionSpan { rows: 1, ..good }], case.params).is_err());
    assert!(attend(0, &[good], AttentionParams { heads: 3, ..case.params }).is_err());
    assert!(attend(0, &[good], AttentionParams { heads: 0, ..case.params }).is_err());
    for slot in [KvSlot { block: 2, offset: 0 }, KvSlot { block: 0, offset: 16 }] {
        let rows = KvRows { k: &case.k[..64], v: &case.v[..64], slots: &[slot] };
        assert!(store_kv(&cpu, &mut kv, 0, &rows).is_err());
    }
    let rows = KvRows { k: &case.k[..64], v: &case.v[..63], slots: &[KvSlot { block: 0, offset: 0 }] };
    assert!(store_kv(&cpu, &mut kv, 0, &rows).is_err());
}
