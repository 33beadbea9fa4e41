//! The largest and smallest element over any set of axes, and where the first of them stands.
//!
//! NaN counts as beyond everything, as in PyTorch: it is the extremum, and its place is the one found. Over no elements
//! there is no extremum: an error. The gradient of a value is shared evenly by the elements equal to it, which is
//! PyTorch's rule for amax and amin.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::reduce::gpu;
use super::reduce::{Axes, cases, folded, map, real, same_dtype, store, wide, wide_dtype};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::reduce::{self, Fold, Reduction, SumOf, same};
use crate::device::Stream;
use crate::dtype::{Element, Real};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(Amax, Amin, ExtremumBackward, Argmax, Argmin);

/// The result's shape; an error where a set of no elements has no extremum.
fn infer(op: &'static str, axes: Axes, shape: &Shape, keepdim: bool) -> Result<Shape> {
    let out = axes.infer(op, shape, keepdim)?;
    if axes.count(shape) == 0 {
        return Err(Error::shape(
            op,
            format!("there is no element to choose over dimensions {axes:?} of {shape}"),
        ));
    }
    Ok(out)
}

/// Runs `$body` with `$E` bound to the type that elements of a [`DType`] are compared in.
macro_rules! by_width {
    ($dtype:expr, $E:ident => $body:expr) => {
        match wide_dtype($dtype) {
            DType::F64 => {
                type $E = f64;
                $body
            }
            DType::I64 => {
                type $E = i64;
                $body
            }
            _ => {
                type $E = f32;
                $body
            }
        }
    };
}

macro_rules! extremum {
    ($(#[$doc:meta])* $op:ident, $name:literal, $fold:ident, $gpu:ident, $integer:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $op {
            /// The dimensions to reduce.
            pub axes: Axes,
            /// Whether they stay, of size 1.
            pub keepdim: bool,
        }

        impl Op for $op {
            const NAME: &'static str = $name;
            const INPUTS: RangeInclusive<usize> = 1..=1;
            const ACCUMULATES: bool = true;

            fn saves(&self, _: &[bool]) -> Saves {
                Saves::inputs(&[0]).and_outputs(&[0])
            }

            fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
                let shape = infer(Self::NAME, self.axes, &inputs[0].shape, self.keepdim)?;
                Ok(Plan::one(inputs[0].with_shape(shape)))
            }

            fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
                let mut copy = None;
                let x = wide(&inputs[0], &mut copy)?;
                let plan = self.axes.plan(&x);
                by_width!(x.dtype(), E => {
                    let found = folded::<E, _>(&plan, &reduce::$fold, &x, &vec![(); plan.outputs])?;
                    store::<E>(&mut outputs[0], found.typed());
                });
                Ok(())
            }

            fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
                let (x, out) = (&inputs[0], &mut outputs[0]);
                if !x.dtype().is_float() {
                    return gpu::integer_extremum(stream, gpu::IntegerExtremum::$integer, x, self.axes, out);
                }
                gpu::fold(stream, gpu::Fold::$gpu, (x, None), self.axes, (1.0, false), out)
            }

            fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
                let Some(dy) = &dys[0] else { return Ok(()) };
                let (x, y) = (cx.input(0)?, cx.output(0)?);
                let kept = |t: &Tensor| self.axes.restore(t, &x.shape(), self.keepdim);
                cx.run(ExtremumBackward { axes: self.axes }, &[&x, &kept(&y)?, &kept(dy)?], &[0])
            }

            fn cases() -> Cases<Self> {
                let op = |axes, keepdim| $op { axes, keepdim };
                cases(&DType::ALL, Tolerance::Exact, Values::Distinct(0.01), op, false)
            }
        }
    };
}
extremum!(
    /// The largest element over `axes`; NaN if there is one. Gradient: dy shared evenly by the elements equal to it.
    Amax, "amax", Max, Largest, IntLargest
);
extremum!(
    /// The smallest element over `axes`; NaN if there is one. Gradient: dy shared evenly by the elements equal to it.
    Amin, "amin", Min, Smallest, IntSmallest
);

/// dx = dy / (how many elements equal y) where x = y, else 0; from x and, with the axes kept, y and dy. NaN equals NaN
/// here: the gradient goes to what was chosen.
#[derive(Clone, Copy, Debug)]
pub struct ExtremumBackward {
    /// The dimensions that were reduced.
    pub axes: Axes,
}

