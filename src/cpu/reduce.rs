//! Reductions over any set of axes of a strided array, in an order that depends on shape and layout alone.
//!
//! A [`Fold`] says what is added up; [`Reduction`] finds the way through memory. Sums run in many short chains that are
//! joined in a tree (in blocks along a row, in groups of rows along columns), which makes their error grow with the
//! logarithm of the length, not the length. Threads get whole chunks of fixed size; chunks are joined in their order.

#![forbid(unsafe_code)]

mod fold;

use crate::DType;
use crate::Result;
use crate::cpu::pool::Block;
use crate::cpu::{par, simd};
use crate::dtype::{Element, Real};
use crate::shape::Layout;

pub use fold::{Fold, IntSum, Max, Min, Sum, SumOf};

/// f32 in a vector of AVX-512.
const VECTOR: usize = 16;
/// Chains along a row: two vectors.
const CHAINS: usize = 2 * VECTOR;
/// Elements of a row that are joined onto the chains at a time, four to each: that hides the latency of the chains, which
/// the compiler keeps in memory.
const STEP: usize = 4 * CHAINS;
/// Elements of a row of narrow columns that are taken as one.
const FUSED: usize = 256;
/// Elements of a row that one set of chains runs over: 16 additions a chain.
const BLOCK: usize = 2048;
/// Elements of a row that one thread takes at a time.
const SEGMENT: usize = 1 << 16;
/// Rows that one chain along a column runs over, eight a step: 32 additions a chain.
const ROWS: usize = 256;
/// Elements that are worth a task of their own.
pub const GRAIN: usize = 1 << 15;

/// Runs `f`, for f32 as [`simd::vectorize`] does. The other types serve checks and small things; two more copies of every
/// loop for each of them would double the time that building takes. Mark the closure `#[inline(always)]`: what is not inlined is not vectorised.
#[inline(always)]
pub fn vectorize<E: Element, R>(f: impl FnOnce() -> R) -> R {
    if const { matches!(E::DTYPE, DType::F32) } { simd::vectorize(f) } else { f() }
}

/// The closure itself: where one stands as an argument, stable Rust lets it be marked `#[inline(always)]`.
#[inline(always)]
pub fn inlined<F>(f: F) -> F {
    f
}

/// Joins results that arrive one after the other as a balanced tree, keeping one for each level.
struct Tree<A> {
    levels: [A; usize::BITS as usize],
    count: usize,
}

impl<A: Copy> Tree<A> {
    #[inline(always)]
    fn new(identity: A) -> Self {
        Tree { levels: [identity; usize::BITS as usize], count: 0 }
    }

    #[inline(always)]
    fn push(&mut self, mut value: A, join: impl Fn(A, A) -> A) {
        let mut depth = self.count.count_ones() as usize;
        for _ in 0..self.count.trailing_ones() {
            depth -= 1;
            value = join(self.levels[depth], value);
        }
        self.levels[depth] = value;
        self.count += 1;
    }

    #[inline(always)]
    fn finish(self, identity: A, join: impl Fn(A, A) -> A) -> A {
        let used = &self.levels[..self.count.count_ones() as usize];
        used.iter().rev().copied().reduce(|low, high| join(high, low)).unwrap_or(identity)
    }
}

/// Vectors that do not straddle cache lines, should the compiler keep the chains in memory.
#[repr(align(64))]
struct Aligned<A>([A; CHAINS]);

