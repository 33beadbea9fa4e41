//! Copies and casts.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::ops;

use super::{Expected, Specials, dd::dd};
use crate::selftest::Value;

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let x = inputs.first()?;
    let values = x.data.iter().map(|&v| dd(v)).collect();
    if op.is::<ops::Contiguous>() {
        return Some(vec![Expected::of(&x.shape, x.dtype, values)]);
    }
    let cast = op.downcast_ref::<ops::Cast>()?;
    let mut out = Expected::of(&x.shape, cast.to, values);
    out.values.iter_mut().for_each(|v| *v = super::round::to(cast.to, *v));
    Some(vec![out])
}

pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    (op.is::<ops::Contiguous>() || op.is::<ops::Cast>()).then_some(Specials::All)
}
