//! Losses of single elements: one driver for the forward sum and the two gradients; a [`PointKind`] says the formulas.
//!
//! Operands of any layout and type are brought to blocks of the accumulator's type, so that the formulas run over plain
//! slices; contiguous f32 and f64 operands are read where they are.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use std::fmt::Debug;
use std::ops::Range;

use super::gpu::Sums;
use super::{BLOCK, GRAIN, Reduction, lane_sum, no_gradient, same_float};
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::cpu::strided::Runs;
use crate::device::Stream;
use crate::device::kernels::loss as kernels;
use crate::device::launch::{Dims, Src, Strides, merge};
use crate::dtype::{Element, Float, Real};
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// The formulas of a loss of single elements: input x, target t, weight w and weight of the positive class p (1 where the
/// loss has none).
pub trait PointKind: Copy + Debug + Send + Sync + 'static {
    /// The loss's name.
    const NAME: &'static str;
    /// The name of its backward op.
    const BACKWARD: &'static str;
    /// How exact the loss and its gradients are.
    const TOLERANCE: Tolerance;

    /// Whether there is a weight and a weight of the positive class: further inputs, in this order.
    fn extras(&self) -> [bool; 2] {
        [false; 2]
    }
    /// Errors if a parameter of the loss is out of its range.
    fn check(&self) -> Result<()> {
        Ok(())
    }
    /// The loss.
    fn value<A: Real>(&self, x: A, t: A, w: A, p: A) -> A;
    /// Its derivative by the input.
    fn dx<A: Real>(&self, x: A, t: A, w: A, p: A) -> A;
    /// Its derivative by the target.
    fn dt<A: Real>(&self, x: A, t: A, w: A, p: A) -> A;
    /// The functors of the GPU kernels, and the parameter that they get.
    fn gpu(&self) -> (kernels::PointLossF, kernels::PointLossBackwardF, f64);
    /// Parameters to test, with values of input and target that keep away from kinks.
    fn samples() -> Vec<(Self, Values, Values)>;
}

/// A loss of single elements: `reduce(value(x, t))` for an input and a target of one shape.
#[derive(Clone, Copy, Debug)]
pub struct PointLoss<K> {
    /// Which loss.
    pub kind: K,
    /// What becomes of the elements' losses.
    pub reduction: Reduction,
}

/// The gradients of [`PointLoss`] by input and target. Inputs: dy, then those of the loss.
#[derive(Clone, Copy, Debug)]
pub struct PointLossBackward<K> {
    /// Which loss.
    pub kind: K,
    /// What became of the elements' losses.
    pub reduction: Reduction,
}

const EXTRAS: [&str; 2] = ["weight", "pos_weight"];

/// Checks `[x, t, w?, p?]`.
fn check<K: PointKind>(op: &'static str, kind: &K, inputs: &[Meta]) -> Result<()> {
    kind.check()?;
    let (x, t) = (inputs[0], inputs[1]);
    let names = EXTRAS.iter().zip(kind.extras()).filter(|(_, has)| *has).map(|(name, _)| *name);
    let mut others = vec![("target", t.dtype)];
    others.extend(names.clone().zip(&inputs[2..]).map(|(name, m)| (name, m.dtype)));
    same_float(op, x.dtype, &others)?;
    if x.shape != t.shape {
        let message = format!("the input is {} but the target is {}", x.shape, t.shape);
        return Err(Error::shape(op, message).with_help("reshape one of them: losses do not broadcast"));
    }
    for (name, extra) in names.zip(&inputs[2..]) {
        if extra.shape.broadcast(&x.shape, op).ok() != Some(x.shape) {
            let message =
                format!("the {name} of {} does not broadcast to the input's {}", extra.shape, x.shape);
            return Err(Error::shape(op, message));
        }
    }
    Ok(())
}

