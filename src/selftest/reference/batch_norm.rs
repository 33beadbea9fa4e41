//! Batch norm and group norm: x̂ · weight + bias with x̂ = (x − mean) / √(variance + eps) over sets of elements.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials, round};
use crate::selftest::Value;

type Pair = (Dd, Dd);

/// The channel of each element of `[N, C, ..]`, and its set: the channel over the batch, or a group of channels of a sample.
fn members(shape: &[usize], groups: Option<usize>) -> (Vec<usize>, Vec<usize>, usize) {
    let (channels, length) = (shape[1], shape[2..].iter().product::<usize>());
    let numel = shape[0] * channels * length;
    let channel: Vec<usize> = (0..numel).map(|i| i / length % channels).collect();
    match groups {
        None => (channel.clone(), channel, channels),
        Some(groups) => {
            let sample = |i: usize| i / (channels * length);
            let set = (0..numel).map(|i| sample(i) * groups + channel[i] * groups / channels).collect();
            (channel, set, shape[0] * groups)
        }
    }
}

/// Mean, variance and 1 / √(variance + eps) of a set, each with the size of what was added.
struct Statistics {
    mean: Pair,
    variance: Pair,
    rstd: Pair,
}

fn statistics(x: &[Dd], eps: f64, dtype: DType) -> Statistics {
    let n = x.len();
    // Over nothing there are no statistics.
    let average = |v: Dd| if n == 0 { dd(f64::NAN) } else { v / dd(n as f64) };
    let mean = average(x.iter().copied().sum());
    let size = average(x.iter().map(|v| v.abs()).sum());
    let variance = average(x.iter().map(|&v| (v - mean) * (v - mean)).sum());
    let deviation = average(x.iter().map(|&v| (v - mean).abs()).sum());
    let rstd = Dd::ONE / (variance + dd(eps)).sqrt();
    // How far the rounding of mean and differences moves the variance, and that of the root relative to it.
    let off = Dd::ONE + deviation * size * rstd * rstd;
    // The rounding of the mean, squared, is there even where all are equal.
    let spread = variance + deviation * size + size * size * dd(16.0 * dtype.unit_roundoff());
    Statistics { mean: (mean, size), variance: (variance, spread), rstd: (rstd, rstd * off) }
}

