//! Softmax and its logarithm along one dimension, from e^x / Σ e^x.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::ops;

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;
use crate::selftest::layouts::strides;

/// Calls `row` with the values of each input along `dim` and puts what it returns there.
fn along(dim: usize, inputs: &[Value], row: impl Fn(&[Vec<Dd>]) -> Vec<(Dd, Dd)>) -> Option<Vec<Expected>> {
    let x = &inputs[0];
    // A 0-d tensor is a row of one.
    let (n, step) = if x.shape.is_empty() { (1, 1) } else { (x.shape[dim], strides(&x.shape)[dim]) };
    let mut out = vec![(Dd::ZERO, Dd::ZERO); x.numel()];
    for start in (0..x.numel()).filter(|i| i / step % n == 0) {
        let values: Vec<Vec<Dd>> =
            inputs.iter().map(|v| (0..n).map(|k| dd(v.data[start + k * step])).collect()).collect();
        row(&values).into_iter().enumerate().for_each(|(k, v)| out[start + k * step] = v);
    }
    Some(vec![Expected::scaled(&x.shape, x.dtype, out)])
}

/// The maximum and Σ e^(x − max): the definition, divided by e^max above and below the line.
pub fn stats(x: &[Dd]) -> (Dd, Dd) {
    let max = x.iter().fold(dd(f64::NEG_INFINITY), |m, &v| m.max(v));
    (max, x.iter().map(|&v| (v - max).exp()).sum())
}

/// Σ p |x − max|: how much rounding x − max moves the logarithm of the sum of exponentials, plus 1 for the rounding of
/// the sum itself.
pub fn log_scale(x: &[Dd]) -> Dd {
    let (max, sum) = stats(x);
    x.iter().map(|&v| (v - max).exp() / sum * (v - max).abs()).filter(|v| !v.is_nan()).sum::<Dd>() + Dd::ONE
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if let Some(op) = op.downcast_ref::<ops::Softmax>() {
        return along(op.dim, inputs, |rows| {
            let (max, sum) = stats(&rows[0]);
            rows[0].iter().map(|&x| (x - max).exp() / sum).map(|y| (y, y.abs())).collect()
        });
    }
    if let Some(op) = op.downcast_ref::<ops::LogSoftmax>() {
        return along(op.dim, inputs, |rows| {
            let ((max, sum), rest) = (stats(&rows[0]), log_scale(&rows[0]));
            let of = |&x: &Dd| ((x - max) - sum.ln(), (x - max).abs() + sum.ln().abs() + rest);
            rows[0].iter().map(of).collect()
        });
    }
    if let Some(op) = op.downcast_ref::<ops::SoftmaxBackward>() {
        return along(op.dim, inputs, |rows| {
            let (y, dy) = (&rows[0], &rows[1]);
            let products = || y.iter().zip(dy).map(|(&y, &dy)| y * dy);
            let (sum, size) = (products().sum::<Dd>(), products().map(Dd::abs).sum::<Dd>());
            y.iter().zip(dy).map(|(&y, &dy)| (y * (dy - sum), y.abs() * (dy.abs() + size))).collect()
        });
    }
    if let Some(op) = op.downcast_ref::<ops::LogSoftmaxBackward>() {
        return along(op.dim, inputs, |rows| {
            let (y, dy) = (&rows[0], &rows[1]);
            let (sum, size) = (dy.iter().copied().sum::<Dd>(), dy.iter().map(|v| v.abs()).sum::<Dd>());
            y.iter().zip(dy).map(|(&y, &dy)| (dy - y.exp() * sum, dy.abs() + y.exp() * size)).collect()
        });
    }
    None
}

/// An infinite or NaN maximum gives NaN, a single −∞ a zero.
pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    (op.is::<ops::Softmax>() || op.is::<ops::LogSoftmax>()).then_some(Specials::NotHuge)
}
