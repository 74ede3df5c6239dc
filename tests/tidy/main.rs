//! Holds the structure that STYLE asks for: file lengths, import directions, where unsafe and certain crates may
//! be named, and that production code does not unwrap.

use harness::repository;
use std::path::{Path, PathBuf};

/// Hard limit of a source file, tests included.
const LINES_MAX: usize = 600;
/// `unwrap`/`expect` in production code over the whole workspace, each with its proof.
const UNWRAPS_MAX: usize = 9;
/// Crates of the workspace with production code.
const CRATES: [&str; 4] = ["gateway", "worker", "shared", "kernels"];

/// A source file: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Lines outside `#[cfg(test)]` modules at the end of the file, comments left out.
    fn production_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test_file = self.path.ends_with("tests.rs") || self.path.contains("/tests/");
        let lines = self.text.lines().take_while(|line| !line.contains("#[cfg(test)]"));
        (1..).zip(lines).filter(move |(_, line)| !is_test_file && !line.trim_start().starts_with("//"))
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !["target", ".git", "fuzz", ".venv", "node_modules"].iter().any(|skipped| name == *skipped) {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Rust files under the folders given, relative to the root.
fn sources(folders: &[&str]) -> Vec<Source> {
    let root = repository();
    let mut files = Vec::new();
    for folder in folders {
        collect(&root.join(folder), &mut files);
    }
    assert!(!files.is_empty(), "no sources under {folders:?}");
    files
        .iter()
        .map(|path| Source {
            path: path.strip_prefix(&root).expect("under the root").display().to_string(),
            text: std::fs::read_to_string(path).expect("readable source"),
        })
        .collect()
}

/// Fails with every offence found, one a line.
fn none(what: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{what}:\n{}", offences.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let long = sources(&["gateway", "worker", "shared", "kernels", "tests"])
        .iter()
        .filter(|source| source.text.lines().count() > LINES_MAX)
        .map(|source| format!("{}: {} lines, limit {LINES_MAX}", source.path, source.text.lines().count()))
        .collect();
    none("split these files", long);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent = sources(&["gateway/src", "worker/src", "shared/src", "kernels/src", "tests/harness"])
        .iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path.clone())
        .collect();
    none("files without a module comment", silent);
}

#[test]
fn production_code_does_not_unwrap() {
    let mut found = Vec::new();
    for name in CRATES {
        for source in sources(&[&format!("{name}/src")]) {
            for (number, line) in source.production_lines() {
                if line.contains(".unwrap()") || line.contains(".expect(") {
                    found.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    assert!(found.len() <= UNWRAPS_MAX, "{} of at most {UNWRAPS_MAX}:\n{}", found.len(), found.join("\n"));
}

#[test]
fn imports_point_one_way() {
    let forbidden: [(&str, &[&str]); 4] = [
        ("shared/src", &["kernels::", "worker::", "gateway::"]),
        ("kernels/src", &["shared::", "worker::", "gateway::"]),
        ("worker/src", &["gateway::", "axum"]),
        ("gateway/src", &["worker::", "kernels::"]),
    ];
    let mut offences = Vec::new();
    for (folder, names) in forbidden {
        for source in sources(&[folder]) {
            for (number, line) in source.production_lines() {
                let imported =
                    line.trim_start().strip_prefix("use ").or(line.trim_start().strip_prefix("pub use "));
                if imported.is_some_and(|path| names.iter().any(|name| path.starts_with(name))) {
                    offences.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    none("imports against the direction of dependency", offences);
}

#[test]
fn crates_with_one_home_are_named_nowhere_else() {
    let homes: [(&str, &[&str]); 4] = [
        ("bincode::config", &["shared/src/ipc/codec.rs"]),
        ("interprocess::", &["shared/src/ipc/transport.rs"]),
        ("kernels::", &["worker/src/backend/", "worker/src/commands/", "worker/src/model/weights.rs"]),
        ("axum::", &["gateway/src/api", "gateway/src/server", "gateway/src/metrics"]),
    ];
    let mut offences = Vec::new();
    for (name, allowed) in homes {
        for source in sources(&["gateway/src", "worker/src", "shared/src"]) {
            if allowed.iter().any(|home| source.path.starts_with(home)) {
                continue;
            }
            for (number, line) in source.production_lines() {
                if line.trim_start().starts_with("use ") && line.contains(name) {
                    offences.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    none("crates named outside their home", offences);
}

#[test]
fn unsafe_code_lives_in_the_kernels_and_one_memory_map() {
    let mut offences = Vec::new();
    for source in sources(&["gateway/src", "worker/src", "shared/src"]) {
        if source.path == "shared/src/gguf/mapping.rs" {
            continue;
        }
        for (number, line) in source.production_lines() {
            if line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                offences.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none("unsafe outside its home", offences);
}

#[test]
fn nothing_is_left_open() {
    // Spelt in two parts so that this file does not find itself.
    let marks = [["todo", "!("], ["unimplemented", "!("], ["FIX", "ME"], ["#[ig", "nore"]]
        .map(|parts| parts.concat());
    let mut offences = Vec::new();
    for source in sources(&["gateway", "worker", "shared", "kernels", "tests"]) {
        for (number, line) in (1..).zip(source.text.lines()) {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                offences.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none("left open", offences);
}
