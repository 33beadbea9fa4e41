//! An image prepared for packing: zeros around it, widened, taken apart by the step of the kernel.

#![forbid(unsafe_code)]

use super::Geometry;
use crate::cpu::gemm::pack::{self, Line};
use crate::cpu::simd::vectorize;
use crate::dtype::{Element, Float, Real};

/// One element of the kernel along an axis: at place `o` it meets pixel `phase + step · (o + offset)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub element: usize,
    phase: usize,
    offset: isize,
}

/// What the kernel does along one axis. Elements that meet no pixel at any place are left out, so that the zeros to store are
/// never more than an image on each side.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub taps: Vec<Tap>,
    /// Places of the kernel, or pixels of one remainder that are computed.
    pub places: usize,
    step: usize,
    /// Pixels of the image that is read.
    size: usize,
}

impl Axis {
    /// Of x, for y: place o meets pixel o · stride − padding + r · dilation.
    pub fn forward(g: &Geometry, d: usize) -> Axis {
        let step = g.stride[d];
        let tap = |r: usize| {
            let first = (r * g.dilation[d]) as isize - g.padding[d] as isize;
            let phase = first.rem_euclid(step as isize);
            Tap { element: r, phase: phase as usize, offset: first.div_euclid(step as isize) }
        };
        Axis::new((0..g.kernel[d]).map(tap), g.result[d], step, g.image[d])
    }

    /// Of dy, for the pixels `first + stride · o` of dx: they met the element r where stride divides
    /// first + padding − r · dilation.
    pub fn backward(g: &Geometry, d: usize, first: usize) -> Axis {
        let step = g.stride[d] as isize;
        let tap = |r: usize| {
            let from = (first + g.padding[d]) as isize - (r * g.dilation[d]) as isize;
            (from.rem_euclid(step) == 0).then(|| Tap { element: r, phase: 0, offset: from.div_euclid(step) })
        };
        let places = (g.image[d] - first).div_ceil(g.stride[d]);
        Axis::new((0..g.kernel[d]).filter_map(tap), places, 1, g.result[d])
    }

    fn new(taps: impl Iterator<Item = Tap>, places: usize, step: usize, size: usize) -> Axis {
        let meets = |t: &Tap| {
            let pixels = size.saturating_sub(t.phase).div_ceil(step) as isize;
            t.offset < pixels && t.offset + places as isize > 0
        };
        Axis { taps: taps.filter(meets).collect(), places, step, size }
    }

    /// The least offset, and how far the largest is from it.
    fn span(&self) -> (isize, usize) {
        let least = self.taps.iter().map(|t| t.offset).min().unwrap_or(0);
        let most = self.taps.iter().map(|t| t.offset).max().unwrap_or(0);
        (least, (most - least) as usize)
    }

    /// The remainders that taps meet.
    fn phases(&self) -> Vec<usize> {
        let mut phases: Vec<usize> = self.taps.iter().map(|t| t.phase).collect();
        phases.sort_unstable();
        phases.dedup();
        phases
    }

    /// Rows that are stored in excess of the places.
    pub fn halo(&self) -> usize {
        self.span().1
    }
}

/// Elements of one channel for `rows` places along the height.
pub(super) fn channel_size(axes: &[Axis; 2], rows: usize) -> usize {
    let planes = axes[0].phases().len() * axes[1].phases().len();
    planes * (rows + axes[0].halo()) * (axes[1].places + axes[1].halo())
}

/// A band of an image, `[channel, remainder, row, column]`.
pub(super) struct Planes<'a, R> {
    pub data: &'a [R],
    /// Elements of a channel.
    pub channel: usize,
    /// Elements of a row.
    pub pitch: usize,
    /// For each element of the kernel where the pixel lies that it meets at the first place.
    pub taps: Vec<usize>,
}

