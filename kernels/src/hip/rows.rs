//! [`Rows`]: activations on the device, with the quantized copies made so far, and the operations on rows alone.

use super::args::{EmbedArgs, GateArgs, GatherArgs, NormArgs, QuantizeArgs, QuantizeOut, Quantized};
use super::{DeviceBuffer, Gpu, HipError, Matrix};
use crate::KernelError;
use crate::cpu::{ActivationFormat, Gate};
use bytemuck::Zeroable;

/// Columns that a block of threads takes at once in the kernels of rows.
const COLUMNS_AT_ONCE: usize = 1024;

/// f32 [rows, width] on the device. It grows to the rows it is given and keeps its memory.
#[derive(Debug)]
pub struct Rows {
    width: usize,
    rows: usize,
    values: DeviceBuffer<f32>,
    per32: QuantizedRows,
    per256: QuantizedRows,
}

/// A copy in bytes, and whether it is of the present values.
#[derive(Debug)]
struct QuantizedRows {
    codes: DeviceBuffer<u8>,
    scales: DeviceBuffer<f32>,
    sums: DeviceBuffer<u32>,
    current: bool,
}

impl QuantizedRows {
    fn empty(gpu: &Gpu) -> Result<Self, HipError> {
        Ok(QuantizedRows {
            codes: gpu.allocate(0, "activations")?,
            scales: gpu.allocate(0, "activations")?,
            sums: gpu.allocate(0, "activations")?,
            current: false,
        })
    }

    /// Makes room for `values` codes with a scale per `block`.
    fn reserve(&mut self, gpu: &Gpu, values: usize, block: usize) -> Result<(), HipError> {
        if self.codes.len() < values {
            self.codes = gpu.allocate(values, "activations")?;
            self.scales = gpu.allocate(values / block, "activations")?;
            self.sums = gpu.allocate(values / 32, "activations")?;
        }
        Ok(())
    }

    fn argument(&self) -> Quantized {
        let (codes, scales) = (self.codes.address(), self.scales.address());
        Quantized { codes, scales, sums: self.sums.address() }
    }
}

impl Rows {
    /// No rows of `width` columns.
    pub fn new(gpu: &Gpu, width: usize) -> Result<Rows, HipError> {
        if width == 0 || width >= 1 << 28 {
            return Err(
                KernelError::OutOfRange { what: "width of rows", value: width, limit: 1 << 28 }.into()
            );
        }
        let (per32, per256) = (QuantizedRows::empty(gpu)?, QuantizedRows::empty(gpu)?);
        Ok(Rows { width, rows: 0, values: gpu.allocate(0, "activations")?, per32, per256 })
    }

    /// Columns.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows held.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Makes room for `rows` rows of any value and forgets what was there.
    pub fn prepare(&mut self, gpu: &Gpu, rows: usize) -> Result<(), HipError> {
        if rows >= 1 << 16 {
            // Kernels count rows in the second dimension of a grid.
            return Err(KernelError::OutOfRange { what: "rows", value: rows, limit: 1 << 16 }.into());
        }
        let len = rows * self.width;
        if self.values.len() < len {
            // Doubling keeps the number of allocations logarithmic while batches grow.
            self.values = gpu.allocate(len.max(2 * self.values.len()), "activations")?;
        }
        self.rows = rows;
        self.changed();
        Ok(())
    }

    /// Copies that were made are void.
    pub(super) fn changed(&mut self) {
        self.per32.current = false;
        self.per256.current = false;
    }

    /// Replaces all rows by `values`, [rows, width].
    pub fn upload(&mut self, gpu: &Gpu, values: &[f32]) -> Result<(), HipError> {
        if !values.len().is_multiple_of(self.width) {
            let (value, multiple) = (values.len(), self.width);
            return Err(KernelError::Multiple { what: "elements of rows", value, multiple }.into());
        }
        self.prepare(gpu, values.len() / self.width)?;
        self.values.upload(gpu.stream(), 0, values)
    }

