//! What is done to the sums of a product before they leave the cache: bias, activation, a copy from before the activation.

#![forbid(unsafe_code)]

use super::pack::{self, Line};
use crate::cpu::activation::Activation;
use crate::cpu::simd::{MatMut, transpose, vectorize};
use crate::dtype::{DType, Float, Real, f16};
use half::slice::HalfFloatSliceExt;

/// What [`super::gemm`] does to the sums before it stores them; by default nothing.
#[derive(Debug)]
pub struct Epilogue<'a, T> {
    /// Added to every row of the result: n elements.
    pub bias: Option<&'a [T]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Receives what the activation is applied to: m × n.
    pub pre: Option<MatMut<'a, T>>,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Epilogue { bias: None, activation: Activation::Identity, pre: None }
    }
}

impl<'a, T: Float> Epilogue<'a, T> {
    pub(super) fn split_rows(self, at: usize) -> (Self, Self) {
        let (top, bottom) = self.pre.map(|p| p.split_rows(at)).unzip();
        (Epilogue { pre: top, ..self }, Epilogue { pre: bottom, ..self })
    }

    pub(super) fn split_cols(self, at: usize) -> (Self, Self) {
        let (left, right) = self.pre.map(|p| p.split_cols(at)).unzip();
        let (bias_left, bias_right) = self.bias.map(|b| b.split_at(at)).unzip();
        (Epilogue { pre: left, bias: bias_left, ..self }, Epilogue { pre: right, bias: bias_right, ..self })
    }

    /// The same for the type that is computed in; only for a `T` that is that type.
    pub(super) fn computed(self) -> Epilogue<'a, T::Acc> {
        let pre = self.pre.map(|p| p.cast().unwrap_or_else(|_| unreachable!("16-bit sums have a buffer")));
        Epilogue { bias: self.bias.map(bytemuck::cast_slice), activation: self.activation, pre }
    }

    /// Completes sums that lie in C already; `strip` starts at (row, col) of C.
    pub(super) fn in_place(&mut self, strip: &mut MatMut<'_, T>, row: usize, col: usize)
    where
        T: Real,
    {
        if self.bias.is_none() && self.pre.is_none() && self.activation == Activation::Identity {
            return;
        }
        let (rows, cols) = (strip.rows(), strip.cols());
        let mut pre = self.pre.as_mut().map(|p| p.part(row, rows, col, cols));
        let bias = self.bias.map(|b| &b[col..col + cols]);
        let activation = self.activation;
        vectorize(
            #[inline(always)]
            || {
                for i in 0..rows {
                    let y = strip.row(i);
                    add_bias(y, bias);
                    if let Some(pre) = &mut pre {
                        pre.row(i).copy_from_slice(y);
                    }
                    activation.apply_all(y);
                }
            },
        );
    }

    /// Completes the sums in a buffer ([rows, stride], `swapped` when it holds columns) and stores them in `c`, which starts
    /// at `origin` of C.
    pub(super) fn store(
        &mut self,
        sums: &mut [T::Acc],
        stride: usize,
        swapped: bool,
        c: &mut MatMut<'_, T>,
        (row, col): (usize, usize),
        strip: &mut Vec<Line>,
    ) {
        let (rows, cols) = (c.rows(), c.cols());
        let mut pre = self.pre.as_mut().map(|p| p.part(row, rows, col, cols));
        let bias = self.bias.map(|b| &b[col..col + cols]);
        let activation = self.activation;
        let step = (STRIP / cols.max(1)).max(1).next_multiple_of(8);
        for at in (0..rows).step_by(step) {
            let height = step.min(rows - at);
            let (block, block_stride) = if swapped {
                let block = pack::view::<T::Acc>(strip, height * cols);
                transpose(&sums[at..], stride, (cols, height), block, cols);
                (block, cols)
            } else {
                (&mut sums[at * stride..], stride)
            };
            vectorize(
                #[inline(always)]
                || {
                    for i in 0..height {
                        let y = &mut block[i * block_stride..][..cols];
                        if let Some(bias) = bias {
                            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b.to_acc());
                        }
                        if let Some(pre) = &mut pre {
                            narrow(y, pre.row(at + i));
                        }
                        activation.apply_all(y);
                        narrow(y, c.row(at + i));
                    }
                },
            );
        }
    }
}

/// About how many elements of a transposed result are turned back at a time.
const STRIP: usize = 1024;

/// Puts the old values of `c` where sums will be added to them.
pub(super) fn preload<T: Float>(sums: &mut [T::Acc], stride: usize, swapped: bool, c: &mut MatMut<'_, T>) {
    for i in 0..c.rows() {
        for (j, x) in c.row(i).iter().enumerate() {
            sums[if swapped { j * stride + i } else { i * stride + j }] = x.to_acc();
        }
    }
}

#[inline(always)]
fn add_bias<R: Real>(y: &mut [R], bias: Option<&[R]>) {
    if let Some(bias) = bias {
        y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
    }
}

#[inline(always)]
fn narrow<T: Float>(y: &[T::Acc], out: &mut [T]) {
    if T::DTYPE == DType::F16
        && let (Ok(y), Ok(out)) =
            (bytemuck::try_cast_slice(y), bytemuck::try_cast_slice_mut::<T, f16>(&mut *out))
    {
        // Eight at a time where there is F16C, which no plain loop is compiled to.
        return out.convert_from_f32_slice(y);
    }
    out.iter_mut().zip(y).for_each(|(out, &y)| *out = T::from_acc(y));
}
