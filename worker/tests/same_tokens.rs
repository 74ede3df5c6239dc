//! Promise P3 on real models: a request gets the same tokens and the same log probabilities, to the bit, whatever it
//! is batched with, however its prompt is chunked, whether its prefix was cached, wherever it is resumed, and whenever
//! it was preempted, on every instruction set and number of threads.
//!
//! The engine is the real one, driven through its event channel; truth is each request served alone, its prompt in one
//! chunk, nothing cached. Log probabilities come from the whole row of logits, so equal bits there mean equal logits.

#![expect(clippy::expect_used, reason = "a panic is how a test fails")]

use flate2::read::GzDecoder;
use kernels::cpu::{Cpu, Isa};
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::FromWorker;
use shared::ipc::message::{EngineStats, FinishReason, RequestLimits, Submit, TokenEvent, WorkerLimits};
use shared::sampling::SamplingParams;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use worker::backend::{BLOCK_TOKENS, CpuBackend, KvType};
use worker::engine::{EVENTS_MAX, Engine, Event, MESSAGES_MAX};
use worker::model;
use worker::scheduler::{PrefixCache, SchedulerConfig};
use worker::speculation::Speculation;

const CONTEXT_TOKENS: u32 = 1024;
/// Enough for every request of this file at once.
const ROOMY_BLOCKS: u32 = 1024;

/// A token with the bits of its log probability and of the alternatives'.
type Emitted = (TokenId, u32, Vec<(TokenId, u32)>);

/// What one request got.
#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    emitted: Vec<Emitted>,
    end: Option<FinishReason>,
}

type Answers = BTreeMap<RequestId, Answer>;

/// A model file unpacked for one test.
struct ModelFile {
    path: PathBuf,
    vocab_size: u32,
    _directory: Option<tempfile::TempDir>,
}

impl ModelFile {
    fn at(path: PathBuf, directory: Option<tempfile::TempDir>) -> Self {
        let vocab_size = model::open(&path).expect("model opens").spec().vocab_size as u32;
        Self { path, vocab_size, _directory: directory }
    }

    /// The demo model that the product embeds: Q8_0.
    fn demo() -> Self {
        Self::at(root().join("gateway/demo/rocmforge-demo.gguf"), None)
    }

