//! Copies: to row-major order, to another element type, and into or onto memory that exists.

#![forbid(unsafe_code)]

use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::strided::Runs;
use crate::dtype::Element;
use crate::shape::{IntoShape, Layout};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Tensor, View};
use crate::{DType, Result, dispatch};

super::family!(Contiguous, Cast);

/// A row-major copy. Gradient: dx = dy.
#[derive(Clone, Copy, Debug)]
pub struct Contiguous;

impl Op for Contiguous {
    const NAME: &'static str = "contiguous";
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (shape, mode) = (outputs[0].shape(), outputs[0].mode());
        dispatch!(outputs[0].dtype(), T => {
            move_elements::<T, T>(inputs[0], outputs[0].slice::<T>(), &Layout::contiguous(shape), mode)
        });
        Ok(())
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        dys[0].iter().try_for_each(|dy| cx.give(0, dy.clone()))
    }

    fn cases() -> Cases<Self> {
        Cases::over_shapes(&DType::ALL, Tolerance::Exact, Values::Integers(-9, 9), |_| Contiguous)
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
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(inputs[0].with_dtype(self.to)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (layout, mode) = (Layout::contiguous(outputs[0].shape()), outputs[0].mode());
        dispatch!(inputs[0].dtype(), S => dispatch!(self.to, T => {
            move_elements::<S, T>(inputs[0], outputs[0].slice::<T>(), &layout, mode)
        }));
        Ok(())
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

/// Moves `src` to the places of `dst` that `layout` names, in matching order, converting and (by `mode`) adding.
fn move_elements<S: Element, T: Element>(src: View<'_>, dst: &mut [T], layout: &Layout, mode: Mode) {
    let same = S::DTYPE == T::DTYPE;
    if same && mode == Mode::Write && src.layout().is_contiguous() && layout.is_contiguous() {
        let n = src.numel();
        let bytes: &[u8] = bytemuck::cast_slice(&src.data::<S>()[..n]);
        bytemuck::cast_slice_mut::<T, u8>(&mut dst[layout.offset..layout.offset + n]).copy_from_slice(bytes);
        return;
    }
    let runs = Runs::new([src.layout(), layout]);
    let data = src.data::<S>();
    match mode {
        Mode::Accumulate => each(&runs, data, dst, |s, d| *d = add(convert::<S, T>(s), *d)),
        _ => each(&runs, data, dst, |s, d| *d = convert::<S, T>(s)),
    }
}

fn each<S: Element, T>(runs: &Runs<2>, src: &[S], dst: &mut [T], f: impl Fn(S, &mut T)) {
    let ([ss, ds], len) = (runs.strides, runs.len);
    runs.visit(0..runs.count, |_, [s, d]| (0..len).for_each(|i| f(src[s + i * ss], &mut dst[d + i * ds])));
}

/// Exact for equal types (an `i64` beyond 2⁵³ included).
#[inline(always)]
fn convert<S: Element, T: Element>(v: S) -> T {
    if S::DTYPE == T::DTYPE { bytemuck::cast(v) } else { T::from_f64(v.to_f64()) }
}

/// The sum, rounded once to `T`: f64 holds the exact sum of two 16-bit floats and rounds that of two f32 harmlessly.
#[inline(always)]
fn add<T: Element>(a: T, b: T) -> T {
    T::from_f64(a.to_f64() + b.to_f64())
}

fn write_strided(dst: &Tensor, src: &Tensor, mode: Mode) -> Result<()> {
    let name = if mode == Mode::Accumulate { "accumulate" } else { "copy_into" };
    if dst.shape() != src.shape() {
        return Err(crate::Error::shape(name, format!("{} into {}", src.shape(), dst.shape())));
    }
    if dst.numel() == 0 {
        return Ok(());
    }
    let source = src.read().map_err(|e| e.with_op(name))?;
    let mut target = dst.write(name)?;
    let layout = Layout { offset: 0, ..*dst.layout() };
    dispatch!(src.dtype(), S => dispatch!(dst.dtype(), T => {
        move_elements::<S, T>(View::new(src, &source), bytemuck::cast_slice_mut(target.bytes()), &layout, mode)
    }));
    Ok(())
}

/// Adds `src` to `dst` in place; `dst` may have any layout that names no element twice. Casts to `dst`'s dtype.
pub(crate) fn accumulate(dst: &Tensor, src: &Tensor) -> Result<()> {
    write_strided(dst, src, Mode::Accumulate)
}

/// Overwrites `dst` by `src`; `dst` may have any layout that names no element twice. Casts to `dst`'s dtype.
pub(crate) fn copy_into(dst: &Tensor, src: &Tensor) -> Result<()> {
    write_strided(dst, src, Mode::Write)
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

    /// Overwrites this tensor's memory by `src` (same shape; cast to this dtype). Not recorded; tensors saved for
    /// backward notice. An error if the memory is borrowed, or if `self` repeats elements (an expanded dimension).
    #[track_caller]
    pub fn copy_(&self, src: &Tensor) -> Result<()> {
        if self.layout().strides.iter().zip(self.dims()).any(|(&s, &n)| s == 0 && n > 1) {
            return Err(crate::Error::shape(
                "copy_",
                "cannot write to an expanded tensor: it names elements twice",
            ));
        }
        copy_into(self, src)
    }
}
