//! Decides whether a request may wait in the gateway (pure: counts and time in, decision out). Used by `fleet::core`.
//!
//! What holds always: waiting requests and their tokens stay within [`QueueLimits`], except that one request alone may
//! be longer than the token limit, since the worker's own context bounds it. Requests resumed after a crash have been
//! admitted before and are not asked again. Who is served next is not decided here, but by `ledger` and `routing`.

use shared::error::Category;
use std::time::{Duration, Instant};

/// Most requests that wait in the gateway for a place in a worker, without configuration.
const QUEUE_REQUESTS_DEFAULT: usize = 512;
/// Most tokens (prompt and largest output) those requests may add up to, without configuration.
const QUEUE_TOKENS_DEFAULT: u64 = 4_000_000;
/// Tokens a request's consumer may leave unread before the request is ended: about a minute of fast decoding.
const UNREAD_TOKENS_MAX_DEFAULT: usize = 4096;

/// Longest prompt the fleet takes, whatever a worker's context is: what fits a frame with room for the output.
pub const PROMPT_TOKENS_MAX: usize = 2_000_000;

/// What the gateway holds for requests.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Requests that may wait for a place in a worker.
    pub requests: usize,
    /// Tokens (prompt and largest output) the waiting requests may add up to.
    pub tokens: u64,
    /// Longest a request waits for its first place in a worker, its own deadline apart.
    pub timeout: Duration,
    /// Tokens a consumer may leave unread before its request is ended.
    pub unread_tokens: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            requests: QUEUE_REQUESTS_DEFAULT,
            tokens: QUEUE_TOKENS_DEFAULT,
            timeout: Duration::from_secs(120),
            unread_tokens: UNREAD_TOKENS_MAX_DEFAULT,
        }
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A prompt needs a token to continue from.
    #[error("prompt has no tokens")]
    EmptyPrompt,
    /// Past what any worker takes.
    #[error("prompt has {tokens} tokens, limit {PROMPT_TOKENS_MAX}")]
    PromptTooLong {
        /// Its length.
        tokens: usize,
    },
    /// Every worker has failed.
    #[error("no worker can serve: {reason}")]
    NoWorker {
        /// The first worker's failure.
        reason: String,
    },
    /// Too many requests wait.
    #[error("{waiting} requests are waiting, limit {limit}")]
    QueueFull {
        /// Waiting now.
        waiting: usize,
        /// Most that may.
        limit: usize,
        /// When a try is worthwhile, in seconds.
        retry_after_s: u64,
    },
    /// The waiting requests are too long in sum.
    #[error("{tokens} tokens are waiting, limit {limit}")]
    QueueTokensFull {
        /// Waiting now, this request apart.
        tokens: u64,
        /// Most that may.
        limit: u64,
        /// When a try is worthwhile, in seconds.
        retry_after_s: u64,
    },
    /// The gateway shuts down.
    #[error("gateway is shutting down")]
    Draining,
}

impl SubmitError {
    /// Who can do something about it.
    pub fn category(&self) -> Category {
        match self {
            Self::EmptyPrompt | Self::PromptTooLong { .. } => Category::User,
            _ => Category::Recoverable,
        }
    }

    /// When trying again is worthwhile; `None` where it is not.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::EmptyPrompt | Self::PromptTooLong { .. } => None,
            Self::QueueFull { retry_after_s, .. } | Self::QueueTokensFull { retry_after_s, .. } => {
                Some(Duration::from_secs(*retry_after_s))
            }
            Self::NoWorker { .. } => Some(Duration::from_secs(10)),
            Self::Draining => Some(Duration::from_secs(1)),
        }
    }

    /// A word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EmptyPrompt | Self::PromptTooLong { .. } => "invalid",
            Self::NoWorker { .. } => "no_worker",
            Self::QueueFull { .. } => "queue_requests",
            Self::QueueTokensFull { .. } => "queue_tokens",
            Self::Draining => "draining",
        }
    }

    /// Whether the client should be told to slow down (429) rather than that the service is away (503).
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::QueueFull { .. } | Self::QueueTokensFull { .. })
    }
}

/// What waits in the gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Requests.
    pub(crate) requests: usize,
    /// Their prompts and largest outputs.
    pub(crate) tokens: u64,
}

/// The gate in front of the queue, and its estimate of how fast the queue moves.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: QueueLimits,
    /// When a request last ended, if others waited then: only such a pause says how fast the queue moves.
    last_finish: Option<Instant>,
    finish_interval: Duration,
}

