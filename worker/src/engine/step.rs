//! One engine step, from plan to frames.

use super::{Engine, EngineError};
use crate::batch::Forward;
use crate::sampler::{Choice, SampleError, Sampled};
use crate::scheduler::{Chunk, Plan, Rank};
use shared::ids::{Attempt, RequestId};
use shared::ipc::FromWorker;
use shared::ipc::message::{FinishReason, Rejection, TokenEvent};
use std::time::Instant;

/// A request that ended in this step.
struct Ended {
    rank: Rank,
    id: RequestId,
    attempt: Attempt,
    outcome: Result<FinishReason, SampleError>,
}

impl<F: Forward> Engine<F> {
    /// Computes one plan and reports it.
    pub(super) fn step(&mut self) -> Result<(), EngineError> {
        let plan = self.scheduler.plan();
        let started = Instant::now();
        for chunk in &plan.chunks {
            if let Some(timeline) = self.timelines.get_mut(&chunk.rank) {
                timeline.start(started);
            }
        }
        for copy in &plan.copies {
            let copied = self.forward.copy_block(copy.from, copy.to);
            copied.map_err(|error| EngineError::Forward(Box::new(error)))?;
        }
        self.fill_batch(&plan);
        let (events, ended) = self.compute(&plan)?;
        self.stats.step += 1;
        self.stats.batch_tokens = plan.tokens() as u32;
        let ended: Vec<FromWorker> = ended.into_iter().map(|ended| self.close(ended)).collect();
        self.refresh_stats();
        self.send(FromWorker::Step { events, stats: self.stats });
        ended.into_iter().for_each(|message| self.send(message));
        Ok(())
    }

    fn fill_batch(&mut self, plan: &Plan) {
        let block_tokens = self.scheduler.config().limits.kv_block_tokens;
        self.batch.clear();
        for chunk in &plan.chunks {
            let Some(sequence) = self.scheduler.sequence(chunk.rank) else { continue };
            let tokens = &sequence.tokens()[chunk.start..chunk.start + chunk.len];
            let rows = self.batch.push(tokens, chunk.start as u32, sequence.table(), block_tokens);
            if chunk.yields_token {
                self.batch.logit_rows.push(rows.end - 1);
            }
        }
    }

    /// Forward pass and sampling.
    fn compute(&mut self, plan: &Plan) -> Result<(Vec<TokenEvent>, Vec<Ended>), EngineError> {
        let Self { forward, scheduler, sampler, batch, timelines, .. } = self;
        let vocab_size = forward.vocab_size();
        let logits = forward.forward(batch).map_err(|error| EngineError::Forward(Box::new(error)))?;
        let expected = batch.logit_rows.len() * vocab_size;
        if logits.len() != expected {
            return Err(EngineError::LogitsShape { actual: logits.len(), expected });
        }
        let computed = Instant::now();
        let mut rows = logits.chunks_exact(vocab_size);
        let (mut events, mut ended) = (Vec::with_capacity(batch.logit_rows.len()), Vec::new());
        for chunk in &plan.chunks {
            scheduler.advance(chunk);
            let Chunk { rank, yields_token, .. } = *chunk;
            let (true, Some(sequence)) = (yields_token, scheduler.sequence(rank)) else { continue };
            let Some(row) = rows.next() else { continue };
            let index = sequence.emitted_len();
            let (id, attempt) = (sequence.id, sequence.attempt);
            let choice = Choice {
                params: &sequence.sampling,
                counts: &sequence.counts,
                banned: sequence.banned(),
                index: index as u64,
            };
            let outcome = match sampler.sample(row, &choice) {
                Ok(Sampled { token, logprobs }) => {
                    if let Some(timeline) = timelines.get_mut(&rank) {
                        timeline.emit(computed);
                    }
                    events.push(TokenEvent { id, attempt, index: index as u32, token, logprobs });
                    scheduler.emit(rank, token).map(Ok)
                }
                Err(error) => Some(Err(error)),
            };
            ended.extend(outcome.map(|outcome| Ended { rank, id, attempt, outcome }));
        }
        Ok((events, ended))
    }

    /// Frees an ended request's blocks; returns its last message.
    fn close(&mut self, ended: Ended) -> FromWorker {
        let Ended { rank, id, attempt, outcome } = ended;
        let cached_tokens = self.scheduler.remove(rank).map_or(0, |sequence| sequence.cached_tokens);
        let timings = self.take_timings(rank, cached_tokens);
        match outcome {
            Ok(reason) => FromWorker::Finished { id, attempt, reason, timings },
            Err(error) => {
                tracing::error!(request_id = %id, %error, "request cannot be sampled");
                FromWorker::Rejected {
                    id,
                    attempt,
                    error: Rejection::Internal { message: error.to_string() },
                }
            }
        }
    }
}
