//! Layer norm and RMS norm: x̂ · weight + bias with x̂ = (x − mean) / √(variance + eps).

#![forbid(unsafe_code)]

use std::any::Any;

use crate::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials, round};
use crate::selftest::Value;

type Pair = (Dd, Dd);

/// The type of statistics.
fn kept(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The value of `v` at `i`, or `other` where there is none.
fn value(v: Option<&Value>, i: usize, other: Dd) -> Dd {
    v.map_or(other, |v| dd(v.data[i]))
}

/// y, (mean), rstd of rows of `n`.
fn forward(
    x: &Value,
    normalized: &[usize],
    parameters: [Option<&Value>; 2],
    centred: bool,
    eps: f64,
) -> Vec<Expected> {
    let n: usize = normalized.iter().product();
    let lead = &x.shape[..x.shape.len() - normalized.len()];
    let (mut y, mut means, mut rstds): (Vec<Pair>, Vec<Pair>, Vec<Pair>) = Default::default();
    let (count, small) = (dd(n as f64), dd(round::underflow(kept(x.dtype))));
    for r in 0..lead.iter().product() {
        let row: Vec<Dd> = (0..n).map(|j| dd(x.data[r * n + j])).collect();
        // Over nothing there are no statistics.
        let average = |v: Dd| if n == 0 { dd(f64::NAN) } else { v / count };
        let mean = if centred { average(row.iter().copied().sum()) } else { Dd::ZERO };
        let size = average(row.iter().map(|v| v.abs()).sum());
        let variance = average(row.iter().map(|&v| (v - mean) * (v - mean)).sum());
        let deviation = average(row.iter().map(|&v| (v - mean).abs()).sum());
        let rstd = Dd::ONE / (variance + dd(eps)).sqrt();
        // How far the rounding of mean and differences moves the variance, relative to it; and its own rounding.
        let off = Dd::ONE + deviation * size * rstd * rstd;
        means.push((mean, size));
        rstds.push((rstd, rstd * off));
        for (j, &v) in row.iter().enumerate() {
            let (w, b) = (value(parameters[0], j, Dd::ONE), value(parameters[1], j, Dd::ZERO));
            let hat = (v - mean) * rstd;
            let lost = small * (Dd::ONE + w.abs());
            let scale = w.abs() * (rstd * (v.abs() + size) + hat.abs() * off) + b.abs() + lost;
            y.push((hat * w + b, scale));
        }
    }
    let mut out = vec![Expected::scaled(&x.shape, x.dtype, y)];
    if centred {
        out.push(Expected::scaled(lead, kept(x.dtype), means));
    }
    out.push(Expected::scaled(lead, kept(x.dtype), rstds));
    out
}

/// dx, (dweight), (dbias), for the given statistics: the chain rule through x̂, mean and rstd.
fn backward(
    inputs: &[Value],
    normalized: &[usize],
    centred: bool,
    weight: bool,
    bias: bool,
    stats: bool,
) -> Vec<Expected> {
    let mut next = inputs.iter();
    let mut take = |there: bool| if there { next.next() } else { None };
    let x = take(true).expect("x");
    let (mean, rstd, dy) = (take(centred), take(true).expect("rstd"), take(true).expect("dy"));
    let (w, dmean, drstd) = (take(weight), take(stats && centred), take(stats));
    let n: usize = normalized.iter().product();
    let (count, small) = (dd(n as f64), dd(round::underflow(kept(x.dtype))));
    let mut dx: Vec<Pair> = Vec::new();
    let zeros = vec![(Dd::ZERO, Dd::ZERO); n];
    let (mut dw, mut db) = (zeros.clone(), zeros);
    for r in 0..rstd.numel() {
        let (m, s) = (value(mean, r, Dd::ZERO), dd(rstd.data[r]));
        let row = |v: &Value| -> Vec<Dd> { (0..n).map(|j| dd(v.data[r * n + j])).collect() };
        let (x, dy) = (row(x), row(dy));
        let hat: Vec<Pair> = x.iter().map(|&x| ((x - m) * s, (x.abs() + m.abs()) * s.abs())).collect();
        let g: Vec<Dd> = dy.iter().enumerate().map(|(j, &dy)| dy * value(w, j, Dd::ONE)).collect();
        let sum = |f: &dyn Fn(usize) -> Dd| (0..n).map(f).sum::<Dd>();
        let (dm, ds) = (value(dmean, r, Dd::ZERO), value(drstd, r, Dd::ZERO));
        // dL/dmean and dL/drstd, then their parts of each x.
        let by_mean = if centred { dm - s * sum(&|j| g[j]) } else { Dd::ZERO };
        let by_rstd = ds + sum(&|j| g[j] * (x[j] - m));
        let mean_size = if centred { dm.abs() + s.abs() * sum(&|j| g[j].abs()) } else { Dd::ZERO };
        let rstd_size = ds.abs() + sum(&|j| g[j].abs() * (x[j].abs() + m.abs()));
        for j in 0..n {
            let v = s * g[j] + by_mean / count - by_rstd * s * s * hat[j].0 / count;
            let scale = s.abs() * g[j].abs() + mean_size / count + rstd_size * s * s * hat[j].1 / count;
            dx.push((v, scale + small * (Dd::ONE + s.abs()) * (Dd::ONE + hat[j].1)));
            let lost = small * (Dd::ONE + dy[j].abs());
            dw[j] = (dw[j].0 + dy[j] * hat[j].0, dw[j].1 + dy[j].abs() * hat[j].1 + lost);
            db[j] = (db[j].0 + dy[j], db[j].1 + dy[j].abs());
        }
    }
    let mut out = vec![Expected::scaled(&x.shape, x.dtype, dx)];
    out.extend(weight.then(|| Expected::scaled(normalized, x.dtype, dw)));
    out.extend(bias.then(|| Expected::scaled(normalized, x.dtype, db)));
    out
}

/// The last dimension, over which fused norms go.
fn last(x: &Value) -> &[usize] {
    &x.shape[x.shape.len() - 1..]
}

/// The sum, rounded to the type; the norm of that.
fn sum_and_norm(inputs: &[Value], centred: bool, weight: bool, bias: bool, eps: f64) -> Vec<Expected> {
    let (x, residual) = (&inputs[0], &inputs[1]);
    let add = |(&a, &b): (&f64, &f64)| round::to(x.dtype, (dd(a) + dd(b)).get());
    let sum = Value { data: x.data.iter().zip(&residual.data).map(add).collect(), ..x.clone() };
    let w = weight.then(|| &inputs[2]);
    let b = bias.then(|| &inputs[2 + weight as usize]);
    let mut out = vec![Expected::of(&x.shape, x.dtype, sum.data.iter().map(|&v| dd(v)).collect())];
    out.extend(forward(&sum, last(x), [w, b], centred, eps));
    out
}

/// The norm's backward, and the gradient of the sum added to that of the rows.
fn with_sum(inputs: &[Value], centred: bool, weight: bool, bias: bool, dsum: bool) -> Vec<Expected> {
    let (inputs, dsum) = inputs.split_at(inputs.len() - dsum as usize);
    let mut out = backward(inputs, last(&inputs[0]), centred, weight, bias, false);
    if let Some(dsum) = dsum.first() {
        for (i, &d) in dsum.data.iter().enumerate() {
            out[0].values[i] = (dd(out[0].values[i]) + dd(d)).get();
            out[0].scale[i] += d.abs();
        }
    }
    out
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if let Some(op) = op.downcast_ref::<ops::LayerNorm>() {
        let w = op.weight.then(|| &inputs[1]);
        let b = op.bias.then(|| &inputs[1 + op.weight as usize]);
        return Some(forward(&inputs[0], op.shape.dims(), [w, b], true, op.eps));
    }
    if let Some(op) = op.downcast_ref::<ops::RmsNorm>() {
        let w = op.weight.then(|| &inputs[1]);
        return Some(forward(&inputs[0], op.shape.dims(), [w, None], false, op.eps));
    }
    if let Some(op) = op.downcast_ref::<ops::LayerNormBackward>() {
        return Some(backward(inputs, op.shape.dims(), true, op.weight, op.bias, op.stats));
    }
    if let Some(op) = op.downcast_ref::<ops::RmsNormBackward>() {
        return Some(backward(inputs, op.shape.dims(), false, op.weight, false, op.stats));
    }
    if let Some(op) = op.downcast_ref::<ops::AddLayerNorm>() {
        return Some(sum_and_norm(inputs, true, op.weight, op.bias, op.eps));
    }
    if let Some(op) = op.downcast_ref::<ops::AddRmsNorm>() {
        return Some(sum_and_norm(inputs, false, op.weight, op.bias, op.eps));
    }
    if let Some(op) = op.downcast_ref::<ops::AddLayerNormBackward>() {
        return Some(with_sum(inputs, true, op.weight, op.bias, op.dsum));
    }
    let op = op.downcast_ref::<ops::AddRmsNormBackward>()?;
    Some(with_sum(inputs, false, op.weight, op.bias, op.dsum))
}

/// An infinity in a row leaves it no mean and no variance: all of a layer norm's row is NaN. The statistics that a backward is
/// given are finite or NaN; rstd, a factor of every term, may be 0.
pub fn specials(op: &dyn Any, input: usize) -> Option<Specials> {
    if op.is::<ops::LayerNorm>() || op.is::<ops::RmsNorm>() {
        return Some(Specials::NotHuge);
    }
    let statistics = match input {
        1 => op.is::<ops::LayerNormBackward>() || op.is::<ops::RmsNormBackward>(),
        _ => input == 2 && op.is::<ops::LayerNormBackward>(),
    };
    let back = op.is::<ops::LayerNormBackward>() || op.is::<ops::RmsNormBackward>();
    back.then_some(if statistics { Specials::NotInfinite } else { Specials::NotSmall })
}
