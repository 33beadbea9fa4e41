//! Reductions over sets of axes, and softmax along one.

use std::any::Any;

use warpsmith::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::harness::Value;
use crate::harness::layouts::{indices, strides};

/// The shape of a reduction's result, and for each of its elements the positions of `x` behind it, in row-major order.
pub fn groups(
    shape: &[usize],
    reduced: impl Fn(usize) -> bool,
    keepdim: bool,
) -> (Vec<usize>, Vec<Vec<usize>>) {
    let kept: Vec<usize> = (0..shape.len()).map(|d| if reduced(d) { 1 } else { shape[d] }).collect();
    let steps = strides(&kept);
    let mut groups = vec![Vec::new(); kept.iter().product()];
    for (at, index) in indices(shape).enumerate() {
        let place: usize = (0..shape.len()).filter(|&d| !reduced(d)).map(|d| index[d] * steps[d]).sum();
        groups[place].push(at);
    }
    let out = (0..shape.len()).filter(|&d| keepdim || !reduced(d)).map(|d| kept[d]).collect();
    (out, groups)
}

/// Σ and Σ| | of the values of `x` at `group`.
fn sum(x: &Value, group: &[usize]) -> (Dd, Dd) {
    let all = || group.iter().map(|&i| dd(x.data[i]));
    (all().sum(), all().map(Dd::abs).sum())
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let x = inputs.first()?;
    if let Some(op) = op.downcast_ref::<ops::Sum>() {
        let (shape, groups) = groups(&x.shape, |d| op.axes.contains(d), op.keepdim);
        let dtype = if x.dtype.is_float() { x.dtype } else { DType::I64 };
        return Some(vec![Expected::scaled(&shape, dtype, groups.iter().map(|g| sum(x, g)).collect())]);
    }
    if let Some(op) = op.downcast_ref::<ops::Mean>() {
        let (shape, groups) = groups(&x.shape, |d| op.axes.contains(d), op.keepdim);
        let mean = |g: &Vec<usize>| {
            let (s, size) = sum(x, g);
            // 0 / 0 over nothing.
            if g.is_empty() {
                (dd(f64::NAN), Dd::ZERO)
            } else {
                (s / dd(g.len() as f64), size / dd(g.len() as f64))
            }
        };
        return Some(vec![Expected::scaled(&shape, x.dtype, groups.iter().map(mean).collect())]);
    }
    if let Some(op) = op.downcast_ref::<ops::MeanBackward>() {
        let n = dd(op.count as f64);
        return Some(vec![Expected::of(&x.shape, x.dtype, x.data.iter().map(|&v| dd(v) / n).collect())]);
    }
    None
}

/// Huge values would overflow a partial sum or not, by the order of the additions.
pub fn specials(op: &dyn Any) -> Option<Specials> {
    if op.is::<ops::Sum>() || op.is::<ops::Mean>() {
        return Some(Specials::NotHuge);
    }
    op.is::<ops::MeanBackward>().then_some(Specials::All)
}
