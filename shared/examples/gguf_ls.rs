//! Lists a GGUF file, one JSON line per key and tensor, for comparing this reader with another one:
//! `cargo run -p rocmforge-shared --example gguf_ls FILE…`. Users have `rocmforge inspect`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value as Json, json};
use shared::gguf::{Array, Gguf, GgufError, Value};

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for file in std::env::args_os().skip(1) {
        if let Err(error) = list(Path::new(&file)) {
            eprintln!("{error}");
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn list(path: &Path) -> Result<(), GgufError> {
    let start = Instant::now();
    let gguf = Gguf::open(path)?;
    eprintln!(
        "{path:?}: opened in {:.2} ms, {} bytes",
        start.elapsed().as_secs_f64() * 1e3,
        gguf.file_bytes()
    );
    for (key, value) in gguf.metadata().iter() {
        println!("{}", json!({ "key": key, "value": scalar_or_array(value) }));
    }
    for tensor in gguf.tensors() {
        let sum: u64 = gguf.data(tensor).iter().map(|&byte| u64::from(byte)).sum();
        println!(
            "{}",
            json!({
                "tensor": tensor.name, "dims": tensor.dims(), "type": tensor.kind.name(), "part": tensor.part,
                "offset": tensor.offset, "bytes": tensor.bytes, "sum": sum,
            })
        );
    }
    Ok(())
}

fn scalar_or_array(value: &Value) -> Json {
    match value {
        Value::F32(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::Bool(value) => json!(value),
        Value::String(value) => json!(value),
        Value::U64(value) => json!(value),
        Value::Array(value) => array(value),
        integer => json!(integer.integer().and_then(|value| i64::try_from(value).ok())),
    }
}

fn array(array_value: &Array) -> Json {
    match array_value {
        Array::F32(items) => json!(items),
        Array::F64(items) => json!(items),
        Array::Bool(items) => json!(items),
        Array::U64(items) => json!(items),
        Array::String(items) => items.iter().collect(),
        Array::Nested(items) => items.iter().map(array).collect(),
        integers => {
            integers.integers().into_iter().flatten().filter_map(|item| i64::try_from(item).ok()).collect()
        }
    }
}
