//! The server answers, in the shapes the OpenAI clients expect.

use harness::{Server, ServerOptions, Stream, chat_body, demo_questions, get, poll, post};
use serde_json::json;

#[test]
fn ready_is_false_before_loading_and_true_after() {
    let server = Server::start(&ServerOptions::default());
    // The socket opens before the worker can have loaded anything, so the first answer is 503 unless the machine
    // is faster than the test; either way the body must agree with the status.
    let (status, body) = get(&server.at("/ready"));
    assert!(matches!(status, 200 | 503), "{status}");
    assert_eq!(body["ready"], json!(status == 200));
    if status == 503 {
        assert!(body["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{body}");
    }
    server.wait_ready();
    assert_eq!(get(&server.at("/ready")).1["ready"], json!(true));
    let health = server.health();
    assert_eq!(health["service"], "rocmforge");
    assert_eq!(health["workers"][0]["state"], "ready", "{health}");
}

#[test]
fn ready_is_false_while_the_worker_cannot_have_loaded() {
    // A worker binary that never speaks: whatever the machine's speed, the server is up and not ready.
    let options = ServerOptions::default().env("ROCMFORGE_WORKER_BIN", "/bin/cat");
    let server = Server::start(&options);
    let (status, body) = get(&server.at("/ready"));
    assert_eq!((status, &body["ready"]), (503, &json!(false)), "{body}");
    assert_eq!(get(&server.at("/health")).0, 200);
}

#[test]
fn demo_model_answers_every_listed_question_streamed_or_not() {
    let server = Server::ready(&ServerOptions::default());
    let questions = demo_questions();
    assert!(questions.len() >= 50, "only {} questions", questions.len());
    let url = server.at("/v1/chat/completions");
    for (question, answer) in questions {
        let (status, body) = post(&url, &chat_body(&question));
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["choices"][0]["message"]["content"], json!(answer), "{question}");
        assert_eq!(body["choices"][0]["finish_reason"], "stop", "{question}");
        let chunks = Stream::open(&url, &chat_body(&question)).rest();
        assert_eq!(Stream::chat_text(&chunks), answer, "{question} streamed");
    }
}

#[test]
fn a_stream_has_one_id_ends_with_a_reason_and_usage_when_asked() {
    let server = Server::ready(&ServerOptions::default());
    let mut body = chat_body("What is the capital of France?");
    body["stream_options"] = json!({"include_usage": true});
    let mut stream = Stream::open(&server.at("/v1/chat/completions"), &body);
    let chunks = stream.rest();
    assert!(stream.done, "no [DONE]");
    let (last, chunks) = chunks.split_last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{last}");
    for chunk in chunks {
        assert_eq!(chunk["id"], last["id"]);
        assert_eq!(chunk["created"], last["created"]);
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert!(chunk["usage"].is_null(), "{chunk}");
    }
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[chunks.len() - 1]["choices"][0]["finish_reason"], "stop");
}

#[test]
fn same_seed_same_text_streamed_or_not_and_beside_others() {
    let server = Server::ready(&ServerOptions::default());
    let url = server.at("/v1/chat/completions");
    // Nothing the model was taught, at a temperature where it wanders.
    let mut body = chat_body("Sing about purple engines and seventeen clouds");
    body["temperature"] = json!(2);
    body["seed"] = json!(42);
    body["max_tokens"] = json!(60);
    let text = |body: &serde_json::Value| post(&url, body).1["choices"][0]["message"]["content"].clone();
    let alone = text(&body);
    assert!(alone.as_str().is_some_and(|text| !text.is_empty()), "{alone}");
    let beside: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| text(&body))).collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
    });
    for other in beside {
        assert_eq!(other, alone);
    }
    assert_eq!(json!(Stream::chat_text(&Stream::open(&url, &body).rest())), alone);
    body["seed"] = json!(43);
    assert_ne!(text(&body), alone, "another seed gives another text at this temperature");
}

#[test]
fn two_clients_do_not_wait_for_each_other() {
    let server = Server::ready(&ServerOptions::default());
    let mut long =
        json!({"model": "default", "prompt": "One two three", "max_tokens": 1500, "ignore_eos": true});
    long["temperature"] = json!(0);
    let mut stream = Stream::open(&server.at("/v1/completions"), &long);
    assert!(stream.next_chunk().is_some(), "the long answer has begun");
    let (status, body) =
        post(&server.at("/v1/chat/completions"), &chat_body("What is the capital of France?"));
    assert_eq!(status, 200, "{body}");
    // The short answer is complete; the long one still has most of its tokens to come.
    let remaining = stream.rest().len();
    assert!(stream.done && remaining > 50, "only {remaining} chunks of the long answer were left");
}

#[test]
fn leaving_client_frees_its_place() {
    let server = Server::ready(&ServerOptions::default());
    let body = json!({"model": "default", "prompt": "One two three", "max_tokens": 1900, "ignore_eos": true});
    let mut stream = Stream::open(&server.at("/v1/completions"), &body);
    assert!(stream.next_chunk().is_some());
    drop(stream);
    poll("the worker to have no running sequence", || {
        (server.metric("rocmforge_running_sequences")? == 0.0).then_some(())
    });
    assert_eq!(post(&server.at("/v1/chat/completions"), &chat_body("What is the capital of France?")).0, 200);
}

#[test]
fn models_are_listed_and_retrieved() {
    let server = Server::ready(&ServerOptions::args(&["--alias", "tiny"]));
    let (status, list) = get(&server.at("/v1/models"));
    assert_eq!((status, &list["object"]), (200, &json!("list")));
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(get(&server.at("/v1/models/tiny")).1["object"], "model");
    let (status, body) = get(&server.at("/v1/models/other"));
    assert_eq!((status, &body["error"]["code"]), (404, &json!("model_not_found")));
}
