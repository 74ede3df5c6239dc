//! A Python virtual environment with the packages of `requirements.txt`, made once and kept.
//!
//! Its folder is named after the interpreter and the list, so that a change of either makes a new one. Test threads
//! and test processes wait for each other, and a venv whose making broke off is made anew.

use harness::repository;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Written last.
const COMPLETE: &str = "complete";

/// Packages to install.
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// The venv's interpreter, or what this machine lacks for it.
pub(crate) fn python() -> Result<PathBuf, String> {
    let probe = "import sys, venv, ensurepip; print(sys.version)";
    let version = output(Command::new("python3").args(["-c", probe])).map_err(|error| {
        format!("python3 with its venv module is missing (on Debian: python3-venv): {error}")
    })?;
    let mut hasher = DefaultHasher::new();
    (REQUIREMENTS, version).hash(&mut hasher);
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clients-venv-{:016x}", hasher.finish()));

    let unusable = |error: std::io::Error| format!("{} cannot be made: {error}", folder.display());
    let lock = File::create(folder.with_extension("lock")).map_err(unusable)?;
    lock.lock().map_err(unusable)?;
    if !folder.join(COMPLETE).is_file() {
        make(&folder)?;
        fs::write(folder.join(COMPLETE), "").map_err(unusable)?;
    }
    Ok(folder.join("bin/python"))
}

fn make(folder: &Path) -> Result<(), String> {
    output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))
        .map_err(|error| format!("python3 -m venv failed: {error}"))?;
    // Wheels only: nothing of a package runs or is compiled before a test imports it.
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "-r"]);
    output(pip.arg(repository().join("tests/clients/requirements.txt")))
        .map(|_| ())
        .map_err(|error| format!("the packages of requirements.txt cannot be installed: {error}"))
}

/// What a successful command printed, or its complaint.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()))
}
