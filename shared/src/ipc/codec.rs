//! Messages ↔ bytes. The only place that names bincode.

use super::frame::{FRAME_BYTES_MAX, FrameError};
use bincode::config::{Configuration, Limit, LittleEndian, Varint};

/// Little endian, variable-length integers, and a bound on what decoding may allocate.
const FORMAT: Configuration<LittleEndian, Varint, Limit<FRAME_BYTES_MAX>> =
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

/// Appends the encoding of `message` to `out`.
pub(super) fn encode<M: bincode::Encode>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    bincode::encode_into_std_write(message, out, FORMAT)
        .map(|_| ())
        .map_err(|error| FrameError::Encode { reason: error.to_string() })
}

/// Reads one message that must fill `bytes` exactly.
pub(super) fn decode<M: bincode::Decode<()>>(bytes: &[u8]) -> Result<M, FrameError> {
    let (message, used) = bincode::decode_from_slice(bytes, FORMAT)
        .map_err(|error| FrameError::Decode { reason: error.to_string() })?;
    if used == bytes.len() { Ok(message) } else { Err(FrameError::TrailingBytes { used, len: bytes.len() }) }
}
