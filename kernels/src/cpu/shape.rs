//! The checks of lengths and indices at the safe face of every operation.

use crate::KernelError;

/// Fails unless a slice has `expected` elements.
pub(crate) fn expect_len(what: &'static str, actual: usize, expected: usize) -> Result<(), KernelError> {
    if actual == expected { Ok(()) } else { Err(KernelError::Length { what, expected, actual }) }
}

/// Fails unless `value` is below `limit`.
pub(crate) fn expect_below(what: &'static str, value: usize, limit: usize) -> Result<(), KernelError> {
    if value < limit { Ok(()) } else { Err(KernelError::OutOfRange { what, value, limit }) }
}

/// Rows of `dim` elements in a slice of `len`; fails unless they fill it. No elements are no rows.
pub(crate) fn rows_of(what: &'static str, len: usize, dim: usize) -> Result<usize, KernelError> {
    match len.checked_rem(dim) {
        Some(0) => Ok(len / dim),
        None if len == 0 => Ok(0),
        _ => Err(KernelError::Multiple { what, value: len, multiple: dim }),
    }
}
