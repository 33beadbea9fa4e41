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
    /// The remainders that taps meet, and for each tap which of them.
    phases: Vec<usize>,
    plane: Vec<usize>,
    /// The least offset, and how far the largest is from it: rows that are stored in excess of the places.
    least: isize,
    halo: usize,
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
        let taps: Vec<Tap> = taps.filter(meets).collect();
        let least = taps.iter().map(|t| t.offset).min().unwrap_or(0);
        let most = taps.iter().map(|t| t.offset).max().unwrap_or(0);
        let mut phases: Vec<usize> = taps.iter().map(|t| t.phase).collect();
        phases.sort_unstable();
        phases.dedup();
        let plane = taps.iter().map(|t| phases.partition_point(|&p| p < t.phase)).collect();
        Axis { taps, places, step, size, phases, plane, least, halo: (most - least) as usize }
    }
}

/// Elements of one channel for `rows` places along the height.
pub(super) fn channel_size(axes: &[Axis; 2], rows: usize) -> usize {
    let [height, width] = axes;
    let planes = height.phases.len() * width.phases.len();
    planes * (rows + height.halo) * (width.places + width.halo)
}

/// A band of an image, `[channel, remainder, row, column]`.
pub(super) struct Planes<'a, R> {
    /// Of one channel with [`LANES`] elements to spare, whatever they are.
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
        // One channel is read with elements to spare, which the image has not.
        if channels > 1
            && let (Some(data), [h], [w]) = (as_computed::<T, R>(image), &height.taps[..], &width.taps[..])
            && [h.offset, w.offset] == [0, 0]
            && [height.step, width.step] == [1, 1]
            && (height.places, width.places) == (height.size, width.size)
            && strides[1..] == [width.size, 1]
        {
            let data = data.get(first * width.size..).unwrap_or(&[]);
            return Planes { data, channel: strides[0], pitch: width.size, taps: vec![0] };
        }
        let (lines, pitch) = (rows + height.halo, width.places + width.halo);
        let plane = lines * pitch;
        let (across, channel) = (width.phases.len(), channel_size(axes, rows));
        let all = pack::view::<R>(buffer, channels * channel + LANES);
        let (out, _) = all.split_at_mut(channels * channel);
        // All zeros at once: a few a line would cost a call each.
        out.fill(R::ZERO);
        // The lines that meet the image.
        let before = usize::try_from(-(first as isize + height.least)).unwrap_or(0);
        let (start, left) = width.inner();
        vectorize(
            #[inline(always)]
            || {
                for (i, plane) in out.chunks_exact_mut(plane.max(1)).enumerate() {
                    let (c, i) = (i / (height.phases.len() * across), i % (height.phases.len() * across));
                    let (a, b) = (height.phases[i / across], width.phases[i % across]);
                    let columns = width.pixels(b).saturating_sub(start).min(pitch - left);
                    for (line, to) in plane.chunks_exact_mut(pitch).enumerate().skip(before) {
                        let row = a + height.step * ((first + line) as isize + height.least) as usize;
                        if row >= height.size || columns == 0 {
                            break;
                        }
                        let from = c * strides[0] + row * strides[1] + (b + width.step * start) * strides[2];
                        copy(&image[from..], width.step * strides[2], &mut to[left..left + columns]);
                    }
                }
            },
        );
        let mut taps = Vec::with_capacity(height.taps.len() * width.taps.len());
        for (h, i) in height.taps.iter().zip(&height.plane) {
            let row = (h.offset - height.least) as usize * pitch;
            for (w, j) in width.taps.iter().zip(&width.plane) {
                taps.push((i * across + j) * plane + row + (w.offset - width.least) as usize);
            }
        }
        Planes { data: all, channel, pitch, taps }
    }
}

impl Axis {
    /// Pixels with this remainder.
    fn pixels(&self, phase: usize) -> usize {
        self.size.saturating_sub(phase).div_ceil(self.step)
    }

    /// The first pixel of a remainder that is stored, and the zeros before it.
    fn inner(&self) -> (usize, usize) {
        let zeros = usize::try_from(-self.least).unwrap_or(0);
        (usize::try_from(self.least).unwrap_or(0), zeros.min(self.places + self.halo))
    }
}

/// `to[j] = from[j · stride]`, widened; call it inside [`vectorize`]. Short runs are the rule: a few moves, where a call of `memcpy` would cost more.
#[inline(always)]
pub(super) fn copy<T: Float<Acc = R>, R: Real>(from: &[T], stride: usize, to: &mut [R]) {
    let len = to.len();
    if stride != 1 {
        return to.iter_mut().enumerate().for_each(|(j, to)| *to = from[j * stride].to_acc());
    }
    let from = &from[..len];
    match as_computed::<T, R>(from) {
        Some(from) if len >= MOVE => pieces::<R, MOVE>(from, to),
        Some(from) if len >= 8 => pieces::<R, 8>(from, to),
        Some(from) if len >= 4 => pieces::<R, 4>(from, to),
        _ => to.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_acc()),
    }
}

/// Copies in moves of N elements, the last of which may overlap the one before it; there are at least N.
#[inline(always)]
fn pieces<R: Real, const N: usize>(from: &[R], to: &mut [R]) {
    for (to, from) in to.as_chunks_mut::<N>().0.iter_mut().zip(from.as_chunks::<N>().0) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk::<N>()) {
        *to = *from;
    }
}

/// The elements as the type they are computed in, if that is their own type.
pub(super) fn as_computed<T: Float, R: Real>(data: &[T]) -> Option<&[R]> {
    if T::DTYPE == <R as Element>::DTYPE { bytemuck::try_cast_slice(data).ok() } else { None }
}

/// Sums that are computed at once where there is one channel.
pub(super) const LANES: usize = 64;

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