impl Op for ExtremumBackward {
    const NAME: &'static str = "extremum_backward";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_dtype(Self::NAME, inputs)?;
        let kept = self.axes.infer(Self::NAME, &inputs[0].shape, true)?;
        match inputs[1..].iter().find(|m| m.shape != kept) {
            Some(other) => Err(Error::shape(Self::NAME, format!("expected {kept}, found {}", other.shape))),
            None => Ok(Plan::one(inputs[0])),
        }
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let mut copies = [const { None }; 3];
        let [first, second, third] = &mut copies;
        let (x, y, dy) = (wide(&inputs[0], first)?, wide(&inputs[1], second)?, wide(&inputs[2], third)?);
        real!(Self::NAME, x.dtype(), A => {
            let targets: Vec<A> = y.layout().positions().map(|i| y.data::<A>()[i]).collect();
            let hits = SumOf(|x: A, y: A| if same(x, y) { A::ONE } else { A::ZERO });
            let mut counts = folded::<A, _>(&self.axes.plan(&x), &hits, &x, &targets)?;
            // What each of the equal elements gets.
            let shares = counts.typed_mut::<A>();
            let dys = dy.layout().positions().map(|i| dy.data::<A>()[i]);
            shares.iter_mut().zip(dys).for_each(|(share, dy)| *share = dy / *share);
            map::<A, 3>([x, y, View::of(shares, y.shape())], &mut outputs[0], #[inline(always)] |[x, y, share]| {
                if same(x, y) { share } else { A::ZERO }
            })
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (x, y, dy) = (&inputs[0], &inputs[1], &inputs[2]);
        let hits = gpu::states(stream, gpu::Fold::Hits, (x, Some(y)), self.axes)?;
        let operands = [Some(x), Some(y), Some(dy)];
        let (f, states) = (gpu::Spread::SpreadExtremum, Some((&hits, self.axes)));
        gpu::spread(stream, f, operands, states, (1.0, 1.0), &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        // y need not be the extremum; 2 is one of the values.
        let case = |shape: &[usize], dims: &[isize]| {
            let shape = Shape::from_dims(shape);
            let axes = Axes::resolve(Self::NAME, &shape, dims).expect("the axes below exist");
            let kept = axes.kept(&shape);
            let inputs = vec![
                Arg::constant(&shape, Values::OneOf(&[0.0, 1.0, 2.0])),
                Arg::constant(&kept, Values::OneOf(&[1.0, 2.0])),
                Arg::constant(&kept, Values::Normal(1.0)),
            ];
            Case { op: ExtremumBackward { axes }, inputs }
        };
        let list = vec![
            case(&[37], &[]),
            case(&[5, 130], &[1]),
            case(&[70, 13], &[0]),
            case(&[20, 9, 15], &[0, 2]),
            case(&[2, 0, 3], &[0]),
        ];
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Ulp(0.5, "one division"), list }
    }
}

/// The place of the first element that [`Fold`] chooses, counted in row-major order over `axes`.
fn places<E: Element>(
    axes: Axes,
    view: &View<'_>,
    fold: &impl Fold<E, Acc = E, Param = ()>,
    out: &mut [i64],
) -> Result<()> {
    let plan = axes.plan(view);
    let best = folded::<E, _>(&plan, fold, view, &vec![(); plan.outputs])?;
    let plan = Reduction::ordered(view.layout(), |d| axes.contains(d));
    plan.find(view.data::<E>(), best.typed(), out);
    Ok(())
}

macro_rules! place {
    ($(#[$doc:meta])* $op:ident, $name:literal, $fold:ident, $gpu:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $op {
            /// The dimensions to reduce.
            pub axes: Axes,
            /// Whether they stay, of size 1.
            pub keepdim: bool,
        }

        impl Op for $op {
            const NAME: &'static str = $name;
            const INPUTS: RangeInclusive<usize> = 1..=1;

            fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
                let shape = infer(Self::NAME, self.axes, &inputs[0].shape, self.keepdim)?;
                Ok(Plan::one(inputs[0].with_shape(shape).with_dtype(DType::I64)))
            }

            fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
                let (mut copy, out) = (None, outputs[0].slice::<i64>());
                let x = wide(&inputs[0], &mut copy)?;
                by_width!(x.dtype(), E => places::<E>(self.axes, &x, &reduce::$fold, out))
            }

            fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
                gpu::choose(stream, gpu::Choose::$gpu, &inputs[0], self.axes, &mut outputs[0])
            }

            fn cases() -> Cases<Self> {
                // Few values: many ties, of which the first counts.
                let values = Values::OneOf(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
                let op = |axes, keepdim| $op { axes, keepdim };
                let mut cases = cases(&DType::ALL, Tolerance::Exact, values, op, false);
                cases.list.iter_mut().flat_map(|c| &mut c.inputs).for_each(|arg| arg.grad = false);
                cases
            }
        }
    };
}
place!(
    /// Where over `axes` the largest element stands, the first of several, NaN counting as larger than all: an i64, counted
    /// in row-major order over the reduced dimensions. No gradient.
    Argmax, "argmax", Max, ArgMax
);
place!(
    /// Where over `axes` the smallest element stands, the first of several, NaN counting as smaller than all: an i64,
    /// counted in row-major order over the reduced dimensions. No gradient.
    Argmin, "argmin", Min, ArgMin
);

impl Tensor {
    /// The largest element over dimensions `dims`, all if empty; negative ones count from the end. They stay, of size 1, if
    /// `keepdim`. NaN if there is one; an error over no elements. Equal elements share the gradient.
    #[track_caller]
    pub fn max(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        run1(Amax { axes: Axes::resolve(Amax::NAME, &self.shape(), dims)?, keepdim }, &[self])
    }

    /// The smallest element over dimensions `dims`, as [`Tensor::max`].
    #[track_caller]
    pub fn min(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        run1(Amin { axes: Axes::resolve(Amin::NAME, &self.shape(), dims)?, keepdim }, &[self])
    }

    /// Where the largest element over dimensions `dims` (all if empty) stands: the first of several, NaN before all. Over
    /// one dimension this is its index; over several, the number in row-major order. i64; an error over no elements.
    #[track_caller]
    pub fn argmax(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        let axes = Axes::resolve(Argmax::NAME, &self.shape(), dims)?;
        run1(Argmax { axes, keepdim }, &[&self.detach()])
    }

    /// Where the smallest element over dimensions `dims` (all if empty) stands, as [`Tensor::argmax`].
    #[track_caller]
    pub fn argmin(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        let axes = Axes::resolve(Argmin::NAME, &self.shape(), dims)?;
        run1(Argmin { axes, keepdim }, &[&self.detach()])
    }
}
