//! Attention on the CPU, without the matrix of scores: tiles of queries against tiles of keys, small dense products between them.
//!
//! Forward takes a chunk of queries of one head past all keys: scores of a strip of queries (as many as a kernel of
//! `simd::tile` has rows) against 128 keys, the softmax brought along, their product with the values added up. Backward finds the
//! probabilities again from the saved logarithm of their sum and makes the three gradients of a group of heads in one pass,
//! or, where there are too few groups to share out, dq by chunks of queries and dk, dv by chunks of keys. Which of them, and
//! all chunks, depend on shapes alone; so do the bits. Keys that nobody sees are skipped by strips.

#![forbid(unsafe_code)]

mod backward;
mod strips;

use std::sync::{Mutex, PoisonError};

use self::strips::product;
use super::par;
use super::pool::Block;
use super::reduce::{fold_slices, sum_slices, vectorize};
use super::simd::{Isa, MatMut, Rows};
use crate::Result;
use crate::dtype::{Float, Real};

pub use backward::{Gradients, backward};

/// Queries that a task of the forward takes.
const CHUNK: usize = 128;
/// Keys of a tile of the forward.
const KEYS: usize = 128;
/// What lines of turned tiles are longer by than their keys: powers of two would meet in a few sets of the cache.
const GAP: usize = 16;

/// Vectors of some heads: that of head h at position t of batch row b starts at `b · batch + h · head + t · row`, contiguous.
#[derive(Clone, Copy)]
pub struct Vectors<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Distance between batch rows.
    pub batch: usize,
    /// Distance between heads.
    pub head: usize,
    /// Distance between positions.
    pub row: usize,
}

impl<'a, T> Vectors<'a, T> {
    #[inline(always)]
    fn at(&self, b: usize, h: usize, t: usize, width: usize) -> &'a [T] {
        let start = b * self.batch + h * self.head + t * self.row;
        &self.data[start..start + width]
    }
}

/// Queries and keys that may meet: a batch row, or a document in one.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    /// The batch row.
    pub batch: usize,
    /// The position of its first query and of its first key.
    pub first: usize,
    /// The number of queries.
    pub queries: usize,
    /// The number of keys, valid or not.
    pub span: usize,
    /// The number of keys that are valid: the first ones.
    pub keys: usize,
    /// Causal: query i sees keys up to i + shift.
    pub shift: Option<isize>,
}

impl Sequence {
    /// How many keys query `i` sees: those before this.
    #[inline(always)]
    fn visible(&self, i: usize) -> usize {
        match self.shift {
            Some(shift) => (i as isize + shift + 1).clamp(0, self.keys as isize) as usize,
            None => self.keys,
        }
    }
}

/// What attention is computed of.
#[derive(Clone, Copy)]
pub struct Problem<'a, T> {
    /// The queries.
    pub q: Vectors<'a, T>,
    /// The keys.
    pub k: Vectors<'a, T>,
    /// The values.
    pub v: Vectors<'a, T>,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, which divide those of the queries.
    pub kv_heads: usize,
    /// Elements of a vector.
    pub width: usize,
    /// What scores are multiplied by.
    pub scale: f64,
    /// Who meets whom.
    pub sequences: &'a [Sequence],
}

/// Scratch memory, a block for each worker.
struct Shelf(Mutex<Vec<Block>>);

impl Shelf {
    fn new(tasks: usize, bytes: usize) -> Result<Shelf> {
        let blocks = (0..par::threads().min(tasks)).map(|_| Block::new(bytes)).collect::<Result<Vec<_>>>()?;
        Ok(Shelf(Mutex::new(blocks)))
    }

    /// Runs `f` on a block that nobody else uses.
    fn with<R>(&self, f: impl FnOnce(&mut Block) -> R) -> R {
        let shelf = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut block = shelf().pop().expect("a block for each worker");
        let result = f(&mut block);
        shelf().push(block);
        result
    }
}

