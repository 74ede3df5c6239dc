//! Everything the gateway knows about a model: its vocabulary and chat template, read from the GGUF file.
//!
//! Opened once at start, before the workers; weights are the workers' affair. Turns conversations and texts into
//! prompt tokens, and is shared by all requests.

use super::template::{CHATML, ChatTemplate, Clock, RenderInput, SpecialTexts, TemplateError};
use serde_json::{Map, Value};
use shared::gguf::{Gguf, GgufError};
use shared::ids::TokenId;
use shared::tokenizer::{EncodeOptions, SpecialTokens, Tokenizer, TokenizerError};
use std::path::Path;
use std::sync::Arc;

/// Why a model file is of no use to the gateway.
#[derive(Debug, thiserror::Error)]
pub enum TextModelError {
    /// The file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Its vocabulary is broken or of an unknown kind.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template does not compile.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The template refused or failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Nothing to continue from, and the vocabulary has no token that starts a text.
    #[error("prompt has no tokens")]
    Empty,
    /// Past the end of the vocabulary.
    #[error("token id {token} at position {position} is not in the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The id.
        token: TokenId,
        /// Where it stands.
        position: usize,
        /// How many there are.
        vocab_size: usize,
    },
}

/// A model's text side.
pub struct TextModel {
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    context_tokens: Option<u32>,
}

impl TextModel {
    /// Reads a model file's metadata.
    pub fn open(path: &Path) -> Result<Self, TextModelError> {
        let gguf = Gguf::open(path)?;
        let metadata = gguf.metadata();
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let source = metadata.str("tokenizer.chat_template")?;
        if source.is_none() {
            tracing::warn!("model has no chat template, using ChatML");
        }
        let architecture = metadata.str("general.architecture")?.unwrap_or_default();
        let context_tokens = metadata.u32(&format!("{architecture}.context_length"))?;
        let mut model = Self::new(tokenizer, source.unwrap_or(CHATML), Clock::System)?;
        model.context_tokens = context_tokens;
        Ok(model)
    }

    /// A model of these parts, for tests and for [`Self::open`].
    pub fn new(tokenizer: Tokenizer, template: &str, clock: Clock) -> Result<Self, TextModelError> {
        let text = |token: Option<TokenId>| {
            let bytes = token.and_then(|token| tokenizer.token_bytes(token, SpecialTokens::Render));
            String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
        };
        let special = SpecialTexts { bos: text(tokenizer.bos()), eos: text(tokenizer.eos()) };
        let template = ChatTemplate::compile(template, special, clock)?;
        Ok(Self { tokenizer: Arc::new(tokenizer), template, context_tokens: None })
    }

    /// The context the model was trained for, where the file says.
    pub fn context_tokens(&self) -> Option<u32> {
        self.context_tokens
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The prompt of a conversation, ending where the assistant's turn begins.
    pub fn chat_prompt(
        &self,
        messages: &[Value],
        variables: &Map<String, Value>,
    ) -> Result<Vec<TokenId>, PromptError> {
        let input = RenderInput { messages, tools: None, add_generation_prompt: true, variables };
        let text = self.template.render(&input)?;
        self.not_empty(self.tokenizer.encode_rendered(&text))
    }

    /// The prompt of a text to continue. Special tokens written in it count as such, as in llama.cpp's server.
    pub fn text_prompt(&self, text: &str) -> Result<Vec<TokenId>, PromptError> {
        self.not_empty(self.tokenizer.encode(text, EncodeOptions::PROMPT))
    }

    /// The prompt of given tokens.
    pub fn token_prompt(&self, tokens: Vec<TokenId>) -> Result<Vec<TokenId>, PromptError> {
        let vocab_size = self.tokenizer.vocab_len();
        match tokens.iter().position(|&token| token as usize >= vocab_size) {
            Some(position) => {
                Err(PromptError::UnknownToken { token: tokens[position], position, vocab_size })
            }
            None => self.not_empty(tokens),
        }
    }

    /// An empty prompt means "from the start of a text", where the vocabulary has a token for that.
    fn not_empty(&self, tokens: Vec<TokenId>) -> Result<Vec<TokenId>, PromptError> {
        if !tokens.is_empty() {
            return Ok(tokens);
        }
        let start = self.tokenizer.bos().or(self.tokenizer.eos());
        start.map(|token| vec![token]).ok_or(PromptError::Empty)
    }
}
