//! The largest element of each window and where it stands.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{Window, gpu, image, images, over_rows, with_image};
use crate::cpu::par;
use crate::cpu::reduce::{GRAIN, vectorize};
use crate::device::Stream;
use crate::dtype::Real;
use crate::ops::reduce::{into_wide, packed, real};
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

/// The largest element of each window, the first of several; NaN if there is one. Outputs y and the place of that element
/// in its image, counted in row-major order (i32). Gradient: dy goes to that element.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool2d {
    /// The windows.
    pub window: Window<2>,
}

impl Op for MaxPool2d {
    const NAME: &'static str = "max_pool2d";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const STATISTICS: usize = 1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let size = images(Self::NAME, &inputs[0])?;
        let out = counts(&self.window, size)?;
        let y = inputs[0].with_shape(with_image(&inputs[0].shape, out));
        Ok(Plan { outputs: vec![y, y.with_dtype(DType::I32)], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (y, index) = outputs.split_at_mut(1);
        let out = image(&y[0].shape());
        let (size, mut copy) = (image(&inputs[0].shape()), None);
        real!(Self::NAME, inputs[0].dtype(), A => {
            let x = packed::<A>(&inputs[0], &mut copy)?;
            let index = index[0].slice::<i32>();
            into_wide::<A>(&mut y[0], |y, _| {
                forward(&self.window, (x, size), (y, index, out));
                Ok(())
            })
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::max_pool(stream, &self.window, &inputs[0], outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let op = MaxPool2dBackward { window: self.window, input: image(&cx.input_meta(0).shape) };
        cx.run(op, &[dy, &cx.output(1)?], &[0])
    }

    fn cases() -> Cases<Self> {
        let list = windows().map(|(shape, window)| Case {
            op: MaxPool2d { window },
            inputs: vec![Arg::new(&shape, Values::Distinct(0.01))],
        });
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Exact, list: list.collect() }
    }
}

/// The number of windows along both dimensions.
fn counts(window: &Window<2>, size: [usize; 2]) -> Result<[usize; 2]> {
    let count = |d: usize| window.count_of_some(MaxPool2d::NAME, d, size[d]);
    Ok([count(0)?, count(1)?])
}

/// Shapes and windows of the cases.
fn windows() -> impl Iterator<Item = (Vec<usize>, Window<2>)> {
    let new = Window::new;
    let of = |shape: &[usize], window| (shape.to_vec(), window);
    [
        of(&[2, 3, 4, 6], new([2, 2])),
        of(&[1, 2, 5, 7], new([2, 2])),
        of(&[1, 1, 5, 7], new([2, 2]).with_ceil_mode(true)),
        of(&[2, 6, 6], new([3, 3]).with_stride([2, 2]).with_padding([1, 1])),
        of(&[1, 2, 6, 7], new([3, 3]).with_stride([2, 2]).with_padding([1, 1]).with_ceil_mode(true)),
        of(&[2, 1, 7, 5], new([3, 2]).with_stride([1, 1])),
        of(&[1, 1, 9, 8], new([2, 3]).with_stride([1, 2]).with_padding([1, 1]).with_dilation([3, 2])),
        of(&[1, 2, 7, 9], new([2, 2]).with_stride([3, 4])),
        of(&[1, 1, 1, 1], new([1, 1])),
        of(&[3, 2, 1, 40], new([1, 2])),
        of(&[1, 1, 6, 70], new([2, 2])),
        of(&[1, 1, 2, 2], new([3, 3]).with_stride([2, 2]).with_ceil_mode(true)),
        of(&[0, 2, 4, 4], new([2, 2])),
    ]
    .into_iter()
}

/// Pools planes of `size` into planes of `out`.
fn forward<A: Real>(
    window: &Window<2>,
    (x, size): (&[A], [usize; 2]),
    (y, index, out): (&mut [A], &mut [i32], [usize; 2]),
) {
    let (plane, small) = (size[0] * size[1], out[0] * out[1]);
    if y.is_empty() {
        return;
    }
    let each = (GRAIN / plane).max(1);
    let columns: Vec<(usize, usize)> = (0..out[1]).map(|o| window.taps(1, size[1], o)).collect();
    let tasks = x.chunks(each * plane).zip(y.chunks_mut(each * small)).zip(index.chunks_mut(each * small));
    let halves = *window == Window::new([2, 2]) && out[1] >= LANES;
    par::each(x.len() / plane / each + 1, tasks, |((x, y), index)| {
        vectorize::<A, _>(
            #[inline(always)]
            || {
                let planes = x.chunks_exact(plane).zip(y.chunks_exact_mut(small));
                for ((x, y), index) in planes.zip(index.chunks_exact_mut(small)) {
                    let rows = y.chunks_exact_mut(out[1]).zip(index.chunks_exact_mut(out[1]));
                    for (o, (y, index)) in rows.enumerate() {
                        if halves {
                            row_of_squares(x, size[1], o, y, index);
                        } else {
                            row(window, (x, size), o, &columns, y, index);
                        }
                    }
                }
            },
        );
    });
}

/// Windows that [`row_of_squares`] takes at a time.
const LANES: usize = 8;

/// Row `o` of windows of 2 by 2 side by side. Elements go to arrays first, one for each place in a window: only so does the
/// compiler choose among them without branches.
#[inline(always)]
fn row_of_squares<A: Real>(x: &[A], width: usize, o: usize, y: &mut [A], index: &mut [i32]) {
    let n = y.len();
    let (top, bottom) = (&x[2 * o * width..][..width], &x[(2 * o + 1) * width..][..width]);
    let mut at = 0;
    while at < n {
        // The last step may do some windows again.
        at = at.min(n - LANES);
        let top: &[A; 2 * LANES] = top[2 * at..][..2 * LANES].try_into().expect("as long as that");
        let bottom: &[A; 2 * LANES] = bottom[2 * at..][..2 * LANES].try_into().expect("as long as that");
        let y: &mut [A; LANES] = (&mut y[at..][..LANES]).try_into().expect("as long as that");
        let index: &mut [i32; LANES] = (&mut index[at..][..LANES]).try_into().expect("as long as that");
        let (mut a, mut b, mut c, mut d) =
            ([A::ZERO; LANES], [A::ZERO; LANES], [A::ZERO; LANES], [A::ZERO; LANES]);
        let mut places = [0; LANES];
        for i in 0..LANES {
            (a[i], b[i], c[i], d[i]) = (top[2 * i], top[2 * i + 1], bottom[2 * i], bottom[2 * i + 1]);
            places[i] = (2 * o * width + 2 * (at + i)) as i32;
        }
        let (mut best, mut chosen, width) = (a, places, width as i32);
        for (v, by) in [(b, 1), (c, width), (d, width + 1)] {
            for i in 0..LANES {
                // As PyTorch chooses: a NaN replaces everything.
                let better = (v[i] > best[i]) | v[i].is_nan();
                best[i] = if better { v[i] } else { best[i] };
                chosen[i] = if better { places[i] + by } else { chosen[i] };
            }
        }
        (*y, *index) = (best, chosen);
        at += LANES;
    }
}

/// Row `o` of any windows: one element of all windows after the other, so that neighbours are computed together.
#[inline(always)]
fn row<A: Real>(
    window: &Window<2>,
    (x, size): (&[A], [usize; 2]),
    o: usize,
    columns: &[(usize, usize)],
    y: &mut [A],
    index: &mut [i32],
) {
    let (top, height) = window.taps(0, size[0], o);
    let n = y.len();
    let index = &mut index[..n];
    for (j, &(left, _)) in columns[..n].iter().enumerate() {
        y[j] = A::NEG_INFINITY;
        index[j] = (top * size[1] + left) as i32;
    }
    let (stride, padding, dilation) = (window.stride[1], window.padding[1], window.dilation[1]);
    for i in 0..height {
        let start = (top + i * window.dilation[0]) * size[1];
        let line = &x[start..][..size[1]];
        for k in 0..window.kernel[1] {
            // The windows whose element k lies in the image.
            let offset = k * dilation;
            let from = padding.saturating_sub(offset).div_ceil(stride).min(n);
            let to = (size[1] + padding).saturating_sub(offset).div_ceil(stride).clamp(from, n);
            let (y, index) = (&mut y[from..to], &mut index[from..to]);
            if y.is_empty() {
                continue;
            }
            let first = from * stride + offset - padding;
            let line = &line[first..];
            let place = (start + first) as i32;
            match stride {
                1 => best_of::<A, 1>(line, 1, place, y, index),
                2 => best_of::<A, 2>(line, 2, place, y, index),
                _ => best_of::<A, 0>(line, stride, place, y, index),
            }
        }
    }
}

/// Puts every `stride`-th element of `line` in place of a smaller one. `S`: the stride where it is known, else 0.
#[inline(always)]
fn best_of<A: Real, const S: usize>(line: &[A], stride: usize, place: i32, y: &mut [A], index: &mut [i32]) {
    let stride = if S > 0 { S } else { stride };
    let n = y.len();
    let (line, index) = (&line[..(n - 1) * stride + 1], &mut index[..n]);
    for j in 0..n {
        let v = line[j * stride];
        let better = (v > y[j]) | v.is_nan();
        y[j] = if better { v } else { y[j] };
        index[j] = if better { place + (j * stride) as i32 } else { index[j] };
    }
}

/// dx of [`MaxPool2d`], from dy and the places: each element gets the sum of dy over the windows that it belongs to and
/// that chose it, in the order of the windows.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool2dBackward {
    /// The windows.
    pub window: Window<2>,
    /// Height and width of the input.
    pub input: [usize; 2],
}

impl Op for MaxPool2dBackward {
    const NAME: &'static str = "max_pool2d_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, index) = (&inputs[0], &inputs[1]);
        let out = images(Self::NAME, dy)?;
        let expected = counts(&self.window, self.input).map_err(|e| e.with_op(Self::NAME))?;
        if index.dtype != DType::I32 || index.shape != dy.shape || out != expected {
            let message = format!("dy {dy} and places {index}, expected images of {expected:?} and i32");
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan::one(dy.with_shape(with_image(&dy.shape, self.input))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let out = image(&inputs[0].shape());
        let (mut copy, mut index_copy) = (None, None);
        let index = packed::<i32>(&inputs[1], &mut index_copy)?;
        real!(Self::NAME, inputs[0].dtype(), A => {
            let dy = packed::<A>(&inputs[0], &mut copy)?;
            into_wide::<A>(&mut outputs[0], |dx, add| {
                backward(&self.window, (dy, index, out), (dx, self.input), add);
                Ok(())
            })
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::max_pool_backward(stream, &self.window, (&inputs[0], &inputs[1]), &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        // The last element of each window that lies within, and every third place none at all.
        let case = |(shape, window): (Vec<usize>, Window<2>)| {
            let size = image(&Shape::from_dims(&shape));
            let out = counts(&window, size).expect("the windows fit");
            let place = |i: usize| {
                let last = |d: usize, o: usize| {
                    let (first, taps) = window.taps(d, size[d], o);
                    first + (taps - 1) * window.dilation[d]
                };
                (last(0, i / out[1]) * size[1] + last(1, i % out[1])) as f64
            };
            let places = (0..out[0] * out[1]).map(|i| if i % 3 == 2 { -1.0 } else { place(i) }).collect();
            let small = with_image(&Shape::from_dims(&shape), out);
            let inputs = vec![
                Arg::constant(&small, Values::Normal(1.0)),
                Arg::typed(&small, Values::Exactly(places), DType::I32),
            ];
            Case { op: MaxPool2dBackward { window, input: size }, inputs }
        };
        let why = "one addition for each window that an element belongs to";
        Cases {
            dtypes: &DType::FLOATS,
            tolerance: Tolerance::Sum(9.0, why),
            list: windows().map(case).collect(),
        }
    }
}

/// Adds planes of `dy` to where the places say, in planes of `size`.
fn backward<A: Real>(
    window: &Window<2>,
    (dy, index, out): (&[A], &[i32], [usize; 2]),
    (dx, size): (&mut [A], [usize; 2]),
    add: bool,
) {
    let (plane, small) = (size[0] * size[1], out[0] * out[1]);
    if dx.is_empty() {
        return;
    }
    let each = (GRAIN / plane).max(1);
    let count = dx.len() / plane / each + 1;
    let tasks = dx.chunks_mut(each * plane).zip(dy.chunks(each * small)).zip(index.chunks(each * small));
    par::each(count, tasks, |((dx, dy), index)| {
        vectorize::<A, _>(
            #[inline(always)]
            || {
                let planes = dx.chunks_exact_mut(plane).zip(dy.chunks_exact(small));
                for ((dx, dy), index) in planes.zip(index.chunks_exact(small)) {
                    if !add {
                        dx.fill(A::ZERO);
                    }
                    plane_of_windows(window, dx, size, (dy, index, out));
                }
            },
        );
    });
}

/// The windows of a plane, one after the other.
#[inline(always)]
fn plane_of_windows<A: Real>(
    window: &Window<2>,
    dx: &mut [A],
    size: [usize; 2],
    (dy, index, out): (&[A], &[i32], [usize; 2]),
) {
    // Whether window `o` along dimension `d` has the element at `at`.
    let has = |d: usize, o: usize, at: usize| {
        let (dilation, from) = (window.dilation[d], at + window.padding[d]);
        let tap = from.wrapping_sub(o * window.stride[d]);
        tap <= (window.kernel[d] - 1) * dilation && (dilation == 1 || tap.is_multiple_of(dilation))
    };
    for o in 0..out[0] {
        for p in 0..out[1] {
            let at = index[o * out[1] + p];
            let (row, column) = (at as u32 / size[1] as u32, at as u32 % size[1] as u32);
            if at >= 0 && has(0, o, row as usize) && has(1, p, column as usize) {
                // Not in the image where somebody made the places up.
                if let Some(dx) = dx.get_mut(at as usize) {
                    *dx += dy[o * out[1] + p];
                }
            }
        }
    }
}

impl Tensor {
    /// The largest element of each window of the images `[C, H, W]` or `[N, C, H, W]`; NaN if there is one. The gradient
    /// goes to the first of several equal ones. An error where a window is larger than the padded image or padded by more
    /// than half.
    #[track_caller]
    pub fn max_pool2d(&self, window: Window<2>) -> Result<Tensor> {
        Ok(run(MaxPool2d { window }, &[self])?.swap_remove(0))
    }

    /// As [`Tensor::max_pool2d`], and for each window the place of its largest element in the image, counted in row-major
    /// order (i64): the first of several equal ones.
    #[track_caller]
    pub fn max_pool2d_with_indices(&self, window: Window<2>) -> Result<(Tensor, Tensor)> {
        let mut outputs = run(MaxPool2d { window }, &[self])?;
        let index = outputs.swap_remove(1).to_dtype(DType::I64)?;
        Ok((outputs.swap_remove(0), index))
    }

    /// The largest element of each window of the rows `[C, L]` or `[N, C, L]`, as [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool1d(&self, window: Window<1>) -> Result<Tensor> {
        over_rows("max_pool1d", self, |x| x.max_pool2d(window.flat()))
    }
}
