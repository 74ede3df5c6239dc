//! Golden models: reading the data, running a model over its prompts, comparing.

use flate2::read::GzDecoder;
use kernels::cpu::{Cpu, Isa};
use serde_json::Value;
use shared::ids::TokenId;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use worker::backend::{BLOCK_TOKENS, CpuBackend, KvType, ReferenceBackend};
use worker::batch::{Batch, Forward};
use worker::commands::AnyModel;
use worker::model;

/// How far logits may be from the golden ones.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) max_abs: f64,
    pub(crate) max_kl: f64,
    /// Share of positions whose most likely token agrees.
    pub(crate) top1_share: f64,
}

/// A backend with its settings.
#[derive(Clone, Copy)]
pub(crate) struct Runner {
    /// `None` is the reference backend, or the GPU.
    isa: Option<Isa>,
    /// The first GPU, or the stand-in for one.
    hip: bool,
    pub(crate) kv_type: KvType,
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hip {
            return write!(f, "gpu with {:?} cache", self.kv_type);
        }
        write!(f, "{:?} with {:?} cache", self.isa, self.kv_type)
    }
}

impl Runner {
    pub(crate) fn reference() -> Self {
        Self { isa: None, hip: false, kv_type: KvType::F32 }
    }

    /// The GPU, as `--device hip` takes it.
    #[cfg(feature = "hip")]
    #[allow(dead_code, reason = "golden_hip alone uses it")]
    pub(crate) fn hip(kv_type: KvType) -> Self {
        Self { isa: None, hip: true, kv_type }
    }

    /// The CPU backend, each instruction set with each cache type.
    pub(crate) fn cpu_all() -> Vec<Self> {
        let kinds = [KvType::F32, KvType::F16, KvType::Q8_0];
        Isa::available()
            .into_iter()
            .flat_map(|isa| kinds.map(|kv_type| Self { isa: Some(isa), hip: false, kv_type }))
            .collect()
    }

    /// The CPU backend with the best instruction set here, with each cache type.
    pub(crate) fn best() -> Vec<Self> {
        Self::cpu_all().into_iter().filter(|runner| runner.isa == Some(Isa::detect())).collect()
    }

    /// Those of them that the golden data has tolerances for.
    pub(crate) fn best_known() -> Vec<Self> {
        Self::best().into_iter().filter(|runner| runner.kv_type != KvType::Q8_0).collect()
    }

    pub(crate) fn best_with(kv_type: KvType) -> Self {
        Self { isa: Some(Isa::detect()), hip: false, kv_type }
    }

    pub(crate) fn reference_and_best() -> Vec<Self> {
        std::iter::once(Self::reference()).chain(Self::best_known()).collect()
    }

    /// The other instruction sets with the same cache type.
    pub(crate) fn others(&self) -> Vec<Self> {
        let alike = |runner: &Self| runner.isa != self.isa && runner.kv_type == self.kv_type;
        Self::cpu_all().into_iter().filter(alike).collect()
    }

    /// Tokens of a prompt worth computing once the best instruction set has been held to the golden data: the
    /// portable path calls a function for every fused multiply-add, so it gets one whole block and some more.
    pub(crate) fn tokens_affordable(&self) -> usize {
        if self.isa == Some(Isa::Portable) { 21 } else { usize::MAX }
    }

    fn load(&self, path: &std::path::Path, blocks: usize) -> AnyModel {
        let opened = model::open(path).expect("golden model opens");
        #[cfg(feature = "hip")]
        if self.hip {
            let backend = worker::backend::HipBackend::open(0).expect("a gpu");
            return Box::new(opened.load(backend, blocks, self.kv_type, &mut |_| ()).expect("loads"));
        }
        match self.isa {
            None => {
                Box::new(opened.load(ReferenceBackend, blocks, self.kv_type, &mut |_| ()).expect("loads"))
            }
            Some(isa) => {
                // Two threads even on one core, so that work is split.
                let backend = CpuBackend::new(Cpu::new(isa, 2).expect("available instruction set"));
                Box::new(opened.load(backend, blocks, self.kv_type, &mut |_| ()).expect("loads"))
            }
        }
    }
}

/// Golden logits of some positions of some prompts.
pub(crate) struct Logits {
    sections: Vec<Section>,
}

struct Section {
    prompt: usize,
    first_position: usize,
    rows: Vec<Vec<f32>>,
}

