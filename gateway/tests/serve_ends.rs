//! `rocmforge serve` ends by itself when it is of no use: its workers can never serve, or the command it was started
//! for is gone. The workers are shell scripts in place of `rocmforge-worker`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const ROCMFORGE: &str = env!("CARGO_BIN_EXE_rocmforge");
/// Longest any step may take; the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// A worker made of these shell commands. It lives as long as its directory.
fn worker(commands: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{commands}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (directory, path)
}

fn check(commands: &str, code: i32, expected: &str) {
    let (_directory, program) = worker(commands);
    let output = Command::new(ROCMFORGE)
        .args(["serve", "--port", "0", "--workers", "2"])
        .env("ROCMFORGE_WORKER_BIN", program)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(last, format!("rocmforge: no worker can serve: {expected}"), "{stderr}");
}

#[test]
fn workers_that_can_never_serve_give_the_server_their_exit_code_and_reason() {
    let refusal = "model.gguf: architecture `abacus` is not supported";
    check(&format!("echo '{refusal}' >&2; exit 65"), 65, &format!("{refusal} (exit code 65)"));
    check("echo 'wrong flag' >&2; exit 2", 64, "wrong flag (exit code 2)");
}

#[test]
fn a_server_started_for_a_command_ends_with_it() {
    let (_directory, program) = worker("exec sleep 600");
    let script = format!("{ROCMFORGE} serve --port 0 --parent-pid $$ & echo $!; wait");
    let mut parent = Command::new("sh")
        .args(["-c", &script])
        .env("ROCMFORGE_WORKER_BIN", program)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pid: i32 = lines.next().unwrap().parse().unwrap();
    assert!(lines.next().unwrap().starts_with("listening on "));
    parent.kill().unwrap();
    parent.wait().unwrap();
    // The server holds the pipe's other end while it lives.
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(lines.count()));
    if end.recv_timeout(DEADLINE).is_err() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        panic!("server {pid} outlives its command");
    }
}
