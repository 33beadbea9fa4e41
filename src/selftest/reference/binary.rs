//! Functions of two operands with broadcasting, their derivatives, comparisons, choice by a mask, and dropout.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::DType;
use crate::ops::*;

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;
use crate::selftest::layouts::{indices, strides};

/// The shape that shapes broadcast to.
fn common(inputs: &[Value]) -> Vec<usize> {
    let rank = inputs.iter().map(|v| v.shape.len()).max().unwrap_or(0);
    let at = |v: &Value, d: usize| (d + v.shape.len()).checked_sub(rank).map_or(1, |k| v.shape[k]);
    let size = |d| inputs.iter().map(|v| at(v, d)).find(|&n| n != 1).unwrap_or(1);
    (0..rank).map(size).collect()
}

/// `x` broadcast to `shape`, in row-major order.
pub fn broadcast(x: &Value, shape: &[usize]) -> Vec<Dd> {
    let (lead, steps) = (shape.len() - x.shape.len(), strides(&x.shape));
    let at = |i: Vec<usize>| -> usize {
        (0..x.shape.len()).map(|d| if x.shape[d] == 1 { 0 } else { i[lead + d] * steps[d] }).sum()
    };
    indices(shape).map(|i| dd(x.data[at(i)])).collect()
}

/// `f` of the operands, element by element.
fn each(inputs: &[Value], dtype: DType, f: impl Fn(&[Dd]) -> Dd) -> Vec<Expected> {
    let shape = common(inputs);
    let all: Vec<Vec<Dd>> = inputs.iter().map(|v| broadcast(v, &shape)).collect();
    let n: usize = shape.iter().product();
    let value = |i: usize| f(&all.iter().map(|v| v[i]).collect::<Vec<_>>());
    vec![Expected::of(&shape, dtype, (0..n).map(value).collect())]
}

/// The reference of `Zip<F>` and `ZipBackward<F>`: the value, and the derivatives times dy.
fn zip<F: Binary>(
    op: &dyn Any,
    inputs: &[Value],
    f: impl Fn(Dd, Dd) -> Dd,
    df: [&dyn Fn(Dd, Dd, Dd) -> Dd; 2],
) -> Option<Vec<Expected>> {
    let dtype = inputs[0].dtype;
    if op.is::<Zip<F>>() {
        return Some(each(inputs, dtype, |v| f(v[0], v[1])));
    }
    let operand = op.downcast_ref::<ZipBackward<F>>()?.operand;
    // The backward is given those of a and b that it reads.
    let [reads_a, reads_b] = F::READS[operand];
    let given = |v: &[Dd]| {
        let a = if reads_a { v[1] } else { dd(f64::NAN) };
        let b = if reads_b { v[1 + reads_a as usize] } else { dd(f64::NAN) };
        df[operand](v[0], a, b)
    };
    Some(each(inputs, dtype, given))
}

fn compare<F: Comparison>(
    op: &dyn Any,
    inputs: &[Value],
    holds: fn(f64, f64) -> bool,
) -> Option<Vec<Expected>> {
    let one = |v: &[Dd]| if holds(v[0].get(), v[1].get()) { Dd::ONE } else { Dd::ZERO };
    op.is::<Compare<F>>().then(|| each(inputs, DType::U8, one))
}

/// The more extreme of two; NaN if either is.
fn extreme(a: Dd, b: Dd, before: fn(f64, f64) -> bool) -> Dd {
    if a.is_nan() || b.is_nan() {
        return dd(f64::NAN);
    }
    // Of two zeros the second: which it is carries no meaning.
    if before(a.get(), b.get()) { a } else { b }
}

/// The share of an operand in the gradient of an extremum: all, half at a tie, nothing.
fn share(dy: Dd, own: Dd, other: Dd, before: fn(f64, f64) -> bool) -> Dd {
    if own.get() == other.get() {
        dy * dd(0.5)
    } else if before(own.get(), other.get()) {
        dy
    } else {
        Dd::ZERO
    }
}

/// Philox 4x32-10 as Salmon et al. (SC 2011) define it: one round is two wide products.
fn philox(mut key: (u32, u32), mut x: (u32, u32, u32, u32)) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = x.0 as u64 * 0xD2511F53;
        let p1 = x.2 as u64 * 0xCD9E8D57;
        x = ((p1 >> 32) as u32 ^ x.1 ^ key.0, p1 as u32, (p0 >> 32) as u32 ^ x.3 ^ key.1, p0 as u32);
        key = (key.0.wrapping_add(0x9E3779B9), key.1.wrapping_add(0xBB67AE85));
    }
    [x.0, x.1, x.2, x.3]
}

