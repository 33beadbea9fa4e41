//! Convolution on slices.

#![forbid(unsafe_code)]

use super::activation::Activation;
use crate::dtype::{Element, Float, Real};

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

impl<T: Element> Source<'_, T> {
    fn at(&self, i: [usize; 4]) -> T {
        self.data[(0..4).map(|d| i[d] * self.strides[d]).sum::<usize>()]
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

/// Calls `f(image, filter, channel within the group, place of y, place of x, place of the kernel)` for each product.
fn each_product(g: &Geometry, mut f: impl FnMut([usize; 4], [usize; 4], [usize; 4])) {
    for n in 0..g.images {
        for o in 0..g.groups * g.filters {
            let first = o / g.filters * g.channels;
            for (oh, ow) in (0..g.result[0]).flat_map(|h| (0..g.result[1]).map(move |w| (h, w))) {
                for c in 0..g.channels {
                    for (r, s) in (0..g.kernel[0]).flat_map(|r| (0..g.kernel[1]).map(move |s| (r, s))) {
                        let h = (oh * g.stride[0] + r * g.dilation[0]).wrapping_sub(g.padding[0]);
                        let w = (ow * g.stride[1] + s * g.dilation[1]).wrapping_sub(g.padding[1]);
                        if h < g.image[0] && w < g.image[1] {
                            f([n, o, oh, ow], [n, first + c, h, w], [o, c, r, s]);
                        }
                    }
                }
            }
        }
    }
}

fn place(i: [usize; 4], sizes: [usize; 3]) -> usize {
    ((i[0] * sizes[0] + i[1]) * sizes[1] + i[2]) * sizes[2] + i[3]
}

/// y = f(x ⋆ w + b)
pub fn forward<T: Float>(
    g: &Geometry,
    x: Source<'_, T>,
    w: Source<'_, T>,
    y: &mut [T],
    mut epilogue: Epilogue<'_, T>,
) {
    let filters = g.groups * g.filters;
    let mut sums = vec![T::Acc::ZERO; y.len()];
    each_product(g, |at, from, by| {
        let sum = &mut sums[place(at, [filters, g.result[0], g.result[1]])];
        *sum = x.at(from).to_acc().mul_add(w.at(by).to_acc(), *sum);
    });
    let plane = g.result[0] * g.result[1];
    for (i, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
        let z = sum + epilogue.bias.map_or(T::Acc::ZERO, |b| b[i / plane % filters].to_acc());
        if let Some(pre) = &mut epilogue.pre {
            pre[i] = T::from_acc(z);
        }
        *y = T::from_acc(epilogue.activation.apply(z));
    }
}

fn store<T: Float>(out: &mut [T], sums: &[T::Acc], add: bool) {
    for (out, &sum) in out.iter_mut().zip(sums) {
        *out = T::from_acc(if add { out.to_acc() + sum } else { sum });
    }
}

/// dx (+)= what each dy sends back.
pub fn input_backward<T: Float>(g: &Geometry, dy: Source<'_, T>, w: Source<'_, T>, dx: &mut [T], add: bool) {
    let mut sums = vec![T::Acc::ZERO; dx.len()];
    each_product(g, |at, from, by| {
        let sum = &mut sums[place(from, [g.groups * g.channels, g.image[0], g.image[1]])];
        *sum = dy.at(at).to_acc().mul_add(w.at(by).to_acc(), *sum);
    });
    store(dx, &sums, add);
}

/// dw (+)= Σ dy x over images and places.
pub fn weight_backward<T: Float>(g: &Geometry, dy: Source<'_, T>, x: Source<'_, T>, dw: &mut [T], add: bool) {
    let mut sums = vec![T::Acc::ZERO; dw.len()];
    each_product(g, |at, from, by| {
        let sum = &mut sums[place(by, [g.channels, g.kernel[0], g.kernel[1]])];
        *sum = dy.at(at).to_acc().mul_add(x.at(from).to_acc(), *sum);
    });
    store(dw, &sums, add);
}