/// One operand in row-major order, whatever its layout.
enum Operand<'a, T: Float> {
    Flat(&'a [T]),
    /// One value, as often as a block can ask for it.
    Constant(Box<[T::Acc; BLOCK]>),
    Strided(&'a [T], Runs<1>),
}

impl<'a, T: Float> Operand<'a, T> {
    fn new(view: View<'a>, shape: &Shape) -> Result<Self> {
        let view = view.expand(shape)?;
        if let Some(flat) = view.slice() {
            return Ok(Operand::Flat(flat));
        }
        let data = view.data::<T>();
        let constant = view.layout().strides.iter().all(|&s| s == 0);
        Ok(if constant {
            Operand::constant(data[0].to_acc())
        } else {
            Operand::Strided(data, Runs::new([view.layout()]))
        })
    }

    fn constant(value: T::Acc) -> Self {
        Operand::Constant(Box::new([value; BLOCK]))
    }

    /// The extras that `has` says are there, from `views`; 1 for the others.
    fn extras(has: [bool; 2], views: &[View<'a>], shape: &Shape) -> Result<[Self; 2]> {
        let mut views = views.iter();
        let mut next = |has: bool| match if has { views.next() } else { None } {
            Some(view) => Operand::new(*view, shape),
            None => Ok(Operand::constant(T::Acc::ONE)),
        };
        Ok([next(has[0])?, next(has[1])?])
    }

    /// The elements `range`, at most [`BLOCK`]; in `buffer` where they cannot be read in place.
    fn load<'b>(&'b self, range: Range<usize>, buffer: &'b mut [T::Acc; BLOCK]) -> &'b [T::Acc] {
        let n = range.len();
        match self {
            Operand::Flat(flat) if T::DTYPE == <T::Acc as Element>::DTYPE => {
                bytemuck::cast_slice(&flat[range])
            }
            Operand::Flat(flat) => {
                let flat = &flat[range];
                vectorize(
                    #[inline(always)]
                    || {
                        for (b, v) in buffer.iter_mut().zip(flat) {
                            *b = v.to_acc();
                        }
                    },
                );
                &buffer[..n]
            }
            Operand::Constant(values) => &values[..n],
            Operand::Strided(data, runs) => {
                let (len, stride) = (runs.len, runs.strides[0]);
                runs.visit(range.start / len..range.end.div_ceil(len), |run, [at]| {
                    let (from, to) = (range.start.max(run * len), range.end.min((run + 1) * len));
                    let dst = &mut buffer[from - range.start..to - range.start];
                    let at = at + (from - run * len) * stride;
                    dst.iter_mut().enumerate().for_each(|(k, b)| *b = data[at + k * stride].to_acc());
                });
                &buffer[..n]
            }
        }
    }
}

/// Operands on a GPU: dy, x, t, w, p under one shape, as far as there are any.
struct Points<'a> {
    src: [Option<Src<'a>>; 5],
    dims: Dims,
    by: [Strides; 5],
    n: usize,
}

impl<'a> Points<'a> {
    /// Of x, t and then those of `extras` that the kind has.
    fn new(dy: Option<View<'a>>, inputs: &[View<'a>], extras: [bool; 2]) -> Result<Points<'a>> {
        let shape = inputs[0].shape();
        let mut rest = inputs[2..].iter();
        let mut next = |has: bool| if has { rest.next().copied() } else { None };
        let views = [dy, Some(inputs[0]), Some(inputs[1]), next(extras[0]), next(extras[1])];
        let mut strides = [Shape::from_dims(&vec![0; shape.rank()]); 5];
        let mut src = [None; 5];
        for (k, view) in views.into_iter().enumerate() {
            let Some(view) = view else { continue };
            strides[k] = view.expand(&shape)?.layout().strides;
            src[k] = Some(view.src());
        }
        let (dims, by) = merge(&shape, strides.each_ref().map(|s| &s[..]));
        Ok(Points { src, dims, by, n: shape.numel() })
    }

    /// 1 if vectors of 16 bytes will do: all operands contiguous or one value, these results aligned.
    fn flat(&self, results: impl Iterator<Item = u64>) -> u32 {
        let fits = |(src, by): (&Option<Src<'_>>, &Strides)| {
            src.is_none_or(|src| by.by[0] == 0 || (by.by[0] == 1 && src.address() % 16 == 0))
        };
        let flat = self.dims.rank == 1
            && self.n.is_multiple_of(8)
            && self.src.iter().zip(&self.by).all(fits)
            && results.into_iter().all(|a| a % 16 == 0);
        flat.into()
    }
}

