//! The pre-tokenizers by the name that `tokenizer.ggml.pre` has for them.
//!
//! Sources: the `pre_tokenizer` of the models' published `tokenizer.json`, and the table of names in
//! llama.cpp's `llama-vocab.cpp`, whose converter writes them. Where llama.cpp approximates a published
//! pattern because its regex engine lacks Unicode classes (`gpt-4o`, `tekken`), the published one holds: it
//! is what the model was trained with.

use super::char_set::CharSet;
use super::rule::{Case, Rule};
use super::{PreTokenizer, Stage};

/// All that depends on the name of a pre-tokenizer.
pub(in crate::tokenizer) struct Splitting {
    pub pre_tokenizer: PreTokenizer,
    /// A word that is a token as a whole is not built by merging.
    pub whole_words_first: bool,
    /// The default of `tokenizer.ggml.add_bos_token`.
    pub add_bos: bool,
    /// No default id for BOS.
    pub without_bos: bool,
    pub clean_up: CleanUp,
}

/// Whether whole-text detokenization drops the spaces that English text lacks before punctuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokenizer) enum CleanUp {
    Spaces,
    Nothing,
}

/// What the pre-tokenizer called `name` does; `None` if nobody here knows it.
pub(super) fn named(name: &str) -> Option<Splitting> {
    use CleanUp::{Nothing, Spaces};
    let (stages, clean_up) = match name {
        "default" => return Some(fallback()),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => {
            (words(Words::LLAMA_3), Spaces)
        }
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de" | "jina-v1-en"
        | "jina-v2-code" | "roberta-bpe" | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "mpt"
        | "olmo" | "jais" | "exaone4" => (vec![gpt_2()], Spaces),
        "trillion" | "granite-docling" => (vec![gpt_2()], Nothing),
        "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            (vec![digits(1), gpt_2()], Spaces)
        }
        "command-r" | "smollm" => (vec![digits(1), gpt_2()], Nothing),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "hunyuan" | "solar-open" | "grok-2" => {
            (words(Words::QWEN_2), Nothing)
        }
        "stablelm2" | "megrez" => (words(Words::QWEN_2), Spaces),
        "qwen35" => (
            words(Words { letters: r"[\p{L}\p{M}]", other: r"[^\s\p{L}\p{M}\p{N}]", ..Words::QWEN_2 }),
            Nothing,
        ),
        "ufakzeka" => (words(Words { contractions: false, ..Words::QWEN_2 }), Nothing),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => (words(Words::QWEN_2), Nothing),
        "seed-coder" => {
            (words(Words { other: r"[^\s\p{L}\p{N}\r\n]", other_tail: None, ..Words::QWEN_2 }), Nothing)
        }
        "deepseek-llm" => (deepseek_llm(), Nothing),
        "deepseek-coder" => (deepseek_coder(), Nothing),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => (deepseek_v3(), Nothing),
        "falcon" => (falcon(), Spaces),
        "poro-chat" => (vec![poro()], Nothing),
        "bloom" | "gpt3-finnish" => (vec![poro()], Spaces),
        "viking" => (vec![poro(), digits(1)], Nothing),
        "tekken" => (cased_words(1, false), Nothing),
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" | "granite-embed-multi-97m" => {
            (cased_words(3, true), Nothing)
        }
        _ => return None,
    };
    let llama_3 = matches!(
        name,
        "llama3"
            | "llama-v3"
            | "llama-bpe"
            | "falcon3"
            | "falcon-h1"
            | "pixtral"
            | "midm-2.0"
            | "lfm2"
            | "jina-v5-nano"
    );
    Some(Splitting {
        pre_tokenizer: PreTokenizer { stages },
        whole_words_first: llama_3 || matches!(name, "tekken" | "glm4" | "glm5" | "granite-embed-multi-97m"),
        add_bos: llama_3 || name == "tekken",
        without_bos: matches!(name, "chatglm-bpe" | "glm4" | "glm5"),
        clean_up,
    })
}

/// What a file without a name gets.
pub(super) fn fallback() -> Splitting {
    Splitting {
        pre_tokenizer: PreTokenizer { stages: default() },
        whole_words_first: false,
        add_bos: false,
        without_bos: false,
        clean_up: CleanUp::Spaces,
    }
}

/// What differs among the descendants of GPT-4's pattern:
/// `(?i:'s|'t|…)|[^\r\n\p{L}\p{N}]?letters+|\p{N}{1,digits}| ?other+other_tail*|\s*[\r\n]+|\s+(?!\S)|\s+`
#[derive(Clone, Copy)]
struct Words {
    contractions: bool,
    letters: &'static str,
    digits: usize,
    other: &'static str,
    other_tail: Option<&'static str>,
}

impl Words {
    const LLAMA_3: Self = Self {
        contractions: true,
        letters: r"\p{L}",
        digits: 3,
        other: r"[^\s\p{L}\p{N}]",
        other_tail: Some(r"[\r\n]"),
    };
    const QWEN_2: Self = Self { digits: 1, ..Self::LLAMA_3 };
}

/// `[^\r\n\p{L}\p{N}]`: what may stand before a word and still belong to it.
const WORD_PREFIX: &str = r"[^\r\n\p{L}\p{N}]";

