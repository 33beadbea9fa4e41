//! The reference: every op once more, from its mathematical definition, in double-double arithmetic.
//!
//! It imports nothing of the crate but the ops' argument structs and the names of the element types. Plain loops over
//! multi-indices; speed and layout are no concern here.

#![forbid(unsafe_code)]

pub mod attention;
pub mod batch_norm;
pub mod binary;
pub mod conv;
pub mod copy;
pub mod dd;
pub mod gated;
pub mod index;
pub mod large;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod pool;
pub mod recurrent;
pub mod reduce;
pub mod rotary;
pub mod round;
pub mod softmax;
pub mod sort;
pub mod unary;

use std::any::Any;

use crate::DType;

use crate::selftest::Value;
use dd::Dd;

/// What an output must be.
#[derive(Clone, Debug)]
pub struct Expected {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub values: Vec<f64>,
    /// For each value the sum of the magnitudes that went into it (for `Tolerance::Sum`).
    pub scale: Vec<f64>,
    /// The type whose exactness to expect: `dtype`, but for statistics that are computed in f32 and kept in f64.
    pub exact_as: DType,
}

impl Expected {
    /// Values whose scale is their own magnitude.
    pub fn of(shape: &[usize], dtype: DType, values: Vec<Dd>) -> Expected {
        let values: Vec<f64> = values.into_iter().map(Dd::get).collect();
        let scale = values.iter().map(|v| v.abs()).collect();
        Expected { shape: shape.to_vec(), dtype, values, scale, exact_as: dtype }
    }

    /// Values with their scales. What is finite although an infinity went into it (1 / ∞) is so exactly: its scale is its
    /// own magnitude.
    pub fn scaled(shape: &[usize], dtype: DType, values: Vec<(Dd, Dd)>) -> Expected {
        let of = |(v, s): (Dd, Dd)| (v.get(), if s.is_finite() { s.get() } else { v.get().abs() });
        let (values, scale) = values.into_iter().map(of).unzip();
        Expected { shape: shape.to_vec(), dtype, values, scale, exact_as: dtype }
    }
}

/// Which special values have one right answer in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// NaN, infinities, zeros of both signs, subnormals, and the ends of the range.
    All,
    /// All but numbers so large that an order of additions decides whether they overflow.
    NotHuge,
    /// NaN, infinities and zeros. A product of several subnormals vanishes in the type, not in the reference.
    NotSmall,
    /// NaN and zeros.
    NotInfinite,
    /// Zeros and subnormals.
    Finite,
}

/// The outputs that `op` must have for `inputs`, or `None` if nobody has written its reference.
pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let families = [
        conv::expected,
        copy::expected,
        gated::expected,
        index::expected,
        reduce::expected,
        rotary::expected,
        softmax::expected,
        sort::expected,
        loss::expected,
        matmul::expected,
        norm::expected,
        batch_norm::expected,
        pool::expected,
        recurrent::expected,
        unary::expected,
        binary::expected,
        attention::expected,
    ];
    families.iter().find_map(|f| f(op, inputs))
}

/// The special values that an input of `op` is tried with, if any. For all ops: a NaN reaches each result that it has a part in
/// and no other, infinities follow IEEE 754 through the definition that the reference computes.
pub fn specials(op: &dyn Any, input: usize) -> Option<Specials> {
    let families = [
        attention::specials,
        batch_norm::specials,
        conv::specials,
        copy::specials,
        gated::specials,
        index::specials,
        reduce::specials,
        rotary::specials,
        softmax::specials,
        sort::specials,
        loss::specials,
        matmul::specials,
        norm::specials,
        pool::specials,
        recurrent::specials,
        unary::specials,
        binary::specials,
    ];
    families.iter().find_map(|f| f(op, input))
}
