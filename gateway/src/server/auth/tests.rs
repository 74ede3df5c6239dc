//! Keys, their files, and what a reload keeps.

use super::*;

fn keys(names: &[&str]) -> ApiKeys {
    let secrets: Vec<Secret> = names.iter().copied().map(Secret::new).collect();
    ApiKeys::new(&secrets, RateLimits { requests_per_minute: Some(2), tokens_per_minute: None })
}

fn file(text: &str) -> Result<ApiKeys, KeyFileError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, text).unwrap();
    let mut keys = ApiKeys::default();
    keys.add_file(&path).map(|()| keys)
}

#[test]
fn only_known_bearer_keys_pass() {
    let keys = keys(&["sk-one", "sk-two"]);
    let passes = |header| keys.check(header).is_ok();
    assert!(passes(Some("Bearer sk-one")) && passes(Some("bearer  sk-two")));
    for header in
        [None, Some("sk-one"), Some("Basic sk-one"), Some("Bearer sk-on"), Some("Bearer "), Some("Bearer")]
    {
        assert!(!passes(header), "{header:?}");
    }
    assert!(ApiKeys::default().check(None).is_ok());
    assert!(!format!("{keys:?}").contains("sk-one"));
}

#[test]
fn key_files_hold_a_key_a_line() {
    let keys = file("# team\nsk-a\n\n  sk-b  \n").unwrap();
    assert!(keys.check(Some("Bearer sk-b")).is_ok() && keys.check(Some("Bearer # team")).is_err());
    assert!(matches!(file("# nothing\n"), Err(KeyFileError::Empty { .. })));
    assert!(ApiKeys::default().add_file(Path::new("/nonexistent")).is_err());
    let endless = ApiKeys::default().add_file(Path::new("/dev/zero"));
    assert!(matches!(endless, Err(KeyFileError::TooLong { .. })), "{endless:?}");
}

#[test]
fn settings_stand_behind_a_key() {
    let keys = file("sk-a rpm=60 tpm=100000 priority=-3\nsk-b priority=1\nsk-c rpm=0\n").unwrap();
    let client = |key: &str| keys.check(Some(&format!("Bearer {key}"))).unwrap();
    let limits =
        |requests_per_minute, tokens_per_minute| RateLimits { requests_per_minute, tokens_per_minute };
    assert_eq!(client("sk-a").account.limits(), limits(Some(60), Some(100_000)));
    assert_eq!((client("sk-a").priority, client("sk-b").priority, client("sk-c").priority), (-3, 1, 0));
    assert_eq!(client("sk-c").account.limits(), limits(None, None));
    for (text, expected) in [
        ("sk-a fast", "line 1: behind a key write only rpm=N, tpm=N and priority=N"),
        ("sk-a\nsk-b rpm=-1", "line 2: rpm is `-1`, use a whole number from 0 (no limit) to 4294967295"),
        ("sk-a rps=1", "line 1: unknown setting `rps`, use rpm=N, tpm=N or priority=N"),
        ("sk-a priority=low", "line 1: priority is `low`, use a whole number; smaller is served first"),
    ] {
        let error = file(text).unwrap_err().to_string();
        assert!(error.ends_with(expected) && !error.contains("sk-"), "{error}");
    }
}

#[test]
fn a_reload_keeps_what_is_left() {
    let ring = KeyRing::from(keys(&["sk-a", "sk-b"]));
    let take =
        |key: &str| ring.check(Some(&format!("Bearer {key}"))).unwrap().account.take_request(Instant::now());
    assert!(take("sk-a").is_ok() && take("sk-a").is_ok() && take("sk-a").is_err());
    ring.replace(keys(&["sk-a", "sk-c"]));
    assert!(take("sk-a").is_err(), "not refilled");
    assert!(take("sk-c").is_ok() && ring.check(Some("Bearer sk-b")).is_err());
    let more = RateLimits { requests_per_minute: Some(3), tokens_per_minute: None };
    ring.replace(ApiKeys::new(&[Secret::new("sk-a")], more));
    assert!(take("sk-a").is_ok(), "new limits begin full");
}

#[test]
fn a_reload_knows_a_key_given_twice_by_its_last_line() {
    let twice = || file("sk-a\nsk-a rpm=1\n").unwrap();
    let ring = KeyRing::from(twice());
    let take = || ring.check(Some("Bearer sk-a")).unwrap().account.take_request(Instant::now());
    assert!(take().is_ok() && take().is_err());
    ring.replace(twice());
    assert!(take().is_err(), "not refilled");
}
