//! `rocmforge inspect`: what a GGUF file holds and what serving it would take.

use super::error::CommandError;
use clap::Args;
use serde_json::{Map, Value as Json, json};
use shared::gguf::{Array, Gguf, Metadata, TensorInfo, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Array elements shown in text; JSON has them all.
const SHOWN_ELEMENTS: usize = 8;
/// Characters of a string shown in text; JSON has them all.
const SHOWN_CHARACTERS: usize = 100;
/// Context the memory estimate is made for, where the model allows it.
const ESTIMATE_CONTEXT: u64 = 8192;

/// Shows a model file: metadata, tensors, sizes, chat template, memory needed.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// GGUF file (any part of a split one).
    pub model: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Write this tensor, dequantized to f32, to --out instead.
    #[arg(long, requires = "out")]
    pub tensor: Option<String>,
    /// File for --tensor, in NumPy's format.
    #[arg(long, requires = "tensor")]
    pub out: Option<PathBuf>,
}

/// The report as text or JSON.
pub fn report(args: &InspectArgs) -> Result<String, CommandError> {
    let gguf = Gguf::open(&args.model).map_err(|error| CommandError::model_file(&error))?;
    if args.json {
        return serde_json::to_string_pretty(&to_json(&gguf))
            .map(|text| text + "\n")
            .map_err(|error| CommandError::runtime(format!("result does not encode: {error}")));
    }
    Ok(to_text(&gguf))
}

fn to_json(gguf: &Gguf) -> Json {
    let metadata: Map<String, Json> =
        gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value_to_json(value))).collect();
    let tensors: Vec<Json> = gguf
        .tensors()
        .map(|tensor| {
            json!({
                "name": tensor.name, "type": tensor.kind.name(), "shape": tensor.dims(),
                "offset": tensor.offset, "bytes": tensor.bytes, "part": tensor.part,
            })
        })
        .collect();
    json!({
        "version": gguf.version(),
        "files": gguf.paths().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "file_bytes": gguf.file_bytes(),
        "metadata": metadata,
        "tensors": tensors,
        "parameters": parameters(gguf),
        "types": type_counts(gguf),
        "memory": memory(gguf),
    })
}

fn to_text(gguf: &Gguf) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |content: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{content}");
    };
    for path in gguf.paths() {
        line(format_args!("file        {}", path.display()));
    }
    line(format_args!("format      GGUF v{}, {}", gguf.version(), in_units(gguf.file_bytes())));
    line(format_args!("parameters  {}", in_thousands(parameters(gguf))));
    for (kind, count) in type_counts(gguf) {
        line(format_args!("  {kind:<10}{count} tensors"));
    }
    if let Some(memory) = memory(gguf) {
        line(format_args!(
            "memory      {} weights + {} KV cache (f16) for each {} tokens of context",
            in_units(memory.weight_bytes),
            in_units(memory.kv_bytes),
            memory.context_tokens
        ));
    }
    line(format_args!("\nmetadata"));
    for (key, value) in gguf.metadata().iter().filter(|(key, _)| *key != "tokenizer.chat_template") {
        line(format_args!("  {} = {}", key.escape_debug(), value_to_text(value)));
    }
    line(format_args!("\ntensors"));
    for tensor in gguf.tensors() {
        line(format_args!("  {}", tensor_to_text(tensor)));
    }
    if let Ok(Some(template)) = gguf.metadata().str("tokenizer.chat_template") {
        line(format_args!("\nchat template\n{template}"));
    }
    text
}

/// What serving takes, beside a workspace of some tens of megabytes.
#[derive(serde::Serialize)]
struct Memory {
    weight_bytes: u64,
    context_tokens: u64,
    kv_bytes: u64,
}

