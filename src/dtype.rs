//! Element types: the closed set [`DType`], the traits that tie Rust types to it, and the one `dispatch!` over them.

#![forbid(unsafe_code)]

use std::fmt;

pub use half::{bf16, f16};

/// The element type of a tensor. Names and meanings are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 64-bit IEEE float.
    F64,
    /// bfloat16: 8 bits of exponent, 7 of fraction.
    BF16,
    /// IEEE half: 5 bits of exponent, 10 of fraction.
    F16,
    /// Unsigned byte; also the result of comparisons (0 or 1).
    U8,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer; the type of indices and class labels.
    I64,
}

impl DType {
    /// All element types.
    pub const ALL: [DType; 7] =
        [DType::F32, DType::F64, DType::BF16, DType::F16, DType::U8, DType::I32, DType::I64];
    /// The floating-point types: those that carry gradients.
    pub const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::F16];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::BF16 | DType::F16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// Whether this is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::BF16 | DType::F16)
    }

    /// Unit roundoff: half the distance from 1 to the next larger number; 0 for integers.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            DType::F64 => f64::EPSILON / 2.0,
            DType::F32 => f32::EPSILON as f64 / 2.0,
            DType::F16 => 1.0 / 2048.0,
            DType::BF16 => 1.0 / 256.0,
            DType::U8 | DType::I32 | DType::I64 => 0.0,
        }
    }

    /// The lower-case name, as in `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::I64 => "i64",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor can hold. Sealed: the set is [`DType`].
pub trait Element:
    sealed::Sealed + bytemuck::Pod + PartialOrd + fmt::Debug + fmt::Display + Default + Send + Sync + 'static
{
    /// The matching [`DType`].
    const DTYPE: DType;
    /// The value as f64, rounded to nearest (`i64` beyond 2⁵³ loses its last bits).
    fn to_f64(self) -> f64;
    /// From f64: floats round to nearest even, integers truncate and saturate.
    fn from_f64(v: f64) -> Self;
}

/// A floating-point [`Element`]: computes in [`Float::Acc`] (f32 for the 16-bit types, itself otherwise).
pub trait Float: Element {
    /// The type that sums and functions are computed in.
    type Acc: Real;
    /// Widens, exactly.
    fn to_acc(self) -> Self::Acc;
    /// Rounds to nearest even.
    fn from_acc(v: Self::Acc) -> Self;
}

macro_rules! elements {
    ($($t:ty => $d:ident, $to:expr, $from:expr;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            #[inline(always)]
            fn to_f64(self) -> f64 { ($to)(self) }
            #[inline(always)]
            fn from_f64(v: f64) -> Self { ($from)(v) }
        }
    )*};
}
elements! {
    f32 => F32, |v| v as f64, |v| v as f32;
    f64 => F64, |v| v, |v| v;
    bf16 => BF16, bf16::to_f64, |v| bf16::from_f32(to_odd(v));
    f16 => F16, f16::to_f64, |v| f16::from_f32(to_odd(v));
    u8 => U8, |v| v as f64, |v| v as u8;
    i32 => I32, |v| v as f64, |v| v as i32;
    i64 => I64, |v| v as f64, |v| v as i64;
}

/// `v` as f32 with its last bit set if that is not exact: rounding this to 16 bits is rounding `v` once, on every machine.
/// (`half` rounds twice where the processor has F16C, and ignores the last 32 bits of a tie.)
#[inline(always)]
fn to_odd(v: f64) -> f32 {
    let nearest = v as f32;
    if f64::from(nearest) == v || v.is_nan() {
        return nearest;
    }
    let beyond = u32::from(f64::from(nearest).abs() > v.abs());
    f32::from_bits((nearest.to_bits() - beyond) | 1)
}

macro_rules! floats {
    ($($t:ty, $acc:ty, $to:expr, $from:expr;)*) => {$(
        impl Float for $t {
            type Acc = $acc;
            #[inline(always)]
            fn to_acc(self) -> $acc { ($to)(self) }
            #[inline(always)]
            fn from_acc(v: $acc) -> Self { ($from)(v) }
        }
    )*};
}
floats! {
    f32, f32, |v| v, |v| v;
    f64, f64, |v| v, |v| v;
    bf16, f32, bf16::to_f32, bf16::from_f32;
    f16, f32, f16::to_f32, f16::from_f32;
}

/// The arithmetic that kernel bodies compute in: `f32` or `f64`. The functions stand in `cpu::vmath` and `cpu::real`.
pub trait Real:
    Float<Acc = Self>
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::ops::DivAssign
    + std::iter::Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// A constant, rounded to this type.
    fn of(v: f64) -> Self;
    /// eˣ
    fn exp(self) -> Self;
    /// eˣ − 1
    fn exp_m1(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// ln(1 + x)
    fn ln_1p(self) -> Self;
    /// √x
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// 1 / (1 + e⁻ˣ)
    fn sigmoid(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// The distribution function of the standard normal distribution, ½ erfc(−x/√2).
    fn normal_cdf(self) -> Self;
    /// xʸ
    fn powf(self, y: Self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// Fused multiply-add: `self · a + b`, rounded once where the machine has it.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Whether this is NaN.
    fn is_nan(self) -> bool;
    /// Whether this is neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

/// Runs `$body` with `$T` bound to the Rust type of a [`DType`] value.
///
/// `dispatch!(dtype, T => expr)` covers all types; `dispatch!(float dtype, T => expr, else expr)` the floats only;
/// `dispatch!(int dtype, T => expr, else expr)` the index types `i32` and `i64`.
#[macro_export]
macro_rules! dispatch {
    (float $dtype:expr, $T:ident => $body:expr, else $other:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::dtype::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::dtype::f16;
                $body
            }
            _ => $other,
        }
    };
    (int $dtype:expr, $T:ident => $body:expr, else $other:expr) => {
        match $dtype {
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            _ => $other,
        }
    };
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::dtype::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::dtype::f16;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bit_floats_round_once() {
        fn check<T: Element>(half: f64) {
            let of = |v: f64| T::from_f64(v).to_f64();
            // About the middle between 1 and the next number, by less than f32 can tell.
            let middle = 1.0 + half;
            assert_eq!(of(middle), 1.0);
            assert_eq!(of(middle + f64::EPSILON), 1.0 + 2.0 * half);
            assert_eq!(of(-middle - f64::EPSILON), -1.0 - 2.0 * half);
            assert_eq!(of(middle + 2.0 * half - f64::EPSILON), 1.0 + 2.0 * half);
            assert_eq!((of(1e300), of(-1e-300).to_bits()), (f64::INFINITY, (-0f64).to_bits()));
            assert!(of(f64::NAN).is_nan());
        }
        check::<f16>(1.0 / 2048.0);
        check::<bf16>(1.0 / 256.0);
    }

    #[test]
    fn sizes_agree_with_the_rust_types() {
        for d in DType::ALL {
            dispatch!(d, T => {
                assert_eq!(d.size(), size_of::<T>());
                assert_eq!(<T as Element>::DTYPE, d);
            });
        }
    }
}
