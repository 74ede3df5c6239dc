//! Chat templates: messages in, prompt text out, as transformers' `apply_chat_template` renders them.
//!
//! Called by `generation`'s preparation, once per chat request; compiled once, when the model is opened. The text
//! of a template comes with the model file and is input like any other: work and memory are bounded by fuel, the
//! rendered text by [`RENDERED_BYTES_MAX`], nesting by the engine, and a template can reach nothing but its own
//! context. A template never sees the network, files or the environment; the clock only through `strftime_now`.
//!
//! Deliberately absent: named templates (`tokenizer.chat_template.tool_use`), since one template with `tools` in
//! its context serves every family in the conformance set.

mod generation_tag;
mod methods;
mod tojson;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::Map;
use std::io;

/// Largest template text accepted. The longest published ones (gpt-oss, Cohere) have under 32 KiB.
pub const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Largest rendered prompt: beyond any context this engine serves (about 4 bytes a token, a million tokens).
pub const RENDERED_BYTES_MAX: usize = 8 << 20;
/// Work one rendering may do. minijinja charges an instruction 1 and every 64 bytes it produces 1, so this also
/// bounds memory: 2^22 fuel are 256 MiB ever allocated.
const FUEL: u64 = 1 << 22;
/// Nested calls and macros; real templates need under 10.
const RECURSION_MAX: usize = 100;
/// Name under which the template is compiled; appears in error messages.
const TEMPLATE_NAME: &str = "chat_template";

/// What models without a template get: ChatML, as llama.cpp does.
pub const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Why a template cannot be compiled or a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The text is beyond the limit.
    #[error("chat template is {bytes} bytes long, limit {SOURCE_BYTES_MAX}")]
    SourceTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The text is not a template.
    #[error("chat template does not compile: {message}")]
    Compile {
        /// The engine's words.
        message: String,
    },
    /// The template itself refused the conversation through `raise_exception`.
    #[error("{message}")]
    Raised {
        /// The template's words.
        message: String,
    },
    /// The result is beyond the limit.
    #[error("rendered prompt is longer than {RENDERED_BYTES_MAX} bytes")]
    RenderedTooLong,
    /// The template used up its fuel.
    #[error("chat template does more work than one rendering is allowed")]
    OutOfFuel,
    /// The template failed on this conversation.
    #[error("chat template cannot render these messages: {message}")]
    Render {
        /// The engine's words.
        message: String,
    },
}

/// Where `strftime_now` takes the time from.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The host's clock in its time zone, as transformers does.
    System,
    /// Always this time, for tests.
    Fixed(jiff::civil::DateTime),
}

/// Texts of the special tokens a template may write.
#[derive(Debug, Clone, Default)]
pub struct SpecialTexts {
    /// Beginning of sequence, empty where the model has none.
    pub bos: String,
    /// End of sequence, empty where the model has none.
    pub eos: String,
}

/// What one rendering is given.
#[derive(Debug, Clone)]
pub struct RenderInput<'a> {
    /// Messages in the OpenAI form, oldest first.
    pub messages: &'a [serde_json::Value],
    /// Tool definitions in the OpenAI form.
    pub tools: Option<&'a [serde_json::Value]>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables (`chat_template_kwargs`); they win over the ones above.
    pub variables: &'a Map<String, serde_json::Value>,
}

/// A compiled template together with its model's special tokens.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTexts,
}

impl ChatTemplate {
    /// Compiles `source` (`tokenizer.chat_template`, or [`CHATML`] where the model has none).
    pub fn compile(source: &str, special: SpecialTexts, clock: Clock) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::SourceTooLong { bytes: source.len() });
        }
        let does_not_compile = |error: Error| TemplateError::Compile { message: describe(&error) };
        let mut environment = environment(clock).map_err(does_not_compile)?;
        environment
            .add_template_owned(TEMPLATE_NAME, generation_tag::replace(source))
            .map_err(does_not_compile)?;
        Ok(Self { environment, special })
    }

    /// Renders a conversation.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, TemplateError> {
        let mut context: Map<String, serde_json::Value> = Map::new();
        context.insert("messages".into(), input.messages.into());
        context.insert("tools".into(), input.tools.map_or(serde_json::Value::Null, Into::into));
        context.insert("documents".into(), serde_json::Value::Null);
        context.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        context.insert("bos_token".into(), self.special.bos.as_str().into());
        context.insert("eos_token".into(), self.special.eos.as_str().into());
        context.extend(input.variables.iter().map(|(name, value)| (name.clone(), value.clone())));

        let template = self.environment.get_template(TEMPLATE_NAME).map_err(|error| classify(&error))?;
        let mut rendered = BoundedText::default();
        let outcome = template.render_captured_to(Serde(&context), &mut rendered);
        if rendered.overflowed {
            return Err(TemplateError::RenderedTooLong);
        }
        outcome.map_err(|error| classify(&error))?;
        String::from_utf8(rendered.bytes)
            .map_err(|_| TemplateError::Render { message: "the output is not UTF-8".into() })
    }
}

/// The jinja2 environment of transformers' `apply_chat_template`, in minijinja.
fn environment(clock: Clock) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build()?);
    // Prompts are text, never HTML, whatever the template's name ends in.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", |value: Value, options: Kwargs| {
        let text = tojson::dump(&value, &options)?;
        options.assert_all_used()?;
        Ok::<_, Error>(Value::from(text))
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: String| strftime_now(clock, &format));
    Ok(environment)
}

fn strftime_now(clock: Clock, format: &str) -> Result<String, Error> {
    let formatted = match clock {
        Clock::System => jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now()),
        Clock::Fixed(time) => jiff::fmt::strtime::format(format, time),
    };
    formatted.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Marks an error as the template's own words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn classify(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TemplateError::Raised { message: message.clone() };
        }
        if current.downcast_ref().is_some_and(|error: &Error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel;
        }
        cause = current.source();
    }
    TemplateError::Render { message: describe(error) }
}

fn describe(error: &Error) -> String {
    shared::error::one_line(error)
}

/// Collects output up to [`RENDERED_BYTES_MAX`].
#[derive(Default)]
struct BoundedText {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl io::Write for BoundedText {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + chunk.len() > RENDERED_BYTES_MAX {
            self.overflowed = true;
            return Err(io::Error::other("rendered prompt is too long"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
