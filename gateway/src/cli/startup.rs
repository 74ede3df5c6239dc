//! What `serve` tells its operator on stderr while the workers start, and how it learns that none of them ever will.
//! Called by `serve` beside the HTTP server.
//!
//! On a terminal a bar shows how loading goes; elsewhere, where bars are noise, only one line says that the server is
//! ready. Later restarts are the log's affair.

use crate::fleet::{Fleet, FleetSnapshot, LastExit, LoadProgress};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often the bar moves while no progress is reported.
const BAR_TICK: Duration = Duration::from_millis(200);

/// Who started the server and sees its stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// A person or a service manager, who wants to know when it is ready.
    Operator,
    /// Another command, whose own output follows.
    Command,
}

/// Shows how the workers start, then waits until every one of them has failed for good; says how the first ended.
pub(super) async fn follow(fleet: &Fleet, model_id: &str, audience: Audience) -> LastExit {
    let started = Instant::now();
    let mut changes = fleet.watch();
    let mut starting = Some(std::io::stderr().is_terminal().then(loading_bar));
    loop {
        let snapshot = fleet.snapshot();
        let failure = snapshot.permanent_failure();
        if let Some(bar) = &starting {
            let ready = snapshot.unready_reason().is_none();
            bar.iter().for_each(|bar| show(bar, &snapshot));
            if ready || failure.is_some() {
                bar.iter().for_each(ProgressBar::finish_and_clear);
                starting = None;
            }
            if ready && audience == Audience::Operator {
                let elapsed_s = started.elapsed().as_secs_f64();
                eprintln!("rocmforge: ready after {elapsed_s:.1} s, serving {model_id}");
            }
        }
        if let Some(exit) = failure {
            return exit.clone();
        }
        if changes.changed().await.is_err() {
            // The sender lives in the fleet, which outlives this call; nothing can fail without it.
            std::future::pending::<()>().await;
        }
    }
}

fn loading_bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message("starting");
    bar.enable_steady_tick(BAR_TICK);
    bar
}

/// Workers load side by side, so their bytes add up.
fn show(bar: &ProgressBar, snapshot: &FleetSnapshot) {
    let LoadProgress { done_bytes, total_bytes } = loading(snapshot);
    if total_bytes == 0 {
        return;
    }
    // The template is a constant; should it not parse, the bar keeps its first look.
    if let Ok(style) = ProgressStyle::with_template("loading model {bar:40} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.set_length(total_bytes);
    bar.set_position(done_bytes);
}

fn loading(snapshot: &FleetSnapshot) -> LoadProgress {
    let workers = snapshot.workers.iter().filter_map(|worker| worker.loading);
    workers.fold(LoadProgress { done_bytes: 0, total_bytes: 0 }, |sum, one| LoadProgress {
        done_bytes: sum.done_bytes.saturating_add(one.done_bytes),
        total_bytes: sum.total_bytes.saturating_add(one.total_bytes),
    })
}
