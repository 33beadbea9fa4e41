//! How a function of one operand becomes an op and the op of its gradient, and the gradient of a fused activation.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::cpu::activation::{Activation, Reads};
use crate::cpu::elementwise::{Source, Target, Work, apply, each1, each2};
use crate::cpu::simd::vectorize;
use crate::device::kernels::elementwise::{self as kernels, UnaryBackwardF, UnaryF, UnaryIntF};
use crate::device::{Stream, copy};
use crate::dtype::Real;
use crate::ops::cases::SHAPES;
use crate::ops::gpu::{adds, elementwise, present};
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values};
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, dispatch};

/// An elementwise function of one operand; [`Map`] makes it an op.
pub trait Unary: Copy + Debug + Send + Sync + 'static {
    /// The op's name.
    const NAME: &'static str;
    /// The name of the op that computes its gradient.
    const BACKWARD: &'static str;
    /// What the gradient reads.
    const READS: Reads;
    /// Whether [`Unary::integer`] exists.
    const INTEGERS: bool = false;
    /// Its kernels; without them it runs on the CPU only.
    const KERNELS: Option<UnaryKernels> = None;

    /// The value at `x`.
    fn forward<R: Real>(self, x: R) -> R;

    /// The gradient of the input, given that of the output and what [`Unary::READS`] says.
    fn backward<R: Real>(self, dy: R, saved: R) -> R;

    /// The value at an integer, wrapping.
    fn integer<I: Integer>(self, x: I) -> I {
        x
    }

    /// Whether the arguments can be taken as integers.
    fn whole(self) -> bool {
        true
    }

    /// Its arguments as kernels get them: at most two, 0 where there are fewer.
    fn arguments(self) -> [f64; 2] {
        [0.0; 2]
    }

    /// How to test it.
    fn examples() -> Examples<Self>;
}

/// The kernels of a [`Unary`]: lines of the tables in `kernels/elementwise.cu`.
#[derive(Clone, Copy, Debug)]
pub struct UnaryKernels {
    /// The value.
    pub forward: UnaryF,
    /// The gradient.
    pub backward: UnaryBackwardF,
    /// The value at integers.
    pub integer: Option<UnaryIntF>,
}

impl UnaryKernels {
    fn of<F: Unary>(op: &'static str) -> Result<UnaryKernels> {
        F::KERNELS.ok_or_else(|| Error::unsupported(op, "this function has no kernels for GPUs"))
    }

    /// The gradient of an activation that [`ActivationBackward`] takes; `None` for the identity.
    fn gradient(of: Activation) -> Option<UnaryBackwardF> {
        match of {
            Activation::Identity => None,
            Activation::Relu => Some(UnaryBackwardF::Relu),
            Activation::Gelu => Some(UnaryBackwardF::Gelu),
            Activation::GeluTanh => Some(UnaryBackwardF::GeluTanh),
            Activation::Silu => Some(UnaryBackwardF::Silu),
            Activation::Sigmoid => Some(UnaryBackwardF::Sigmoid),
            Activation::Tanh => Some(UnaryBackwardF::Tanh),
        }
    }
}