/// The type of statistics.
fn kept(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

fn parameter(v: Option<&Value>, i: usize, other: Dd) -> Dd {
    v.map_or(other, |v| dd(v.data[i]))
}

/// y with given statistics of sets.
fn normalised(
    x: &Value,
    stats: &[Statistics],
    groups: Option<usize>,
    affine: [Option<&Value>; 2],
) -> Vec<Pair> {
    let (channel, set, _) = members(&x.shape, groups);
    let small = dd(round::underflow(kept(x.dtype)));
    let value = |i: usize| {
        let (s, v) = (&stats[set[i]], dd(x.data[i]));
        let (w, b) = (parameter(affine[0], channel[i], Dd::ONE), parameter(affine[1], channel[i], Dd::ZERO));
        let hat = (v - s.mean.0) * s.rstd.0;
        let off = s.rstd.1 / s.rstd.0;
        let lost = small * (Dd::ONE + v.abs() + s.mean.1);
        (hat * w + b, w.abs() * (s.rstd.0 * (v.abs() + s.mean.1) + hat.abs() * off) + b.abs() + lost)
    };
    (0..x.data.len()).map(value).collect()
}

fn forward(x: &Value, groups: Option<usize>, eps: f64, affine: [Option<&Value>; 2]) -> Vec<Expected> {
    let (_, set, count) = members(&x.shape, groups);
    let mut elements: Vec<Vec<Dd>> = vec![Vec::new(); count];
    x.data.iter().zip(&set).for_each(|(&v, &s)| elements[s].push(dd(v)));
    let kept = kept(x.dtype);
    let stats: Vec<Statistics> = elements.iter().map(|x| statistics(x, eps, kept)).collect();
    let shape: Vec<usize> = groups.map_or(vec![x.shape[1]], |groups| vec![x.shape[0], groups]);
    let of = |f: fn(&Statistics) -> Pair| Expected::scaled(&shape, kept, stats.iter().map(f).collect());
    vec![
        Expected::scaled(&x.shape, x.dtype, normalised(x, &stats, groups, affine)),
        of(|s| s.mean),
        of(|s| s.variance),
    ]
}

/// The statistics that were given.
fn given(mean: &Value, variance: &Value, eps: f64) -> Vec<Statistics> {
    let of = |(&m, &v): (&f64, &f64)| {
        let rstd = Dd::ONE / (dd(v) + dd(eps)).sqrt();
        Statistics { mean: (dd(m), dd(m.abs())), variance: (dd(v), dd(v)), rstd: (rstd, rstd) }
    };
    mean.data.iter().zip(&variance.data).map(of).collect()
}

/// dx, (dweight), (dbias). With `training` the statistics change with x: the chain rule through x̂, mean and variance.
fn backward(
    inputs: &[Value],
    groups: Option<usize>,
    (eps, training): (f64, bool),
    (weight, bias): (bool, bool),
) -> Vec<Expected> {
    let (x, dy) = (&inputs[0], &inputs[3]);
    let weights = weight.then(|| &inputs[4]);
    let (channel, set, count) = members(&x.shape, groups);
    let stats = given(&inputs[1], &inputs[2], eps);
    let small = dd(round::underflow(kept(x.dtype)));
    let zeros = |n: usize| vec![(Dd::ZERO, Dd::ZERO); n];
    let add = |slot: &mut Pair, v: Dd, size: Dd| *slot = (slot.0 + v, slot.1 + size);
    let (mut by_mean, mut by_rstd) = (zeros(count), zeros(count));
    let (mut dw, mut db) = (zeros(x.shape[1]), zeros(x.shape[1]));
    let mut members_of = vec![0.0; count];
    let at = |i: usize| {
        let s = &stats[set[i]];
        let (v, g) = (dd(x.data[i]), dd(dy.data[i]) * parameter(weights, channel[i], Dd::ONE));
        // x̂ and its size, g = dy · weight, rstd.
        ((v - s.mean.0) * s.rstd.0, (v.abs() + s.mean.1) * s.rstd.0, g, s.rstd.0)
    };
    for i in 0..x.data.len() {
        let (hat, size, g, _) = at(i);
        let v = dd(dy.data[i]);
        members_of[set[i]] += 1.0;
        add(&mut by_mean[set[i]], g, g.abs());
        add(&mut by_rstd[set[i]], g * hat, g.abs() * size);
        add(&mut dw[channel[i]], v * hat, v.abs() * size);
        add(&mut db[channel[i]], v, v.abs());
    }
    let value = |i: usize| {
        let (hat, size, g, rstd) = at(i);
        // What vanished in a product is multiplied on.
        let lost = |most: Dd| small * most * most;
        let most = (Dd::ONE + dd(dy.data[i]).abs()) * (Dd::ONE + rstd);
        if !training {
            return (rstd * g, rstd * g.abs() + lost(most));
        }
        let n = dd(members_of[set[i]]);
        let (first, second) = (by_mean[set[i]], by_rstd[set[i]]);
        let v = rstd * (g - first.0 / n - hat * (second.0 / n));
        (v, rstd * (g.abs() + first.1 / n + size * (second.1 / n)) + lost(most * (Dd::ONE + size)))
    };
    let mut out = vec![Expected::scaled(&x.shape, x.dtype, (0..x.data.len()).map(value).collect())];
    out.extend(weight.then(|| Expected::scaled(&x.shape[1..2], x.dtype, dw)));
    out.extend(bias.then(|| Expected::scaled(&x.shape[1..2], x.dtype, db)));
    out
}

fn running(op: &ops::RunningStats, inputs: &[Value]) -> Vec<Expected> {
    let batches = inputs[4].data[0] + 1.0;
    let momentum = match op.momentum {
        Some(momentum) => dd(momentum),
        None => Dd::ONE / dd(batches),
    };
    let unbiased = dd(op.count as f64) / dd((op.count as f64 - 1.0).max(1.0));
    let mixed = |new: &Value, old: &Value, factor: Dd| {
        let of = |(&new, &old): (&f64, &f64)| {
            let (kept, added) = ((Dd::ONE - momentum) * dd(old), momentum * dd(new) * factor);
            (kept + added, kept.abs() + added.abs())
        };
        Expected::scaled(&new.shape, new.dtype, new.data.iter().zip(&old.data).map(of).collect())
    };
    vec![
        mixed(&inputs[0], &inputs[2], Dd::ONE),
        mixed(&inputs[1], &inputs[3], unbiased),
        Expected::of(&[], DType::I64, vec![dd(batches)]),
    ]
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let affine = |from: usize, weight: bool, bias: bool| {
        [weight.then(|| &inputs[from]), bias.then(|| &inputs[from + usize::from(weight)])]
    };
    if let Some(op) = op.downcast_ref::<ops::BatchNorm>() {
        return Some(forward(&inputs[0], None, op.eps, affine(1, op.weight, op.bias)));
    }
    if let Some(op) = op.downcast_ref::<ops::BatchNormEval>() {
        let (x, stats) = (&inputs[0], given(&inputs[1], &inputs[2], op.eps));
        let y = normalised(x, &stats, None, affine(3, op.weight, op.bias));
        return Some(vec![Expected::scaled(&x.shape, x.dtype, y)]);
    }
    if let Some(op) = op.downcast_ref::<ops::BatchNormBackward>() {
        return Some(backward(inputs, None, (op.eps, op.training), (op.weight, op.bias)));
    }
    if let Some(op) = op.downcast_ref::<ops::RunningStats>() {
        return Some(running(op, inputs));
    }
    if let Some(op) = op.downcast_ref::<ops::GroupNorm>() {
        return Some(forward(&inputs[0], Some(op.groups), op.eps, affine(1, op.weight, op.bias)));
    }
    let op = op.downcast_ref::<ops::GroupNormBackward>()?;
    Some(backward(inputs, Some(op.groups), (op.eps, true), (op.weight, op.bias)))
}

/// An infinity among the elements of a set leaves it no mean and no variance: all of the set is NaN. Weights are not subnormal,
/// since they are multiplied by rstd before they meet an infinity. Where the statistics are those of x, backwards, they are not
/// infinite: such a weight times a sum over a channel is not the sum of its products.
pub fn specials(op: &dyn Any, input: usize) -> Option<Specials> {
    let of_weight = |weight: usize, which: Specials| if input == weight { which } else { Specials::NotHuge };
    if op.is::<ops::BatchNorm>() || op.is::<ops::GroupNorm>() {
        return Some(of_weight(1, Specials::NotSmall));
    }
    if op.is::<ops::BatchNormEval>() {
        return Some(of_weight(3, Specials::NotSmall));
    }
    if op.is::<ops::GroupNormBackward>() {
        return Some(of_weight(4, Specials::NotInfinite));
    }
    if let Some(op) = op.downcast_ref::<ops::BatchNormBackward>() {
        return Some(of_weight(4, if op.training { Specials::NotInfinite } else { Specials::NotSmall }));
    }
    op.is::<ops::RunningStats>().then_some(Specials::NotHuge)
}
