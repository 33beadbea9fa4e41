//! How a function of two operands becomes an op and the op of its gradient, and how a comparison becomes one.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::cpu::elementwise::{Work, apply, each2, each3};
use crate::device::Stream;
use crate::device::kernels::elementwise::{self as kernels, BinaryBackwardF, BinaryF, BinaryIntF};
use crate::dtype::Real;
use crate::ops::gpu::{adds, elementwise, present};
use crate::ops::unary::{Integer, by_kind, refuse, source, target};
use crate::ops::{Arg, Case, Cases, Map, Neg, Op, Plan, SumTo, Tolerance, Values, run1};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

/// An elementwise function of two operands; [`Zip`] makes it an op.
pub trait Binary: Copy + Debug + Send + Sync + 'static {
    /// The op's name.
    const NAME: &'static str;
    /// The name of the op that computes its gradients.
    const BACKWARD: &'static str;
    /// Whether [`Binary::integer`] exists.
    const INTEGERS: bool;
    /// The gradient of b is this times dy, and that of a is dy; `None` where they depend on a or b.
    const SIGN: Option<f64> = None;
    /// Which of a and b the gradients of a and of b read.
    const READS: [[bool; 2]; 2];
    /// Its kernels; without them it runs on the CPU only.
    const KERNELS: Option<BinaryKernels> = None;

    /// The value at (a, b).
    fn forward<R: Real>(self, a: R, b: R) -> R;
    /// The gradient of a.
    fn grad_a<R: Real>(self, dy: R, a: R, b: R) -> R;
    /// The gradient of b.
    fn grad_b<R: Real>(self, dy: R, a: R, b: R) -> R;
    /// The value at integers, wrapping.
    fn integer<I: Integer>(self, a: I, b: I) -> I;
    /// The function itself: it has no arguments.
    fn new() -> Self;
    /// Values of a and b to test with, and how exact value and gradients are.
    fn examples() -> (Values, Values, Tolerance, Tolerance);
}

/// The kernels of a [`Binary`]: lines of the tables in `kernels/elementwise.cu`.
#[derive(Clone, Copy, Debug)]
pub struct BinaryKernels {
    /// The value.
    pub forward: BinaryF,
    /// The gradients.
    pub backward: BinaryBackwardF,
    /// The value at integers.
    pub integer: Option<BinaryIntF>,
}

impl BinaryKernels {
    fn of<F: Binary>(op: &'static str) -> Result<BinaryKernels> {
        F::KERNELS.ok_or_else(|| Error::unsupported(op, "this function has no kernels for GPUs"))
    }
}

/// A comparison; [`Compare`] makes it an op.
pub trait Comparison: Copy + Debug + Send + Sync + 'static {
    /// The op's name.
    const NAME: &'static str;
    /// The relation itself: it has no arguments.
    fn new() -> Self;
    /// Whether it holds.
    fn holds<W: PartialOrd>(self, a: W, b: W) -> bool;
}

/// y = f(a, b) with broadcasting. Gradients: [`ZipBackward`].
#[derive(Clone, Copy, Debug)]
pub struct Zip<F>(pub F);

/// One gradient of [`Zip`], in the shape of dy. Inputs: dy, then a or b or both, as [`Binary::READS`] says; these expand
/// to the shape of dy.
#[derive(Clone, Copy, Debug)]
pub struct ZipBackward<F> {
    /// Of which function.
    pub of: F,
    /// Of which operand: 0 for a, 1 for b.
    pub operand: usize,
}

/// Whether a relation holds between a and b, with broadcasting, as u8 0 or 1. No gradient. NaN differs from everything.
#[derive(Clone, Copy, Debug)]
pub struct Compare<F>(pub F);

