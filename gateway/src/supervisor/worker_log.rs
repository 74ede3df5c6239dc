//! A worker's stderr as log lines of the gateway, each with the worker's id. Used by `process`.
//!
//! A worker writes in the same form as its gateway, since it inherits the variables that decide it. A line of JSON
//! passes as it is, with `worker` among its fields; one for people gives its level and loses its time stamp; anything
//! else (a panic, a library's complaint, the last line before an exit) is a warning. What holds always: a line has one
//! event, at a level that the gateway's own filter lets through under the target `worker`.

use serde_json::Value;
use std::io::Write;
use tracing::Level;

/// A line taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    level: Level,
    /// Module and message, without time stamp and level.
    text: String,
    /// The line itself where it is JSON.
    fields: Option<serde_json::Map<String, Value>>,
}

impl Line {
    pub(super) fn parse(line: &str) -> Self {
        Self::from_json(line).or_else(|| Self::from_text(line)).unwrap_or_else(|| Self {
            level: Level::WARN,
            text: line.to_owned(),
            fields: None,
        })
    }

    fn from_json(line: &str) -> Option<Self> {
        if !line.starts_with('{') {
            return None;
        }
        let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return None };
        let level = level(fields.get("level")?.as_str()?)?;
        let text = fields.get("message").and_then(Value::as_str).unwrap_or(line).to_owned();
        Some(Self { level, text, fields: Some(fields) })
    }

    /// `2026-01-01T00:00:00.000000Z  WARN module: message`.
    fn from_text(line: &str) -> Option<Self> {
        let (time, rest) = line.split_once(' ')?;
        let is_time = time.len() >= 20 && time.ends_with('Z') && time.contains('T');
        let (word, text) = rest.trim_start().split_once(' ')?;
        let level = level(word).filter(|_| is_time)?;
        Some(Self { level, text: text.trim_start().to_owned(), fields: None })
    }

    /// As it is kept for `/health` and errors: what is no trouble is marked, so that it is not taken for the reason of
    /// an exit.
    pub(super) fn kept(&self) -> String {
        if self.level <= Level::WARN { self.text.clone() } else { format!("{} {}", self.level, self.text) }
    }

    /// Writes it to the gateway's log.
    pub(super) fn log(self, worker: u32) {
        let Self { level, text, fields } = self;
        // The filter's answer is asked for at a place of its own for each level, as tracing wants it.
        let is_wanted = match level {
            Level::ERROR => tracing::enabled!(target: "worker", Level::ERROR),
            Level::WARN => tracing::enabled!(target: "worker", Level::WARN),
            Level::INFO => tracing::enabled!(target: "worker", Level::INFO),
            Level::DEBUG => tracing::enabled!(target: "worker", Level::DEBUG),
            Level::TRACE => tracing::enabled!(target: "worker", Level::TRACE),
        };
        if !is_wanted {
            return;
        }
        if let Some(mut fields) = fields {
            fields.insert("worker".to_owned(), worker.into());
            // One write, so that lines do not mix; without a stderr there is no log.
            let line = format!("{}\n", Value::Object(fields));
            let _ = std::io::stderr().write_all(line.as_bytes());
            return;
        }
        match level {
            Level::ERROR => tracing::error!(target: "worker", worker, "{text}"),
            Level::WARN => tracing::warn!(target: "worker", worker, "{text}"),
            Level::INFO => tracing::info!(target: "worker", worker, "{text}"),
            Level::DEBUG => tracing::debug!(target: "worker", worker, "{text}"),
            Level::TRACE => tracing::trace!(target: "worker", worker, "{text}"),
        }
    }
}

fn level(word: &str) -> Option<Level> {
    [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE]
        .into_iter()
        .find(|level| level.as_str() == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, level: Level, text: &str, kept: &str) {
        let parsed = Line::parse(line);
        assert_eq!(
            (parsed.level, parsed.text.as_str(), parsed.kept().as_str()),
            (level, text, kept),
            "{line}"
        );
    }

    #[test]
    fn a_line_says_its_own_level() {
        let stamp = "2026-11-23T20:48:45.123456Z";
        let info = "worker::commands: model loaded kv_blocks=3";
        check(&format!("{stamp}  INFO {info}"), Level::INFO, info, &format!("INFO {info}"));
        check(&format!("{stamp} ERROR worker: lost"), Level::ERROR, "worker: lost", "worker: lost");
        check(
            "thread 'engine' panicked",
            Level::WARN,
            "thread 'engine' panicked",
            "thread 'engine' panicked",
        );
        check("INFO is a word", Level::WARN, "INFO is a word", "INFO is a word");
        let json =
            r#"{"timestamp":"x","level":"DEBUG","message":"step done","step":7,"target":"worker::engine"}"#;
        check(json, Level::DEBUG, "step done", "DEBUG step done");
        assert_eq!(Line::parse(json).fields.unwrap()["step"], 7);
        for odd in [r#"{"level":"LOUD"}"#, "{", "[1]", "", " "] {
            check(odd, Level::WARN, odd, odd);
        }
    }
}
