//! Drives the product from outside: finds the built binaries, starts servers, polls for conditions.
//!
//! Every suite in this package goes through here. Nothing of the workspace is imported: what is tested is what
//! ships. A [`Server`] stops its process by pid when dropped, so that no test leaves one behind.

mod http;
pub mod load;
mod random;
mod server;

pub use http::{Stream, chat_body, get, post};
pub use random::Random;
pub use server::{MODEL, Server, ServerOptions};

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest any condition is waited for. Generous, since CI machines have two cores and run suites in parallel.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Looks for a binary of the workspace beside the running test.
///
/// # Panics
/// When it is not there, with the command that builds it.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("path of the running test");
    // target/<profile>/deps/<test> → target/<profile>/<name>
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target directory of the running test");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace` with this profile first, or `cargo test --workspace`",
        path.display()
    );
    path
}

/// The repository's root.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// Polls until `condition` gives a value.
///
/// # Panics
/// When [`DEADLINE`] passes first; the message names `what`.
pub fn poll<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Questions the demo model is known to answer word for word, with the answers.
pub fn demo_questions() -> Vec<(String, String)> {
    let path = repository().join("gateway/demo/questions.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let list: Vec<serde_json::Value> = serde_json::from_str(&text).expect("questions.json");
    let field = |item: &serde_json::Value, name: &str| item[name].as_str().expect("a string").to_owned();
    list.iter().map(|item| (field(item, "question"), field(item, "answer"))).collect()
}
