//! `GET /v1/models` and `GET /v1/models/{id}`.

use super::answer::json;
use super::{ApiState, MODEL_ID_ALWAYS};
use crate::openai::{ApiError, Model, ModelList};
use axum::extract::{Path, State};
use axum::response::Response;
use std::sync::Arc;

impl ApiState {
    fn model_object(&self) -> Model {
        Model {
            id: self.settings.model_id.clone(),
            object: "model",
            created: self.created_unix_s,
            owned_by: "rocmforge",
        }
    }
}

/// Every served model.
pub async fn list_models(State(state): State<Arc<ApiState>>) -> Response {
    json(&ModelList { object: "list", data: vec![state.model_object()] })
}

/// One served model.
pub async fn retrieve_model(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    state.check_model(&id)?;
    let mut model = state.model_object();
    if id == MODEL_ID_ALWAYS {
        model.id = id;
    }
    Ok(json(&model))
}
