//! No frame makes the decoder allocate more than a stated bound. One test in a binary of its own, because the
//! allocator counts the whole process.

use peak_alloc::PeakAlloc;
use shared::ipc::frame::{FRAME_BYTES_MAX, decode_payload};
use shared::ipc::{FromWorker, ToWorker};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The decoder's own limit counts what containers claim; a list within a list can claim as much again.
const BYTES_MAX: usize = 2 * FRAME_BYTES_MAX + (64 << 10);

fn check(payload: &[u8]) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let decoded =
        (decode_payload::<ToWorker>(payload).is_ok(), decode_payload::<FromWorker>(payload).is_ok());
    let grown = ALLOCATOR.peak_usage() - before;
    assert!(
        grown <= BYTES_MAX,
        "payload of {} bytes took {grown}, limit {BYTES_MAX} ({decoded:?})",
        payload.len()
    );
}

#[test]
fn no_frame_allocates_past_its_bound() {
    // bincode's variable-length integers: 251, 252 and 253 announce 2, 4 and 8 bytes.
    let counts: [&[u8]; 5] = [
        &[250],
        &[251, 0xff, 0xff],
        &[252, 0, 0, 0x10, 0],
        &[252, 0xff, 0xff, 0xff, 0xff],
        &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for variant in 0..9u8 {
        for count in counts {
            // A count where a list may start, after 0 to 12 zero fields, with nothing or a whole frame behind it.
            for zeros in 0..12 {
                let mut payload = vec![variant];
                payload.resize(1 + zeros, 0);
                payload.extend_from_slice(count);
                check(&payload);
                payload.resize(payload.len() + 4096, 1);
                check(&payload);
            }
        }
    }
    for fill in [0u8, 1, 5, 250, 252] {
        for variant in 0..9u8 {
            let mut payload = vec![fill; FRAME_BYTES_MAX];
            payload[0] = variant;
            // As many list entries as the limit lets through, all of them there.
            payload[1..6].copy_from_slice(&[252, 0, 0, 4, 0]);
            check(&payload);
            payload[3..8].copy_from_slice(&[252, 0, 0, 0x3f, 0]);
            check(&payload);
        }
    }
}
