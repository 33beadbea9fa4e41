//! Functions of one operand, element by element, and their derivatives.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::DType;
use crate::cpu::activation::{Activation, Reads};
use crate::ops::*;

use super::dd::{Dd, dd, sqrt_2_over_pi};
use super::{Expected, Specials};
use crate::selftest::Value;

/// Φ(x), the standard normal distribution function, as erfc(−x / √2) / 2: exact in the relative sense in the lower tail.
fn normal_cdf(x: Dd) -> Dd {
    (-x / dd(2.0).sqrt()).erfc() / dd(2.0)
}

/// Its density.
fn normal_density(x: Dd) -> Dd {
    // √(2/π) / 2 = 1 / √(2π)
    (-(x * x) / dd(2.0)).exp() * sqrt_2_over_pi() / dd(2.0)
}

/// √(2/π) (x + 0.044715 x³) and its derivative.
fn tanh_argument(x: Dd) -> (Dd, Dd) {
    let c = dd(0.044715);
    (sqrt_2_over_pi() * (x + c * x * x * x), sqrt_2_over_pi() * (Dd::ONE + dd(3.0) * c * x * x))
}

fn relu(x: Dd) -> Dd {
    if x.get() < 0.0 { Dd::ZERO } else { x }
}

/// f(x)
pub fn activation(f: Activation, x: Dd) -> Dd {
    match f {
        Activation::Identity => x,
        Activation::Relu => relu(x),
        Activation::Gelu => x * normal_cdf(x),
        // (1 + tanh u) / 2 = σ(2u), which does not cancel for negative u.
        Activation::GeluTanh => x * (tanh_argument(x).0 * dd(2.0)).sigmoid(),
        Activation::Silu => x * x.sigmoid(),
        Activation::Sigmoid => x.sigmoid(),
        Activation::Tanh => x.tanh(),
    }
}

/// f′, from x or (relu, sigmoid, tanh) from f(x).
fn slope(f: Activation, saved: Dd) -> Dd {
    let s = saved.sigmoid();
    match f {
        Activation::Identity => Dd::ONE,
        Activation::Relu => {
            // 1 at NaN, as PyTorch's.
            if saved.get() <= 0.0 { Dd::ZERO } else { Dd::ONE }
        }
        Activation::Gelu => normal_cdf(saved) + saved * normal_density(saved),
        Activation::GeluTanh => {
            let (u, du) = tanh_argument(saved);
            let (s, c) = ((u * dd(2.0)).sigmoid(), (-u * dd(2.0)).sigmoid());
            s + saved * dd(2.0) * du * s * c
        }
        Activation::Silu => s + saved * s * (-saved).sigmoid(),
        Activation::Sigmoid => saved * (Dd::ONE - saved),
        Activation::Tanh => Dd::ONE - saved * saved,
    }
}

/// Values of an op on one input or of a backward on dy and what it saved.
fn each(inputs: &[Value], f: impl Fn(Dd, Dd) -> Dd) -> Vec<Expected> {
    let x = &inputs[0];
    let second = |i: usize| inputs.get(1).map_or(Dd::ZERO, |v| dd(v.data[i]));
    let values = x.data.iter().enumerate().map(|(i, &v)| f(dd(v), second(i))).collect();
    vec![Expected::of(&x.shape, x.dtype, values)]
}

/// Functions whose values may leave the range of an integer type, in the arithmetic modulo 2³² or 2⁶⁴.
fn wrapping(op: &dyn Any, x: &Value) -> Option<Vec<Expected>> {
    let f: Box<dyn Fn(i64) -> i64> = if op.is::<Abs>() {
        Box::new(|v| v.wrapping_abs())
    } else if op.is::<Neg>() {
        Box::new(|v| v.wrapping_neg())
    } else if op.is::<Square>() {
        Box::new(|v| v.wrapping_mul(v))
    } else if let Some(op) = op.downcast_ref::<AddScalar>() {
        let value = op.value as i64;
        Box::new(move |v| v.wrapping_add(value))
    } else {
        let value = op.downcast_ref::<MulScalar>()?.value as i64;
        Box::new(move |v| v.wrapping_mul(value))
    };
    let one = |&v: &f64| {
        let wide = f(v as i64);
        dd(if x.dtype == DType::I32 { wide as i32 as f64 } else { wide as f64 })
    };
    Some(vec![Expected::of(&x.shape, x.dtype, x.data.iter().map(one).collect())])
}