/// `None` for files that are no decoder model.
fn memory(gguf: &Gguf) -> Option<Memory> {
    let metadata = gguf.metadata();
    let count = |name: &str| architecture_key(metadata, name);
    let heads = count("attention.head_count")?;
    let kv_heads = count("attention.head_count_kv").unwrap_or(heads);
    let head_dim = count("attention.key_length").or_else(|| count("embedding_length")?.checked_div(heads))?;
    let context_tokens = count("context_length")?.min(ESTIMATE_CONTEXT);
    let elements = [2, count("block_count")?, kv_heads, head_dim, context_tokens]
        .into_iter()
        .try_fold(1u64, u64::checked_mul)?;
    Some(Memory {
        weight_bytes: gguf.tensors().map(|tensor| tensor.bytes as u64).sum(),
        context_tokens,
        kv_bytes: elements.checked_mul(2)?,
    })
}

fn architecture_key(metadata: &Metadata, name: &str) -> Option<u64> {
    let architecture = metadata.str("general.architecture").ok()??;
    metadata.u64(&format!("{architecture}.{name}")).ok()?
}

fn parameters(gguf: &Gguf) -> u64 {
    gguf.tensors().map(|tensor| tensor.elements() as u64).sum()
}

fn type_counts(gguf: &Gguf) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for tensor in gguf.tensors() {
        *counts.entry(tensor.kind.name()).or_default() += 1;
    }
    counts
}

fn tensor_to_text(tensor: &TensorInfo) -> String {
    let shape: Vec<String> = tensor.dims().iter().map(ToString::to_string).collect();
    let bytes = in_units(tensor.bytes as u64);
    format!(
        "{:<40} {:<6} [{}] {bytes}",
        tensor.name.escape_debug().to_string(),
        tensor.kind.name(),
        shape.join(", ")
    )
}

fn value_to_json(value: &Value) -> Json {
    match value {
        Value::F32(number) => json!(number),
        Value::F64(number) => json!(number),
        Value::Bool(flag) => json!(flag),
        Value::String(text) => json!(text),
        Value::Array(array) => array_to_json(array, usize::MAX),
        // Every integer type of GGUF fits into i128, and JSON numbers take 64 bits of either sign.
        other => other.integer().map_or(Json::Null, integer_to_json),
    }
}

fn integer_to_json(number: i128) -> Json {
    u64::try_from(number).map_or_else(|_| json!(i64::try_from(number).ok()), |number| json!(number))
}

/// The first `limit` elements.
fn array_to_json(array: &Array, limit: usize) -> Json {
    if let Some(integers) = array.integers() {
        return Json::Array(integers.take(limit).map(integer_to_json).collect());
    }
    match array {
        Array::F32(numbers) => json!(numbers.iter().take(limit).collect::<Vec<_>>()),
        Array::F64(numbers) => json!(numbers.iter().take(limit).collect::<Vec<_>>()),
        Array::Bool(flags) => json!(flags.iter().take(limit).collect::<Vec<_>>()),
        Array::String(texts) => json!(texts.iter().take(limit).collect::<Vec<_>>()),
        Array::Nested(arrays) => arrays.iter().take(limit).map(|array| array_to_json(array, limit)).collect(),
        _ => Json::Null,
    }
}

fn value_to_text(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > SHOWN_CHARACTERS => {
            let shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
            format!("{shown:?}… ({} bytes)", text.len())
        }
        Value::Array(array) if array.len() > SHOWN_ELEMENTS => {
            format!("{}… ({} elements)", array_to_json(array, SHOWN_ELEMENTS), array.len())
        }
        other => value_to_json(other).to_string(),
    }
}

/// Bytes in the largest binary unit that leaves at least one.
fn in_units(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A count in thousands, millions or billions.
fn in_thousands(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1} thousand", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} million", count as f64 / 1e6),
        _ => format!("{:.2} billion", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_read_well() {
        assert_eq!(in_units(512), "512 B");
        assert_eq!(in_units(1536), "1.5 KiB");
        assert_eq!(in_units(3 << 30), "3.0 GiB");
        assert_eq!(in_thousands(999), "999");
        assert_eq!(in_thousands(1_100_048_384), "1.10 billion");
    }

    #[test]
    fn integers_keep_their_sign_and_size() {
        assert_eq!(integer_to_json(i128::from(u64::MAX)), json!(u64::MAX));
        assert_eq!(integer_to_json(-5), json!(-5));
    }
}
