//! The average of each window, and the average over parts that divide an image as evenly as they can.
//!
//! Both are one thing along each dimension: output o is made of the elements `first..end`, and the divisor is a product of
//! one number for each dimension. Sums run down the columns of a window first, then along them.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{Window, gpu, image, images, over_rows, with_image};
use crate::cpu::par;
use crate::cpu::reduce::{GRAIN, vectorize};
use crate::device::Stream;
use crate::dtype::Real;
use crate::ops::reduce::{into_wide, packed, real};
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::tensor::{BackwardCx, Meta, Out, Tensor, View};
use crate::{DType, Error, Result, Shape};

/// What an output is made of along one dimension.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    end: usize,
    divisor: usize,
}

/// The two dimensions of the parts that make up the outputs.
type Parts = [Vec<Part>; 2];

/// The parts of windows over images of `size`.
fn parts_of_windows(window: &Window<2>, counted: bool, size: [usize; 2], out: [usize; 2]) -> Parts {
    [0, 1].map(|d| {
        let part = |o: usize| {
            let (first, taps) = window.taps(d, size[d], o);
            // A window that reaches beyond the padding counts as far as the padding does.
            let (start, padding) = (o * window.stride[d], window.padding[d]);
            let whole = (start + window.kernel[d]).min(size[d] + 2 * padding) - start;
            Part { first, end: first + taps, divisor: if counted { whole } else { taps } }
        };
        (0..out[d]).map(part).collect()
    })
}

/// The parts of an image of `size` divided into `out`: from ⌊o · size / out⌋ to ⌈(o + 1) · size / out⌉.
fn even_parts(size: [usize; 2], out: [usize; 2]) -> Parts {
    [0, 1].map(|d| {
        let part = |o: usize| {
            let (first, end) = (o * size[d] / out[d], ((o + 1) * size[d]).div_ceil(out[d]));
            Part { first, end, divisor: end - first }
        };
        (0..out[d]).map(part).collect()
    })
}

/// Averages planes of `size`.
fn forward<A: Real>(parts: &Parts, (x, size): (&[A], [usize; 2]), y: &mut [A]) {
    let (plane, small) = (size[0] * size[1], parts[0].len() * parts[1].len());
    if y.is_empty() {
        return;
    }
    let each = (GRAIN / plane).max(1);
    let tasks = x.chunks(each * plane).zip(y.chunks_mut(each * small));
    par::each(x.len() / plane / each + 1, tasks, |(x, y)| {
        let mut columns = vec![A::ZERO; size[1]];
        vectorize::<A, _>(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(plane).zip(y.chunks_exact_mut(small)) {
                    for (rows, y) in parts[0].iter().zip(y.chunks_exact_mut(parts[1].len())) {
                        columns.fill(A::ZERO);
                        for i in rows.first..rows.end {
                            let line = &x[i * size[1]..][..size[1]];
                            let columns = &mut columns[..size[1]];
                            (0..size[1]).for_each(|j| columns[j] += line[j]);
                        }
                        for (part, y) in parts[1].iter().zip(y) {
                            let mut sum = A::ZERO;
                            columns[part.first..part.end].iter().for_each(|&v| sum += v);
                            *y = sum / A::of((rows.divisor * part.divisor) as f64);
                        }
                    }
                }
            },
        );
    });
}

