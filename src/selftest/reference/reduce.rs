//! Reductions over sets of axes, and softmax along one.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;
use crate::selftest::layouts::{indices, strides};

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
    extrema(op, inputs).or_else(|| moments(op, inputs))
}

/// The place within a group of its first extremum; `before(a, b)`: whether `a` is more extreme. NaN is beyond everything.
fn place(x: &Value, group: &[usize], before: fn(f64, f64) -> bool) -> usize {
    let values = || group.iter().map(|&i| x.data[i]);
    if let Some(k) = values().position(f64::is_nan) {
        return k;
    }
    values()
        .enumerate()
        .fold((0, x.data[group[0]]), |best, (k, v)| if before(v, best.1) { (k, v) } else { best })
        .0
}

fn extrema(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let x = &inputs[0];
    let larger: fn(f64, f64) -> bool = |a, b| a > b;
    let smaller: fn(f64, f64) -> bool = |a, b| a < b;
    let (axes, keepdim, before, places) = if let Some(op) = op.downcast_ref::<ops::Amax>() {
        (op.axes, op.keepdim, larger, false)
    } else if let Some(op) = op.downcast_ref::<ops::Amin>() {
        (op.axes, op.keepdim, smaller, false)
    } else if let Some(op) = op.downcast_ref::<ops::Argmax>() {
        (op.axes, op.keepdim, larger, true)
    } else if let Some(op) = op.downcast_ref::<ops::Argmin>() {
        (op.axes, op.keepdim, smaller, true)
    } else {
        let op = op.downcast_ref::<ops::ExtremumBackward>()?;
        return Some(backward(
            inputs,
            |d| op.axes.contains(d),
            |group, at, kept| {
                let (y, dy) = (kept[0], kept[1]);
                let same = |i: usize| x.data[i] == y.get() || x.data[i].is_nan() && y.is_nan();
                let count = group.iter().filter(|&&i| same(i)).count();
                let v = if same(at) { dy / dd(count as f64) } else { Dd::ZERO };
                (v, v.abs())
            },
        ));
    };
    let (shape, groups) = groups(&x.shape, |d| axes.contains(d), keepdim);
    let best = |g: &Vec<usize>| match place(x, g, before) {
        k if places => dd(k as f64),
        k => dd(x.data[g[k]]),
    };
    let dtype = if places { DType::I64 } else { x.dtype };
    Some(vec![Expected::of(&shape, dtype, groups.iter().map(best).collect())])
}

/// A backward of x and values with the axes kept: `f(group, position in x, kept values)`.
fn backward(
    inputs: &[Value],
    reduced: impl Fn(usize) -> bool,
    f: impl Fn(&[usize], usize, &[Dd]) -> (Dd, Dd),
) -> Vec<Expected> {
    let x = &inputs[0];
    let (_, groups) = groups(&x.shape, reduced, true);
    let mut out = vec![(Dd::ZERO, Dd::ZERO); x.numel()];
    for (k, group) in groups.iter().enumerate() {
        let kept: Vec<Dd> = inputs[1..].iter().map(|v| dd(v.data[k])).collect();
        group.iter().for_each(|&at| out[at] = f(group, at, &kept));
    }
    vec![Expected::scaled(&x.shape, x.dtype, out)]
}

/// Mean and mean magnitude of a group.
fn mean_of(x: &Value, group: &[usize]) -> (Dd, Dd) {
    let (s, size) = sum(x, group);
    (s / dd(group.len() as f64), size / dd(group.len() as f64))
}

/// What a sum of squares is divided by.
fn freedom(group: &[usize], correction: u32) -> Dd {
    dd((group.len() as f64 - correction as f64).max(0.0))
}

