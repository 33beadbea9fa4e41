//! Ops of two operands under NumPy's broadcasting, element by element: arithmetic with gradients, and comparisons.
//!
//! A new one is one entry of a table below. Both operands must have one dtype: nothing is promoted, the error names the
//! cast. A gradient of a broadcast operand is summed over the repeated dimensions by [`SumTo`].

#![forbid(unsafe_code)]

mod zip;

use super::unary::Integer;
use super::{Tolerance, Values, run1};
use crate::device::kernels::elementwise::{BinaryBackwardF, BinaryF, BinaryIntF};
use crate::dtype::Real;
use crate::tensor::Tensor;
use crate::{DType, Error, Result};

pub use zip::{Binary, BinaryKernels, Compare, Comparison, Zip, ZipBackward};

macro_rules! binary {
    ($(
        $(#[$doc:meta])*
        $method:ident = $name:ident, $backward_name:literal $(, sign $sign:literal)?, reads $reads:expr;
        |$a:ident, $b:ident| $forward:expr, |$dy:ident| $grad_a:expr, $grad_b:expr $(, int $integer:expr)?;
        $values_a:expr, $values_b:expr, $exact:expr, $exact_backward:expr;
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl Binary for $name {
                const NAME: &'static str = stringify!($method);
                const BACKWARD: &'static str = $backward_name;
                const INTEGERS: bool = binary!(@given $($integer)?);
                $(const SIGN: Option<f64> = Some($sign);)?
                const READS: [[bool; 2]; 2] = $reads;
                const KERNELS: Option<BinaryKernels> = Some(BinaryKernels {
                    forward: BinaryF::$name,
                    backward: BinaryBackwardF::$name,
                    integer: binary!(@kernel $name $(, $integer)?),
                });

                fn new() -> Self {
                    $name
                }

                #[inline(always)]
                fn forward<R: Real>(self, $a: R, $b: R) -> R {
                    $forward
                }

                #[inline(always)]
                #[allow(unused_variables, reason = "few gradients read everything")]
                fn grad_a<R: Real>(self, $dy: R, $a: R, $b: R) -> R {
                    $grad_a
                }

                #[inline(always)]
                #[allow(unused_variables, reason = "few gradients read everything")]
                fn grad_b<R: Real>(self, $dy: R, $a: R, $b: R) -> R {
                    $grad_b
                }

                #[inline(always)]
                #[allow(unused_variables, reason = "some have no form for integers")]
                fn integer<I: Integer>(self, $a: I, $b: I) -> I {
                    binary!(@or_first $a $(, $integer)?)
                }

                fn examples() -> (Values, Values, Tolerance, Tolerance) {
                    ($values_a, $values_b, $exact, $exact_backward)
                }
            }

            impl Tensor {
                $(#[$doc])*
                #[track_caller]
                pub fn $method(&self, other: &Tensor) -> Result<Tensor> {
                    run1(Zip($name), &[self, other])
                }
            }
        )*
            };
    (@kernel $name:ident) => { None };
    (@kernel $name:ident, $integer:expr) => { Some(BinaryIntF::$name) };
    (@given) => { false };
    (@given $integer:expr) => { true };
    (@or_first $a:ident) => { $a };
    (@or_first $a:ident, $integer:expr) => { $integer };
}

macro_rules! comparisons {
    ($($(#[$doc:meta])* $method:ident, $scalar:ident = $name:ident |$a:ident, $b:ident| $holds:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Comparison for $name {
            const NAME: &'static str = stringify!($method);

            fn new() -> Self {
                $name
            }

            #[inline(always)]
            fn holds<W: PartialOrd>(self, $a: W, $b: W) -> bool {
                $holds
            }
        }

        impl Tensor {
            $(#[$doc])*
            #[track_caller]
            pub fn $method(&self, other: &Tensor) -> Result<Tensor> {
                run1(Compare($name), &[self, other])
            }

            $(#[$doc])*
            ///
            /// The second operand is a number, rounded to the tensor's element type; an error if an integer type cannot hold it.
            #[track_caller]
            pub fn $scalar(&self, value: f64) -> Result<Tensor> {
                if !self.dtype().is_float() && !held_by(self.dtype(), value) {
                    let message = format!("{value} is not a number of type {}", self.dtype());
                    return Err(Error::dtype(stringify!($scalar), message).with_help("cast the tensor first, with to_dtype"));
                }
                run1(Compare($name), &[self, &Tensor::full((), value, self.dtype(), self.device())?])
            }
        }
    )*};
}

/// Whether a value of an element type is exactly `value`.
fn held_by(dtype: DType, value: f64) -> bool {
    use crate::dtype::Element;
    crate::dispatch!(dtype, T => T::from_f64(value).to_f64() == value)
}

/// Odd numbers for a and even ones for b: never equal, so that differences see no kink.
const ODD: Values = Values::OneOf(&[-3.0, -1.0, 1.0, 3.0]);
const EVEN: Values = Values::OneOf(&[-2.0, 0.0, 2.0]);
const fn ulp(n: f64) -> Tolerance {
    Tolerance::Ulp(n, "the bound of the power function, one more a product or quotient")
}

// Each entry: name = type, name of the gradient op, what the gradients read ([a, b] for that of a, then of b); value,
// gradients of a and b, value for integers; values of a and b to test with, how exact value and gradients are.
binary! {
    /// a + b, with broadcasting.
    add = Add, "add_backward", sign 1.0, reads [[false, false], [false, false]];
    |a, b| a + b, |dy| dy, dy, int a.plus(b);
    Values::Normal(1.0), Values::Normal(1.0), Tolerance::Exact, Tolerance::Exact;

    /// a − b, with broadcasting.
    sub = Sub, "sub_backward", sign -1.0, reads [[false, false], [false, false]];
    |a, b| a - b, |dy| dy, -dy, int a.plus(b.negated());
    Values::Normal(1.0), Values::Normal(1.0), Tolerance::Exact, Tolerance::Exact;

    /// a · b, with broadcasting.
    mul = Mul, "mul_backward", reads [[false, true], [true, false]];
    |a, b| a * b, |dy| dy * b, dy * a, int a.times(b);
    Values::Normal(1.0), Values::Normal(1.0), Tolerance::Exact, Tolerance::Exact;

    /// a / b, with broadcasting. Floats only.
    div = Div, "div_backward", reads [[false, true], [true, true]];
    |a, b| a / b, |dy| dy / b, -dy * (a / b / b);
    Values::Normal(1.0), Values::AwayFrom { points: &[0.0], gap: 0.3 }, Tolerance::Exact, ulp(3.0);

    /// a to the power of b, with broadcasting. Floats only. The gradient of a is 0 where b is 0, and that of b is 0 where
    /// a is 0 and b is not negative.
    pow = Pow, "pow_backward", reads [[true, true], [true, true]];
    |a, b| a.powf(b),
    |dy| if b == R::ZERO { R::ZERO * dy } else { dy * (b * a.powf(b - R::ONE)) },
    if a == R::ZERO && b >= R::ZERO { R::ZERO * dy } else { dy * (a.powf(b) * a.ln()) };
    Values::Uniform(0.2, 3.0), Values::Uniform(-2.0, 2.0), ulp(1.0),
    Tolerance::Ulp(8.0, "b - 1 is rounded, which the power magnifies by ln a");

    /// The larger of a and b, NaN if either is, with broadcasting. At a tie each gets half of the gradient, as in PyTorch.
    maximum = Maximum, "maximum_backward", reads [[true, true], [true, true]];
    |a, b| if a.is_nan() || a > b { a } else { b },
    |dy| if a == b { R::of(0.5) * dy } else if a < b { R::ZERO } else { dy },
    if a == b { R::of(0.5) * dy } else if b < a { R::ZERO } else { dy }, int a.max(b);
    ODD, EVEN, Tolerance::Exact, Tolerance::Exact;

    /// The smaller of a and b, NaN if either is, with broadcasting. At a tie each gets half of the gradient, as in PyTorch.
    minimum = Minimum, "minimum_backward", reads [[true, true], [true, true]];
    |a, b| if a.is_nan() || a < b { a } else { b },
    |dy| if a == b { R::of(0.5) * dy } else if a > b { R::ZERO } else { dy },
    if a == b { R::of(0.5) * dy } else if b > a { R::ZERO } else { dy }, int a.min(b);
    ODD, EVEN, Tolerance::Exact, Tolerance::Exact;
}

comparisons! {
    /// Where a = b, as u8 0 or 1, with broadcasting.
    eq, eq_scalar = Eq |a, b| a == b;
    /// Where a ≠ b, as u8 0 or 1, with broadcasting; NaN differs from everything.
    ne, ne_scalar = Ne |a, b| a != b;
    /// Where a < b, as u8 0 or 1, with broadcasting.
    lt, lt_scalar = Lt |a, b| a < b;
    /// Where a ≤ b, as u8 0 or 1, with broadcasting.
    le, le_scalar = Le |a, b| a <= b;
    /// Where a > b, as u8 0 or 1, with broadcasting.
    gt, gt_scalar = Gt |a, b| a > b;
    /// Where a ≥ b, as u8 0 or 1, with broadcasting.
    ge, ge_scalar = Ge |a, b| a >= b;
}

super::family!(
    Zip<Add>,
    Zip<Sub>,
    Zip<Mul>,
    Zip<Div>,
    Zip<Pow>,
    Zip<Maximum>,
    Zip<Minimum>,
    ZipBackward<Mul>,
    ZipBackward<Div>,
    ZipBackward<Pow>,
    ZipBackward<Maximum>,
    ZipBackward<Minimum>,
    Compare<Eq>,
    Compare<Ne>,
    Compare<Lt>,
    Compare<Le>,
    Compare<Gt>,
    Compare<Ge>,
);

macro_rules! operators {
    ($($operator:ident, $method:ident, $scalar:ident;)*) => {$(
        impl std::ops::$operator for &Tensor {
            type Output = Result<Tensor>;

            #[track_caller]
            fn $method(self, other: &Tensor) -> Result<Tensor> {
                Tensor::$method(self, other)
            }
        }

        impl std::ops::$operator<f64> for &Tensor {
            type Output = Result<Tensor>;

            #[track_caller]
            fn $method(self, value: f64) -> Result<Tensor> {
                self.$scalar(value)
            }
        }
    )*};
}
operators! {
    Add, add, add_scalar;
    Sub, sub, sub_scalar;
    Mul, mul, mul_scalar;
    Div, div, div_scalar;
}

impl std::ops::Neg for &Tensor {
    type Output = Result<Tensor>;

    #[track_caller]
    fn neg(self) -> Result<Tensor> {
        Tensor::neg(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, ErrorKind};

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, values.len(), Device::Cpu).unwrap()
    }

    #[test]
    fn nan_wins_in_maximum_and_minimum_on_either_side() {
        let (a, b) = (tensor(&[f32::NAN, 1.0, -2.0]), tensor(&[1.0, f32::NAN, 3.0]));
        for y in [a.maximum(&b), a.minimum(&b)] {
            let y = y.unwrap().to_vec::<f32>().unwrap();
            assert!(y[0].is_nan() && y[1].is_nan() && !y[2].is_nan());
        }
    }

    #[test]
    fn mixed_dtypes_are_refused_with_the_cast() {
        let a = tensor(&[1.0]);
        let error = a.add(&a.to_dtype(DType::BF16).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DType);
        assert!(
            error.message().contains("f32 and bf16") && error.help().unwrap().contains("to_dtype"),
            "{error}"
        );
        assert_eq!((&a + &tensor(&[1.0, 2.0]).reshape([2, 1]).unwrap()).unwrap().dims(), [2, 1]);
        assert_eq!(a.mul(&Tensor::zeros([2, 3], DType::F32, Device::Cpu).unwrap()).unwrap().dims(), [2, 3]);
        assert!(tensor(&[1.0, 2.0]).sub(&tensor(&[1.0, 2.0, 3.0])).is_err());
    }

    #[test]
    fn comparisons_give_bytes_and_nan_is_unlike_itself() {
        let a = tensor(&[f32::NAN, 1.0, 2.0]);
        assert_eq!(a.eq(&a).unwrap().to_vec::<u8>().unwrap(), [0, 1, 1]);
        assert_eq!(a.ne(&a).unwrap().to_vec::<u8>().unwrap(), [1, 0, 0]);
        assert_eq!(a.gt_scalar(1.0).unwrap().to_vec::<u8>().unwrap(), [0, 0, 1]);
    }
}
