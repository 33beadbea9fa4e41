//! Rotary embedding: the pair (p, q) of elements i and i + D/2 is multiplied by cos + i·sin, as a complex number.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::ops;

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let op = op.downcast_ref::<ops::Rotary>()?;
    let (x, table) = (&inputs[0], &inputs[1]);
    let (length, all, width) = (x.shape[1], x.shape[2], x.shape[3]);
    let half = width / 2;
    let at = |i: usize| dd(x.data[i]);
    let values = (0..x.data.len()).map(|i| {
        let (token, head, j) = (i / width / all, i / width % all, i % width);
        if head >= op.heads {
            return (at(i), Dd::ZERO);
        }
        let row = (op.offset + token % length) * width + j % half;
        let (cosine, sine) = (dd(table.data[row]), dd(table.data[row + half]));
        // The imaginary part of the factor, and what it multiplies.
        let sine = if op.inverse { -sine } else { sine };
        let (own, other) = if j < half {
            (at(i) * cosine, -(at(i + half) * sine))
        } else {
            (at(i) * cosine, at(i - half) * sine)
        };
        (own + other, own.abs() + other.abs())
    });
    Some(vec![Expected::scaled(&x.shape, x.dtype, values.collect())])
}

/// The sum of two huge products may overflow though it is small.
pub fn specials(op: &dyn Any, input: usize) -> Option<Specials> {
    (op.is::<ops::Rotary>() && input == 0).then_some(Specials::NotHuge)
}
