//! The HIP backend: an AMD GPU, each operation handed to the kernel of the same name.
//!
//! Used where the cargo feature `hip` is on and a GPU is chosen. It gives the very bits of the CPU backend, so a
//! request may move between the two. Work is asynchronous; only [`Backend::read`] waits for it. An error after which
//! the device is of no more use comes out of the forward pass like any other, which ends the worker; the gateway
//! starts it again.

use super::{
    Accumulate, AttentionStep, Backend, BackendError, CacheShape, KvStep, KvType, Product, Rope, RopePairing,
    attention_spans,
};
use crate::batch::Batch;
use crate::model::weights::Tensor;
use kernels::KernelError;
use kernels::cpu::{self, ActivationFormat, Gate, KvSlot};
use kernels::hip::{
    self, AttentionPlan, AttentionShape, DeviceBuffer, Gpu, HipError, KvCache, KvElement, KvLayout, Norm,
    Rotation, RotationArrays,
};
use std::cell::{OnceCell, RefCell};

/// Computes on one GPU.
pub struct HipBackend {
    gpu: Gpu,
    /// Angles and slots of the present step.
    rotation: Option<Rotation>,
    /// How the present step's attention is cut, made by its first layer.
    plan: RefCell<Option<AttentionPlan>>,
}

/// f32 `[rows, width]` on the device, and the host's copy once it was read.
pub struct HipRows {
    device: hip::Rows,
    host: OnceCell<Vec<f32>>,
    /// The formats that matrices have asked these rows for: what makes the rows next quantizes them on the way.
    formats: Vec<ActivationFormat>,
}

impl HipRows {
    fn for_writing(&mut self) -> &mut hip::Rows {
        self.host.take();
        &mut self.device
    }

    /// The same, with the formats to quantize to.
    fn for_quantized_writing(&mut self) -> (&mut hip::Rows, &[ActivationFormat]) {
        self.host.take();
        (&mut self.device, &self.formats)
    }
}

fn failed(operation: &'static str) -> impl Fn(HipError) -> BackendError {
    move |source| BackendError::Hip { operation, source: Box::new(source) }
}

impl HipBackend {
    /// The backend on device `index`, as the HIP runtime counts.
    pub fn open(index: usize) -> Result<Self, HipError> {
        Ok(Self { gpu: Gpu::open(index)?, rotation: None, plan: RefCell::new(None) })
    }

    /// Whether the runtime sees a device at all.
    pub fn is_present() -> bool {
        hip::device_count() > 0
    }

    /// The device's name and architecture.
    pub fn description(&self) -> String {
        format!("{} ({})", self.gpu.name(), self.gpu.architecture())
    }

    /// Free memory of the device and all of it, in bytes.
    pub fn memory_bytes(&self) -> Result<(u64, u64), HipError> {
        let (free, total) = self.gpu.memory_bytes()?;
        Ok((free as u64, total as u64))
    }

    fn rotation(&self) -> Result<&Rotation, BackendError> {
        let missing = KernelError::Empty { what: "step of a rotation" };
        self.rotation.as_ref().ok_or_else(|| failed("rope_and_store_kv")(missing.into()))
    }

    fn make_plan(&self, shape: AttentionShape, batch: &Batch) -> Result<AttentionPlan, HipError> {
        let spans = attention_spans(batch);
        AttentionPlan::new(&self.gpu, shape, &spans)
    }
}

impl Backend for HipBackend {
    type Matrix = hip::Matrix;
    type Vector = DeviceBuffer<f32>;
    type Embedding = hip::Matrix;
    type Rows = HipRows;
    type Cache = KvCache;

    fn load_matrix(&self, tensor: &Tensor) -> Result<hip::Matrix, BackendError> {
        let shape = (tensor.block_type(), tensor.rows(), tensor.cols());
        hip::Matrix::load(&self.gpu, shape, tensor.bytes(), &mut |_| ()).map_err(failed("load_matrix"))
    }

    fn load_vector(&self, tensor: &Tensor) -> Result<DeviceBuffer<f32>, BackendError> {
        self.gpu.upload(&tensor.to_f32()?, "a vector").map_err(failed("load_vector"))
    }

    fn load_embedding(&self, tensor: &Tensor) -> Result<hip::Matrix, BackendError> {
        self.load_matrix(tensor)
    }

    fn matrix_bytes(&self, matrix: &hip::Matrix) -> usize {
        matrix.bytes()
    }

    fn rows(&self, width: usize) -> Result<HipRows, BackendError> {
        let device = hip::Rows::new(&self.gpu, width).map_err(failed("rows"))?;
        Ok(HipRows { device, host: OnceCell::new(), formats: Vec::new() })
    }

    fn allocate_cache(&self, shape: CacheShape) -> Result<KvCache, BackendError> {
        let layout = KvLayout {
            layers: shape.layers,
            blocks: shape.blocks,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            element: match shape.kv_type {
                KvType::F32 => KvElement::F32,
                KvType::F16 => KvElement::F16,
                other => {
                    let what = format!("{other:?} cache");
                    return Err(failed("allocate_cache")(HipError::Unsupported { what }));
                }
            },
        };
        KvCache::new(&self.gpu, layout).map_err(failed("allocate_cache"))
    }

