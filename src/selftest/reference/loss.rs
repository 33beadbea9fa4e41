//! Losses and their gradients. Scales: the magnitudes of the terms of the formula, and where an exponential or a logarithm
//! magnifies the rounding of its argument, that argument's size.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::DType;
use crate::ops::Reduction;
use crate::ops::loss::*;

use super::binary::broadcast;
use super::dd::{Dd, dd};
use super::softmax::{log_scale, stats};
use super::{Expected, Specials};
use crate::selftest::Value;

/// A value and its scale.
type Pair = (Dd, Dd);

fn sized(v: Dd) -> Pair {
    (v, v.abs())
}

/// What sums of `count` losses from an input of `shape` are divided by.
fn divisor(reduction: Reduction, count: usize, shape: &[usize]) -> Dd {
    match reduction {
        Reduction::Mean => dd(count as f64),
        Reduction::BatchMean => dd(shape.first().map_or(1.0, |&n| n as f64)),
        Reduction::Sum | Reduction::None => Dd::ONE,
    }
}

fn reduced(losses: Vec<Pair>, reduction: Reduction, by: Dd, full: &[usize], dtype: DType) -> Expected {
    if reduction == Reduction::None {
        return Expected::scaled(full, dtype, losses);
    }
    let sum = losses.iter().map(|l| l.0).sum::<Dd>() / by;
    let scale = losses.iter().map(|l| l.1).sum::<Dd>() / by;
    Expected::scaled(&[], dtype, vec![(sum, scale)])
}

/// dy of element (or row) `i`.
fn dy_of(dy: &Value, i: usize) -> Dd {
    dd(dy.data[if dy.shape.is_empty() { 0 } else { i }])
}

fn sign(v: Dd) -> Dd {
    if v.get() > 0.0 {
        Dd::ONE
    } else if v.get() < 0.0 {
        -Dd::ONE
    } else {
        v
    }
}

fn negated((v, scale): Pair) -> Pair {
    (-v, scale)
}

fn mse(x: Dd, t: Dd) -> [Pair; 3] {
    let d = x - t;
    [sized(d * d), sized(d + d), sized(-(d + d))]
}

fn l1(x: Dd, t: Dd) -> [Pair; 3] {
    let d = x - t;
    [sized(d.abs()), sized(sign(d)), sized(-sign(d))]
}

/// The parabola of curvature 1 up to `bend`, then a line of slope `bend`.
fn huber(bend: f64, x: Dd, t: Dd) -> [Pair; 3] {
    let (d, bend, half) = (x - t, dd(bend), dd(0.5));
    let (value, slope) = if d.abs().get() <= bend.get() {
        (sized(half * d * d), d)
    } else {
        ((bend * (d.abs() - half * bend), bend * (d.abs() + half * bend)), sign(d) * bend)
    };
    [value, sized(slope), negated(sized(slope))]
}

fn smooth_l1(beta: f64, x: Dd, t: Dd) -> [Pair; 3] {
    if beta == 0.0 {
        return l1(x, t);
    }
    huber(beta, x, t).map(|(v, s)| (v / dd(beta), s / dd(beta)))
}

fn kl(log_target: bool, x: Dd, t: Dd) -> [Pair; 3] {
    if log_target {
        let (e, rest) = (t.exp(), Dd::ONE + t.abs());
        return [
            (e * (t - x), e * (t.abs() + x.abs()) * rest),
            (-e, e * rest),
            (e * (t - x + Dd::ONE), e * (t.abs() + x.abs() + Dd::ONE) * rest),
        ];
    }
    let own = if t.get() == 0.0 { Dd::ZERO } else { t * t.ln() };
    [
        (own - t * x, own.abs() + (t * x).abs()),
        sized(-t),
        (t.ln() + Dd::ONE - x, t.ln().abs() + Dd::ONE + x.abs()),
    ]
}