/// Gives each element of planes of `size` its shares of the averages that it is part of.
fn backward<A: Real>(parts: &Parts, dy: &[A], (dx, size): (&mut [A], [usize; 2]), add: bool) {
    let (plane, small) = (size[0] * size[1], parts[0].len() * parts[1].len());
    if dx.is_empty() {
        return;
    }
    let each = (GRAIN / plane).max(1);
    let count = dx.len() / plane / each + 1;
    let tasks = dx.chunks_mut(each * plane).zip(dy.chunks(each * small));
    par::each(count, tasks, |(dx, dy)| {
        let mut columns = vec![A::ZERO; size[1]];
        vectorize::<A, _>(
            #[inline(always)]
            || {
                for (dx, dy) in dx.chunks_exact_mut(plane).zip(dy.chunks_exact(small)) {
                    if !add {
                        dx.fill(A::ZERO);
                    }
                    for (rows, dy) in parts[0].iter().zip(dy.chunks_exact(parts[1].len())) {
                        columns.fill(A::ZERO);
                        for (part, &dy) in parts[1].iter().zip(dy) {
                            let share = dy / A::of((rows.divisor * part.divisor) as f64);
                            columns[part.first..part.end].iter_mut().for_each(|v| *v += share);
                        }
                        for i in rows.first..rows.end {
                            let (line, columns) = (&mut dx[i * size[1]..][..size[1]], &columns[..size[1]]);
                            (0..size[1]).for_each(|j| line[j] += columns[j]);
                        }
                    }
                }
            },
        );
    });
}

/// The CPU body of both averages.
fn average(op: &'static str, parts: &Parts, input: &View<'_>, output: &mut Out<'_>) -> Result<()> {
    let (size, mut copy) = (image(&input.shape()), None);
    real!(op, input.dtype(), A => {
        let x = packed::<A>(input, &mut copy)?;
        into_wide::<A>(output, |y, _| {
            forward(parts, (x, size), y);
            Ok(())
        })
    })
}

/// The CPU body of both backwards.
fn spread(op: &'static str, parts: &Parts, dy: &View<'_>, output: &mut Out<'_>) -> Result<()> {
    let (size, mut copy) = (image(&output.shape()), None);
    real!(op, dy.dtype(), A => {
        let dy = packed::<A>(dy, &mut copy)?;
        into_wide::<A>(output, |dx, add| {
            backward(parts, dy, (dx, size), add);
            Ok(())
        })
    })
}

const WHY: &str = "a sum of the window's elements and one division";
const WHY_BACK: &str = "a division and an addition for each window that an element belongs to";

/// The average of each window. The divisor is the number of its elements within the padded image, or only of those within
/// the image.
#[derive(Clone, Copy, Debug)]
pub struct AvgPool2d {
    /// The windows, without dilation.
    pub window: Window<2>,
    /// Whether elements of the padding (zeros) count.
    pub count_include_pad: bool,
}

impl AvgPool2d {
    /// The number of windows along both dimensions.
    fn counts(&self, op: &'static str, size: [usize; 2]) -> Result<[usize; 2]> {
        if self.window.dilation != [1, 1] {
            return Err(Error::argument(format!("averages know no dilation: {:?}", self.window)).with_op(op));
        }
        Ok([self.window.count(op, 0, size[0])?, self.window.count(op, 1, size[1])?])
    }

    fn parts(&self, size: [usize; 2], out: [usize; 2]) -> Parts {
        parts_of_windows(&self.window, self.count_include_pad, size, out)
    }
}

