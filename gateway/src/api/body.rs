//! Request bodies: bounded each in bytes and time, and all together in bytes, so that no number of clients makes the
//! gateway hold more than it was told.

use crate::metrics;
use crate::openai::{ApiError, ErrorKind};
use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bodies are counted in pieces of this size; a connection's smallest cost is of this order anyway.
const UNIT_BYTES: usize = 1024;
/// Code of the error of a body for which there is no memory.
pub(super) const BODY_MEMORY: &str = "body_memory";
/// Wait suggested where bodies fill their memory: they are read in seconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What bodies may cost.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Longest one.
    pub bytes: usize,
    /// All that are being read or worked on, in sum.
    pub bytes_total: usize,
    /// Longest wait for a whole one.
    pub timeout: Duration,
}

/// Reads bodies within their limits.
#[derive(Debug)]
pub(super) struct BodyReader {
    limits: BodyLimits,
    units: Arc<Semaphore>,
}

/// A whole body; its share of the total is free again when it is dropped.
pub(super) struct HeldBody {
    bytes: Bytes,
    _share: Share,
}

/// What one body holds of the total.
type Share = Option<OwnedSemaphorePermit>;

impl HeldBody {
    /// The same bytes for a blocking thread, which may outlive the request's handler by its work.
    pub(super) fn share(&self) -> Bytes {
        self.bytes.clone()
    }
}

impl Deref for HeldBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl BodyReader {
    pub(super) fn new(limits: BodyLimits) -> Self {
        let units = limits.bytes_total.div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { limits, units: Arc::new(Semaphore::new(units)) }
    }

    /// The whole body, or what is wrong with it.
    pub(super) async fn read(&self, body: Body) -> Result<HeldBody, ApiError> {
        if body.size_hint().lower() > self.limits.bytes as u64 {
            return Err(self.too_long());
        }
        let timeout = self.limits.timeout;
        tokio::time::timeout(timeout, self.collect(body)).await.unwrap_or_else(|_| {
            let message = format!("the request body did not arrive within {} s", timeout.as_secs_f64());
            Err(ApiError::new(ErrorKind::BodyTimeout, message))
        })
    }

    /// Takes its share as bytes come, so that an announced length alone keeps nobody out.
    async fn collect(&self, mut body: Body) -> Result<HeldBody, ApiError> {
        let mut bytes = Vec::new();
        let mut share = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let message = format!("the request body could not be read: {error}");
                ApiError::new(ErrorKind::InvalidRequest, message)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > self.limits.bytes {
                return Err(self.too_long());
            }
            self.grow(&mut share, length)?;
            bytes.extend_from_slice(&data);
        }
        Ok(HeldBody { bytes: bytes.into(), _share: share })
    }

    fn grow(&self, share: &mut Share, length: usize) -> Result<(), ApiError> {
        let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = length.div_ceil(UNIT_BYTES).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        match Arc::clone(&self.units).try_acquire_many_owned(more) {
            Ok(permit) => {
                match share {
                    Some(held) => held.merge(permit),
                    None => *share = Some(permit),
                }
                Ok(())
            }
            Err(_) => {
                metrics::rejected(BODY_MEMORY);
                let total = self.limits.bytes_total;
                let message = format!("request bodies under way add up to the limit of {total} bytes");
                let error = ApiError::new(ErrorKind::Unavailable, message).code(BODY_MEMORY);
                Err(error.retry_after(Some(RETRY_AFTER)))
            }
        }
    }

    fn too_long(&self) -> ApiError {
        let message = format!("the request body is longer than {} bytes", self.limits.bytes);
        ApiError::new(ErrorKind::BodyTooLarge, message).code("body_too_large")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: usize, bytes_total: usize) -> BodyReader {
        BodyReader::new(BodyLimits { bytes, bytes_total, timeout: Duration::from_secs(5) })
    }

    fn status(read: Result<HeldBody, ApiError>) -> u16 {
        read.map_or_else(|error| error.kind.status(), |_| 200)
    }

    #[tokio::test]
    async fn bodies_in_hand_are_bounded_in_sum() {
        let reader = reader(4096, 8192);
        let body = |bytes: usize| Body::from(vec![b'x'; bytes]);
        let first = reader.read(body(4096)).await.unwrap();
        assert_eq!(first.len(), 4096);
        let second = reader.read(body(4000)).await.unwrap();
        assert_eq!(status(reader.read(body(1)).await), 503);
        drop(first);
        assert_eq!(status(reader.read(body(4096)).await), 200);
        drop(second);
        assert_eq!(reader.units.available_permits(), 8, "all is given back");
        assert_eq!(status(reader.read(body(0)).await), 200);
    }

    #[tokio::test]
    async fn a_body_longer_than_allowed_is_refused_announced_or_not() {
        let reader = reader(100, 8192);
        assert_eq!(status(reader.read(Body::from(vec![0; 101])).await), 413);
        let pieces = futures_util::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>(vec![0; 50])));
        assert_eq!(status(reader.read(Body::from_stream(pieces)).await), 413);
        assert_eq!(reader.units.available_permits(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let reader = reader(100, 8192);
        let trickle = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(vec![0; 1]), ()))
        });
        assert_eq!(status(reader.read(Body::from_stream(trickle)).await), 408);
        assert_eq!(reader.units.available_permits(), 8);
    }
}
