//! Rates by key, ranks, deadlines, and what is said about them in headers.

use crate::scripted::{Answer, Script, Server};
use axum::body::Body;
use axum::http::Request;
use gateway::fleet::SubmitError;
use gateway::rate_limit::RateLimits;
use gateway::secret::Secret;
use gateway::server::{ApiKeys, RouterOptions};
use serde_json::{Value, json};
use std::time::Duration;

fn limited(requests_per_minute: Option<u32>, tokens_per_minute: Option<u32>) -> Server {
    let limits = RateLimits { requests_per_minute, tokens_per_minute };
    let options = RouterOptions { keys: ApiKeys::new(&[], limits).into(), ..RouterOptions::default() };
    Server::with_options(Script::Says("Hello"), &options)
}

async fn chat_with(server: &Server, headers: &[(&str, &str)], fields: Value) -> Answer {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut request = Request::post("/v1/chat/completions");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.ask(request.body(Body::from(body.to_string())).unwrap()).await
}

fn number(answer: &Answer, header: &str) -> u32 {
    answer.header(header).parse().unwrap_or_else(|_| panic!("{header}: {:?}", answer.headers))
}

#[tokio::test]
async fn requests_a_minute_are_counted_told_and_refused() {
    let server = limited(Some(2), None);
    let first = server.chat(json!({})).await;
    assert_eq!(first.status, 200);
    assert_eq!(number(&first, "x-ratelimit-limit-requests"), 2);
    assert_eq!(number(&first, "x-ratelimit-remaining-requests"), 1);
    let reset = first.header("x-ratelimit-reset-requests");
    assert!(reset == "30s" || reset.starts_with("29."), "{reset}");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "", "what is not limited is not told");

    assert_eq!(server.chat(json!({"stream": true})).await.status, 200);
    let refused = server.chat(json!({})).await;
    assert_eq!(refused.status, 429);
    let error = refused.error();
    assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
    assert_eq!(
        error["message"],
        "rate limit reached on requests per minute: limit 2, remaining 0, asked for 1"
    );
    assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);
    assert!((29..=30).contains(&number(&refused, "retry-after")), "{:?}", refused.headers);
    assert!((29_000..=30_000).contains(&number(&refused, "retry-after-ms")));

    let models = server.get("/v1/models").await;
    assert_eq!(models.status, 200, "only what makes work is counted");
    assert_eq!(number(&models, "x-ratelimit-remaining-requests"), 0);
    assert_eq!(server.get("/health").await.header("x-ratelimit-limit-requests"), "");
}

#[tokio::test]
async fn tokens_a_minute_are_reserved_and_settled() {
    let server = limited(None, Some(10_000));
    let prompt_and_text = |answer: &Answer| answer.json()["usage"]["total_tokens"].as_u64().unwrap() as u32;
    let whole = server.chat(json!({"max_tokens": 100})).await;
    let used = prompt_and_text(&whole);
    let next = server.get("/v1/models").await;
    let (remaining, exactly) = (number(&next, "x-ratelimit-remaining-tokens"), 10_000 - used);
    // What flows in while the test runs: 167 a second.
    assert!((exactly..exactly + 2000).contains(&remaining), "{remaining} of {exactly} after {used}");

    let fresh = limited(None, Some(10_000));
    let greedy = fresh.chat(json!({"max_tokens": 400, "n": 30})).await;
    assert_eq!(greedy.status, 200, "output is asked for up to the limit, and little of it used");

    let small = limited(None, Some(5));
    let refused = small.chat(json!({})).await;
    assert_eq!((refused.status, refused.error()["type"].as_str()), (429, Some("tokens")));
    assert!(
        refused.error()["message"].as_str().unwrap().starts_with("request too large"),
        "{}",
        refused.text
    );
    assert_eq!(refused.header("retry-after"), "", "waiting would not help");
    assert_eq!(small.taken().len(), 0);
}

