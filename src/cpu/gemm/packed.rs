//! A right factor that is packed once and multiplied many times, as the weights of a recurrent layer are at every step.

#![forbid(unsafe_code)]

use std::marker::PhantomData;

use super::{MatRef, RUN, pack};
use crate::Result;
use crate::cpu::pool::Block;
use crate::cpu::simd::{Isa, MatMut, Panel, Rows, tile};
use crate::dtype::Float;

/// A k × n matrix, widened to the type that is computed in and in the order in which the tile kernel reads it.
#[derive(Debug)]
pub struct PackedFactor<T> {
    panels: Block,
    k: usize,
    n: usize,
    element: PhantomData<T>,
}

impl<T: Float> PackedFactor<T> {
    /// Packs `v`; an error if there is no memory for it.
    pub fn new(v: MatRef<'_, T>) -> Result<Self> {
        let shape = Isa::detect().shape::<T::Acc>();
        let (k, n) = (v.rows, v.cols);
        let width = n.next_multiple_of(shape.lanes);
        let mut panels = Block::new(k * width * size_of::<T::Acc>())?;
        let mut rest = panels.typed_mut::<T::Acc>();
        for start in (0..k).step_by(RUN) {
            let steps = RUN.min(k - start);
            let (run, behind) = rest.split_at_mut(steps * width);
            pack::panels(v.part(start, steps, 0, n), shape, run);
            rest = behind;
        }
        Ok(PackedFactor { panels, k, n, element: PhantomData })
    }

    /// `out += s · v` on this thread, with the rows of `s` (k elements each) one after the other. An element has the bits
    /// that [`super::gemm`] gives it when it adds, whatever the number of rows.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    pub fn add_product(&self, s: &[T::Acc], out: &mut MatMut<'_, T::Acc>) {
        let isa = Isa::detect();
        let shape = isa.shape::<T::Acc>();
        let (m, k, n) = (out.rows(), self.k, self.n);
        assert!(out.cols() == n && s.len() == m * k, "{} elements times {k} × {n} to {m} rows", s.len());
        let width = n.next_multiple_of(shape.lanes);
        let panels = self.panels.typed::<T::Acc>();
        for start in (0..k).step_by(RUN) {
            let steps = RUN.min(k - start);
            let run = &panels[start * width..][..steps * width];
            // A panel stays in the L1 cache while all rows pass by it.
            for at in (0..n).step_by(shape.cols()) {
                let cols = shape.cols().min(n - at);
                let vectors = cols.div_ceil(shape.lanes);
                let right = Panel { data: &run[at * steps..], row_stride: vectors * shape.lanes, vectors };
                let mut row = 0;
                while row < m {
                    let rows = shape.step(m - row);
                    let left = Rows { data: &s[row * k + start..], row_stride: k, col_stride: 1 };
                    tile(isa, steps, left, right, out.part(row, rows, at, cols), true);
                    row += rows;
                }
            }
        }
    }
}
