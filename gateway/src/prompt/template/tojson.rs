//! `tojson` as transformers defines it: Python's `json.dumps(value, ensure_ascii=False, indent=…, separators=…,
//! sort_keys=…)`, with Python's default separators and no HTML escaping.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Containers within containers; Python's own recursion limit refuses at about 1000.
const DEPTH_MAX: usize = 128;
/// Largest `indent`: templates use 2 or 4.
const INDENT_MAX: usize = 32;
/// Largest text one `tojson` makes; the fuel of a rendering is charged for it only afterwards.
const BYTES_MAX: usize = 8 << 20;

/// The value as JSON text.
pub(super) fn dump(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(indent) if !indent.is_none() => Some(indent_unit(&indent)?),
        _ => None,
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson separators must be two strings")),
        // json.dumps drops the blank after the comma when it breaks lines.
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or_default();
    // Accepted as transformers does; text is never escaped to ASCII here.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let mut writer = Writer { out: String::new(), indent, item, key, sort_keys, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

fn indent_unit(indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return if text.len() <= INDENT_MAX {
            Ok(text.to_owned())
        } else {
            Err(invalid("tojson indent is too long"))
        };
    }
    match indent.as_usize() {
        Some(width) if width <= INDENT_MAX => Ok(" ".repeat(width)),
        _ => Err(invalid("tojson indent must be a small number or a string")),
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

struct Writer {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    depth: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        if self.depth > DEPTH_MAX {
            return Err(invalid("tojson: value is nested too deep"));
        }
        if self.out.len() > BYTES_MAX {
            return Err(invalid("tojson: text is too long"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.sequence(value)?,
            ValueKind::Map => self.map(value)?,
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("object of type {kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
            self.out.push_str(&python_float(number));
        }
    }

    fn sequence(&mut self, value: &Value) -> Result<(), Error> {
        let mut first = true;
        self.out.push('[');
        self.depth += 1;
        for item in value.try_iter()? {
            self.separate(&mut first);
            self.value(&item)?;
        }
        self.depth -= 1;
        self.close(first, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        let mut first = true;
        self.out.push('{');
        self.depth += 1;
        for key in keys {
            self.separate(&mut first);
            match key.as_str() {
                Some(text) => self.string(text),
                // json.dumps turns other keys into text: 1 → "1", None → "null", True → "true".
                None => {
                    self.out.push('"');
                    self.value(&key)?;
                    self.out.push('"');
                }
            }
            let separator = self.key.clone();
            self.out.push_str(&separator);
            self.value(&value.get_item(&key)?)?;
        }
        self.depth -= 1;
        self.close(first, '}');
        Ok(())
    }

    fn separate(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.out.push_str(&self.item);
        }
        self.break_line();
    }

    fn close(&mut self, empty: bool, bracket: char) {
        if !empty {
            self.break_line();
        }
        self.out.push(bracket);
    }

    fn break_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..self.depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                control if control < ' ' => {
                    // Writing to a string cannot fail.
                    let _ = write!(self.out, "\\u{:04x}", control as u32);
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr(float)`, which json.dumps writes: shortest digits, exponent form outside 1e-4..1e16.
fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}
