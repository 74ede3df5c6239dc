//! Every sampler step against float64 references that llama.cpp's own samplers agree with
//! (`tests/golden/sampling`, tolerance 1e-5).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use flate2::read::GzDecoder;
use serde_json::Value;
use shared::ids::TokenId;
use std::fs::File;
use std::path::Path;
use worker::sampler::adjust::{self, Penalties};
use worker::sampler::{Candidates, TokenCounts};

const TOLERANCE: f64 = 1e-5;
/// Steps of llama.cpp that no parameter of ours asks for.
const STEPS_NOT_OFFERED: [&str; 2] = ["dynatemp", "top_n_sigma"];
/// Vectors that use one of them: 4 and 8.
const VECTORS_NOT_OFFERED: usize = 12;

/// Logits while single tokens change, candidates once tokens are dropped.
struct Chain {
    row: Vec<f32>,
    candidates: Option<Candidates>,
}

impl Chain {
    fn candidates(&mut self) -> &mut Candidates {
        self.candidates.get_or_insert_with(|| {
            let max = self.row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut candidates = Candidates::default();
            candidates.start(&self.row, max);
            candidates
        })
    }

    fn apply(&mut self, step: &Value, history: &[TokenId]) {
        let number = |key: &str| step[key].as_f64().unwrap() as f32;
        let count = |key: &str, default: u64| step[key].as_u64().unwrap_or(default) as usize;
        match step["op"].as_str().unwrap() {
            "temperature" => self.candidates().temperature(number("t")),
            "top_k" => self.candidates().top_k(count("k", 0)),
            "top_p" => self.candidates().top_p(number("p"), count("min_keep", 1)),
            "min_p" => self.candidates().min_p(number("p"), count("min_keep", 1)),
            "typical_p" => self.candidates().typical_p(number("p"), count("min_keep", 1)),
            "penalties" => {
                assert!(self.candidates.is_none(), "penalties come before tokens are dropped");
                let start = history.len().saturating_sub(count("last_n", 0));
                let counts = TokenCounts::new(&[], &history[start..]);
                let penalties = Penalties {
                    repetition: number("repeat"),
                    presence: number("presence"),
                    frequency: number("frequency"),
                };
                adjust::penalize(&mut self.row, &counts, penalties);
            }
            "logit_bias" => {
                for pair in step["bias"].as_array().unwrap() {
                    let token = pair[0].as_u64().unwrap() as TokenId;
                    match pair[1].as_f64() {
                        Some(bias) => adjust::bias(&mut self.row, &[(token, bias as f32)]),
                        None => adjust::ban(&mut self.row, &[token]),
                    }
                }
            }
            other => panic!("step `{other}` is neither offered nor listed as not offered"),
        }
    }
}

#[test]
fn every_step_gives_the_reference_probabilities() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/sampling/vectors.json.gz");
    let golden: Value = serde_json::from_reader(GzDecoder::new(File::open(path).unwrap())).unwrap();
    let (mut checked, mut skipped) = (0, 0);
    for vector in golden["vectors"].as_array().unwrap() {
        let steps = vector["steps"].as_array().unwrap();
        if steps.iter().any(|step| STEPS_NOT_OFFERED.contains(&step["op"].as_str().unwrap())) {
            skipped += 1;
            continue;
        }
        let numbers = |value: &Value| -> Vec<f64> {
            value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let row = numbers(&golden["rows"][vector["row"].as_str().unwrap()]);
        let history: Vec<TokenId> = numbers(&vector["history"]).into_iter().map(|t| t as TokenId).collect();
        let mut chain = Chain { row: row.iter().map(|&x| x as f32).collect(), candidates: None };
        for step in steps {
            chain.apply(step, &history);
        }
        let mut actual = vec![0.0; row.len()];
        for (token, probability) in chain.candidates().probabilities() {
            actual[token as usize] = probability;
        }
        for (token, (actual, expected)) in actual.iter().zip(numbers(&vector["probs"])).enumerate() {
            let context = format!("{} {steps:?} token {token}: {actual}, expected {expected}", vector["row"]);
            assert!((actual - expected).abs() <= TOLERANCE, "{context}");
            // Below this the f32 exponential is 0 by definition.
            if expected == 0.0 || expected > 1e-37 {
                assert_eq!(*actual > 0.0, expected > 0.0, "{context}");
            }
        }
        checked += 1;
    }
    assert_eq!(skipped, VECTORS_NOT_OFFERED);
    assert_eq!(checked, 140 - VECTORS_NOT_OFFERED);
}