/// The variance; the scale counts that each difference is as exact as the mean, and the square of the mean's own rounding
/// error, which is all there is where the values are equal.
fn variance(x: &Value, group: &[usize], correction: u32) -> (Dd, Dd) {
    if group.is_empty() {
        return (dd(f64::NAN), Dd::ZERO);
    }
    let (mean, size) = mean_of(x, group);
    let d = |i: &usize| dd(x.data[*i]) - mean;
    let squares: Dd = group.iter().map(|i| d(i) * d(i)).sum();
    let second = dd(4.0 * x.dtype.unit_roundoff().min(DType::F32.unit_roundoff())) * size * size;
    let scale = |i: &usize| d(i) * d(i) + d(i).abs() * (dd(x.data[*i]).abs() + size) + second;
    let scale: Dd = group.iter().map(scale).sum();
    (squares / freedom(group, correction), scale / freedom(group, correction))
}

/// ln Σ e^(x − shift) + shift, with the largest as shift where it is finite.
fn log_sum_exp(x: &Value, group: &[usize]) -> (Dd, Dd) {
    let values: Vec<Dd> = group.iter().map(|&i| dd(x.data[i])).collect();
    let largest = values.iter().fold(dd(f64::NEG_INFINITY), |m, &v| m.max(v));
    if !largest.is_finite() {
        return (largest, Dd::ONE);
    }
    let log = super::softmax::stats(&values).1.ln();
    (log + largest, log.abs() + largest.abs() + super::softmax::log_scale(&values))
}

fn moments(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let x = &inputs[0];
    let reduced = |axes: ops::Axes, keepdim: bool, f: &dyn Fn(&[usize]) -> (Dd, Dd)| {
        let (shape, groups) = groups(&x.shape, |d| axes.contains(d), keepdim);
        Some(vec![Expected::scaled(&shape, x.dtype, groups.iter().map(|g| f(g)).collect())])
    };
    if let Some(op) = op.downcast_ref::<ops::Var>() {
        return reduced(op.axes, op.keepdim, &|g| variance(x, g, op.correction));
    }
    if let Some(op) = op.downcast_ref::<ops::Std>() {
        return reduced(op.axes, op.keepdim, &|g| {
            let root = variance(x, g, op.correction).0.sqrt();
            if g.is_empty() {
                return (root, Dd::ZERO);
            }
            // Errors of the differences, of the size of x and of the mean, enter with weights whose squares sum to 1.
            let n = freedom(g, op.correction);
            let square: Dd = g.iter().map(|&i| dd(x.data[i]) * dd(x.data[i])).sum();
            (root, root + dd(2.0) * (square / n).sqrt())
        });
    }
    if let Some(op) = op.downcast_ref::<ops::LogSumExp>() {
        return reduced(op.axes, op.keepdim, &|g| log_sum_exp(x, g));
    }
    if let Some(op) = op.downcast_ref::<ops::VarBackward>() {
        return Some(backward(
            inputs,
            |d| op.axes.contains(d),
            |group, at, kept| {
                let (mean, size) = mean_of(x, group);
                let factor = dd(2.0) * kept[0] / freedom(group, op.correction);
                let v = dd(x.data[at]);
                (factor * (v - mean), factor.abs() * (v.abs() + size))
            },
        ));
    }
    if let Some(op) = op.downcast_ref::<ops::StdBackward>() {
        return Some(backward(
            inputs,
            |d| op.axes.contains(d),
            |group, at, kept| {
                let (mean, size) = mean_of(x, group);
                let factor = kept[1] / (freedom(group, op.correction) * kept[0]);
                let v = dd(x.data[at]);
                (factor * (v - mean), factor.abs() * (v.abs() + size))
            },
        ));
    }
    let op = op.downcast_ref::<ops::LogSumExpBackward>()?;
    Some(backward(
        inputs,
        |d| op.axes.contains(d),
        |_, at, kept| {
            let v = kept[1] * (dd(x.data[at]) - kept[0]).exp();
            (v, v.abs())
        },
    ))
}

/// Huge values would overflow a partial sum or not, by the order of the additions.
pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    let sums = op.is::<ops::Sum>() || op.is::<ops::Mean>();
    if sums || op.is::<ops::Var>() || op.is::<ops::LogSumExp>() {
        return Some(Specials::NotHuge);
    }
    let chosen =
        op.is::<ops::Amax>() || op.is::<ops::Amin>() || op.is::<ops::Argmax>() || op.is::<ops::Argmin>();
    (chosen || op.is::<ops::MeanBackward>()).then_some(Specials::All)
}
