//! `/v1/chat/completions`.

use crate::scripted::{CONTEXT_TOKENS, EOS, FIRST_BYTE, Script, Server};
use gateway::fleet::RequestError;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

fn text_of(chunks: &[Value], choice: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let own = choices.filter(|piece| piece["index"] == choice);
    own.filter_map(|piece| piece["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn answer_has_every_key_clients_require() {
    let server = Server::new(Script::Says("Hello 🌍!"));
    let answer = server.chat(json!({})).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text);
    let body = answer.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("tiny")));
    let choice = &body["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "Hello 🌍!", "refusal": null}));
    assert_eq!((&choice["finish_reason"], &choice["index"]), (&json!("stop"), &json!(0)));
    assert!(choice.as_object().unwrap().contains_key("logprobs") && choice["logprobs"].is_null());
    let prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n".len();
    let usage = json!({"prompt_tokens": prompt, "completion_tokens": 12, "total_tokens": prompt + 12});
    assert_eq!(body["usage"], usage);
}

#[tokio::test]
async fn stream_is_role_deltas_finish_usage_done() {
    let server = Server::new(Script::Says("Hello 🌍!"));
    let chunks =
        server.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await.chunks();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    for chunk in chunks {
        assert_eq!((&chunk["id"], &chunk["created"]), (&usage["id"], &usage["created"]));
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert!(chunk.as_object().unwrap().contains_key("usage") && chunk["usage"].is_null());
        let choice = chunk["choices"][0].as_object().unwrap();
        assert!(choice.contains_key("logprobs") && choice.contains_key("finish_reason"));
    }
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
    assert_eq!(text_of(chunks, 0), "Hello 🌍!", "no chunk splits a character");
    let unasked = server.chat(json!({"stream": true})).await.chunks();
    assert!(unasked.iter().all(|chunk| chunk.get("usage").is_none() && chunk["choices"] != json!([])));
}

