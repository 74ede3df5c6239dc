//! What an operator may ask of a running server over HTTP: to drain and end, and to restart its workers one by one.
//! Orders go to whoever runs the server (`cli::serve`); here they are only let in or refused.
//!
//! What holds always: with an admin key, every request must carry it, wherever it comes from. Without one, only a
//! request that a program of our own user or of root makes directly is let in: the peer is a loopback address and a
//! socket of that user, `Host` names such an address, and nothing says that a proxy or a web page is behind it. The
//! socket's user is what keeps proxies out that say nothing: nginx by itself adds no header, and sends the `Host` of
//! its upstream.

mod peer;

use super::answer::{error_response, json};
use crate::fleet::{RestartError, Restarted};
use crate::openai::{ApiError, ErrorKind};
use crate::secret::Secret;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json as object;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait for the server's attention.
pub const ADMIN_ORDERS_MAX: usize = 8;
/// Longest grace of a rolling restart's single worker.
const GRACE_MAX_S: f64 = 3600.0;
/// Headers that say that the request passed a proxy.
const PROXY_HEADERS: [&str; 4] = ["x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];

/// The other end of a connection, given with each of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// What an operator orders.
#[derive(Debug)]
pub enum AdminOrder {
    /// Refuse new requests, finish what runs, end the process. Answered with the requests in flight.
    Drain(oneshot::Sender<usize>),
    /// Give each managed worker a fresh process in turn.
    RestartWorkers {
        /// How long each may finish what it has; without it, as at shutdown.
        grace: Option<Duration>,
        /// Answered when the last one serves.
        done: oneshot::Sender<Result<Restarted, RestartError>>,
    },
}

/// What speaks for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voucher {
    Key,
    /// Its head; the socket at the other end is yet to be looked at.
    Loopback(SocketAddr),
}

/// The way to the operator's routes.
#[derive(Debug, Clone)]
pub struct Admin {
    key: Arc<RwLock<Option<[u8; 32]>>>,
    orders: mpsc::Sender<AdminOrder>,
}

impl Admin {
    /// Orders are put into `orders`; whoever gives one must know `key`, if there is one.
    pub fn new(key: Option<&Secret>, orders: mpsc::Sender<AdminOrder>) -> Self {
        Self { key: Arc::new(RwLock::new(key.map(digest))), orders }
    }

    /// From now on this key counts, or none.
    pub fn replace_key(&self, key: Option<&Secret>) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key.map(digest);
    }

    /// The routes, behind the guard.
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        Router::new()
            .route("/admin/drain", post(drain))
            .route("/admin/restart-workers", post(restart_workers))
            .route_layer(middleware::from_fn_with_state(self.clone(), guard))
            .with_state(self.clone())
    }

    fn check(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Voucher, ApiError> {
        let key = *self.key.read().unwrap_or_else(PoisonError::into_inner);
        match (key, peer) {
            (Some(key), _) => check_key(headers, &key).map(|()| Voucher::Key),
            (None, Some(Peer(peer))) if is_from_this_host(headers, peer) => Ok(Voucher::Loopback(peer)),
            (None, _) => Err(stranger()),
        }
    }
}

async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    match admin.check(request.headers(), peer) {
        Ok(Voucher::Key) => next.run(request).await,
        Ok(Voucher::Loopback(peer)) if is_trusted(peer).await => next.run(request).await,
        Ok(Voucher::Loopback(_)) => error_response(&stranger()),
        Err(error) => error_response(&error),
    }
}

/// Whether a socket at this address of our own host is that of our user, or of root. The kernel's table may be long.
async fn is_trusted(peer: SocketAddr) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    let look = move || peer::are_owners(peer, |uid| uid == own || uid == 0);
    tokio::task::spawn_blocking(look).await.unwrap_or(false)
}

fn stranger() -> ApiError {
    let message = "without ROCMFORGE_ADMIN_KEY this route answers only programs of the server's own user or of root \
                   that ask it directly by a loopback address";
    ApiError::new(ErrorKind::Authentication, message).code("admin_key_required")
}

async fn drain(State(admin): State<Admin>) -> Response {
    let (answer, in_flight) = oneshot::channel();
    match give(&admin, AdminOrder::Drain(answer), in_flight).await {
        Ok(in_flight) => {
            let mut response = json(&object!({"draining": true, "in_flight": in_flight}));
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(error) => error.into_response(),
    }
}

async fn restart_workers(State(admin): State<Admin>, uri: Uri) -> Response {
    let grace = match grace(uri.query()) {
        Ok(grace) => grace,
        Err(error) => return error.into_response(),
    };
    let (done, outcome) = oneshot::channel();
    match give(&admin, AdminOrder::RestartWorkers { grace, done }, outcome).await {
        Ok(Ok(restarted)) => {
            let fresh = restarted.workers.iter();
            let fresh = fresh.map(|(id, away)| object!({"id": id.0, "away_ms": away.as_millis() as u64}));
            json(&object!({
                "restarted": fresh.collect::<Vec<_>>(),
                "attached": restarted.attached.iter().map(|id| id.0).collect::<Vec<_>>(),
            }))
        }
        Ok(Err(error)) => {
            ApiError::new(ErrorKind::Unavailable, error.to_string()).code("restart_failed").into_response()
        }
        Err(error) => error.into_response(),
    }
}

async fn give<T>(admin: &Admin, order: AdminOrder, answer: oneshot::Receiver<T>) -> Result<T, ApiError> {
    let ending = || ApiError::new(ErrorKind::Unavailable, "the server is ending").code("unavailable");
    admin.orders.try_send(order).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => {
            let message = format!("{ADMIN_ORDERS_MAX} orders are waiting, try again later");
            ApiError::new(ErrorKind::Unavailable, message).code("unavailable")
        }
        mpsc::error::TrySendError::Closed(_) => ending(),
    })?;
    answer.await.map_err(|_| ending())
}