/// Greedy tokens of one prompt and the margin between best and second best at each step.
pub(crate) struct Greedy {
    tokens: Vec<TokenId>,
    margins: Vec<f64>,
}

/// One model's folder.
pub(crate) struct Golden {
    name: String,
    description: Value,
    files: tempfile::TempDir,
}

fn data_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models")
}

fn unzip(path: &std::path::Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).expect("gzip data");
    bytes
}

fn numbers<T>(value: &Value, convert: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().expect("array").iter().map(convert).collect()
}

fn tokens(value: &Value) -> Vec<TokenId> {
    numbers(value, |token| token.as_u64().expect("token") as TokenId)
}

impl Logits {
    pub(crate) fn of_all_prompts(golden: &Golden) -> Self {
        golden.read_logits(&golden.description["logits"])
    }
}

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let json = unzip(&data_directory().join(name).join("golden.json.gz"));
        let description = serde_json::from_slice(&json).expect("golden.json");
        Self { name: name.to_owned(), description, files: tempfile::tempdir().expect("temporary directory") }
    }

    fn unpack(&self, file: &str) -> PathBuf {
        let path = self.files.path().join(file);
        if !path.exists() {
            let packed = data_directory().join(&self.name).join(format!("{file}.gz"));
            std::fs::write(&path, unzip(&packed)).expect("unpacked model");
        }
        path
    }

    fn prompts(&self) -> Vec<Vec<TokenId>> {
        numbers(&self.description["prompts"], |prompt| tokens(&prompt["tokens"]))
    }

    fn read_logits(&self, description: &Value) -> Logits {
        let file = description["file"].as_str().expect("file name");
        let bytes = unzip(&data_directory().join(&self.name).join(format!("{file}.gz")));
        let sections = numbers(&description["sections"], |section| {
            let field = |name: &str| section[name].as_u64().expect("number") as usize;
            let width = field("n_vocab") * size_of::<f32>();
            let data = &bytes[field("offset")..field("offset") + field("positions") * width];
            let rows = data.chunks_exact(width).map(|row| {
                row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            });
            Section { prompt: field("prompt"), first_position: field("first_position"), rows: rows.collect() }
        });
        Logits { sections }
    }

    pub(crate) fn quantized_logits(&self, kind: &str) -> Logits {
        self.read_logits(&self.description["quantized"][kind]["exact"]["logits"])
    }

    pub(crate) fn greedy(&self) -> Vec<Greedy> {
        numbers(&self.description["prompts"], |prompt| {
            let tokens = tokens(&prompt["greedy"]);
            let margin = prompt["greedy_min_margin"].as_f64().expect("margin");
            Greedy { margins: vec![margin; tokens.len()], tokens }
        })
    }

    pub(crate) fn quantized_greedy(&self, kind: &str) -> Vec<Greedy> {
        let exact = &self.description["quantized"][kind]["exact"];
        let margins = numbers(&exact["greedy_margins"], |row| numbers(row, |m| m.as_f64().expect("margin")));
        numbers(&exact["greedy"], tokens)
            .into_iter()
            .zip(margins)
            .map(|(tokens, margins)| Greedy { tokens, margins })
            .collect()
    }

    pub(crate) fn llama_cpp_vs_exact(&self, kind: &str) -> Tolerance {
        let lost = &self.description["quantized"][kind]["llama_cpp_vs_exact"];
        let field = |name: &str| lost[name].as_f64().expect("number");
        Tolerance { max_abs: field("max_abs"), max_kl: field("max_kl"), top1_share: field("top1_agree") }
    }

    /// Runs every prompt in one pass and holds the logits against `expected`.
    pub(crate) fn compare(&self, runner: &Runner, file: &str, expected: &Logits, tolerance: Tolerance) {
        let prompts = self.prompts();
        let mut agreement = Agreement::default();
        for section in &expected.sections {
            let actual = Session::new(self, runner, file).prefill(&prompts[section.prompt], &[usize::MAX]);
            for (index, expected) in section.rows.iter().enumerate() {
                agreement.add(&actual[section.first_position + index], expected);
            }
        }
        agreement.check(&format!("{file} on {runner}"), tolerance);
    }

    /// Runs every prompt in one pass with both and holds the logits of `runner` against those of `other`.
    pub(crate) fn compare_runs(&self, runner: &Runner, other: &Runner, file: &str, tolerance: Tolerance) {
        self.agreement(runner, other, file).check(&format!("{file}: {runner} beside {other}"), tolerance);
    }

    /// How far the logits of `runner` are from those of `other` over all prompts.
    pub(crate) fn loss(&self, runner: &Runner, other: &Runner, file: &str) -> Tolerance {
        let Agreement { max_abs, max_kl, .. } = self.agreement(runner, other, file);
        Tolerance { max_abs, max_kl, top1_share: 1.0 }
    }

    fn agreement(&self, runner: &Runner, other: &Runner, file: &str) -> Agreement {
        let mut agreement = Agreement::default();
        for prompt in self.prompts() {
            let run = |runner| Session::new(self, runner, file).prefill(&prompt, &[usize::MAX]);
            for (actual, expected) in run(runner).iter().zip(run(other)) {
                agreement.add(actual, &expected);
            }
        }
        agreement
    }

    /// Follows the golden greedy path; every step whose margin exceeds the tolerance must choose alike.
    /// Returns how many steps these were.
    pub(crate) fn greedy_continues_alike(
        &self,
        runner: &Runner,
        file: &str,
        greedy: &[Greedy],
        tolerance: f64,
    ) -> usize {
        let mut steps = 0;
        for (prompt, greedy) in self.prompts().iter().zip(greedy) {
            let mut session = Session::new(self, runner, file);
            let mut last = session.prefill(prompt, &[usize::MAX]).pop().expect("at least one position");
            for (step, (token, margin)) in greedy.tokens.iter().zip(&greedy.margins).enumerate() {
                // A near tie may go either way. The golden token is fed in any case, so later steps still count.
                if *margin > tolerance {
                    assert_eq!(argmax(&last), *token, "{file} on {runner}: greedy step {step}");
                    steps += 1;
                }
                last = session.decode(*token);
            }
        }
        steps
    }

    /// For each prompt, cut to `tokens_max`, the logits of every position, computed in one pass.
    pub(crate) fn all_logits(&self, runner: &Runner, file: &str, tokens_max: usize) -> Vec<Vec<Vec<u32>>> {
        let prompts = self.prompts();
        let cut = prompts.iter().map(|prompt| &prompt[..prompt.len().min(tokens_max)]);
        cut.map(|prompt| bits(Session::new(self, runner, file).prefill(prompt, &[usize::MAX]))).collect()
    }

    /// The longest prompt alone in one pass, in chunks of several sizes, token by token, and beside others.
    pub(crate) fn chunked_and_batched_agree(&self, runner: &Runner, file: &str) {
        let prompts = self.prompts();
        let longest = prompts.iter().max_by_key(|prompt| prompt.len()).expect("prompts");
        let prompt = &longest[..longest.len().min(70).min(runner.tokens_affordable())];
        let whole = bits(Session::new(self, runner, file).prefill(prompt, &[usize::MAX]));
        for chunks in [vec![1], vec![3], vec![16], vec![17, 1, 31], vec![64]] {
            let chunked = bits(Session::new(self, runner, file).prefill(prompt, &chunks));
            assert_eq!(whole, chunked, "{file} on {runner}: chunks of {chunks:?}");
        }
        let others: Vec<&[TokenId]> = prompts.iter().map(|prompt| &prompt[..prompt.len().min(29)]).collect();
        let beside = bits(Session::new(self, runner, file).prefill_beside(prompt, &others));
        assert_eq!(whole, beside, "{file} on {runner}: beside other sequences");
    }
}