/// −w · (p · t · ln σ(x) + (1 − t) · ln(1 − σ(x))), by ln σ(x) = −softplus(−x) and ln(1 − σ(x)) = −softplus(x).
fn bce(x: Dd, t: Dd, w: Dd, p: Dd) -> [Pair; 3] {
    let (hit, miss) = ((-x).softplus(), x.softplus());
    let value = w * (p * t * hit + (Dd::ONE - t) * miss);
    let scale = w * ((Dd::ONE + t) * x.abs() + (Dd::ONE + (p + Dd::ONE) * t) * hit);
    let (s, c) = (x.sigmoid(), (-x).sigmoid());
    let dx = w * ((Dd::ONE - t) * s - p * t * c);
    let dx_scale = w * (Dd::ONE + t + (Dd::ONE + (p + Dd::ONE) * t));
    let dt = w * (p * hit - miss);
    [(value, scale), (dx, dx_scale), (dt, w * (x.abs() + (p + Dd::ONE) * hit))]
}

/// A pointwise loss or its backward, if `op` is one of kind `K`.
fn pointwise<K: PointKind>(
    op: &dyn Any,
    inputs: &[Value],
    formulas: impl Fn(&K, Dd, Dd, Dd, Dd) -> [Pair; 3],
) -> Option<Vec<Expected>> {
    let (kind, reduction, dy, rest) = if let Some(op) = op.downcast_ref::<PointLoss<K>>() {
        (&op.kind, op.reduction, None, inputs)
    } else if let Some(op) = op.downcast_ref::<PointLossBackward<K>>() {
        (&op.kind, op.reduction, Some(&inputs[0]), &inputs[1..])
    } else {
        return None;
    };
    let x = &rest[0];
    let n = x.numel();
    let mut extras = rest[2..].iter();
    let mut extra = |has: bool| match has {
        true => broadcast(extras.next().expect("the weights that the loss has"), &x.shape),
        false => vec![Dd::ONE; n],
    };
    let [w, p] = [extra(kind.extras()[0]), extra(kind.extras()[1])];
    let all: Vec<[Pair; 3]> =
        (0..n).map(|i| formulas(kind, dd(x.data[i]), dd(rest[1].data[i]), w[i], p[i])).collect();
    let by = divisor(reduction, n, &x.shape);
    let Some(dy) = dy else {
        return Some(vec![reduced(all.iter().map(|f| f[0]).collect(), reduction, by, &x.shape, x.dtype)]);
    };
    let gradient = |k: usize| {
        let scaled = |(i, f): (usize, &[Pair; 3])| {
            let g = dy_of(dy, i) / by;
            (g * f[k].0, g.abs() * f[k].1)
        };
        Expected::scaled(&x.shape, x.dtype, all.iter().enumerate().map(scaled).collect())
    };
    Some(vec![gradient(1), gradient(2)])
}

/// The rows of logits or targets.
fn rows(x: &Value) -> (usize, Vec<Vec<Dd>>) {
    let classes = x.shape[x.shape.len() - 1];
    let lead = x.shape[..x.shape.len() - 1].iter().product();
    (classes, (0..lead).map(|r| (0..classes).map(|c| dd(x.data[r * classes + c])).collect()).collect())
}

/// Statistics in f64 that are as exact as the type that sums of `dtype` are kept in.
fn statistics(shape: &[usize], dtype: DType, values: Vec<Pair>) -> Expected {
    let kept = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Expected { exact_as: kept, ..Expected::scaled(shape, DType::F64, values) }
}

fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut out = shape.to_vec();
    *out.last_mut().expect("logits have a dimension of classes") = last;
    out
}

/// The maximum (exact) and the sum of exponentials.
fn row_stats(x: &[Dd]) -> [Pair; 2] {
    let (max, sum) = stats(x);
    [(max, Dd::ZERO), (sum, sum * log_scale(x))]
}

fn weights(w: Option<&Value>, classes: usize) -> Vec<Dd> {
    w.map_or(vec![Dd::ONE; classes], |w| w.data.iter().map(|&v| dd(v)).collect())
}

/// The target distribution of a row, unweighted: `1 − ε` of what is given and ε spread evenly.
fn smoothed(target: impl Fn(usize) -> Dd, classes: usize, smoothing: f64) -> Vec<Dd> {
    let (e, n) = (dd(smoothing), dd(classes as f64));
    (0..classes).map(|c| (Dd::ONE - e) * target(c) + e / n).collect()
}