/// Widens `count` vectors from position `t` on, times `factor`, to rows of `pitch`; what is left of a row is zero.
#[inline(always)]
fn load<T: Float<Acc = A>, A: Real>(
    from: &Vectors<'_, T>,
    (b, h, t, count): (usize, usize, usize, usize),
    width: usize,
    factor: A,
    to: &mut [A],
    pitch: usize,
) {
    vectorize::<A, _>(
        #[inline(always)]
        || {
            for (i, to) in to.chunks_exact_mut(pitch).take(count).enumerate() {
                let from = from.at(b, h, t + i, width);
                let (to, rest) = to.split_at_mut(width);
                to.iter_mut().zip(from).for_each(|(to, &v)| *to = v.to_acc() * factor);
                rest.fill(A::ZERO);
            }
        },
    );
}

/// `to[d · pitch + i] = from[i · from_pitch + d]` for i < `count`, d < `width`.
fn turn<A: Real>(from: &[A], from_pitch: usize, (count, width): (usize, usize), to: &mut [A], pitch: usize) {
    super::simd::transpose(from, from_pitch, (count, width), to, pitch);
}

/// Cuts `block` into parts of these lengths.
fn cut<A: Real, const N: usize>(block: &mut Block, lengths: [usize; N]) -> [&mut [A]; N] {
    let mut rest = block.typed_mut::<A>();
    lengths.map(|n| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(n);
        rest = tail;
        part
    })
}

/// The results of a forward for one head of one batch row: vectors and statistics by position.
pub struct Results<'a, T: Float> {
    /// The vectors, a row a query.
    pub o: MatMut<'a, T>,
    /// ln Σ e^score, a number a query.
    pub lse: &'a mut [T::Acc],
}

/// A part of the work of a forward.
struct Piece<'a, T: Float> {
    sequence: Sequence,
    head: usize,
    /// Its first query, counted in the sequence.
    start: usize,
    results: Results<'a, T>,
}

/// o = softmax(scale · q kᵀ) v and the logarithms of the sums, by online softmax. `results`: batch rows outermost, then heads.
pub fn forward<'a, T: Float<Acc = A>, A: Real>(
    problem: &Problem<'_, T>,
    results: impl Iterator<Item = Results<'a, T>>,
) -> Result<()> {
    let mut pieces = Vec::new();
    for (index, mut results) in results.enumerate() {
        let (batch, head) = (index / problem.heads, index % problem.heads);
        for &sequence in problem.sequences.iter().filter(|s| s.batch == batch) {
            for start in (0..sequence.queries).step_by(CHUNK) {
                let count = CHUNK.min(sequence.queries - start);
                let (o, below) = results.o.split_rows(count);
                let (lse, rest) = results.lse.split_at_mut(count);
                results = Results { o: below, lse: rest };
                pieces.push(Piece { sequence, head, start, results: Results { o, lse } });
            }
        }
    }
    let isa = Isa::detect();
    let shape = isa.shape::<A>();
    let (strip, pitch) = (shape.rows[0], problem.width.next_multiple_of(shape.lanes));
    let most = pieces.iter().map(|p| p.results.lse.len()).max().unwrap_or(0);
    let lengths = [
        most * pitch,                 // queries
        most * pitch,                 // sums of values
        KEYS * pitch,                 // keys, then values
        problem.width * (KEYS + GAP), // keys, turned
        strip * KEYS,                 // scores
        most,                         // maxima
        most,                         // sums
    ];
    let shelf = Shelf::new(pieces.len(), lengths.iter().sum::<usize>() * size_of::<A>())?;
    par::each(pieces.len(), pieces.into_iter(), |piece| {
        shelf.with(|block| piece.run(problem, isa, cut(block, lengths)));
    });
    Ok(())
}

