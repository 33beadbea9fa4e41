//! Copies: to row-major order and to another element type.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::copy::move_elements;
use crate::device::{Stream, copy};
use crate::shape::{IntoShape, Layout};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Tensor, View};
use crate::{DType, Result, dispatch};

super::family!(Contiguous, Cast);

/// Writes or adds the elements of `from`, cast.
fn moved(stream: &Stream, from: &View<'_>, to: &mut Out<'_>) -> Result<()> {
    let (layout, add) = (Layout::contiguous(to.shape()), to.mode() == Mode::Accumulate);
    copy::strided(stream, from.src(), from.layout(), to.dst(), &layout, add)
}

/// A row-major copy. Gradient: dx = dy.
#[derive(Clone, Copy, Debug)]
pub struct Contiguous;

impl Op for Contiguous {
    const NAME: &'static str = "contiguous";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (shape, mode) = (outputs[0].shape(), outputs[0].mode());
        dispatch!(outputs[0].dtype(), T => {
            move_elements(
                inputs[0].data::<T>(),
                inputs[0].layout(),
                outputs[0].slice::<T>(),
                &Layout::contiguous(shape),
                mode == Mode::Accumulate,
            )
        });
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        moved(stream, &inputs[0], &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        dys[0].iter().try_for_each(|dy| cx.give(0, dy.clone()))
    }

    fn cases() -> Cases<Self> {
        let values = Values::Integers(-9, 9);
        let mut cases = Cases::over_shapes(&DType::ALL, Tolerance::Exact, values.clone(), |_| Contiguous);
        // Transposed, these are more than one tile of the GPU's.
        for shape in [&[40, 70][..], &[3, 33, 37]] {
            cases.list.push(Case { op: Contiguous, inputs: vec![Arg::new(shape, values.clone())] });
        }
        cases
    }
}

/// Another element type: floats round to nearest even, float to integer truncates and saturates (NaN to 0), integer to
/// integer goes through f64 (exact up to 2⁵³) and saturates. Gradient: dy cast back.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// The target type.
    pub to: DType,
}

impl Op for Cast {
    const NAME: &'static str = "to_dtype";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(inputs[0].with_dtype(self.to)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (layout, mode) = (Layout::contiguous(outputs[0].shape()), outputs[0].mode());
        dispatch!(inputs[0].dtype(), S => dispatch!(self.to, T => {
            move_elements(
                inputs[0].data::<S>(),
                inputs[0].layout(),
                outputs[0].slice::<T>(),
                &layout,
                mode == Mode::Accumulate,
            )
        }));
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        moved(stream, &inputs[0], &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let to = cx.input_meta(0).dtype;
        dys[0].iter().try_for_each(|dy| cx.run(Cast { to }, &[dy], &[0]))
    }

    fn cases() -> Cases<Self> {
        let shapes = [vec![], vec![0], vec![7], vec![3, 5]];
        let case = |to, shape: &Vec<usize>| Case {
            op: Cast { to },
            inputs: vec![Arg::new(shape, Values::Integers(0, 100))],
        };
        let list = DType::ALL.iter().flat_map(|&to| shapes.iter().map(move |s| case(to, s))).collect();
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list }
    }
}

impl Tensor {
    /// The same values in row-major order: `self` where it is so already, else a copy.
    #[track_caller]
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() { Ok(self.clone()) } else { run1(Contiguous, &[self]) }
    }

    /// The same values in another element type (see [`Cast`]); `self` if it has it already.
    #[track_caller]
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype { Ok(self.clone()) } else { run1(Cast { to: dtype }, &[self]) }
    }

    /// The same elements in row-major order under another shape of as many elements. Shares memory where the layout
    /// allows it, copies otherwise.
    #[track_caller]
    pub fn reshape(&self, shape: impl IntoShape) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        match self.try_view(&shape)? {
            Some(view) => Ok(view),
            None => self.contiguous()?.reshape(shape),
        }
    }

    /// Dimensions `first..=last` merged into one; negative ones count from the end.
    #[track_caller]
    pub fn flatten(&self, first: isize, last: isize) -> Result<Tensor> {
        let (first, last) = (self.shape().dim("flatten", first)?, self.shape().dim("flatten", last)?);
        if first > last {
            return Err(crate::Error::shape("flatten", format!("dimension {first} comes after {last}")));
        }
        let mut dims = self.dims()[..first].to_vec();
        dims.push(self.dims()[first..=last].iter().product());
        dims.extend(&self.dims()[last + 1..]);
        self.reshape(&dims)
    }
}
