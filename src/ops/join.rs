//! Putting tensors together: cat and stack; and padding, which puts one tensor into a larger one.
//!
//! Both write each output element once, in parallel over the first dimension. Their gradients are views of dy, so backward
//! computes nothing. Mixed element types are refused, as everywhere.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1, size_class};
use crate::cpu::par;
use crate::cpu::strided::Runs;
use crate::device::Stream;
use crate::device::kernels::join;
use crate::device::launch::{Dims, Dst, Src, Strides, merge};
use crate::dtype::Element;
use crate::shape::{Layout, MAX_RANK};
use crate::tensor::{BackwardCx, Meta, Out, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

super::family!(Cat, Pad);

/// Elements that one task writes.
const GRAIN: usize = 16 * 1024;

/// Any number of tensors one after the other along one dimension; they agree in the other dimensions.
/// Gradient: each input's is its part of dy.
#[derive(Clone, Copy, Debug)]
pub struct Cat {
    /// The dimension.
    pub dim: usize,
}

impl Op for Cat {
    const NAME: &'static str = "cat";

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let Some(first) = inputs.first() else {
            return Err(Error::argument("needs at least one tensor"));
        };
        let mut total = 0usize;
        for (i, x) in inputs.iter().enumerate() {
            if x.dtype != first.dtype {
                let message = format!("input 0 is {} but input {i} is {}", first.dtype, x.dtype);
                return Err(Error::dtype(Self::NAME, message)
                    .with_help(format!("cast one of them, as in to_dtype(DType::{:?})", first.dtype)));
            }
            let fits = self.dim < first.shape.rank()
                && x.shape.rank() == first.shape.rank()
                && x.shape.with(self.dim, 0) == first.shape.with(self.dim, 0);
            if !fits {
                let message = format!(
                    "input {i} of {} does not fit input 0 of {} along dimension {}",
                    x.shape, first.shape, self.dim
                );
                return Err(Error::shape(Self::NAME, message));
            }
            total = total
                .checked_add(x.shape[self.dim])
                .ok_or_else(|| Error::shape(Self::NAME, "the sizes of the inputs overflow"))?;
        }
        Ok(Plan::one(first.with_shape(Shape::new(&first.shape.with(self.dim, total))?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(outputs[0].dtype(), T => self.body::<T>(inputs, &mut outputs[0]));
        Ok(())
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let strides = outputs[0].shape().strides();
        let mut dst = outputs[0].dst();
        let (len, mut start) = (dst.len(), 0);
        for x in inputs {
            if x.numel() > 0 {
                place(s, x.src(), x.layout(), dst.again().part(start, len - start), &strides)?;
            }
            start += (x.shape()[self.dim] * strides[self.dim]) as u64;
        }
        Ok(())
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let mut start = 0;
        for i in 0..cx.node.inputs.len() {
            let size = cx.input_meta(i).shape[self.dim];
            if cx.needs(i) {
                cx.give(i, dy.narrow(self.dim as isize, start, size)?)?;
            }
            start += size;
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let many: Vec<Vec<usize>> = (0..40).map(|i| vec![2, i % 3]).collect();
        let lists: Vec<(usize, Vec<Vec<usize>>)> = vec![
            (0, vec![vec![7]]),
            (0, vec![vec![1], vec![31], vec![0], vec![2]]),
            (0, vec![vec![5, 3], vec![1, 3]]),
            (1, vec![vec![5, 3], vec![5, 1], vec![5, 9]]),
            (1, vec![vec![2, 3, 17], vec![2, 4, 17]]),
            (2, vec![vec![2, 3, 1], vec![2, 3, 0], vec![2, 3, 2]]),
            (1, vec![vec![0, 3], vec![0, 2]]),
            (1, vec![vec![2, 1023], vec![2, 1025]]),
            (1, many),
        ];
        let case = |(dim, shapes): &(usize, Vec<Vec<usize>>)| Case {
            op: Cat { dim: *dim },
            inputs: shapes.iter().map(|s| Arg::new(s, Values::Integers(-9, 9))).collect(),
        };
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list: lists.iter().map(case).collect() }
    }
}

impl Cat {
    fn body<T: Element>(&self, inputs: &[View<'_>], out: &mut Out<'_>) {
        let shape = out.shape();
        let strides = shape.strides();
        let out = out.slice::<T>();
        if self.dim == 0 {
            // Every input has its own stretch of the output.
            let mut rest = out;
            for x in inputs {
                let (own, after) = rest.split_at_mut(x.numel());
                rest = after;
                let plan = Layout::contiguous(x.shape());
                write_rows(own, plan.shape, |part, rows| {
                    copy_rows(x, rows.clone(), part, &plan.slice(0, 0, rows.len(), 1)?)
                });
            }
            return;
        }
        write_rows(out, shape, |part, rows| {
            let mut start = 0;
            for x in inputs {
                let shape = x.shape().with(0, rows.len());
                copy_rows(x, rows.clone(), part, &Layout { shape, strides, offset: start })?;
                start += x.shape()[self.dim] * strides[self.dim];
            }
            Ok(())
        });
    }
}

/// Copies `src` on a GPU to the places of `dst` that `strides` name.
fn place(s: &Stream, src: Src<'_>, layout: &Layout, dst: Dst<'_>, strides: &Shape) -> Result<()> {
    let class = size_class(src.dtype());
    let (x, y) = (src.cast(class), dst.cast(class));
    let (mut dims, [mut xs, mut ys]) = merge(&layout.shape, [&layout.strides[..], &strides[..]]);
    let vector = 16 / class.size();
    let mut n = layout.numel() as u64;
    let last = dims.rank.wrapping_sub(1) as usize;
    // All but the innermost dimension step over whole vectors.
    let whole = |by: &Strides| by.by[last] == 1 && by.by[..last].iter().all(|b| b % vector as i64 == 0);
    let wide = dims.rank > 0
        && dims.size[last] % vector as u64 == 0
        && whole(&xs)
        && whole(&ys)
        && (x.address() | y.address()) % 16 == 0;
    if wide {
        dims.size[last] /= vector as u64;
        n /= vector as u64;
        for by in [&mut xs, &mut ys] {
            by.by[..last].iter_mut().for_each(|b| *b /= vector as i64);
        }
    }
    join::Place { wide: wide.into(), x, y, dims, xs, ys, n }.launch(s)
}

/// Calls `write` for parts of `out` (contiguous, of `shape`) with the rows of the first dimension that they hold.
fn write_rows<T: Element>(
    out: &mut [T],
    shape: Shape,
    write: impl Fn(&mut [T], std::ops::Range<usize>) -> Result<()> + Sync,
) {
    if out.is_empty() {
        return;
    }
    let row = out.len() / shape[0];
    let per = (GRAIN / row).max(1);
    par::for_each_chunk_mut(out, per * row, |c, part| {
        let first = c * per;
        let rows = first..first + part.len() / row;
        write(part, rows).expect("rows lie within the shape");
    });
}

/// Copies `rows` of the first dimension of `x` to the places of `dst` that `layout` names.
fn copy_rows<T: Element>(
    x: &View<'_>,
    rows: std::ops::Range<usize>,
    dst: &mut [T],
    layout: &Layout,
) -> Result<()> {
    let from = x.layout().slice(0, rows.start, rows.end, 1)?;
    let runs = Runs::new([&from, layout]);
    let ([xs, ds], len, data) = (runs.strides, runs.len, x.data::<T>());
    runs.visit(0..runs.count, |_, [x, d]| {
        if xs == 1 && ds == 1 {
            dst[d..d + len].copy_from_slice(&data[x..x + len]);
        } else {
            (0..len).for_each(|k| dst[d + k * ds] = data[x + k * xs]);
        }
    });
    Ok(())
}

/// A larger tensor with the input somewhere inside and one value around it. Gradient: the inner part of dy.
#[derive(Clone, Copy, Debug)]
pub struct Pad {
    /// How much is put before each dimension, outermost first; 0 beyond the rank.
    pub before: [usize; MAX_RANK],
    /// How much is put behind each dimension.
    pub after: [usize; MAX_RANK],
    /// The value around, converted to the tensor's type as `Tensor::full` does.
    pub value: f64,
}

impl Op for Pad {
    const NAME: &'static str = "pad";
    const INPUTS: RangeInclusive<usize> = 1..=1;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let mut shape = inputs[0].shape;
        for (d, &size) in inputs[0].shape.iter().enumerate() {
            let padded = self.before[d].checked_add(self.after[d]).and_then(|p| p.checked_add(size));
            let overflows = || Error::shape(Self::NAME, format!("dimension {d} overflows"));
            shape = shape.with(d, padded.ok_or_else(overflows)?);
        }
        Ok(Plan::one(inputs[0].with_shape(Shape::new(&shape)?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(outputs[0].dtype(), T => self.body::<T>(inputs[0], &mut outputs[0]));
        Ok(())
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (x, shape, dtype) = (inputs[0], outputs[0].shape(), inputs[0].dtype());
        let mut bits = [0; 8];
        dispatch!(dtype, T => {
            bits[..dtype.size()].copy_from_slice(bytemuck::bytes_of(&<T as Element>::from_f64(self.value)))
        });
        let class = size_class(dtype);
        join::Pad {
            x: x.src().cast(class),
            y: outputs[0].dst().cast(class),
            dims: Dims::of(&shape),
            before: Dims::of(&self.before[..shape.rank()]),
            inner: Dims::of(&x.shape()),
            xs: Strides::of(&x.layout().strides),
            n: shape.numel() as u64,
            bits: u64::from_le_bytes(bits),
        }
        .launch(s)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let shape = cx.input_meta(0).shape;
        let mut inner = dy.clone();
        for (d, &size) in shape.iter().enumerate().filter(|(d, _)| self.before[*d] + self.after[*d] > 0) {
            inner = inner.narrow(d as isize, self.before[d], size)?;
        }
        cx.give(0, inner)
    }

    fn cases() -> Cases<Self> {
        type Padding<'a> = (&'a [usize], &'a [(usize, usize)], f64);
        let list: [Padding<'_>; 8] = [
            (&[], &[], 1.0),
            (&[7], &[(2, 3)], 0.0),
            (&[0], &[(1, 1)], 3.0),
            (&[5, 13], &[(0, 3)], -2.0),
            (&[5, 13], &[(3, 0), (1, 1)], 0.0),
            (&[2, 3, 17], &[(1, 2), (0, 0), (2, 0)], 1.0),
            (&[3, 0, 2], &[(0, 0), (1, 0)], 1.0),
            (&[2, 33], &[(0, 31)], 0.0),
        ];
        let case = |&(shape, pads, value): &Padding<'_>| Case {
            op: Pad::of(shape.len(), pads, value),
            inputs: vec![Arg::new(shape, Values::Integers(-9, 9))],
        };
        let list = list.iter().map(case).collect();
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list }
    }
}

impl Pad {
    /// From pairs for the last dimensions, the last one first; there are at most `rank`.
    fn of(rank: usize, pads: &[(usize, usize)], value: f64) -> Pad {
        let mut op = Pad { before: [0; MAX_RANK], after: [0; MAX_RANK], value };
        for (i, &(before, after)) in pads.iter().enumerate() {
            (op.before[rank - 1 - i], op.after[rank - 1 - i]) = (before, after);
        }
        op
    }

    fn body<T: Element>(&self, x: View<'_>, out: &mut Out<'_>) {
        let (shape, value) = (out.shape(), T::from_f64(self.value));
        let out = out.slice::<T>();
        if shape.rank() == 0 {
            out[0] = x.data::<T>()[0];
            return;
        }
        let strides = shape.strides();
        // Where the input begins in a row of the output.
        let offset: usize = (1..shape.rank()).map(|d| self.before[d] * strides[d]).sum();
        let (before, size) = (self.before[0], x.shape()[0]);
        write_rows(out, shape, |part, rows| {
            part.fill(value);
            let inside = |row: usize| row.saturating_sub(before).min(size);
            let own = inside(rows.start)..inside(rows.end);
            if own.is_empty() || x.numel() == 0 {
                return Ok(());
            }
            let down = (own.start + before - rows.start) * strides[0];
            let layout = Layout { shape: x.shape().with(0, own.len()), strides, offset: offset + down };
            copy_rows(&x, own, part, &layout)
        });
    }
}

impl Tensor {
    /// `tensors` one after the other along `dim`; they agree in the other dimensions and in type. Errors on an empty list.
    #[track_caller]
    pub fn cat(tensors: &[&Tensor], dim: isize) -> Result<Tensor> {
        let first = tensors.first().ok_or_else(|| no_tensors(Cat::NAME))?;
        let dim = first.shape().dim(Cat::NAME, dim)?;
        run1(Cat { dim }, tensors)
    }

    /// `tensors`, all of one shape, along a new dimension at position `dim` of the result. Errors on an empty list.
    #[track_caller]
    pub fn stack(tensors: &[&Tensor], dim: isize) -> Result<Tensor> {
        let first = tensors.first().ok_or_else(|| no_tensors("stack"))?;
        if let Some((i, other)) = tensors.iter().enumerate().find(|(_, t)| t.shape() != first.shape()) {
            let message = format!("input {i} is {} but input 0 is {}", other.shape(), first.shape());
            return Err(Error::shape("stack", message));
        }
        let parts = tensors.iter().map(|t| t.unsqueeze(dim)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts.iter().collect::<Vec<_>>(), dim)
    }

    /// This tensor with `value` around it: `pads` holds how much goes before and behind each dimension, from the **last**
    /// dimension backwards, as in PyTorch's `pad`; dimensions without a pair stay as they are. For a matrix,
    /// `&[(1, 2)]` puts one column before and two behind. Errors if there are more pairs than dimensions.
    #[track_caller]
    pub fn pad(&self, pads: &[(usize, usize)], value: f64) -> Result<Tensor> {
        if pads.len() > self.rank() {
            let message =
                format!("{} pairs for the {} dimensions of {}", pads.len(), self.rank(), self.shape());
            return Err(Error::shape(Pad::NAME, message));
        }
        run1(Pad::of(self.rank(), pads, value), &[self])
    }
}

fn no_tensors(op: &'static str) -> Error {
    Error::argument("needs at least one tensor").with_op(op)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{GradCheck, gradcheck};
    use crate::{Device, ErrorKind};

    fn counting(start: usize, shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        let data: Vec<f64> = (start..start + n).map(|i| i as f64).collect();
        Tensor::from_slice(&data, shape, Device::cpu()).unwrap()
    }

    #[test]
    fn pieces_of_a_split_go_back_together() {
        for shape in [[7, 40, 90], [300, 2, 90], [1, 3, 2]] {
            let x = counting(0, &shape);
            for (dim, size) in shape.into_iter().enumerate() {
                let sizes = [size / 2, 0, size - size / 2];
                let parts = x.split(&sizes, dim as isize).unwrap();
                let whole = Tensor::cat(&parts.iter().collect::<Vec<_>>(), dim as isize - 3).unwrap();
                assert_eq!(whole.to_vec::<f64>().unwrap(), x.to_vec::<f64>().unwrap());
            }
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let inputs = [counting(0, &[2, 3]), counting(9, &[2, 1])];
        let cat = |x: &[Tensor]| Ok(vec![Tensor::cat(&[&x[0], &x[1], &x[0]], 1)?]);
        gradcheck(cat, &inputs, GradCheck::default()).unwrap();
        let stack = |x: &[Tensor]| Ok(vec![Tensor::stack(&[&x[0], &x[0].contiguous()?], -1)?]);
        gradcheck(stack, &inputs[..1], GradCheck::default()).unwrap();
        let pad = |x: &[Tensor]| Ok(vec![x[0].t()?.pad(&[(1, 0), (0, 2)], 3.0)?]);
        gradcheck(pad, &inputs[..1], GradCheck::default()).unwrap();
        // More inputs than the tape's save mask has bits.
        let many = |x: &[Tensor]| Ok(vec![Tensor::cat(&vec![&x[1]; 70], 0)?]);
        gradcheck(many, &inputs, GradCheck::default()).unwrap();
    }

    #[test]
    fn pads_count_from_the_last_dimension() {
        let x = counting(1, &[2, 2]);
        let y = x.pad(&[(1, 0), (0, 1)], 9.0).unwrap();
        assert_eq!(y.dims(), [3, 3]);
        assert_eq!(y.to_vec::<f64>().unwrap(), [9.0, 1.0, 2.0, 9.0, 3.0, 4.0, 9.0, 9.0, 9.0]);
        let tall = counting(0, &[3, 70, 300]).pad(&[(2, 1), (0, 0), (400, 400)], -1.0).unwrap();
        let inner = tall.narrow(0, 400, 3).unwrap().narrow(2, 2, 300).unwrap();
        assert_eq!(inner.to_vec::<f64>().unwrap(), counting(0, &[3, 70, 300]).to_vec::<f64>().unwrap());
        let around = tall.to_vec::<f64>().unwrap().iter().filter(|&&v| v == -1.0).count();
        assert_eq!(around, tall.numel() - 3 * 70 * 300);
        let two = x.pad(&[(0, 0); 3], 0.0).unwrap_err();
        assert_eq!(two.message(), "3 pairs for the 2 dimensions of [2, 2]");
        assert_eq!(x.pad(&[(usize::MAX, 1)], 0.0).unwrap_err().kind(), ErrorKind::Shape);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (a, b) = (counting(0, &[2, 3]), counting(0, &[2, 4]));
        let e = Tensor::cat(&[&a, &b], 0).unwrap_err();
        assert_eq!(e.message(), "input 1 of [2, 4] does not fit input 0 of [2, 3] along dimension 0");
        let e = Tensor::cat(&[&a, &b.to_dtype(DType::F32).unwrap()], 1).unwrap_err();
        assert_eq!((e.kind(), e.message()), (ErrorKind::DType, "input 0 is f64 but input 1 is f32"));
        assert_eq!(Tensor::cat(&[], 0).unwrap_err().kind(), ErrorKind::Argument);
        assert!(Tensor::stack(&[&a, &b], 0).is_err());
        assert!(Tensor::cat(&[&counting(0, &[])], 0).is_err());
    }
}
