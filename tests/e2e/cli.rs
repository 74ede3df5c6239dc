//! The commands of DESIGN.md's outside contract, run as a user would.

use harness::{Server, ServerOptions, binary, demo_questions, repository};
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn demo_model() -> String {
    repository().join("gateway/demo/rocmforge-demo.gguf").display().to_string()
}

fn run(args: &[&str]) -> Output {
    Command::new(binary("rocmforge")).args(args).stdin(Stdio::null()).output().expect("rocmforge runs")
}

/// Runs a command that must succeed; its stdout.
fn stdout(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {:?} {stderr}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn with_input(args: &[&str], input: &str) -> Vec<Value> {
    let mut child = Command::new(binary("rocmforge"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("rocmforge runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("input is read");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{args:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

#[test]
fn tokenize_there_and_back() {
    let model = demo_model();
    let text = "What is the capital of France? Ünïcödé 漢字 🦀";
    let input = format!("{}\n", serde_json::json!({ "text": text }));
    let ids = with_input(&["tokenize", "--model", &model], &input);
    assert!(ids[0]["ids"].as_array().is_some_and(|ids| ids.len() > 5), "{ids:?}");
    let back = with_input(&["tokenize", "--model", &model, "--decode"], &format!("{}\n", ids[0]));
    assert_eq!(back[0]["text"], text);
}

#[test]
fn inspect_shows_metadata_tensors_and_a_tensor() {
    let model = demo_model();
    let shown: Value = serde_json::from_str(&stdout(&["inspect", &model, "--json"])).expect("JSON");
    assert_eq!(shown["metadata"]["general.architecture"], "llama", "{shown}");
    assert!(shown["tensors"].as_array().is_some_and(|tensors| tensors.len() > 10));
    assert!(stdout(&["inspect", &model]).contains("token_embd.weight"));
    let directory = tempfile::tempdir().expect("temporary directory");
    let out = directory.path().join("t.npy").display().to_string();
    stdout(&["inspect", &model, "--tensor", "output_norm.weight", "--out", &out]);
    assert!(std::fs::read(&out).expect("written").starts_with(b"\x93NUMPY"));
}

#[test]
fn logits_writes_one_row_or_all() {
    let model = demo_model();
    let directory = tempfile::tempdir().expect("temporary directory");
    let out = directory.path().join("logits.npy").display().to_string();
    let shape = |extra: &[&str]| {
        let mut args = vec!["logits", "--model", &model, "--tokens", "5,6,7", "--out", &out];
        args.extend(extra);
        stdout(&args);
        let bytes = std::fs::read(&out).expect("written");
        let header = String::from_utf8_lossy(&bytes[10..128]).into_owned();
        header.split("'shape': (").nth(1).and_then(|rest| rest.split(',').next()).expect("shape").to_owned()
    };
    assert_eq!(shape(&[]), "1");
    assert_eq!(shape(&["--all"]), "3");
    assert_eq!(shape(&["--all", "--device", "reference"]), "3");
}

#[test]
fn bench_prints_named_rates() {
    let model = demo_model();
    let args = ["bench", "--model", &model, "--prompt", "32", "--gen", "8", "--batch", "1,4", "--json"];
    let results: Vec<Value> = serde_json::from_str(&stdout(&args)).expect("JSON");
    let rate = |test: &str| {
        results.iter().find(|result| result["test"] == test).map(|result| result["tok_s"].as_f64())
    };
    for test in ["pp32", "tg8", "tg8@4"] {
        assert!(rate(test).flatten().is_some_and(|rate| rate > 0.0), "{test}: {results:?}");
    }
}

#[test]
fn generate_works_locally_and_against_a_server() {
    let model = demo_model();
    let (question, answer) = demo_questions().swap_remove(0);
    let local = stdout(&["generate", "--prompt", &question, "--model", &model, "--temperature", "0"]);
    assert_eq!(local.trim_end(), answer);
    let server = Server::ready(&ServerOptions::default());
    let url = server.at("");
    let remote = stdout(&["generate", "--prompt", &question, "--url", &url, "--temperature", "0", "--json"]);
    let remote: Value = serde_json::from_str(&remote).expect("JSON");
    assert_eq!(remote["text"], answer, "{remote}");
}

#[test]
fn generate_without_a_server_says_so() {
    let output = run(&["generate", "--prompt", "hello", "--url", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completions_and_man_page_are_printed() {
    assert!(stdout(&["completions", "bash"]).contains("rocmforge"));
    assert!(stdout(&["man"]).contains(".TH"));
}
