//! [`Gpu`]: a device with its kernels loaded and a stream to give it work, and how a kernel is launched.
//!
//! Every operation on a device takes it first. It may move to another thread: the runtime chooses a device per
//! thread, so allocations and launches choose it again where the thread has changed.

use bytemuck::Pod;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int};
use std::ptr;
use std::thread::{self, ThreadId};

use super::ffi::{self, check};
use super::stream::Stream;
use super::{DeviceBuffer, HipError, code_objects, topology};

/// Threads of a block, for every kernel; `BLOCK_THREADS` of the dialect.
pub(super) const BLOCK_THREADS: u32 = 256;

/// A GPU ready to compute.
pub struct Gpu {
    index: usize,
    name: String,
    architecture: String,
    stream: Stream,
    module: ffi::RawModule,
    functions: RefCell<HashMap<String, ffi::RawFunction>>,
    /// Index lists of the kernels that take one, in turn: the stream keeps their order.
    indices: RefCell<DeviceBuffer<u32>>,
    /// The thread for which the device was chosen last.
    chosen_for: Cell<ThreadId>,
}

// SAFETY: the runtime's handles may be used by any thread, one at a time, that has chosen their device; `choose` does
// that before every call that asks for it.
unsafe impl Send for Gpu {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gpu {} ({}, {})", self.index, self.name, self.architecture)
    }
}

/// How many devices the runtime sees; 0 where there is no driver.
#[must_use]
pub fn device_count() -> usize {
    let mut count: c_int = 0;
    // SAFETY: initializing takes no pointer.
    if unsafe { ffi::hipInit(0) } != ffi::SUCCESS {
        return 0;
    }
    // SAFETY: writes one number to a place that lives.
    let status = unsafe { ffi::hipGetDeviceCount(&raw mut count) };
    if status == ffi::SUCCESS { usize::try_from(count).unwrap_or(0) } else { 0 }
}

/// What the runtime writes into a text buffer.
fn text_of(call: &'static str, write: impl Fn(*mut i8, c_int) -> ffi::Status) -> Result<String, HipError> {
    let mut text = [0u8; 256];
    check(call, write(text.as_mut_ptr().cast(), text.len() as c_int - 1))?;
    let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

impl Gpu {
    /// Opens device `index` and loads its kernels.
    pub fn open(index: usize) -> Result<Gpu, HipError> {
        let count = device_count();
        if index >= count {
            return Err(HipError::NoDevice { index, count });
        }
        let device = index as c_int;
        // SAFETY: takes a number, below the count.
        check("hipSetDevice", unsafe { ffi::hipSetDevice(device) })?;
        // SAFETY: the text buffer has the length passed.
        let name = text_of("hipDeviceGetName", |to, len| unsafe { ffi::hipDeviceGetName(to, len, device) })?;
        let address = text_of("hipDeviceGetPCIBusId", |to, len| {
            // SAFETY: the text buffer has the length passed.
            unsafe { ffi::hipDeviceGetPCIBusId(to, len, device) }
        })?
        .to_lowercase();
        let nodes = topology::nodes_directory();
        let architecture = topology::gpus(&nodes)
            .into_iter()
            .find(|gpu| gpu.pci_address == address)
            .map(|gpu| gpu.architecture)
            .ok_or_else(|| HipError::UnknownDevice {
                index,
                address,
                topology: nodes.display().to_string(),
            })?;
        let Some(image) = code_objects::find(&architecture) else {
            let available = code_objects::architectures().join(", ");
            return Err(HipError::NoKernels { index, name, architecture, available });
        };
        let mut module = ptr::null_mut();
        // SAFETY: a whole code object of this build, which lives as long as the program.
        check("hipModuleLoadData", unsafe {
            ffi::hipModuleLoadData(&raw mut module, image.as_ptr().cast())
        })?;
        let (stream, functions) = (Stream::new()?, RefCell::default());
        let indices = RefCell::new(DeviceBuffer::empty());
        let chosen_for = Cell::new(thread::current().id());
        Ok(Gpu { index, name, architecture, stream, module, functions, indices, chosen_for })
    }

    /// The index the runtime knows it by.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its marketing name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The target its kernels were compiled for.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The stream that all operations go to.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Free memory and all memory, in bytes.
    pub fn memory_bytes(&self) -> Result<(usize, usize), HipError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers to places that live.
        check("hipMemGetInfo", unsafe { ffi::hipMemGetInfo(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Room for `len` elements of any value. Errors: the device has too little memory left for `what`.
    pub fn allocate<T: Pod>(&self, len: usize, what: &'static str) -> Result<DeviceBuffer<T>, HipError> {
        DeviceBuffer::allocate(self, len, what)
    }

    /// A buffer with the elements of `values`.
    pub fn upload<T: Pod>(&self, values: &[T], what: &'static str) -> Result<DeviceBuffer<T>, HipError> {
        let mut buffer = self.allocate(values.len(), what)?;
        buffer.upload(&self.stream, 0, values)?;
        Ok(buffer)
    }

    /// Makes this the device of the calling thread.
    pub(super) fn choose(&self) -> Result<(), HipError> {
        let here = thread::current().id();
        if self.chosen_for.get() != here {
            // SAFETY: takes a number, that of a device opened before.
            check("hipSetDevice", unsafe { ffi::hipSetDevice(self.index as c_int) })?;
            self.chosen_for.set(here);
        }
        Ok(())
    }

    /// Puts a list of indices where the next kernel finds it, and gives its address, good until the next call.
    pub(super) fn place_indices(&self, indices: &[u32]) -> Result<u64, HipError> {
        let mut buffer = self.indices.borrow_mut();
        if buffer.len() < indices.len() {
            *buffer = self.allocate(indices.len().next_power_of_two(), "indices")?;
        }
        buffer.upload(&self.stream, 0, indices)?;
        Ok(buffer.address())
    }

    fn function(&self, name: &str) -> Result<ffi::RawFunction, HipError> {
        if let Some(function) = self.functions.borrow().get(name) {
            return Ok(*function);
        }
        let terminated = CString::new(name).unwrap_or_default();
        let mut function = ptr::null_mut();
        // SAFETY: the module lives, and the name is terminated.
        check("hipModuleGetFunction", unsafe {
            ffi::hipModuleGetFunction(&raw mut function, self.module, terminated.as_ptr())
        })?;
        self.functions.borrow_mut().insert(name.to_owned(), function);
        Ok(function)
    }

    /// Gives the kernel `name` to the stream. An empty grid is nothing to do.
    ///
    /// # Safety
    /// `A` is the argument struct of that kernel, every address in it is absent or lies in a live buffer of this
    /// device that is as large as the kernel's shapes ask for, and indices read from memory stay inside their tables.
    #[track_caller]
    pub(super) unsafe fn launch<A: Pod>(
        &self,
        name: &str,
        grid: [usize; 2],
        args: &A,
    ) -> Result<(), HipError> {
        let [x, y] = grid.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX));
        if x == 0 || y == 0 {
            return Ok(());
        }
        self.choose()?;
        let function = self.function(name)?;
        let mut parameters = [ptr::from_ref(args).cast_mut().cast()];
        // SAFETY: one parameter, which the runtime copies before it returns; the rest is the caller's promise.
        check("hipModuleLaunchKernel", unsafe {
            ffi::hipModuleLaunchKernel(
                function,
                x,
                y,
                1,
                BLOCK_THREADS,
                1,
                1,
                0,
                self.stream.raw(),
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        // SAFETY: loaded by `open`, unloaded once; the stream has no work left that uses it.
        let _ = unsafe { ffi::hipModuleUnload(self.module) };
    }
}
