//! Convolution as a product without a matrix of its own: panels are packed straight out of an image for the tile kernels of
//! `gemm`.
//!
//! **The method.** An image of a group (a band of its rows, where it is large) is copied once with zeros around it, widened to
//! the type that is computed in and, where the kernel moves by more than a pixel, taken apart into planes of the pixels that one
//! element of the kernel meets. There every row of the matrix that an im2col would make is runs of adjacent pixels, so packing
//! 48 of them is a few vector moves. Forward and dx are one loop (`correlate`): dx of a stride s is s² small convolutions of dy,
//! one for each remainder of the pixels' positions. dw sums over pixels (`weight`).
//!
//! **The bits of a result.** y and dx: as in `gemm`, runs of 256 fused multiply-adds over (channel, row, column of the kernel)
//! in ascending order, added up in order; they depend on an image and the weights alone, not on batch or threads. dw: sums over at
//! most 256 pixels, added up in the order of images within a part of the batch, then over the parts, which shapes alone decide.
//!
//! Refused: nothing. Sizes are the caller's duty (`infer` of the op).

#![forbid(unsafe_code)]

mod correlate;
mod planes;
#[cfg(test)]
mod tests;
mod weight;

use std::borrow::Cow;

use super::activation::Activation;
use crate::Result;
use crate::cpu::par;
use crate::dtype::{Element, Float, Real};
use correlate::{Correlation, Phase};
use planes::Axis;

/// The sizes of a convolution, checked by who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub images: usize,
    /// Groups that channels and filters are cut into.
    pub groups: usize,
    /// Channels of the image in a group.
    pub channels: usize,
    /// Channels of the result in a group.
    pub filters: usize,
    /// Height and width of an image.
    pub image: [usize; 2],
    /// Height and width of a kernel.
    pub kernel: [usize; 2],
    /// Height and width of the result.
    pub result: [usize; 2],
    /// Pixels from one place of the kernel to the next.
    pub stride: [usize; 2],
    /// Zeros on each side.
    pub padding: [usize; 2],
    /// Pixels from one element of the kernel to the next.
    pub dilation: [usize; 2],
}

/// A tensor of four dimensions to read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a, T> {
    /// From the first element to the last one in memory.
    pub data: &'a [T],
    /// Distances between neighbours in each dimension.
    pub strides: [usize; 4],
}

impl<'a, T: Element> Source<'a, T> {
    /// The elements from (i, j, 0, 0) on.
    fn from(&self, i: usize, j: usize) -> &'a [T] {
        // Where there are no elements, that may be past the end.
        self.data.get(i * self.strides[0] + j * self.strides[1]..).unwrap_or(&[])
    }
}

/// What happens to the sums before they are stored.
#[derive(Debug)]
pub struct Epilogue<'a, T> {
    /// Added to each channel of the result.
    pub bias: Option<&'a [T]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Receives what the activation is applied to.
    pub pre: Option<&'a mut [T]>,
}

impl<T> Epilogue<'_, T> {
    /// Nothing.
    fn none() -> Self {
        Epilogue { bias: None, activation: Activation::Identity, pre: None }
    }
}

/// y `[images, groups · filters, result]` = f(x ⋆ w + b), from x `[images, groups · channels, image]` and
/// w `[groups · filters, channels, kernel]`.
pub fn forward<T: Float>(
    g: &Geometry,
    x: Source<'_, T>,
    w: Source<'_, T>,
    y: &mut [T],
    epilogue: Epilogue<'_, T>,
) {
    let axes = [0, 1].map(|d| Axis::forward(g, d));
    let whole = axes[0].taps.len() == g.kernel[0] && axes[1].taps.len() == g.kernel[1];
    let [a, b, c, d] = w.strides;
    let k = g.channels * g.kernel[0] * g.kernel[1];
    let rows = g.groups * g.filters;
    let packed = [a, b, c, d] == [k, g.kernel[0] * g.kernel[1], g.kernel[1], 1];
    let borrowed = if whole && packed && T::DTYPE == <T::Acc as Element>::DTYPE {
        bytemuck::try_cast_slice::<T, T::Acc>(w.data).ok().filter(|w| w.len() >= rows * k)
    } else {
        None
    };
    let weights = match borrowed {
        Some(weights) => Cow::Borrowed(weights),
        None => Cow::Owned(gathered(&axes, rows, g.channels, |o, c, r, s| {
            w.data[o * w.strides[0] + c * w.strides[1] + r * w.strides[2] + s * w.strides[3]]
        })),
    };
    let work = Correlation {
        source: x,
        groups: g.groups,
        channels: g.channels,
        filters: g.filters,
        step: [1, 1],
        size: g.result,
        phases: vec![Phase { axes, first: [0, 0], weights }],
    };
    work.run(y, false, epilogue);
}

