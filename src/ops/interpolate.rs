//! Images of another size: each element of the result reads the nearest element of the input, or four about its place.
//!
//! Where element o along a dimension lies in the input is PyTorch's rule, rounding included: with a step of input / output (or
//! 1 / scale, but 1 where the size stays, and for a nearest one of twice the size), nearest is ⌊o · step⌋ in f32; bilinear is
//! (o + ½) · step − ½ but not below 0 or, with corners aligned, o · (input − 1) / (output − 1), in the type that is computed in.

#![forbid(unsafe_code)]

mod gpu;

use std::ops::RangeInclusive;

use super::pool::{image, images, with_image};
use super::reduce::{into_wide, packed, real};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::par;
use crate::cpu::reduce::{GRAIN, vectorize};
use crate::device::Stream;
use crate::dtype::Real;
use crate::tensor::{BackwardCx, Meta, Out, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(Interpolate, InterpolateBackward);

/// The size of a resized image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resize {
    /// Height and width.
    To([usize; 2]),
    /// Height and width times these, rounded down. The coordinates follow the factors, not the rounded sizes.
    By([f64; 2]),
}

/// Which elements of the input make up one of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// The one at ⌊o · step⌋.
    Nearest,
    /// The four about its place, weighted by nearness.
    Bilinear {
        /// Whether the outermost elements of input and result lie upon each other, else the edges of the images.
        align_corners: bool,
    },
}

/// Images in another size. Gradient: each element of x gets its shares of the elements of dy that it is part of.
#[derive(Clone, Copy, Debug)]
pub struct Interpolate {
    /// Height and width of the result.
    pub size: [usize; 2],
    /// The factors that the coordinates follow, where they are not those of the sizes.
    pub scale: Option<[f64; 2]>,
    /// What an element is made of.
    pub mode: Interpolation,
}

impl Interpolate {
    /// The distance in the input between neighbours of the result.
    fn step(&self, d: usize, input: usize) -> f64 {
        match (self.mode, self.scale) {
            (Interpolation::Bilinear { align_corners: true }, _) => {
                if self.size[d] > 1 {
                    (input - 1) as f64 / (self.size[d] - 1) as f64
                } else {
                    0.0
                }
            }
            // As PyTorch does on the CPU, whatever the factor says.
            (_, Some(_)) if input == self.size[d] => 1.0,
            (Interpolation::Nearest, Some(_)) if 2 * input == self.size[d] => 0.5,
            (_, Some(scale)) => 1.0 / scale[d],
            (_, None) => input as f64 / self.size[d] as f64,
        }
    }

    fn check(&self, op: &'static str, input: [usize; 2]) -> Result<()> {
        if self.size.iter().any(|&n| n == 0 || n > 1 << 24) {
            let message = format!("a size of {:?} is not at least 1 and at most 2²⁴", self.size);
            return Err(Error::argument(message).with_op(op));
        }
        if let Some(scale) = self.scale.filter(|s| s.iter().any(|&v| !(v.is_finite() && v > 0.0))) {
            return Err(Error::argument(format!("the factors {scale:?} are not positive")).with_op(op));
        }
        if input.iter().any(|&n| n == 0 || n > 1 << 24) {
            return Err(Error::shape(op, format!("an image of {input:?} cannot be resized")));
        }
        Ok(())
    }

    fn taps<A: Real>(&self, input: [usize; 2]) -> [Vec<Tap<A>>; 2] {
        [0, 1].map(|d| {
            let (step, last) = (self.step(d, input[d]), input[d] - 1);
            let tap = |o: usize| match self.mode {
                Interpolation::Nearest => {
                    let first = ((o as f32 * step as f32) as usize).min(last);
                    Tap { first, second: first, weight: A::ZERO }
                }
                Interpolation::Bilinear { align_corners } => {
                    let (o, step, half) = (A::of(o as f64), A::of(step), A::of(0.5));
                    let at = if align_corners { o * step } else { (o + half) * step - half };
                    let at = if at > A::ZERO { at } else { A::ZERO };
                    let first = (at.to_f64() as usize).min(last);
                    let weight = at - A::of(first as f64);
                    let weight = if weight > A::ONE { A::ONE } else { weight };
                    Tap { first, second: (first + 1).min(last), weight }
                }
            };
            (0..self.size[d]).map(tap).collect()
        })
    }
}

