//! Routes and the layers around them. Everything answers in the OpenAI error shape: unknown routes, wrong methods,
//! missing keys, panics.

use super::auth::KeyRing;
use super::request_id;
use crate::api::{self, Admin, ApiState, Client, error_response};
use crate::metrics;
use crate::openai::{ApiError, ErrorKind};
use crate::rate_limit::{Level, header_time};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any as AnyMethod, CorsLayer};

/// Longest body of a refused request that is read to keep its connection; requests of chats are far shorter.
const REFUSED_BODY_BYTES_MAX: usize = 1 << 20;
/// Longest wait for one.
const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the router is built with besides the handlers' state.
#[derive(Debug, Clone, Default)]
pub struct RouterOptions {
    /// Asked for under `/v1`; health, readiness and metrics need none.
    pub keys: KeyRing,
    /// Origins that browsers may call from; `*` allows every one, none leaves CORS out.
    pub cors_origins: Vec<String>,
    /// The operator's routes, where there is somebody to take orders.
    pub admin: Option<Admin>,
}

/// Every route of the server.
pub fn router(state: Arc<ApiState>, options: &RouterOptions) -> Router {
    let v1 = Router::new()
        .route("/v1/models", get(api::list_models))
        .route("/v1/models/{*id}", get(api::retrieve_model))
        .route("/v1/completions", post(api::completions))
        .route("/v1/chat/completions", post(api::chat_completions))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(middleware::from_fn_with_state(options.keys.clone(), require_key));
    let admin = options.admin.as_ref().map(Admin::routes).unwrap_or_default();
    // Routes keep the fallback they had when they were merged.
    let admin = admin.method_not_allowed_fallback(wrong_method);
    let mut router = Router::new()
        .route("/health", get(api::health))
        .route("/ready", get(api::ready))
        .route("/metrics", get(api::metrics_text))
        .method_not_allowed_fallback(wrong_method)
        .merge(v1)
        .merge(admin)
        .fallback(no_route)
        .with_state(state)
        .layer(CatchPanicLayer::custom(panicked));
    if let Some(cors) = cors(&options.cors_origins) {
        router = router.layer(cors);
    }
    router.layer(middleware::from_fn(request_id::layer))
}

/// Finds out who asks, counts requests that make work, and says in every answer what is left.
async fn require_key(State(keys): State<KeyRing>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let client = match keys.check(header) {
        Ok(client) => client,
        Err(error) => return refuse(request, &error).await,
    };
    let taken = match *request.method() {
        Method::POST => client.account.take_request(Instant::now()),
        _ => Ok(()),
    };
    let mut response = match taken {
        Ok(()) => {
            request.extensions_mut().insert(client.clone());
            next.run(request).await
        }
        Err(refusal) => {
            metrics::rate_limited("requests");
            refuse(request, &refusal.into()).await
        }
    };
    tell_rates(&client, response.headers_mut());
    response
}

/// OpenAI's headers, for each limit there is.
fn tell_rates(client: &Client, headers: &mut HeaderMap) {
    let standing = client.account.standing(Instant::now());
    let mut tell = |level: Option<Level>, [limit, remaining, reset]: [&'static str; 3]| {
        let Some(level) = level else { return };
        headers.insert(limit, HeaderValue::from(level.limit));
        headers.insert(remaining, HeaderValue::from(level.remaining));
        if let Ok(value) = HeaderValue::try_from(header_time(level.reset)) {
            headers.insert(reset, value);
        }
    };
    tell(
        standing.requests,
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
    );
    tell(
        standing.tokens,
        ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    );
}

async fn no_route(request: Request) -> Response {
    let message = format!("there is no route {} {}", request.method(), request.uri().path());
    refuse(request, &ApiError::new(ErrorKind::NotFound, message).code("unknown_route")).await
}

async fn wrong_method(request: Request) -> Response {
    let message = format!("the route {} does not know the method {}", request.uri().path(), request.method());
    refuse(request, &ApiError::new(ErrorKind::MethodNotAllowed, message).code("method_not_allowed")).await
}

/// Answers a request whose body nobody reads. Clients send headers and body apart and keep their connection; hyper
/// closes one with an unread body without a word, and the client's next request would fail. So a short body is read
/// and thrown away, and a long or slow one makes the answer announce the closing.
async fn refuse(request: Request, error: &ApiError) -> Response {
    let mut response = error_response(error);
    let mut body = Limited::new(request.into_body(), REFUSED_BODY_BYTES_MAX);
    let discard = async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
                None => return true,
            }
        }
    };
    if !tokio::time::timeout(REFUSED_BODY_TIMEOUT, discard).await.unwrap_or(false) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn panicked(_panic: Box<dyn Any + Send + 'static>) -> Response {
    // The panic hook has already written message and place to stderr.
    tracing::error!("handler panicked");
    ApiError::new(ErrorKind::Internal, "an internal error occurred").into_response()
}

/// Headers that scripts of allowed origins may read.
const EXPOSED: [&str; 9] = [
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    // Headers are mirrored, since a wildcard does not cover Authorization (Fetch standard, section 4.9).
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods(AnyMethod)
        .allow_headers(AllowHeaders::mirror_request());
    Some(layer.expose_headers(EXPOSED.map(HeaderName::from_static)))
}