#[tokio::test]
async fn a_request_that_is_not_taken_gives_its_tokens_back() {
    let limits = RateLimits { requests_per_minute: None, tokens_per_minute: Some(1000) };
    let options = RouterOptions { keys: ApiKeys::new(&[], limits).into(), ..RouterOptions::default() };
    let full = SubmitError::QueueFull { waiting: 5, limit: 5, retry_after_s: 7 };
    let server = Server::with_options(Script::Refuses(full), &options);
    for _ in 0..5 {
        let refused = server.chat(json!({"max_tokens": 400})).await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, "7"));
        assert_eq!(refused.error()["code"], "overloaded");
        assert_eq!(number(&refused, "x-ratelimit-remaining-tokens"), 1000);
    }
}

#[tokio::test]
async fn each_key_has_limits_and_a_rank_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, "sk-slow rpm=1 priority=5\nsk-fast\n").unwrap();
    let mut keys = ApiKeys::new(&[Secret::new("sk-flag")], RateLimits::default());
    keys.add_file(&path).unwrap();
    let options = RouterOptions { keys: keys.into(), ..RouterOptions::default() };
    let server = Server::with_options(Script::Says("Hello"), &options);
    let ask = async |key: &str, fields: Value| {
        let bearer = format!("Bearer {key}");
        chat_with(&server, &[("authorization", &bearer)], fields).await.status
    };
    assert_eq!(ask("sk-slow", json!({"priority": -10})).await, 200);
    assert_eq!(ask("sk-slow", json!({})).await, 429);
    assert_eq!(ask("sk-fast", json!({"priority": 3})).await, 200);
    assert_eq!(ask("sk-flag", json!({"priority": -1})).await, 200);
    let ranks: Vec<i32> = server.taken().iter().map(|request| request.limits.priority).collect();
    assert_eq!(ranks, [5, 3, 0], "a key's rank is the best its requests can have");
    let wrong = chat_with(&server, &[("authorization", "Bearer sk-fast")], json!({"priority": "high"})).await;
    assert_eq!((wrong.status, wrong.error()["param"].as_str()), (400, Some("priority")));
}

#[tokio::test]
async fn a_header_shortens_the_deadline_and_cannot_lengthen_it() {
    let server = Server::new(Script::Says("Hello"));
    let ask = async |value: &str| chat_with(&server, &[("x-request-timeout-ms", value)], json!({})).await;
    assert_eq!(ask("5000").await.status, 200);
    assert_eq!(server.chat(json!({})).await.status, 200);
    let deadlines: Vec<Duration> = server.taken().iter().map(|request| request.deadline).collect();
    assert!(deadlines[0] <= Duration::from_secs(5) && deadlines[0] > Duration::from_secs(3), "{deadlines:?}");
    assert!(deadlines[1] > Duration::from_secs(50), "{deadlines:?}");
    for wrong in ["60001", "0", "soon", "-5"] {
        let refused = ask(wrong).await;
        assert_eq!(refused.status, 400, "{wrong}");
        assert_eq!(refused.error()["param"], "x-request-timeout-ms");
    }
    assert_eq!(server.taken().len(), 2);
}

#[tokio::test]
async fn a_plain_chunk_is_what_the_wire_types_say() {
    let server = Server::new(Script::Says("a\"\n\u{1}é"));
    for fields in
        [json!({"stream": true}), json!({"stream": true, "stream_options": {"include_usage": true}})]
    {
        // With log probabilities every chunk goes through the wire types; without, the parts that stay are kept.
        let mut scored = fields.clone();
        scored["logprobs"] = json!(true);
        let normal = |chunks: Vec<Value>| -> Vec<String> {
            let normal = chunks.into_iter().map(|mut chunk| {
                chunk["id"] = json!("");
                chunk["created"] = json!(0);
                if let Some(choice) = chunk["choices"].get_mut(0) {
                    choice["logprobs"] = Value::Null;
                }
                chunk.to_string()
            });
            // A token that is no whole character makes a chunk only where it is listed.
            normal.filter(|text| !text.contains("\"content\":\"\"}")).collect()
        };
        let plain = normal(server.chat(fields).await.chunks());
        assert_eq!(plain, normal(server.chat(scored).await.chunks()));
        assert!(plain.len() > 5);
    }
}