/// `join` over `term` of the elements that share an index in the slices, which must be of one length; at most [`BLOCK`].
#[inline(always)]
fn fold_block<E: Copy, A: Copy, const N: usize>(
    xs: [&[E]; N],
    identity: A,
    term: impl Fn([E; N]) -> A,
    join: impl Fn(A, A) -> A,
) -> A {
    let n = xs[0].len();
    let at = inlined(
        #[inline(always)]
        |i: usize| -> [E; N] { std::array::from_fn(|k| xs[k][i]) },
    );
    if n < VECTOR {
        return (0..n).fold(identity, |a, i| join(a, term(at(i))));
    }
    // Only constant indices into the chains, so that they can stay in registers: the odd end has chains of its own.
    let mut acc = [identity; VECTOR];
    let wide = n / STEP * STEP;
    if wide > 0 {
        let Aligned(chains) = &mut Aligned([identity; CHAINS]);
        for i in (0..wide).step_by(STEP) {
            let part: [&[E; STEP]; N] = std::array::from_fn(|k| xs[k][i..].first_chunk().expect("wide <= n"));
            for l in 0..CHAINS {
                let t = inlined(
                    #[inline(always)]
                    |q: usize| term(std::array::from_fn(|k| part[k][q * CHAINS + l])),
                );
                chains[l] = join(chains[l], join(join(t(0), t(1)), join(t(2), t(3))));
            }
        }
        for l in 0..VECTOR {
            acc[l] = join(chains[l], chains[l + VECTOR]);
        }
    }
    let vectors = n / VECTOR * VECTOR;
    for i in (wide..vectors).step_by(VECTOR) {
        let part: [&[E; VECTOR]; N] =
            std::array::from_fn(|k| xs[k][i..].first_chunk().expect("vectors <= n"));
        for l in 0..VECTOR {
            acc[l] = join(acc[l], term(std::array::from_fn(|k| part[k][l])));
        }
    }
    let mut rest = [identity; VECTOR];
    for i in vectors..n {
        rest[i - vectors] = term(at(i));
    }
    for l in 0..VECTOR {
        acc[l] = join(acc[l], rest[l]);
    }
    for l in 0..8 {
        acc[l] = join(acc[l], acc[l + 8]);
    }
    for l in 0..4 {
        acc[l] = join(acc[l], acc[l + 4]);
    }
    join(join(acc[0], acc[2]), join(acc[1], acc[3]))
}

/// `join` over `term` of the elements that share an index in the slices: the row kernel behind every reduction here. The
/// slices must be of one length. Call it inside [`vectorize`].
#[inline(always)]
pub fn fold_slices<E: Copy, A: Copy, const N: usize>(
    xs: [&[E]; N],
    identity: A,
    term: impl Fn([E; N]) -> A,
    join: impl Fn(A, A) -> A,
) -> A {
    let n = xs[0].len();
    if n <= BLOCK {
        return fold_block(xs, identity, term, join);
    }
    let mut tree = Tree::new(identity);
    for start in (0..n).step_by(BLOCK) {
        let end = n.min(start + BLOCK);
        tree.push(fold_block(xs.map(|x| &x[start..end]), identity, &term, &join), &join);
    }
    tree.finish(identity, &join)
}

/// Σ `term` of the elements that share an index in the slices (see [`fold_slices`]).
#[inline(always)]
pub fn sum_slices<E: Copy, A: Real, const N: usize>(xs: [&[E]; N], term: impl Fn([E; N]) -> A) -> A {
    fold_slices(xs, A::ZERO, term, |a, b| a + b)
}

/// Joins the rows that start at `rows` in `data`, each as long as `acc`, onto `acc`: eight a step, in a tree.
#[inline(always)]
pub fn fold_rows<E: Copy, F: Fold<E>>(
    fold: &F,
    data: &[E],
    rows: &[usize],
    params: &[F::Param],
    acc: &mut [F::Acc],
) {
    let n = acc.len();
    let params = &params[..n];
    let (eights, rest) = rows.as_chunks::<8>();
    for starts in eights {
        let row: [&[E]; 8] = starts.map(|s| &data[s..][..n]);
        for j in 0..n {
            let t = inlined(
                #[inline(always)]
                |k: usize| fold.term(row[k][j], params[j]),
            );
            let low = fold.join(fold.join(t(0), t(1)), fold.join(t(2), t(3)));
            let high = fold.join(fold.join(t(4), t(5)), fold.join(t(6), t(7)));
            acc[j] = fold.join(acc[j], fold.join(low, high));
        }
    }
    for &start in rest {
        let row = &data[start..][..n];
        for j in 0..n {
            acc[j] = fold.join(acc[j], fold.term(row[j], params[j]));
        }
    }
}

/// Joins `count` rows of `width` results pairwise into the first, in an order fixed by `count`.
pub fn join_rows<A: Element>(rows: &mut [A], count: usize, width: usize, join: impl Fn(A, A) -> A) {
    let mut step = 1;
    while step < count {
        for i in (0..count - step).step_by(2 * step) {
            let (low, high) = rows[i * width..].split_at_mut(step * width);
            vectorize::<A, _>(
                #[inline(always)]
                || low[..width].iter_mut().zip(&high[..width]).for_each(|(a, &b)| *a = join(*a, b)),
            );
        }
        step *= 2;
    }
}

type Dims = Vec<(usize, usize)>;

/// The way through memory of a reduction: which dimensions stay, which go. Outputs are in row-major order of those that stay.
#[derive(Clone, Debug)]
pub struct Reduction {
    kept: Dims,
    reduced: Dims,
    offset: usize,
    /// The number of outputs.
    pub outputs: usize,
    /// The number of elements behind each output.
    pub length: usize,
}

