//! The matrix product and the linear layer.

use std::any::Any;

use warpsmith::ops;

use super::dd::{Dd, dd};
use super::index::at;
use super::{Expected, Specials};
use crate::harness::Value;
use crate::harness::layouts::indices;

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
