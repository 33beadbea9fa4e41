//! Sorting, the first few of a sorted row, and running sums.

#![forbid(unsafe_code)]

use std::any::Any;
use std::cmp::Ordering;

use crate::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;
use crate::selftest::layouts::{indices, strides};

/// NaN above all; zeros alike.
fn order(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) if a < b => Ordering::Less,
        (false, false) if a > b => Ordering::Greater,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ => Ordering::Equal,
    }
}

/// `shape` with another size along `dim`; 0-d is a row of one.
fn resized(shape: &[usize], dim: usize, size: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if !shape.is_empty() {
        shape[dim] = size;
    }
    shape
}

/// The positions of a row: the one through `index` along `dim`.
fn row(x: &Value, index: &[usize], dim: usize) -> Vec<usize> {
    if x.shape.is_empty() {
        return vec![0];
    }
    let steps = strides(&x.shape);
    let start: usize = (0..index.len()).filter(|&d| d != dim).map(|d| index[d] * steps[d]).sum();
    (0..x.shape[dim]).map(|j| start + j * steps[dim]).collect()
}

/// Values and indices of the first `keep` elements along `dim`, equal ones in order.
fn sorted(x: &Value, dim: usize, descending: bool, keep: usize) -> Option<Vec<Expected>> {
    let shape = resized(&x.shape, dim, keep);
    let steps = strides(&shape);
    let count = shape.iter().product();
    let (mut values, mut places) = (vec![Dd::ZERO; count], vec![Dd::ZERO; count]);
    for first in indices(&resized(&x.shape, dim, usize::from(count > 0))) {
        let row = row(x, &first, dim);
        let mut list: Vec<usize> = (0..row.len()).collect();
        // The library's own sort, which is stable.
        list.sort_by(|&a, &b| {
            let order = order(x.data[row[a]], x.data[row[b]]);
            if descending { order.reverse() } else { order }
        });
        for (rank, &j) in list.iter().take(keep).enumerate() {
            let mut index = first.clone();
            if let Some(at) = index.get_mut(dim) {
                *at = rank;
            }
            let to: usize = index.iter().zip(&steps).map(|(i, s)| i * s).sum();
            (values[to], places[to]) = (dd(x.data[row[j]]), dd(j as f64));
        }
    }
    Some(vec![Expected::of(&shape, x.dtype, values), Expected::of(&shape, DType::I64, places)])
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let x = inputs.first()?;
    if let Some(op) = op.downcast_ref::<ops::Sort>() {
        let n = if x.shape.is_empty() { 1 } else { x.shape[op.dim] };
        return sorted(x, op.dim, op.descending, n);
    }
    if let Some(op) = op.downcast_ref::<ops::TopK>() {
        if x.shape.is_empty() && op.k == 0 {
            let none = |dtype| Expected::of(&[0], dtype, Vec::new());
            return Some(vec![none(x.dtype), none(DType::I64)]);
        }
        return sorted(x, op.dim, op.largest, op.k);
    }
    if let Some(op) = op.downcast_ref::<ops::SortBackward>() {
        let shape = resized(&x.shape, op.dim, op.size);
        let (steps, mut values) = (strides(&shape), vec![Dd::ZERO; shape.iter().product()]);
        for ((mut index, &v), &place) in indices(&x.shape).zip(&x.data).zip(&inputs[1].data) {
            if let Some(at) = index.get_mut(op.dim) {
                *at = place as usize;
            }
            values[index.iter().zip(&steps).map(|(i, s)| i * s).sum::<usize>()] = dd(v);
        }
        return Some(vec![Expected::of(&shape, x.dtype, values)]);
    }
    let op = op.downcast_ref::<ops::CumSum>()?;
    let mut sums = vec![(Dd::ZERO, Dd::ZERO); x.data.len()];
    for first in indices(&resized(&x.shape, op.dim, usize::from(!x.data.is_empty()))) {
        let mut row = row(x, &first, op.dim);
        if op.reverse {
            row.reverse();
        }
        let mut sum = (Dd::ZERO, Dd::ZERO);
        for at in row {
            let v = dd(x.data[at]);
            sum = (sum.0 + v, sum.1 + v.abs());
            sums[at] = sum;
        }
    }
    let dtype = if x.dtype.is_float() { x.dtype } else { DType::I64 };
    Some(vec![Expected::scaled(&x.shape, dtype, sums)])
}

pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    if op.is::<ops::CumSum>() {
        return Some(Specials::NotHuge);
    }
    let moves = op.is::<ops::Sort>() || op.is::<ops::TopK>() || op.is::<ops::SortBackward>();
    moves.then_some(Specials::All)
}
