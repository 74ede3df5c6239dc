//! Real clients against the real server: the `openai` SDK, synchronous and asynchronous, and LangChain.
//!
//! Each test here runs the pytest files beside it with the venv's Python, against a server of its own on the demo
//! model, and prints what pytest said when it fails. The venv lies in cargo's target folder and is made once for each
//! list of requirements. A machine without Python, or one that cannot install the packages, is told so and the test
//! passes over it, unless `ROCMFORGE_REQUIRE_CLIENTS=1`, which CI sets.

mod venv;

use harness::{Server, ServerOptions, repository};
use std::io::Write;
use std::process::Command;

/// Served under a name of its own, so that a client must really send it.
const MODEL: &str = "demo-for-clients";
const KEY: &str = "sk-of-the-clients-suite";

#[test]
fn openai_sdk() {
    run(&[
        "test_wire_check.py",
        "test_chat.py",
        "test_chat_stream.py",
        "test_completions.py",
        "test_models_and_errors.py",
        "test_stop_strings_at_random.py",
    ]);
}

#[test]
fn openai_sdk_async() {
    run(&["test_async.py"]);
}

#[test]
fn langchain() {
    run(&["test_langchain.py"]);
}

/// Runs pytest files against a fresh server.
fn run(files: &[&str]) {
    let python = match venv::python() {
        Ok(python) => python,
        Err(missing) if std::env::var_os("ROCMFORGE_REQUIRE_CLIENTS").is_some_and(|value| value == "1") => {
            panic!("{missing}")
        }
        Err(missing) => return say(&format!("SKIPPED {}: {missing}", files.join(" "))),
    };
    let server = Server::ready(&ServerOptions::args(&["--alias", MODEL, "--api-key", KEY]));
    let output = Command::new(python)
        // Isolated from the caller's Python settings, and leaving no bytecode in the sources.
        .args(["-I", "-B", "-m", "pytest"])
        .args(files)
        .current_dir(repository().join("tests/clients"))
        .env("OPENAI_BASE_URL", server.at("/v1"))
        .env("OPENAI_API_KEY", KEY)
        .env("ROCMFORGE_CLIENTS_MODEL", MODEL)
        // The caller's own settings must not reach the clients: proxies, organizations, tracing.
        .env("NO_PROXY", "127.0.0.1")
        .env("LANGSMITH_TRACING", "false")
        .env_remove("PYTEST_ADDOPTS")
        .env_remove("OPENAI_ORG_ID")
        .env_remove("OPENAI_PROJECT_ID")
        .env_remove("OPENAI_API_BASE")
        .output()
        .unwrap_or_else(|error| panic!("the venv's Python does not start: {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pytest: {}\n{text}\n{errors}", output.status);
    say(&format!("{}: {}", files.join(" "), text.trim_end().lines().last().unwrap_or_default()));
}

/// Writes past libtest, which hides what passing tests print.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "clients: {line}");
}
