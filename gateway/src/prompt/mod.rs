//! Text on its way to tokens and back: chat templates, detokenizing, stop strings. Called by `generation` and `api`;
//! knows nothing of HTTP or workers.

pub mod detokenizer;
pub mod model;
pub mod stop;
pub mod template;
