//! What batch norm and group norm share on the CPU: statistics of sets of channels, and elementwise passes with numbers
//! that belong to a channel.
//!
//! An input `[N, C, ..]` is N · C segments of contiguous elements. Each pass runs over segments in memory order; what a
//! segment adds to a set is joined in an order that depends on the shape alone.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::Result;
use crate::Shape;
use crate::cpu::par;
use crate::cpu::pool::Block;
use crate::cpu::reduce::{GRAIN, SumOf, join_rows, sum_slices, vectorize};
use crate::dtype::Real;
use crate::ops::reduce::{Axes, folded, sums};
use crate::tensor::View;

/// How the elements of an input fall into sets.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Sets {
    /// The first dimension.
    pub batch: usize,
    /// Sets of channels.
    pub groups: usize,
    /// Channels of a set.
    pub per: usize,
    /// Elements of a channel of one sample.
    pub length: usize,
    /// Whether a set runs over the batch.
    pub pooled: bool,
}

impl Sets {
    /// One set a channel.
    pub fn of_channels(x: &Shape) -> Sets {
        Sets { batch: x[0], groups: x[1], per: 1, length: x[2..].iter().product(), pooled: true }
    }

    /// `groups` sets of channels a sample.
    pub fn of_groups(x: &Shape, groups: usize) -> Sets {
        let length = x[2..].iter().product();
        Sets { batch: x[0], groups, per: x[1] / groups, length, pooled: false }
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.groups * self.per
    }

    /// The number of sets.
    pub fn count(&self) -> usize {
        if self.pooled { self.groups } else { self.batch * self.groups }
    }

    /// The number of elements of a set.
    pub fn size(&self) -> usize {
        self.per * self.length * if self.pooled { self.batch } else { 1 }
    }

    /// The set of segment `q`.
    pub fn set_of(&self, q: usize) -> usize {
        if self.pooled { q % self.groups } else { q / self.per }
    }

    /// A number of each segment, as a view of `[N, groups, channels of a group]`.
    fn view<'a, A: Real>(&self, of_segments: &'a Block) -> View<'a> {
        View::of(of_segments.typed::<A>(), self.shape())
    }

    fn shape(&self) -> Shape {
        Shape::from_dims(&[self.batch, self.groups, self.per])
    }

    /// The dimensions of [`Sets::shape`] that a set runs over.
    fn axes(&self) -> Axes {
        Axes::of(3, |d| d == 2 || d == 0 && self.pooled)
    }

    /// Rows of channels with numbers of their own: one where sets run over the batch.
    fn rows(&self) -> usize {
        if self.pooled { 1 } else { self.batch }
    }

    /// A number of each set, given to each of its channels: `[C]` where sets run over the batch, else `[N, C]`.
    fn by_channel<A: Real>(&self, of_set: impl Fn(usize) -> A) -> Vec<A> {
        (0..self.rows() * self.channels()).map(|q| of_set(self.set_of(q))).collect()
    }
}

/// Two numbers of each segment, by `f` of the slices of `xs`, the segment's number and its elements.
fn of_segments<A: Real, const N: usize>(
    sets: Sets,
    xs: [&[A]; N],
    f: impl Fn([&[A]; N], usize) -> (A, A) + Sync,
) -> Result<(Block, Block)> {
    let (count, length) = (sets.batch * sets.channels(), sets.length);
    let mut blocks = (Block::new(count * size_of::<A>())?, Block::new(count * size_of::<A>())?);
    let (first, second) = (blocks.0.typed_mut::<A>(), blocks.1.typed_mut::<A>());
    let each = (GRAIN / length.max(1)).max(1);
    let tasks = first.chunks_mut(each).zip(second.chunks_mut(each)).enumerate();
    par::each(count.div_ceil(each), tasks, |(task, (first, second))| {
        vectorize::<A, _>(
            #[inline(always)]
            || {
                for i in 0..first.len() {
                    let q = task * each + i;
                    (first[i], second[i]) = f(xs.map(|x| &x[q * length..][..length]), q);
                }
            },
        );
    });
    Ok(blocks)
}

