//! Published chat templates render byte for byte as transformers renders them.
//! Data: `tests/golden/chat_templates/`, see `tests/golden/README.md`.

#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use flate2::read::GzDecoder;
use gateway::prompt::template::{ChatTemplate, Clock, RenderInput, SpecialTexts, TemplateError};
use serde_json::{Map, Value};
use std::fs::File;
use std::path::{Path, PathBuf};

fn golden_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/chat_templates");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 15, "{} holds only {} templates", folder.display(), files.len());
    files
}

fn read(path: &Path) -> Value {
    serde_json::from_reader(GzDecoder::new(File::open(path).unwrap())).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` is not a string"))
}

/// `None` when the vector is met, else what differs.
fn check(template: &ChatTemplate, vector: &Value) -> Option<String> {
    let no_variables = Map::new();
    let outcome = template.render(&RenderInput {
        messages: vector["messages"].as_array().unwrap(),
        tools: vector["tools"].as_array().map(Vec::as_slice),
        add_generation_prompt: vector["add_generation_prompt"].as_bool().unwrap(),
        variables: vector["kwargs"].as_object().unwrap_or(&no_variables),
    });
    let expected_error = vector.get("error").and_then(|error| error["type"].as_str());
    match (outcome, vector["rendered"].as_str(), expected_error) {
        (Ok(rendered), Some(expected), _) if rendered == expected => None,
        (Ok(rendered), Some(expected), _) => Some(format!("rendered {rendered:?}\nexpected {expected:?}")),
        (Err(error), Some(_), _) => Some(format!("failed: {error}")),
        (Err(TemplateError::Raised { message }), None, Some("TemplateError")) => {
            let expected = text(&vector["error"], "message");
            (message != expected).then(|| format!("raised {message:?}, expected {expected:?}"))
        }
        (other, None, Some("TemplateError")) => Some(format!("should raise, gave {other:?}")),
        // A failure of Python itself: an error and a graceful rendering are both fine.
        (_, None, _) => None,
    }
}

#[test]
fn every_published_template_renders_as_transformers_does() {
    let (mut total, mut failures) = (0, Vec::new());
    for path in golden_files() {
        let golden = read(&path);
        let special =
            SpecialTexts { bos: text(&golden, "bos_token").into(), eos: text(&golden, "eos_token").into() };
        let now = text(&golden, "now").parse().unwrap();
        let template = ChatTemplate::compile(text(&golden, "source"), special, Clock::Fixed(now)).unwrap();
        for vector in golden["vectors"].as_array().unwrap() {
            total += 1;
            if let Some(difference) = check(&template, vector) {
                failures.push(format!(
                    "{} {}: {difference}",
                    text(&golden, "template"),
                    text(vector, "case")
                ));
            }
        }
    }
    assert!(total >= 600, "only {total} vectors");
    assert!(failures.is_empty(), "{} of {total} vectors differ:\n{}", failures.len(), failures.join("\n"));
}