/// `grace_s` of a query, the only parameter there is.
fn grace(query: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    let seconds: Option<f64> = query.strip_prefix("grace_s=").and_then(|text| text.parse().ok());
    match seconds.filter(|seconds| (0.0..=GRACE_MAX_S).contains(seconds)) {
        Some(seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        None => {
            let message =
                format!("the query is `{query}`, use grace_s=N with N from 0 to {GRACE_MAX_S} seconds");
            Err(ApiError::new(ErrorKind::InvalidRequest, message).code("invalid_value"))
        }
    }
}

fn check_key(headers: &HeaderMap, key: &[u8; 32]) -> Result<(), ApiError> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let given = given.map(|(_, key)| Sha256::digest(key.trim().as_bytes()));
    if given.is_some_and(|given| bool::from(given.as_slice().ct_eq(key))) {
        return Ok(());
    }
    let message = "this route asks for the admin key: send the header `Authorization: Bearer KEY`";
    Err(ApiError::new(ErrorKind::Authentication, message).code("admin_key_required"))
}

fn is_from_this_host(headers: &HeaderMap, peer: SocketAddr) -> bool {
    let is_behind_something = headers.contains_key(ORIGIN)
        || headers.contains_key(FORWARDED)
        || PROXY_HEADERS.iter().any(|name| headers.contains_key(*name));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    peer.ip().to_canonical().is_loopback() && !is_behind_something && names_this_host(host)
}

/// Whether a `Host` header, port and all, names the loopback interface.
fn names_this_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.contains(':') => name,
        _ => host.trim_start_matches('[').trim_end_matches(']'),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn digest(key: &Secret) -> [u8; 32] {
    Sha256::digest(key.expose().as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    fn check(key: Option<&str>, peer: &str, pairs: &[(&'static str, &'static str)]) -> bool {
        let (orders, _) = mpsc::channel(1);
        let admin = Admin::new(key.map(Secret::new).as_ref(), orders);
        admin.check(&headers(pairs), Some(Peer(peer.parse().unwrap()))).is_ok()
    }

    #[test]
    fn without_a_key_only_direct_requests_of_this_host_pass() {
        for host in ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "[::1]", "127.0.0.1"] {
            assert!(check(None, "127.0.0.1:5000", &[("host", host)]), "{host}");
            assert!(check(None, "[::ffff:127.0.0.1]:5000", &[("host", host)]), "{host}");
            assert!(!check(None, "192.168.0.7:5000", &[("host", host)]), "{host}");
        }
        let local = ("host", "127.0.0.1:8000");
        for header in [
            ("origin", "http://evil.example"),
            ("x-forwarded-for", "8.8.8.8"),
            ("forwarded", "for=8.8.8.8"),
            ("via", "1.1 proxy"),
        ] {
            assert!(!check(None, "127.0.0.1:5000", &[local, header]), "{header:?}");
        }
        for host in ["evil.example", "", "localhost.evil.example:80", "10.0.0.1:80", "evil:127"] {
            assert!(!check(None, "127.0.0.1:5000", &[("host", host)]), "{host}");
        }
        let (orders, _) = mpsc::channel(1);
        assert!(Admin::new(None, orders).check(&headers(&[local]), None).is_err(), "an unknown peer");
    }

    #[test]
    fn with_a_key_nothing_else_counts() {
        let right = ("authorization", "Bearer adm-1");
        assert!(check(Some("adm-1"), "8.8.8.8:1", &[right, ("x-forwarded-for", "9.9.9.9")]));
        for wrong in ["Bearer adm-2", "adm-1", "Basic adm-1", "Bearer "] {
            assert!(!check(
                Some("adm-1"),
                "127.0.0.1:5000",
                &[("host", "localhost"), ("authorization", wrong)]
            ));
        }
        assert!(!check(Some("adm-1"), "127.0.0.1:5000", &[("host", "localhost")]));
    }

    #[test]
    fn the_grace_is_read_or_refused() {
        assert_eq!(grace(None), Ok(None));
        assert_eq!(grace(Some("grace_s=1.5")), Ok(Some(Duration::from_millis(1500))));
        for query in ["grace=1", "grace_s=", "grace_s=-1", "grace_s=NaN", "grace_s=1&x=2", "grace_s=1e9"] {
            assert!(grace(Some(query)).is_err(), "{query}");
        }
    }
}