/// The reference of `Map<F>` and `MapBackward<F>`, if `op` is one: `f(op, x)` and `df(op, dy, saved)`, where `saved` must be
/// what the op says it reads.
fn map<F: Unary>(
    op: &dyn Any,
    inputs: &[Value],
    reads: Reads,
    f: impl Fn(&F, Dd) -> Dd,
    df: impl Fn(&F, Dd, Dd) -> Dd,
) -> Option<Vec<Expected>> {
    assert!(F::READS == reads, "the gradient of {} reads something else than its reference", F::NAME);
    if let Some(Map(op)) = op.downcast_ref::<Map<F>>() {
        if !inputs[0].dtype.is_float() {
            return Some(wrapping(op, &inputs[0]).unwrap_or_else(|| each(inputs, |x, _| f(op, x))));
        }
        return Some(each(inputs, |x, _| f(op, x)));
    }
    let MapBackward(op) = op.downcast_ref::<MapBackward<F>>()?;
    Some(each(inputs, |dy, saved| df(op, dy, saved)))
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    use Activation as A;
    use Reads::{Input, Nothing, Output};
    let i = inputs;
    if let Some(op) = op.downcast_ref::<ActivationBackward>() {
        return Some(each(i, |dy, saved| dy * slope(op.activation, saved)));
    }
    let clamped = |c: &Clamp, x: Dd| {
        let x = if x.get() < c.min { dd(c.min) } else { x };
        if x.get() > c.max { dd(c.max) } else { x }
    };
    let inside = |c: &Clamp, x: Dd| x.get() >= c.min && x.get() <= c.max;
    let one = Dd::ONE;
    map::<Relu>(op, i, Output, |_, x| relu(x), |_, dy, y| if y.get() <= 0.0 { Dd::ZERO } else { dy })
        .or_else(|| {
            let s = |o: &LeakyRelu, x: Dd, v: Dd| if x.get() > 0.0 { v } else { v * dd(o.slope) };
            map::<LeakyRelu>(op, i, Input, |o, x| s(o, x, x), |o, dy, x| s(o, x, dy))
        })
        .or_else(|| {
            map::<Gelu>(op, i, Input, |_, x| activation(A::Gelu, x), |_, dy, x| dy * slope(A::Gelu, x))
        })
        .or_else(|| {
            let f = |_: &GeluTanh, x| activation(A::GeluTanh, x);
            map::<GeluTanh>(op, i, Input, f, |_, dy, x| dy * slope(A::GeluTanh, x))
        })
        .or_else(|| {
            map::<Silu>(op, i, Input, |_, x| activation(A::Silu, x), |_, dy, x| dy * slope(A::Silu, x))
        })
        .or_else(|| map::<Sigmoid>(op, i, Output, |_, x| x.sigmoid(), |_, dy, y| dy * y * (one - y)))
        .or_else(|| map::<Tanh>(op, i, Output, |_, x| x.tanh(), |_, dy, y| dy * (one - y * y)))
        .or_else(|| {
            let u = |x: Dd| one + x.abs();
            map::<Softsign>(op, i, Input, |_, x| x / u(x), |_, dy, x| dy / u(x) / u(x))
        })
        .or_else(|| map::<Exp>(op, i, Output, |_, x| x.exp(), |_, dy, y| dy * y))
        .or_else(|| map::<Log>(op, i, Input, |_, x| x.ln(), |_, dy, x| dy / x))
        .or_else(|| map::<Sqrt>(op, i, Output, |_, x| x.sqrt(), |_, dy, y| dy / (y + y)))
        .or_else(|| map::<Rsqrt>(op, i, Output, |_, x| one / x.sqrt(), |_, dy, y| dd(-0.5) * dy * y * y * y))
        .or_else(|| {
            let sign = |x: Dd| {
                if x.get() > 0.0 {
                    one
                } else if x.get() < 0.0 {
                    -one
                } else {
                    Dd::ZERO
                }
            };
            map::<Abs>(op, i, Input, |_, x| x.abs(), |_, dy, x| dy * sign(x))
        })
        .or_else(|| map::<Neg>(op, i, Nothing, |_, x| -x, |_, dy, _| -dy))
        .or_else(|| map::<Square>(op, i, Input, |_, x| x * x, |_, dy, x| dy * (x + x)))
        .or_else(|| map::<Reciprocal>(op, i, Output, |_, x| one / x, |_, dy, y| -(dy * y * y)))
        .or_else(|| map::<Clamp>(op, i, Input, clamped, |o, dy, x| if inside(o, x) { dy } else { Dd::ZERO }))
        .or_else(|| map::<AddScalar>(op, i, Nothing, |o, x| x + dd(o.value), |_, dy, _| dy))
        .or_else(|| map::<MulScalar>(op, i, Nothing, |o, x| x * dd(o.value), |o, dy, _| dy * dd(o.value)))
        .or_else(|| map::<DivScalar>(op, i, Nothing, |o, x| x / dd(o.value), |o, dy, _| dy / dd(o.value)))
        .or_else(|| {
            let p = |o: &Powf| dd(o.exponent);
            let df = |o: &Powf, dy: Dd, x: Dd| {
                // The derivative of a constant is 0, at 0 too.
                if o.exponent == 0.0 { Dd::ZERO } else { dy * p(o) * x.pow(p(o) - one) }
            };
            map::<Powf>(op, i, Input, |o, x| x.pow(p(o)), df)
        })
}

pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    let clear = op.is::<Map<Relu>>()
        || op.is::<MapBackward<Relu>>()
        || op.is::<Map<LeakyRelu>>()
        || op.is::<Map<Gelu>>()
        || op.is::<Map<GeluTanh>>()
        || op.is::<Map<Silu>>()
        || op.is::<Map<Sigmoid>>()
        || op.is::<Map<Tanh>>()
        || op.is::<Map<Softsign>>()
        || op.is::<Map<Exp>>()
        || op.is::<Map<Log>>()
        || op.is::<Map<Sqrt>>()
        || op.is::<Map<Rsqrt>>()
        || op.is::<Map<Abs>>()
        || op.is::<Map<Neg>>()
        || op.is::<Map<Square>>()
        || op.is::<Map<Reciprocal>>()
        || op.is::<Map<Clamp>>()
        || op.is::<Map<AddScalar>>()
        || op.is::<Map<MulScalar>>()
        || op.is::<Map<DivScalar>>()
        || op.is::<Map<Powf>>();
    clear.then_some(Specials::All)
}