impl Reduction {
    /// Plans the reduction over the dimensions `d` of `layout` for which `goes(d)`.
    pub fn new(layout: &Layout, goes: impl Fn(usize) -> bool) -> Reduction {
        let part = |want: bool| -> Dims {
            let dims = (0..layout.shape.rank()).filter(|&d| goes(d) == want);
            dims.map(|d| (layout.shape[d], layout.strides[d])).collect()
        };
        let (kept, mut reduced) = (part(false), part(true));
        let count = |dims: &Dims| dims.iter().map(|d| d.0).product();
        let (outputs, length) = (count(&kept), count(&reduced));
        // Any order will do; this one runs along memory.
        reduced.sort_by_key(|d| std::cmp::Reverse(d.1));
        Reduction { kept: merged(kept), reduced: merged(reduced), offset: layout.offset, outputs, length }
    }

    /// The same with the elements behind an output in row-major order, which [`Reduction::find`] counts in.
    pub fn ordered(layout: &Layout, goes: impl Fn(usize) -> bool) -> Reduction {
        let reduced =
            (0..layout.shape.rank()).filter(|&d| goes(d)).map(|d| (layout.shape[d], layout.strides[d]));
        Reduction { reduced: merged(reduced.collect()), ..Reduction::new(layout, &goes) }
    }

    /// Whether the outputs of an innermost row are best computed together: their elements are neighbours, and those of
    /// one output are not.
    fn by_columns(&self) -> Option<usize> {
        let gap = self.reduced.last().map_or(1, |d| d.1);
        let &(width, step) = self.kept.last()?;
        (step == 1 && gap != 1 && (width >= 8 || (self.reduced.len() == 1 && gap == width))).then_some(width)
    }

    /// Computes every output into `out`; `params` has one value for each.
    ///
    /// # Errors
    /// If there is no memory for partial results.
    pub fn fold<E: Element, F: Fold<E>>(
        &self,
        fold: &F,
        data: &[E],
        params: &[F::Param],
        out: &mut [F::Acc],
    ) -> Result<()> {
        assert!(out.len() == self.outputs && params.len() == self.outputs, "one value for each output");
        if self.length == 0 {
            out.fill(fold.identity());
            return Ok(());
        }
        match self.by_columns() {
            _ if self.outputs == 0 => Ok(()),
            Some(width) => self.fold_columns(fold, data, params, out, width),
            None => self.fold_runs(fold, data, params, out),
        }
    }

    /// Each output from its own elements: along the row where they are neighbours, gathered block by block elsewhere.
    fn fold_runs<E: Element, F: Fold<E>>(
        &self,
        fold: &F,
        data: &[E],
        params: &[F::Param],
        out: &mut [F::Acc],
    ) -> Result<()> {
        let segments = self.length.div_ceil(SEGMENT);
        let task = |first: usize, results: &mut [F::Acc]| {
            let mut buffer = match self.reduced[..] {
                [] | [(_, 1)] => Vec::new(),
                _ => vec![E::default(); self.length.min(BLOCK)],
            };
            vectorize::<E, _>(
                #[inline(always)]
                || {
                    for (i, result) in (first..).zip(results) {
                        let (output, start) = (i / segments, i % segments * SEGMENT);
                        let end = self.length.min(start + SEGMENT);
                        *result = self.fold_run(fold, data, output, start, end, params[output], &mut buffer);
                    }
                },
            );
        };
        let each = (GRAIN / self.length.min(SEGMENT)).max(1);
        if segments == 1 {
            par::for_each_chunk_mut(out, each, |i, results| task(i * each, results));
            return Ok(());
        }
        let mut partial = Block::new(self.outputs * segments * size_of::<F::Acc>())?;
        let partial = partial.typed_mut::<F::Acc>();
        par::for_each_chunk_mut(partial, each, |i, results| task(i * each, results));
        for (result, parts) in out.iter_mut().zip(partial.chunks_exact_mut(segments)) {
            join_rows(parts, segments, 1, |a, b| fold.join(a, b));
            *result = parts[0];
        }
        Ok(())
    }

