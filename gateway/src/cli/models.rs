//! `rocmforge models`: what a server serves, or what model files lie in a folder.

use super::client::ServerClient;
use super::error::CommandError;
use crate::secret::Secret;
use clap::Args;
use serde::Serialize;
use shared::gguf::Gguf;
use std::path::{Path, PathBuf};

/// Files looked at in one folder.
const FILES_MAX: usize = 10_000;

/// Lists models: those of the server at --url, or the GGUF files in --dir.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Folder with GGUF files.
    #[arg(long, env = "ROCMFORGE_MODELS")]
    pub dir: Option<PathBuf>,
    /// Server to ask when no --dir is given.
    #[arg(long, default_value = "http://127.0.0.1:8000", env = "ROCMFORGE_URL")]
    pub url: String,
    /// Key the server asks for.
    #[arg(long, env = "ROCMFORGE_API_KEY", hide_env_values = true)]
    pub api_key: Option<Secret>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A model file.
#[derive(Debug, Serialize)]
struct ModelFile {
    file: String,
    name: String,
    architecture: String,
    parameters: u64,
    bytes: u64,
    /// Why the file cannot be read, instead of the above.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The list as text or JSON.
pub async fn report(args: &ModelsArgs) -> Result<String, CommandError> {
    match &args.dir {
        Some(directory) => local(directory, args.json),
        None => remote(args).await,
    }
}

async fn remote(args: &ModelsArgs) -> Result<String, CommandError> {
    let list = ServerClient::remote(&args.url, args.api_key.clone())?.get("/v1/models").await?;
    if args.json {
        return Ok(format!("{}\n", list["data"]));
    }
    let ids = list["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
    Ok(ids.map(|id| format!("{id}\n")).collect())
}

fn local(directory: &Path, as_json: bool) -> Result<String, CommandError> {
    let unreadable = |error| CommandError::configuration(format!("folder {}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(unreadable)?
        .take(FILES_MAX)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf") && !is_later_part(path))
        .collect();
    paths.sort();
    let files: Vec<ModelFile> = paths.iter().map(|path| describe(path)).collect();
    if as_json {
        let text = serde_json::to_string(&files);
        return text
            .map(|text| text + "\n")
            .map_err(|error| CommandError::runtime(format!("result does not encode: {error}")));
    }
    Ok(files.iter().map(to_line).collect())
}

/// Parts of a split model after the first belong to the first one's line.
fn is_later_part(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let mut fields = stem.rsplit('-');
    let (Some(count), Some("of"), Some(part)) = (fields.next(), fields.next(), fields.next()) else {
        return false;
    };
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(count) && is_number(part) && part != "00001"
}

fn describe(path: &Path) -> ModelFile {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let empty = ModelFile {
        file,
        name: String::new(),
        architecture: String::new(),
        parameters: 0,
        bytes: 0,
        error: None,
    };
    match Gguf::open(path) {
        Err(error) => ModelFile { error: Some(shared::error::one_line(&error)), ..empty },
        Ok(gguf) => {
            let text = |key| gguf.metadata().str(key).ok().flatten().unwrap_or_default().to_owned();
            ModelFile {
                name: text("general.name"),
                architecture: text("general.architecture"),
                parameters: gguf.tensors().map(|tensor| tensor.elements() as u64).sum(),
                bytes: gguf.file_bytes(),
                ..empty
            }
        }
    }
}

fn to_line(model: &ModelFile) -> String {
    match &model.error {
        Some(error) => format!("{:<40} unreadable: {error}\n", model.file),
        None => format!(
            "{:<40} {:<8} {:>8.2} GB {:>7.2} B parameters  {}\n",
            model.file,
            model.architecture,
            model.bytes as f64 / 1e9,
            model.parameters as f64 / 1e9,
            model.name
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_parts_are_told_from_models() {
        assert!(is_later_part(Path::new("m-00002-of-00004.gguf")));
        assert!(!is_later_part(Path::new("m-00001-of-00004.gguf")));
        assert!(!is_later_part(Path::new("best-of-breed.gguf")));
        assert!(!is_later_part(Path::new("plain.gguf")));
    }

    #[test]
    fn a_damaged_file_has_its_line() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("bad.gguf"), b"GGUF").unwrap();
        let text = local(directory.path(), false).unwrap();
        assert!(text.starts_with("bad.gguf") && text.contains("unreadable"), "{text}");
    }
}