fn bits(rows: Vec<Vec<f32>>) -> Vec<Vec<u32>> {
    rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

/// A model with the cache of one sequence (and some blocks for others).
struct Session {
    model: AnyModel,
    block_table: Vec<u32>,
    other_blocks: u32,
    position: u32,
}

/// Blocks for one sequence: the longest golden prompt with its continuation.
const SEQUENCE_BLOCKS: u32 = 32;
/// Blocks of each neighbour in a batch.
const NEIGHBOUR_BLOCKS: u32 = 4;

impl Session {
    fn new(golden: &Golden, runner: &Runner, file: &str) -> Self {
        let total = SEQUENCE_BLOCKS + 8 * NEIGHBOUR_BLOCKS;
        let model = runner.load(&golden.unpack(file), total as usize);
        // Blocks out of order, as a real pool hands them out.
        let block_table = (0..SEQUENCE_BLOCKS).map(|block| block * 5 % SEQUENCE_BLOCKS).collect();
        Self { model, block_table, other_blocks: SEQUENCE_BLOCKS, position: 0 }
    }

    /// Logits of all positions of `prompt`, computed in chunks of the sizes given, in turn.
    fn prefill(&mut self, prompt: &[TokenId], chunks: &[usize]) -> Vec<Vec<f32>> {
        let mut rest = prompt;
        let mut logits = Vec::new();
        for size in chunks.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, next) = rest.split_at(rest.len().min(*size));
            logits.extend(self.run(chunk));
            rest = next;
        }
        logits
    }

    fn decode(&mut self, token: TokenId) -> Vec<f32> {
        self.run(&[token]).pop().expect("one row")
    }

    fn run(&mut self, chunk: &[TokenId]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        let rows = batch.push(chunk, self.position, &self.block_table, BLOCK_TOKENS);
        batch.logit_rows.extend(rows);
        self.position += chunk.len() as u32;
        self.forward(&batch)
    }

    /// Logits of all positions of `prompt` in a batch with other sequences before and after it.
    fn prefill_beside(&mut self, prompt: &[TokenId], others: &[&[TokenId]]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        let (before, after) = others.split_at(others.len() / 2);
        for other in before {
            self.push_other(&mut batch, other);
        }
        let rows = batch.push(prompt, 0, &self.block_table, BLOCK_TOKENS);
        for other in after {
            self.push_other(&mut batch, other);
        }
        batch.logit_rows.extend(rows);
        self.forward(&batch)
    }

    fn push_other(&mut self, batch: &mut Batch, tokens: &[TokenId]) {
        let table: Vec<u32> = (self.other_blocks..self.other_blocks + NEIGHBOUR_BLOCKS).collect();
        self.other_blocks += NEIGHBOUR_BLOCKS;
        batch.push(tokens, 0, &table, BLOCK_TOKENS);
    }

    fn forward(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let width = self.model.vocab_size();
        self.model.forward(batch).expect("forward").chunks_exact(width).map(<[f32]>::to_vec).collect()
    }
}

