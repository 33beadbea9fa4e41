//! Convolution and its gradients, as sums over all pairs of a pixel and an element of a kernel.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::ops::{Conv, ConvInputBackward, ConvWeightBackward, Convolution};

use super::dd::{Dd, dd};
use super::index::at;
use super::{Expected, Specials};
use crate::selftest::Value;
use crate::selftest::layouts::{indices, strides};

/// Sums of products with the sums of their magnitudes, over an array of a shape.
struct Sums {
    shape: Vec<usize>,
    of: Vec<(Dd, Dd)>,
}

impl Sums {
    fn new(shape: [usize; 4]) -> Sums {
        Sums { of: vec![(Dd::ZERO, Dd::ZERO); shape.iter().product()], shape: shape.to_vec() }
    }

    fn add(&mut self, place: [usize; 4], a: f64, b: f64) {
        let i: usize = place.iter().zip(strides(&self.shape)).map(|(i, s)| i * s).sum();
        let (sum, size) = self.of[i];
        let p = dd(a) * dd(b);
        self.of[i] = (sum + p, size + p.abs());
    }
}

/// All triples of a place of y, a place of x and a place of w that meet in one product.
fn meetings(conv: &Conv<2>, y: [usize; 4], x: [usize; 4], w: [usize; 4]) -> Vec<[[usize; 4]; 3]> {
    let mut all = Vec::new();
    for i in indices(&y) {
        for j in indices(&w[1..]) {
            // Where element j of the kernel lies on the padded image, less the padding.
            let pixel = |d: usize| {
                (i[2 + d] * conv.stride[d] + j[1 + d] * conv.dilation[d]) as isize - conv.padding[d] as isize
            };
            let (h, v) = (pixel(0), pixel(1));
            if h < 0 || v < 0 || h >= x[2] as isize || v >= x[3] as isize {
                continue;
            }
            let group = i[1] / (y[1] / conv.groups);
            let from = [i[0], group * w[1] + j[0], h as usize, v as usize];
            all.push([[i[0], i[1], i[2], i[3]], from, [i[1], j[0], j[1], j[2]]]);
        }
    }
    all
}

fn dims(v: &Value) -> [usize; 4] {
    [v.shape[0], v.shape[1], v.shape[2], v.shape[3]]
}

/// The shape of y.
fn result(conv: &Conv<2>, x: [usize; 4], w: [usize; 4]) -> [usize; 4] {
    let mut y = [x[0], w[0], 0, 0];
    for d in 0..2 {
        // The places are those from which the whole kernel lies within the padded image.
        let last = |place: usize| place * conv.stride[d] + (w[2 + d] - 1) * conv.dilation[d];
        y[2 + d] = (0..).take_while(|&place| last(place) < x[2 + d] + 2 * conv.padding[d]).count();
    }
    y
}

fn forward(op: &Convolution, inputs: &[Value]) -> Vec<Expected> {
    let (x, w) = (&inputs[0], &inputs[1]);
    let y = result(&op.conv, dims(x), dims(w));
    let mut sums = Sums::new(y);
    for [to, from, by] in meetings(&op.conv, y, dims(x), dims(w)) {
        sums.add(to, at(x, &from), at(w, &by));
    }
    let plane = y[2] * y[3];
    let z: Vec<(Dd, Dd)> = sums
        .of
        .iter()
        .enumerate()
        .map(|(i, &(sum, size))| {
            let b = inputs.get(2).map_or(Dd::ZERO, |b| dd(b.data[i / plane % y[1]]));
            (sum + b, size + b.abs())
        })
        .collect();
    // The slope of every activation is at most 1.13; the value itself is rounded too.
    let f = z.iter().map(|&(z, size)| {
        let y = super::unary::activation(op.activation, z);
        (y, size * dd(1.13) + y.abs() + z.abs())
    });
    let f = Expected::scaled(&sums.shape, x.dtype, f.collect());
    if op.keep_pre { vec![f, Expected::scaled(&sums.shape, x.dtype, z)] } else { vec![f] }
}

fn input_backward(op: &ConvInputBackward, dy: &Value, w: &Value) -> Expected {
    let x = [dy.shape[0], w.shape[1] * op.conv.groups, op.size[0], op.size[1]];
    let mut sums = Sums::new(x);
    for [to, from, by] in meetings(&op.conv, dims(dy), x, dims(w)) {
        sums.add(from, at(dy, &to), at(w, &by));
    }
    Expected::scaled(&sums.shape, dy.dtype, sums.of)
}

fn weight_backward(op: &ConvWeightBackward, dy: &Value, x: &Value) -> Expected {
    let w = [dy.shape[1], x.shape[1] / op.conv.groups, op.kernel[0], op.kernel[1]];
    let mut sums = Sums::new(w);
    for [to, from, by] in meetings(&op.conv, dims(dy), dims(x), w) {
        sums.add(by, at(dy, &to), at(x, &from));
    }
    Expected::scaled(&sums.shape, dy.dtype, sums.of)
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if let Some(op) = op.downcast_ref::<Convolution>() {
        return Some(forward(op, inputs));
    }
    if let Some(op) = op.downcast_ref::<ConvInputBackward>() {
        return Some(vec![input_backward(op, &inputs[0], &inputs[1])]);
    }
    let op = op.downcast_ref::<ConvWeightBackward>()?;
    Some(vec![weight_backward(op, &inputs[0], &inputs[1])])
}

/// Infinities and NaN go where every product of the definition has both of its factors. Where a pixel may be absent (padding; dy
/// between strides) its partner is finite: whether an infinite weight times an absent pixel is NaN or nothing is not promised,
/// since the kernels differ in it, as PyTorch's do.
pub fn specials(op: &dyn Any, input: usize) -> Option<Specials> {
    let partner = |whole: bool| if input == 1 && !whole { Specials::Finite } else { Specials::NotHuge };
    let padded = |conv: &Conv<2>| conv.padding != [0, 0];
    if let Some(op) = op.downcast_ref::<Convolution>() {
        return Some(partner(!padded(&op.conv)));
    }
    if op.is::<ConvInputBackward>() {
        return Some(partner(false));
    }
    let op = op.downcast_ref::<ConvWeightBackward>()?;
    Some(if input == 0 && padded(&op.conv) { Specials::Finite } else { Specials::NotHuge })
}
