//! Faults on demand, for tests of everything that has to survive them. Off unless `ROCMFORGE_FAULT` is set.
//!
//! The variable holds rules separated by `;`, each a fault and the conditions under which it strikes, all of which
//! must hold: `die=segv@p=0.001; slow=5` or `exit=3@token=77@once=/tmp/struck`. Without conditions it strikes at
//! every step.
//!
//! | fault | does |
//! |---|---|
//! | `die`, `die=kill` | ends by SIGKILL, as a kill from outside does |
//! | `die=segv`, `die=abort` | ends by SIGSEGV or SIGABRT, as a defect does |
//! | `panic` | the engine's thread panics |
//! | `exit=CODE` | ends with this exit code |
//! | `hang` | the engine's thread stops for good; the socket stays open |
//! | `slow=MS` | this step takes so many milliseconds more |
//! | `alloc` | memory runs out: ends as a program whose allocator fails |
//! | `alloc=blocks` | no KV block is to be had in the next step |
//! | `corrupt` | the next frame to the gateway is damaged |
//! | `load-fail` | the model cannot be loaded; exit code 1 |
//!
//! | condition | holds |
//! |---|---|
//! | `step=N` | at the N-th step of a process |
//! | `p=P` | with probability P at each step, drawn from the process id, or from `seed=S` where that is given too |
//! | `token=ID` | while a request is computed whose prompt has this token: a poison request |
//! | `load` | while the model loads, rather than at steps |
//! | `once=PATH` | if this file does not exist; it is made then, so that one process strikes, once |
//!
//! `commands::serve` reads the rules once, at the start; the engine asks [`Faults::at_step`] at each step between plan
//! and computation, the loading thread [`Faults::at_load`], the writer to the gateway [`Faults::take_corruption`].
//! What holds always: with the variable unset nothing is installed and each of them costs one look at an `Option`; rules
//! that do not parse end the worker before it listens. It knows nothing of which worker of a gateway it is in.

mod grammar;

pub use grammar::FaultError;

use crate::sampler::rng::uniform;
use nix::sys::signal::{Signal, raise};
use shared::ids::TokenId;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Variable that holds the rules.
pub const FAULT_VARIABLE: &str = "ROCMFORGE_FAULT";
/// Size named by an allocation that fails: no machine has it, so the line in the log is not taken for a real one.
const ALLOCATION_BYTES: usize = 1 << 46;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Die(Signal),
    Panic,
    Exit(u8),
    Hang,
    Slow(Duration),
    OutOfMemory,
    OutOfBlocks,
    Corrupt,
    LoadFail,
}

/// A fault and when it strikes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(crate) fault: Fault,
    pub(crate) at_load: bool,
    pub(crate) step: Option<u64>,
    pub(crate) probability: Option<f64>,
    pub(crate) seed: Option<u64>,
    pub(crate) token: Option<TokenId>,
    pub(crate) once: Option<PathBuf>,
}

/// KV blocks in the step to come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BlockSupply {
    /// As the pool has them.
    #[default]
    Real,
    /// None, as if every one were in use.
    Refused,
}

/// The model is said not to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("loading fails because {FAULT_VARIABLE} says so")]
pub struct LoadRefused;

/// The rules of this process.
#[derive(Debug)]
pub struct Faults {
    rules: Vec<Rule>,
    /// For rules without a seed of their own.
    seed: u64,
    corrupts_next_frame: AtomicBool,
}

static FAULTS: OnceLock<Faults> = OnceLock::new();

/// Reads [`FAULT_VARIABLE`] by `variable`. Call once, before anything asks for [`active`].
pub fn install(variable: impl Fn(&str) -> Option<String>) -> Result<(), FaultError> {
    let Some(text) = variable(FAULT_VARIABLE).filter(|text| !text.trim().is_empty()) else { return Ok(()) };
    let faults = Faults::parse(&text, u64::from(std::process::id()))?;
    tracing::warn!(rules = %text, "fault injection is on, this worker fails on purpose");
    // A second call would change rules that are in use; the first ones stay.
    let _ = FAULTS.set(faults);
    Ok(())
}