/// Launches the gradient of a function of one operand. Inputs: dy, and what the gradient reads, if anything.
fn gradient(
    stream: &Stream,
    f: UnaryBackwardF,
    [p, q]: [f64; 2],
    inputs: &[View<'_>],
    dx: &mut Out<'_>,
) -> Result<()> {
    let add = adds(dx);
    elementwise(dx, [inputs.first(), inputs.get(1), None], &mut |piece| {
        let (dims, [dy_by, s_by, ..], n, wide) = (piece.dims, piece.by, piece.n, piece.wide);
        let (dy, s) = (present(&piece, 0)?, piece.src[1]);
        kernels::UnaryBackward { f, wide, dy, s, dx: piece.y(), dims, dy_by, s_by, n, add, p, q }
            .launch(stream)
    })
}

/// How to test a [`Unary`].
#[derive(Clone, Debug)]
pub struct Examples<F> {
    /// Arguments to try.
    pub list: Vec<F>,
    /// Values of the input.
    pub input: Values,
    /// Values of what the gradient reads.
    pub saved: Values,
    /// How exact the value and the gradient are.
    pub tolerance: (Tolerance, Tolerance),
}

/// The arithmetic of integer tensors: wraps like machine integers.
pub trait Integer: Work + Ord {
    /// −x
    fn negated(self) -> Self;
    /// x · y
    fn times(self, other: Self) -> Self;
}

macro_rules! integers {
    ($($t:ident),*) => {$(
        impl Integer for $t {
            #[inline(always)]
            fn negated(self) -> Self {
                self.wrapping_neg()
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
        }
    )*};
}
integers!(i32, i64);

/// y = f(x), element by element, of any layout. Gradient: [`MapBackward`].
#[derive(Clone, Copy, Debug)]
pub struct Map<F>(pub F);

/// The gradient of [`Map`]. Inputs: dy, and the input or output that [`Unary::READS`] names.
#[derive(Clone, Copy, Debug)]
pub struct MapBackward<F>(pub F);

/// The gradient of an activation, for ops that fuse it. Inputs: dy, and the input or output that [`Activation::reads`]
/// names.
#[derive(Clone, Copy, Debug)]
pub struct ActivationBackward {
    /// Whose gradient.
    pub activation: Activation,
}

/// A view as an operand of the elementwise driver.
pub(in crate::ops) fn source<'a>(view: &View<'a>) -> Source<'a> {
    dispatch!(view.dtype(), T => Source::new(view.data::<T>(), view.layout()))
}

/// An output as the target of the elementwise driver.
pub(in crate::ops) fn target<'a>(out: &'a mut Out<'_>) -> Target<'a> {
    let add = out.mode() == Mode::Accumulate;
    dispatch!(out.dtype(), T => Target::new(out.slice::<T>(), add))
}

/// Calls `$body` with `$W` bound to the computing type of a float dtype; `$Int` likewise for the index types.
macro_rules! by_kind {
    ($dtype:expr, float $W:ident => $body:expr, int $I:ident => $int:expr, name $name:expr) => {
        match $dtype {
            DType::F32 | DType::BF16 | DType::F16 => {
                type $W = f32;
                $body
            }
            DType::F64 => {
                type $W = f64;
                $body
            }
            DType::I32 => {
                type $I = i32;
                $int
            }
            DType::I64 => {
                type $I = i64;
                $int
            }
            DType::U8 => return Err(Error::internal("a dtype that infer lets nobody pass").with_op($name)),
        }
    };
}
pub(in crate::ops) use by_kind;

/// Refuses an element type, and says which are accepted.
pub(in crate::ops) fn refuse(op: &'static str, dtype: DType, integers: bool) -> Error {
    let accepted = if integers { "f32, f64, bf16, f16, i32 or i64" } else { "f32, f64, bf16 or f16" };
    let error = Error::dtype(op, format!("expected {accepted}, found {dtype}"));
    if integers { error } else { error.with_help("cast it first with to_dtype") }
}

/// Checks that a gradient and what it is computed from are alike.
fn alike(op: &'static str, inputs: &[Meta]) -> Result<Plan> {
    let [dy, rest @ ..] = inputs else { return Err(Error::shape(op, "no inputs")) };
    if !dy.dtype.is_float() {
        return Err(refuse(op, dy.dtype, false));
    }
    if let Some(other) = rest.iter().find(|m| m.shape != dy.shape || m.dtype != dy.dtype) {
        let message = format!("the gradient is {dy} but what it is computed from is {other}");
        return Err(if other.dtype == dy.dtype {
            Error::shape(op, message)
        } else {
            Error::dtype(op, message).with_help("cast one of them with to_dtype; nothing is promoted")
        });
    }
    Ok(Plan::one(*dy))
}