    /// Elements `start..end` of the row behind `output`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn fold_run<E: Element, F: Fold<E>>(
        &self,
        fold: &F,
        data: &[E],
        output: usize,
        start: usize,
        end: usize,
        p: F::Param,
        buffer: &mut [E],
    ) -> F::Acc {
        let base = self.offset + position(&self.kept, output);
        let term = inlined(
            #[inline(always)]
            |[x]: [E; 1]| fold.term(x, p),
        );
        let join = inlined(
            #[inline(always)]
            |a, b| fold.join(a, b),
        );
        if buffer.is_empty() {
            return fold_slices([&data[base + start..base + end]], fold.identity(), term, join);
        }
        let mut tree = Tree::new(fold.identity());
        for from in (start..end).step_by(buffer.len()) {
            let part = &mut buffer[..(end - from).min(BLOCK)];
            gather(&data[base..], &self.reduced, from, part);
            tree.push(fold_block([part], fold.identity(), term, join), join);
        }
        tree.finish(fold.identity(), join)
    }

    /// All outputs of an innermost row at once, one row of elements after the other.
    fn fold_columns<E: Element, F: Fold<E>>(
        &self,
        fold: &F,
        data: &[E],
        params: &[F::Param],
        out: &mut [F::Acc],
        width: usize,
    ) -> Result<()> {
        // Narrow rows that follow each other are taken several at a time, as one row of `fuse · width`.
        let fuse = match self.reduced[..] {
            [(n, gap)] if gap == width => (FUSED / width).clamp(1, n),
            _ => 1,
        };
        let rows = ROWS * fuse;
        let (chunks, outer) = (self.length.div_ceil(rows), self.outputs / width);
        let kept = &self.kept[..self.kept.len() - 1];
        // Results `from..from + acc.len()` of one innermost row, over one chunk of elements.
        let tile = |chunk: usize, row: usize, from: usize, acc: &mut [F::Acc]| {
            let base = self.offset + position(kept, row) + from;
            let range = chunk * rows..self.length.min((chunk + 1) * rows);
            let params = &params[row * width + from..][..acc.len()];
            acc.fill(fold.identity());
            // A chunk starts where a fused row does; what is left at its end are rows of their own.
            let fused = range.len() / fuse;
            let start = |i: usize| base + position(&self.reduced, i);
            let starts: Vec<usize> = (0..fused).map(|k| start(range.start + k * fuse)).collect();
            let rest: Vec<usize> = (range.start + fused * fuse..range.end).map(start).collect();
            let mut wide = vec![fold.identity(); if fuse == 1 { 0 } else { fuse * width }];
            let repeated = if fuse == 1 { Vec::new() } else { params.repeat(fuse) };
            let work = match fuse {
                1 => [(&starts, params, &mut *acc), (&rest, &[][..], &mut wide[..])],
                _ => [(&starts, &repeated[..], &mut wide[..]), (&rest, params, &mut *acc)],
            };
            vectorize::<E, _>(
                #[inline(always)]
                || {
                    for (starts, params, acc) in work {
                        fold_rows(fold, data, starts, params, acc);
                    }
                },
            );
            if fuse > 1 {
                join_rows(&mut wide, fuse, width, |a, b| fold.join(a, b));
                acc.iter_mut().zip(&wide).for_each(|(a, &w)| *a = fold.join(*a, w));
            }
        };
        let columns = if fuse > 1 { width } else { (2 * GRAIN / self.length.min(rows)).clamp(1024, 1 << 14) };
        let all = |results: &mut [F::Acc]| {
            let work = width * self.length.min(rows);
            if work < GRAIN {
                let each = GRAIN / work;
                par::for_each_chunk_mut(results, each * width, |i, part| {
                    for (k, acc) in part.chunks_exact_mut(width).enumerate() {
                        let row = i * each + k;
                        tile(row / outer, row % outer, 0, acc);
                    }
                });
                return;
            }
            let tiles = results.chunks_exact_mut(width).enumerate().flat_map(|(row, acc)| {
                acc.chunks_mut(columns).enumerate().map(move |(t, acc)| (row, t * columns, acc))
            });
            let count = chunks * outer * width.div_ceil(columns);
            par::each(count, tiles, |(row, from, acc)| tile(row / outer, row % outer, from, acc));
        };
        if chunks == 1 {
            all(out);
            return Ok(());
        }
        let mut partial = Block::new(chunks * self.outputs * size_of::<F::Acc>())?;
        let partial = partial.typed_mut::<F::Acc>();
        all(partial);
        join_rows(partial, chunks, self.outputs, |a, b| fold.join(a, b));
        out.copy_from_slice(&partial[..self.outputs]);
        Ok(())
    }

    /// For each output the number of its first element that equals its target (NaN equals NaN), or 0 where none does.
    /// Numbers count in row-major order over the reduced dimensions if the plan is [`Reduction::ordered`].
    pub fn find<E: Element>(&self, data: &[E], targets: &[E], out: &mut [i64]) {
        assert!(out.len() == self.outputs && targets.len() == self.outputs, "one value for each output");
        let Some(width) = self.by_columns().filter(|_| self.outputs > 0) else {
            let each = (GRAIN / self.length.max(1)).max(1);
            return par::for_each_chunk_mut(out, each, |i, results| {
                let first = i * each;
                (first..).zip(results).for_each(|(o, r)| *r = self.find_in_run(data, o, targets[o]) as i64);
            });
        };
        // Tiles of one innermost row; from the last element to the first, so that the first one stays.
        let kept = &self.kept[..self.kept.len() - 1];
        let tiles = out.chunks_exact_mut(width).enumerate().flat_map(|(row, part)| {
            part.chunks_mut(256).enumerate().map(move |(t, part)| (row, t * 256, part))
        });
        let count = self.outputs / width * width.div_ceil(256);
        par::each(if self.outputs * self.length < GRAIN { 1 } else { count }, tiles, |(row, from, part)| {
            let base = self.offset + position(kept, row) + from;
            let n = part.len();
            let targets = &targets[row * width + from..][..n];
            vectorize::<E, _>(
                #[inline(always)]
                || {
                    part.fill(0);
                    for i in (0..self.length).rev() {
                        let x = &data[base + position(&self.reduced, i)..][..n];
                        for j in 0..n {
                            part[j] = if same(x[j], targets[j]) { i as i64 } else { part[j] };
                        }
                    }
                },
            );
        });
    }

    fn find_in_run<E: Element>(&self, data: &[E], output: usize, target: E) -> usize {
        let base = self.offset + position(&self.kept, output);
        if !matches!(self.reduced[..], [] | [(_, 1)]) {
            let at = |&i: &usize| same(data[base + position(&self.reduced, i)], target);
            return (0..self.length).find(at).unwrap_or(0);
        }
        // Whole blocks without leaving early, which vectorises.
        let row = &data[base..base + self.length];
        let has = inlined(
            #[inline(always)]
            |part: &&[E]| part.iter().fold(false, |any, &x| any | same(x, target)),
        );
        let block = vectorize::<E, _>(
            #[inline(always)]
            || row.chunks(256).enumerate().find(|(_, part)| has(part)),
        );
        block.map_or(0, |(b, part)| {
            b * 256 + part.iter().position(|&x| same(x, target)).expect("this block has it")
        })
    }
}