/// `range` in pieces of [`BLOCK`].
fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
}

impl<K: PointKind> PointLoss<K> {
    fn body<T: Float>(&self, inputs: &[View<'_>], out: &mut Out<'_>) -> Result<()> {
        let (shape, kind) = (inputs[0].shape(), self.kind);
        let x = Operand::<T>::new(inputs[0], &shape)?;
        let t = Operand::<T>::new(inputs[1], &shape)?;
        let [w, p] = Operand::<T>::extras(kind.extras(), &inputs[2..], &shape)?;
        // The losses of one block, and their sum.
        let block = |range: Range<usize>, buffers: &mut [[T::Acc; BLOCK]; 5]| {
            let [losses, bx, bt, bw, bp] = buffers;
            let n = range.len();
            let (x, t) = (x.load(range.clone(), bx), t.load(range.clone(), bt));
            let (w, p) = (w.load(range.clone(), bw), p.load(range, bp));
            vectorize(
                #[inline(always)]
                || {
                    let (x, t, w, p, losses) = (&x[..n], &t[..n], &w[..n], &p[..n], &mut losses[..n]);
                    for i in 0..n {
                        losses[i] = kind.value(x[i], t[i], w[i], p[i]);
                    }
                    lane_sum(losses)
                },
            )
        };
        let n = shape.numel();
        if self.reduction == Reduction::None {
            par::for_each_chunk_mut(out.slice::<T>(), GRAIN, |c, chunk| {
                let first = c * GRAIN;
                let mut buffers = [[T::Acc::ZERO; BLOCK]; 5];
                for range in blocks(first..first + chunk.len()) {
                    block(range.clone(), &mut buffers);
                    let part = &mut chunk[range.start - first..range.end - first];
                    part.iter_mut().zip(&buffers[0]).for_each(|(o, l)| *o = T::from_acc(*l));
                }
            });
            return Ok(());
        }
        let sums = par::map_chunks(n, GRAIN, |range| {
            let mut buffers = [[T::Acc::ZERO; BLOCK]; 5];
            blocks(range).map(|range| block(range, &mut buffers).to_f64()).sum::<f64>()
        });
        let mean = sums.iter().sum::<f64>() / self.reduction.divisor(n, shape);
        out.slice::<T>()[0] = T::from_acc(T::Acc::of(mean));
        Ok(())
    }
}

impl<K: PointKind> Op for PointLoss<K> {
    const NAME: &'static str = K::NAME;
    const INPUTS: RangeInclusive<usize> = 2..=4;

