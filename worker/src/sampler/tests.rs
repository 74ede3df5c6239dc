//! The sampler as a whole; its steps against the golden vectors are in `tests/sampler_vectors.rs`.

use super::*;
use proptest::prelude::*;

fn sample(logits: &[f32], params: &SamplingParams, index: u64) -> Result<Sampled, SampleError> {
    let choice = Choice { params, counts: &TokenCounts::default(), banned: &[], index };
    Sampler::default().sample(logits, &choice)
}

#[test]
fn logprobs_describe_the_unmodified_distribution() {
    let logits: Vec<f32> = [0.1f32, 0.2, 0.2, 0.5].iter().map(|p| p.ln()).collect();
    let params = SamplingParams {
        logit_bias: vec![(0, 100.0)],
        temperature: 0.3,
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let sampled = sample(&logits, &params, 0).unwrap();
    assert_eq!(sampled.token, 0);
    let logprobs = sampled.logprobs.unwrap();
    assert!((logprobs.logprob - 0.1f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [3, 1, 2]);
    assert!((logprobs.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    let none = SamplingParams { logprobs: Some(0), ..params };
    assert_eq!(sample(&logits, &none, 0).unwrap().logprobs.unwrap().top, []);
}

#[test]
fn banned_tokens_are_never_drawn() {
    let params = SamplingParams::default();
    let mut sampler = Sampler::default();
    for index in 0..200 {
        let choice = Choice { params: &params, counts: &TokenCounts::default(), banned: &[0], index };
        assert_eq!(sampler.sample(&[50.0, 1.0], &choice).unwrap().token, 1);
    }
    let choice = Choice { params: &params, counts: &TokenCounts::default(), banned: &[0, 1], index: 0 };
    assert_eq!(sampler.sample(&[50.0, 1.0], &choice), Err(SampleError::NothingLeft));
}

#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.5f32, 0.3, 0.15, 0.05];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    let params = SamplingParams { seed: 11, ..SamplingParams::default() };
    let mut counts = [0f32; 4];
    for index in 0..20_000 {
        counts[sample(&logits, &params, index).unwrap().token as usize] += 1.0;
    }
    for (count, p) in counts.iter().zip(probabilities) {
        // Five standard deviations of a binomial count.
        let margin = 5.0 * (20_000.0 * p * (1.0 - p)).sqrt();
        assert!((count - 20_000.0 * p).abs() < margin, "{counts:?}");
    }
}

#[test]
fn not_a_number_is_an_error_of_the_request() {
    for bad in [f32::NAN, f32::INFINITY] {
        for params in [SamplingParams::greedy(), SamplingParams::default()] {
            assert!(matches!(
                sample(&[0.0, bad, 1.0], &params, 0),
                Err(SampleError::NotFinite { token: 1, .. })
            ));
        }
    }
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    (
        (prop_oneof![Just(0f32), 0.01f32..2.0], 0u32..50, 0f32..=1.0, 0f32..=1.0, 0f32..=1.0),
        (0.5f32..2.0, -2f32..2.0, -2f32..2.0, any::<u64>(), prop::option::of(0u32..=20)),
        prop::collection::vec((0u32..40, -100f32..100.0), 0..4),
    )
        .prop_map(|((temperature, top_k, top_p, min_p, typical_p), rest, logit_bias)| {
            let (repetition_penalty, presence_penalty, frequency_penalty, seed, logprobs) = rest;
            SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                repetition_penalty,
                presence_penalty,
                frequency_penalty,
                logit_bias,
                seed,
                logprobs,
            }
        })
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![20 => -40f32..40.0, 1 => Just(f32::NEG_INFINITY), 1 => any::<f32>()]
}

proptest! {
    #[test]
    fn any_logits_give_a_possible_token_or_an_error(
        logits in prop::collection::vec(any_logit(), 1..300),
        params in any_params(),
        history in prop::collection::vec(0u32..320, 0..20),
        index in any::<u64>(),
    ) {
        prop_assert_eq!(params.validate(), Ok(()));
        let counts = TokenCounts::new(&history, &history);
        let choice = Choice { params: &params, counts: &counts, banned: &[], index };
        let mut sampler = Sampler::default();
        let first = sampler.sample(&logits, &choice);
        if let Ok(sampled) = &first {
            prop_assert!(logits[sampled.token as usize] > f32::NEG_INFINITY);
            if let Some(logprobs) = &sampled.logprobs {
                prop_assert!(logprobs.logprob <= 1e-6);
                prop_assert_eq!(logprobs.top.len(), logits.len().min(params.logprobs.unwrap() as usize));
            }
        }
        // Neither what was sampled before nor how often changes a result.
        prop_assert_eq!(&sampler.sample(&logits, &choice), &first);
        prop_assert_eq!(&Sampler::default().sample(&logits, &choice), &first);
    }

    #[test]
    fn restricted_draws_stay_among_the_most_likely(logits in prop::collection::vec(-20f32..20.0, 2..2000), seed in any::<u64>(), k in 1u32..9) {
        let params = SamplingParams { top_k: k, seed, ..SamplingParams::default() };
        let token = sample(&logits, &params, 3).unwrap().token;
        let likelier = logits.iter().filter(|&&other| other > logits[token as usize]).count();
        prop_assert!(likelier < k as usize);
    }
}