#[tokio::test]
async fn stop_strings_end_the_answer_and_cancel_the_rest() {
    let server = Server::new(Script::Says("one STOP two"));
    for stop in [json!("STOP"), json!(["never", " two", "STOP"])] {
        let body = server.chat(json!({"stop": stop, "logprobs": true})).await.json();
        assert_eq!(body["choices"][0]["message"]["content"], "one ", "{stop}");
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
        assert_eq!(body["usage"]["completion_tokens"], 8, "tokens after the stop string are not made");
        assert_eq!(body["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 4);
    }
    let chunks = server.chat(json!({"stop": "STOP", "stream": true})).await.chunks();
    assert_eq!(text_of(&chunks, 0), "one ");
    let unfinished = server.chat(json!({"stop": "two!"})).await.json();
    assert_eq!(unfinished["choices"][0]["message"]["content"], "one STOP two");
    assert_eq!(server.source.open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn length_is_a_finish_reason_of_its_own() {
    let server = Server::new(Script::Says("abcdef"));
    for field in ["max_tokens", "max_completion_tokens"] {
        let body = server.chat(json!({field: 4})).await.json();
        assert_eq!(body["choices"][0]["message"]["content"], "abcd");
        assert_eq!(body["choices"][0]["finish_reason"], "length");
        assert_eq!(body["usage"]["completion_tokens"], 4);
    }
    let all = server.chat(json!({"ignore_eos": true})).await.json();
    assert_eq!(all["usage"]["total_tokens"], CONTEXT_TOKENS, "without max_tokens the context is the limit");
}

#[tokio::test]
async fn choices_have_their_own_index_seed_and_opening() {
    let server = Server::new(Script::Says("ab"));
    let body = server.chat(json!({"n": 3, "seed": 7})).await.json();
    let indices: Vec<_> = body["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [&json!(0), &json!(1), &json!(2)]);
    assert_eq!(body["usage"]["completion_tokens"], 9);
    let seeds: Vec<u64> = server.taken().iter().map(|request| request.sampling.seed).collect();
    assert!(seeds[0] == 7 && seeds[1] != seeds[0] && seeds[2] != seeds[1], "{seeds:?}");
    let chunks = server.chat(json!({"n": 2, "stream": true})).await.chunks();
    for index in 0..2 {
        assert_eq!(text_of(&chunks, index), "ab");
        let roles = chunks.iter().filter(|chunk| {
            chunk["choices"][0]["index"] == index && chunk["choices"][0]["delta"]["role"] == "assistant"
        });
        assert_eq!(roles.count(), 1);
    }
    let random: Vec<u64> = server.taken()[3..].iter().map(|request| request.sampling.seed).collect();
    server.chat(json!({})).await;
    assert_ne!(
        server.taken().last().unwrap().sampling.seed,
        random[0],
        "a request without seed has a random one"
    );
}

#[tokio::test]
async fn logprobs_have_bytes_and_alternatives() {
    let server = Server::new(Script::Says("é"));
    let body = server.chat(json!({"logprobs": true, "top_logprobs": 2})).await.json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 2, "two tokens make one character; the end token is not listed");
    assert_eq!(content[0]["bytes"], json!([0xC3]));
    assert_eq!(content[0]["logprob"], json!(-0.5));
    let top = |token, logprob, byte| json!({"token": token, "logprob": logprob, "bytes": [byte]});
    assert_eq!(content[1]["top_logprobs"], json!([top("a", -1.5, 97), top("b", -2.5, 98)]));
    assert!(body["choices"][0]["logprobs"].as_object().unwrap().contains_key("refusal"));
    let none = server.chat(json!({"logprobs": true, "top_logprobs": 0})).await.json();
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    let streamed = server.chat(json!({"logprobs": true, "stream": true})).await.chunks();
    let lists = streamed.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(lists.map(Vec::len).sum::<usize>(), 2);
}

#[tokio::test]
async fn every_parameter_reaches_the_worker() {
    let server = Server::new(Script::Says("x"));
    let answer = server
        .chat(json!({
            "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "typical_p": 0.75, "seed": -1,
            "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": 2.0, "min_tokens": 3,
            "logit_bias": {"65": -100, "66": 12.5}, "max_tokens": 9, "logprobs": true, "top_logprobs": 20,
        }))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let request = &server.taken()[0];
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.5, 0.25, 40));
    assert_eq!((sampling.min_p, sampling.typical_p, sampling.seed), (0.125, 0.75, u64::MAX));
    assert_eq!((sampling.repetition_penalty, sampling.presence_penalty), (1.5, -1.0));
    assert_eq!((sampling.frequency_penalty, sampling.logprobs), (2.0, Some(20)));
    assert_eq!(sampling.logit_bias, [(65, -100.0), (66, 12.5)]);
    assert_eq!((request.limits.max_tokens, request.limits.min_tokens), (9, 3));
    assert_eq!(request.limits.stop_tokens, [EOS]);
}

#[tokio::test]
async fn nulls_mean_default_and_unknown_fields_pass() {
    let server = Server::new(Script::Says("x"));
    let fields = [
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "max_tokens",
        "logprobs",
        "stream",
        "stream_options",
        "logit_bias",
        "tools",
        "response_format",
        "user",
        "presence_penalty",
        "top_logprobs",
        "store",
    ];
    let nulls: serde_json::Map<_, _> = fields.iter().map(|&field| (field.to_owned(), Value::Null)).collect();
    assert_eq!(server.chat(Value::Object(nulls)).await.status, 200);
    let defaults = server.taken()[0].sampling.clone();
    assert_eq!((defaults.temperature, defaults.top_p), (1.0, 1.0));
    assert_eq!(
        server.chat(json!({"a_field_of_tomorrow": {"deep": [1]}, "user": "u", "store": false})).await.status,
        200
    );
    assert_eq!(server.chat(json!({"model": "default"})).await.json()["model"], "tiny");
}

#[tokio::test]
async fn messages_of_all_roles_and_parts_reach_the_template() {
    let server = Server::new(Script::Says("x"));
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "user", "content": "U"},
    ]);
    let answer = server.chat(json!({"messages": messages})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let prompt: Vec<u8> = server.taken()[0].prompt.iter().map(|&token| (token - FIRST_BYTE) as u8).collect();
    let turn = |role, content| format!("<|im_start|>{role}\n{content}<|im_end|>\n");
    let expected = [
        turn("system", "S"),
        turn("developer", "a\nb"),
        turn("assistant", ""),
        turn("tool", "42"),
        turn("user", "U"),
        "<|im_start|>assistant\n".to_owned(),
    ]
    .concat();
    assert_eq!(String::from_utf8(prompt).unwrap(), expected);
}

#[tokio::test]
async fn failing_stream_ends_with_an_error_and_no_done() {
    let error = RequestError::Deadline { deadline_ms: 5, emitted: 2 };
    let server = Server::new(Script::Fails("ab", error));
    let answer = server.chat(json!({"stream": true})).await;
    let events = answer.events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "deadline_exceeded", "{}", answer.text);
    assert!(!events.contains(&"[DONE]"));
    let whole = server.chat(json!({})).await;
    assert_eq!((whole.status, whole.error()["code"].clone()), (504, json!("deadline_exceeded")));
}

#[tokio::test]
async fn leaving_client_cancels_every_choice() {
    let server = Server::new(Script::Hangs);
    let body =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": true, "n": 4});
    let request = axum::http::Request::post("/v1/chat/completions").body(body.to_string().into()).unwrap();
    let mut response = server.send(request).await;
    let opening = response.body_mut().frame().await.unwrap().unwrap();
    assert!(opening.data_ref().unwrap().starts_with(b"data: {"));
    assert_eq!(server.source.open.load(Ordering::SeqCst), 4);
    drop(response);
    assert_eq!(server.source.open.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn waiting_stream_is_kept_alive_by_comments() {
    let server = Server::new(Script::Hangs);
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": true});
    let request = axum::http::Request::post("/v1/chat/completions").body(body.to_string().into()).unwrap();
    let mut response = server.send(request).await;
    response.body_mut().frame().await.unwrap().unwrap();
    let comment = response.body_mut().frame().await.unwrap().unwrap();
    assert!(comment.data_ref().unwrap().starts_with(b":"));
}
