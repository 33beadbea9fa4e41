//! What a reduction adds up: sums, sums of a function, the largest and the smallest.

#![forbid(unsafe_code)]

use crate::dtype::{Element, Float, Real};

/// A reduction: `join` over `term` of each element, from `identity`.
///
/// `join` must be associative and commutative up to rounding. Implementations mark the methods `#[inline(always)]` so
/// that the loops around them vectorise. `P` is a value that belongs to the output, such as a mean; `()` where none is needed.
pub trait Fold<E>: Sync {
    /// What is joined.
    type Acc: Element;
    /// What belongs to an output.
    type Param: Copy + Send + Sync;
    /// The result over nothing.
    fn identity(&self) -> Self::Acc;
    /// The contribution of one element.
    fn term(&self, x: E, p: Self::Param) -> Self::Acc;
    /// Joins two partial results.
    fn join(&self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
}

/// Σ x, in [`Float::Acc`].
#[derive(Clone, Copy, Debug)]
pub struct Sum;

impl<T: Float> Fold<T> for Sum {
    type Acc = T::Acc;
    type Param = ();
    #[inline(always)]
    fn identity(&self) -> T::Acc {
        T::Acc::ZERO
    }
    #[inline(always)]
    fn term(&self, x: T, (): ()) -> T::Acc {
        x.to_acc()
    }
    #[inline(always)]
    fn join(&self, a: T::Acc, b: T::Acc) -> T::Acc {
        a + b
    }
}

/// Σ f(x, p), in [`Float::Acc`].
#[derive(Clone, Copy, Debug)]
pub struct SumOf<F>(pub F);

impl<T: Float, F: Fn(T::Acc, T::Acc) -> T::Acc + Sync> Fold<T> for SumOf<F> {
    type Acc = T::Acc;
    type Param = T::Acc;
    #[inline(always)]
    fn identity(&self) -> T::Acc {
        T::Acc::ZERO
    }
    #[inline(always)]
    fn term(&self, x: T, p: T::Acc) -> T::Acc {
        (self.0)(x.to_acc(), p)
    }
    #[inline(always)]
    fn join(&self, a: T::Acc, b: T::Acc) -> T::Acc {
        a + b
    }
}

/// Σ x of integers, in i64, wrapping on overflow.
#[derive(Clone, Copy, Debug)]
pub struct IntSum;

impl<E: Into<i64>> Fold<E> for IntSum {
    type Acc = i64;
    type Param = ();
    #[inline(always)]
    fn identity(&self) -> i64 {
        0
    }
    #[inline(always)]
    fn term(&self, x: E, (): ()) -> i64 {
        x.into()
    }
    #[inline(always)]
    fn join(&self, a: i64, b: i64) -> i64 {
        a.wrapping_add(b)
    }
}

/// The largest element; NaN if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Max;

/// The smallest element; NaN if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Min;

macro_rules! extremum {
    ($name:ident, $from:expr, $op:tt) => {
        impl<E: Element> Fold<E> for $name {
            type Acc = E;
            type Param = ();
            #[inline(always)]
            fn identity(&self) -> E {
                E::from_f64($from)
            }
            #[inline(always)]
            fn term(&self, x: E, (): ()) -> E {
                x
            }
            #[inline(always)]
            #[allow(clippy::eq_op, reason = "NaN is what differs from itself, for integers nothing")]
            fn join(&self, a: E, b: E) -> E {
                if b $op a || b != b { b } else { a }
            }
        }
    };
}
extremum!(Max, f64::NEG_INFINITY, >);
extremum!(Min, f64::INFINITY, <);