fn argmax(row: &[f32]) -> TokenId {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.expect("logits").0 as TokenId
}

/// How far two sets of logit rows are apart.
#[derive(Default)]
struct Agreement {
    rows: usize,
    same_top: usize,
    /// Rows whose golden best and second best are within the difference seen: either may win.
    max_abs: f64,
    max_kl: f64,
    /// Smallest golden margin of a row whose top differs.
    lost_margins: Vec<f64>,
}

impl Agreement {
    fn add(&mut self, actual: &[f32], expected: &[f32]) {
        self.rows += 1;
        for (actual, expected) in actual.iter().zip(expected) {
            self.max_abs = self.max_abs.max(f64::from((actual - expected).abs()));
        }
        let (p, q) = (log_softmax(expected), log_softmax(actual));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        self.max_kl = self.max_kl.max(kl);
        if argmax(actual) == argmax(expected) {
            self.same_top += 1;
        } else {
            let mut sorted = expected.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            self.lost_margins.push(f64::from(sorted[0] - sorted[1]));
        }
    }

    fn check(&self, what: &str, tolerance: Tolerance) {
        assert!(self.rows > 0, "{what}: nothing compared");
        let found = format!(
            "{what}: max abs {:.2e} (limit {:.2e}), KL {:.2e} (limit {:.2e}), same top {} of {} (margins lost: {:?})",
            self.max_abs,
            tolerance.max_abs,
            self.max_kl,
            tolerance.max_kl,
            self.same_top,
            self.rows,
            self.lost_margins
        );
        println!("{found}");
        assert!(self.max_abs <= tolerance.max_abs, "{found}");
        assert!(self.max_kl <= tolerance.max_kl, "{found}");
        // A row whose golden margin is below the tolerance can go either way.
        let undecided = self.lost_margins.iter().filter(|margin| **margin <= tolerance.max_abs).count();
        let share = (self.same_top + undecided) as f64 / self.rows as f64;
        assert!(share >= tolerance.top1_share, "{found}");
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().map(|x| f64::from(*x)).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = row.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    row.iter().map(|x| f64::from(*x) - largest - total.ln()).collect()
}
