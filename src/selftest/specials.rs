//! NaN, infinities, zeros of both signs, subnormals and the ends of the range, put among the values of a case.

#![forbid(unsafe_code)]

use super::reference::{self, Specials, round};
use super::{AnyCase, Rng, Value};
use crate::DType;

/// Ways to put them there: many in each input, many in one of them, one in each, one in one of them. Many of them meet each
/// other; one alone shows which results it reaches.
pub const ROUNDS: usize = 4;

/// The special values of a type.
fn values(dtype: DType, which: Specials) -> Vec<f64> {
    if !dtype.is_float() {
        return vec![0.0, 255.0];
    }
    let [least, normal] = round::tiny(dtype);
    let most = round::max(dtype);
    let mut all = vec![0.0, 1.0];
    if !matches!(which, Specials::NotSmall | Specials::NotInfinite) {
        all.extend([least, normal, normal - least]);
    }
    if !matches!(which, Specials::Finite | Specials::NotInfinite) {
        all.push(f64::INFINITY);
    }
    if which == Specials::All {
        all.extend([most, most.sqrt()]);
    }
    let mut all: Vec<f64> = all.into_iter().map(|v| round::to(dtype, v)).flat_map(|v| [v, -v]).collect();
    if which != Specials::Finite {
        all.push(f64::NAN);
    }
    all
}

/// The inputs with special values in them; `None` if no input of the case takes any.
pub fn among(case: &AnyCase, inputs: &[Value], round: usize, rng: &mut Rng) -> Option<Vec<Value>> {
    let of = |i: &usize| {
        let (arg, input) = (&case.inputs[*i], &inputs[*i]);
        let open = input.dtype.is_float() && arg.dtype.is_none() && input.numel() > 0;
        Some((*i, reference::specials(case.op.as_any(), *i).filter(|_| open)?))
    };
    let mut takers: Vec<(usize, Specials)> = (0..inputs.len()).filter_map(|i| of(&i)).collect();
    if takers.is_empty() {
        return None;
    }
    if round % 2 == 1 {
        takers = vec![takers[rng.below(takers.len())]];
    }
    let mut inputs = inputs.to_vec();
    for (i, which) in takers {
        let input = &mut inputs[i];
        let (list, n) = (values(input.dtype, which), input.numel());
        for _ in 0..if round < 2 { n.div_ceil(3) } else { 1 } {
            input.data[rng.below(n)] = list[rng.below(list.len())];
        }
    }
    Some(inputs)
}
