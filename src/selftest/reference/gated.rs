//! SwiGLU: gate · σ(gate) · up for rows [gate | up], and its gradient by both.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::ops;

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;

/// gate and up for element `i` of the result.
fn pair(x: &Value, n: usize, i: usize) -> (Dd, Dd) {
    let at = i / n * 2 * n + i % n;
    (dd(x.data[at]), dd(x.data[at + n]))
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if op.is::<ops::SwiGlu>() {
        let x = &inputs[0];
        let mut shape = x.shape.clone();
        let n = x.shape.last()? / 2;
        *shape.last_mut()? = n;
        let of = |i| {
            let (gate, up) = pair(x, n, i);
            gate * gate.sigmoid() * up
        };
        return Some(vec![Expected::of(&shape, x.dtype, (0..x.numel() / 2).map(of).collect())]);
    }
    op.downcast_ref::<ops::SwiGluBackward>()?;
    let (dy, x) = (&inputs[0], &inputs[1]);
    let n = x.shape.last()? / 2;
    let mut dx = vec![(Dd::ZERO, Dd::ZERO); x.numel()];
    for (i, &d) in dy.data.iter().enumerate() {
        let ((gate, up), d) = (pair(x, n, i), dd(d));
        let (s, rest) = (gate.sigmoid(), (-gate).sigmoid());
        let at = i / n * 2 * n + i % n;
        let by_up = d * gate * s;
        // The distance of σ from 1 is exact to a rounding of 1.
        let size = (d * up * s).abs() * (Dd::ONE + gate.abs());
        dx[at] = (d * up * (s + gate * s * rest), size);
        dx[at + n] = (by_up, by_up.abs());
    }
    Some(vec![Expected::scaled(&x.shape, x.dtype, dx)])
}

/// At infinities the limits are not what the formulas give.
pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    (op.is::<ops::SwiGlu>()).then_some(Specials::NotInfinite)
}
