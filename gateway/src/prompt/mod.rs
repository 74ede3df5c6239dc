//! Text on its way to tokens and back: chat templates, detokenizing, stop strings. Called by `generation`; knows
//! nothing of HTTP or workers.

pub mod stop;
pub mod template;