    fn copy_block(&self, cache: &mut KvCache, from: u32, to: u32) -> Result<(), BackendError> {
        cache.copy_block(&self.gpu, from, to).map_err(failed("copy_block"))
    }

    fn begin_step(&mut self, batch: &Batch, rope: &Rope) -> Result<(), BackendError> {
        let slots: Vec<KvSlot> =
            batch.slots.iter().map(|slot| KvSlot { block: slot.block, offset: slot.offset }).collect();
        let arrays = RotationArrays {
            positions: &batch.positions,
            slots: &slots,
            inv_freq: &rope.inv_freq,
            pairing: match rope.pairing {
                RopePairing::Adjacent => cpu::RopePairing::Adjacent,
                RopePairing::Halves => cpu::RopePairing::Halves,
            },
            magnitude: 1.0,
        };
        self.rotation = Some(Rotation::new(&self.gpu, &arrays).map_err(failed("begin_step"))?);
        self.plan.replace(None);
        Ok(())
    }

    fn embed(&self, table: &hip::Matrix, batch: &Batch, out: &mut HipRows) -> Result<(), BackendError> {
        self.gpu.embed(table, &batch.tokens, out.for_writing()).map_err(failed("embed"))
    }

    fn rms_norm(
        &self,
        x: &HipRows,
        gain: &DeviceBuffer<f32>,
        eps: f32,
        out: &mut HipRows,
    ) -> Result<(), BackendError> {
        let norm = Norm { gain, eps };
        let (out, formats) = out.for_quantized_writing();
        self.gpu.rms_norm(&x.device, norm, out, formats).map_err(failed("rms_norm"))
    }

    fn head_norm(&self, x: &mut HipRows, gain: &DeviceBuffer<f32>, eps: f32) -> Result<(), BackendError> {
        self.gpu.head_norm(x.for_writing(), Norm { gain, eps }).map_err(failed("head_norm"))
    }

    fn matmul(&self, x: &mut HipRows, products: &mut [Product<'_, Self>]) -> Result<(), BackendError> {
        for product in products {
            let format = product.weight.activation_format();
            if format != ActivationFormat::F32 && !x.formats.contains(&format) {
                x.formats.push(format);
            }
            let mut product = hip::Product {
                weight: product.weight,
                bias: product.bias,
                accumulate: match product.accumulate {
                    Accumulate::Set => cpu::Accumulate::Set,
                    Accumulate::Add => cpu::Accumulate::Add,
                },
                out: product.out.for_writing(),
            };
            self.gpu.matmul(&mut x.device, &mut product).map_err(failed("matmul"))?;
        }
        Ok(())
    }

    fn rope_and_store_kv(&self, step: KvStep<'_, Self>, cache: &mut KvCache) -> Result<(), BackendError> {
        let KvStep { layer, q, k, v, .. } = step;
        let rows = (q.for_writing(), k.for_writing(), &v.device);
        self.gpu
            .rope_and_store_kv((cache, layer), self.rotation()?, rows)
            .map_err(failed("rope_and_store_kv"))
    }

    fn paged_attention(
        &self,
        step: AttentionStep<'_, Self>,
        cache: &KvCache,
        out: &mut HipRows,
    ) -> Result<(), BackendError> {
        let AttentionStep { layer, batch, attention, q } = step;
        let shape = AttentionShape {
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            scale: attention.scale,
            window: None,
            softcap: None,
        };
        let mut kept = self.plan.borrow_mut();
        let plan = match kept.take() {
            Some(plan) if *plan.shape() == shape => plan,
            _ => self.make_plan(shape, batch).map_err(failed("paged_attention"))?,
        };
        self.gpu
            .paged_attention((cache, layer), kept.insert(plan), &q.device, out.for_writing())
            .map_err(failed("paged_attention"))
    }

    fn gated_activation(&self, gate: &HipRows, up: &HipRows, out: &mut HipRows) -> Result<(), BackendError> {
        let (out, formats) = out.for_quantized_writing();
        self.gpu
            .gated_activation(Gate::Silu, (&gate.device, &up.device), out, formats)
            .map_err(failed("gated_activation"))
    }

    fn gather(&self, x: &HipRows, rows: &[usize], out: &mut HipRows) -> Result<(), BackendError> {
        // A step has at most some thousand rows.
        let chosen: Vec<u32> = rows.iter().map(|row| u32::try_from(*row).unwrap_or(u32::MAX)).collect();
        self.gpu.gather(&x.device, &chosen, out.for_writing()).map_err(failed("gather"))
    }

    fn read<'a>(&self, x: &'a HipRows) -> Result<&'a [f32], BackendError> {
        if let Some(values) = x.host.get() {
            return Ok(values);
        }
        let values = x.device.download(&self.gpu).map_err(failed("read"))?;
        Ok(x.host.get_or_init(|| values))
    }
}