    /// The rows as host memory, [rows, width]; waits for them.
    pub fn download(&self, gpu: &Gpu) -> Result<Vec<f32>, HipError> {
        let mut values = vec![0.0; self.rows * self.width];
        self.values.download(gpu.stream(), 0, &mut values)?;
        Ok(values)
    }

    pub(super) fn address(&self) -> u64 {
        self.values.address()
    }

    /// The quantized copy of that format, as [`Gpu::quantize_rows`] made it.
    pub(super) fn quantized(&self, format: ActivationFormat) -> Quantized {
        match format {
            ActivationFormat::Int8Per32 => self.per32.argument(),
            ActivationFormat::Int8Per256 => self.per256.argument(),
            ActivationFormat::F32 => Quantized::zeroed(),
        }
    }

    /// Makes room for copies in `formats` and says where they go; they count as made.
    fn quantize_into(&mut self, gpu: &Gpu, formats: &[ActivationFormat]) -> Result<QuantizeOut, HipError> {
        let mut out = QuantizeOut::zeroed();
        for format in formats {
            let (copy, block, place) = match format {
                ActivationFormat::F32 => continue,
                ActivationFormat::Int8Per32 => (&mut self.per32, 32, &mut out.per32),
                ActivationFormat::Int8Per256 => (&mut self.per256, 256, &mut out.per256),
            };
            if !self.width.is_multiple_of(block) {
                let (value, multiple) = (self.width, block);
                return Err(KernelError::Multiple { what: "activation columns", value, multiple }.into());
            }
            copy.reserve(gpu, self.values.len(), block)?;
            copy.current = true;
            *place = copy.argument();
        }
        Ok(out)
    }
}

fn same_shape(what: &'static str, a: &Rows, b: &Rows) -> Result<(), HipError> {
    let (actual, expected) = (b.rows * b.width, a.rows * a.width);
    if (a.rows, a.width) == (b.rows, b.width) {
        return Ok(());
    }
    Err(KernelError::Length { what, expected, actual }.into())
}