/// What one coordinate of the result reads: `first` with 1 − `weight`, `second` with `weight`.
#[derive(Clone, Copy)]
struct Tap<A> {
    first: usize,
    second: usize,
    weight: A,
}

/// Resizes planes of `size`.
fn forward<A: Real>(
    mode: Interpolation,
    taps: &[Vec<Tap<A>>; 2],
    (x, size): (&[A], [usize; 2]),
    y: &mut [A],
) {
    let (plane, large) = (size[0] * size[1], taps[0].len() * taps[1].len());
    if y.is_empty() {
        return;
    }
    let each = (GRAIN / plane.max(large)).max(1);
    let tasks = x.chunks(each * plane).zip(y.chunks_mut(each * large));
    par::each(x.len() / plane / each + 1, tasks, |(x, y)| {
        let mut mixed = vec![A::ZERO; size[1]];
        vectorize::<A, _>(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(plane).zip(y.chunks_exact_mut(large)) {
                    for (row, y) in taps[0].iter().zip(y.chunks_exact_mut(taps[1].len())) {
                        let line = |i: usize| &x[i * size[1]..][..size[1]];
                        let (first, second, mixed) =
                            (line(row.first), line(row.second), &mut mixed[..size[1]]);
                        if mode == Interpolation::Nearest {
                            y.iter_mut().zip(&taps[1]).for_each(|(y, tap)| *y = first[tap.first]);
                            continue;
                        }
                        for j in 0..size[1] {
                            mixed[j] = (A::ONE - row.weight) * first[j] + row.weight * second[j];
                        }
                        for (y, tap) in y.iter_mut().zip(&taps[1]) {
                            *y = (A::ONE - tap.weight) * mixed[tap.first] + tap.weight * mixed[tap.second];
                        }
                    }
                }
            },
        );
    });
}

/// Gives each element of planes of `size` its shares.
fn backward<A: Real>(
    mode: Interpolation,
    taps: &[Vec<Tap<A>>; 2],
    dy: &[A],
    (dx, size): (&mut [A], [usize; 2]),
    add: bool,
) {
    let (plane, large) = (size[0] * size[1], taps[0].len() * taps[1].len());
    if dx.is_empty() {
        return;
    }
    let each = (GRAIN / plane.max(large)).max(1);
    let count = dx.len() / plane / each + 1;
    let tasks = dx.chunks_mut(each * plane).zip(dy.chunks(each * large));
    par::each(count, tasks, |(dx, dy)| {
        let mut shares = vec![A::ZERO; size[1]];
        vectorize::<A, _>(
            #[inline(always)]
            || {
                for (dx, dy) in dx.chunks_exact_mut(plane).zip(dy.chunks_exact(large)) {
                    if !add {
                        dx.fill(A::ZERO);
                    }
                    for (row, dy) in taps[0].iter().zip(dy.chunks_exact(taps[1].len())) {
                        shares.fill(A::ZERO);
                        let nearest = mode == Interpolation::Nearest;
                        for (&dy, tap) in dy.iter().zip(&taps[1]) {
                            if nearest {
                                shares[tap.first] += dy;
                            } else {
                                shares[tap.first] += (A::ONE - tap.weight) * dy;
                                shares[tap.second] += tap.weight * dy;
                            }
                        }
                        let shares = &shares[..size[1]];
                        let first = &mut dx[row.first * size[1]..][..size[1]];
                        if nearest {
                            (0..size[1]).for_each(|j| first[j] += shares[j]);
                            continue;
                        }
                        (0..size[1]).for_each(|j| first[j] += (A::ONE - row.weight) * shares[j]);
                        let second = &mut dx[row.second * size[1]..][..size[1]];
                        (0..size[1]).for_each(|j| second[j] += row.weight * shares[j]);
                    }
                }
            },
        );
    });
}

