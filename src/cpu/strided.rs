//! Walking several strided operands of one shape together.
//!
//! [`Runs`] merges the dimensions that all operands agree to walk without gaps, so that the common case (everything
//! contiguous) is one run, and hands out innermost runs: a start for each operand, a length and the strides.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::shape::{Layout, MAX_RANK};

/// The innermost runs of `N` operands of one shape.
pub struct Runs<const N: usize> {
    /// Outer dimensions, outermost first: size and stride of each operand.
    outer: Vec<(usize, [usize; N])>,
    start: [usize; N],
    /// Length of every run.
    pub len: usize,
    /// Distance between neighbours of a run, for each operand.
    pub strides: [usize; N],
    /// The number of runs.
    pub count: usize,
}

impl<const N: usize> Runs<N> {
    /// Plans the walk. All layouts must have the same shape.
    pub fn new(layouts: [&Layout; N]) -> Runs<N> {
        let shape = layouts[0].shape;
        assert!(layouts.iter().all(|l| l.shape == shape), "operands walked together must have one shape");
        let mut dims: Vec<(usize, [usize; N])> = Vec::with_capacity(shape.rank());
        for d in 0..shape.rank() {
            let (n, s) = (shape[d], layouts.map(|l| l.strides[d]));
            match dims.last_mut() {
                _ if n == 1 => {}
                Some((size, strides)) if (0..N).all(|k| strides[k] == n * s[k]) => {
                    (*size, *strides) = (*size * n, s)
                }
                _ => dims.push((n, s)),
            }
        }
        let (len, strides) = dims.pop().unwrap_or((1, [1; N]));
        let count = if len == 0 { 0 } else { dims.iter().map(|d| d.0).product() };
        Runs { outer: dims, start: layouts.map(|l| l.offset), len, strides, count }
    }

    /// Calls `body(run, starts)` for the runs in `range` in order.
    #[inline(always)]
    pub fn visit(&self, range: Range<usize>, mut body: impl FnMut(usize, [usize; N])) {
        if range.is_empty() {
            return;
        }
        let mut index = [0; MAX_RANK];
        let mut at = self.start;
        let mut rest = range.start;
        for (d, (size, strides)) in self.outer.iter().enumerate().rev() {
            index[d] = rest % size;
            rest /= size;
            (0..N).for_each(|k| at[k] += index[d] * strides[k]);
        }
        for run in range {
            body(run, at);
            for (d, (size, strides)) in self.outer.iter().enumerate().rev() {
                index[d] += 1;
                (0..N).for_each(|k| at[k] += strides[k]);
                if index[d] < *size {
                    break;
                }
                (0..N).for_each(|k| at[k] -= size * strides[k]);
                index[d] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    #[test]
    fn a_walk_from_any_run_visits_every_element_once_in_order() {
        let base = Layout::contiguous(Shape::new(&[3, 4, 5, 2]).unwrap());
        for a in [base, base.permute(&[2, 0, 3, 1]).unwrap(), base.slice(1, 1, 4, 2).unwrap()] {
            let b = Layout::contiguous(a.shape);
            let runs = Runs::new([&a, &b]);
            let want: Vec<usize> = a.positions().collect();
            for split in 0..=runs.count {
                let mut got = Vec::new();
                for range in [0..split, split..runs.count] {
                    runs.visit(range, |_, at| {
                        for i in 0..runs.len {
                            assert_eq!(at[1] + i * runs.strides[1], got.len());
                            got.push(at[0] + i * runs.strides[0]);
                        }
                    });
                }
                assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn contiguous_operands_are_one_run_and_empty_ones_none() {
        let a = Layout::contiguous(Shape::new(&[7, 1, 9]).unwrap());
        let runs = Runs::new([&a, &a]);
        assert_eq!((runs.count, runs.len), (1, 63));
        let e = Layout::contiguous(Shape::new(&[7, 0, 9]).unwrap());
        assert_eq!(Runs::new([&e]).count, 0);
        let scalar = Layout::contiguous(Shape::new(&[]).unwrap());
        assert_eq!((Runs::new([&scalar]).count, Runs::new([&scalar]).len), (1, 1));
    }
}
