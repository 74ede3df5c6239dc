//! The messages themselves. Field order and variant order are the wire format: append, never reorder, and raise
//! [`super::PROTOCOL_VERSION`].

use crate::ids::{Attempt, RequestId, TokenId};
use crate::sampling::SamplingParams;
use bincode::{Decode, Encode};

/// Gateway → worker.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ToWorker {
    /// First message on a connection.
    Hello {
        /// The gateway's [`super::PROTOCOL_VERSION`].
        version: u32,
    },
    /// Generate for one request. Answered by `Step` events and one `Finished`, or by one `Rejected`.
    Submit(Box<Submit>),
    /// Stop a request and free its blocks within one step. Unknown ids are ignored: the request may just have ended.
    Cancel {
        /// The request.
        id: RequestId,
        /// The attempt meant; another attempt of the same id is not touched.
        attempt: Attempt,
    },
    /// Answered by `Heartbeat` at once and, once the model is loaded, by `Pong` with the same nonce from the engine's
    /// own thread between two steps.
    Ping {
        /// Returned as it is.
        nonce: u64,
    },
    /// Take no further `Submit` (they are rejected), finish what runs.
    Drain,
    /// Exit now with code 0.
    Shutdown,
}

/// One request, complete: the worker keeps no state about it from before.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Submit {
    /// The request.
    pub id: RequestId,
    /// 0 at first, one more after each worker lost.
    pub attempt: Attempt,
    /// Prompt tokens; at least one.
    pub prompt: Vec<TokenId>,
    /// Tokens already emitted to the client by earlier attempts; the next token has index `emitted.len()`.
    /// Apart from the prompt, since usage and penalties need the border.
    pub emitted: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to stop.
    pub limits: RequestLimits,
}

/// When a request ends, and its rank among others.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RequestLimits {
    /// Most tokens to emit over all attempts, `emitted` included.
    pub max_tokens: u32,
    /// Until this many tokens are emitted, stop tokens cannot be drawn.
    pub min_tokens: u32,
    /// Tokens that end the request with [`FinishReason::Stop`]; the stop token itself is the last event.
    pub stop_tokens: Vec<TokenId>,
    /// Smaller runs first; 0 is the default.
    pub priority: i32,
}

/// Worker → gateway.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum FromWorker {
    /// Answer to the gateway's `Hello`, sent whatever the versions are.
    Hello {
        /// The worker's [`super::PROTOCOL_VERSION`].
        version: u32,
        /// Process id, for logs, `/health` and signals.
        pid: u32,
        /// What it computes on.
        device: DeviceInfo,
    },
    /// Model loading went on. Sent at a bounded rate until `Ready`.
    Loading {
        /// Bytes of tensors ready so far.
        done_bytes: u64,
        /// Bytes of tensors in the file.
        total_bytes: u64,
    },
    /// The model is loaded; `Submit` is answered from now on.
    Ready {
        /// What is loaded.
        model: ModelInfo,
        /// What it can hold.
        limits: WorkerLimits,
    },
    /// One engine step: all sequences in one frame, several events of a sequence where guesses were right.
    Step {
        /// Emitted tokens, in order per request.
        events: Vec<TokenEvent>,
        /// The engine after this step.
        stats: EngineStats,
    },
    /// The request's last message.
    Finished {
        /// The request.
        id: RequestId,
        /// The attempt that ended.
        attempt: Attempt,
        /// Why.
        reason: FinishReason,
        /// Where the time went.
        timings: Timings,
    },
    /// The request was not taken; its last message.
    Rejected {
        /// The request.
        id: RequestId,
        /// The attempt refused.
        attempt: Attempt,
        /// Why.
        error: Rejection,
    },
    /// Answer to `Ping`.
    Pong {
        /// The ping's.
        nonce: u64,
        /// The engine now.
        stats: EngineStats,
    },
    /// The worker cannot go on and exits after this.
    Fatal {
        /// One line.
        error: String,
    },
    /// Answer to `Ping` from beside the engine, at once: what the engine's thread does and how often it got on with
    /// it. Sent unasked as well while the engine has no room for what comes. That it comes shows a living process; only a change of `progress` shows a living engine.
    Heartbeat {
        /// What the engine's thread is doing.
        phase: Phase,
        /// Grows with every layer computed, sequence sampled, message handed over and tensor loaded.
        progress: u64,
    },
    /// The worker was told to end by somebody else than the gateway, and does. Its requests did nothing to it.
    Leaving,
    /// Second and last message to a gateway that comes while the worker serves another, which keeps it.
    Busy {
        /// Process id of the gateway that is served, where the system tells it.
        owner_pid: Option<u32>,
    },
}

