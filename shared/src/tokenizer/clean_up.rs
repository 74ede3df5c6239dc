//! The clean-up of spaces that some models ask for when a whole text is detokenized.
//!
//! It undoes the spacing of tokenized English corpora: `it 's here .` becomes `it's here.` It alters text
//! that was meant to be so, and cannot be done piece by piece, hence never on a stream.
//! Source: `clean_up_tokenization` in Hugging Face's transformers, in the form of llama.cpp's
//! `llama_detokenize`, which leaves the space before `'t`, `'d` and `'ll`.

/// Drops spaces before punctuation and around apostrophes.
pub(super) fn clean_up(text: &[u8]) -> Vec<u8> {
    contractions(&lone_apostrophes(&before_punctuation(text)))
}

fn before_punctuation(text: &[u8]) -> Vec<u8> {
    drop_spaces(text, |rest| matches!(rest.first(), Some(b'?' | b'!' | b'.' | b',')))
}

fn contractions(text: &[u8]) -> Vec<u8> {
    drop_spaces(text, |rest| matches!(rest, [b'\'', b's' | b'm', ..] | [b'\'', b'r' | b'v', b'e', ..]))
}

/// Drops every space whose next character starts what `joins` accepts. Whether a space precedes is asked
/// of the text as given, not of what is left of it.
fn drop_spaces(text: &[u8], joins: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let kept = |&(at, &byte): &(usize, &u8)| byte != b' ' || !text.get(at + 1..).is_some_and(&joins);
    text.iter().enumerate().filter(kept).map(|(_, &byte)| byte).collect()
}

/// `a ' b` becomes `a'b`. The space after the apostrophe is consumed, so it cannot begin the next match.
fn lone_apostrophes(text: &[u8]) -> Vec<u8> {
    let mut cleaned = Vec::with_capacity(text.len());
    let mut at = 0;
    let mut after_space = false;
    while let Some(&byte) = text.get(at) {
        let lone = after_space && byte == b'\'' && text.get(at + 1) == Some(&b' ');
        if lone {
            cleaned.pop();
            at += 1;
        }
        cleaned.push(byte);
        after_space = byte == b' ';
        at += 1;
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(String::from_utf8(clean_up(text.as_bytes())).unwrap(), expected);
    }

    #[test]
    fn joins_what_english_joins() {
        check("it 's here . really ?", "it's here. really?");
        check("we 're , they 've", "we're, they've");
        check("a ' b", "a'b");
        check("do n't we 'll 't", "do n't we 'll 't");
        check("", "");
        check(" .", ".");
        check("a  ' ' b", "a '' b");
    }
}