/// Mean and variance (of all elements, not one less) of each set. The variance is taken about the mean of a segment first,
/// then about that of the set.
pub(in crate::ops) fn moments<A: Real>(sets: Sets, x: &[A]) -> Result<(Vec<A>, Vec<A>)> {
    if x.is_empty() {
        let nothing = vec![A::of(f64::NAN); sets.count()];
        return Ok((nothing.clone(), nothing));
    }
    let (length, size) = (A::of(sets.length as f64), A::of(sets.size() as f64));
    // Where a segment is one element, the elements are the totals.
    let parts = if sets.length == 1 { None } else { Some(totals_and_squares(sets, x)?) };
    let totals = match &parts {
        Some((totals, _)) => sets.view::<A>(totals),
        None => View::of(x, sets.shape()),
    };
    let plan = sets.axes().plan(&totals);
    let mean = sums::<A>(sets.axes(), &totals)?;
    let mean: Vec<A> = mean.typed::<A>().iter().map(|&sum| sum / size).collect();
    let apart = SumOf(|total: A, mean: A| (total / length - mean) * (total / length - mean));
    let between = folded::<A, _>(&plan, &apart, &totals, &mean)?;
    let mut variance: Vec<A> = between.typed::<A>().iter().map(|&between| between * length / size).collect();
    if let Some((_, squares)) = &parts {
        let within = sums::<A>(sets.axes(), &sets.view::<A>(squares))?;
        variance.iter_mut().zip(within.typed::<A>()).for_each(|(v, &within)| *v += within / size);
    }
    Ok((mean, variance))
}

/// The total of each segment and the squares about its mean.
fn totals_and_squares<A: Real>(sets: Sets, x: &[A]) -> Result<(Block, Block)> {
    let length = A::of(sets.length as f64);
    of_segments(
        sets,
        [x],
        #[inline(always)]
        |[x], _| {
            let total = sum_slices([x], |[x]| x);
            let mean = total / length;
            (total, sum_slices([x], |[x]| (x - mean) * (x - mean)))
        },
    )
}

/// 1 / √(variance + eps).
pub(in crate::ops) fn reciprocal<A: Real>(variance: &[A], eps: f64) -> Vec<A> {
    variance.iter().map(|&v| A::ONE / (v + A::of(eps)).sqrt()).collect()
}

/// `f` of an element of each input and the numbers of its channel, into or onto `out`. `numbers`: of length C or N · C.
fn elementwise<A: Real, const K: usize, const M: usize>(
    sets: Sets,
    inputs: [&[A]; K],
    numbers: [&[A]; M],
    (out, add): (&mut [A], bool),
    f: impl Fn([A; K], [A; M]) -> A + Sync,
) {
    let (length, channels) = (sets.length, sets.channels());
    if out.is_empty() {
        return;
    }
    // Without a length, rows of channels take the place of segments, and each element has numbers of its own.
    let (run, period) = (if length == 1 { channels } else { length }, numbers[0].len());
    let each = (GRAIN / run).max(1);
    par::for_each_chunk_mut(out, each * run, |task, out| {
        vectorize::<A, _>(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_exact_mut(run).enumerate() {
                    let q = task * each + i;
                    let inputs = inputs.map(|x| &x[q * run..][..run]);
                    let out = &mut out[..run];
                    if length == 1 {
                        let numbers = numbers.map(|v| &v[q * channels % period..][..run]);
                        for j in 0..run {
                            let v = f(
                                std::array::from_fn(|k| inputs[k][j]),
                                std::array::from_fn(|k| numbers[k][j]),
                            );
                            out[j] = if add { out[j] + v } else { v };
                        }
                    } else {
                        let numbers = numbers.map(|v| v[q % period]);
                        for j in 0..run {
                            let v = f(std::array::from_fn(|k| inputs[k][j]), numbers);
                            out[j] = if add { out[j] + v } else { v };
                        }
                    }
                }
            },
        );
    });
}

/// y = (x − mean) · rstd · weight + bias.
pub(in crate::ops) fn normalise<A: Real>(
    sets: Sets,
    x: &[A],
    (mean, rstd): (&[A], &[A]),
    (weight, bias): (Option<&[A]>, Option<&[A]>),
    (y, add): (&mut [A], bool),
) {
    let channels = sets.channels();
    let means = sets.by_channel(|s| mean[s]);
    let mut scales = sets.by_channel(|s| rstd[s]);
    if let Some(weight) = weight {
        scales.iter_mut().enumerate().for_each(|(q, scale)| *scale *= weight[q % channels]);
    }
    let shifts: Vec<A> = (0..scales.len()).map(|q| bias.map_or(A::ZERO, |bias| bias[q % channels])).collect();
    elementwise(
        sets,
        [x],
        [&means, &scales, &shifts],
        (y, add),
        #[inline(always)]
        |[x], [mean, scale, shift]| (x - mean) * scale + shift,
    );
}

