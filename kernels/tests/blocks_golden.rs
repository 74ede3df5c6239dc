//! Dequantization and dot products against ggml's own numbers (`tests/golden/dequant`, made by llama.cpp).

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use flate2::read::GzDecoder;
use kernels::blocks::{BlockType, dequantize};
use kernels::cpu::{
    Accumulate, ActivationFormat, Activations, Cpu, Isa, Matrix, Product, QuantizedRows, matmul,
    quantize_rows,
};
use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

#[derive(serde::Deserialize)]
struct Manifest {
    types: HashMap<String, Entry>,
}

#[derive(serde::Deserialize)]
struct Entry {
    ggml_type: u32,
    block_size: usize,
    type_size: usize,
    dot_err_over_norms: f64,
    sections: HashMap<String, Section>,
}

#[derive(serde::Deserialize)]
struct Section {
    offset: usize,
    dtype: String,
    shape: Vec<usize>,
}

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/dequant").join(name);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    if name.ends_with(".gz") {
        GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    } else {
        { file }.read_to_end(&mut bytes).unwrap();
    }
    bytes
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

struct Vectors {
    entry: Entry,
    bytes: Vec<u8>,
}

impl Vectors {
    fn load(ty: BlockType) -> Option<Vectors> {
        let mut manifest: Manifest = serde_json::from_slice(&golden("manifest.json")).unwrap();
        let entry = manifest.types.remove(ty.name())?;
        Some(Vectors { entry, bytes: golden(&format!("{}.bin.gz", ty.name())) })
    }

    fn section(&self, name: &str) -> &[u8] {
        let Section { offset, dtype, shape } = &self.entry.sections[name];
        let width = match dtype.as_str() {
            "u8" => 1,
            "f32" => 4,
            "f64" => 8,
            other => panic!("dtype {other}"),
        };
        &self.bytes[*offset..][..shape.iter().product::<usize>() * width]
    }
}

/// The types ggml made vectors for; F32 needs none.
fn golden_types() -> impl Iterator<Item = (BlockType, Vectors)> {
    let types: Vec<_> = BlockType::ALL.into_iter().filter_map(|ty| Some((ty, Vectors::load(ty)?))).collect();
    assert_eq!(types.len(), 10, "golden vectors of every type but F32");
    types.into_iter()
}

#[test]
fn geometry_is_that_of_ggml() {
    for (ty, vectors) in golden_types() {
        assert_eq!(BlockType::from_ggml_id(vectors.entry.ggml_type), Some(ty));
        assert_eq!(ty.block_len(), vectors.entry.block_size, "{}", ty.name());
        assert_eq!(ty.block_bytes(), vectors.entry.type_size, "{}", ty.name());
    }
    assert_eq!(BlockType::from_ggml_id(10), None, "Q2_K is not read by these kernels");
}

#[test]
fn dequantization_gives_the_bits_of_ggml() {
    for (ty, vectors) in golden_types() {
        for (blocks, values) in [("q_blocks", "q_deq"), ("r_blocks", "r_deq")] {
            let expected = floats(vectors.section(values));
            let mut out = vec![0.0; expected.len()];
            dequantize(ty, vectors.section(blocks), &mut out).unwrap();
            for (i, (got, expected)) in out.iter().zip(&expected).enumerate() {
                assert!(
                    got.to_bits() == expected.to_bits(),
                    "{} {blocks}[{i}]: {got} != {expected}",
                    ty.name()
                );
            }
        }
    }
}

#[test]
fn wrong_lengths_are_refused() {
    for ty in BlockType::ALL {
        let mut out = vec![0.0; 2 * ty.block_len()];
        assert!(dequantize(ty, &vec![0; 2 * ty.block_bytes() - 1], &mut out).is_err());
        assert!(dequantize(ty, &vec![0; 2 * ty.block_bytes() + 1], &mut out).is_err());
        assert!(dequantize(ty, &vec![0; 2 * ty.block_bytes()], &mut out).is_ok());
        if ty.block_len() > 1 {
            assert!(ty.row_bytes(ty.block_len() + 1).is_err());
        }
    }
    assert!(BlockType::F32.row_bytes(usize::MAX).is_err());
}

/// Products of the six golden rows with the golden input, on one instruction set.
fn products(ty: BlockType, vectors: &Vectors, isa: Isa, x: &[f32]) -> Vec<f32> {
    let cpu = Cpu::new(isa, 2).unwrap();
    let mut raw = vectors.section("q_blocks").to_vec();
    raw.extend_from_slice(vectors.section("r_blocks"));
    let weight = Matrix::pack(&cpu, ty, 6, 1024, &raw).unwrap();
    let mut quantized = QuantizedRows::new().unwrap();
    let format = weight.activation_format();
    if format != ActivationFormat::F32 {
        quantize_rows(&cpu, x, (1, 1024), format, &mut quantized).unwrap();
    }
    let mut out = vec![0.0; 6];
    let x = Activations { rows: 1, cols: 1024, f32: x, per32: Some(&quantized), per256: Some(&quantized) };
    let product = Product { weight: &weight, bias: None, accumulate: Accumulate::Set, out: &mut out };
    matmul(&cpu, &x, &mut [product]).unwrap();
    out
}

#[test]
fn dot_products_lose_no_more_than_twice_what_ggml_loses() {
    let x = floats(&golden("dot_x.f32.gz"));
    let norm = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    for (ty, vectors) in golden_types() {
        let mut rows = floats(vectors.section("q_deq"));
        rows.extend(floats(vectors.section("r_deq")));
        let exact = vectors.section("dot_exact").as_chunks().0;
        for isa in Isa::available() {
            let got = products(ty, &vectors, isa, &x);
            for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
                let error = (f64::from(*got) - f64::from_le_bytes(*exact)).abs();
                let relative = error / (norm(&rows[i * 1024..][..1024]) * norm(&x));
                let limit = 2.0 * vectors.entry.dot_err_over_norms;
                assert!(relative <= limit, "{} {} row {i}: {relative} > {limit}", ty.name(), isa.name());
            }
        }
    }
}
