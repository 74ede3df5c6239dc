//! Routes and the layers around them. Everything answers in the OpenAI error shape: unknown routes, wrong methods,
//! missing keys, panics.

use super::auth::ApiKeys;
use super::request_id;
use crate::api::{self, ApiState};
use crate::openai::{ApiError, ErrorKind};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::any::Any;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any as AnyMethod, CorsLayer};

/// What the router is built with besides the handlers' state.
#[derive(Debug, Clone, Default)]
pub struct RouterOptions {
    /// Asked for under `/v1`; health, readiness and metrics need none.
    pub keys: ApiKeys,
    /// Origins that browsers may call from; `*` allows every one, none leaves CORS out.
    pub cors_origins: Vec<String>,
}

/// Every route of the server.
pub fn router(state: Arc<ApiState>, options: &RouterOptions) -> Router {
    let keys = Arc::new(options.keys.clone());
    let v1 = Router::new()
        .route("/v1/models", get(api::list_models))
        .route("/v1/models/{*id}", get(api::retrieve_model))
        .route("/v1/completions", post(api::completions))
        .route("/v1/chat/completions", post(api::chat_completions))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(middleware::from_fn_with_state(keys, require_key));
    let mut router = Router::new()
        .route("/health", get(api::health))
        .route("/ready", get(api::ready))
        .route("/metrics", get(api::metrics_text))
        .method_not_allowed_fallback(wrong_method)
        .merge(v1)
        .fallback(no_route)
        .with_state(state)
        .layer(CatchPanicLayer::custom(panicked));
    if let Some(cors) = cors(&options.cors_origins) {
        router = router.layer(cors);
    }
    router.layer(middleware::from_fn(request_id::layer))
}

async fn require_key(State(keys): State<Arc<ApiKeys>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match keys.check(header) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn no_route(request: Request) -> ApiError {
    let message = format!("there is no route {} {}", request.method(), request.uri().path());
    ApiError::new(ErrorKind::NotFound, message).code("unknown_route")
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("the route {} does not know the method {}", request.uri().path(), request.method());
    ApiError::new(ErrorKind::MethodNotAllowed, message).code("method_not_allowed")
}

fn panicked(_panic: Box<dyn Any + Send + 'static>) -> Response {
    // The panic hook has already written message and place to stderr.
    tracing::error!("handler panicked");
    ApiError::new(ErrorKind::Internal, "an internal error occurred").into_response()
}

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
    Some(layer.expose_headers([HeaderName::from_static("x-request-id")]))
}