impl<T: Float<Acc = A>, A: Real> Piece<'_, T> {
    fn run(self, problem: &Problem<'_, T>, isa: Isa, [q, acc, rows, kt, s, max, sum]: [&mut [A]; 7]) {
        let Piece { sequence, head, start, mut results } = self;
        let shape = isa.shape::<A>();
        let (strip, width, count) = (shape.rows[0], problem.width, results.lse.len());
        let pitch = width.next_multiple_of(shape.lanes);
        let (b, kv) = (sequence.batch, head / (problem.heads / problem.kv_heads));
        load(&problem.q, (b, head, sequence.first + start, count), width, A::of(problem.scale), q, pitch);
        acc[..count * pitch].fill(A::ZERO);
        max[..count].fill(A::NEG_INFINITY);
        sum[..count].fill(A::ZERO);
        let end = sequence.visible(start + count - 1);
        for first in (0..end).step_by(KEYS) {
            let keys = KEYS.min(end - first);
            let place = (b, kv, sequence.first + first, keys);
            load(&problem.k, place, width, A::ONE, rows, pitch);
            // Few queries are not worth turning the keys for.
            let turned = count > 2;
            if turned {
                turn(rows, pitch, (keys, width), kt, KEYS + GAP);
            } else {
                dots(q, rows, pitch, (count, keys), s);
            }
            load(&problem.v, place, width, A::ONE, rows, pitch);
            for r in (0..count).step_by(strip) {
                let n = strip.min(count - r);
                let seen = |i: usize| sequence.visible(start + i).saturating_sub(first).min(keys);
                let wide = seen(r + n - 1);
                if wide == 0 {
                    continue;
                }
                if turned {
                    let a = Rows { data: &q[r * pitch..], row_stride: pitch, col_stride: 1 };
                    product(isa, width, a, kt, KEYS + GAP, MatMut::new(s, n, wide, KEYS), false);
                }
                vectorize::<A, _>(
                    #[inline(always)]
                    || {
                        for i in 0..n {
                            let s = &mut s[i * KEYS..][..wide];
                            let acc = &mut acc[(r + i) * pitch..][..pitch];
                            weigh(s, seen(r + i), &mut max[r + i], &mut sum[r + i], acc);
                        }
                    },
                );
                let a = Rows { data: &*s, row_stride: KEYS, col_stride: 1 };
                product(isa, wide, a, rows, pitch, MatMut::new(&mut acc[r * pitch..], n, width, pitch), true);
            }
        }
        for i in 0..count {
            let none = sequence.visible(start + i) == 0;
            results.lse[i] = if none { A::NEG_INFINITY } else { max[i] + Real::ln(sum[i]) };
            let factor = if none { A::ZERO } else { A::ONE / sum[i] };
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    let o = results.o.row(i).iter_mut().zip(&acc[i * pitch..]);
                    o.for_each(|(o, &v)| *o = T::from_acc(v * factor));
                },
            );
        }
    }
}

/// The scores of `count` ≤ 2 queries, one dot product a key.
fn dots<A: Real>(q: &[A], k: &[A], pitch: usize, (count, keys): (usize, usize), s: &mut [A]) {
    vectorize::<A, _>(
        #[inline(always)]
        || {
            for i in 0..count {
                for (s, k) in s[i * KEYS..][..keys].iter_mut().zip(k.chunks_exact(pitch)) {
                    *s = sum_slices([&q[i * pitch..][..pitch], k], |[a, b]| a * b);
                }
            }
        },
    );
}

/// Turns the first `seen` scores of a row into weights under the new maximum, the others into 0, and scales what was summed.
#[inline(always)]
fn weigh<A: Real>(s: &mut [A], seen: usize, max: &mut A, sum: &mut A, acc: &mut [A]) {
    let (s, hidden) = s.split_at_mut(seen);
    hidden.fill(A::ZERO);
    if s.is_empty() {
        return;
    }
    // A NaN need not become the maximum: e^(NaN − max) is one anyway.
    let largest = fold_slices([&*s], *max, |[v]| v, |a, b| if a > b { a } else { b });
    let old = *max - largest;
    s.iter_mut().for_each(
        #[inline(always)]
        |v| *v = Real::exp(*v - largest),
    );
    let here = sum_slices([&*s], |[v]| v);
    *max = largest;
    if old == A::ZERO {
        *sum += here;
        return;
    }
    let factor = Real::exp(old);
    *sum = *sum * factor + here;
    acc.iter_mut().for_each(|v| *v *= factor);
}
