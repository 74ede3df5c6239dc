//! Any payload gives a message or an error of one line; what decodes encodes again.
//!
//! From `shared/`: `cargo +nightly fuzz run ipc_frame -- -max_total_time=60 -rss_limit_mb=256 -max_len=4096`

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::ipc::frame::{FrameError, decode_payload, encode_frame};
use shared::ipc::{FromWorker, ToWorker};

fuzz_target!(|payload: &[u8]| {
    let mut again = Vec::new();
    let outcomes = [
        decode_payload::<ToWorker>(payload).and_then(|message| encode_frame(&message, &mut again)),
        decode_payload::<FromWorker>(payload).and_then(|message| encode_frame(&message, &mut again)),
    ];
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert!(!matches!(error, FrameError::Encode { .. } | FrameError::TooLarge { .. }), "{error}");
        let line = error.to_string();
        assert!(!line.contains('\n') && line.len() < 1024, "{line}");
    }
});