impl Op for Interpolate {
    const NAME: &'static str = "interpolate";
    const INPUTS: RangeInclusive<usize> = 1..=1;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        self.check(Self::NAME, images(Self::NAME, &inputs[0])?)?;
        Ok(Plan::one(inputs[0].with_shape(with_image(&inputs[0].shape, self.size))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (size, mut copy) = (image(&inputs[0].shape()), None);
        real!(Self::NAME, inputs[0].dtype(), A => {
            let x = packed::<A>(&inputs[0], &mut copy)?;
            into_wide::<A>(&mut outputs[0], |y, _| {
                forward(self.mode, &self.taps(size), (x, size), y);
                Ok(())
            })
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::forward(stream, self, &inputs[0], &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        cx.run(InterpolateBackward { resize: *self, input: image(&cx.input_meta(0).shape) }, &[dy], &[0])
    }

    fn cases() -> Cases<Self> {
        let case = |(shape, op): (Vec<usize>, Interpolate)| Case {
            op,
            inputs: vec![Arg::new(&shape, Values::Normal(1.0))],
        };
        Cases {
            dtypes: &DType::FLOATS,
            tolerance: Tolerance::Sum(8.0, WHY),
            list: resizes().map(case).collect(),
        }
    }
}

const WHY: &str = "two weights, each a difference of rounded coordinates, and three sums of products";

/// The shape of x, height and width of the result, the factors if it is asked for by these.
type Resizing = (&'static [usize], [usize; 2], Option<[f64; 2]>);

/// Shapes and sizes of the cases.
fn resizes() -> impl Iterator<Item = (Vec<usize>, Interpolate)> {
    let shapes: [Resizing; 9] = [
        (&[2, 3, 3, 4], [6, 8], None),
        (&[1, 2, 5, 7], [3, 4], None),
        (&[2, 3, 4], [7, 5], None),
        (&[1, 1, 4, 3], [6, 4], Some([1.5, 1.6])),
        (&[1, 2, 1, 1], [3, 2], None),
        (&[1, 1, 6, 5], [1, 1], None),
        (&[1, 1, 4, 4], [4, 4], None),
        (&[1, 1, 2, 33], [3, 70], None),
        (&[0, 2, 4, 4], [2, 2], None),
    ];
    let modes = [
        Interpolation::Nearest,
        Interpolation::Bilinear { align_corners: false },
        Interpolation::Bilinear { align_corners: true },
    ];
    shapes.into_iter().flat_map(move |(shape, size, scale)| {
        modes.into_iter().map(move |mode| (shape.to_vec(), Interpolate { size, scale, mode }))
    })
}

/// dx of [`Interpolate`] from dy.
#[derive(Clone, Copy, Debug)]
pub struct InterpolateBackward {
    /// How the image was resized.
    pub resize: Interpolate,
    /// Height and width of the input.
    pub input: [usize; 2],
}

impl Op for InterpolateBackward {
    const NAME: &'static str = "interpolate_backward";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let out = images(Self::NAME, &inputs[0])?;
        self.resize.check(Self::NAME, self.input)?;
        if out != self.resize.size {
            let message = format!("dy has images of {out:?}, expected {:?}", self.resize.size);
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan::one(inputs[0].with_shape(with_image(&inputs[0].shape, self.input))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let mut copy = None;
        real!(Self::NAME, inputs[0].dtype(), A => {
            let dy = packed::<A>(&inputs[0], &mut copy)?;
            into_wide::<A>(&mut outputs[0], |dx, add| {
                backward(self.resize.mode, &self.resize.taps(self.input), dy, (dx, self.input), add);
                Ok(())
            })
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::backward(stream, &self.resize, &inputs[0], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let case = |(shape, resize): (Vec<usize>, Interpolate)| {
            let shape = Shape::from_dims(&shape);
            let inputs = vec![Arg::constant(&with_image(&shape, resize.size), Values::Normal(1.0))];
            Case { op: InterpolateBackward { resize, input: image(&shape) }, inputs }
        };
        let why = "sums of products with weights that are differences of rounded coordinates";
        Cases {
            dtypes: &DType::FLOATS,
            tolerance: Tolerance::Sum(40.0, why),
            list: resizes().map(case).collect(),
        }
    }
}

impl Tensor {
    /// The images `[C, H, W]` or `[N, C, H, W]` in another size. PyTorch's `interpolate`, with its coordinates: those of
    /// `Resize::By` follow the factors as given.
    #[track_caller]
    pub fn interpolate(&self, to: Resize, mode: Interpolation) -> Result<Tensor> {
        let (size, scale) = match to {
            Resize::To(size) => (size, None),
            Resize::By(scale) => {
                let (_, rank) = (images(Interpolate::NAME, &self.meta())?, self.rank());
                // What is no size, such as NaN, becomes 0, which is refused.
                let size = [0, 1].map(|d| (self.dims()[rank - 2 + d] as f64 * scale[d]) as usize);
                (size, Some(scale))
            }
        };
        run1(Interpolate { size, scale, mode }, &[self])
    }
}
