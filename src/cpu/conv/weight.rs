//! dw: for each element of the kernel and each filter the sum over images and places of the pixel met times dy.
//!
//! The vectors are filters, dy turned to `[pixel, filter]`; the rows are elements of the kernel, gathered eight at a time. The
//! batch is cut into parts whose sums are added up in order; large weights are cut into rows instead.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::planes::{Axis, MOVE, Planes, as_computed, channel_size, gather, moves};
use super::{Geometry, Source};
use crate::Result;
use crate::cpu::gemm::RUN;
use crate::cpu::gemm::pack::{self, Buffers, Line};
use crate::cpu::par;
use crate::cpu::pool::Block;
use crate::cpu::simd::{Isa, MatMut, Panel, Rows, TileShape, tile, transpose, vectorize};
use crate::dtype::{Float, Real};

/// Elements of the planes that are prepared at a time, and of sums that one task keeps in its cache.
const PLANES: usize = 1 << 17;
const SUMS: usize = 1 << 17;
/// Tasks that a call is cut into where its shapes allow it.
const TASKS: usize = 16;

/// What all tasks share.
struct Work<'a, T> {
    g: &'a Geometry,
    axes: [Axis; 2],
    dy: Source<'a, T>,
    x: Source<'a, T>,
    /// Elements of the kernel that meet pixels, and rows of sums: those of all channels of a group.
    taps: usize,
    rows: usize,
}

/// Some rows of the sums over some images, `[row, filter]`.
struct Task<'s, R> {
    group: usize,
    images: Range<usize>,
    rows: Range<usize>,
    sums: &'s mut [R],
}

/// dw (+)= Σ dy x
pub(super) fn run<T: Float>(
    g: &Geometry,
    dy: Source<'_, T>,
    x: Source<'_, T>,
    dw: &mut [T],
    add: bool,
) -> Result<()> {
    if dw.is_empty() {
        return Ok(());
    }
    let axes = [0, 1].map(|d| Axis::forward(g, d));
    let taps = axes[0].taps.len() * axes[1].taps.len();
    let rows = g.channels * taps;
    let size = rows * g.filters;
    if taps < g.kernel[0] * g.kernel[1] && !add {
        dw.fill(T::from_acc(T::Acc::ZERO));
    }
    if size == 0 {
        return Ok(());
    }
    let single = g.channels == 1 && g.filters == 1;
    // Rows of one task, whole tiles of them.
    let cut = size.div_ceil(SUMS).max(8usize.div_ceil(g.images.max(1) * g.groups)).min(rows.div_ceil(8));
    let height = if single { rows } else { rows.div_ceil(cut).next_multiple_of(8) };
    let tasks = g.groups * rows.div_ceil(height);
    let parts = TASKS.div_ceil(tasks).min(g.images).max(1);
    let images = g.images.div_ceil(parts);
    let mut sums = Block::zeroed(g.groups * parts * size * size_of::<T::Acc>())?;
    let sums = sums.typed_mut::<T::Acc>();
    let work = Work { g, axes, dy, x, taps, rows };
    let mut list = Vec::new();
    for (i, sums) in sums.chunks_mut(size).enumerate() {
        let (group, part) = (i / parts, i % parts);
        let images = (part * images).min(g.images)..((part + 1) * images).min(g.images);
        for (j, sums) in sums.chunks_mut(height * g.filters).enumerate() {
            let rows = j * height..work.rows.min((j + 1) * height);
            list.push(Task { group, images: images.clone(), rows, sums });
        }
    }
    par::each(list.len(), list.into_iter(), |task| if single { work.single(task) } else { work.task(task) });
    for (sums, dw) in sums.chunks_mut(parts * size).zip(dw.chunks_mut(dw.len() / g.groups)) {
        let (first, rest) = sums.split_at_mut(size);
        let chunk = 4096;
        par::for_each_chunk_mut(first, chunk, |i, to| {
            for part in rest.chunks_exact(size) {
                let part = &part[i * chunk..][..to.len()];
                vectorize(|| to.iter_mut().zip(part).for_each(|(to, &v)| *to += v));
            }
        });
        work.store(first, dw, add);
    }
    Ok(())
}

