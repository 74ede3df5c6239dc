//! Bad input from outside: one clear error, nothing else affected.

use harness::{Server, ServerOptions, binary, chat_body, get, post};
use serde_json::{Value, json};
use std::process::Command;

/// The error object, checked for its four keys.
fn error_of(body: &Value) -> &Value {
    let error = &body["error"];
    for key in ["message", "type", "param", "code"] {
        assert!(error.get(key).is_some(), "no {key} in {body}");
    }
    error
}

#[test]
fn wrong_fields_are_named() {
    let server = Server::ready(&ServerOptions::default());
    let url = server.at("/v1/chat/completions");
    let with = |field: &str, value: Value| {
        let mut body = chat_body("Hello");
        body[field] = value;
        post(&url, &body)
    };
    for (field, value, param) in [
        ("temperature", json!(3), "temperature"),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!(-1), "top_p"),
        ("n", json!(1.5), "n"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop"),
        ("logit_bias", json!({"abc": 1}), "logit_bias"),
        ("max_tokens", json!(-4), "max_tokens"),
        ("messages", json!([]), "messages"),
        ("messages", json!("hello"), "messages"),
    ] {
        let (status, body) = with(field, value.clone());
        assert_eq!(status, 400, "{field} = {value}: {body}");
        let named = error_of(&body)["param"].as_str().unwrap_or_default();
        assert!(named.starts_with(param), "{field} = {value}: {body}");
    }
    let (status, body) = with("model", json!("no-such-model"));
    assert_eq!((status, &error_of(&body)["code"]), (404, &json!("model_not_found")));
    let (status, body) = with("messages", json!([{"role": "user", "content": "word ".repeat(20_000)}]));
    assert_eq!((status, &error_of(&body)["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(post(&url, &chat_body("What is the capital of France?")).0, 200, "still serving");
}

#[test]
fn unknown_routes_and_methods_answer_in_the_error_shape() {
    let server = Server::start(&ServerOptions::default());
    let (status, body) = get(&server.at("/v1/nothing"));
    assert_eq!(status, 404);
    error_of(&body);
    let (status, body) = get(&server.at("/v1/chat/completions"));
    assert_eq!(status, 405);
    error_of(&body);
}

#[test]
fn api_keys_are_asked_for() {
    let server = Server::ready(&ServerOptions::args(&["--api-key", "sk-right"]));
    let client = reqwest::blocking::Client::new();
    let ask = |key: Option<&str>| {
        let request = client.get(server.at("/v1/models"));
        let request = key.map_or(request.try_clone().expect("no body"), |key| request.bearer_auth(key));
        request.send().expect("an answer").status().as_u16()
    };
    assert_eq!(ask(None), 401);
    assert_eq!(ask(Some("sk-wrong")), 401);
    assert_eq!(ask(Some("sk-right")), 200);
    assert_eq!(get(&server.at("/ready")).0, 200, "load balancers need no key");
}

/// Runs `rocmforge` and returns exit code and stderr.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary("rocmforge")).args(args).output().expect("rocmforge runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn command_line_errors_have_their_exit_codes() {
    let (code, text) = run(&["serve", "--no-such-flag"]);
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = run(&["serve", "--port", "0", "--threads", "0"]);
    assert!(matches!(code, Some(2 | 64)), "{code:?} {text}");
    assert!(text.contains("threads"), "{text}");
    let (code, text) = run(&["serve", "--port", "0", "--model", "/nonexistent/model.gguf"]);
    assert_eq!(code, Some(65), "{text}");
    assert!(text.contains("/nonexistent/model.gguf"), "{text}");
    let (code, text) = run(&["serve", "--port", "0", "--host", "not an address"]);
    assert!(matches!(code, Some(2 | 64)), "{code:?} {text}");
}
