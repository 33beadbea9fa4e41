//! The activation functions that fused kernels apply, with their gradients.
//!
//! One definition serves the product's epilogue, the ops of the same names and their backward, so all have the same bits.

#![forbid(unsafe_code)]

use crate::dtype::Real;

/// An activation function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x
    #[default]
    Identity,
    /// max(x, 0); NaN stays NaN.
    Relu,
    /// x · Φ(x) = x · (1 + erf(x / √2)) / 2, exact in the relative sense for negative x too.
    Gelu,
    /// x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2
    GeluTanh,
    /// x / (1 + e⁻ˣ)
    Silu,
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
}

/// What the gradient of an activation is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Nothing but the gradient that comes in.
    Nothing,
    /// The input of the activation.
    Input,
    /// Its output.
    Output,
}

/// Runs `$body` once for each activation but the identity, with `$act` bound to a constant of it: loops in it are
/// compiled, and so vectorised, for each.
macro_rules! each_activation {
    ($value:expr, $act:ident => $body:expr, else $identity:expr) => {
        each_activation!(@ $value, $act, $body, $identity; Relu Gelu GeluTanh Silu Sigmoid Tanh)
    };
    (@ $value:expr, $act:ident, $body:expr, $identity:expr; $($name:ident)*) => {
        match $value {
            Activation::Identity => $identity,
            $(Activation::$name => {
                const $act: Activation = Activation::$name;
                $body
            })*
        }
    };
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 7] = [
        Activation::Identity,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::Tanh,
    ];

    /// The name that PyTorch's function has.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Sigmoid => "sigmoid",
            Activation::Tanh => "tanh",
        }
    }

    /// What [`Activation::backward`] reads as `saved`.
    pub const fn reads(self) -> Reads {
        match self {
            Activation::Identity => Reads::Nothing,
            Activation::Relu | Activation::Sigmoid | Activation::Tanh => Reads::Output,
            Activation::Gelu | Activation::GeluTanh | Activation::Silu => Reads::Input,
        }
    }

    /// The value at `x`.
    #[inline(always)]
    pub fn apply<R: Real>(self, x: R) -> R {
        match self {
            Activation::Identity => x,
            // Not `max`, which would turn NaN into 0.
            Activation::Relu => {
                if x < R::ZERO {
                    R::ZERO
                } else {
                    x
                }
            }
            Activation::Gelu => x * x.normal_cdf(),
            Activation::GeluTanh => x * (gelu_tanh_argument(x) + gelu_tanh_argument(x)).sigmoid(),
            Activation::Silu => x * x.sigmoid(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::Tanh => x.tanh(),
        }
    }

    /// The gradient of the input, given that of the output and the input or output, as [`Activation::reads`] says.
    /// relu passes nothing at 0 and, like PyTorch, everything at NaN.
    #[inline(always)]
    pub fn backward<R: Real>(self, dy: R, saved: R) -> R {
        match self {
            Activation::Identity => dy,
            Activation::Relu => {
                if saved <= R::ZERO {
                    R::ZERO
                } else {
                    dy
                }
            }
            Activation::Gelu => {
                let x = saved;
                // 1/√(2π): the density of the standard normal distribution at 0.
                let density = (x * x * R::of(-0.5)).exp() * R::of(0.398_942_280_401_432_7);
                dy * x.mul_add(density, x.normal_cdf())
            }
            Activation::GeluTanh => {
                let x = saved;
                let s = (gelu_tanh_argument(x) + gelu_tanh_argument(x)).sigmoid();
                let slope = (x * x).mul_add(R::of(6.0 * CUBIC * ROOT_2_BY_PI), R::of(2.0 * ROOT_2_BY_PI));
                dy * (x * s * (R::ONE - s)).mul_add(slope, s)
            }
            Activation::Silu => {
                let s = saved.sigmoid();
                dy * (saved * s).mul_add(R::ONE - s, s)
            }
            Activation::Sigmoid => dy * saved * (R::ONE - saved),
            Activation::Tanh => dy * (R::ONE - saved) * (R::ONE + saved),
        }
    }

    /// Applies it to all of `y`. Vectorised where the caller is (`cpu::simd::vectorize`).
    #[inline(always)]
    pub fn apply_all<R: Real>(self, y: &mut [R]) {
        each_activation!(self, ACT => for y in y { *y = ACT.apply(*y) }, else {});
    }

    /// `dx[i] = backward(dy[i], saved[i])`. Vectorised where the caller is. All three have one length.
    #[inline(always)]
    pub fn backward_all<R: Real>(self, dy: &[R], saved: &[R], dx: &mut [R]) {
        let all = dx.iter_mut().zip(dy.iter().zip(saved));
        each_activation!(
            self,
            ACT => for (dx, (&dy, &saved)) in all { *dx = ACT.backward(dy, saved) },
            else dx.copy_from_slice(dy)
        );
    }
}

/// √(2/π)
const ROOT_2_BY_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// √(2/π) · (x + 0.044715 x³)
#[inline(always)]
fn gelu_tanh_argument<R: Real>(x: R) -> R {
    x * (x * x).mul_add(R::of(CUBIC * ROOT_2_BY_PI), R::of(ROOT_2_BY_PI))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_agree_with_differences() {
        for act in Activation::ALL {
            for i in -400..400 {
                let (x, h) = (f64::from(i) * 0.02 + 0.003, 1e-6);
                let slope = (act.apply(x + h) - act.apply(x - h)) / (2.0 * h);
                let saved = if act.reads() == Reads::Output { act.apply(x) } else { x };
                let got = act.backward(3.0, saved);
                assert!((got - 3.0 * slope).abs() < 1e-8, "{act:?} at {x}: {got}, not {}", 3.0 * slope);
            }
        }
    }

    #[test]
    fn whole_slices_are_the_single_values() {
        for act in Activation::ALL {
            let x: Vec<f32> = (-50..50).map(|i| i as f32 * 0.31).collect();
            let mut y = x.clone();
            crate::cpu::simd::vectorize(
                #[inline(always)]
                || act.apply_all(&mut y),
            );
            assert!(x.iter().zip(&y).all(|(&x, &y)| act.apply(x) == y), "{act:?}");
            let mut dx = vec![0.0; 100];
            crate::cpu::simd::vectorize(
                #[inline(always)]
                || act.backward_all(&x, &y, &mut dx),
            );
            assert!((0..100).all(|i| act.backward(x[i], y[i]) == dx[i]), "{act:?}");
        }
    }

    #[test]
    fn tails_keep_their_relative_accuracy() {
        // x Φ(x) with Φ(−10) = 7.619853024160527e-24.
        let got = Activation::Gelu.apply(-10f32);
        assert!((f64::from(got) / -7.619_853_024_160_527e-23 - 1.0).abs() < 4e-7, "{got:e}");
        let got = Activation::Silu.apply(-60f32);
        assert!((f64::from(got) / (-60.0 * (-60f64).exp()) - 1.0).abs() < 2e-7, "{got:e}");
    }
}