/// What a worker's engine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Phase {
    /// The model is not there yet.
    #[default]
    Loading,
    /// Nothing is to be computed.
    Idle,
    /// A forward pass.
    Computing,
    /// Drawing tokens.
    Sampling,
    /// Handing messages to the gateway.
    Reporting,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loading => "loading",
            Self::Idle => "idle",
            Self::Computing => "computing",
            Self::Sampling => "sampling",
            Self::Reporting => "reporting",
        })
    }
}

/// One emitted token.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct TokenEvent {
    /// The request.
    pub id: RequestId,
    /// Events of an older attempt are dropped by the gateway.
    pub attempt: Attempt,
    /// Position in the output, 0-based over all attempts; a gap is a protocol error.
    pub index: u32,
    /// The token.
    pub token: TokenId,
    /// Present when the request asked for log probabilities.
    pub logprobs: Option<TokenLogprobs>,
}

/// Natural-log probabilities under the model's unmodified distribution.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct TokenLogprobs {
    /// Of the token emitted.
    pub logprob: f32,
    /// The most likely tokens, most likely first, as many as asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum FinishReason {
    /// A stop token was drawn.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// The gateway cancelled it.
    Cancelled,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Rejection {
    /// Prompt and output cannot fit: the caller's fault.
    #[error("prompt has {prompt_tokens} tokens, the worker's context holds {context_tokens}")]
    TooLong {
        /// Tokens of prompt and emitted.
        prompt_tokens: u32,
        /// Positions a sequence can have.
        context_tokens: u32,
    },
    /// A field is out of range: the caller's fault.
    #[error("{message}")]
    Invalid {
        /// One line.
        message: String,
    },
    /// No room now; try elsewhere or later.
    #[error("worker has {waiting} requests waiting, limit {limit}")]
    Overloaded {
        /// Waiting now.
        waiting: u32,
        /// Most that may wait.
        limit: u32,
    },
    /// The worker is draining; try elsewhere.
    #[error("worker is draining")]
    Draining,
    /// Something failed inside the engine for this request alone.
    #[error("engine error: {message}")]
    Internal {
        /// One line.
        message: String,
    },
}

/// What a worker computes on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeviceInfo {
    /// `cpu` or `hip`.
    pub backend: String,
    /// For people: processor or GPU name, instruction set or architecture.
    pub name: String,
    /// Threads or compute units used.
    pub units: u32,
    /// Device memory in bytes (host memory for `cpu`).
    pub memory_total_bytes: u64,
}

/// What a worker has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ModelInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or the file's stem.
    pub name: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Most common quantization of the matrices, as ggml names it.
    pub quantization: String,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Context the model was trained for.
    pub context_train: u32,
    /// Bytes of weights resident on the device.
    pub weight_bytes: u64,
}

/// What a worker can hold; the gateway routes and admits by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct WorkerLimits {
    /// Positions one sequence can have.
    pub context_tokens: u32,
    /// Sequences that run at once.
    pub sequences: u32,
    /// Requests that may wait beyond these.
    pub waiting: u32,
    /// KV blocks in all.
    pub kv_blocks: u32,
    /// Tokens in a KV block.
    pub kv_block_tokens: u32,
}

/// The engine at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Encode, Decode)]
pub struct EngineStats {
    /// Steps since start; advances while anything runs, or the worker hangs.
    pub step: u64,
    /// Sequences being computed.
    pub running: u32,
    /// Requests waiting for a place.
    pub waiting: u32,
    /// KV blocks not referenced by any sequence (cached ones included).
    pub kv_blocks_free: u32,
    /// KV blocks in all.
    pub kv_blocks_total: u32,
    /// Prompt tokens looked up in the prefix cache since start.
    pub prefix_queries: u64,
    /// Of these, tokens found.
    pub prefix_hits: u64,
    /// Sequences put back to waiting for lack of blocks since start.
    pub preemptions: u64,
    /// Token rows computed in this step.
    pub batch_tokens: u32,
    /// Memory in use on the device in bytes (resident set for `cpu`).
    pub memory_used_bytes: u64,
    /// Tokens guessed by speculative decoding since start.
    pub drafted: u64,
    /// Of these, tokens that were right.
    pub accepted: u64,
}

/// Where a request's time went inside the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Timings {
    /// From arrival to the first step that computed it.
    pub queue_us: u64,
    /// From there to its first token.
    pub prefill_us: u64,
    /// From there to its last.
    pub decode_us: u64,
    /// Prompt tokens taken from the prefix cache.
    pub cached_tokens: u32,
}