/// The common meta of two operands.
fn common(op: &'static str, inputs: &[Meta]) -> Result<Meta> {
    let (a, b) = (inputs[0], inputs[1]);
    if a.dtype != b.dtype {
        let message = format!("operands of {} and {}; nothing is promoted", a.dtype, b.dtype);
        let help =
            format!("cast one of them: to_dtype(DType::{:?}) or to_dtype(DType::{:?})", a.dtype, b.dtype);
        return Err(Error::dtype(op, message).with_help(help));
    }
    Ok(a.with_shape(a.shape.broadcast(&b.shape, op)?))
}

impl<F: Binary> Op for Zip<F> {
    const NAME: &'static str = F::NAME;
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn saves(&self, needs: &[bool]) -> Saves {
        let mut saves = Saves::NONE;
        for input in [0, 1] {
            if (0..2).any(|operand| needs[operand] && F::READS[operand][input]) {
                saves = saves.and_inputs(&[input]);
            }
        }
        saves
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let out = common(Self::NAME, inputs)?;
        let accepted = out.dtype.is_float() || F::INTEGERS && matches!(out.dtype, DType::I32 | DType::I64);
        if !accepted {
            return Err(refuse(Self::NAME, out.dtype, F::INTEGERS));
        }
        Ok(Plan::one(out))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (f, y) = (self.0, &mut outputs[0]);
        let (a, b) = (inputs[0].expand(&y.shape())?, inputs[1].expand(&y.shape())?);
        let sources = [source(&a), source(&b)];
        by_kind!(
            y.dtype(),
            float R => apply(target(y), sources, &each2(#[inline(always)] |a: R, b: R| f.forward(a, b))),
            int I => apply(target(y), sources, &each2(#[inline(always)] |a: I, b: I| f.integer(a, b))),
            name Self::NAME
        );
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (kernel, y) = (BinaryKernels::of::<F>(Self::NAME)?, &mut outputs[0]);
        let (dtype, add) = (y.dtype(), adds(y));
        elementwise(y, [Some(&inputs[0]), Some(&inputs[1]), None], &mut |piece| {
            let (dims, [a_by, b_by, ..], n, wide) = (piece.dims, piece.by, piece.n, piece.wide);
            let (a, b) = (present(&piece, 0)?, present(&piece, 1)?);
            if dtype.is_float() {
                let f = kernel.forward;
                return kernels::Binary { f, wide, a, b, y: piece.y(), dims, a_by, b_by, n, add }
                    .launch(stream);
            }
            let f = kernel.integer.ok_or_else(|| refuse(Self::NAME, dtype, false))?;
            kernels::BinaryInt { f, wide, a, b, y: piece.y(), dims, a_by, b_by, n, add }.launch(stream)
        })
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        for operand in [0, 1] {
            if !cx.needs(operand) {
                continue;
            }
            let shape = cx.input_meta(operand).shape;
            let whole = shape == dy.shape();
            let full = match F::SIGN {
                Some(sign) if operand == 0 || sign > 0.0 => dy.clone(),
                Some(_) if whole => {
                    cx.run(Map(Neg {}), &[dy], &[operand])?;
                    continue;
                }
                // The smaller sum is negated.
                Some(_) => {
                    let sum = run1(SumTo { shape }, &[dy])?;
                    cx.run(Map(Neg {}), &[&sum], &[operand])?;
                    continue;
                }
                None => {
                    let read = (0..2).filter(|&i| F::READS[operand][i]).map(|i| cx.input(i));
                    let read = read.collect::<Result<Vec<_>>>()?;
                    let inputs: Vec<&Tensor> = std::iter::once(dy).chain(&read).collect();
                    let op = ZipBackward { of: self.0, operand };
                    if whole {
                        cx.run(op, &inputs, &[operand])?;
                        continue;
                    }
                    run1(op, &inputs)?
                }
            };
            if whole {
                cx.give(operand, full)?;
            } else {
                cx.run(SumTo { shape }, &[&full], &[operand])?;
            }
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let (a, b, tolerance, _) = F::examples();
        let (op, dtypes): (_, &[DType]) = (F::new(), if F::INTEGERS { &NUMBERS } else { &DType::FLOATS });
        let case = |&(x, y): &(&[usize], &[usize])| Case {
            op: Zip(op),
            inputs: vec![Arg::new(x, a.clone()), Arg::new(y, b.clone())],
        };
        Cases { dtypes, tolerance, list: PAIRS.iter().map(case).collect() }
    }
}

const NUMBERS: [DType; 6] = [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I32, DType::I64];

/// Shapes that broadcast.
const PAIRS: [(&[usize], &[usize]); 16] = [
    (&[], &[]),
    (&[0], &[1]),
    (&[3, 0, 2], &[2]),
    (&[7], &[]),
    (&[], &[31]),
    (&[33], &[33]),
    (&[257], &[257]),
    (&[5, 13], &[13]),
    (&[5, 13], &[5, 1]),
    (&[5, 1], &[1, 13]),
    (&[2, 3, 17], &[3, 1]),
    (&[2, 1, 4], &[3, 1]),
    (&[1, 4, 1, 9], &[4, 3, 1]),
    (&[2, 1025], &[1025]),
    (&[700, 2], &[700, 1]),
    (&[1], &[2, 3, 4]),
];

impl<F: Binary> ZipBackward<F> {
    fn expanded<'a>(&self, inputs: &[View<'a>], shape: &Shape) -> Result<[View<'a>; 3]> {
        // What the gradient does not read may be anything: dy is in the cache already.
        let mut views = [inputs[0]; 3];
        let read = (0..2).filter(|&i| F::READS[self.operand][i]);
        for (input, i) in inputs[1..].iter().zip(read) {
            views[1 + i] = input.expand(shape)?;
        }
        Ok(views)
    }
}

impl<F: Binary> Op for ZipBackward<F> {
    const NAME: &'static str = F::BACKWARD;
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let dy = inputs[0];
        if !dy.dtype.is_float() {
            return Err(refuse(Self::NAME, dy.dtype, false));
        }
        for &other in &inputs[1..] {
            if common(Self::NAME, &[dy, other])?.shape != dy.shape {
                let message = format!("{} does not expand to the gradient's {}", other.shape, dy.shape);
                return Err(Error::shape(Self::NAME, message));
            }
        }
        Ok(Plan::one(dy))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (f, shape) = (self.of, outputs[0].shape());
        let views = self.expanded(inputs, &shape)?;
        let (sources, dx) = (views.each_ref().map(source), target(&mut outputs[0]));
        match (inputs[0].dtype(), self.operand) {
            (DType::F64, 0) => {
                apply(
                    dx,
                    sources,
                    &each3(
                        #[inline(always)]
                        |dy: f64, a, b| f.grad_a(dy, a, b),
                    ),
                );
            }
            (DType::F64, _) => {
                apply(
                    dx,
                    sources,
                    &each3(
                        #[inline(always)]
                        |dy: f64, a, b| f.grad_b(dy, a, b),
                    ),
                );
            }
            (_, 0) => apply(
                dx,
                sources,
                &each3(
                    #[inline(always)]
                    |dy: f32, a, b| f.grad_a(dy, a, b),
                ),
            ),
            (_, _) => apply(
                dx,
                sources,
                &each3(
                    #[inline(always)]
                    |dy: f32, a, b| f.grad_b(dy, a, b),
                ),
            ),
        }
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (f, dx) = (BinaryKernels::of::<F>(Self::NAME)?.backward, &mut outputs[0]);
        let mut views = [inputs.first(), None, None];
        let read = (0..2).filter(|&i| F::READS[self.operand][i]);
        for (input, i) in inputs[1..].iter().zip(read) {
            views[1 + i] = Some(input);
        }
        let (second, add) = (self.operand as u32, adds(dx));
        elementwise(dx, views, &mut |piece| {
            let (dims, [dy_by, a_by, b_by, _], n, wide) = (piece.dims, piece.by, piece.n, piece.wide);
            let (dy, [_, a, b]) = (present(&piece, 0)?, piece.src);
            let dx = piece.y();
            kernels::BinaryBackward { f, second, wide, dy, a, b, dx, dims, dy_by, a_by, b_by, n, add }
                .launch(stream)
        })
    }

    fn cases() -> Cases<Self> {
        let (a, b, _, tolerance) = F::examples();
        // Ties too: the gradient at one is defined.
        let values = [(a, b), (Values::Integers(1, 3), Values::Integers(1, 3))];
        let shapes: [(&[usize], [&[usize]; 2]); 6] = [
            (&[], [&[], &[]]),
            (&[0], [&[0], &[1]]),
            (&[33], [&[33], &[33]]),
            (&[5, 13], [&[13], &[5, 1]]),
            (&[2, 3, 17], [&[2, 3, 17], &[3, 1]]),
            (&[2, 700], [&[2, 700], &[700]]),
        ];
        let mut list = Vec::new();
        for operand in [0, 1] {
            for (of_a, of_b) in &values {
                for (dy, others) in &shapes {
                    let mut inputs = vec![Arg::constant(dy, Values::Normal(1.0))];
                    let operands = others.iter().zip([of_a, of_b]).zip(F::READS[operand]);
                    for ((shape, values), _) in operands.filter(|(_, read)| *read) {
                        inputs.push(Arg::constant(shape, values.clone()));
                    }
                    list.push(Case { op: ZipBackward { of: F::new(), operand }, inputs });
                }
            }
        }
        Cases { dtypes: &DType::FLOATS, tolerance, list }
    }
}

impl<F: Comparison> Op for Compare<F> {
    const NAME: &'static str = F::NAME;
    const INPUTS: RangeInclusive<usize> = 2..=2;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(common(Self::NAME, inputs)?.with_dtype(DType::U8)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        fn body<F: Comparison, W: Work>(f: F, [a, b]: [&View<'_>; 2], out: &mut Out<'_>) {
            let sources = [source(a), source(b)];
            apply(
                target(out),
                sources,
                &each2(
                    #[inline(always)]
                    |a: W, b: W| u8::from(f.holds(a, b)),
                ),
            );
        }
        let (f, out) = (self.0, &mut outputs[0]);
        let (a, b) = (inputs[0].expand(&out.shape())?, inputs[1].expand(&out.shape())?);
        match a.dtype() {
            DType::F32 | DType::BF16 | DType::F16 => body::<F, f32>(f, [&a, &b], out),
            DType::F64 => body::<F, f64>(f, [&a, &b], out),
            DType::U8 => body::<F, u8>(f, [&a, &b], out),
            DType::I32 => body::<F, i32>(f, [&a, &b], out),
            DType::I64 => body::<F, i64>(f, [&a, &b], out),
        }
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        // The relations that the kernel knows, by examples: less, equal, greater, unordered.
        let examples = [(0.0, 1.0), (0.0, 0.0), (1.0, 0.0), (f64::NAN, 0.0)];
        let bits = examples.iter().enumerate().map(|(i, &(a, b))| u32::from(self.0.holds(a, b)) << i);
        let holds = bits.sum();
        elementwise(&mut outputs[0], [Some(&inputs[0]), Some(&inputs[1]), None], &mut |piece| {
            let (dims, [a_by, b_by, ..], n, wide) = (piece.dims, piece.by, piece.n, piece.wide);
            let (a, b) = (present(&piece, 0)?, present(&piece, 1)?);
            kernels::Compare { wide, a, b, y: piece.y(), dims, a_by, b_by, n, holds }.launch(stream)
        })
    }

    fn cases() -> Cases<Self> {
        let of = |shape: &[usize]| Arg::constant(shape, Values::Integers(0, 3));
        let case =
            |&(x, y): &(&[usize], &[usize])| Case { op: Compare(F::new()), inputs: vec![of(x), of(y)] };
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list: PAIRS.iter().map(case).collect() }
    }
}