impl Op for AvgPool2d {
    const NAME: &'static str = "avg_pool2d";
    const INPUTS: RangeInclusive<usize> = 1..=1;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let size = images(Self::NAME, &inputs[0])?;
        let out = self.counts(Self::NAME, size)?;
        Ok(Plan::one(inputs[0].with_shape(with_image(&inputs[0].shape, out))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let parts = self.parts(image(&inputs[0].shape()), image(&outputs[0].shape()));
        average(Self::NAME, &parts, &inputs[0], &mut outputs[0])
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::avg_pool(stream, gpu::Parts::Windows(self), &inputs[0], &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        cx.run(AvgPool2dBackward { pool: *self, input: image(&cx.input_meta(0).shape) }, &[dy], &[0])
    }

    fn cases() -> Cases<Self> {
        let list = windows()
            .map(|(shape, pool)| Case { op: pool, inputs: vec![Arg::new(&shape, Values::Normal(1.0))] });
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(20.0, WHY), list: list.collect() }
    }
}

/// Shapes and windows of the cases.
fn windows() -> impl Iterator<Item = (Vec<usize>, AvgPool2d)> {
    let of = |shape: &[usize], window, count_include_pad| {
        (shape.to_vec(), AvgPool2d { window, count_include_pad })
    };
    let new = Window::new;
    let padded = new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
    [
        of(&[2, 3, 4, 6], new([2, 2]), true),
        of(&[1, 2, 5, 7], new([2, 2]), true),
        of(&[1, 1, 5, 7], new([2, 2]).with_ceil_mode(true), true),
        of(&[2, 6, 6], padded, true),
        of(&[2, 6, 6], padded, false),
        of(&[1, 2, 6, 7], padded.with_ceil_mode(true), true),
        of(&[1, 2, 6, 7], padded.with_ceil_mode(true), false),
        of(&[2, 1, 7, 5], new([3, 2]).with_stride([1, 1]), true),
        of(&[1, 2, 7, 9], new([2, 2]).with_stride([3, 4]), true),
        of(&[1, 1, 1, 1], new([1, 1]), true),
        of(&[3, 2, 1, 40], new([1, 4]).with_stride([1, 3]), true),
        of(&[1, 1, 2, 2], new([3, 3]).with_stride([2, 2]).with_ceil_mode(true), true),
        of(&[0, 2, 4, 4], new([2, 2]), true),
    ]
    .into_iter()
}

/// dx of [`AvgPool2d`] from dy.
#[derive(Clone, Copy, Debug)]
pub struct AvgPool2dBackward {
    /// The averages.
    pub pool: AvgPool2d,
    /// Height and width of the input.
    pub input: [usize; 2],
}

impl Op for AvgPool2dBackward {
    const NAME: &'static str = "avg_pool2d_backward";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let out = images(Self::NAME, &inputs[0])?;
        let expected = self.pool.counts(Self::NAME, self.input)?;
        if out != expected {
            return Err(Error::shape(Self::NAME, format!("dy has images of {out:?}, expected {expected:?}")));
        }
        Ok(Plan::one(inputs[0].with_shape(with_image(&inputs[0].shape, self.input))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let parts = self.pool.parts(self.input, image(&inputs[0].shape()));
        spread(Self::NAME, &parts, &inputs[0], &mut outputs[0])
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::avg_pool_backward(stream, gpu::Parts::Windows(&self.pool), &inputs[0], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let case = |(shape, pool): (Vec<usize>, AvgPool2d)| {
            let input = image(&Shape::from_dims(&shape));
            let out = pool.counts(Self::NAME, input).expect("the windows fit");
            let small = with_image(&Shape::from_dims(&shape), out);
            Case {
                op: AvgPool2dBackward { pool, input },
                inputs: vec![Arg::constant(&small, Values::Normal(1.0))],
            }
        };
        let list = windows().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(20.0, WHY_BACK), list }
    }
}

/// The average over each of `size` parts of an image, from ⌊o · H / size⌋ to ⌈(o + 1) · H / size⌉: neighbours may share
/// elements.
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveAvgPool2d {
    /// Height and width of the result.
    pub size: [usize; 2],
}

impl Op for AdaptiveAvgPool2d {
    const NAME: &'static str = "adaptive_avg_pool2d";
    const INPUTS: RangeInclusive<usize> = 1..=1;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let input = images(Self::NAME, &inputs[0])?;
        even(Self::NAME, input, self.size)?;
        Ok(Plan::one(inputs[0].with_shape(with_image(&inputs[0].shape, self.size))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let parts = even_parts(image(&inputs[0].shape()), self.size);
        average(Self::NAME, &parts, &inputs[0], &mut outputs[0])
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::avg_pool(stream, gpu::Parts::Even, &inputs[0], &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        cx.run(AdaptiveAvgPool2dBackward { input: image(&cx.input_meta(0).shape) }, &[dy], &[0])
    }

    fn cases() -> Cases<Self> {
        let case = |(shape, size): &(&[usize], [usize; 2])| Case {
            op: AdaptiveAvgPool2d { size: *size },
            inputs: vec![Arg::new(shape, Values::Normal(1.0))],
        };
        let list = SIZES.iter().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(40.0, WHY), list }
    }
}

/// Shapes and sizes of the cases of the even parts.
const SIZES: [(&[usize], [usize; 2]); 8] = [
    (&[2, 3, 4, 6], [2, 3]),
    (&[1, 2, 7, 5], [3, 2]),
    (&[2, 5, 6], [1, 1]),
    (&[1, 1, 3, 2], [5, 7]),
    (&[1, 2, 4, 4], [4, 4]),
    (&[1, 1, 1, 1], [1, 1]),
    (&[1, 3, 1, 33], [1, 7]),
    (&[0, 2, 4, 4], [2, 2]),
];

/// Checks the sizes of even parts.
fn even(op: &'static str, input: [usize; 2], out: [usize; 2]) -> Result<()> {
    if out.iter().any(|&n| n == 0 || n > i32::MAX as usize) {
        return Err(Error::argument(format!("a size of {out:?} is not at least 1 and below 2³¹")).with_op(op));
    }
    if input.contains(&0) {
        return Err(Error::shape(op, "an image without elements has no averages"));
    }
    Ok(())
}

/// dx of [`AdaptiveAvgPool2d`] from dy.
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveAvgPool2dBackward {
    /// Height and width of the input.
    pub input: [usize; 2],
}

impl Op for AdaptiveAvgPool2dBackward {
    const NAME: &'static str = "adaptive_avg_pool2d_backward";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let out = images(Self::NAME, &inputs[0])?;
        even(Self::NAME, self.input, out)?;
        Ok(Plan::one(inputs[0].with_shape(with_image(&inputs[0].shape, self.input))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let parts = even_parts(self.input, image(&inputs[0].shape()));
        spread(Self::NAME, &parts, &inputs[0], &mut outputs[0])
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::avg_pool_backward(stream, gpu::Parts::Even, &inputs[0], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let case = |(shape, size): &(&[usize], [usize; 2])| {
            let shape = Shape::from_dims(shape);
            Case {
                op: AdaptiveAvgPool2dBackward { input: image(&shape) },
                inputs: vec![Arg::constant(&with_image(&shape, *size), Values::Normal(1.0))],
            }
        };
        let list = SIZES.iter().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(40.0, WHY_BACK), list }
    }
}

impl Tensor {
    /// The average of each window of the images `[C, H, W]` or `[N, C, H, W]`. The padding is zeros, which count in the
    /// divisor if `count_include_pad` (PyTorch's default). An error where a window is dilated, larger than the padded image
    /// or padded by more than half.
    #[track_caller]
    pub fn avg_pool2d(&self, window: Window<2>, count_include_pad: bool) -> Result<Tensor> {
        run1(AvgPool2d { window, count_include_pad }, &[self])
    }

