//! One tensor, seven ways to lie in memory, built with the public view functions. What lies between the elements is NaN
//! (or the largest integer), so that reading it shows.

#![forbid(unsafe_code)]

use super::{Rng, Value, tensor};
use crate::{DType, Device, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Contiguous,
    /// Memory order of the dimensions reversed, or (rank 3 and up, by chance) only that of the last two.
    Transposed,
    /// Cut out of the middle of a larger tensor along the first and the last dimension.
    Offset,
    /// Every second index of every dimension.
    Strided,
    /// Stride 0 along a chance choice of dimensions; the values repeat.
    Expanded,
    /// Contiguous, but dimensions of size 1 have large strides.
    OddOnes,
    /// Contiguous, one element past an aligned address.
    Misaligned,
}

pub const ALL: [Kind; 7] = [
    Kind::Contiguous,
    Kind::Transposed,
    Kind::Offset,
    Kind::Strided,
    Kind::Expanded,
    Kind::OddOnes,
    Kind::Misaligned,
];

/// How one dimension lies in its memory: elements skipped before, distance, elements left behind.
#[derive(Clone, Copy)]
pub struct Cut {
    pub before: usize,
    pub step: usize,
    pub after: usize,
}

const WHOLE: Cut = Cut { before: 0, step: 1, after: 0 };

impl Cut {
    fn end(&self, n: usize) -> usize {
        if n == 0 { self.before } else { self.before + (n - 1) * self.step + 1 }
    }
}

/// A base tensor and the view of it that holds a value: apart, so that the gradient check can make the base a leaf.
pub struct Embedded {
    pub base: Value,
    /// Logical dimension of each memory dimension.
    pub order: Vec<usize>,
    /// By memory dimension.
    pub cuts: Vec<Cut>,
    pub shape: Vec<usize>,
}

impl Embedded {
    /// The view of `base` (a tensor of the base's shape).
    pub fn view(&self, base: &Tensor) -> crate::Result<Tensor> {
        let mut view = base.clone();
        for (m, cut) in self.cuts.iter().enumerate() {
            view = view.slice(m as isize, cut.before, cut.end(self.shape[self.order[m]]), cut.step)?;
        }
        let mut back = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(m, &d)| back[d] = m);
        view.permute(&back)
    }
}

fn garbage(dtype: DType) -> f64 {
    if dtype.is_float() { f64::NAN } else { f64::INFINITY }
}

/// Row-major strides.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    (1..shape.len()).rev().for_each(|d| out[d - 1] = out[d] * shape[d].max(1));
    out
}

/// All multi-indices of `shape` in row-major order.
pub fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let (shape, strides) = (shape.to_vec(), strides(shape));
    let n: usize = shape.iter().product();
    (0..n).map(move |i| (0..shape.len()).map(|d| i / strides[d] % shape[d]).collect())
}

/// `value` put into a larger memory; `filler` lies between.
pub fn embed(value: &Value, order: Vec<usize>, cuts: Vec<Cut>, filler: f64) -> Embedded {
    let shape: Vec<usize> =
        order.iter().zip(&cuts).map(|(&d, cut)| cut.end(value.shape[d]) + cut.after).collect();
    let steps = strides(&shape);
    let mut data = vec![filler; shape.iter().product()];
    for (index, &v) in indices(&value.shape).zip(&value.data) {
        let place = |m: usize| steps[m] * (cuts[m].before + index[order[m]] * cuts[m].step);
        data[(0..order.len()).map(place).sum::<usize>()] = v;
    }
    let base = Value { shape, dtype: value.dtype, data };
    Embedded { base, order, cuts, shape: value.shape.clone() }
}

