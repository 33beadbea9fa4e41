//! Lookup and addition by index, one-hot rows, concatenation and padding.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;
use crate::selftest::layouts::{indices, strides};

/// The value of `x` at a multi-index.
pub fn at(x: &Value, index: &[usize]) -> f64 {
    x.data[index.iter().zip(strides(&x.shape)).map(|(i, s)| i * s).sum::<usize>()]
}

/// Values picked from `x`: the element of the result at `i` is that of `x` at `from(i)`.
fn picked(x: &Value, shape: &[usize], from: impl Fn(&[usize]) -> Vec<usize>) -> Option<Vec<Expected>> {
    let values = indices(shape).map(|i| dd(at(x, &from(&i)))).collect();
    Some(vec![Expected::of(shape, x.dtype, values)])
}

/// `dy` added into zeros of `shape`: its element at `i` goes to `to(i)`.
fn scattered(dy: &Value, shape: &[usize], to: impl Fn(&[usize]) -> Vec<usize>) -> Option<Vec<Expected>> {
    let mut sums = vec![(Dd::ZERO, Dd::ZERO); shape.iter().product()];
    let steps = strides(shape);
    for (index, &v) in indices(&dy.shape).zip(&dy.data) {
        let place: usize = to(&index).iter().zip(&steps).map(|(i, s)| i * s).sum();
        sums[place] = (sums[place].0 + dd(v), sums[place].1 + dd(v).abs());
    }
    Some(vec![Expected::scaled(shape, dy.dtype, sums)])
}

fn replaced(index: &[usize], dim: usize, by: f64) -> Vec<usize> {
    let mut out = index.to_vec();
    out[dim] = by as usize;
    out
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if let Some(op) = op.downcast_ref::<ops::Cat>() {
        let mut shape = inputs[0].shape.clone();
        shape[op.dim] = inputs.iter().map(|x| x.shape[op.dim]).sum();
        let value = |mut index: Vec<usize>| {
            for x in inputs {
                if index[op.dim] < x.shape[op.dim] {
                    return dd(at(x, &index));
                }
                index[op.dim] -= x.shape[op.dim];
            }
            unreachable!("the sizes add up")
        };
        return Some(vec![Expected::of(&shape, inputs[0].dtype, indices(&shape).map(value).collect())]);
    }
    let x = inputs.first()?;
    if let Some(op) = op.downcast_ref::<ops::Pad>() {
        let rank = x.shape.len();
        let shape: Vec<usize> = (0..rank).map(|d| op.before[d] + x.shape[d] + op.after[d]).collect();
        let value = |index: Vec<usize>| {
            let inside = (0..rank).all(|d| index[d] >= op.before[d] && index[d] < op.before[d] + x.shape[d]);
            let inner: Vec<usize> = (0..rank).map(|d| index[d].wrapping_sub(op.before[d])).collect();
            dd(if inside { at(x, &inner) } else { super::round::to(x.dtype, op.value) })
        };
        return Some(vec![Expected::of(&shape, x.dtype, indices(&shape).map(value).collect())]);
    }
    if let Some(op) = op.downcast_ref::<ops::OneHot>() {
        let mut shape = x.shape.clone();
        shape.push(op.classes);
        let last = x.shape.len();
        let hot = |i: Vec<usize>| dd(if at(x, &i[..last]) as usize == i[last] { 1.0 } else { 0.0 });
        return Some(vec![Expected::of(&shape, DType::I64, indices(&shape).map(hot).collect())]);
    }
    let ids = inputs.get(1)?;
    if let Some(op) = op.downcast_ref::<ops::ScatterAdd>() {
        let mut sums: Vec<(Dd, Dd)> = x.data.iter().map(|&v| (dd(v), dd(v).abs())).collect();
        let steps = strides(&x.shape);
        for (index, &v) in indices(&ids.shape).zip(&inputs[2].data) {
            let to = replaced(&index, op.dim, at(ids, &index));
            let place: usize = to.iter().zip(&steps).map(|(i, s)| i * s).sum();
            sums[place] = (sums[place].0 + dd(v), sums[place].1 + dd(v).abs());
        }
        return Some(vec![Expected::scaled(&x.shape, x.dtype, sums)]);
    }
    if op.is::<ops::Embedding>() {
        let mut shape = ids.shape.clone();
        shape.push(x.shape[1]);
        let last = ids.shape.len();
        return picked(x, &shape, |i| vec![at(ids, &i[..last]) as usize, i[last]]);
    }
    if let Some(op) = op.downcast_ref::<ops::EmbeddingBackward>() {
        let last = ids.shape.len();
        return scattered(x, &[op.rows, x.shape[last]], |i| vec![at(ids, &i[..last]) as usize, i[last]]);
    }
    if let Some(op) = op.downcast_ref::<ops::Gather>() {
        return picked(x, &ids.shape, |i| replaced(i, op.dim, at(ids, i)));
    }
    if let Some(op) = op.downcast_ref::<ops::GatherBackward>() {
        return scattered(x, op.shape.dims(), |i| replaced(i, op.dim, at(ids, i)));
    }
    if let Some(op) = op.downcast_ref::<ops::IndexSelect>() {
        let mut shape = x.shape.clone();
        shape[op.dim] = ids.numel();
        return picked(x, &shape, |i| replaced(i, op.dim, ids.data[i[op.dim]]));
    }
    if let Some(op) = op.downcast_ref::<ops::IndexSelectBackward>() {
        let mut shape = x.shape.clone();
        shape[op.dim] = op.size;
        return scattered(x, &shape, |i| replaced(i, op.dim, ids.data[i[op.dim]]));
    }
    None
}

pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    if op.is::<ops::EmbeddingBackward>()
        || op.is::<ops::GatherBackward>()
        || op.is::<ops::IndexSelectBackward>()
        || op.is::<ops::ScatterAdd>()
    {
        return Some(Specials::NotHuge);
    }
    let copies = op.is::<ops::Cat>()
        || op.is::<ops::Pad>()
        || op.is::<ops::Embedding>()
        || op.is::<ops::Gather>()
        || op.is::<ops::IndexSelect>();
    copies.then_some(Specials::All)
}