fn words(words: Words) -> Vec<Stage> {
    let mut rules = if words.contractions { vec![Rule::Contraction(Case::Any)] } else { Vec::new() };
    rules.extend([
        run(Some(WORD_PREFIX), words.letters),
        limited(r"\p{N}", words.digits),
        Rule::Run {
            prefix: Some(CharSet::new(" ")),
            run: CharSet::new(words.other),
            limit: usize::MAX,
            tail: words.other_tail.map(CharSet::new),
        },
        Rule::LineEnd,
        Rule::SpaceBeforeWord,
        Rule::Space,
    ]);
    vec![Stage::Rules(rules)]
}

/// The pattern of `o200k_base`, and of Mistral's Tekken, which has no contractions and single digits.
fn cased_words(digits: usize, contraction: bool) -> Vec<Stage> {
    vec![Stage::Rules(vec![
        Rule::CasedWord {
            prefix: CharSet::new(WORD_PREFIX),
            upper: CharSet::new(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"),
            lower: CharSet::new(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"),
            contraction,
        },
        limited(r"\p{N}", digits),
        Rule::Run {
            prefix: Some(CharSet::new(" ")),
            run: CharSet::new(r"[^\s\p{L}\p{N}]"),
            limit: usize::MAX,
            tail: Some(CharSet::new(r"[\r\n/]")),
        },
        Rule::LineEnd,
        Rule::SpaceBeforeWord,
        Rule::Space,
    ])]
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt_2() -> Stage {
    Stage::Rules(vec![
        Rule::Contraction(Case::Lower),
        run(Some(" "), r"\p{L}"),
        run(Some(" "), r"\p{N}"),
        run(Some(" "), r"[^\s\p{L}\p{N}]"),
        Rule::SpaceBeforeWord,
        Rule::Space,
    ])
}

/// llama.cpp's default for BPE.
fn default() -> Vec<Stage> {
    vec![runs(r"[\p{P}$+<=>^~|]"), gpt_2(), runs(r"\p{N}"), triples()]
}

fn falcon() -> Vec<Stage> {
    vec![runs(r"[\p{P}$+<=>^~|`]"), gpt_2(), triples()]
}

/// ` ?[^(\s|.,!?…。，、।۔،)]+`; the parentheses and the bar are members of the set.
fn poro() -> Stage {
    Stage::Rules(vec![run(Some(" "), r"[^(\s|.,!?…。，、।۔،)]")])
}

fn deepseek_coder() -> Vec<Stage> {
    vec![
        Stage::Rules(vec![limited(r"[\r\n]", 1)]),
        Stage::Rules(vec![run(Some(r"\s"), r"\p{L}")]),
        Stage::Rules(vec![run(Some(r"\s"), r"\p{P}")]),
        runs(DEEPSEEK_IDEOGRAPHS),
        digits(1),
    ]
}

/// The published pattern spells its sets out. White space among them counts as white space, as in llama.cpp.
fn deepseek_llm() -> Vec<Stage> {
    vec![
        Stage::Rules(vec![limited(r"[\r\n]", 1)]),
        Stage::Rules(vec![run(Some(r"\s"), DEEPSEEK_LETTERS)]),
        Stage::Rules(vec![run(Some(r"\s"), r"[[!-/:-~！-／：-～‘-‟　-。]--\s]")]),
        Stage::TrailingSpace,
        runs(DEEPSEEK_IDEOGRAPHS),
        runs(r"\p{N}"),
    ]
}

fn deepseek_v3() -> Vec<Stage> {
    vec![
        digits(3),
        runs("[一-龥぀-ゟ゠-ヿ]"),
        Stage::Rules(vec![
            Rule::Led { first: CharSet::new(r"[!-/:-@\[-`{-~]"), run: CharSet::new("[A-Za-z]") },
            run(Some(r"[^\r\n\p{L}\p{P}\p{S}]"), r"[\p{L}\p{M}]"),
            Rule::Run {
                prefix: Some(CharSet::new(" ")),
                run: CharSet::new(r"[\p{P}\p{S}]"),
                limit: usize::MAX,
                tail: Some(CharSet::new(r"[\r\n]")),
            },
            Rule::LineEnd,
            Rule::SpaceBeforeWord,
            Rule::Space,
        ]),
    ]
}

fn run(prefix: Option<&str>, set: &str) -> Rule {
    Rule::Run { prefix: prefix.map(CharSet::new), run: CharSet::new(set), limit: usize::MAX, tail: None }
}

fn limited(set: &str, limit: usize) -> Rule {
    Rule::Run { prefix: None, run: CharSet::new(set), limit, tail: None }
}

fn runs(set: &str) -> Stage {
    Stage::Rules(vec![run(None, set)])
}

fn digits(limit: usize) -> Stage {
    Stage::Rules(vec![limited(r"\p{N}", limit)])
}

/// `[0-9][0-9][0-9]`: what is left of a number after its last three digits stays with its surroundings.
fn triples() -> Stage {
    Stage::Rules(vec![Rule::Exactly { set: CharSet::new("[0-9]"), count: 3 }])
}

/// CJK and all that lies between, as published, but for white space, which is split off before.
const DEEPSEEK_IDEOGRAPHS: &str = r"[[一-龥ࠀ-一가-퟿]--\s]";

/// The cased letters that the published pattern lists, by code point.
const DEEPSEEK_LETTERS: &str = concat!(
    r"[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}",
    r"\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}",
    r"\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}",
    r"\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}",
    r"\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}",
    r"\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}",
    r"\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}",
    r"\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}",
    r"\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
    r"\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}",
    r"\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}",
    r"\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}",
    r"\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}",
    r"\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]",
);