/// Weight of the newest interval between two finished requests in their mean: about the last ten count.
const INTERVAL_WEIGHT: f64 = 0.1;
/// Mean interval assumed before anything has finished.
const INTERVAL_FIRST: Duration = Duration::from_secs(1);
/// Bounds of what a client is told to wait; beyond a minute nobody plans.
const RETRY_AFTER_S: std::ops::RangeInclusive<u64> = 1..=60;

impl Admission {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self { limits, last_finish: None, finish_interval: INTERVAL_FIRST }
    }

    pub(crate) fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    /// Changes how much may wait.
    pub(crate) fn set_limits(&mut self, requests: usize, tokens: u64) {
        self.limits.requests = requests;
        self.limits.tokens = tokens;
    }

    /// Whether a request of `tokens` may join what waits.
    pub(crate) fn check(&self, waiting: Waiting, tokens: u64) -> Result<(), SubmitError> {
        let retry_after_s = self.retry_after_s(waiting);
        if waiting.requests >= self.limits.requests {
            let limit = self.limits.requests;
            return Err(SubmitError::QueueFull { waiting: waiting.requests, limit, retry_after_s });
        }
        if waiting.requests > 0 && waiting.tokens.saturating_add(tokens) > self.limits.tokens {
            let limit = self.limits.tokens;
            return Err(SubmitError::QueueTokensFull { tokens: waiting.tokens, limit, retry_after_s });
        }
        Ok(())
    }

    /// Whether even the shortest request would be refused.
    pub(crate) fn is_full(&self, waiting: Waiting) -> bool {
        waiting.requests >= self.limits.requests
            || (waiting.requests > 0 && waiting.tokens >= self.limits.tokens)
    }

    /// A request ended and made room; `waiting` is what waits now.
    pub(crate) fn finished(&mut self, now: Instant, waiting: Waiting) {
        if let Some(last) = self.last_finish {
            let interval = now.saturating_duration_since(last);
            self.finish_interval =
                self.finish_interval.mul_f64(1.0 - INTERVAL_WEIGHT) + interval.mul_f64(INTERVAL_WEIGHT);
        }
        self.last_finish = (waiting.requests > 0).then_some(now);
    }

    /// When the queue will have moved by half, at the pace measured.
    fn retry_after_s(&self, waiting: Waiting) -> u64 {
        let seconds = self.finish_interval.as_secs_f64() * waiting.requests as f64 / 2.0;
        (seconds.ceil() as u64).clamp(*RETRY_AFTER_S.start(), *RETRY_AFTER_S.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(waiting: (usize, u64), tokens: u64, expected: &str) {
        let admission = Admission::new(QueueLimits { requests: 2, tokens: 100, ..QueueLimits::default() });
        let waiting = Waiting { requests: waiting.0, tokens: waiting.1 };
        let outcome =
            admission.check(waiting, tokens).map_or_else(|error| error.to_string(), |()| "taken".to_owned());
        assert_eq!(outcome, expected);
    }

    #[test]
    fn requests_and_tokens_are_both_bounded() {
        check((0, 0), 60, "taken");
        check((1, 60), 40, "taken");
        check((1, 60), 41, "60 tokens are waiting, limit 100");
        check((2, 2), 1, "2 requests are waiting, limit 2");
        check((0, 0), 1_000, "taken");
        check((1, 1_000), 1, "1000 tokens are waiting, limit 100");
        check((1, u64::MAX), u64::MAX, "18446744073709551615 tokens are waiting, limit 100");
    }

    #[test]
    fn retry_after_follows_the_measured_pace() {
        let mut admission = Admission::new(QueueLimits { requests: 100, ..QueueLimits::default() });
        let waiting = Waiting { requests: 100, tokens: 100 };
        let told =
            |admission: &Admission| admission.check(waiting, 1).unwrap_err().retry_after().unwrap().as_secs();
        assert_eq!(told(&admission), 50);
        let mut now = Instant::now();
        let mut finish = |admission: &mut Admission, interval, waiting| {
            for _ in 0..100 {
                now += interval;
                admission.finished(now, waiting);
            }
        };
        finish(&mut admission, Duration::from_millis(100), waiting);
        assert_eq!(told(&admission), 6, "about 5 s at ten requests a second");
        finish(&mut admission, Duration::from_secs(3_600), Waiting::default());
        // The first of those pauses had begun with others waiting.
        finish(&mut admission, Duration::from_millis(100), waiting);
        assert_eq!(told(&admission), 6, "idle time says nothing of the pace");
        finish(&mut admission, Duration::from_secs(5), waiting);
        assert_eq!(told(&admission), 60, "beyond a minute nobody plans");
    }
}