/// −Σ u ln softmax(x), with u the weighted target.
fn cross_entropy(x: &[Dd], u: &[Dd]) -> Pair {
    let ((max, sum), rest) = (stats(x), log_scale(x));
    let term = |(&x, &u): (&Dd, &Dd)| u * (sum.ln() - (x - max));
    let size = |(&x, &u): (&Dd, &Dd)| u.abs() * (sum.ln().abs() + (x - max).abs() + rest);
    (x.iter().zip(u).map(term).sum(), x.iter().zip(u).map(size).sum())
}

/// e^(x − m) / s · Σ u − u for given statistics m and s, times g.
fn cross_entropy_dx(x: &[Dd], u: &[Dd], (m, s): (Dd, Dd), g: Dd) -> Vec<Pair> {
    let (mass, size) = (u.iter().copied().sum::<Dd>(), u.iter().map(|u| u.abs()).sum::<Dd>());
    let of = |(&x, &u): (&Dd, &Dd)| {
        let p = (x - m).exp() / s;
        // m is given in f64 and may be rounded before it is subtracted.
        let scale = p * size * (Dd::ONE + x.abs() + m.abs()) + u.abs();
        (g * (p * mass - u), g.abs() * scale)
    };
    x.iter().zip(u).map(of).collect()
}

fn class_loss(op: &CrossEntropyLoss, inputs: &[Value]) -> Vec<Expected> {
    let (x, target) = (&inputs[0], &inputs[1]);
    let (width, rows) = rows(x);
    let classes = op.classes.unwrap_or(width);
    // Rows without what lies behind the classes.
    let rows: Vec<&[Dd]> = rows.iter().map(|x| &x[..classes]).collect();
    let w = weights(inputs.get(2), classes);
    let u = |y: f64| class_target(op, y, &w);
    let losses: Vec<Pair> = rows.iter().zip(&target.data).map(|(x, &y)| cross_entropy(x, &u(y))).collect();
    let counted = |y: &f64| if *y as i64 == op.ignore_index { Dd::ZERO } else { w[*y as usize] };
    let by = match op.reduction {
        Reduction::Mean => target.data.iter().map(counted).sum::<Dd>(),
        other => divisor(other, rows.len(), &x.shape),
    };
    let stats = rows.iter().flat_map(|x| row_stats(x)).collect();
    vec![
        reduced(losses, op.reduction, by, &target.shape, x.dtype),
        statistics(&with_last(&x.shape, 2), x.dtype, stats),
        statistics(&[], x.dtype, vec![sized(by)]),
    ]
}

/// The weighted, smoothed target of class `y`; zeros for the ignored one.
fn class_target(op: &CrossEntropyLoss, y: f64, w: &[Dd]) -> Vec<Dd> {
    if y as i64 == op.ignore_index {
        return vec![Dd::ZERO; w.len()];
    }
    // The weight of the target class is that of the given part; each class of the spread part has its own.
    let hit = |c: usize| if c == y as usize { Dd::ONE } else { Dd::ZERO };
    smoothed(hit, w.len(), op.label_smoothing).iter().zip(w).map(|(&u, &w)| u * w).collect()
}

fn class_loss_backward(op: &CrossEntropyLoss, inputs: &[Value]) -> Vec<Expected> {
    let [dy, x, stats, by, target] = &inputs[..5] else { unreachable!("five inputs") };
    let (width, rows) = rows(x);
    let classes = op.classes.unwrap_or(width);
    let w = weights(inputs.get(5), classes);
    let by = match op.reduction {
        Reduction::Mean | Reduction::BatchMean => dd(by.data[0]),
        Reduction::Sum | Reduction::None => Dd::ONE,
    };
    let row = |(r, x): (usize, &Vec<Dd>)| {
        let given = (dd(stats.data[2 * r]), dd(stats.data[2 * r + 1]));
        let g = dy_of(dy, r) / by;
        let mut row = cross_entropy_dx(&x[..classes], &class_target(op, target.data[r], &w), given, g);
        row.resize(width, (Dd::ZERO, Dd::ZERO));
        row
    };
    vec![Expected::scaled(&x.shape, x.dtype, rows.iter().enumerate().flat_map(row).collect())]
}