/// What the backwards read.
pub(in crate::ops) struct Tape<'a, A> {
    pub x: &'a [A],
    pub dy: &'a [A],
    pub mean: &'a [A],
    pub rstd: &'a [A],
    pub weight: Option<&'a [A]>,
}

/// Σ dy and Σ dy · x̂: of each channel where sets run over the batch, else of each segment.
pub(in crate::ops) struct Sums {
    dy: Block,
    products: Block,
}

impl Sums {
    pub fn new<A: Real>(sets: Sets, tape: &Tape<'_, A>) -> Result<Sums> {
        match (sets.length, sets.pooled) {
            (1, true) => Sums::of_columns(sets, tape),
            (1, false) => Sums::of_elements(sets, tape),
            (_, pooled) => {
                let segments = Sums::of_segments(sets, tape)?;
                if !pooled {
                    return Ok(segments);
                }
                let shape = Shape::from_dims(&[sets.batch, sets.channels()]);
                let total =
                    |block: &Block| sums::<A>(Axes::of(2, |d| d == 0), &View::of(block.typed::<A>(), shape));
                Ok(Sums { dy: total(&segments.dy)?, products: total(&segments.products)? })
            }
        }
    }

    /// Of each channel of rows of channels, in one pass over them.
    fn of_columns<A: Real>(sets: Sets, tape: &Tape<'_, A>) -> Result<Sums> {
        let width = sets.channels();
        let rows = (GRAIN / width.max(1)).clamp(1, COLUMN_ROWS);
        let chunks = sets.batch.div_ceil(rows).max(1);
        let bytes = chunks * width * size_of::<A>();
        let mut partial = (Block::zeroed(bytes)?, Block::zeroed(bytes)?);
        let (dy, products) = (partial.0.typed_mut::<A>(), partial.1.typed_mut::<A>());
        let whole =
            dy.chunks_exact_mut(width.max(1)).zip(products.chunks_exact_mut(width.max(1))).enumerate();
        let tiles = whole.flat_map(|(chunk, (dy, products))| {
            let tiles = dy.chunks_mut(COLUMNS).zip(products.chunks_mut(COLUMNS)).enumerate();
            tiles.map(move |(tile, sums)| (chunk, tile * COLUMNS, sums))
        });
        par::each(chunks * width.div_ceil(COLUMNS), tiles, |(chunk, from, (dy, products))| {
            let range = chunk * rows..sets.batch.min((chunk + 1) * rows);
            vectorize::<A, _>(
                #[inline(always)]
                || add_columns(tape, width, range, from, dy, products),
            );
        });
        let total = |partial: &mut [A]| -> Result<Block> {
            join_rows(partial, chunks, width, |a, b| a + b);
            let mut total = Block::new(width * size_of::<A>())?;
            total.typed_mut().copy_from_slice(&partial[..width]);
            Ok(total)
        };
        Ok(Sums { dy: total(dy)?, products: total(products)? })
    }

    /// Of segments of one element.
    fn of_elements<A: Real>(sets: Sets, tape: &Tape<'_, A>) -> Result<Sums> {
        let bytes = size_of_val(tape.dy);
        let (mut dy, mut products) = (Block::new(bytes)?, Block::new(bytes)?);
        dy.typed_mut::<A>().copy_from_slice(tape.dy);
        let (means, rstds) = (sets.by_channel(|s| tape.mean[s]), sets.by_channel(|s| tape.rstd[s]));
        elementwise(
            sets,
            [tape.x, tape.dy],
            [&means, &rstds],
            (products.typed_mut(), false),
            #[inline(always)]
            |[x, dy], [mean, rstd]| dy * (x - mean) * rstd,
        );
        Ok(Sums { dy, products })
    }

    fn of_segments<A: Real>(sets: Sets, tape: &Tape<'_, A>) -> Result<Sums> {
        let (dy, products) = of_segments(
            sets,
            [tape.x, tape.dy],
            #[inline(always)]
            |[x, dy], q| {
                if dy.is_empty() {
                    // Statistics over nothing are NaN; a sum over nothing is 0.
                    return (A::ZERO, A::ZERO);
                }
                let (mean, rstd) = (tape.mean[sets.set_of(q)], tape.rstd[sets.set_of(q)]);
                (sum_slices([dy], |[dy]| dy), sum_slices([x, dy], |[x, dy]| dy * (x - mean)) * rstd)
            },
        )?;
        Ok(Sums { dy, products })
    }

