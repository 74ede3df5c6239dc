//! How fast one key may ask: token buckets over requests and tokens a minute. [`Bucket`] is pure (time comes in);
//! [`Account`] is one key's buckets under a lock, used by `server` for every request and by `api` for its tokens.
//!
//! What holds always: over any time `t` a bucket gives away at most its limit plus what `t` refills; a refusal says
//! exactly when the same would be granted; there is one account for each configured key and one for everybody where
//! none is, so the table is as long as the list of keys. Tokens of the output are not known beforehand: they are
//! reserved as far as the request says, and settled with what it really used, which may leave a debt that later
//! requests wait for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What limits are counted over.
const MINUTE: Duration = Duration::from_secs(60);

/// The limits of one key; `None` is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, prompt and output together.
    pub tokens_per_minute: Option<u32>,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Requests.
    Requests,
    /// Tokens.
    Tokens,
}

/// One limit's state: holds a minute's worth when full, refilled steadily.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    per_minute: u32,
    /// What is missing to full at `at`, in parts of [`PARTS`] of one, of which `per_minute` flow in a nanosecond: so
    /// nothing is ever rounded.
    missing: u128,
    at: Instant,
}

/// Parts of one request or token: the nanoseconds of a minute.
const PARTS: u128 = MINUTE.as_nanos();

/// A bucket at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// A minute's worth.
    pub limit: u32,
    /// What it would give now.
    pub remaining: u32,
    /// Until it is full again.
    pub reset: Duration,
}

/// Why something was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} per minute: limit {limit}, remaining {remaining}, asked for {asked}", match counted {
    Counted::Requests => "requests",
    Counted::Tokens => "tokens",
})]
pub struct RateRefusal {
    /// Which limit.
    pub counted: Counted,
    /// A minute's worth.
    pub limit: u32,
    /// What is left of it.
    pub remaining: u32,
    /// What the request needs.
    pub asked: u64,
    /// When it would be granted; `None` for more than the limit.
    pub wait: Option<Duration>,
}

impl Bucket {
    /// A full bucket. A limit of 0 counts as 1: who shall have nothing gets no key.
    pub fn new(per_minute: u32, now: Instant) -> Self {
        Self { per_minute: per_minute.max(1), missing: 0, at: now }
    }

    fn missing(&self, now: Instant) -> u128 {
        let flowed = now.saturating_duration_since(self.at).as_nanos() * u128::from(self.per_minute);
        self.missing.saturating_sub(flowed)
    }

    fn time_of(&self, parts: u128) -> Duration {
        let nanos = parts.div_ceil(u128::from(self.per_minute));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How full it is.
    pub fn level(&self, now: Instant) -> Level {
        let missing = self.missing(now);
        // Rounded up: a part of a request is none.
        let gone = u32::try_from(missing.div_ceil(PARTS)).unwrap_or(u32::MAX);
        let remaining = self.per_minute.saturating_sub(gone);
        Level { limit: self.per_minute, remaining, reset: self.time_of(missing) }
    }

    /// When `amount` would be granted: at once (zero), after a wait, or (`None`) never.
    pub fn wait_for(&self, amount: u64, now: Instant) -> Option<Duration> {
        let spare = u64::from(self.per_minute).checked_sub(amount)?;
        Some(self.time_of(self.missing(now).saturating_sub(u128::from(spare) * PARTS)))
    }

    /// Takes `amount`, whether it is there or not.
    pub fn charge(&mut self, amount: u64, now: Instant) {
        self.missing = self.missing(now) + u128::from(amount) * PARTS;
        self.at = self.at.max(now);
    }

    /// Gives back `amount` that was taken and not used.
    pub fn refund(&mut self, amount: u64, now: Instant) {
        self.missing = self.missing(now).saturating_sub(u128::from(amount) * PARTS);
        self.at = self.at.max(now);
    }
}

/// One key's buckets.
#[derive(Debug)]
pub struct Account {
    limits: RateLimits,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// Both limits of an account at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Requests, where limited.
    pub requests: Option<Level>,
    /// Tokens, where limited.
    pub tokens: Option<Level>,
}

impl Account {
    /// A full account.
    pub fn new(limits: RateLimits, now: Instant) -> Self {
        let bucket = |limit: Option<u32>| limit.map(|limit| Bucket::new(limit, now));
        let buckets = Buckets {
            requests: bucket(limits.requests_per_minute),
            tokens: bucket(limits.tokens_per_minute),
        };
        Self { limits, buckets: Mutex::new(buckets) }
    }

    /// Its limits.
    pub fn limits(&self) -> RateLimits {
        self.limits
    }

    /// A panic under the lock leaves a bucket as it was before or after one charge.
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one request, or says when to come again.
    pub fn take_request(&self, now: Instant) -> Result<(), RateRefusal> {
        let mut buckets = self.lock();
        let Some(bucket) = &mut buckets.requests else { return Ok(()) };
        take(bucket, Counted::Requests, 1, now)
    }

    /// Reserves the tokens of a request: its prompts, and as much output as it says it wants. More than the limit is
    /// never asked of the bucket for the output's sake; for the prompt's it is refused for good.
    pub fn reserve_tokens(
        self: &Arc<Self>,
        prompt: u64,
        output: u64,
        now: Instant,
    ) -> Result<Reservation, RateRefusal> {
        let mut reserved = 0;
        if let Some(bucket) = &mut self.lock().tokens {
            reserved = prompt.max(prompt.saturating_add(output).min(u64::from(bucket.per_minute)));
            take(bucket, Counted::Tokens, reserved, now)?;
        }
        Ok(Reservation { account: Arc::clone(self), reserved, used: 0 })
    }

    /// How much is left.
    pub fn standing(&self, now: Instant) -> Standing {
        let buckets = *self.lock();
        let level = |bucket: Option<Bucket>| bucket.map(|bucket| bucket.level(now));
        Standing { requests: level(buckets.requests), tokens: level(buckets.tokens) }
    }
}

fn take(bucket: &mut Bucket, counted: Counted, asked: u64, now: Instant) -> Result<(), RateRefusal> {
    let wait = bucket.wait_for(asked, now);
    if wait == Some(Duration::ZERO) {
        bucket.charge(asked, now);
        return Ok(());
    }
    let Level { limit, remaining, .. } = bucket.level(now);
    Err(RateRefusal { counted, limit, remaining, asked, wait })
}

/// Tokens set aside for one request; when it is dropped, what was really used is what was taken.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Account>,
    reserved: u64,
    used: u64,
}

impl Reservation {
    /// The request has used `tokens` in all so far.
    pub fn used(&mut self, tokens: u64) {
        self.used = tokens;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(bucket) = &mut self.account.lock().tokens {
            let now = Instant::now();
            match self.used.checked_sub(self.reserved) {
                Some(more) => bucket.charge(more, now),
                None => bucket.refund(self.reserved - self.used, now),
            }
        }
    }
}

/// A time as OpenAI's rate-limit headers write it, which is Go's way: `17ms`, `1.5s`, `6m0s`, `1h0m2s`.
pub fn header_time(time: Duration) -> String {
    // Rounded up, so that nobody comes too early.
    let millis = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    if (1..1000).contains(&millis) {
        return format!("{millis}ms");
    }
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}") };
    let seconds = format!("{seconds}{}s", fraction.trim_end_matches('0'));
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests;
