//! Framing: a u32 little-endian length, then that many bytes of one encoded message.
//!
//! Reader and writer work over any tokio stream, so tests drive them over in-memory pipes and fuzzing over slices.

use super::codec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest frame either side sends or accepts. A `Submit` of a 2-million-token context at 5 bytes a token fits.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the length in front of every frame.
const LENGTH_BYTES: usize = 4;
/// Memory a writer keeps from one flush to the next; a long prompt's frame is given back.
const BUFFER_KEPT_BYTES: usize = 256 * 1024;
/// What a reader allocates before it has seen the bytes a frame announces.
const READ_CHUNK_BYTES: usize = 64 * 1024;

/// Payload of a frame that is no message: the format reserves 255 where it has the variant's number.
const DAMAGED: [u8; 8] = [0xFF; 8];

/// A frame that cannot be sent, read or understood. All of them end the connection.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced or we built a frame past the limit.
    #[error("frame is {bytes} bytes long, limit {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The bytes are no message.
    #[error("frame does not decode: {reason}")]
    Decode {
        /// The decoder's words.
        reason: String,
    },
    /// A message is followed by further bytes in its frame.
    #[error("frame of {len} bytes holds a message of {used}")]
    TrailingBytes {
        /// Bytes of the message.
        used: usize,
        /// Bytes of the frame.
        len: usize,
    },
    /// A message of ours cannot be encoded.
    #[error("message does not encode: {reason}")]
    Encode {
        /// The encoder's words.
        reason: String,
    },
    /// The connection ended inside a frame.
    #[error("connection closed inside a frame after {read} of {expected} bytes")]
    Truncated {
        /// Bytes of the frame received.
        read: usize,
        /// Bytes announced.
        expected: usize,
    },
    /// The socket failed.
    #[error("socket error: {0}")]
    Io(#[from] std::io::Error),
}

/// Decodes one frame's payload (without its length). Never panics and never allocates beyond the frame limit.
pub fn decode_payload<M: bincode::Decode<()>>(payload: &[u8]) -> Result<M, FrameError> {
    if payload.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes: payload.len() });
    }
    codec::decode(payload)
}

/// Encodes `message` with its length in front, appended to `out`, which an error leaves as it was.
pub fn encode_frame<M: bincode::Encode>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    if let Err(error) = codec::encode(message, out) {
        out.truncate(start);
        return Err(error);
    }
    let bytes = out.len() - start - LENGTH_BYTES;
    if bytes > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(FrameError::TooLarge { bytes });
    }
    // The limit above is below u32::MAX, so the cast keeps the value.
    out[start..start + LENGTH_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
    Ok(())
}

/// Reads messages from one half of a connection.
pub struct FrameReader<R> {
    stream: R,
    payload: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream`, which should be buffered by the caller if it makes small reads costly.
    pub fn new(stream: R) -> Self {
        Self { stream, payload: Vec::new() }
    }

    /// The next message, or `None` when the peer closed between frames. Not cancel-safe: give it its own task.
    pub async fn read<M: bincode::Decode<()>>(&mut self) -> Result<Option<M>, FrameError> {
        let mut length = [0u8; LENGTH_BYTES];
        let read = self.fill(&mut length).await?;
        if read == 0 {
            return Ok(None);
        }
        if read < LENGTH_BYTES {
            return Err(FrameError::Truncated { read, expected: LENGTH_BYTES });
        }
        let expected = u32::from_le_bytes(length) as usize;
        if expected > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge { bytes: expected });
        }
        // Grow with what has arrived, so that an announced length alone costs no memory.
        self.payload.clear();
        while self.payload.len() < expected {
            let start = self.payload.len();
            let end = expected.min(start + READ_CHUNK_BYTES);
            self.payload.resize(end, 0);
            let mut payload = std::mem::take(&mut self.payload);
            let outcome = self.fill(&mut payload[start..]).await;
            self.payload = payload;
            let read = outcome?;
            if read < end - start {
                return Err(FrameError::Truncated { read: start + read, expected });
            }
        }
        decode_payload(&self.payload).map(Some)
    }

    /// Fills `buffer` as far as the stream goes; returns the bytes read.
    async fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, FrameError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.stream.read(&mut buffer[filled..]).await? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }
}

/// Writes messages to one half of a connection.
pub struct FrameWriter<W> {
    stream: W,
    buffer: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream`; frames are collected and go out with [`Self::flush`].
    pub fn new(stream: W) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Encodes `message` into the buffer. Nothing is sent yet.
    pub fn queue<M: bincode::Encode>(&mut self, message: &M) -> Result<(), FrameError> {
        encode_frame(message, &mut self.buffer)
    }

    /// Puts a frame into the buffer that is no message, for tests of what the peer does about it.
    pub fn queue_damaged(&mut self) {
        self.buffer.extend_from_slice(&(DAMAGED.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&DAMAGED);
    }

    /// Bytes queued and not yet sent.
    pub fn queued_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Sends everything queued in one write where the socket takes it.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT_BYTES);
        Ok(self.stream.flush().await?)
    }

    /// Queues and sends one message.
    pub async fn write<M: bincode::Encode>(&mut self, message: &M) -> Result<(), FrameError> {
        self.queue(message)?;
        self.flush().await
    }
}