/// Equal, or both NaN.
#[inline(always)]
#[allow(clippy::eq_op, reason = "NaN is what differs from itself, for integers nothing")]
pub(crate) fn same<E: PartialOrd + Copy>(a: E, b: E) -> bool {
    a == b || (a != a && b != b)
}

/// Dimensions without those of size 1, neighbours that follow each other without gaps merged.
pub(crate) fn merged(dims: Dims) -> Dims {
    let mut out = Dims::with_capacity(dims.len());
    for (n, s) in dims {
        match out.last_mut() {
            _ if n == 1 => {}
            Some(last) if last.1 == n * s => *last = (last.0 * n, s),
            _ => out.push((n, s)),
        }
    }
    out
}

/// The offset of the `index`-th element of these dimensions in row-major order.
#[inline(always)]
pub(crate) fn position(dims: &[(usize, usize)], mut index: usize) -> usize {
    let Some(((_, first), rest)) = dims.split_first() else { return 0 };
    let mut at = 0;
    for (n, s) in rest.iter().rev() {
        at += index % n * s;
        index /= n;
    }
    at + index * first
}

/// Copies the elements from number `start` on into `buffer`.
#[inline(always)]
fn gather<E: Copy>(data: &[E], dims: &[(usize, usize)], mut start: usize, buffer: &mut [E]) {
    let Some((&(n, s), outer)) = dims.split_last() else { return };
    let mut filled = 0;
    while filled < buffer.len() {
        let (run, first) = (start / n, start % n);
        let count = (n - first).min(buffer.len() - filled);
        let base = position(outer, run) + first * s;
        let part = &mut buffer[filled..filled + count];
        if s == 1 {
            part.copy_from_slice(&data[base..base + count]);
        } else {
            part.iter_mut().enumerate().for_each(|(i, x)| *x = data[base + i * s]);
        }
        (filled, start) = (filled + count, start + count);
    }
}

#[cfg(test)]
mod tests;
