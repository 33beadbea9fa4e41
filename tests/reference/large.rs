//! Inputs far above the sizes at which op bodies split their work over threads: `Op::cases` stays small for the gradient
//! check.

use std::any::Any;

use warpsmith::ops::{Arg, Case, Contiguous, Op, Values};

fn case<O: Op>(op: O, inputs: Vec<Arg>) -> Box<dyn Any> {
    Box::new(Case { op, inputs })
}

fn normal(shape: &[usize]) -> Arg {
    Arg::new(shape, Values::Normal(1.0))
}

fn all() -> Vec<Box<dyn Any>> {
    vec![case(Contiguous, vec![normal(&[300, 701])]), case(Contiguous, vec![normal(&[70_001, 3])])]
}

/// The large cases of one op.
pub fn cases<O: Op>() -> Vec<Case<O>> {
    all().into_iter().filter_map(|c| c.downcast::<Case<O>>().ok()).map(|c| *c).collect()
}
