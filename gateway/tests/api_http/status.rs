//! `/health`, `/ready`, `/metrics`, models, keys, request ids, CORS.

use crate::scripted::{Script, Server};
use axum::body::Body;
use axum::http::Request;
use gateway::fleet::WorkerState;
use gateway::rate_limit::RateLimits;
use gateway::secret::Secret;
use gateway::server::{ApiKeys, RouterOptions};
use serde_json::json;

#[tokio::test]
async fn ready_follows_the_workers() {
    let server = Server::new(Script::Says("x"));
    let answer = server.get("/ready").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"ready": true})));
    *server.source.state.lock().unwrap() = WorkerState::Loading;
    let answer = server.get("/ready").await;
    assert_eq!((answer.status, &answer.json()["ready"]), (503, &json!(false)));
    assert!(answer.json()["reason"].as_str().unwrap().contains("loading"), "{}", answer.text);
    let head = server.ask(Request::head("/ready").body(Body::empty()).unwrap()).await;
    assert_eq!((head.status, head.text.as_str()), (503, ""));
}

#[tokio::test]
async fn health_has_the_contracts_shape() {
    let server = Server::new(Script::Says("x"));
    let health = server.get("/health").await.json();
    assert_eq!((&health["status"], &health["service"]), (&json!("ok"), &json!("rocmforge")));
    assert!(health["version"].is_string() && health["uptime_s"].is_u64());
    for key in ["gpu", "model"] {
        assert!(health["checks"][key].is_string(), "{health}");
    }
    assert!(health["checks"]["memory"]["used"].is_u64() && health["checks"]["memory"]["total"].is_u64());
    let worker = health["workers"][0].as_object().unwrap();
    for key in ["id", "pid", "device", "state", "restarts", "last_exit"] {
        assert!(worker.contains_key(key), "{health}");
    }
    assert_eq!(worker["state"], "ready");
    *server.source.state.lock().unwrap() = WorkerState::Backoff;
    assert_eq!(server.get("/health").await.json()["status"], "unavailable");
}

#[tokio::test]
async fn metrics_are_prometheus_text_with_bounded_labels() {
    let server = Server::new(Script::Says("x"));
    server.chat(json!({})).await;
    server.get("/v1/models/some-thing-unbounded").await;
    server.get("/some/path/unbounded").await;
    let answer = server.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("text/plain"));
    for line in [
        "rocmforge_requests_total{route=\"/v1/chat/completions\",status=\"200\"}",
        "rocmforge_requests_total{route=\"none\",status=\"404\"}",
        "rocmforge_time_to_first_token_seconds_bucket{le=\"0.1\"}",
        "rocmforge_inter_token_seconds_count",
        "rocmforge_request_duration_seconds_sum",
        "rocmforge_prompt_tokens_total",
        "rocmforge_active_requests",
        "rocmforge_queue_length 5",
        "rocmforge_running_sequences 3",
        "rocmforge_build_info{version=\"",
    ] {
        assert!(answer.text.contains(line), "no {line} in\n{}", answer.text);
    }
    assert!(!answer.text.contains("unbounded"));
    for line in answer.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        assert!(line.starts_with("rocmforge_"), "{line}");
    }
}

#[tokio::test]
async fn models_are_listed_and_retrieved() {
    let server = Server::new(Script::Says("x"));
    let list = server.get("/v1/models").await.json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    let model = server.get("/v1/models/tiny").await.json();
    assert_eq!(model, list["data"][0]);
    assert_eq!((&model["object"], &model["owned_by"]), (&json!("model"), &json!("rocmforge")));
    assert!(model["created"].as_u64().unwrap() > 1_700_000_000);
}

#[tokio::test]
async fn keys_guard_v1_alone() {
    let options = RouterOptions {
        keys: ApiKeys::new(&[Secret::new("sk-right")], RateLimits::default()).into(),
        ..RouterOptions::default()
    };
    let server = Server::with_options(Script::Says("x"), &options);
    let ask = async |key: Option<&str>| {
        let mut request = Request::get("/v1/models");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        server.ask(request.body(Body::empty()).unwrap()).await
    };
    for key in [None, Some("sk-wrong"), Some("")] {
        let answer = ask(key).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"), "{key:?}");
        assert_eq!(answer.error()["type"], "authentication_error");
    }
    assert_eq!(ask(Some("sk-right")).await.status, 200);
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(server.chat(json!({})).await.status, 401);
}

#[tokio::test]
async fn request_ids_are_kept_or_made() {
    let server = Server::new(Script::Says("x"));
    let ask = async |id: &str| {
        let request = Request::get("/health").header("x-request-id", id).body(Body::empty()).unwrap();
        server.ask(request).await.header("x-request-id").to_owned()
    };
    assert_eq!(ask("client-7").await, "client-7");
    assert!(ask("two words").await.starts_with("req-"));
    assert!(ask(&"x".repeat(129)).await.starts_with("req-"));
    let made = server.get("/v1/nothing").await;
    assert!(made.header("x-request-id").starts_with("req-"), "errors have one too");
}

#[tokio::test]
async fn cors_is_off_unless_asked_for() {
    let preflight = || {
        Request::options("/v1/chat/completions")
            .header("origin", "https://chat.example.org")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty())
            .unwrap()
    };
    let off = Server::new(Script::Says("x")).ask(preflight()).await;
    assert_eq!((off.status, off.header("access-control-allow-origin")), (405, ""));
    for (configured, expected) in [("https://chat.example.org", "https://chat.example.org"), ("*", "*")] {
        let options = RouterOptions {
            keys: ApiKeys::new(&[Secret::new("k")], RateLimits::default()).into(),
            cors_origins: vec![configured.to_owned()],
            ..RouterOptions::default()
        };
        let on = Server::with_options(Script::Says("x"), &options).ask(preflight()).await;
        assert_eq!(
            (on.status, on.header("access-control-allow-origin")),
            (200, expected),
            "preflights carry no key"
        );
        // A wildcard does not cover Authorization by the CORS protocol, so the headers are named.
        assert!(on.header("access-control-allow-headers").contains("authorization"), "{:?}", on.headers);
    }
}