/// dx `[images, groups · channels, image]` (+)= what each element of dy `[images, groups · filters, result]` sends back through
/// w `[groups · filters, channels, kernel]`.
pub fn input_backward<T: Float>(g: &Geometry, dy: Source<'_, T>, w: Source<'_, T>, dx: &mut [T], add: bool) {
    // Remainders whose pixels no element of the kernel meets are left out: nothing is added there. There are as many remainders
    // as the stride, but never more that are met than the kernel has elements.
    let met = |d: usize| {
        let all = (0..g.stride[d].min(g.image[d])).map(|first| (first, Axis::backward(g, d, first)));
        all.filter(|(_, axis)| !axis.taps.is_empty()).collect::<Vec<_>>()
    };
    let [rows, columns] = [met(0), met(1)];
    let lacks = |d: usize, met: usize| met < g.stride[d].min(g.image[d]);
    if !add && (lacks(0, rows.len()) || lacks(1, columns.len())) {
        let zero = T::from_acc(T::Acc::ZERO);
        par::for_each_chunk_mut(dx, 1 << 16, |_, part| part.fill(zero));
    }
    let mut phases = Vec::new();
    for (a, height) in &rows {
        for (b, width) in &columns {
            let axes = [height.clone(), width.clone()];
            let weights = gathered(&axes, g.groups * g.channels, g.filters, |row, f, r, s| {
                let (group, c) = (row / g.channels, row % g.channels);
                let o = group * g.filters + f;
                w.data[o * w.strides[0] + c * w.strides[1] + r * w.strides[2] + s * w.strides[3]]
            });
            phases.push(Phase { axes, first: [*a, *b], weights: Cow::Owned(weights) });
        }
    }
    let work = Correlation {
        source: dy,
        groups: g.groups,
        channels: g.filters,
        filters: g.channels,
        step: g.stride.map(|s| s.max(1)),
        size: g.image,
        phases,
    };
    work.run(dx, add, Epilogue::none());
}

/// dw `[groups · filters, channels, kernel]` (+)= Σ dy x over images and places.
///
/// # Errors
/// If there is no memory for the sums.
pub fn weight_backward<T: Float>(
    g: &Geometry,
    dy: Source<'_, T>,
    x: Source<'_, T>,
    dw: &mut [T],
    add: bool,
) -> Result<()> {
    weight::run(g, dy, x, dw, add)
}

/// Weights as rows by (channel, row, column of the kernel), those elements left out that meet no pixel.
fn gathered<T: Float<Acc = R>, R: Real>(
    axes: &[Axis; 2],
    rows: usize,
    channels: usize,
    at: impl Fn(usize, usize, usize, usize) -> T + Sync,
) -> Vec<R> {
    let k = channels * axes[0].taps.len() * axes[1].taps.len();
    let mut weights = vec![R::ZERO; rows * k];
    if k == 0 {
        return weights;
    }
    let share = (4096 / k).max(1);
    par::for_each_chunk_mut(&mut weights, share * k, |i, part| {
        for (j, row) in part.chunks_exact_mut(k).enumerate() {
            let mut row = row.iter_mut();
            for c in 0..channels {
                for r in &axes[0].taps {
                    for (s, to) in axes[1].taps.iter().zip(&mut row) {
                        *to = at(i * share + j, c, r.element, s.element).to_acc();
                    }
                }
            }
        }
    });
    weights
}
