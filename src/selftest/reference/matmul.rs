//! The matrix product and the linear layer.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::cpu::activation::Activation;
use crate::ops;

use super::dd::{Dd, dd};
use super::index::at;
use super::{Expected, Specials};
use crate::selftest::Value;
use crate::selftest::layouts::{indices, strides};

/// Σ and Σ| | of products.
fn dot(pairs: impl Iterator<Item = (f64, f64)>) -> (Dd, Dd) {
    pairs.fold((Dd::ZERO, Dd::ZERO), |(sum, size), (a, b)| {
        let p = dd(a) * dd(b);
        (sum + p, size + p.abs())
    })
}

fn matmul(a: &Value, b: &Value) -> Expected {
    let batch_of = |v: &Value| v.shape[..v.shape.len() - 2].to_vec();
    let (ba, bb) = (batch_of(a), batch_of(b));
    let rank = ba.len().max(bb.len());
    let size = |s: &[usize], d: usize| (d + s.len()).checked_sub(rank).map_or(1, |k| s[k]);
    let mut shape: Vec<usize> =
        (0..rank).map(|d| if size(&ba, d) == 1 { size(&bb, d) } else { size(&ba, d) }).collect();
    shape.extend([a.shape[ba.len()], b.shape[bb.len() + 1]]);
    // The batch index of an operand: that of the result, 0 where the operand has one matrix.
    let own = |s: &[usize], i: &[usize]| -> Vec<usize> {
        (0..s.len()).map(|d| if s[d] == 1 { 0 } else { i[d + rank - s.len()] }).collect()
    };
    let k = a.shape[ba.len() + 1];
    let value = |i: Vec<usize>| {
        let (pa, pb) = (own(&ba, &i), own(&bb, &i));
        let left = |j: usize| at(a, &[&pa[..], &[i[rank], j]].concat());
        let right = |j: usize| at(b, &[&pb[..], &[j, i[rank + 1]]].concat());
        dot((0..k).map(|j| (left(j), right(j))))
    };
    Expected::scaled(&shape, a.dtype, indices(&shape).map(value).collect())
}

fn sum_to(x: &Value, shape: &[usize]) -> Expected {
    let (lead, steps) = (x.shape.len() - shape.len(), strides(shape));
    let mut sums = vec![(Dd::ZERO, Dd::ZERO); shape.iter().product()];
    for (i, &v) in indices(&x.shape).zip(&x.data) {
        let own = |d: usize| if shape[d] == 1 { 0 } else { i[lead + d] * steps[d] };
        let place: usize = (0..shape.len()).map(own).sum();
        sums[place] = (sums[place].0 + dd(v), sums[place].1 + dd(v).abs());
    }
    Expected::scaled(shape, x.dtype, sums)
}

/// f(x · wᵀ + b), and x · wᵀ + b where it is kept.
fn linear(op: &ops::Linear, inputs: &[Value]) -> Vec<Expected> {
    let (x, w) = (&inputs[0], &inputs[1]);
    let (out, width) = (w.shape[0], w.shape[1]);
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("x has a last dimension") = out;
    let rows: usize = x.shape[..x.shape.len() - 1].iter().product();
    let mut z = Vec::new();
    for r in 0..rows {
        for o in 0..out {
            let (sum, size) = dot((0..width).map(|k| (x.data[r * width + k], w.data[o * width + k])));
            let b = inputs.get(2).map_or(Dd::ZERO, |b| dd(b.data[o]));
            z.push((sum + b, size + b.abs()));
        }
    }
    // The slope of every activation is at most 1.13; the value itself is rounded too.
    let y = z.iter().map(|&(z, size)| {
        let y = super::unary::activation(op.activation, z);
        (
            y,
            size * dd(1.13)
                + y.abs()
                + if op.activation == Activation::Identity { Dd::ZERO } else { z.abs() },
        )
    });
    let y = Expected::scaled(&shape, x.dtype, y.collect());
    if op.keep_pre { vec![y, Expected::scaled(&shape, x.dtype, z)] } else { vec![y] }
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if op.is::<ops::MatMul>() {
        return Some(vec![matmul(&inputs[0], &inputs[1])]);
    }
    if let Some(op) = op.downcast_ref::<ops::SumTo>() {
        return Some(vec![sum_to(&inputs[0], op.shape.dims())]);
    }
    op.downcast_ref::<ops::Linear>().map(|op| linear(op, inputs))
}

/// A NaN or an infinity in a row or column is one in the results that it takes part in.
pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    (op.is::<ops::MatMul>() || op.is::<ops::SumTo>()).then_some(Specials::NotHuge)
}
