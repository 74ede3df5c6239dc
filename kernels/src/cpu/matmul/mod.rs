//! Matrix products of token rows with packed weights.
//!
//! The backend calls [`matmul`] with all the weights that read the same input (q, k and v; gate and up), so
//! that they share one parallel region. What holds always (promise P3): an output depends on its weight row and
//! its token row alone, to the bit, whatever else is in the batch, however many threads there are and whichever
//! instruction set runs; `tile` says how. What it deliberately does not do: split a sum between threads.

pub(crate) mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod lanes;
mod output;
mod portable;
pub(crate) mod tile;

pub use activations::{ActivationFormat, QuantizedRows, quantize_rows};

use crate::KernelError;
use crate::blocks::BlockType;
#[cfg(target_arch = "x86_64")]
use crate::cpu::amx::{self, TileFormat};
#[cfg(not(target_arch = "x86_64"))]
use crate::cpu::matrix::formats::Format as TileFormat;
use crate::cpu::matrix::layout::GROUP_ROWS;
use crate::cpu::matrix::with_format;
use crate::cpu::{Cpu, DisjointMut, Matrix};
use activations::ActivationBlock;
use output::Columns;
use std::ops::Range;
use tile::TILE_TOKENS;

/// Token rows a thread multiplies with one group of weight rows before it goes to the next group: few enough to
/// stay in a second-level cache, many enough that reading the weights again per panel costs little.
pub(crate) const PANEL_TOKENS: usize = 64;

/// Groups of weight rows a thread takes at a time, at most: a few microseconds of streaming.
const GROUPS_PER_CHUNK: usize = 4;

/// Token rows as the weights of one product need them.
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    /// Token rows.
    pub rows: usize,
    /// Columns of each.
    pub cols: usize,
    /// [rows, cols], for float weights.
    pub f32: &'a [f32],
    /// The same rows quantized per 32, if any weight needs that.
    pub per32: Option<&'a QuantizedRows>,
    /// The same rows quantized per 256, if any weight needs that.
    pub per256: Option<&'a QuantizedRows>,
}

/// What happens to the value an output had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// It is overwritten: `product + bias`.
    Set,
    /// It is added to: `out + (product + bias)`.
    Add,
}

/// One weight and where its product goes.
#[derive(Debug)]
pub struct Product<'a> {
    /// [out features, cols].
    pub weight: &'a Matrix,
    /// [out features].
    pub bias: Option<&'a [f32]>,
    /// Whether `out` is overwritten or added to.
    pub accumulate: Accumulate,
    /// [token rows, out features], row-major.
    pub out: &'a mut [f32],
}

/// Multiplies token rows with each weight: `out[t][r] = sum over c of x[t][c] * weight[r][c]`, plus the bias.
///
/// Errors: a weight has another number of columns than `x`, `x` lacks the format it needs or holds another shape
/// in it, or a bias or an output has the wrong length. Nothing is written then.
pub fn matmul(cpu: &Cpu, x: &Activations<'_>, products: &mut [Product<'_>]) -> Result<(), KernelError> {
    for product in products.iter() {
        check(x, product)?;
    }
    let panels = x.rows.div_ceil(PANEL_TOKENS);
    let jobs: Vec<Job<'_>> = products.iter_mut().map(Job::new).collect();
    let groups: usize = jobs.iter().map(|job| job.weight.groups()).sum();
    let items = groups * panels;
    let grain = (items / (8 * cpu.threads())).clamp(1, GROUPS_PER_CHUNK);
    cpu.for_each_chunk(items, grain, &|mut range| {
        while !range.is_empty() {
            let (panel, end) = (range.start / groups, range.end.min((range.start / groups + 1) * groups));
            multiply_groups(cpu, x, &jobs, panel, range.start % groups..end - panel * groups);
            range.start = end;
        }
    });
    Ok(())
}

/// Computes a range of groups, counted through all jobs, for one panel of token rows.
fn multiply_groups(cpu: &Cpu, x: &Activations<'_>, jobs: &[Job<'_>], panel: usize, groups: Range<usize>) {
    let mut before = 0;
    for job in jobs {
        let own = job.weight.groups();
        let (start, end) = (groups.start.clamp(before, before + own), groups.end.clamp(before, before + own));
        if start < end {
            job.multiply_panel(cpu, x, panel, start - before..end - before);
        }
        before += own;
    }
}

