//! Where products go: the columns that one group of weight rows has in an output shared by several threads.
//!
//! Written by `tile` straight from its registers, and by the AMX path from memory. What always holds: an output
//! is `product`, plus the bias if there is one, and is then stored or added to what was there; each of these is
//! one f32 operation, on every instruction set.

use super::Accumulate;
use super::lanes::Lanes;
use crate::cpu::DisjointMut;
use crate::cpu::matrix::layout::GROUP_ROWS;

/// The outputs of one group of weight rows in a panel of token rows.
pub(crate) struct Columns<'a> {
    /// [token rows, `stride`], of which each group's columns belong to one thread in one panel.
    pub(super) out: &'a DisjointMut<'a, f32>,
    /// Output features: from one token row to the next.
    pub(super) stride: usize,
    /// The group's first weight row in the panel's first token row.
    pub(super) start: usize,
    /// Weight rows of the group: 16, or fewer in the last one.
    pub(super) rows: usize,
    /// Of these weight rows.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: Accumulate,
}

impl Columns<'_> {
    /// Finishes the products of the panel's token row `token`.
    #[inline(always)]
    pub(super) fn put<L: Lanes>(&self, lanes: L, token: usize, products: L::F32) {
        let at = self.start + token * self.stride;
        // SAFETY: each (token row, group) is computed by one thread, and their outputs do not overlap.
        let out = unsafe { self.out.slice(at..at + self.rows) };
        let Some(out) = out.as_mut_array::<GROUP_ROWS>() else {
            let mut all = [0.0; GROUP_ROWS];
            lanes.store(products, &mut all);
            return self.finish(&all, out);
        };
        let value = match self.bias.and_then(|bias| bias.as_array()) {
            Some(bias) => lanes.add(products, lanes.load_f32(bias)),
            None => products,
        };
        let value = match self.accumulate {
            Accumulate::Set => value,
            Accumulate::Add => lanes.add(lanes.load_f32(out), value),
        };
        lanes.store(value, out);
    }

    /// As [`Columns::put`], from memory.
    pub(crate) fn put_array(&self, token: usize, products: &[f32; GROUP_ROWS]) {
        let at = self.start + token * self.stride;
        // SAFETY: as in `put`.
        let out = unsafe { self.out.slice(at..at + self.rows) };
        self.finish(products, out);
    }

    fn finish(&self, products: &[f32; GROUP_ROWS], out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            let value = self.bias.map_or(products[i], |bias| products[i] + bias[i]);
            *out = match self.accumulate {
                Accumulate::Set => value,
                Accumulate::Add => *out + value,
            };
        }
    }
}
