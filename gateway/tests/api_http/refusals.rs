//! Bad requests: status, field and code.

use crate::scripted::{Script, Server};
use axum::body::Body;
use axum::http::Request;
use gateway::api::Admin;
use gateway::fleet::{RequestError, SubmitError};
use gateway::server::RouterOptions;
use serde_json::{Value, json};
use shared::ipc::message::Rejection;

#[tokio::test]
async fn wrong_chat_fields_are_named() {
    let server = Server::new(Script::Says("x"));
    for (fields, param) in [
        (json!({"temperature": 3}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"n": 1.5}), "n"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": [1]}), "stop[0]"),
        (json!({"stop": {}}), "stop"),
        (json!({"logit_bias": {"abc": 1}}), "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        (json!({"logit_bias": []}), "logit_bias"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": -4}), "max_completion_tokens"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"frequency_penalty": "1"}), "frequency_penalty"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"typical_p": -1}), "typical_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"model": null}), "model"),
        (json!({"model": 4}), "model"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hello"}), "messages"),
        (json!({"messages": ["hello"]}), "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"functions": [{}]}), "functions"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"audio": {}}), "audio"),
        (json!({"store": true}), "store"),
    ] {
        let answer = server.chat(fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text);
        let error = answer.error();
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert!(error["message"].as_str().unwrap().contains(param.split('.').next().unwrap()), "{error}");
    }
    assert!(server.taken().is_empty());
}

#[tokio::test]
async fn wrong_completion_fields_are_named() {
    let server = Server::new(Script::Says("x"));
    for (fields, param) in [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": {}}), "prompt"),
        (json!({"prompt": ["a", 1]}), "prompt[1]"),
        (json!({"prompt": [1, "a"]}), "prompt[1]"),
        (json!({"prompt": [1, -1]}), "prompt[1]"),
        (json!({"prompt": [99999]}), "prompt"),
        (json!({"prompt": vec!["a"; 257]}), "prompt"),
        (json!({"prompt": vec!["a"; 100], "n": 3}), "n"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "x"}), "suffix"),
    ] {
        let answer = server.complete(fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text);
        assert_eq!(answer.error()["param"], param, "{fields}");
    }
    assert_eq!(server.complete(json!({"best_of": 1, "echo": false, "suffix": ""})).await.status, 200);
}

#[tokio::test]
async fn bodies_that_are_no_requests_are_refused() {
    let server = Server::new(Script::Says("x"));
    let path = "/v1/chat/completions";
    for body in ["", "{", "[]", "null", "{\"model\": \"tiny\"", "{\"model\": NaN}", "\u{0}"] {
        let answer = server.post(path, body).await;
        assert_eq!((answer.status, answer.error()["code"].clone()), (400, json!("invalid_json")), "{body:?}");
    }
    assert_eq!(server.post(path, vec![0xFF, 0xFE]).await.status, 400);
    let deep = format!("{{\"model\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(server.post(path, deep).await.status, 400);
    let long = server.post(path, vec![b' '; (1 << 20) + 1]).await;
    assert_eq!((long.status, long.error()["code"].clone()), (413, json!("body_too_large")));
}

#[tokio::test]
async fn unknown_models_routes_and_methods_have_their_errors() {
    let (orders, _) = tokio::sync::mpsc::channel(1);
    let options = RouterOptions { admin: Some(Admin::new(None, orders)), ..RouterOptions::default() };
    let server = Server::with_options(Script::Says("x"), &options);
    let answer = server.chat(json!({"model": "gpt-9"})).await;
    assert_eq!((answer.status, answer.error()["code"].clone()), (404, json!("model_not_found")));
    let answer = server.get("/v1/models/gpt-9").await;
    assert_eq!((answer.status, answer.error()["code"].clone()), (404, json!("model_not_found")));
    let answer = server.get("/v1/nothing").await;
    assert_eq!((answer.status, answer.error()["code"].clone()), (404, json!("unknown_route")));
    for path in ["/v1/chat/completions", "/v1/completions", "/admin/drain", "/admin/restart-workers"] {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.status, answer.error()["code"].clone()),
            (405, json!("method_not_allowed")),
            "{path}"
        );
        assert_eq!(answer.header("allow"), "POST");
    }
    assert_eq!(server.post("/health", "").await.error()["code"], "method_not_allowed");
}

