//! One engine step, from plan to frames.

use super::{Engine, EngineError};
use crate::batch::Forward;
use crate::fault::BlockSupply;
use crate::sampler::{Choice, SampleError, Sampled, Sampler};
use crate::scheduler::{Chunk, Plan, Rank, Scheduler};
use crate::sequence::Sequence;
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::FromWorker;
use shared::ipc::message::{FinishReason, Phase, Rejection, TokenEvent};
use std::time::Instant;

/// A request that ended in this step.
struct Ended {
    rank: Rank,
    id: RequestId,
    attempt: Attempt,
    outcome: Result<FinishReason, SampleError>,
}

/// What injected faults have left of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Injected {
    Computable,
    NothingToCompute,
}

/// Turns a step's logits into tokens.
struct Draw<'a> {
    scheduler: &'a mut Scheduler,
    sampler: &'a mut Sampler,
    /// Tokens drawn, in index order within each request.
    events: Vec<TokenEvent>,
}

impl Draw<'_> {
    /// Draws a chunk's tokens from its rows: one, and another after each draft that was drawn itself. Rows after
    /// the first wrong draft continue a text that does not exist. Says how the request ended, if it did.
    fn chunk(&mut self, chunk: &Chunk, rows: &[&[f32]]) -> Option<Result<FinishReason, SampleError>> {
        let mut accepted = 0;
        let mut outcome = None;
        for row in rows {
            let token = match self.token(chunk.rank, row) {
                Some(Ok(token)) => token,
                Some(Err(error)) => {
                    outcome = Some(Err(error));
                    break;
                }
                None => break,
            };
            outcome = self.scheduler.emit(chunk.rank, token).map(Ok);
            let is_accepted = chunk.drafts.get(accepted) == Some(&token);
            accepted += usize::from(is_accepted);
            if outcome.is_some() || !is_accepted {
                break;
            }
        }
        self.scheduler.advance(chunk, accepted);
        outcome
    }

    /// Draws a sequence's next token and reports it. `None` if the sequence is gone.
    fn token(&mut self, rank: Rank, row: &[f32]) -> Option<Result<TokenId, SampleError>> {
        let sequence = self.scheduler.sequence(rank)?;
        let index = sequence.emitted_len();
        let choice = Choice {
            params: &sequence.sampling,
            counts: &sequence.counts,
            banned: sequence.banned(),
            index: index as u64,
        };
        let drawn = self.sampler.sample(row, &choice).map(|Sampled { token, logprobs }| {
            let (id, attempt) = (sequence.id, sequence.attempt);
            self.events.push(TokenEvent { id, attempt, index: index as u32, token, logprobs });
            token
        });
        Some(drawn)
    }
}

impl<F: Forward> Engine<F> {
    /// Computes one plan and reports it.
    pub(super) fn step(&mut self) -> Result<(), EngineError> {
        self.activity.enter(Phase::Computing);
        let plan = self.scheduler.plan(self.budget.tokens());
        if self.faults.is_some() && self.inject_faults(&plan) == Injected::NothingToCompute {
            return Ok(());
        }
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
        self.stats.batch_tokens = plan.rows() as u32;
        let elapsed = started.elapsed();
        self.budget.learn(self.stats.batch_tokens, elapsed);
        self.scheduler.learn_time(plan.rows(), elapsed);
        let ended: Vec<FromWorker> = ended.into_iter().map(|ended| self.close(ended)).collect();
        self.refresh_stats();
        self.send(FromWorker::Step { events, stats: self.stats });
        ended.into_iter().for_each(|message| self.send(message));
        Ok(())
    }

    /// Lets the faults strike that are due; they may not return. See [`crate::fault`].
    #[cold]
    fn inject_faults(&mut self, plan: &Plan) -> Injected {
        let Some(faults) = self.faults else { return Injected::Computable };
        // Without blocks a plan may be empty. The next one has them.
        if plan.chunks.is_empty() {
            self.scheduler.supply_blocks(BlockSupply::Real);
            return Injected::NothingToCompute;
        }
        let sequences = plan.chunks.iter().filter_map(|chunk| self.scheduler.sequence(chunk.rank));
        let supply = faults.at_step(self.stats.step + 1, sequences.map(Sequence::prompt));
        self.scheduler.supply_blocks(supply);
        Injected::Computable
    }

    fn fill_batch(&mut self, plan: &Plan) {
        let block_tokens = self.scheduler.config().limits.kv_block_tokens;
        self.batch.clear();
        for chunk in &plan.chunks {
            let Some(sequence) = self.scheduler.sequence(chunk.rank) else { continue };
            let known = &sequence.tokens()[chunk.start..chunk.start + chunk.len];
            let tokens = [known, &chunk.drafts].concat();
            let rows = self.batch.push(&tokens, chunk.start as u32, sequence.table(), block_tokens);
            self.batch.logit_rows.extend(rows.end - chunk.logit_rows()..rows.end);
        }
    }

    /// Forward pass and sampling.
    fn compute(&mut self, plan: &Plan) -> Result<(Vec<TokenEvent>, Vec<Ended>), EngineError> {
        let Self { forward, scheduler, sampler, batch, timelines, activity, .. } = self;
        let vocab_size = forward.vocab_size();
        let logits = forward.forward(batch).map_err(|error| EngineError::Forward(Box::new(error)))?;
        let expected = batch.logit_rows.len() * vocab_size;
        if logits.len() != expected {
            return Err(EngineError::LogitsShape { actual: logits.len(), expected });
        }
        let computed = Instant::now();
        activity.enter(Phase::Sampling);
        let mut rows = logits.chunks_exact(vocab_size);
        let mut draw = Draw { scheduler, sampler, events: Vec::with_capacity(batch.logit_rows.len()) };
        let mut ended = Vec::new();
        for chunk in &plan.chunks {
            activity.advance();
            let own = rows.by_ref().take(chunk.logit_rows());
            let emitted_before = draw.events.len();
            let outcome = draw.chunk(chunk, &own.collect::<Vec<&[f32]>>());
            if let (true, Some(timeline)) =
                (draw.events.len() > emitted_before, timelines.get_mut(&chunk.rank))
            {
                timeline.emit(computed);
            }
            if let (Some(outcome), Some(sequence)) = (outcome, draw.scheduler.sequence(chunk.rank)) {
                let (id, attempt) = (sequence.id, sequence.attempt);
                ended.push(Ended { rank: chunk.rank, id, attempt, outcome });
            }
        }
        Ok((draw.events, ended))
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
