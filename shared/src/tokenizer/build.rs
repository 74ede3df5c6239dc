//! Reads a vocabulary source by the rules of its kind of tokenizer.

use super::pretokenize::{self, CleanUp};
use super::vocabulary::{TextForm, Vocabulary};
use super::wordpiece::WordPiece;
use super::words::Words;
use super::{RoleIds, Scheme, TokenizerError, VocabularySource};

/// What follows from the kind of tokenizer: the scheme, and defaults where the file is silent.
pub(super) struct Build {
    pub(super) scheme: Scheme,
    pub(super) form: TextForm,
    pub(super) roles: RoleIds,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    /// What `add_eos` adds, if not EOS.
    pub(super) last: Option<u32>,
    pub(super) space_prefix: bool,
    pub(super) clean_up: CleanUp,
}

impl Build {
    pub(super) fn of(source: &VocabularySource<'_>, vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        match source.model {
            "gpt2" => Self::byte_level(source, vocabulary),
            "llama" => Ok(Self::sentence_piece(source, vocabulary)),
            "bert" => Ok(Self::word_piece(source, vocabulary)),
            other => Err(TokenizerError::UnsupportedModel(other.chars().take(64).collect())),
        }
    }

    fn byte_level(source: &VocabularySource<'_>, vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        if source.merges.is_empty() {
            return Err(TokenizerError::NoMerges);
        }
        let splitting = pretokenize::by_name(source.pre);
        // Ids of GPT-2-like vocabularies that say nothing; llama.cpp's defaults.
        let default_bos = if splitting.without_bos { None } else { Some(11) };
        let roles = RoleIds {
            bos: source.roles.bos.or(default_bos),
            eos: source.roles.eos.or(Some(11)),
            ..source.roles
        };
        Ok(Self {
            scheme: Scheme::ByteLevel {
                words: Words::byte_level(vocabulary, &source.merges, splitting.whole_words_first),
                pre_tokenizer: splitting.pre_tokenizer,
            },
            form: TextForm::ByteAlphabet,
            roles,
            add_bos: source.add_bos.unwrap_or(splitting.add_bos),
            add_eos: source.add_eos.unwrap_or(false),
            last: None,
            space_prefix: false,
            clean_up: splitting.clean_up,
        })
    }

    fn sentence_piece(source: &VocabularySource<'_>, vocabulary: &Vocabulary) -> Self {
        let roles = RoleIds {
            bos: source.roles.bos.or(Some(1)),
            eos: source.roles.eos.or(Some(2)),
            unknown: source.roles.unknown.or(Some(0)),
            ..source.roles
        };
        let (words, words_stay_apart) = Words::scored(vocabulary, &source.scores, roles.unknown);
        Self {
            scheme: Scheme::SentencePiece { words, words_stay_apart },
            form: TextForm::SpaceSymbols,
            roles,
            add_bos: source.add_bos.unwrap_or(true),
            add_eos: source.add_eos.unwrap_or(false),
            last: None,
            space_prefix: true,
            clean_up: CleanUp::Nothing,
        }
    }

    fn word_piece(source: &VocabularySource<'_>, vocabulary: &Vocabulary) -> Self {
        // The ids of BERT's own vocabulary, which files of its descendants leave out.
        let given = source.roles;
        let roles = RoleIds {
            bos: given.bos.or(given.cls).or(Some(101)),
            unknown: given.unknown.or(Some(100)),
            separator: given.separator.or(Some(102)),
            padding: given.padding.or(Some(0)),
            mask: given.mask.or(Some(103)),
            ..given
        };
        let lowercase = source.lowercase.unwrap_or(true);
        let strip_accents = source.strip_accents.unwrap_or(lowercase);
        Self {
            scheme: Scheme::WordPiece(WordPiece::new(vocabulary, roles.unknown, lowercase, strip_accents)),
            form: TextForm::SpaceSymbols,
            roles,
            // CLS and SEP are what the model was trained with; files cannot turn them off.
            add_bos: true,
            add_eos: true,
            last: roles.separator,
            space_prefix: false,
            clean_up: CleanUp::Spaces,
        }
    }
}
