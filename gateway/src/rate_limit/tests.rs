//! Buckets against a clock that the test moves, and accounts.

use super::*;
use proptest::prelude::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_minute_s_worth_at_once_then_one_by_one() {
    for limit in [1, 3, 7, 60, 1000] {
        let start = Instant::now();
        let mut bucket = Bucket::new(limit, start);
        for left in (0..limit).rev() {
            assert_eq!(bucket.wait_for(1, start), Some(Duration::ZERO), "{limit} a minute, {left} left");
            bucket.charge(1, start);
            assert_eq!(bucket.level(start).remaining, left);
        }
        let wait = bucket.wait_for(1, start).unwrap();
        assert!(wait > Duration::ZERO && wait <= MINUTE.div_f64(f64::from(limit)) + Duration::from_nanos(1));
        assert_eq!(bucket.wait_for(u64::from(limit), start), Some(MINUTE));
        assert_eq!(bucket.wait_for(u64::from(limit) + 1, start), None, "never more than the limit");
        assert_eq!(bucket.level(start + MINUTE).remaining, limit, "full after a minute");
    }
}

#[test]
fn debt_is_waited_for() {
    let start = Instant::now();
    let mut bucket = Bucket::new(60, start);
    bucket.charge(180, start);
    assert_eq!(bucket.level(start), Level { limit: 60, remaining: 0, reset: seconds(180) });
    assert_eq!(bucket.wait_for(1, start), Some(seconds(121)));
    bucket.refund(120, start);
    assert_eq!(bucket.wait_for(1, start), Some(seconds(1)));
}

#[test]
fn reservations_settle_with_what_was_used() {
    let limits = RateLimits { requests_per_minute: None, tokens_per_minute: Some(1_000_000) };
    let now = Instant::now();
    let account = Arc::new(Account::new(limits, now));
    let remaining = || account.standing(now).tokens.unwrap().remaining;
    let mut short = account.reserve_tokens(1000, 100_000, now).unwrap();
    assert_eq!(remaining(), 899_000);
    short.used(1_500);
    drop(short);
    assert!((998_500..998_600).contains(&remaining()), "{}", remaining());
    let mut long = account.reserve_tokens(1000, 0, now).unwrap();
    long.used(900_000);
    drop(long);
    assert!((98_500..99_000).contains(&remaining()), "{}", remaining());
    drop(account.reserve_tokens(90_000, 0, now).unwrap());
    assert!(remaining() >= 98_500, "a request that used nothing costs nothing");
}

#[test]
fn output_alone_never_exceeds_the_limit() {
    let limits = RateLimits { requests_per_minute: Some(1), tokens_per_minute: Some(100) };
    let now = Instant::now();
    let account = Arc::new(Account::new(limits, now));
    assert!(account.reserve_tokens(10, u64::MAX, now).is_ok());
    let refusal = account.reserve_tokens(101, 0, now).unwrap_err();
    assert_eq!((refusal.counted, refusal.wait), (Counted::Tokens, None));
    assert_eq!(refusal.to_string(), "tokens per minute: limit 100, remaining 100, asked for 101");
    account.take_request(now).unwrap();
    let refusal = account.take_request(now).unwrap_err();
    assert_eq!((refusal.counted, refusal.wait), (Counted::Requests, Some(seconds(60))));
    assert!(
        Arc::new(Account::new(RateLimits::default(), now)).reserve_tokens(u64::MAX, u64::MAX, now).is_ok()
    );
}

#[test]
fn times_are_written_as_openai_does() {
    let millis = Duration::from_millis;
    for (time, text) in [
        (millis(0), "0s"),
        (Duration::from_nanos(1), "1ms"),
        (millis(17), "17ms"),
        (millis(1000), "1s"),
        (millis(8640), "8.64s"),
        (millis(360_000), "6m0s"),
        (millis(60_005), "1m0.005s"),
        (millis(3_602_000), "1h0m2s"),
    ] {
        assert_eq!(header_time(time), text);
    }
}

proptest! {
    /// However requests come: what is granted within any stretch of time is at most the limit and what flowed in, a
    /// refusal's wait is exact to the nanosecond, and what `remaining` says is granted.
    #[test]
    fn a_bucket_gives_exactly_its_rate(
        limit in 1..5000_u32,
        steps in prop::collection::vec((0..3_000_000_000_u64, 1..40_u64), 1..200),
    ) {
        let start = Instant::now();
        let mut bucket = Bucket::new(limit, start);
        let mut now = start;
        let mut granted: Vec<(Instant, u64)> = Vec::new();
        for (pause_ns, amount) in steps {
            now += Duration::from_nanos(pause_ns);
            let level = bucket.level(now);
            prop_assert!(level.remaining <= limit);
            prop_assert_eq!(bucket.wait_for(u64::from(level.remaining), now), Some(Duration::ZERO));
            match bucket.wait_for(amount, now) {
                None => prop_assert!(amount > u64::from(limit)),
                Some(Duration::ZERO) => {
                    bucket.charge(amount, now);
                    granted.push((now, amount));
                }
                Some(wait) => {
                    prop_assert!(u64::from(level.remaining) < amount);
                    prop_assert_eq!(bucket.wait_for(amount, now + wait), Some(Duration::ZERO));
                    let early = wait - Duration::from_nanos(1);
                    prop_assert_ne!(bucket.wait_for(amount, now + early), Some(Duration::ZERO));
                }
            }
        }
        for (first, &(from, _)) in granted.iter().enumerate() {
            let mut sum = 0;
            for &(to, amount) in &granted[first..] {
                sum += amount;
                let flowed = (to - from).as_nanos() * u128::from(limit);
                prop_assert!(u128::from(sum) * PARTS <= u128::from(limit) * PARTS + flowed);
            }
        }
    }
}
