//! Products of rows with weights: which kernel takes them.
//!
//! Which one it is changes no bit of an output (promise P3): all keep the order of `cpu::matmul`.

use super::args::{FloatMatmulArgs, MatmulArgs};
use super::format::{Format, GROUP_ROWS};
use super::{DeviceBuffer, Gpu, HipError, Matrix, Rows};
use crate::KernelError;
use crate::cpu::Accumulate;

/// Token rows up to which weights are streamed once per launch, each output a chain of one lane.
const VECTOR_TOKENS: usize = 8;
/// Outputs and token rows of a tile.
const TILE: usize = 64;

/// One matrix that multiplies the common input of a [`Gpu::matmul`].
#[derive(Debug)]
pub struct Product<'a> {
    /// Weights [outputs, inputs].
    pub weight: &'a Matrix,
    /// [outputs]
    pub bias: Option<&'a DeviceBuffer<f32>>,
    /// Set or add.
    pub accumulate: Accumulate,
    /// [rows, outputs]
    pub out: &'a mut Rows,
}

impl Gpu {
    /// `out = x · weightᵀ + bias`, or adds that to `out`. `x` is mutable for the quantized copy it caches.
    pub fn matmul(&self, x: &mut Rows, product: &mut Product<'_>) -> Result<(), HipError> {
        let weight = product.weight;
        self.quantize_rows(x, weight.activation_format())?;
        match product.accumulate {
            Accumulate::Set => product.out.prepare(self, x.rows())?,
            Accumulate::Add => product.out.changed(),
        }
        let shapes = [
            ("columns of a product", weight.cols, x.width()),
            ("rows of a product", x.rows(), product.out.rows()),
            ("outputs of a product", weight.rows, product.out.width()),
            ("bias of a product", weight.rows, product.bias.map_or(weight.rows, DeviceBuffer::len)),
        ];
        for (what, expected, actual) in shapes {
            if expected != actual {
                return Err(KernelError::Length { what, expected, actual }.into());
            }
        }
        match weight.format {
            Format::Float { name, .. } => self.float_matmul(name, x, product),
            Format::Quantized(record) => self.quantized_matmul(record.name, x, product),
        }
    }

    fn quantized_matmul(&self, name: &str, x: &Rows, product: &Product<'_>) -> Result<(), HipError> {
        let weight = product.weight;
        let args = MatmulArgs {
            weights: weight.weights.address(),
            x: x.quantized(weight.activation_format()),
            bias: product.bias.map_or(0, DeviceBuffer::address),
            out: product.out.address(),
            outputs: weight.rows as u32,
            units: weight.units() as u32,
            tokens: x.rows() as u32,
            add: u32::from(product.accumulate == Accumulate::Add),
        };
        let (kernel, grid) = if x.rows() <= VECTOR_TOKENS {
            let tokens = x.rows().next_power_of_two();
            // Outputs of a block of threads: four rows of lanes, each with two outputs up to four token rows.
            let outputs = if tokens == VECTOR_TOKENS { 4 } else { 8 };
            (format!("matmul_vector_{name}_{tokens}"), [weight.rows.div_ceil(outputs), x.rows().min(1)])
        } else {
            (format!("matmul_tile_{name}"), [weight.rows.div_ceil(TILE), x.rows().div_ceil(TILE)])
        };
        // SAFETY: shapes were checked by `matmul`, and `x` was quantized to the weight's format.
        unsafe { self.launch(&kernel, grid, &args) }
    }

    fn float_matmul(&self, name: &str, x: &Rows, product: &Product<'_>) -> Result<(), HipError> {
        let weight = product.weight;
        let args = FloatMatmulArgs {
            weights: weight.weights.address(),
            x: x.address(),
            bias: product.bias.map_or(0, DeviceBuffer::address),
            out: product.out.address(),
            outputs: weight.rows as u32,
            cols: weight.cols as u32,
            tokens: x.rows() as u32,
            add: u32::from(product.accumulate == Accumulate::Add),
        };
        let tokens = if x.rows() == 1 { 1 } else { VECTOR_TOKENS };
        let grid = [weight.rows.div_ceil(GROUP_ROWS), x.rows().div_ceil(tokens)];
        // SAFETY: shapes were checked by `matmul`.
        unsafe { self.launch(&format!("float_matmul_{name}_{tokens}"), grid, &args) }
    }
}