    /// The average of each window of the rows `[C, L]` or `[N, C, L]`, as [`Tensor::avg_pool2d`].
    #[track_caller]
    pub fn avg_pool1d(&self, window: Window<1>, count_include_pad: bool) -> Result<Tensor> {
        over_rows("avg_pool1d", self, |x| x.avg_pool2d(window.flat(), count_include_pad))
    }

    /// Averages of the images `[C, H, W]` or `[N, C, H, W]` over `size` parts of them, of nearly equal size (see
    /// [`AdaptiveAvgPool2d`]); `[1, 1]` is the mean of each image.
    #[track_caller]
    pub fn adaptive_avg_pool2d(&self, size: [usize; 2]) -> Result<Tensor> {
        let whole = size == [1, 1] && (3..=4).contains(&self.rank()) && !image(&self.shape()).contains(&0);
        if whole { self.mean(&[-2, -1], true) } else { run1(AdaptiveAvgPool2d { size }, &[self]) }
    }

    /// Averages of the rows `[C, L]` or `[N, C, L]` over `size` parts of them, as [`Tensor::adaptive_avg_pool2d`].
    #[track_caller]
    pub fn adaptive_avg_pool1d(&self, size: usize) -> Result<Tensor> {
        over_rows("adaptive_avg_pool1d", self, |x| x.adaptive_avg_pool2d([1, size]))
    }
}
