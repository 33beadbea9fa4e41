//! Ops of one operand, element by element. A new one is one entry of the table below: value, gradient, what the gradient
//! reads, how exact both are and on which values they are tested; the tensor method and the op pair come from it. The
//! same line for GPUs stands in `kernels/elementwise.cu`.
//!
//! Each computes in f32 (f64 for f64) and rounds once. NaN goes through. Integers are accepted where the op makes sense
//! for them (`int` in the table); they wrap.

#![forbid(unsafe_code)]

mod map;

use super::{Tolerance, Values, run1};
use crate::Result;
use crate::cpu::activation::{Activation, Reads};
use crate::device::kernels::elementwise::{UnaryBackwardF, UnaryF, UnaryIntF};
use crate::dtype::Real;
use crate::tensor::Tensor;

use map::{AWAY_FROM_EXTREMA, CURVED};
pub use map::{ActivationBackward, Examples, Integer, Map, MapBackward, Unary, UnaryKernels};
pub(super) use map::{by_kind, refuse, source, target};

const ZERO: Values = Values::AwayFrom { points: &[0.0], gap: 0.05 };

const fn ulp(n: f64) -> Tolerance {
    if n == 0.0 {
        Tolerance::Exact
    } else {
        Tolerance::Ulp(n, "the bound of the function, one more a product")
    }
}