impl<F: Unary> Op for Map<F> {
    const NAME: &'static str = F::NAME;
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        match F::READS {
            Reads::Nothing => Saves::NONE,
            Reads::Input => Saves::inputs(&[0]),
            Reads::Output => Saves::outputs(&[0]),
        }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let dtype = inputs[0].dtype;
        let accepted = dtype.is_float() || F::INTEGERS && matches!(dtype, DType::I32 | DType::I64);
        if !accepted {
            return Err(refuse(Self::NAME, dtype, F::INTEGERS));
        }
        if !dtype.is_float() && !self.0.whole() {
            let message = format!("{:?} has an argument that is no integer, for a tensor of {dtype}", self.0);
            return Err(Error::dtype(Self::NAME, message).with_help("cast the tensor with to_dtype"));
        }
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (f, x, y) = (self.0, source(&inputs[0]), &mut outputs[0]);
        by_kind!(
            y.dtype(),
            float R => apply(target(y), [x], &each1(#[inline(always)] |x: R| f.forward(x))),
            int I => apply(target(y), [x], &each1(#[inline(always)] |x: I| f.integer(x))),
            name Self::NAME
        );
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (kernel, y) = (UnaryKernels::of::<F>(Self::NAME)?, &mut outputs[0]);
        let ([p, q], dtype, add) = (self.0.arguments(), y.dtype(), adds(y));
        elementwise(y, [Some(&inputs[0]), None, None], &mut |piece| {
            let (dims, x_by, n, wide, x) =
                (piece.dims, piece.by[0], piece.n, piece.wide, present(&piece, 0)?);
            if dtype.is_float() {
                let f = kernel.forward;
                return kernels::Unary { f, wide, x, y: piece.y(), dims, x_by, n, add, p, q }.launch(stream);
            }
            let f = kernel.integer.ok_or_else(|| refuse(Self::NAME, dtype, false))?;
            let [p, q] = [p, q].map(|v| if dtype == DType::I32 { i64::from(v as i32) } else { v as i64 });
            kernels::UnaryInt { f, wide, x, y: piece.y(), dims, x_by, n, add, p, q }.launch(stream)
        })
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        match F::READS {
            Reads::Nothing => cx.run(MapBackward(self.0), &[dy], &[0]),
            Reads::Input => cx.run(MapBackward(self.0), &[dy, &cx.input(0)?], &[0]),
            Reads::Output => cx.run(MapBackward(self.0), &[dy, &cx.output(0)?], &[0]),
        }
    }

    fn cases() -> Cases<Self> {
        let Examples { list: ops, input, tolerance, .. } = F::examples();
        let dtypes: &[DType] = if F::INTEGERS { &NUMBERS } else { &DType::FLOATS };
        let mut list = Vec::new();
        for (i, &op) in ops.iter().enumerate() {
            let shapes: &[&[usize]] = if i == 0 { &SHAPES } else { &[&[33]] };
            let case = |values: &Values, shape: &[usize]| Case {
                op: Map(op),
                inputs: vec![Arg::new(shape, values.clone())],
            };
            list.extend(shapes.iter().map(|s| case(&input, s)));
            list.push(case(&input, &[3, 600]));
            let special = Values::Exactly(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, 1.0, -1.0]);
            list.push(Case { op: Map(op), inputs: vec![Arg::constant(&[6], special)] });
        }
        Cases { dtypes, tolerance: tolerance.0, list }
    }
}

const NUMBERS: [DType; 6] = [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I32, DType::I64];

impl<F: Unary> Op for MapBackward<F> {
    const NAME: &'static str = F::BACKWARD;
    const INPUTS: RangeInclusive<usize> = if matches!(F::READS, Reads::Nothing) { 1..=1 } else { 2..=2 };
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        alike(Self::NAME, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (f, dy, dx) = (self.0, source(&inputs[0]), target(&mut outputs[0]));
        match (inputs.get(1).map(source), inputs[0].dtype()) {
            (None, DType::F64) => apply(
                dx,
                [dy],
                &each1(
                    #[inline(always)]
                    |dy: f64| f.backward(dy, 0.0),
                ),
            ),
            (None, _) => apply(
                dx,
                [dy],
                &each1(
                    #[inline(always)]
                    |dy: f32| f.backward(dy, 0.0),
                ),
            ),
            (Some(s), DType::F64) => apply(
                dx,
                [dy, s],
                &each2(
                    #[inline(always)]
                    |dy: f64, s| f.backward(dy, s),
                ),
            ),
            (Some(s), _) => apply(
                dx,
                [dy, s],
                &each2(
                    #[inline(always)]
                    |dy: f32, s| f.backward(dy, s),
                ),
            ),
        }
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let kernel = UnaryKernels::of::<F>(Self::NAME)?;
        gradient(stream, kernel.backward, self.0.arguments(), inputs, &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let Examples { list: ops, saved, tolerance, .. } = F::examples();
        let case = |op: F, shape: &[usize]| {
            let mut inputs = vec![Arg::constant(shape, Values::Normal(1.0))];
            if F::READS != Reads::Nothing {
                inputs.push(Arg::constant(shape, saved.clone()));
            }
            Case { op: MapBackward(op), inputs }
        };
        let shapes: [&[usize]; 6] = [&[], &[0], &[7], &[257], &[5, 13], &[3, 600]];
        let list = ops.iter().flat_map(|&op| shapes.iter().map(move |s| (op, s)));
        let list = list.map(|(op, s)| case(op, s)).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: tolerance.1, list }
    }
}

impl Op for ActivationBackward {
    const NAME: &'static str = "activation_backward";
    const INPUTS: RangeInclusive<usize> = 1..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        if inputs.len() == 1 && self.activation.reads() != Reads::Nothing {
            let message = format!("the gradient of {} needs a second input", self.activation.name());
            return Err(Error::shape(Self::NAME, message));
        }
        alike(Self::NAME, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (of, dx) = (self.activation, target(&mut outputs[0]));
        // The identity reads nothing: any second operand will do.
        let sources = [source(&inputs[0]), source(inputs.get(1).unwrap_or(&inputs[0]))];
        match inputs[0].dtype() {
            DType::F64 => apply(dx, sources, &|_, [dy, saved]: [&[f64]; 2], dx: &mut [f64]| {
                vectorize(
                    #[inline(always)]
                    || of.backward_all(dy, saved, dx),
                )
            }),
            _ => apply(dx, sources, &|_, [dy, saved]: [&[f32]; 2], dx: &mut [f32]| {
                vectorize(
                    #[inline(always)]
                    || of.backward_all(dy, saved, dx),
                )
            }),
        }
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (dy, dx) = (&inputs[0], &mut outputs[0]);
        match UnaryKernels::gradient(self.activation) {
            Some(f) => gradient(stream, f, [0.0; 2], inputs, dx),
            None => {
                let (layout, add) = (Layout::contiguous(dx.shape()), adds(dx) == 1);
                copy::strided(stream, dy.src(), dy.layout(), dx.dst(), &layout, add)
            }
        }
    }

    fn cases() -> Cases<Self> {
        let case = |of: Activation, shape: &[usize]| {
            let dy = Arg::constant(shape, Values::Normal(1.0));
            let saved = match of.reads() {
                Reads::Nothing => {
                    return Case { op: ActivationBackward { activation: of }, inputs: vec![dy] };
                }
                // The output of any activation that is computed from its output, and no kink of relu.
                Reads::Output => Values::Uniform(0.01, 0.99),
                Reads::Input => AWAY_FROM_EXTREMA,
            };
            Case { op: ActivationBackward { activation: of }, inputs: vec![dy, Arg::constant(shape, saved)] }
        };
        let shapes: [&[usize]; 4] = [&[], &[0], &[33], &[3, 600]];
        let list = Activation::ALL.iter().flat_map(|&of| shapes.iter().map(move |s| case(of, s))).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: CURVED, list }
    }
}

/// gelu and silu have a minimum, where the terms of the gradient cancel.
pub(super) const AWAY_FROM_EXTREMA: Values = Values::AwayFrom { points: &[-0.7518, -1.2785], gap: 0.1 };
pub(super) const CURVED: Tolerance = Tolerance::Ulp(
    48.0,
    "sums of terms of unlike sign, and arguments whose rounding the exponential magnifies",
);
