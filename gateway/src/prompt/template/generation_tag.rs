//! transformers' `{% generation %}` … `{% endgeneration %}` marks what the assistant wrote, for training masks.
//! At inference it only opens a scope, so the tags are rewritten to `{% with %}` … `{% endwith %}` before compiling.

/// Rewrites the tags; comments and raw blocks keep their text.
pub(super) fn replace(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let closing = if rest.starts_with("{#") { "#}" } else { "%}" };
        let Some(length) = rest.find(closing).map(|at| at + closing.len()) else { break };
        let (tag, after) = rest.split_at(length);
        rest = after;
        match name(tag) {
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            "raw" => {
                out.push_str(tag);
                let end = end_of_raw(rest);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

/// The only word of a tag, or an empty string for comments and longer tags.
fn name(tag: &str) -> &str {
    let Some(inner) = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")) else { return "" };
    let inner = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    if inner.bytes().all(|byte| byte.is_ascii_alphabetic()) { inner } else { "" }
}

fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(start) = text[from..].find("{%").map(|at| at + from) {
        let Some(end) = text[start..].find("%}").map(|at| at + start + 2) else { break };
        if name(&text[start..end]) == "endraw" {
            return end;
        }
        from = start + 2;
    }
    text.len()
}
