//! What can go wrong at the safe face of the kernels: wrong lengths, unknown types, missing instructions.

/// An argument a kernel refuses, or memory it cannot have. A correct caller meets `UnsupportedIsa` and
/// `OutOfMemory` only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A slice does not have the length its shape asks for.
    #[error("{what} has {actual} elements, its shape asks for {expected}")]
    Length {
        /// The argument.
        what: &'static str,
        /// Elements the shape asks for.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// A dimension is not a multiple of what the type needs.
    #[error("{what} is {value}, not a multiple of {multiple}")]
    Multiple {
        /// The dimension.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What it must be a multiple of.
        multiple: usize,
    },
    /// A dimension is zero where nothing can be computed then.
    #[error("{what} is 0, at least 1 is needed")]
    Empty {
        /// The dimension.
        what: &'static str,
    },
    /// Activations were to be quantized to floats.
    #[error("activation format f32 is not a quantized one")]
    NotQuantized,
    /// An index lies outside its table.
    #[error("{what} is {value}, limit {limit}")]
    OutOfRange {
        /// The index.
        what: &'static str,
        /// Its value.
        value: usize,
        /// First value that is too large.
        limit: usize,
    },
    /// The instruction set asked for is not present on this processor or not built in.
    #[error("instruction set {isa} is not available on this processor; available: {available}")]
    UnsupportedIsa {
        /// The name asked for.
        isa: String,
        /// Comma-separated names that would work.
        available: String,
    },
    /// A thread could not be bound to a processor: there is none of that number, or it is not ours to use.
    #[error("cannot pin a thread to CPU {cpu}: {reason}")]
    Pinning {
        /// The processor's number.
        cpu: usize,
        /// What Linux says.
        reason: &'static str,
    },
    /// Memory for weights, cache or workspace could not be had.
    #[error("could not allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Size asked for.
        bytes: usize,
    },
}