    /// A model of tests/golden/models.
    fn golden(family: &str, file: &str) -> Self {
        let packed = root().join("tests/golden/models").join(family).join(format!("{file}.gz"));
        let mut bytes = Vec::new();
        let packed = std::fs::File::open(&packed).expect("golden model");
        GzDecoder::new(packed).read_to_end(&mut bytes).expect("gzip data");
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(file);
        std::fs::write(&path, bytes).expect("unpacked model");
        Self::at(path, Some(directory))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// How requests are served.
#[derive(Debug, Clone, Copy)]
struct Setting {
    isa: Isa,
    threads: usize,
    kv_type: KvType,
    sequences: u32,
    step_tokens: u32,
    kv_blocks: u32,
    prefix_cache: PrefixCache,
    speculation: Speculation,
}

impl Setting {
    /// One request at a time, each prompt in one chunk, nothing remembered.
    fn alone() -> Self {
        Self {
            isa: Isa::detect(),
            threads: 2,
            kv_type: KvType::F16,
            sequences: 1,
            step_tokens: CONTEXT_TOKENS,
            kv_blocks: ROOMY_BLOCKS,
            prefix_cache: PrefixCache::Off,
            speculation: Speculation::Off,
        }
    }

    fn together(sequences: u32, step_tokens: u32) -> Self {
        Self { sequences, step_tokens, ..Self::alone() }
    }

    fn config(&self) -> SchedulerConfig {
        SchedulerConfig {
            limits: WorkerLimits {
                context_tokens: CONTEXT_TOKENS,
                sequences: self.sequences,
                waiting: EVENTS_MAX as u32,
                kv_blocks: self.kv_blocks,
                kv_block_tokens: BLOCK_TOKENS,
            },
            step_tokens: self.step_tokens,
            vocab_size: 0,
            prefix_cache: self.prefix_cache,
            speculation: self.speculation,
        }
    }
}

/// What serving some requests led to.
struct Served {
    answers: Answers,
    stats: EngineStats,
    /// Most tokens emitted by one step.
    widest_step: usize,
}

/// Serves `waves` of requests one after the other by one engine; the requests of a wave arrive together.
fn serve(file: &ModelFile, setting: Setting, waves: &[Vec<Submit>]) -> Served {
    let opened = model::open(&file.path).expect("model opens");
    let cpu = Cpu::new(setting.isa, setting.threads).expect("available instruction set");
    let blocks = setting.kv_blocks as usize;
    let model = opened.load(CpuBackend::new(cpu), blocks, setting.kv_type, &mut |_| ()).expect("model loads");
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let (gateway, mut messages) = mpsc::channel(MESSAGES_MAX);
    let post = |event| events.blocking_send(event).expect("engine lives");
    post(Event::Connected(gateway));
    let mut served = Served { answers: Answers::new(), stats: EngineStats::default(), widest_step: 0 };
    let mut engine = Some((Engine::new(model, setting.config(), || 0), inbox));
    let mut thread = None;
    for wave in waves {
        for submit in wave {
            served.answers.insert(submit.id, Answer::default());
            post(Event::Submit(Box::new(submit.clone())));
        }
        // Started with the first wave in its channel, so that its requests are seen together.
        if let Some((engine, inbox)) = engine.take() {
            thread = Some(std::thread::spawn(move || engine.run(inbox)));
        }
        while served.answers.values().any(|answer| answer.end.is_none()) {
            served.record(messages.blocking_recv().expect("engine lives"));
        }
    }
    post(Event::Shutdown);
    thread.expect("at least one wave").join().expect("engine does not panic").expect("engine does not fail");
    served
}

impl Served {
    fn record(&mut self, message: FromWorker) {
        match message {
            FromWorker::Step { events, stats } => {
                self.stats = stats;
                self.widest_step = self.widest_step.max(events.len());
                events.into_iter().for_each(|event| self.record_token(event));
            }
            FromWorker::Finished { id, reason, .. } => {
                self.answers.get_mut(&id).expect("known request").end = Some(reason);
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn record_token(&mut self, event: TokenEvent) {
        let logprobs = event.logprobs.expect("every request of this file asks for them");
        let top = logprobs.top.iter().map(|&(token, logprob)| (token, logprob.to_bits())).collect();
        let answer = self.answers.get_mut(&event.id).expect("known request");
        answer.emitted.push((event.token, logprobs.logprob.to_bits(), top));
    }
}

/// The text whose beginning prompts share; no request has this id.
const COMMON_TEXT: u64 = 1 << 20;

/// Token `index` of an endless text: the same for the same seed.
fn token(file: &ModelFile, seed: u64, index: usize) -> TokenId {
    let mixed = (seed << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29) % u64::from(file.vocab_size)) as TokenId
}

/// Request `id`: its prompt shares the first `shared` tokens with all others and has `own` of its own.
fn request(file: &ModelFile, id: u64, shared: usize, own: usize) -> Submit {
    let common = (0..shared).map(|index| token(file, COMMON_TEXT, index));
    let prompt = common.chain((0..own).map(|index| token(file, id, index))).collect();
    let sampling = match id % 4 {
        0 => SamplingParams::greedy(),
        1 => SamplingParams::default(),
        2 => SamplingParams {
            temperature: 0.7,
            top_k: 20,
            repetition_penalty: 1.2,
            ..SamplingParams::default()
        },
        _ => SamplingParams { top_p: 0.9, min_p: 0.02, frequency_penalty: 0.5, ..SamplingParams::default() },
    };
    let stop_tokens = (0..file.vocab_size).filter(|token| token % 37 == id as u32 % 37).collect();
    Submit {
        id: RequestId(id),
        attempt: Attempt(0),
        prompt,
        emitted: Vec::new(),
        sampling: SamplingParams { seed: id, logprobs: Some(5), ..sampling },
        limits: RequestLimits { max_tokens: 20, min_tokens: 12, stop_tokens, priority: 0 },
    }
}

/// Requests with prompts around the borders of blocks, some alike for a while, one across a partition of attention.
fn requests(file: &ModelFile, count: usize) -> Vec<Submit> {
    const SHAPES: [(usize, usize); 12] = [
        (0, 1),
        (16, 0),
        (16, 1),
        (32, 15),
        (33, 7),
        (48, 0),
        (47, 1),
        (0, 64),
        (32, 31),
        (15, 2),
        (64, 40),
        (8, 9),
    ];
    let shape = |index: usize| if index == 5 { (500, 29) } else { SHAPES[index % SHAPES.len()] };
    (0..count).map(|index| (index, shape(index))).map(|(i, (s, o))| request(file, i as u64, s, o)).collect()
}

/// Each request alone.
fn truth(file: &ModelFile, setting: Setting, requests: &[Submit]) -> Answers {
    let alone =
        Setting { sequences: 1, step_tokens: CONTEXT_TOKENS, prefix_cache: PrefixCache::Off, ..setting };
    let served = serve(file, alone, &[requests.to_vec()]);
    assert!(served.widest_step == 1, "not alone");
    served.answers
}

#[track_caller]
fn assert_same(actual: &Answers, expected: &Answers, context: &dyn std::fmt::Debug) {
    for (id, answer) in actual {
        assert_eq!(answer, &expected[id], "request {id}: {context:?}");
    }
}

/// The files every scenario is run on: Q8_0, and K-quants under Llama 3 rope factors.
fn files() -> [ModelFile; 2] {
    [ModelFile::demo(), ModelFile::golden("llama", "llama-Q4_K_M.gguf")]
}

#[test]
fn batches_change_no_bit() {
    for file in files() {
        let requests = requests(&file, 64);
        let expected = truth(&file, Setting::alone(), &requests);
        for count in [2, 3, 5, 8, 16, 33, 64] {
            let setting = Setting::together(count as u32, 512);
            let served = serve(&file, setting, &[requests[..count].to_vec()]);
            assert!(2 * served.widest_step > count, "{setting:?}: {} tokens in a step", served.widest_step);
            assert_same(&served.answers, &expected, &setting);
        }
    }
}

#[test]
fn chunks_change_no_bit() {
    for file in files() {
        let requests = requests(&file, 8);
        let expected = truth(&file, Setting::alone(), &requests);
        for step_tokens in [1, 2, 3, 7, 16, 17, 31, 64, 100, 512] {
            // A step has room for every sequence, so few tokens mean few sequences.
            let setting = Setting::together(step_tokens.min(4), step_tokens);
            let served = serve(&file, setting, std::slice::from_ref(&requests));
            assert_same(&served.answers, &expected, &setting);
        }
    }
}

#[test]
fn cached_prefixes_change_no_bit() {
    for file in files() {
        let requests = requests(&file, 24);
        let expected = truth(&file, Setting::alone(), &requests);
        for (sequences, step_tokens) in [(1, 512), (6, 40), (24, 512)] {
            let setting =
                Setting { prefix_cache: PrefixCache::On, ..Setting::together(sequences, step_tokens) };
            let first = serve(&file, setting, std::slice::from_ref(&requests));
            assert_same(&first.answers, &expected, &setting);
            // The second time whole prompts are found, answers included.
            let again: Vec<Submit> =
                requests.iter().map(|s| Submit { id: RequestId(s.id.0 + 1000), ..s.clone() }).collect();
            let served = serve(&file, setting, &[requests.clone(), again]);
            assert!(
                served.stats.prefix_hits > 2 * first.stats.prefix_hits,
                "{setting:?}: {:?}",
                served.stats
            );
            let (second, first): (Answers, Answers) =
                served.answers.into_iter().partition(|(id, _)| id.0 >= 1000);
            assert_same(&first, &expected, &setting);
            let second = second.into_iter().map(|(id, answer)| (RequestId(id.0 - 1000), answer)).collect();
            assert_same(&second, &expected, &setting);
        }
    }
}

#[test]
fn resuming_after_any_token_changes_no_bit() {
    for file in files() {
        let requests = requests(&file, 12);
        let expected = truth(&file, Setting::alone(), &requests);
        for prefix_cache in [PrefixCache::Off, PrefixCache::On] {
            let setting = Setting { prefix_cache, ..Setting::together(16, 96) };
            let mut resumed = Vec::new();
            let mut rest = Answers::new();
            for (number, request) in requests.iter().enumerate() {
                let answer = &expected[&request.id];
                for k in (number % 3..answer.emitted.len()).step_by(3) {
                    let id = RequestId(request.id.0 + 1000 * k as u64);
                    let emitted = answer.emitted[..k].iter().map(|&(token, ..)| token).collect();
                    resumed.push(Submit { id, emitted, attempt: Attempt(1), ..request.clone() });
                    rest.insert(id, Answer { emitted: answer.emitted[k..].to_vec(), end: answer.end });
                }
            }
            // In waves, since the engine's event channel is as long as it is.
            let waves: Vec<Vec<Submit>> = resumed.chunks(20).map(<[Submit]>::to_vec).collect();
            let served = serve(&file, setting, &waves);
            assert_eq!(served.answers.len(), rest.len());
            assert_same(&served.answers, &rest, &setting);
        }
    }
}

/// Requests whose prompts say the same thing over and over, so that there is much to guess.
fn repetitive_requests(file: &ModelFile) -> Vec<Submit> {
    let repetitive = |id: u64| {
        let mut submit = request(file, id, 0, 11 + id as usize);
        submit.prompt = submit.prompt.repeat(6);
        submit.limits = RequestLimits { max_tokens: 90, min_tokens: 60, ..submit.limits };
        submit
    };
    // Every other one greedy, so that answers repeat themselves too.
    (0..8).map(|id| repetitive(if id % 2 == 0 { 4 * id } else { id })).collect()
}

#[test]
fn speculation_changes_no_bit() {
    for file in files() {
        let requests = repetitive_requests(&file);
        let expected = truth(&file, Setting::alone(), &requests);
        for (sequences, step_tokens, prefix_cache) in [
            (1, 512, PrefixCache::Off),
            (1, 7, PrefixCache::On),
            (3, 40, PrefixCache::On),
            (7, 512, PrefixCache::Off),
        ] {
            let speculation = Speculation::Auto;
            let setting = Setting {
                prefix_cache,
                speculation,
                kv_blocks: 70,
                ..Setting::together(sequences, step_tokens)
            };
            let served = serve(&file, setting, std::slice::from_ref(&requests));
            let EngineStats { drafted, accepted, .. } = served.stats;
            assert!(
                drafted > accepted && accepted > 0,
                "{setting:?}: {accepted} of {drafted} drafts were right"
            );
            assert_eq!(served.stats.kv_blocks_free, served.stats.kv_blocks_total, "blocks leak");
            assert_same(&served.answers, &expected, &setting);
        }
    }
}

#[test]
fn preemption_changes_no_bit() {
    for file in files() {
        let mut requests = requests(&file, 24);
        // Answers of several blocks outgrow what admission sets aside for them.
        requests.iter_mut().for_each(|request| request.limits.max_tokens = 80);
        requests.iter_mut().for_each(|request| request.limits.min_tokens = 60);
        let expected = truth(&file, Setting::alone(), &requests);
        for prefix_cache in [PrefixCache::Off, PrefixCache::On] {
            // Hardly more than the longest request needs, 609 tokens.
            let setting = Setting { prefix_cache, kv_blocks: 40, ..Setting::together(16, 64) };
            let served = serve(&file, setting, std::slice::from_ref(&requests));
            assert!(served.stats.preemptions > 0, "{setting:?}: nothing was preempted");
            assert_eq!(served.stats.kv_blocks_free, served.stats.kv_blocks_total, "blocks leak");
            assert_same(&served.answers, &expected, &setting);
        }
    }
}

#[test]
fn threads_instruction_sets_and_cache_types_change_no_bit() {
    for file in files() {
        let requests = requests(&file, 5);
        for kv_type in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let expected = truth(&file, Setting { kv_type, ..Setting::alone() }, &requests);
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let setting = Setting { isa, threads, kv_type, ..Setting::together(5, 23) };
                    let served = serve(&file, setting, std::slice::from_ref(&requests));
                    assert_same(&served.answers, &expected, &setting);
                }
            }
        }
    }
}

/// Everything above once more over a cache of bytes, one setting of each kind on one file.
#[test]
fn over_a_cache_of_bytes_nothing_changes_a_bit_either() {
    let file = ModelFile::golden("llama", "llama-Q4_K_M.gguf");
    let bytes = Setting { kv_type: KvType::Q8_0, ..Setting::alone() };
    let mut requests = requests(&file, 12);
    requests.iter_mut().for_each(|request| request.limits.max_tokens = 50);
    requests.iter_mut().for_each(|request| request.limits.min_tokens = 40);
    let expected = truth(&file, bytes, &requests);
    let halves = truth(&file, Setting::alone(), &requests);
    assert!(halves != expected, "the cache's type shows in no log probability");
    let settings = [
        Setting { sequences: 12, step_tokens: 512, ..bytes },
        Setting { sequences: 4, step_tokens: 17, ..bytes },
        Setting { sequences: 6, step_tokens: 40, prefix_cache: PrefixCache::On, ..bytes },
        Setting { sequences: 12, step_tokens: 64, kv_blocks: 40, prefix_cache: PrefixCache::On, ..bytes },
        Setting { sequences: 3, step_tokens: 40, speculation: Speculation::Auto, ..bytes },
    ];
    for setting in settings {
        // The second wave finds whole prompts, where the cache remembers: the last token is then computed in a copy.
        let again: Vec<Submit> =
            requests.iter().map(|s| Submit { id: RequestId(s.id.0 + 1000), ..s.clone() }).collect();
        let served = serve(&file, setting, &[requests.clone(), again]);
        assert_eq!(served.stats.kv_blocks_free, served.stats.kv_blocks_total, "blocks leak");
        if setting.prefix_cache == PrefixCache::On {
            assert!(served.stats.prefix_hits > 0, "{setting:?}: nothing was found");
        }
        if setting.kv_blocks < ROOMY_BLOCKS {
            assert!(served.stats.preemptions > 0, "{setting:?}: nothing was preempted");
        }
        for (id, answer) in &served.answers {
            assert_eq!(answer, &expected[&RequestId(id.0 % 1000)], "request {id}: {setting:?}");
        }
    }
    for request in &requests[..4] {
        let answer = &expected[&request.id];
        let emitted = answer.emitted[..11].iter().map(|&(token, ..)| token).collect();
        let resumed = Submit { emitted, attempt: Attempt(1), ..request.clone() };
        let served = serve(&file, bytes, &[vec![resumed]]);
        assert_eq!(served.answers[&request.id].emitted, answer.emitted[11..], "request {}", request.id);
    }
}