/// `value` in a layout of `kind` as an embedding; `None` where that kind says nothing new for this shape.
pub fn embedding(value: &Value, kind: Kind, filler: f64, rng: &mut Rng) -> Option<Embedded> {
    let rank = value.shape.len();
    let mut order: Vec<usize> = (0..rank).collect();
    let mut cuts = vec![WHOLE; rank];
    match kind {
        Kind::Transposed if rank >= 2 => {
            if rank > 2 && rng.below(2) == 0 {
                order.swap(rank - 2, rank - 1);
            } else {
                order.reverse();
            }
        }
        Kind::Offset if rank >= 1 => {
            cuts[0] = Cut { before: 2, step: 1, after: 1 };
            cuts[rank - 1] = Cut { before: 3, step: 1, after: 2 };
        }
        Kind::Strided if rank >= 1 => cuts = vec![Cut { before: 1, step: 2, after: 1 }; rank],
        Kind::OddOnes if value.shape.contains(&1) => {
            order.sort_by_key(|&d| value.shape[d] != 1);
            for (m, &d) in order.iter().enumerate().filter(|(_, d)| value.shape[**d] == 1) {
                cuts[m] = Cut { before: 1, step: 1, after: 1 + d % 2 };
            }
        }
        _ => return None,
    }
    Some(embed(value, order, cuts, filler))
}

/// The tensor and its values (which differ from `value` where they repeat), or `None` where the kind says nothing new.
pub fn build(
    value: &Value,
    kind: Kind,
    keep_last: bool,
    rng: &mut Rng,
    device: Device,
) -> Option<(Tensor, Value)> {
    let filler = garbage(value.dtype);
    match kind {
        Kind::Contiguous => Some((value.tensor_on(device), value.clone())),
        Kind::Misaligned => {
            let mut data = vec![filler];
            data.extend(&value.data);
            let n = value.numel();
            let flat = tensor(&data, &[n + 1], value.dtype, device).narrow(0, 1, n).unwrap();
            Some((flat.reshape(&value.shape).unwrap(), value.clone()))
        }
        Kind::Expanded => expanded(value, keep_last, rng, device),
        Kind::Offset if value.shape.is_empty() => {
            let data = [filler, filler, filler, value.data[0], filler];
            Some((tensor(&data, &[5], value.dtype, device).select(0, 3).unwrap(), value.clone()))
        }
        _ => {
            let embedded = embedding(value, kind, filler, rng)?;
            Some((embedded.view(&embedded.base.tensor_on(device)).unwrap(), value.clone()))
        }
    }
}

/// Repeats the first slice along a non-empty chance choice of dimensions (not the last if `keep_last`).
fn expanded(value: &Value, keep_last: bool, rng: &mut Rng, device: Device) -> Option<(Tensor, Value)> {
    let rank = value.shape.len();
    let mut dims: Vec<usize> =
        (0..rank).filter(|&d| value.shape[d] > 1 && !(keep_last && d + 1 == rank)).collect();
    if dims.is_empty() || value.numel() == 0 {
        return None;
    }
    rng.shuffle(&mut dims);
    dims.truncate(1 + rng.below(dims.len()));
    let mut small = value.shape.clone();
    dims.iter().for_each(|&d| small[d] = 1);
    let steps = strides(&value.shape);
    let at = |index: &Vec<usize>| -> f64 {
        let kept = (0..rank).filter(|d| !dims.contains(d));
        value.data[kept.map(|d| index[d] * steps[d]).sum::<usize>()]
    };
    let data: Vec<f64> = indices(&small).map(|i| at(&i)).collect();
    let all: Vec<f64> = indices(&value.shape).map(|i| at(&i)).collect();
    let t = tensor(&data, &small, value.dtype, device).expand(&value.shape).unwrap();
    Some((t, Value { data: all, ..value.clone() }))
}

/// A buffer and, `pad` elements from both its ends, a contiguous tensor of `shape` that holds `inside`; around it lies
/// `outside`.
pub fn framed(
    shape: &[usize],
    dtype: DType,
    pad: usize,
    inside: &[f64],
    outside: f64,
    device: Device,
) -> (Tensor, Tensor) {
    let n: usize = shape.iter().product();
    let mut data = vec![outside; n + 2 * pad];
    data[pad..pad + n].copy_from_slice(inside);
    let buffer = tensor(&data, &[n + 2 * pad], dtype, device);
    let out = buffer.narrow(0, pad, n).unwrap().reshape(shape).unwrap();
    (buffer, out)
}