/// The weighted, smoothed targets of a row of probabilities.
fn soft_target(op: &SoftCrossEntropyLoss, t: &[Dd], w: &[Dd]) -> Vec<Dd> {
    smoothed(|c| t[c], w.len(), op.label_smoothing).iter().zip(w).map(|(&u, &w)| u * w).collect()
}

fn soft_loss(op: &SoftCrossEntropyLoss, inputs: &[Value]) -> Vec<Expected> {
    let x = &inputs[0];
    let ((classes, rows), (_, targets)) = (rows(x), rows(&inputs[1]));
    let w = weights(inputs.get(2), classes);
    let losses = rows.iter().zip(&targets).map(|(x, t)| cross_entropy(x, &soft_target(op, t, &w))).collect();
    let by = divisor(op.reduction, rows.len(), &x.shape);
    let lead = &x.shape[..x.shape.len() - 1];
    let stats = rows.iter().flat_map(|x| row_stats(x)).collect();
    vec![
        reduced(losses, op.reduction, by, lead, x.dtype),
        statistics(&with_last(&x.shape, 2), x.dtype, stats),
    ]
}

fn soft_loss_backward(op: &SoftCrossEntropyLoss, inputs: &[Value]) -> Vec<Expected> {
    let [dy, x, stats, target] = &inputs[..4] else { unreachable!("four inputs") };
    let ((classes, rows), (_, targets)) = (rows(x), rows(target));
    let w = weights(inputs.get(4), classes);
    let by = divisor(op.reduction, rows.len(), &x.shape);
    let given = |r: usize| (dd(stats.data[2 * r]), dd(stats.data[2 * r + 1]));
    let g = |r: usize| dy_of(dy, r) / by;
    let dx = |r: usize| cross_entropy_dx(&rows[r], &soft_target(op, &targets[r], &w), given(r), g(r));
    let rest = Dd::ONE - dd(op.label_smoothing);
    let dt = |r: usize| -> Vec<Pair> {
        let (m, s) = given(r);
        let one = |(&x, &w): (&Dd, &Dd)| {
            let scale = s.ln().abs() + x.abs() + m.abs() + Dd::ONE;
            (g(r) * rest * w * (s.ln() - (x - m)), (g(r) * rest * w).abs() * scale)
        };
        rows[r].iter().zip(&w).map(one).collect()
    };
    let all = |f: &dyn Fn(usize) -> Vec<Pair>| {
        Expected::scaled(&x.shape, x.dtype, (0..rows.len()).flat_map(f).collect())
    };
    vec![all(&dx), all(&dt)]
}

/// T² · Σ q (ln q − ln p) of the softmaxes of the cooled logits.
fn distillation(op: &DistillationLoss, inputs: &[Value]) -> Vec<Expected> {
    let x = &inputs[0];
    let ((_, students), (_, teachers)) = (rows(x), rows(&inputs[1]));
    let t = dd(op.temperature);
    let cooled = |x: &Vec<Dd>| x.iter().map(|&v| v / t).collect::<Vec<_>>();
    let (mut losses, mut all) = (Vec::new(), Vec::new());
    for (a, b) in students.iter().zip(&teachers) {
        let (a, b) = (cooled(a), cooled(b));
        let ((ma, sa), (mb, sb)) = (stats(&a), stats(&b));
        let (ra, rb) = (log_scale(&a), log_scale(&b));
        let term = |(&a, &b): (&Dd, &Dd)| -> Pair {
            let q = (b - mb).exp() / sb;
            let size = (b - mb).abs() + (a - ma).abs() + sa.ln().abs() + sb.ln().abs() + ra + rb;
            // Dividing by T rounds each logit before its maximum is subtracted.
            let args = a.abs() + ma.abs() + b.abs() + mb.abs();
            let value = q * (((b - mb) - sb.ln()) - ((a - ma) - sa.ln()));
            (value, q * (size * (Dd::ONE + (b - mb).abs()) + args))
        };
        let sum = a.iter().zip(&b).map(term).fold((Dd::ZERO, Dd::ZERO), |s, v| (s.0 + v.0, s.1 + v.1));
        losses.push((t * t * sum.0, t * t * sum.1));
        let args = |x: &[Dd], m: Dd| x.iter().map(|v| v.abs()).fold(m.abs(), Dd::max);
        all.push((ma, ma.abs()));
        all.push((sa, sa * (ra + args(&a, ma))));
        all.push((mb, mb.abs()));
        all.push((sb, sb * (rb + args(&b, mb))));
    }
    let by = divisor(Reduction::BatchMean, 0, &x.shape);
    vec![
        reduced(losses, Reduction::BatchMean, by, &[], x.dtype),
        statistics(&with_last(&x.shape, 4), x.dtype, all),
    ]
}