fn check(x: &Activations<'_>, product: &Product<'_>) -> Result<(), KernelError> {
    let length = |what, expected, actual| {
        if expected == actual { Ok(()) } else { Err(KernelError::Length { what, expected, actual }) }
    };
    let weight = product.weight;
    length("input of a weight", weight.cols(), x.cols)?;
    length("output", x.rows.saturating_mul(weight.rows()), product.out.len())?;
    if let Some(bias) = product.bias {
        length("bias", weight.rows(), bias.len())?;
    }
    let quantized = match weight.activation_format() {
        ActivationFormat::F32 => return length("activations", x.rows.saturating_mul(x.cols), x.f32.len()),
        ActivationFormat::Int8Per32 => x.per32,
        ActivationFormat::Int8Per256 => x.per256,
    };
    let held = quantized.filter(|q| q.format() == weight.activation_format());
    length("rows of quantized activations", x.rows, held.map_or(0, QuantizedRows::rows))?;
    if x.rows > 0 {
        length("columns of quantized activations", x.cols, held.map_or(0, QuantizedRows::cols))?;
    }
    Ok(())
}

/// A product whose output several threads write.
struct Job<'a> {
    weight: &'a Matrix,
    bias: Option<&'a [f32]>,
    accumulate: Accumulate,
    out: DisjointMut<'a, f32>,
}

impl<'a> Job<'a> {
    fn new(product: &'a mut Product<'_>) -> Job<'a> {
        Job {
            weight: product.weight,
            bias: product.bias,
            accumulate: product.accumulate,
            out: DisjointMut::new(product.out),
        }
    }

    /// Computes the outputs of some groups of weight rows for one panel of token rows.
    fn multiply_panel(&self, cpu: &Cpu, x: &Activations<'_>, panel: usize, groups: Range<usize>) {
        let tokens = panel * PANEL_TOKENS..x.rows.min((panel + 1) * PANEL_TOKENS);
        with_format!(
            self.weight.block_type(),
            F => self.multiply_quantized::<F>(cpu, x, tokens, groups),
            _float => self.multiply_float(cpu, x, tokens, groups)
        );
    }

    fn multiply_float(&self, cpu: &Cpu, x: &Activations<'_>, tokens: Range<usize>, groups: Range<usize>) {
        let Some(weight) = self.weight.float() else { return };
        let mut products = vec![[0.0; GROUP_ROWS]; tokens.len() * groups.len()];
        let x = &x.f32[tokens.start * x.cols..tokens.end * x.cols];
        let done = weight.multiply_groups(cpu, x, groups.clone(), &mut products);
        debug_assert!(done.is_ok(), "lengths were checked before the region");
        for (i, group) in groups.clone().enumerate() {
            let out = self.columns(tokens.start, group);
            for (token, products) in products.chunks_exact(groups.len()).enumerate() {
                out.put_array(token, &products[i]);
            }
        }
    }

    fn multiply_quantized<F: TileFormat>(
        &self,
        cpu: &Cpu,
        x: &Activations<'_>,
        tokens: Range<usize>,
        groups: Range<usize>,
    ) {
        let blocks = self.weight.cols() / F::Activation::LEN;
        let held = [x.per32, x.per256].into_iter().flatten().find_map(F::Activation::of);
        let Some(x) = held.map(|x| &x[tokens.start * blocks..]) else { return };
        #[cfg(target_arch = "x86_64")]
        if amx::pays::<F>(cpu.isa(), tokens.len()) {
            let first = groups.start;
            let groups: Vec<_> = groups.filter_map(|group| self.weight.group::<F>(group)).collect();
            let panel = amx::Panel { x, tokens: tokens.len() };
            let put = |token, group, products: &_| {
                self.columns(tokens.start, first + group).put_array(token, products);
            };
            // SAFETY: an `Isa` inside a `Cpu` is present on this processor.
            unsafe { amx::multiply::<F>(&groups, &panel, put) };
            return;
        }
        for group in groups {
            let Some(weights) = self.weight.group::<F>(group) else { return };
            let out = self.columns(tokens.start, group);
            tile::multiply::<F>(cpu, &weights, &x[..tokens.len() * blocks], tokens.len(), &out);
        }
    }

    /// Where the products of `group` with the token rows from `first_token` on go.
    fn columns(&self, first_token: usize, group: usize) -> Columns<'_> {
        let stride = self.weight.rows();
        let first = group * GROUP_ROWS;
        let rows = (stride - first).min(GROUP_ROWS);
        Columns {
            out: &self.out,
            stride,
            start: first_token * stride + first,
            rows,
            bias: self.bias.map(|bias| &bias[first..first + rows]),
            accumulate: self.accumulate,
        }
    }
}

const _: () =
    assert!(PANEL_TOKENS.is_multiple_of(TILE_TOKENS), "panels are whole tiles, as activations are laid out");
