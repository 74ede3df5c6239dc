//! Frames and messages: every message survives the wire, and any bytes give a message or an error.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::collection::vec;
use proptest::prelude::*;
use shared::ids::{Attempt, RequestId};
use shared::ipc::frame::{
    FRAME_BYTES_MAX, FrameError, FrameReader, FrameWriter, decode_payload, encode_frame,
};
use shared::ipc::message::{
    DeviceInfo, EngineStats, FinishReason, ModelInfo, Phase, Rejection, RequestLimits, Submit, Timings,
    TokenEvent, TokenLogprobs, WorkerLimits,
};
use shared::ipc::{FromWorker, ToWorker};
use shared::sampling::SamplingParams;

const LENGTH_BYTES: usize = 4;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Everything a reader finds in `bytes`: the messages, and the error that ended it, if any.
fn read_all(bytes: &[u8]) -> (Vec<ToWorker>, Option<FrameError>) {
    let mut reader = FrameReader::new(bytes);
    let mut messages = Vec::new();
    block_on(async {
        loop {
            match reader.read().await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, None),
                Err(error) => return (messages, Some(error)),
            }
        }
    })
}

fn frame(message: &ToWorker) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frame(message, &mut bytes).unwrap();
    bytes
}

fn id() -> impl Strategy<Value = (RequestId, Attempt)> {
    any::<(u64, u32)>().prop_map(|(id, attempt)| (RequestId(id), Attempt(attempt)))
}

fn float() -> impl Strategy<Value = f32> {
    // NaN differs from itself and would fail the comparison, not the wire.
    any::<f32>().prop_filter("a number", |x| !x.is_nan())
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    (
        (float(), any::<u32>(), float(), float(), float()),
        (float(), float(), float()),
        vec((any::<u32>(), float()), 0..5),
    )
        .prop_flat_map(|(first, second, logit_bias)| {
            any::<(u64, Option<u32>)>().prop_map(move |(seed, logprobs)| SamplingParams {
                temperature: first.0,
                top_k: first.1,
                top_p: first.2,
                min_p: first.3,
                typical_p: first.4,
                repetition_penalty: second.0,
                presence_penalty: second.1,
                frequency_penalty: second.2,
                logit_bias: logit_bias.clone(),
                seed,
                logprobs,
            })
        })
}

fn submit() -> impl Strategy<Value = Submit> {
    let tokens = || vec(any::<u32>(), 0..40);
    (id(), tokens(), tokens(), tokens(), sampling(), any::<(u32, u32, i32)>()).prop_map(
        |((id, attempt), prompt, emitted, stop_tokens, sampling, (max_tokens, min_tokens, priority))| {
            Submit {
                id,
                attempt,
                prompt,
                emitted,
                sampling,
                limits: RequestLimits { max_tokens, min_tokens, stop_tokens, priority },
            }
        },
    )
}

fn to_worker() -> impl Strategy<Value = ToWorker> {
    prop_oneof![
        any::<u32>().prop_map(|version| ToWorker::Hello { version }),
        submit().prop_map(|submit| ToWorker::Submit(Box::new(submit))),
        id().prop_map(|(id, attempt)| ToWorker::Cancel { id, attempt }),
        any::<u64>().prop_map(|nonce| ToWorker::Ping { nonce }),
        Just(ToWorker::Drain),
        Just(ToWorker::Shutdown),
    ]
}

fn stats() -> impl Strategy<Value = EngineStats> {
    any::<([u64; 7], [u32; 5])>().prop_map(|(long, short)| EngineStats {
        step: long[0],
        running: short[0],
        waiting: short[1],
        kv_blocks_free: short[2],
        kv_blocks_total: short[3],
        prefix_queries: long[1],
        prefix_hits: long[2],
        preemptions: long[3],
        batch_tokens: short[4],
        memory_used_bytes: long[4],
        drafted: long[5],
        accepted: long[6],
    })
}

