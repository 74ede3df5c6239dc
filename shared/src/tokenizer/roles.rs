//! Finds out which tokens end generation and which have other roles, and corrects the kinds of those that
//! files get wrong.
//!
//! Files seldom list more than one end token, and many mark chat tokens as ordinary. The well-known texts
//! are therefore recognised, by the same list as llama.cpp's (`llama_vocab::impl::load`), so that a file
//! stops where it stops there.

use std::collections::{BTreeSet, HashMap};

use super::source::RoleIds;
use super::vocabulary::{TokenKind, Vocabulary};

const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const END_OF_MESSAGE: &[&str] = &["<|eom_id|>"];
const FIM_PREFIX: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const FIM_PADDING: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPOSITORY: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_SEPARATOR: &[&str] = &["<|file_sep|>"];

/// Texts that end generation beyond those of [`END_OF_TURN`].
const OTHER_ENDS: &[&str] = &[
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];

/// The structure of gpt-oss's "harmony" replies: shown in output, so that the reply can be taken apart.
const ALWAYS_SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Fills the roles that `given` leaves open, corrects kinds, and returns the roles and the sorted ids that
/// end generation.
pub(super) fn assign(vocabulary: &mut Vocabulary, given: RoleIds) -> (RoleIds, Vec<u32>) {
    let by_text = well_known_ids(vocabulary);
    let mut roles = given;
    for (role, texts) in [
        (&mut roles.eot, END_OF_TURN),
        (&mut roles.eom, END_OF_MESSAGE),
        (&mut roles.fim_prefix, FIM_PREFIX),
        (&mut roles.fim_suffix, FIM_SUFFIX),
        (&mut roles.fim_middle, FIM_MIDDLE),
        (&mut roles.fim_padding, FIM_PADDING),
        (&mut roles.fim_repository, FIM_REPOSITORY),
        (&mut roles.fim_separator, FIM_SEPARATOR),
    ] {
        if role.is_none() {
            *role = texts.iter().find_map(|text| by_text.get(text).copied());
            role.iter().for_each(|&id| vocabulary.set_kind(id, TokenKind::Control));
        }
    }

    let mut ends: BTreeSet<u32> = BTreeSet::new();
    for text in END_OF_TURN.iter().chain(OTHER_ENDS) {
        if let Some(&id) = by_text.get(text) {
            vocabulary.set_kind(id, TokenKind::Control);
            ends.insert(id);
        }
    }
    for text in ALWAYS_SHOWN {
        by_text.get(text).iter().for_each(|&&id| vocabulary.set_kind(id, TokenKind::UserDefined));
    }
    ends.extend([roles.fim_padding, roles.fim_repository, roles.fim_separator].iter().flatten());
    ends.extend([roles.eos, roles.eot, roles.eom].iter().flatten());
    drop_exceptions(vocabulary, &by_text, &mut ends);
    (roles, ends.into_iter().collect())
}

/// Takes back what the texts alone get wrong for two families.
fn drop_exceptions(
    vocabulary: &mut Vocabulary,
    by_text: &HashMap<&'static str, u32>,
    ends: &mut BTreeSet<u32>,
) {
    let ending = |text: &str, ends: &BTreeSet<u32>| by_text.get(text).copied().filter(|id| ends.contains(id));
    let calls = ending("<|call|>", ends).or(ending("<|calls|>", ends)).is_some();
    let harmony = calls && (ending("<|return|>", ends).is_some() || ending("<|flush|>", ends).is_some());
    // Harmony ends a message, not the turn, with <|end|>.
    if let Some(id) = ending("<|end|>", ends).filter(|_| harmony) {
        ends.remove(&id);
        vocabulary.set_kind(id, TokenKind::UserDefined);
    }
    // In Gemma 4 </s> is an HTML tag.
    let gemma_4 = ending("<|tool_response>", ends).is_some();
    if let Some(id) = ending("</s>", ends).filter(|_| gemma_4) {
        ends.remove(&id);
        vocabulary.set_kind(id, TokenKind::Normal);
    }
}

/// The ids of all texts named in this file that the vocabulary has.
fn well_known_ids(vocabulary: &Vocabulary) -> HashMap<&'static str, u32> {
    let lists = [
        END_OF_TURN,
        END_OF_MESSAGE,
        FIM_PREFIX,
        FIM_SUFFIX,
        FIM_MIDDLE,
        FIM_PADDING,
        FIM_REPOSITORY,
        FIM_SEPARATOR,
        OTHER_ENDS,
        ALWAYS_SHOWN,
    ];
    let texts: HashMap<&str, &'static str> =
        lists.iter().flat_map(|list| list.iter()).map(|&text| (text, text)).collect();
    vocabulary.texts().filter_map(|(id, text)| texts.get(text).map(|&text| (text, id))).collect()
}
