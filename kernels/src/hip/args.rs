//! The one argument of each kernel, field by field as `include/rf/args.h` has it. A pointer is an address on the
//! device, 0 for an absent operand.

use bytemuck::{Pod, Zeroable};

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* } $bytes:literal)*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, Pod, Zeroable)]
            pub(super) struct $name {
                $(pub(super) $field: $ty,)*
            }
            // The size the header gives it; a field that is forgotten on one side shows here or there.
            const _: () = assert!(size_of::<$name>() == $bytes);
        )*
    };
}

arguments! {
    /// Token rows in bytes: codes, scales and sums.
    Quantized { codes: u64, scales: u64, sums: u64, } 24
    /// Where a kernel that makes rows quantizes them too.
    QuantizeOut { per32: Quantized, per256: Quantized, } 48
    QuantizeArgs { x: u64, out: QuantizeOut, cols: u32, rows: u32, } 64
    MatmulArgs {
        weights: u64, x: Quantized, bias: u64, out: u64,
        outputs: u32, units: u32, tokens: u32, add: u32,
    } 64
    FloatMatmulArgs {
        weights: u64, x: u64, bias: u64, out: u64,
        outputs: u32, cols: u32, tokens: u32, add: u32,
    } 48
    EmbedArgs { table: u64, tokens: u64, out: u64, width: u32, rows: u32, vocabulary: u32, reserved: u32, } 40
    NormArgs {
        x: u64, addend: u64, gain: u64, out: u64, quantized: QuantizeOut,
        width: u32, rows: u32, eps: f32, reserved: u32,
    } 96
    RopeArgs {
        q: u64, k: u64, v: u64, cos: u64, sin: u64, slots: u64, cache: u64,
        rows: u32, heads: u32, kv_heads: u32, head_dim: u32, rope_dims: u32, halves: u32,
    } 80
    AttentionTile {
        first_row: u32, first_position: u32, first_pair: u32, pairs: u32,
        table: u32, first_unit: u32, units: u32, reserved: u32,
    } 32
    AttentionArgs {
        q: u64, cache: u64, block_tables: u64, tiles: u64, units: u64, records: u64, out: u64,
        heads: u32, kv_heads: u32, head_dim: u32, window: u32, scale: f32, softcap: f32,
    } 80
    GateArgs {
        gate: u64, up: u64, out: u64, quantized: QuantizeOut,
        width: u32, rows: u32, kind: u32, reserved: u32,
    } 88
    GatherArgs { x: u64, chosen: u64, out: u64, width: u32, rows: u32, } 32
}