fn token_event() -> impl Strategy<Value = TokenEvent> {
    let logprobs = (float(), vec((any::<u32>(), float()), 0..20));
    let logprobs = logprobs.prop_map(|(logprob, top)| TokenLogprobs { logprob, top });
    (id(), any::<u32>(), any::<u32>(), prop::option::of(logprobs)).prop_map(
        |((id, attempt), index, token, logprobs)| TokenEvent { id, attempt, index, token, logprobs },
    )
}

fn rejection() -> impl Strategy<Value = Rejection> {
    prop_oneof![
        any::<(u32, u32)>()
            .prop_map(|(prompt_tokens, context_tokens)| Rejection::TooLong { prompt_tokens, context_tokens }),
        ".*".prop_map(|message| Rejection::Invalid { message }),
        any::<(u32, u32)>().prop_map(|(waiting, limit)| Rejection::Overloaded { waiting, limit }),
        Just(Rejection::Draining),
        ".*".prop_map(|message| Rejection::Internal { message }),
    ]
}

fn ready() -> impl Strategy<Value = FromWorker> {
    (any::<[String; 3]>(), any::<[u64; 2]>(), any::<[u32; 7]>()).prop_map(|(text, long, short)| {
        let [architecture, name, quantization] = text;
        FromWorker::Ready {
            model: ModelInfo {
                architecture,
                name,
                parameters: long[0],
                quantization,
                vocab_size: short[0],
                context_train: short[1],
                weight_bytes: long[1],
            },
            limits: WorkerLimits {
                context_tokens: short[2],
                sequences: short[3],
                waiting: short[4],
                kv_blocks: short[5],
                kv_block_tokens: short[6],
            },
        }
    })
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![
        Phase::Loading,
        Phase::Idle,
        Phase::Computing,
        Phase::Sampling,
        Phase::Reporting,
    ])
}

fn from_worker() -> impl Strategy<Value = FromWorker> {
    let reason =
        prop_oneof![Just(FinishReason::Stop), Just(FinishReason::Length), Just(FinishReason::Cancelled)];
    let hello = any::<(u32, u32, String, String, u32, u64)>();
    prop_oneof![
        hello.prop_map(|(version, pid, backend, name, units, memory_total_bytes)| FromWorker::Hello {
            version,
            pid,
            device: DeviceInfo { backend, name, units, memory_total_bytes },
        }),
        any::<(u64, u64)>()
            .prop_map(|(done_bytes, total_bytes)| FromWorker::Loading { done_bytes, total_bytes }),
        ready(),
        (vec(token_event(), 0..20), stats()).prop_map(|(events, stats)| FromWorker::Step { events, stats }),
        (id(), reason, any::<([u64; 3], u32)>()).prop_map(|((id, attempt), reason, (us, cached_tokens))| {
            let timings = Timings { queue_us: us[0], prefill_us: us[1], decode_us: us[2], cached_tokens };
            FromWorker::Finished { id, attempt, reason, timings }
        }),
        (id(), rejection()).prop_map(|((id, attempt), error)| FromWorker::Rejected { id, attempt, error }),
        (any::<u64>(), stats()).prop_map(|(nonce, stats)| FromWorker::Pong { nonce, stats }),
        (phase(), any::<u64>()).prop_map(|(phase, progress)| FromWorker::Heartbeat { phase, progress }),
        Just(FromWorker::Leaving),
        prop::option::of(any::<u32>()).prop_map(|owner_pid| FromWorker::Busy { owner_pid }),
        ".*".prop_map(|error| FromWorker::Fatal { error }),
    ]
}

