//! `/v1/completions`.

use crate::scripted::{FIRST_BYTE, Script, Server};
use serde_json::{Value, json};

#[tokio::test]
async fn answer_has_the_legacy_shape() {
    let server = Server::new(Script::Says("abc"));
    let body = server.complete(json!({})).await.json();
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(
        body["choices"],
        json!([{"index": 0, "text": "abc", "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(body["usage"], json!({"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}));
}

#[tokio::test]
async fn sixteen_tokens_without_max_tokens() {
    let server = Server::new(Script::Says("0123456789abcdefghij"));
    let body = server.complete(json!({"max_tokens": null})).await.json();
    assert_eq!(body["choices"][0]["text"], "0123456789abcdef");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let server = Server::new(Script::Says("x"));
    let h = FIRST_BYTE + u32::from(b'H');
    for (prompt, expected) in [
        (json!("HH"), vec![vec![h, h]]),
        (json!(["H", "HH"]), vec![vec![h], vec![h, h]]),
        (json!([h, h, h]), vec![vec![h, h, h]]),
        (json!([[h], [h, h]]), vec![vec![h], vec![h, h]]),
        (json!(""), vec![vec![1]]),
    ] {
        let before = server.taken().len();
        let answer = server.complete(json!({"prompt": prompt})).await;
        assert_eq!(answer.status, 200, "{prompt}: {}", answer.text);
        let taken: Vec<_> = server.taken()[before..].iter().map(|request| request.prompt.clone()).collect();
        assert_eq!(taken, expected, "{prompt}");
        assert_eq!(answer.json()["choices"].as_array().unwrap().len(), expected.len());
    }
}

#[tokio::test]
async fn choices_are_ordered_prompt_by_prompt() {
    let server = Server::new(Script::Says("x"));
    let body = server.complete(json!({"prompt": ["A", "BB"], "n": 2, "seed": 5})).await.json();
    let indices: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let taken = server.taken();
    let lengths: Vec<usize> = taken.iter().map(|request| request.prompt.len()).collect();
    assert_eq!(lengths, [1, 1, 2, 2]);
    assert_eq!(
        taken[0].sampling.seed, taken[2].sampling.seed,
        "a prompt's first choice is that of the prompt alone"
    );
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}));
    let empty = server.complete(json!({"prompt": "", "n": 2})).await;
    assert_eq!((empty.status, empty.json()["choices"].as_array().unwrap().len()), (200, 2));
}

#[tokio::test]
async fn logprobs_are_four_lists() {
    let server = Server::new(Script::Says("aé"));
    let body = server.complete(json!({"logprobs": 1})).await.json();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1]));
    assert_eq!(logprobs["top_logprobs"][1], json!({"a": -1.5, "bytes:\\xc3": -0.5}));
    let zero = server.complete(json!({"logprobs": 0})).await.json();
    assert_eq!(zero["choices"][0]["logprobs"]["token_logprobs"], json!([-0.5, -0.5, -0.5]), "0 is not off");
}

#[tokio::test]
async fn stream_adds_up_to_the_whole_answer() {
    let server = Server::new(Script::Says("Grüße 🌍 END rest"));
    let fields = json!({"stop": ["END"], "logprobs": 2, "prompt": ["a", "b"]});
    let whole = server.complete(fields.clone()).await.json();
    let mut streamed_fields = fields;
    streamed_fields["stream"] = json!(true);
    streamed_fields["stream_options"] = json!({"include_usage": true});
    let chunks = server.complete(streamed_fields).await.chunks();
    for index in 0..2 {
        let own: Vec<&Value> = chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).collect();
        let own: Vec<&Value> = own.into_iter().filter(|choice| choice["index"] == index).collect();
        let text: String = own.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        let expected = &whole["choices"][index];
        assert_eq!(json!(text), expected["text"]);
        assert_eq!(text, "Grüße 🌍 ");
        let tokens: Vec<&Value> =
            own.iter().filter_map(|choice| choice["logprobs"]["tokens"].as_array()).flatten().collect();
        assert_eq!(json!(tokens), expected["logprobs"]["tokens"]);
        let reasons: Vec<_> =
            own.iter().map(|choice| &choice["finish_reason"]).filter(|it| !it.is_null()).collect();
        assert_eq!(reasons, ["stop"]);
    }
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
    assert!(
        chunks.iter().all(|chunk| chunk["object"] == "text_completion" && chunk["id"] == chunks[0]["id"])
    );
}