/// A norm's gain and epsilon.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// [width], or [head_dim] for the norm of each head.
    pub gain: &'a DeviceBuffer<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Gpu {
    /// Makes the quantized copy of `x` that `format` asks for, unless it has been made.
    pub fn quantize_rows(&self, x: &mut Rows, format: ActivationFormat) -> Result<(), HipError> {
        let made = match format {
            ActivationFormat::F32 => true,
            ActivationFormat::Int8Per32 => x.per32.current,
            ActivationFormat::Int8Per256 => x.per256.current,
        };
        if made {
            return Ok(());
        }
        let out = x.quantize_into(self, &[format])?;
        let args = QuantizeArgs { x: x.address(), out, cols: x.width as u32, rows: x.rows as u32 };
        let grid = [x.rows, x.width.div_ceil(COLUMNS_AT_ONCE)];
        // SAFETY: `x` has rows · width values, and the copies room for as many codes.
        unsafe { self.launch("quantize_rows", grid, &args) }
    }

    /// `out` = each row of `x` at unit root mean square times the gain, quantized to `formats` on the way out.
    pub fn rms_norm(
        &self,
        x: &Rows,
        norm: Norm<'_>,
        out: &mut Rows,
        formats: &[ActivationFormat],
    ) -> Result<(), HipError> {
        out.prepare(self, x.rows)?;
        same_shape("rms_norm output", x, out)?;
        let quantized = out.quantize_into(self, formats)?;
        self.norm((x.address(), x.rows, x.width), norm, (out.address(), quantized))
    }

    /// The same over each head of `x` [rows, heads · gain], in place.
    pub fn head_norm(&self, x: &mut Rows, norm: Norm<'_>) -> Result<(), HipError> {
        let (value, multiple) = (x.width, norm.gain.len());
        if multiple == 0 || !value.is_multiple_of(multiple) {
            return Err(KernelError::Multiple { what: "width of heads", value, multiple }.into());
        }
        x.changed();
        let heads = x.rows * (value / multiple);
        self.norm((x.address(), heads, multiple), norm, (x.address(), QuantizeOut::zeroed()))
    }

    fn norm(
        &self,
        (x, rows, width): (u64, usize, usize),
        norm: Norm<'_>,
        (out, quantized): (u64, QuantizeOut),
    ) -> Result<(), HipError> {
        if norm.gain.len() != width {
            let (expected, actual) = (width, norm.gain.len());
            return Err(KernelError::Length { what: "gain of a norm", expected, actual }.into());
        }
        let args = NormArgs {
            x,
            addend: 0,
            gain: norm.gain.address(),
            out,
            quantized,
            width: width as u32,
            rows: rows as u32,
            eps: norm.eps,
            reserved: 0,
        };
        // SAFETY: `x` and `out` have rows · width values, the gain one per column, copies room for their codes.
        unsafe { self.launch("rms_norm", [rows, 1], &args) }
    }

    /// `out[i] = f(gate[i]) · up[i]`, quantized to `formats` on the way out.
    pub fn gated_activation(
        &self,
        kind: Gate,
        (gate, up): (&Rows, &Rows),
        out: &mut Rows,
        formats: &[ActivationFormat],
    ) -> Result<(), HipError> {
        let kind = match kind {
            Gate::Silu => 0,
            Gate::GeluTanh => 1,
            Gate::GeluErf => 2,
        };
        out.prepare(self, gate.rows)?;
        same_shape("up projection", gate, up)?;
        same_shape("gated activation output", gate, out)?;
        let quantized = out.quantize_into(self, formats)?;
        let args = GateArgs {
            gate: gate.address(),
            up: up.address(),
            out: out.address(),
            quantized,
            width: gate.width as u32,
            rows: gate.rows as u32,
            kind,
            reserved: 0,
        };
        let grid = [gate.rows, gate.width.div_ceil(COLUMNS_AT_ONCE)];
        // SAFETY: all three have rows · width values, copies room for their codes.
        unsafe { self.launch("gated_activation", grid, &args) }
    }

    /// `out[i] = x[chosen[i]]`
    pub fn gather(&self, x: &Rows, chosen: &[u32], out: &mut Rows) -> Result<(), HipError> {
        expect_all_below("row", chosen, x.rows)?;
        out.prepare(self, chosen.len())?;
        if out.width != x.width {
            let (expected, actual) = (x.width, out.width);
            return Err(KernelError::Length { what: "width of gathered rows", expected, actual }.into());
        }
        let (width, rows) = (x.width as u32, chosen.len() as u32);
        let chosen_at = self.place_indices(chosen)?;
        let args = GatherArgs { x: x.address(), chosen: chosen_at, out: out.address(), width, rows };
        // SAFETY: every chosen row is one of `x`; `out` has as many rows.
        unsafe { self.launch("gather", [chosen.len(), 1], &args) }
    }

    /// `out[i] = table[tokens[i]]` as f32. Errors: a token is not in the table.
    pub fn embed(&self, table: &Matrix, tokens: &[u32], out: &mut Rows) -> Result<(), HipError> {
        expect_all_below("token", tokens, table.rows)?;
        out.prepare(self, tokens.len())?;
        if out.width != table.cols {
            let (expected, actual) = (table.cols, out.width);
            return Err(KernelError::Length { what: "width of embeddings", expected, actual }.into());
        }
        let args = EmbedArgs {
            table: table.weights.address(),
            tokens: self.place_indices(tokens)?,
            out: out.address(),
            width: table.cols as u32,
            rows: tokens.len() as u32,
            vocabulary: table.rows as u32,
            reserved: 0,
        };
        let name = format!("embed_{}", table.format.name());
        // SAFETY: every token is a row of the table; `out` has a row each.
        unsafe { self.launch(&name, [tokens.len(), 1], &args) }
    }
}

fn expect_all_below(what: &'static str, values: &[u32], limit: usize) -> Result<(), HipError> {
    match values.iter().find(|&&value| value as usize >= limit) {
        None => Ok(()),
        Some(&value) => Err(KernelError::OutOfRange { what, value: value as usize, limit }.into()),
    }
}
