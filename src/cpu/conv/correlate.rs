//! y and dx: each pixel of the result is a row of weights times the pixels that the kernel meets there.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ops::Range;

use super::planes::{Axis, LANES, MOVE, Planes, channel_size, copy, gather, moves};
use super::{Epilogue, Source};
use crate::cpu::activation::Activation;
use crate::cpu::gemm::RUN;
use crate::cpu::gemm::pack::{self, Buffers, Line};
use crate::cpu::par;
use crate::cpu::simd::{Isa, MatMut, Panel, Rows, tile, vectorize};
use crate::dtype::{Float, Real};

/// Pixels whose panels are packed at a time, a multiple of every tile's width: with [`RUN`] half of an L2 cache.
const BLOCK: usize = 576;

/// Elements of an image's planes that are prepared at a time.
const PLANES: usize = 1 << 17;

/// A correlation of each image of `source` with weights.
pub(super) struct Correlation<'a, T: Float> {
    pub source: Source<'a, T>,
    pub groups: usize,
    /// Channels of the source in a group.
    pub channels: usize,
    /// Channels of the result in a group.
    pub filters: usize,
    /// Pixels of the result from one that a phase computes to the next.
    pub step: [usize; 2],
    /// Height and width of the result.
    pub size: [usize; 2],
    pub phases: Vec<Phase<'a, T::Acc>>,
}

/// The pixels of the result with one remainder by the step.
pub(super) struct Phase<'a, R: Clone> {
    pub axes: [Axis; 2],
    /// The first of them.
    pub first: [usize; 2],
    /// `[groups, filters, k]`
    pub weights: Cow<'a, [R]>,
}

/// A band of rows of one image and group of the result.
struct Item<'o, T> {
    image: usize,
    group: usize,
    rows: Range<usize>,
    y: MatMut<'o, T>,
    pre: Option<MatMut<'o, T>>,
}

/// What is done to complete sums.
#[derive(Clone, Copy)]
struct Finish<'a, T> {
    bias: Option<&'a [T]>,
    activation: Activation,
    add: bool,
}