fn distillation_backward(op: &DistillationLossBackward, inputs: &[Value]) -> Vec<Expected> {
    let [dy, x, teacher, stats] = &inputs[..4] else { unreachable!("four inputs") };
    let ((_, students), (_, teachers)) = (rows(x), rows(teacher));
    let t = dd(op.temperature);
    let g = dy_of(dy, 0) * t / divisor(Reduction::BatchMean, 0, &x.shape);
    let row = |r: usize| -> Vec<Pair> {
        let [ma, sa, mb, sb] = std::array::from_fn(|k| dd(stats.data[4 * r + k]));
        let of = |x: Dd, m: Dd, s: Dd| -> Pair {
            let p = (x / t - m).exp() / s;
            (p, p * (Dd::ONE + (x / t).abs() + m.abs()))
        };
        let one = |(&a, &b): (&Dd, &Dd)| {
            let (p, q) = (of(a, ma, sa), of(b, mb, sb));
            (g * (p.0 - q.0), g.abs() * (p.1 + q.1))
        };
        students[r].iter().zip(&teachers[r]).map(one).collect()
    };
    vec![Expected::scaled(&x.shape, x.dtype, (0..students.len()).flat_map(row).collect())]
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let point = pointwise::<Mse>(op, inputs, |_, x, t, _, _| mse(x, t))
        .or_else(|| pointwise::<L1>(op, inputs, |_, x, t, _, _| l1(x, t)))
        .or_else(|| pointwise::<Huber>(op, inputs, |k, x, t, _, _| huber(k.delta, x, t)))
        .or_else(|| pointwise::<SmoothL1>(op, inputs, |k, x, t, _, _| smooth_l1(k.beta, x, t)))
        .or_else(|| pointwise::<Kl>(op, inputs, |k, x, t, _, _| kl(k.log_target, x, t)))
        .or_else(|| pointwise::<Bce>(op, inputs, |_, x, t, w, p| bce(x, t, w, p)));
    if point.is_some() {
        return point;
    }
    if let Some(op) = op.downcast_ref() {
        return Some(class_loss(op, inputs));
    }
    if let Some(op) = op.downcast_ref::<CrossEntropyLossBackward>() {
        return Some(class_loss_backward(&op.loss, inputs));
    }
    if let Some(op) = op.downcast_ref::<CrossEntropyOverwrite>() {
        // The logits come last, here second.
        let mut ordered = inputs.to_vec();
        let logits = ordered.pop()?;
        ordered.insert(1, logits);
        return Some(class_loss_backward(&op.loss, &ordered));
    }
    if let Some(op) = op.downcast_ref() {
        return Some(soft_loss(op, inputs));
    }
    if let Some(op) = op.downcast_ref::<SoftCrossEntropyLossBackward>() {
        return Some(soft_loss_backward(&op.loss, inputs));
    }
    if let Some(op) = op.downcast_ref() {
        return Some(distillation(op, inputs));
    }
    op.downcast_ref().map(|op| distillation_backward(op, inputs))
}

/// A NaN anywhere is a NaN in the result; what infinities give depends on the order of the formula's terms.
pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    let clear = op.is::<PointLoss<Mse>>() || op.is::<PointLoss<L1>>();
    clear.then_some(Specials::NotHuge)
}
