//! `rocmforge tokenize`: text to token ids and back, one JSON object a line.

use super::error::CommandError;
use clap::Args;
use serde::{Deserialize, Serialize};
use shared::gguf::Gguf;
use shared::tokenizer::{EncodeOptions, SpecialTokens, Tokenizer};
use std::io::{BufRead, Read, Write};
use std::path::PathBuf;

/// Longest input line.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Turns text into token ids with a model's own tokenizer (vocabulary-only files work too).
///
/// Reads JSON lines {"text": "…"} from standard input and writes {"ids": […]}; with --decode the other way.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// GGUF file.
    #[arg(long, env = "ROCMFORGE_GGUF")]
    pub model: PathBuf,
    /// Do not add BOS and EOS where the model asks for them.
    #[arg(long)]
    pub no_bos: bool,
    /// Treat control tokens written in the text as plain text (with --decode: leave them out).
    #[arg(long)]
    pub no_special: bool,
    /// Read {"ids": […]} and write {"text": "…"}.
    #[arg(long)]
    pub decode: bool,
}

#[derive(Deserialize, Serialize)]
struct Text {
    text: String,
}

#[derive(Deserialize, Serialize)]
struct Ids {
    ids: Vec<u32>,
}

/// Runs the command over `input` and `output`.
pub fn run(args: &TokenizeArgs, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<(), CommandError> {
    let gguf = Gguf::open(&args.model).map_err(|error| CommandError::model_file(&error))?;
    let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|error| CommandError::model_file(&error))?;
    let mut line = String::new();
    for number in 1u64.. {
        line.clear();
        let read = input.take(LINE_BYTES_MAX).read_line(&mut line);
        let read =
            read.map_err(|error| CommandError::runtime(format!("standard input, line {number}: {error}")))?;
        if read == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let answer = if args.decode {
            decode(&tokenizer, &line, args, number)?
        } else {
            encode(&tokenizer, &line, args, number)?
        };
        writeln!(output, "{answer}")
            .map_err(|error| CommandError::runtime(format!("standard output: {error}")))?;
    }
    output.flush().map_err(|error| CommandError::runtime(format!("standard output: {error}")))
}

fn encode(
    tokenizer: &Tokenizer,
    line: &str,
    args: &TokenizeArgs,
    number: u64,
) -> Result<String, CommandError> {
    let Text { text } = parse(line, number, r#"{"text": "…"}"#)?;
    let options = EncodeOptions { add_special: !args.no_bos, parse_special: !args.no_special };
    to_line(&Ids { ids: tokenizer.encode(&text, options) })
}

fn decode(
    tokenizer: &Tokenizer,
    line: &str,
    args: &TokenizeArgs,
    number: u64,
) -> Result<String, CommandError> {
    let Ids { ids } = parse(line, number, r#"{"ids": […]}"#)?;
    let limit = tokenizer.vocab_len();
    if let Some(id) = ids.iter().find(|id| **id as usize >= limit) {
        let message = format!("standard input, line {number}: id {id} is outside the vocabulary of {limit}");
        return Err(CommandError::configuration(message));
    }
    let special = if args.no_special { SpecialTokens::Skip } else { SpecialTokens::Render };
    let text = String::from_utf8_lossy(&tokenizer.decode_cleaned(&ids, special)).into_owned();
    to_line(&Text { text })
}

fn parse<T: serde::de::DeserializeOwned>(line: &str, number: u64, expected: &str) -> Result<T, CommandError> {
    serde_json::from_str(line).map_err(|error| {
        CommandError::configuration(format!("standard input, line {number}: {error}; expected {expected}"))
    })
}

/// One line of JSON. Characters that some readers take for the end of a line are escaped; they can only stand inside
/// strings, where an escape means the same.
fn to_line(value: &impl Serialize) -> Result<String, CommandError> {
    let text = serde_json::to_string(value)
        .map_err(|error| CommandError::runtime(format!("result does not encode: {error}")))?;
    Ok(text.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line_and_keeps_its_text() {
        let text = "a\u{85}b\u{2028}c\u{2029}d\ne".to_owned();
        let line = to_line(&Text { text: text.clone() }).unwrap();
        assert!(!line.contains(['\u{85}', '\u{2028}', '\u{2029}', '\n']), "{line:?}");
        assert_eq!(serde_json::from_str::<Text>(&line).unwrap().text, text);
    }
}