/// The rules of this process, if there are any.
pub fn active() -> Option<&'static Faults> {
    FAULTS.get()
}

impl Faults {
    /// Reads rules as the module's documentation spells them.
    pub fn parse(text: &str, seed: u64) -> Result<Self, FaultError> {
        let rules = grammar::parse(text)?;
        Ok(Self { rules, seed, corrupts_next_frame: AtomicBool::new(false) })
    }

    /// Strikes where a rule says so, before the model is loaded.
    pub fn at_load(&self) -> Result<(), LoadRefused> {
        for (index, rule) in self.rules.iter().enumerate() {
            if !(rule.at_load && self.draws(index, 0) && claims(rule)) {
                continue;
            }
            if rule.fault == Fault::LoadFail {
                return Err(LoadRefused);
            }
            self.strike(rule.fault, 0);
        }
        Ok(())
    }

    /// Strikes where a rule says so, at step `step` of this process (1 is the first), which computes requests with
    /// these prompts. Returns what the step after it finds.
    pub fn at_step<'a>(
        &self,
        step: u64,
        prompts: impl Iterator<Item = &'a [TokenId]> + Clone,
    ) -> BlockSupply {
        let mut supply = BlockSupply::Real;
        for fault in self.due(step, prompts) {
            self.strike(fault, step);
            if fault == Fault::OutOfBlocks {
                supply = BlockSupply::Refused;
            }
        }
        supply
    }

    /// Whether the frame about to be sent is to be damaged; asking takes the order back.
    pub fn take_corruption(&self) -> bool {
        self.corrupts_next_frame.swap(false, Ordering::Relaxed)
    }

    fn due<'a>(&self, step: u64, prompts: impl Iterator<Item = &'a [TokenId]> + Clone) -> Vec<Fault> {
        let is_due = |&(index, rule): &(usize, &Rule)| {
            !rule.at_load
                && rule.step.is_none_or(|wanted| wanted == step)
                && self.draws(index, step)
                && rule.token.is_none_or(|token| prompts.clone().any(|prompt| prompt.contains(&token)))
                // Last, since it makes the file.
                && claims(rule)
        };
        self.rules.iter().enumerate().filter(is_due).map(|(_, rule)| rule.fault).collect()
    }

    fn draws(&self, index: usize, step: u64) -> bool {
        let rule = &self.rules[index];
        // Rules draw apart from each other; no process makes 2^48 steps.
        let draw = || uniform(rule.seed.unwrap_or(self.seed), step ^ (index as u64) << 48);
        rule.probability.is_none_or(|probability| draw() < probability)
    }

    /// Does what a fault is, as far as it is not the caller's to do.
    fn strike(&self, fault: Fault, step: u64) {
        // Slow steps may be all of them.
        if !matches!(fault, Fault::Slow(_)) {
            tracing::warn!(?fault, step, "injected fault strikes");
        }
        match fault {
            Fault::Die(signal) => die(signal),
            #[expect(clippy::panic, reason = "this is the fault asked for")]
            Fault::Panic => panic!("panic because {FAULT_VARIABLE} says so"),
            Fault::Exit(code) => std::process::exit(i32::from(code)),
            Fault::Hang => loop {
                std::thread::park();
            },
            Fault::Slow(pause) => std::thread::sleep(pause),
            Fault::OutOfMemory => {
                std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; ALLOCATION_BYTES]>())
            }
            Fault::Corrupt => self.corrupts_next_frame.store(true, Ordering::Relaxed),
            Fault::OutOfBlocks | Fault::LoadFail => {}
        }
    }
}

/// Whether a rule that strikes once is the first to do so, over all processes that share its file.
fn claims(rule: &Rule) -> bool {
    let Some(path) = &rule.once else { return true };
    // Any other failure than the file being there also means no strike: a test notices one that is missing.
    std::fs::File::create_new(path).is_ok()
}

fn die(signal: Signal) -> ! {
    loop {
        // The runtime's own handler of SIGSEGV takes the first one, finds no overflown stack, and removes itself.
        let _ = raise(signal);
    }
}

#[cfg(test)]
mod tests;