    fn saves(&self, needs: &[bool]) -> Saves {
        let all = Saves::inputs(&[0, 1]);
        match needs.len() {
            2 => all,
            3 => all.and_inputs(&[2]),
            _ => all.and_inputs(&[2, 3]),
        }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        check(Self::NAME, &self.kind, inputs)?;
        Ok(Plan::one(inputs[0].with_shape(self.reduction.shape(inputs[0].shape))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, &mut outputs[0]),
            else crate::ops::index::float_dtype(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let shape = inputs[0].shape();
        let points = Points::new(None, inputs, self.kind.extras())?;
        let (f, _, a) = self.kind.gpu();
        let by = self.reduction.divisor(points.n, shape);
        let each = self.reduction == Reduction::None;
        let blocks = points.n.div_ceil(4096);
        let mut sums = Sums::new(s, if each { 1 } else { blocks })?;
        let (y, parts) = sums.split(outputs[0].dst());
        let [_, xs, ts, ws, ps] = points.by;
        kernels::PointLoss {
            f,
            x: inputs[0].src(),
            target: inputs[1].src(),
            w: points.src[3],
            p: points.src[4],
            flat: points.flat(each.then(|| y.as_ref().map_or(0, |y| y.address())).into_iter()),
            y,
            parts,
            dims: points.dims,
            xs,
            ts,
            ws,
            ps,
            n: points.n as u64,
            a: a as f32,
            by,
            each: each.into(),
        }
        .launch(s)?;
        sums.finish(s, blocks, outputs[0].dst(), None, by, 0)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let names = EXTRAS.iter().zip(self.kind.extras()).filter(|(_, has)| *has).map(|(name, _)| name);
        let mut inputs = vec![dy.clone(), cx.input(0)?, cx.input(1)?];
        for (i, name) in names.enumerate() {
            if cx.needs(2 + i) {
                return Err(no_gradient(Self::NAME, name));
            }
            inputs.push(cx.input(2 + i)?);
        }
        let op = PointLossBackward { kind: self.kind, reduction: self.reduction };
        cx.run(op, &inputs.iter().collect::<Vec<_>>(), &[0, 1])
    }

    fn cases() -> Cases<Self> {
        let list = cases(|kind, reduction, _, inputs| Case { op: PointLoss { kind, reduction }, inputs });
        Cases { dtypes: &DType::FLOATS, tolerance: K::TOLERANCE, list }
    }
}

/// Cases over the samples, the reductions and a few shapes; the closure also gets the shape of the loss.
fn cases<K: PointKind, C>(case: impl Fn(K, Reduction, &[usize], Vec<Arg>) -> C) -> Vec<C> {
    let shapes: [&[usize]; 8] = [&[], &[0], &[1], &[7], &[5, 13], &[2, 3, 17], &[3, 0, 2], &[2, 1025]];
    let mut list = Vec::new();
    for (kind, x, t) in K::samples() {
        for reduction in Reduction::ALL {
            for shape in shapes {
                let mut inputs = vec![Arg::new(shape, x.clone()), Arg::new(shape, t.clone())];
                let extra = |shape: &[usize]| Arg::constant(shape, Values::Uniform(0.5, 2.0));
                if kind.extras()[0] {
                    // One weight a row.
                    let lead: Vec<usize> =
                        shape.iter().enumerate().map(|(d, &n)| if d == 0 { n } else { 1 }).collect();
                    inputs.push(extra(&lead));
                }
                if kind.extras()[1] {
                    inputs.push(extra(&shape[shape.len().saturating_sub(1)..]));
                }
                let full = Shape::from_dims(shape);
                list.push(case(kind, reduction, &reduction.shape(full), inputs));
            }
        }
    }
    list
}

impl<K: PointKind> PointLossBackward<K> {
    fn body<T: Float>(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (shape, kind) = (inputs[1].shape(), self.kind);
        let n = shape.numel();
        let scale = T::Acc::of(1.0 / self.reduction.divisor(n, shape));
        if n == 0 {
            return Ok(());
        }
        let g = Operand::<T>::new(inputs[0], &shape)?;
        let x = Operand::<T>::new(inputs[1], &shape)?;
        let t = Operand::<T>::new(inputs[2], &shape)?;
        let [w, p] = Operand::<T>::extras(kind.extras(), &inputs[3..], &shape)?;
        let fill = |out: &mut Out<'_>, by_target: bool| {
            let add = out.mode() == Mode::Accumulate;
            par::for_each_chunk_mut(out.slice::<T>(), GRAIN, |c, chunk| {
                let first = c * GRAIN;
                let mut buffers = [[T::Acc::ZERO; BLOCK]; 5];
                for range in blocks(first..first + chunk.len()) {
                    let [bg, bx, bt, bw, bp] = &mut buffers;
                    let n = range.len();
                    let out = &mut chunk[range.start - first..range.end - first];
                    let (g, x) = (g.load(range.clone(), bg), x.load(range.clone(), bx));
                    let t = t.load(range.clone(), bt);
                    let (w, p) = (w.load(range.clone(), bw), p.load(range, bp));
                    vectorize(
                        #[inline(always)]
                        || {
                            let (g, x, t, w, p, out) =
                                (&g[..n], &x[..n], &t[..n], &w[..n], &p[..n], &mut out[..n]);
                            // One loop each, so that none has a branch inside.
                            match (by_target, add) {
                                (false, false) => {
                                    for i in 0..n {
                                        let d = kind.dx(x[i], t[i], w[i], p[i]) * (g[i] * scale);
                                        out[i] = T::from_acc(d);
                                    }
                                }
                                (false, true) => {
                                    for i in 0..n {
                                        let d = kind.dx(x[i], t[i], w[i], p[i]) * (g[i] * scale);
                                        out[i] = T::from_acc(out[i].to_acc() + d);
                                    }
                                }
                                (true, add) => {
                                    for i in 0..n {
                                        let d = kind.dt(x[i], t[i], w[i], p[i]) * (g[i] * scale);
                                        out[i] = T::from_acc(if add { out[i].to_acc() + d } else { d });
                                    }
                                }
                            }
                        },
                    );
                }
            });
        };
        for (k, out) in outputs.iter_mut().enumerate().filter(|(_, out)| out.wanted()) {
            fill(out, k == 1);
        }
        Ok(())
    }
}

impl<K: PointKind> Op for PointLossBackward<K> {
    const NAME: &'static str = K::BACKWARD;
    const INPUTS: RangeInclusive<usize> = 3..=5;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, x) = (inputs[0], inputs[1]);
        check(Self::NAME, &self.kind, &inputs[1..])?;
        if dy.dtype != x.dtype || dy.shape != self.reduction.shape(x.shape) {
            return Err(Error::shape(Self::NAME, format!("dy {dy} does not fit the input {x}")));
        }
        Ok(Plan { outputs: vec![x, x], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, outputs),
            else crate::ops::index::float_dtype(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let points = Points::new(Some(inputs[0]), &inputs[1..], self.kind.extras())?;
        let (_, f, a) = self.kind.gpu();
        let [add_x, add_t] = [0, 1].map(|k: usize| u32::from(outputs[k].mode() == Mode::Accumulate));
        let [dx, dt] = outputs else {
            return Err(Error::internal("the gradient of a loss has two outputs"));
        };
        let (dx, dt) = (dx.dst_if_wanted(), dt.dst_if_wanted());
        let results = [&dx, &dt].into_iter().filter_map(|d| d.as_ref().map(|d| d.address()));
        let flat = points.flat(results);
        let [ys, xs, ts, ws, ps] = points.by;
        kernels::PointLossBackward {
            f,
            dy: inputs[0].src(),
            x: inputs[1].src(),
            target: inputs[2].src(),
            w: points.src[3],
            p: points.src[4],
            dx,
            dt,
            dims: points.dims,
            ys,
            xs,
            ts,
            ws,
            ps,
            n: points.n as u64,
            a: a as f32,
            scale: (1.0 / self.reduction.divisor(points.n, inputs[1].shape())) as f32,
            add_x,
            add_t,
            flat,
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        let list = cases(|kind, reduction, dy, mut inputs| {
            inputs.iter_mut().for_each(|arg| arg.grad = false);
            inputs.insert(0, Arg::constant(dy, Values::Normal(1.0)));
            Case { op: PointLossBackward { kind, reduction }, inputs }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: K::TOLERANCE, list }
    }
}
