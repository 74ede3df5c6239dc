//! The body of `POST /v1/chat/completions`.

use super::completion_request::required_model;
use super::error::ApiError;
use super::fields::{Fields, parse_body, refuse, show};
use super::sampling::GenerationFields;
use super::unsupported::{self, Neutral};
use serde_json::{Map, Value, json};
use shared::sampling::TOP_LOGPROBS_MAX;

/// Most messages of one request; longer conversations fit no context this engine serves.
pub const MESSAGES_MAX: usize = 16_384;

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The model asked for.
    pub model: String,
    /// Messages as chat templates read them: `role`, `content` (a string or null), and what else they carried.
    pub messages: Vec<Value>,
    /// `chat_template_kwargs`: further variables of the template.
    pub template_variables: Map<String, Value>,
    /// Most tokens per choice; without one, what the context holds.
    pub max_tokens: Option<u32>,
    /// The rest.
    pub generation: GenerationFields,
    /// Fields this server does not know.
    pub unknown_fields: Vec<String>,
}

/// Known to the API and not implemented.
const UNSUPPORTED: &[(&str, &[Neutral])] = &[
    ("tools", &[Neutral::EmptyArray]),
    ("tool_choice", &[Neutral::Word("none"), Neutral::Word("auto")]),
    ("functions", &[Neutral::EmptyArray]),
    ("function_call", &[Neutral::Word("none"), Neutral::Word("auto")]),
    ("response_format", &[Neutral::TextFormat]),
    ("modalities", &[Neutral::TextOnly]),
    ("audio", &[]),
    ("web_search_options", &[]),
    ("store", &[Neutral::False]),
];

/// Without effect on a server that calls no tools, keeps nothing and has one tier.
const IGNORED: &[&str] = &[
    "user",
    "metadata",
    "parallel_tool_calls",
    "service_tier",
    "prediction",
    "reasoning_effort",
    "safety_identifier",
    "prompt_cache_key",
    "verbosity",
];

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

impl ChatRequest {
    /// Reads and checks a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let object = parse_body(body)?;
        let fields = Fields::of_body(&object);
        let model = required_model(&fields)?;
        let messages = messages(&fields)?;
        let template_variables = fields.object("chat_template_kwargs")?.cloned().unwrap_or_default();
        let max_tokens = max_tokens(&fields)?;
        let mut generation = GenerationFields::read(&fields)?;
        generation.sampling.logprobs = logprobs(&fields)?;
        unsupported::check(&fields, UNSUPPORTED)?;
        unsupported::ignore(&fields, IGNORED);
        let unknown_fields = fields.unknown();
        Ok(Self { model, messages, template_variables, max_tokens, generation, unknown_fields })
    }
}

/// `max_completion_tokens`, or its older name.
fn max_tokens(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let range = 1..=i64::from(u32::MAX);
    let older = fields.integer("max_tokens", range.clone())?;
    let newer = fields.integer("max_completion_tokens", range)?;
    Ok(newer.or(older).map(|tokens| tokens as u32))
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=i64::from(TOP_LOGPROBS_MAX))?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u32)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(top)) => {
            let message = format!("top_logprobs is {top}, it is only allowed with logprobs: true");
            Err(ApiError::field("top_logprobs", message))
        }
    }
}

fn messages(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let Some(items) = fields.array("messages")? else {
        return Err(ApiError::field("messages", "messages is missing, it must be an array of messages"));
    };
    if items.is_empty() || items.len() > MESSAGES_MAX {
        let allowed = format!("1 to {MESSAGES_MAX} messages long");
        return Err(refuse("messages", format!("an array of {}", items.len()), allowed));
    }
    items.iter().enumerate().map(|(index, item)| message(item, &format!("messages[{index}]"))).collect()
}

fn message(item: &Value, path: &str) -> Result<Value, ApiError> {
    let fields = Fields::of(item, path.to_owned())?;
    let role_path = fields.path("role");
    let Some(role) = fields.string("role")? else {
        return Err(ApiError::field(
            &role_path,
            format!("{role_path} is missing, it must be one of {ROLES:?}"),
        ));
    };
    if !ROLES.contains(&role) {
        return Err(refuse(role_path, format!("{role:?}"), format!("one of {ROLES:?}")));
    }
    let content = content(&fields)?;
    let calls = tool_calls(&fields)?;
    if content.is_none() && calls.is_none() && !(role == "assistant" && fields.get("refusal").is_some()) {
        let path = fields.path("content");
        return Err(ApiError::field(
            &path,
            format!("{path} is missing, it must be a string or an array of parts"),
        ));
    }
    if role == "tool" && fields.string("tool_call_id")?.is_none() {
        let path = fields.path("tool_call_id");
        return Err(ApiError::field(&path, format!("{path} is missing, it must be a string")));
    }
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.map_or(Value::Null, Value::from));
    for name in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(text) = fields.string(name)? {
            message.insert(name.into(), text.into());
        }
    }
    if let Some(calls) = calls {
        message.insert("tool_calls".into(), calls);
    }
    Ok(Value::Object(message))
}

/// The content as one string. Text parts are joined by line breaks, as vLLM and llama.cpp do.
fn content(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let path = fields.path("content");
    let parts = match fields.get("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(parts)) if !parts.is_empty() => parts,
        Some(other) => return Err(refuse(path, show(other), "a string or a non-empty array of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let part = Fields::of(part, format!("{path}[{index}]"))?;
        let type_path = part.path("type");
        let field = match part.string("type")? {
            Some("text") => "text",
            Some("refusal") => "refusal",
            Some(other) => {
                let message = format!("{type_path} is {other:?}, this model takes only text");
                return Err(ApiError::field(type_path, message).code("unsupported_content"));
            }
            None => {
                return Err(ApiError::field(
                    &type_path,
                    format!("{type_path} is missing, it must be \"text\""),
                ));
            }
        };
        let text_path = part.path(field);
        let text = part.string(field)?;
        texts.push(text.ok_or_else(|| ApiError::field(&text_path, format!("{text_path} is missing")))?);
    }
    Ok(Some(texts.join("\n")))
}

/// Calls an assistant made earlier, for templates that write them back. Arguments that are an object in a string
/// become the object, which is what templates of the Hugging Face convention expect.
fn tool_calls(fields: &Fields<'_>) -> Result<Option<Value>, ApiError> {
    let Some(items) = fields.array("tool_calls")?.filter(|items| !items.is_empty()) else { return Ok(None) };
    let mut calls = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let call = Fields::of(item, fields.path(&format!("tool_calls[{index}]")))?;
        let path = call.path("function");
        let Some(function) = call.get("function") else {
            return Err(ApiError::field(&path, format!("{path} is missing, it must be an object")));
        };
        let function = Fields::of(function, path)?;
        let name_path = function.path("name");
        let name = function.string("name")?;
        let name = name.ok_or_else(|| ApiError::field(&name_path, format!("{name_path} is missing")))?;
        let arguments = match function.get("arguments") {
            None => json!({}),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Object(object)) => Value::Object(object),
                _ => Value::String(text.clone()),
            },
            Some(Value::Object(object)) => Value::Object(object.clone()),
            Some(other) => return Err(refuse(function.path("arguments"), show(other), "a string of JSON")),
        };
        let id = call.string("id")?.map_or(Value::Null, Value::from);
        calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
    }
    Ok(Some(Value::Array(calls)))
}
