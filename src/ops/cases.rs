//! What an op says about how to test it: arguments, input shapes and values, and how exact the result must be.
//!
//! The harness in `tests/` runs every case over the dtypes and over seven layouts, compares with a float64 reference that
//! knows nothing of the op bodies, and checks the gradient of the same cases in f64.

#![forbid(unsafe_code)]

use crate::DType;

/// How the values of an input are drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Normal, mean 0, with this standard deviation.
    Normal(f64),
    /// Uniform in `[.0, .1)`.
    Uniform(f64, f64),
    /// Normal (deviation 1) but at least `gap` away from each of `points`: kinks that the gradient check must not straddle.
    AwayFrom {
        /// The kinks.
        points: &'static [f64],
        /// The least distance from each.
        gap: f64,
    },
    /// All different, at least `gap` apart, in random order: for max, min and sorting, where ties have no gradient.
    Distinct(f64),
    /// Integers in `[.0, .1]`, exact in every dtype.
    Integers(i64, i64),
    /// Indices in `[0, n)`.
    Index(usize),
    /// Drawn from these.
    OneOf(&'static [f64]),
    /// Probabilities along the last dimension: positive, sum 1.
    Distribution,
    /// Exactly these values, repeated to fill the shape.
    Exactly(Vec<f64>),
}

/// One input of a case.
#[derive(Clone, Debug)]
pub struct Arg {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Values,
    /// Its type, where it does not follow the dtype under test (indices, masks).
    pub dtype: Option<DType>,
    /// Whether the gradient check differentiates it.
    pub grad: bool,
}

impl Arg {
    /// A differentiable input of the dtype under test.
    pub fn new(shape: &[usize], values: Values) -> Arg {
        Arg { shape: shape.to_vec(), values, dtype: None, grad: true }
    }

    /// An input of the dtype under test that carries no gradient.
    pub fn constant(shape: &[usize], values: Values) -> Arg {
        Arg { grad: false, ..Arg::new(shape, values) }
    }

    /// An input of a fixed type that carries no gradient.
    pub fn typed(shape: &[usize], values: Values, dtype: DType) -> Arg {
        Arg { shape: shape.to_vec(), values, dtype: Some(dtype), grad: false }
    }
}

/// One way to call an op.
#[derive(Clone, Debug)]
pub struct Case<O> {
    /// The op with its arguments.
    pub op: O,
    /// Its inputs.
    pub inputs: Vec<Arg>,
}

/// How far a result may lie from the float64 reference of the same (rounded) inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Bit for bit after rounding the reference to the dtype: copies, comparisons, single exactly rounded operations.
    Exact,
    /// At most this many units in the last place of the dtype (of the reference's magnitude), for f32 and f64; one unit
    /// more for 16-bit types, which round once.
    Ulp(f64, &'static str),
    /// At most `factor · u · scale + 1 ulp`, where `u` is the unit roundoff of the type that sums are kept in and `scale`
    /// the sum of the magnitudes that were added, which the reference computes beside each value.
    Sum(f64, &'static str),
}

/// All that the harness needs to test an op.
#[derive(Clone, Debug)]
pub struct Cases<O> {
    /// The element types to run it in.
    pub dtypes: &'static [DType],
    /// How exact it must be.
    pub tolerance: Tolerance,
    /// The cases.
    pub list: Vec<Case<O>>,
}

/// Shapes that every elementwise op is run over: 0-d, zero-size, one, primes, around powers of two, several dimensions.
pub const SHAPES: [&[usize]; 12] =
    [&[], &[0], &[3, 0, 2], &[1], &[7], &[31], &[32], &[33], &[257], &[5, 13], &[2, 3, 17], &[1, 4, 1, 9]];

impl<O> Cases<O> {
    /// An op of one input over [`SHAPES`]; `op` makes the op for each shape.
    pub fn over_shapes(
        dtypes: &'static [DType],
        tolerance: Tolerance,
        values: Values,
        op: impl Fn(&[usize]) -> O,
    ) -> Cases<O> {
        let case = |shape: &&[usize]| Case { op: op(shape), inputs: vec![Arg::new(shape, values.clone())] };
        Cases { dtypes, tolerance, list: SHAPES.iter().map(case).collect() }
    }
}