macro_rules! unary {
    ($(
        $(#[$doc:meta])*
        $method:ident($($field:ident),*) = $name:ident, $backward_name:literal, $reads:ident;
        |$x:ident| $forward:expr, |$dy:ident, $saved:ident| $backward:expr $(, int |$i:ident $(, $own:pat_param)?| $integer:expr)?;
        $list:expr, $input:expr, $saved_values:expr, $exact:expr, $exact_backward:expr;
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name {
                $(#[doc = concat!("The argument `", stringify!($field), "`.")] pub $field: f64,)*
            }

            impl Unary for $name {
                const NAME: &'static str = stringify!($method);
                const BACKWARD: &'static str = $backward_name;
                const READS: Reads = Reads::$reads;
                const KERNELS: Option<UnaryKernels> = Some(UnaryKernels {
                    forward: UnaryF::$name,
                    backward: UnaryBackwardF::$name,
                    integer: unary!(@integer $name $(, $i)?),
                });

                fn arguments(self) -> [f64; 2] {
                    let (given, mut all): (&[f64], _) = (&[$(self.$field),*], [0.0; 2]);
                    all[..given.len()].copy_from_slice(given);
                    all
                }

                #[inline(always)]
                fn forward<R: Real>(self, $x: R) -> R {
                    let $name { $($field),* } = self;
                    $forward
                }

                #[inline(always)]
                fn backward<R: Real>(self, $dy: R, $saved: R) -> R {
                    #[allow(unused_variables, reason = "the gradient of a sum knows no summand")]
                    let $name { $($field),* } = self;
                    $backward
                }

                $(
                    const INTEGERS: bool = true;

                    #[inline(always)]
                    fn integer<I: Integer>(self, $i: I) -> I {
                        $(let $own = self;)?
                        $integer
                    }
                )?

                fn whole(self) -> bool {
                    let arguments: &[f64] = &[$(self.$field),*];
                    // Infinite bounds of clamp bound nothing; any other number must be an integer that i32 holds.
                    arguments.iter().all(|a| (Self::NAME == "clamp" && a.is_infinite()) || (a.fract() == 0.0 && a.abs() <= i32::MAX as f64))
                }

                fn examples() -> Examples<Self> {
                    Examples {
                        list: $list.to_vec(),
                        input: $input,
                        saved: $saved_values,
                        tolerance: ($exact, $exact_backward),
                    }
                }
            }
        )*

        super::family!($(Map<$name>, MapBackward<$name>,)* ActivationBackward);

        impl Tensor {
            $(
                $(#[$doc])*
                #[track_caller]
                pub fn $method(&self $(, $field: f64)*) -> Result<Tensor> {
                    run1(Map($name { $($field),* }), &[self])
                }
            )*
        }
    };
    (@integer $name:ident) => { None };
    (@integer $name:ident, $i:ident) => { Some(UnaryIntF::$name) };
}

// Each entry: name(arguments) = type, name of the gradient, what that reads; value, gradient, value for integers; argument
// examples, input values, values of what the gradient reads, how exact both are.
unary! {
    /// max(x, 0). The gradient at 0 is 0.
    relu() = Relu, "relu_backward", Output;
    |x| Activation::Relu.apply(x), |dy, y| Activation::Relu.backward(dy, y), int |x| x.max(I::default());
    [Relu {}], ZERO, ZERO, Tolerance::Exact, Tolerance::Exact;

    /// x, multiplied by `slope` where it is not positive.
    leaky_relu(slope) = LeakyRelu, "leaky_relu_backward", Input;
    |x| if x > R::ZERO { x } else { x * R::of(slope) },
    |dy, x| if x > R::ZERO { dy } else { dy * R::of(slope) };
    [LeakyRelu { slope: 0.01 }, LeakyRelu { slope: 0.5 }], ZERO, ZERO, ulp(2.0), ulp(2.0);

    /// x · (1 + erf(x / √2)) / 2, PyTorch's gelu with `approximate='none'`; also accurate for negative x.
    gelu() = Gelu, "gelu_backward", Input;
    |x| Activation::Gelu.apply(x), |dy, x| Activation::Gelu.backward(dy, x);
    [Gelu {}], Values::Normal(2.0), AWAY_FROM_EXTREMA, ulp(12.0), CURVED;

    /// x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2, PyTorch's gelu with `approximate='tanh'`.
    gelu_tanh() = GeluTanh, "gelu_tanh_backward", Input;
    |x| Activation::GeluTanh.apply(x), |dy, x| Activation::GeluTanh.backward(dy, x);
    [GeluTanh {}], Values::Normal(1.0), AWAY_FROM_EXTREMA, CURVED, CURVED;

    /// x / (1 + e⁻ˣ)
    silu() = Silu, "silu_backward", Input;
    |x| Activation::Silu.apply(x), |dy, x| Activation::Silu.backward(dy, x);
    [Silu {}], Values::Normal(2.0), AWAY_FROM_EXTREMA, ulp(3.0), CURVED;

    /// 1 / (1 + e⁻ˣ)
    sigmoid() = Sigmoid, "sigmoid_backward", Output;
    |x| Activation::Sigmoid.apply(x), |dy, y| Activation::Sigmoid.backward(dy, y);
    [Sigmoid {}], Values::Normal(3.0), Values::Uniform(0.01, 0.99), ulp(2.0), ulp(3.0);

    /// Hyperbolic tangent.
    tanh() = Tanh, "tanh_backward", Output;
    |x| Activation::Tanh.apply(x), |dy, y| Activation::Tanh.backward(dy, y);
    [Tanh {}], Values::Normal(1.0), Values::Uniform(-0.99, 0.99), ulp(2.0), ulp(3.0);

    /// x / (1 + |x|)
    softsign() = Softsign, "softsign_backward", Input;
    |x| x / (R::ONE + x.abs()), |dy, x| {
        let slope = R::ONE / (R::ONE + x.abs());
        dy * (slope * slope)
    };
    [Softsign {}], ZERO, ZERO, ulp(2.0), ulp(4.0);

    /// eˣ
    exp() = Exp, "exp_backward", Output;
    |x| x.exp(), |dy, y| dy * y;
    [Exp {}], Values::Normal(2.0), Values::Uniform(0.1, 9.0), ulp(1.0), Tolerance::Exact;

    /// Natural logarithm: −∞ at 0, NaN below.
    log() = Log, "log_backward", Input;
    |x| x.ln(), |dy, x| dy / x;
    [Log {}], Values::Uniform(0.1, 9.0), Values::Uniform(0.1, 9.0), ulp(1.0), Tolerance::Exact;

    /// √x; NaN below 0.
    sqrt() = Sqrt, "sqrt_backward", Output;
    |x| x.sqrt(), |dy, y| dy / (y + y);
    [Sqrt {}], Values::Uniform(0.1, 9.0), Values::Uniform(0.3, 3.0), Tolerance::Exact, Tolerance::Exact;

    /// 1 / √x
    rsqrt() = Rsqrt, "rsqrt_backward", Output;
    |x| R::ONE / x.sqrt(), |dy, y| R::of(-0.5) * dy * (y * y * y);
    [Rsqrt {}], Values::Uniform(0.1, 9.0), Values::Uniform(0.3, 3.0), ulp(2.0), ulp(3.0);

    /// |x|. The gradient at 0 is 0.
    abs() = Abs, "abs_backward", Input;
    |x| x.abs(), |dy, x| if x > R::ZERO { dy } else if x < R::ZERO { -dy } else { x * R::ZERO * dy },
    int |x| if x < I::default() { x.negated() } else { x };
    [Abs {}], ZERO, ZERO, Tolerance::Exact, Tolerance::Exact;

    /// −x
    neg() = Neg, "neg_backward", Nothing;
    |x| -x, |dy, _x| -dy, int |x| x.negated();
    [Neg {}], Values::Normal(1.0), Values::Normal(1.0), Tolerance::Exact, Tolerance::Exact;

    /// x²
    square() = Square, "square_backward", Input;
    |x| x * x, |dy, x| dy * (x + x), int |x| x.times(x);
    [Square {}], Values::Normal(1.0), Values::Normal(1.0), Tolerance::Exact, Tolerance::Exact;

    /// 1 / x
    reciprocal() = Reciprocal, "reciprocal_backward", Output;
    |x| R::ONE / x, |dy, y| -dy * (y * y);
    [Reciprocal {}], Values::Uniform(0.1, 9.0), Values::Uniform(0.1, 9.0), Tolerance::Exact, ulp(2.0);

    /// x between `min` and `max`, one of which may be infinite; all `max` where `min` is larger. The gradient passes where
    /// x lies between them, bounds included.
    clamp(min, max) = Clamp, "clamp_backward", Input;
    |x| {
        let x = if x < R::of(min) || min.is_nan() { R::of(min) } else { x };
        if x > R::of(max) || max.is_nan() { R::of(max) } else { x }
    },
    |dy, x| if x >= R::of(min) && x <= R::of(max) { dy } else { R::ZERO },
    int |x, Clamp { min, max }| x.max(I::from_f64(min)).min(I::from_f64(max));
    [Clamp { min: -1.0, max: 2.0 }, Clamp { min: f64::NEG_INFINITY, max: 0.0 }],
    Values::AwayFrom { points: &[-1.0, 0.0, 2.0], gap: 0.05 }, Values::AwayFrom { points: &[-1.0, 0.0, 2.0], gap: 0.05 },
    Tolerance::Exact, Tolerance::Exact;

    /// x + `value`, taken as the tensor's element type; for integers it must be whole.
    add_scalar(value) = AddScalar, "add_scalar_backward", Nothing;
    |x| x + R::of(value), |dy, _x| dy, int |x, AddScalar { value }| x.plus(I::from_f64(value));
    [AddScalar { value: 3.0 }, AddScalar { value: -1.0 }], Values::Normal(1.0), Values::Normal(1.0),
    Tolerance::Exact, Tolerance::Exact;

    /// x · `value`, taken as the tensor's element type; for integers it must be whole.
    mul_scalar(value) = MulScalar, "mul_scalar_backward", Nothing;
    |x| x * R::of(value), |dy, _x| dy * R::of(value), int |x, MulScalar { value }| x.times(I::from_f64(value));
    [MulScalar { value: -3.0 }, MulScalar { value: 2.0 }], Values::Normal(1.0), Values::Normal(1.0),
    Tolerance::Exact, Tolerance::Exact;

    /// x / `value`, taken as the tensor's element type.
    div_scalar(value) = DivScalar, "div_scalar_backward", Nothing;
    |x| x / R::of(value), |dy, _x| dy / R::of(value);
    [DivScalar { value: 3.0 }, DivScalar { value: -0.5 }], Values::Normal(1.0), Values::Normal(1.0),
    Tolerance::Exact, Tolerance::Exact;

    /// x to the power of `exponent`, by the general power function; `pow_scalar` takes a shorter way where there is one.
    powf(exponent) = Powf, "powf_backward", Input;
    |x| x.powf(R::of(exponent)),
    |dy, x| {
        let slope = R::of(exponent) * x.powf(R::of(exponent - 1.0));
        // xᵖ is 1 for p = 0, at 0 too.
        if exponent == 0.0 { R::ZERO * dy } else { dy * slope }
    };
    [Powf { exponent: 3.0 }, Powf { exponent: -1.5 }, Powf { exponent: 0.0 }, Powf { exponent: 2.5 }],
    Values::Uniform(0.2, 3.0), Values::Uniform(0.2, 3.0), ulp(1.0), ulp(3.0);
}

impl Tensor {
    /// 1 / x; the short name of [`Tensor::reciprocal`].
    #[track_caller]
    pub fn recip(&self) -> Result<Tensor> {
        self.reciprocal()
    }

    /// x − `value`, taken as the tensor's element type; for integers it must be whole.
    #[track_caller]
    pub fn sub_scalar(&self, value: f64) -> Result<Tensor> {
        self.add_scalar(-value)
    }

    /// x to the power of `exponent`: products, a quotient or a root where that is what the exponent means.
    #[track_caller]
    pub fn pow_scalar(&self, exponent: f64) -> Result<Tensor> {
        match exponent {
            1.0 => Ok(self.clone()),
            2.0 => self.square(),
            -1.0 => self.reciprocal(),
            0.5 => self.sqrt(),
            -0.5 => self.rsqrt(),
            _ => self.powf(exponent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn nan_goes_through_every_function() {
        let x = Tensor::from_slice(&[f32::NAN, 1.0], 2, Device::Cpu).unwrap();
        for y in [x.relu(), x.clamp(-1.0, 1.0), x.abs(), x.gelu(), x.leaky_relu(0.1), x.powf(2.5)] {
            let y = y.unwrap().to_vec::<f32>().unwrap();
            assert!(y[0].is_nan() && y[1] > 0.0);
        }
    }

    #[test]
    fn integers_wrap_and_refuse_what_is_not_whole() {
        let x = Tensor::from_slice(&[i32::MIN, -3, 0, 7], 4, Device::Cpu).unwrap();
        let of = |t: Result<Tensor>| t.unwrap().to_vec::<i32>().unwrap();
        assert_eq!(of(x.abs()), [i32::MIN, 3, 0, 7]);
        assert_eq!(of(x.relu()), [0, 0, 0, 7]);
        assert_eq!(of(x.clamp(-1.0, f64::INFINITY)), [-1, -1, 0, 7]);
        assert_eq!(of(x.mul_scalar(2.0)), [0, -6, 0, 14]);
        for error in [x.add_scalar(0.5), x.exp(), x.clamp(f64::NAN, 1.0)] {
            assert_eq!(error.unwrap_err().kind(), crate::ErrorKind::DType);
        }
    }
}