impl<'a, R: Real> Planes<'a, R> {
    /// The rows of `channels` channels from `image` (distances: `strides` of channel, row, column) that places
    /// `first..first + rows` along the height need: where they lie, or copied to `buffer`.
    pub fn new<T: Float<Acc = R>>(
        axes: &[Axis; 2],
        (first, rows): (usize, usize),
        image: &'a [T],
        strides: [usize; 3],
        channels: usize,
        buffer: &'a mut Vec<Line>,
    ) -> Self {
        let [height, width] = axes;
        if let (Some(data), [h], [w]) = (as_computed::<T, R>(image), &height.taps[..], &width.taps[..])
            && [h.offset, w.offset] == [0, 0]
            && [height.step, width.step] == [1, 1]
            && (height.places, width.places) == (height.size, width.size)
            && strides[1..] == [width.size, 1]
        {
            let data = data.get(first * width.size..).unwrap_or(&[]);
            return Planes { data, channel: strides[0], pitch: width.size, taps: vec![0] };
        }
        let ([down, across], [tall, wide]) =
            ([height.phases(), width.phases()], [height.span(), width.span()]);
        let (lines, pitch) = (rows + tall.1, width.places + wide.1);
        let plane = lines * pitch;
        let channel = down.len() * across.len() * plane;
        let out = pack::view::<R>(buffer, channels * channel);
        if plane > 0 && channel > 0 {
            for (i, plane) in out.chunks_exact_mut(plane).enumerate() {
                let (c, i) = (i / (down.len() * across.len()), i % (down.len() * across.len()));
                let (a, b) = (down[i / across.len()], across[i % across.len()]);
                for (line, to) in plane.chunks_exact_mut(pitch).enumerate() {
                    let row = (first + line) as isize + tall.0;
                    let row =
                        usize::try_from(row).ok().map(|r| a + height.step * r).filter(|&r| r < height.size);
                    match row {
                        Some(row) => {
                            let from = image.get(c * strides[0] + row * strides[1]..).unwrap_or(&[]);
                            fill_line(width, b, wide.0, from, strides[2], to);
                        }
                        None => to.fill(R::ZERO),
                    }
                }
            }
        }
        let place = |t: &Tap, phases: &[usize], least: isize| {
            (phases.iter().position(|&p| p == t.phase).unwrap_or(0), (t.offset - least) as usize)
        };
        let mut taps = Vec::with_capacity(height.taps.len() * width.taps.len());
        for h in &height.taps {
            let (i, row) = place(h, &down, tall.0);
            for w in &width.taps {
                let (j, col) = place(w, &across, wide.0);
                taps.push((i * across.len() + j) * plane + row * pitch + col);
            }
        }
        Planes { data: out, channel, pitch, taps }
    }
}

/// One line of a plane: pixels `phase + step · (least + j)` of a row of the image, zeros beyond it.
fn fill_line<T: Float<Acc = R>, R: Real>(
    axis: &Axis,
    phase: usize,
    least: isize,
    from: &[T],
    stride: usize,
    to: &mut [R],
) {
    let pixels = axis.size.saturating_sub(phase).div_ceil(axis.step);
    let left = usize::try_from(-least).unwrap_or(0).min(to.len());
    let skipped = usize::try_from(least).unwrap_or(0);
    let count = pixels.saturating_sub(skipped).min(to.len() - left);
    let (zeros, rest) = to.split_at_mut(left);
    let (inner, beyond) = rest.split_at_mut(count);
    zeros.fill(R::ZERO);
    beyond.fill(R::ZERO);
    let (start, stride) = ((phase + axis.step * skipped) * stride, axis.step * stride);
    match (as_computed::<T, R>(from), stride) {
        _ if count == 0 => {}
        (Some(from), 1) => inner.copy_from_slice(&from[start..start + count]),
        (None, 1) => vectorize(|| inner.iter_mut().zip(&from[start..]).for_each(|(to, x)| *to = x.to_acc())),
        _ => inner.iter_mut().enumerate().for_each(|(j, to)| *to = from[start + j * stride].to_acc()),
    }
}

/// The elements as the type they are computed in, if that is their own type.
pub(super) fn as_computed<T: Float, R: Real>(data: &[T]) -> Option<&[R]> {
    if T::DTYPE == <R as Element>::DTYPE { bytemuck::try_cast_slice(data).ok() } else { None }
}

/// Elements that are moved at once: a vector of AVX-512 of f32.
pub(super) const MOVE: usize = 16;

/// How `len` places from number `first` on (row by row, `width` a row) are gathered from lines of `pitch` elements: moves of
/// [`MOVE`] elements, (from, to). Each may write beyond what it is for; the next one overwrites that.
pub(super) fn moves(first: usize, len: usize, width: usize, pitch: usize, out: &mut Vec<(usize, usize)>) {
    let mut at = 0;
    while at < len {
        let (row, col) = ((first + at) / width, (first + at) % width);
        let run = (width - col).min(len - at);
        out.extend((0..run).step_by(MOVE).map(|j| (row * pitch + col + j, at + j)));
        at += run;
    }
}

/// Gathers one row of pixels into `to`, which has [`MOVE`] elements to spare.
#[inline(always)]
pub(super) fn gather<R: Real>(data: &[R], base: usize, moves: &[(usize, usize)], to: &mut [R]) {
    for &(from, at) in moves {
        let from = base + from;
        let to = to[at..].first_chunk_mut::<MOVE>().expect("a move fits behind the last pixel");
        match data.get(from..).and_then(|d| d.first_chunk::<MOVE>()) {
            Some(run) => *to = *run,
            // The end of the memory.
            None => {
                let run = data.get(from..).unwrap_or(&[]);
                to[..run.len()].copy_from_slice(run);
            }
        }
    }
}