#[tokio::test]
async fn over_long_input_is_context_length_exceeded() {
    let server = Server::new(Script::Says("x"));
    let long = "word ".repeat(200);
    let answer = server.chat(json!({"messages": [{"role": "user", "content": long}]})).await;
    assert_eq!((answer.status, answer.error()["code"].clone()), (400, json!("context_length_exceeded")));
    assert_eq!(answer.error()["param"], "messages");
    let answer = server.complete(json!({"prompt": ["ok", "word ".repeat(200)]})).await;
    assert_eq!((answer.status, answer.error()["param"].clone()), (400, json!("prompt")));
    assert!(server.taken().is_empty(), "nothing is submitted when one prompt is too long");
}

#[tokio::test]
async fn refusals_of_the_fleet_have_their_status() {
    let full = SubmitError::QueueFull { waiting: 5, limit: 5, retry_after_s: 3 };
    let away = SubmitError::NoWorker { reason: "worker 0 is failed".to_owned() };
    for (error, status, code, retry) in [
        (full, 429, "overloaded", "3"),
        (away, 503, "unavailable", "10"),
        (SubmitError::Draining, 503, "unavailable", "1"),
    ] {
        let answer = Server::new(Script::Refuses(error)).chat(json!({"stream": true})).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, retry), "{}", answer.text);
        assert_eq!(answer.error()["code"], code);
    }
}

#[tokio::test]
async fn failures_of_the_fleet_have_their_status() {
    let too_long = Rejection::TooLong { prompt_tokens: 9, context_tokens: 8 };
    let poison = RequestError::Poison { crashes: 3, last: "SIGSEGV".to_owned() };
    for (error, status, code) in [
        (RequestError::Rejected(too_long), 400, "context_length_exceeded"),
        (RequestError::QueueTimeout { waited_ms: 5 }, 503, "queue_timeout"),
        (poison, 500, "poison_request"),
        (RequestError::ShuttingDown, 503, "shutting_down"),
    ] {
        let answer = Server::new(Script::Fails("a", error)).complete(json!({})).await;
        assert_eq!((answer.status, answer.error()["code"].clone()), (status, json!(code)), "{}", answer.text);
    }
}

#[tokio::test]
async fn refusing_templates_are_the_clients_error() {
    let server = Server::new(Script::Says("x"));
    // ChatML adds strings; a variable that makes `messages` a number fails inside the template.
    let answer =
        server.chat(json!({"chat_template_kwargs": {"messages": [{"role": 1, "content": {}}]}})).await;
    assert_eq!((answer.status, answer.error()["param"].clone()), (400, json!("messages")), "{}", answer.text);
    let plain: Value = server.chat(json!({"chat_template_kwargs": {"enable_thinking": false}})).await.json();
    assert_eq!(plain["choices"][0]["message"]["content"], "x");
}

#[tokio::test]
async fn heads_of_unread_bodies_do_not_matter() {
    let server = Server::new(Script::Says("x"));
    let body = json!({"model": "tiny", "prompt": "Hi"}).to_string();
    let request =
        Request::post("/v1/completions").header("content-type", "text/plain").body(Body::from(body)).unwrap();
    assert_eq!(
        server.ask(request).await.status,
        200,
        "any content type is read as JSON, as curl -d sends none of it"
    );
}

#[tokio::test]
async fn a_panicking_handler_costs_one_500() {
    let server = Server::new(Script::Panics);
    let answer = server.chat(json!({})).await;
    assert_eq!((answer.status, answer.error()["type"].clone()), (500, json!("server_error")));
    assert!(!answer.text.contains("scripted defect"), "inner words stay inside");
    assert_eq!(server.get("/health").await.status, 200);
}