/// Whether dropout keeps the element: word `offset + i` of the stream, as a number of 24 bits, is at least p.
fn kept(op: &Dropout, step: f64, i: usize) -> bool {
    let at = op.offset + i as u64;
    let block = at / 4;
    let counter = (block as u32, (block >> 32) as u32, step as u32, op.site);
    let word = philox((op.seed as u32, (op.seed >> 32) as u32), counter)[(at % 4) as usize];
    (word >> 8) as f64 / 16777216.0 >= op.p
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let larger: fn(f64, f64) -> bool = |a, b| a > b;
    let smaller: fn(f64, f64) -> bool = |a, b| a < b;
    let i = inputs;
    if op.is::<Where>() {
        return Some(each(i, i[1].dtype, |v| if v[0].get() != 0.0 { v[1] } else { v[2] }));
    }
    if let Some(op) = op.downcast_ref::<Dropout>() {
        let x = &i[0];
        let one = |(k, &v): (usize, &f64)| {
            // Infinity times 0 is NaN: a dropped element is multiplied by 0.
            let factor = if kept(op, i[1].data[0], k) { Dd::ONE / (Dd::ONE - dd(op.p)) } else { Dd::ZERO };
            dd(v) * factor
        };
        return Some(vec![Expected::of(&x.shape, x.dtype, x.data.iter().enumerate().map(one).collect())]);
    }
    let first: &dyn Fn(Dd, Dd, Dd) -> Dd = &|dy, _, _| dy;
    zip::<Add>(op, i, |a, b| a + b, [first, first])
        .or_else(|| zip::<Sub>(op, i, |a, b| a - b, [first, &|dy, _, _| -dy]))
        .or_else(|| zip::<Mul>(op, i, |a, b| a * b, [&|dy, _, b| dy * b, &|dy, a, _| dy * a]))
        .or_else(|| zip::<Div>(op, i, |a, b| a / b, [&|dy, _, b| dy / b, &|dy, a, b| -(dy * a / (b * b))]))
        .or_else(|| {
            let da =
                |dy: Dd, a: Dd, b: Dd| if b.get() == 0.0 { Dd::ZERO } else { dy * b * a.pow(b - Dd::ONE) };
            zip::<Pow>(op, i, |a, b| a.pow(b), [&da, &|dy, a, b| dy * a.pow(b) * a.ln()])
        })
        .or_else(|| {
            let df: [&dyn Fn(Dd, Dd, Dd) -> Dd; 2] =
                [&|dy, a, b| share(dy, a, b, larger), &|dy, a, b| share(dy, b, a, larger)];
            zip::<Maximum>(op, i, |a, b| extreme(a, b, larger), df)
        })
        .or_else(|| {
            let df: [&dyn Fn(Dd, Dd, Dd) -> Dd; 2] =
                [&|dy, a, b| share(dy, a, b, smaller), &|dy, a, b| share(dy, b, a, smaller)];
            zip::<Minimum>(op, i, |a, b| extreme(a, b, smaller), df)
        })
        .or_else(|| compare::<Eq>(op, i, |a, b| a == b))
        .or_else(|| compare::<Ne>(op, i, |a, b| a != b))
        .or_else(|| compare::<Lt>(op, i, |a, b| a < b))
        .or_else(|| compare::<Le>(op, i, |a, b| a <= b))
        .or_else(|| compare::<Gt>(op, i, |a, b| a > b))
        .or_else(|| compare::<Ge>(op, i, |a, b| a >= b))
}

pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    let clear = op.is::<Zip<Add>>()
        || op.is::<Zip<Sub>>()
        || op.is::<Zip<Mul>>()
        || op.is::<Zip<Div>>()
        || op.is::<Zip<Pow>>()
        || op.is::<Zip<Maximum>>()
        || op.is::<Zip<Minimum>>()
        || op.is::<Compare<Eq>>()
        || op.is::<Compare<Ne>>()
        || op.is::<Compare<Lt>>()
        || op.is::<Compare<Le>>()
        || op.is::<Compare<Gt>>()
        || op.is::<Compare<Ge>>()
        || op.is::<Where>()
        || op.is::<Dropout>();
    clear.then_some(Specials::All)
}