impl<T: Float> Work<'_, T> {
    /// Rows of the result whose planes are prepared at a time, for `channels` channels.
    fn band(&self, channels: usize) -> usize {
        let of = |rows| channels * channel_size(&self.axes, rows);
        let halo = of(0);
        let fits = PLANES.saturating_sub(halo) / (of(1) - halo).max(1);
        fits.max(RUN.div_ceil(self.g.result[1])).min(self.g.result[0])
    }

    /// The channels of a group that rows of the sums belong to.
    fn channels(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start / self.taps..rows.end.div_ceil(self.taps)
    }

    fn task(&self, task: Task<'_, T::Acc>) {
        let (g, isa) = (self.g, Isa::detect());
        let shape = isa.shape::<T::Acc>();
        let channels = self.channels(&task.rows);
        let band = self.band(channels.len());
        let [height, width] = g.result;
        let Task { group, images, rows, sums } = task;
        let mut sums = MatMut::new(sums, rows.len(), g.filters, g.filters);
        let mut list = Vec::new();
        Buffers::with(|buffers| {
            let Buffers { planes, panels, strip, sums: rest } = buffers;
            for image in images {
                let x = self.x.from(image, group * g.channels + channels.start);
                let [_, strides @ ..] = self.x.strides;
                for first in (0..height).step_by(band) {
                    let lines = band.min(height - first);
                    let planes = Planes::new(&self.axes, (first, lines), x, strides, channels.len(), planes);
                    let pixels = lines * width;
                    for at in (0..pixels).step_by(RUN) {
                        let steps = RUN.min(pixels - at);
                        let turned = self.turn(
                            image,
                            group,
                            first * width + at..first * width + at + steps,
                            shape,
                            panels,
                            rest,
                        );
                        list.clear();
                        moves(at, steps, width, planes.pitch, &mut list);
                        let mut row = 0;
                        while row < rows.len() {
                            let count = shape.step(rows.len() - row);
                            let strip = pack::view::<T::Acc>(strip, count * steps + MOVE);
                            vectorize(
                                #[inline(always)]
                                || {
                                    for i in 0..count {
                                        let at = rows.start + row + i;
                                        let channel = at / self.taps - channels.start;
                                        let base = channel * planes.channel + planes.taps[at % self.taps];
                                        gather(planes.data, base, &list, &mut strip[i * steps..]);
                                    }
                                },
                            );
                            let left = Rows { data: strip, row_stride: steps, col_stride: 1 };
                            for col in (0..g.filters).step_by(shape.cols()) {
                                let cols = shape.cols().min(g.filters - col);
                                let vectors = cols.div_ceil(shape.lanes);
                                let data = &turned[col * steps..];
                                let right = Panel { data, row_stride: vectors * shape.lanes, vectors };
                                tile(isa, steps, left, right, sums.part(row, count, col, cols), true);
                            }
                            row += count;
                        }
                    }
                }
            }
        });
    }

    /// dy of some pixels (row by row) of an image as panels of filters, `[pixel, filter]` each.
    fn turn<'p>(
        &self,
        image: usize,
        group: usize,
        pixels: Range<usize>,
        shape: TileShape,
        panels: &'p mut Vec<Line>,
        rows: &mut Vec<Line>,
    ) -> &'p [T::Acc] {
        let (g, width, steps) = (self.g, self.g.result[1], pixels.len());
        let [_, filter, line, column] = self.dy.strides;
        let dy = self.dy.from(image, group * g.filters);
        let panels = pack::view::<T::Acc>(panels, g.filters.next_multiple_of(shape.lanes) * steps);
        let adjacent = column == 1 && (line == width || g.result[0] == 1);
        for col in (0..g.filters).step_by(shape.cols()) {
            let cols = shape.cols().min(g.filters - col);
            let to = &mut panels[col * steps..];
            let to_stride = cols.next_multiple_of(shape.lanes);
            if let Some(dy) = as_computed::<T, T::Acc>(dy).filter(|_| adjacent) {
                transpose(&dy[col * filter + pixels.start..], filter, (cols, steps), to, to_stride);
                continue;
            }
            let rows = pack::view::<T::Acc>(rows, cols * steps);
            for (i, row) in rows.chunks_exact_mut(steps).enumerate() {
                let dy = &dy[(col + i) * filter..];
                if adjacent {
                    let dy = &dy[pixels.start..];
                    vectorize(|| row.iter_mut().zip(dy).for_each(|(to, v)| *to = v.to_acc()));
                } else {
                    for (to, p) in row.iter_mut().zip(pixels.clone()) {
                        *to = dy[p / width * line + p % width * column].to_acc();
                    }
                }
            }
            transpose(rows, steps, (cols, steps), to, to_stride);
        }
        panels
    }

    /// One channel and one filter a group, which would fill no tile: dy in lines as long as those of the plane, with zeros
    /// behind its pixels, times the plane from each element's pixel on. What meets the zeros is no part of the sum: a NaN may
    /// have come from there, and then the lines are taken one by one.
    fn single(&self, task: Task<'_, T::Acc>) {
        let g = self.g;
        let [height, width] = g.result;
        let [_, _, line, column] = self.dy.strides;
        let band = self.band(1);
        Buffers::with(|buffers| {
            let Buffers { planes, strip, .. } = buffers;
            for image in task.images {
                let (x, dy) = (self.x.from(image, task.group), self.dy.from(image, task.group));
                let [_, strides @ ..] = self.x.strides;
                for first in (0..height).step_by(band) {
                    let lines = band.min(height - first);
                    let planes = Planes::new(&self.axes, (first, lines), x, strides, 1, planes);
                    let spread = pack::view::<T::Acc>(strip, lines * planes.pitch);
                    for (i, to) in spread.chunks_exact_mut(planes.pitch).enumerate() {
                        let from = &dy[(first + i) * line..];
                        for (j, to) in to[..width].iter_mut().enumerate() {
                            *to = from[j * column].to_acc();
                        }
                        to[width..].fill(T::Acc::ZERO);
                    }
                    let spread = &spread[..(lines - 1) * planes.pitch + width];
                    vectorize(
                        #[inline(always)]
                        || {
                            for (sum, &tap) in task.sums.iter_mut().zip(&planes.taps) {
                                let met = &planes.data[tap..][..spread.len()];
                                let mut product = dot(spread, met);
                                if product.is_nan() {
                                    let pairs = spread.chunks(planes.pitch).zip(met.chunks(planes.pitch));
                                    let line = |(dy, x): (&[_], &[_])| dot(&dy[..width], &x[..width]);
                                    product = pairs.map(line).fold(T::Acc::ZERO, |sum, v| sum + v);
                                }
                                *sum += product;
                            }
                        },
                    );
                }
            }
        });
    }

    /// Puts the sums `[row, filter]` of a group where they belong in dw `[filter, channel, kernel]`.
    fn store(&self, sums: &[T::Acc], dw: &mut [T], add: bool) {
        let (g, rows) = (self.g, self.rows);
        let elements = g.kernel[0] * g.kernel[1];
        if self.taps == elements
            && !add
            && let Some(dw) = as_computed_mut::<T, T::Acc>(dw)
        {
            return transpose(sums, g.filters, (rows, g.filters), dw, rows);
        }
        let places: Vec<usize> = self.axes[0]
            .taps
            .iter()
            .flat_map(|r| self.axes[1].taps.iter().map(move |s| r.element * g.kernel[1] + s.element))
            .collect();
        for (i, sums) in sums.chunks_exact(g.filters).enumerate() {
            let at = i / self.taps * elements + places[i % self.taps];
            for (f, &sum) in sums.iter().enumerate() {
                let to = &mut dw[f * g.channels * elements + at];
                *to = T::from_acc(if add { to.to_acc() + sum } else { sum });
            }
        }
    }
}

/// The elements as the type they are computed in, if that is their own type.
fn as_computed_mut<T: Float, R: Real>(data: &mut [T]) -> Option<&mut [R]> {
    if T::DTYPE == R::DTYPE { bytemuck::try_cast_slice_mut(data).ok() } else { None }
}

/// Σ a b, in 64 chains that are joined in order.
#[inline(always)]
fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    const CHAINS: usize = 64;
    let mut sums = [R::ZERO; CHAINS];
    let (a_rest, b_rest) = (a.chunks_exact(CHAINS).remainder(), b.chunks_exact(CHAINS).remainder());
    for (a, b) in a.chunks_exact(CHAINS).zip(b.chunks_exact(CHAINS)) {
        for i in 0..CHAINS {
            sums[i] = a[i].mul_add(b[i], sums[i]);
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = a.mul_add(b, *sum);
    }
    let mut width = CHAINS / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}