    /// Σ dy · x̂ and Σ dy of each channel: the gradients of weight and bias.
    pub fn of_channels<A: Real>(&self, sets: Sets) -> Result<[Block; 2]> {
        let shape = Shape::from_dims(&[sets.rows(), sets.channels()]);
        let total = |block: &Block| sums::<A>(Axes::of(2, |d| d == 0), &View::of(block.typed::<A>(), shape));
        Ok([total(&self.products)?, total(&self.dy)?])
    }

    /// Σ dy · weight and Σ dy · weight · x̂ of each set, over the number of its elements.
    fn of_sets<A: Real>(&self, sets: Sets, weight: Option<&[A]>) -> Result<[Vec<A>; 2]> {
        let size = A::of(sets.size() as f64);
        let shape = Shape::from_dims(&[sets.rows(), sets.groups, sets.per]);
        let average = |block: &Block| -> Result<Vec<A>> {
            let mut weighted: Vec<A> = block.typed::<A>().to_vec();
            if let Some(weight) = weight {
                weighted.chunks_exact_mut(weight.len().max(1)).for_each(|row| {
                    row.iter_mut().zip(weight).for_each(|(v, &w)| *v *= w);
                });
            }
            let total = sums::<A>(sets.axes(), &View::of(&weighted, shape))?;
            Ok(total.typed::<A>().iter().map(|&v| v / size).collect())
        };
        Ok([average(&self.dy)?, average(&self.products)?])
    }
}

/// Columns that are added up at a time.
const COLUMNS: usize = 1024;
/// Rows that one chain runs down, four a step: 32 additions a chain.
const COLUMN_ROWS: usize = 128;

/// Adds dy and dy · x̂ of the rows `range` of `width` columns onto `sums` and `products`, those of the columns from
/// `from` on: four rows a step, in a tree.
#[inline(always)]
fn add_columns<A: Real>(
    tape: &Tape<'_, A>,
    width: usize,
    range: Range<usize>,
    from: usize,
    sums: &mut [A],
    products: &mut [A],
) {
    let n = sums.len();
    let (products, mean, rstd) = (&mut products[..n], &tape.mean[from..][..n], &tape.rstd[from..][..n]);
    let fours = range.start + range.len() / 4 * 4;
    for i in (range.start..fours).step_by(4) {
        let x: [&[A]; 4] = std::array::from_fn(|k| &tape.x[(i + k) * width + from..][..n]);
        let dy: [&[A]; 4] = std::array::from_fn(|k| &tape.dy[(i + k) * width + from..][..n]);
        for j in 0..n {
            let product = |k: usize| dy[k][j] * (x[k][j] - mean[j]) * rstd[j];
            sums[j] += (dy[0][j] + dy[1][j]) + (dy[2][j] + dy[3][j]);
            products[j] += (product(0) + product(1)) + (product(2) + product(3));
        }
    }
    for i in fours..range.end {
        let (x, dy) = (&tape.x[i * width + from..][..n], &tape.dy[i * width + from..][..n]);
        for j in 0..n {
            sums[j] += dy[j];
            products[j] += dy[j] * (x[j] - mean[j]) * rstd[j];
        }
    }
}

/// dx = rstd · (dy · weight − c₁ − x̂ · c₂), with c₁ and c₂ the averages of dy · weight and dy · weight · x̂ over the set; both 0
/// without `sums`, where the statistics did not come from x.
pub(in crate::ops) fn dx<A: Real>(
    sets: Sets,
    tape: &Tape<'_, A>,
    sums: Option<&Sums>,
    out: (&mut [A], bool),
) -> Result<()> {
    let channels = sets.channels();
    let rstd = tape.rstd;
    let mut scales = sets.by_channel(|s| rstd[s]);
    if let Some(weight) = tape.weight {
        scales.iter_mut().enumerate().for_each(|(q, scale)| *scale *= weight[q % channels]);
    }
    let Some(sums) = sums else {
        elementwise(
            sets,
            [tape.dy],
            [&scales],
            out,
            #[inline(always)]
            |[dy], [scale]| dy * scale,
        );
        return Ok(());
    };
    let [first, second] = sums.of_sets(sets, tape.weight)?;
    let means = sets.by_channel(|s| tape.mean[s]);
    let shifts = sets.by_channel(|s| rstd[s] * first[s]);
    let slopes = sets.by_channel(|s| rstd[s] * rstd[s] * second[s]);
    elementwise(
        sets,
        [tape.x, tape.dy],
        [&scales, &means, &shifts, &slopes],
        out,
        #[inline(always)]
        |[x, dy], [scale, mean, shift, slope]| dy * scale - shift - (x - mean) * slope,
    );
    Ok(())
}