proptest! {
    #[test]
    fn messages_survive_the_wire(requests in vec(to_worker(), 0..6), answers in vec(from_worker(), 0..6)) {
        block_on(async {
            let (mut requests_wire, mut answers_wire) = (Vec::new(), Vec::new());
            let mut writer = FrameWriter::new(&mut requests_wire);
            requests.iter().for_each(|message| writer.queue(message).unwrap());
            writer.flush().await.unwrap();
            let mut writer = FrameWriter::new(&mut answers_wire);
            for message in &answers {
                writer.write(message).await.unwrap();
            }
            let mut reader = FrameReader::new(requests_wire.as_slice());
            for message in &requests {
                assert_eq!(reader.read::<ToWorker>().await.unwrap().as_ref(), Some(message));
            }
            assert!(reader.read::<ToWorker>().await.unwrap().is_none());
            let mut reader = FrameReader::new(answers_wire.as_slice());
            for message in &answers {
                assert_eq!(reader.read::<FromWorker>().await.unwrap().as_ref(), Some(message));
            }
            assert!(reader.read::<FromWorker>().await.unwrap().is_none());
        });
    }

    #[test]
    fn any_bytes_give_a_message_or_an_error(bytes in vec(any::<u8>(), 0..2000)) {
        // Whatever decodes encodes again to a message that is equal (or has a NaN).
        if let Ok(message) = decode_payload::<ToWorker>(&bytes) {
            prop_assert_eq!(frame(&message).len(), frame(&decode_payload(&frame(&message)[LENGTH_BYTES..]).unwrap()).len());
        }
        if let Ok(message) = decode_payload::<FromWorker>(&bytes) {
            encode_frame(&message, &mut Vec::new()).unwrap();
        }
        let (messages, _) = read_all(&bytes);
        prop_assert!(messages.len() <= bytes.len() / LENGTH_BYTES);
    }

    #[test]
    fn damaged_frames_never_panic(message in to_worker(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = frame(&message);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (messages, _) = read_all(&bytes);
        prop_assert!(messages.len() <= 1 + bytes.len() / LENGTH_BYTES);
    }

    #[test]
    fn a_frame_cut_anywhere_is_truncated(message in to_worker(), at in any::<prop::sample::Index>()) {
        let bytes = frame(&message);
        let at = at.index(bytes.len());
        let (messages, error) = read_all(&bytes[..at]);
        prop_assert!(messages.is_empty());
        prop_assert_eq!(matches!(error, Some(FrameError::Truncated { .. })), at > 0, "{:?}", error);
    }

    #[test]
    fn bytes_after_the_message_are_an_error(message in to_worker(), tail in vec(any::<u8>(), 1..9)) {
        let mut bytes = frame(&message);
        bytes.extend(tail);
        let error = decode_payload::<ToWorker>(&bytes[LENGTH_BYTES..]).expect_err("accepted");
        prop_assert!(matches!(error, FrameError::TrailingBytes { .. }), "{}", error);
    }
}

#[test]
fn oversized_frames_are_refused_on_both_sides() {
    let announced = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    assert!(
        matches!(read_all(&announced).1, Some(FrameError::TooLarge { bytes }) if bytes == FRAME_BYTES_MAX + 1)
    );
    let error = FromWorker::Fatal { error: "x".repeat(FRAME_BYTES_MAX + 1) };
    let mut out = vec![1, 2, 3];
    assert!(matches!(encode_frame(&error, &mut out), Err(FrameError::TooLarge { .. })));
    assert_eq!(out, [1, 2, 3], "the buffer is as it was");
}

#[test]
fn a_submit_of_two_million_tokens_fits() {
    let (prompt, emitted) = (vec![u32::MAX; 2_000_000], vec![u32::MAX; 100_000]);
    let limits = RequestLimits { max_tokens: 1, min_tokens: 0, stop_tokens: Vec::new(), priority: 0 };
    let sampling = SamplingParams::default();
    let submit = Submit { id: RequestId(1), attempt: Attempt(0), prompt, emitted, sampling, limits };
    let message = ToWorker::Submit(Box::new(submit));
    assert!(read_all(&frame(&message)).0 == [message]);
}