impl<T: Float> Correlation<'_, T> {
    pub fn run(&self, out: &mut [T], add: bool, epilogue: Epilogue<'_, T>) {
        if out.is_empty() {
            return;
        }
        let [height, width] = self.size;
        let plane = height * width;
        let band = self.band(out.len() / (self.filters * plane));
        let mut items = Vec::new();
        let mut pre = epilogue.pre.map(|p| p.chunks_mut(self.filters * plane));
        for (i, out) in out.chunks_mut(self.filters * plane).enumerate() {
            let matrix = |data| MatMut::new(data, self.filters, plane, plane);
            let (mut y, mut pre) = (matrix(out), pre.as_mut().and_then(Iterator::next).map(matrix));
            for row in (0..height).step_by(band) {
                let rows = row..height.min(row + band);
                let (y_now, y_later) = y.split_cols(rows.len() * width);
                let (pre_now, pre_later) = pre.map(|p| p.split_cols(rows.len() * width)).unzip();
                items.push(Item {
                    image: i / self.groups,
                    group: i % self.groups,
                    rows,
                    y: y_now,
                    pre: pre_now,
                });
                (y, pre) = (y_later, pre_later);
            }
        }
        let finish = Finish { bias: epilogue.bias, activation: epilogue.activation, add };
        par::each(items.len(), items.into_iter(), |item| self.item(item, finish));
    }

    /// Rows of the result that are computed at a time, when there are `images` images and groups.
    fn band(&self, images: usize) -> usize {
        let [height, width] = self.size;
        let [phase] = &self.phases[..] else { return height };
        // The rows of a phase lie apart.
        if self.step != [1, 1] {
            return height;
        }
        let of = |rows| self.channels * channel_size(&phase.axes, rows);
        let halo = of(0);
        let line = (of(1) - halo).max(1);
        let fits = PLANES.saturating_sub(halo) / line;
        // A few images are cut so that all threads have work.
        let share = height.div_ceil(8usize.div_ceil(images));
        let whole = BLOCK.div_ceil(width);
        fits.min(share).max(whole).min(height)
    }

    fn item(&self, mut item: Item<'_, T>, finish: Finish<'_, T>) {
        let channel = item.group * self.channels;
        let image = self.source.from(item.image, channel);
        let [_, strides @ ..] = self.source.strides;
        Buffers::with(|buffers| {
            let Buffers { planes, panels, sums, .. } = buffers;
            for phase in &self.phases {
                let dense = self.step == [1, 1];
                let rows = if dense { item.rows.clone() } else { 0..phase.axes[0].places };
                let width = phase.axes[1].places;
                let pixels = rows.len() * width;
                if pixels == 0 {
                    continue;
                }
                let band = (rows.start, rows.len());
                let planes = Planes::new(&phase.axes, band, image, strides, self.channels, planes);
                let k = self.channels * planes.taps.len();
                let weights = &phase.weights[item.group * self.filters * k..][..self.filters * k];
                let work = Block { planes: &planes, weights, k, width };
                if self.filters == 1 && self.channels == 1 {
                    let pitch = planes.pitch;
                    let lines = pack::view(sums, pitch * rows.len() + LANES);
                    work.single(rows.len(), lines);
                    if dense && let Ok(mut y) = item.y.reborrow().cast::<T::Acc>() {
                        let into = y.row(0).chunks_exact_mut(width).zip(lines.chunks(pitch));
                        if finish.add {
                            into.for_each(|(y, line)| y.iter_mut().zip(line).for_each(|(y, &sum)| *y += sum));
                        } else {
                            vectorize(
                                #[inline(always)]
                                || into.for_each(|(y, line)| copy(&line[..width], 1, y)),
                            );
                        }
                        self.complete(&mut y, 0..pixels, item.group, &mut item.pre, finish);
                        continue;
                    }
                    (1..rows.len()).for_each(|i| lines.copy_within(i * pitch..i * pitch + width, i * width));
                    self.store(&mut lines[..pixels], pixels, phase, 0..pixels, &mut item, finish);
                    continue;
                }
                for at in (0..pixels).step_by(BLOCK) {
                    let part = at..pixels.min(at + BLOCK);
                    if dense && let Ok(mut y) = item.y.reborrow().cast::<T::Acc>() {
                        let mut y = y.part(0, self.filters, part.start, part.len());
                        work.run(part.clone(), &mut y, finish.add, panels);
                        self.complete(&mut y, part, item.group, &mut item.pre, finish);
                        continue;
                    }
                    let stride = part.len();
                    let out = pack::view::<T::Acc>(sums, self.filters * stride);
                    let mut y = MatMut::new(out, self.filters, stride, stride);
                    work.run(part.clone(), &mut y, false, panels);
                    self.store(out, stride, phase, part, &mut item, finish);
                }
            }
        });
    }

    /// Completes sums that lie in y already.
    fn complete(
        &self,
        y: &mut MatMut<'_, T::Acc>,
        pixels: Range<usize>,
        group: usize,
        pre: &mut Option<MatMut<'_, T>>,
        finish: Finish<'_, T>,
    ) {
        if finish.bias.is_none() && pre.is_none() && finish.activation == Activation::Identity {
            return;
        }
        vectorize(
            #[inline(always)]
            || {
                for i in 0..self.filters {
                    let y = y.row(i);
                    if let Some(bias) = finish.bias {
                        let b = bias[group * self.filters + i].to_acc();
                        y.iter_mut().for_each(|y| *y += b);
                    }
                    if let Some(pre) = pre.as_mut() {
                        let pre = &mut pre.row(i)[pixels.clone()];
                        pre.iter_mut().zip(&*y).for_each(|(pre, &y)| *pre = T::from_acc(y));
                    }
                    finish.activation.apply_all(y);
                }
            },
        );
    }

    /// Completes sums in a buffer, rows `stride` apart, and puts them where the phase's pixels lie in the result.
    fn store(
        &self,
        sums: &mut [T::Acc],
        stride: usize,
        phase: &Phase<'_, T::Acc>,
        pixels: Range<usize>,
        item: &mut Item<'_, T>,
        finish: Finish<'_, T>,
    ) {
        let (width, places) = (self.size[1], phase.axes[1].places);
        for (i, sums) in sums.chunks_mut(stride).take(self.filters).enumerate() {
            let y = item.y.row(i);
            vectorize(
                #[inline(always)]
                || {
                    if let Some(bias) = finish.bias {
                        let b = bias[item.group * self.filters + i].to_acc();
                        sums.iter_mut().for_each(|y| *y += b);
                    }
                    if let Some(pre) = &mut item.pre {
                        let pre = &mut pre.row(i)[pixels.clone()];
                        pre.iter_mut().zip(&*sums).for_each(|(pre, &y)| *pre = T::from_acc(y));
                    }
                    finish.activation.apply_all(sums);
                    let put = |y: &mut T, sum: T::Acc| {
                        *y = T::from_acc(if finish.add { y.to_acc() + sum } else { sum });
                    };
                    if self.step == [1, 1] {
                        y[pixels.clone()].iter_mut().zip(&*sums).for_each(|(y, &sum)| put(y, sum));
                        return;
                    }
                    let (mut row, mut col) = (pixels.start / places, pixels.start % places);
                    for &sum in &*sums {
                        let at = (phase.first[0] + row * self.step[0]) * width;
                        put(&mut y[at + phase.first[1] + col * self.step[1]], sum);
                        col += 1;
                        if col == places {
                            (row, col) = (row + 1, 0);
                        }
                    }
                },
            );
        }
    }
}

/// The products of one band.
struct Block<'b, R> {
    planes: &'b Planes<'b, R>,
    /// `[filters, k]`
    weights: &'b [R],
    k: usize,
    /// Places in a row.
    width: usize,
}

impl<R: Real> Block<'_, R> {
    /// `out` (+)= the sums of `pixels` for all filters.
    fn run(&self, pixels: Range<usize>, out: &mut MatMut<'_, R>, add: bool, panels: &mut Vec<Line>) {
        let (isa, k) = (Isa::detect(), self.k);
        let shape = isa.shape::<R>();
        let (filters, taps) = (out.rows(), self.planes.taps.len());
        let mut list = Vec::new();
        // For each panel its first column, its columns, its moves.
        let parts: Vec<(usize, usize, Range<usize>)> = (0..pixels.len())
            .step_by(shape.cols())
            .map(|col| {
                let (cols, from) = (shape.cols().min(pixels.len() - col), list.len());
                moves(pixels.start + col, cols, self.width, self.planes.pitch, &mut list);
                (col, cols, from..list.len())
            })
            .collect();
        for start in (0..k.max(1)).step_by(RUN) {
            let steps = RUN.min(k - start);
            let buffer = pack::view::<R>(panels, steps * shape.cols() * parts.len() + MOVE);
            vectorize(
                #[inline(always)]
                || {
                    for (col, cols, own) in &parts {
                        let width = cols.next_multiple_of(shape.lanes);
                        let (mut channel, mut tap) = (start / taps.max(1), start % taps.max(1));
                        for step in 0..steps {
                            let base = channel * self.planes.channel + self.planes.taps[tap];
                            let to = &mut buffer[col * steps + step * width..];
                            gather(self.planes.data, base, &list[own.clone()], to);
                            tap += 1;
                            if tap == taps {
                                (channel, tap) = (channel + 1, 0);
                            }
                        }
                    }
                },
            );
            let mut row = 0;
            while row < filters {
                let rows = shape.step(filters - row);
                let left = Rows { data: &self.weights[row * k + start..], row_stride: k, col_stride: 1 };
                for &(col, cols, _) in &parts {
                    let vectors = cols.div_ceil(shape.lanes);
                    let data = &buffer[col * steps..];
                    let right = Panel { data, row_stride: vectors * shape.lanes, vectors };
                    tile(isa, steps, left, right, out.part(row, rows, col, cols), add || start > 0);
                }
                row += rows;
            }
        }
    }

    /// The sums of one channel and one filter for `rows` rows, as lines of the plane, of which the first `width` elements are
    /// results: no tile would be filled by them.
    fn single(&self, rows: usize, lines: &mut [R]) {
        let len = (rows - 1) * self.planes.pitch + self.width;
        let taps = self.planes.taps.iter().zip(self.weights);
        vectorize(
            #[inline(always)]
            || {
                for (at, to) in lines.chunks_exact_mut(LANES).enumerate().take(len.div_ceil(LANES)) {
                    let mut sums = [R::ZERO; LANES];
                    // Nothing here looks at single sums, or they would not stay in registers.
                    for (&tap, &w) in taps.clone() {
                        let from = &self.planes.data[tap + at * LANES..];
                        let from: &[R; LANES] = from.first_chunk().expect("planes have elements to spare");
                        for i in 0..LANES {
                            sums[i] = from[i].mul_add(w, sums[i]);
                        }
                    }
                    to.copy_from_slice(&sums);
                }
            },
        );
    }
}
