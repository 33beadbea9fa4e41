//! The gradients of attention: probabilities found again from the saved statistics, tile by tile.
//!
//! With p = e^(scale · q kᵀ − lse), dp = do vᵀ, delta = Σ do ∘ o and ds = p ∘ (dp − delta):
//! dq = scale · ds k, dk = dsᵀ (scale · q), dv = pᵀ do.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::strips::product;
use super::{GAP, Problem, Sequence, Shelf, Vectors, cut, load, turn};
use crate::Result;
use crate::cpu::par;
use crate::cpu::reduce::vectorize;
use crate::cpu::simd::{Isa, MatMut, Rows};
use crate::dtype::{Float, Real};

/// Queries and keys of a tile.
const TILE: usize = 64;
/// Length of a line of a turned tile.
const LINE: usize = TILE + GAP;
/// Keys (queries) that a task takes where dq goes apart from dk and dv.
const CHUNK: usize = 128;
/// From so many groups of heads on all gradients are made in one pass.
const GROUPS: usize = 8;

/// What goes into the backward beside the inputs of the forward.
#[derive(Clone, Copy)]
pub struct Gradients<'a, T: Float> {
    /// The result of the forward.
    pub o: Vectors<'a, T>,
    /// The gradient of that.
    pub dy: Vectors<'a, T>,
    /// ln Σ e^score as `Vectors` of one number each.
    pub lse: Vectors<'a, T::Acc>,
}

/// Σ a b, in sixteen sums.
#[inline(always)]
fn dot<T: Float<Acc = A>, A: Real>(a: &[T], b: &[A]) -> A {
    let mut sums = [A::ZERO; 16];
    let (a, b) = (a.chunks(16), b.chunks(16));
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), &b)| *sum += a.to_acc() * b);
    }
    sums.into_iter().sum()
}

/// A part of the work: some queries of a group of heads against some keys, and the gradients that it makes whole.
struct Piece<'a, T: Float> {
    sequence: Sequence,
    kv_head: usize,
    /// The heads among those of the group.
    heads: Range<usize>,
    queries: Range<usize>,
    keys: Range<usize>,
    /// For each of the heads, a row a query.
    dq: Vec<MatMut<'a, T>>,
    /// dk and dv, a row a key.
    dkv: Option<(MatMut<'a, T>, MatMut<'a, T>)>,
}

/// Cuts the rows of the first `count` positions off each matrix.
fn off<'a, T>(matrices: &mut Vec<MatMut<'a, T>>, count: usize) -> Vec<MatMut<'a, T>> {
    let (heads, rest) = std::mem::take(matrices).into_iter().map(|m| m.split_rows(count)).unzip();
    *matrices = rest;
    heads
}

/// dq, dk and dv: for each batch row, outermost, and head a matrix with a row a position.
pub fn backward<'a, T: Float<Acc = A>, A: Real>(
    problem: &Problem<'_, T>,
    given: &Gradients<'_, T>,
    [dq, dk, dv]: [Vec<MatMut<'a, T>>; 3],
) -> Result<()> {
    let group = problem.heads / problem.kv_heads;
    let (mut dq, mut dkv) = (dq.into_iter(), dk.into_iter().zip(dv));
    let once = problem.sequences.len() * problem.kv_heads >= GROUPS;
    let batches = problem.sequences.last().map_or(0, |s| s.batch + 1);
    let mut pieces = Vec::new();
    for (batch, kv_head) in (0..batches).flat_map(|b| (0..problem.kv_heads).map(move |h| (b, h))) {
        let mut dq: Vec<_> = dq.by_ref().take(group).collect();
        let (mut dk, mut dv) = dkv.next().expect("a matrix for each head");
        for &sequence in problem.sequences.iter().filter(|s| s.batch == batch) {
            let queries = sequence.queries;
            // All keys, not only the valid ones: the others get zeros.
            let keys = sequence.span;
            let mut dq = off(&mut dq, queries);
            let (dk_here, dk_rest) = dk.split_rows(keys);
            let (dv_here, dv_rest) = dv.split_rows(keys);
            (dk, dv) = (dk_rest, dv_rest);
            let (heads, all) = (0..group, 0..sequence.keys);
            if once {
                let dkv = Some((dk_here, dv_here));
                pieces.push(Piece { sequence, kv_head, heads, queries: 0..queries, keys: all, dq, dkv });
                continue;
            }
            for start in (0..queries).step_by(CHUNK) {
                let range = start..queries.min(start + CHUNK);
                let parts = off(&mut dq, range.len());
                for (head, dq) in parts.into_iter().enumerate() {
                    let (heads, dq, queries, keys) = (head..head + 1, vec![dq], range.clone(), all.clone());
                    pieces.push(Piece { sequence, kv_head, heads, queries, keys, dq, dkv: None });
                }
            }
            let (mut dk, mut dv) = (dk_here, dv_here);
            for start in (0..keys).step_by(CHUNK) {
                let count = CHUNK.min(keys - start);
                let (dk_here, dv_here);
                (dk_here, dk) = dk.split_rows(count);
                (dv_here, dv) = dv.split_rows(count);
                let range = start.min(sequence.keys)..(start + count).min(sequence.keys);
                let (heads, dkv) = (heads.clone(), Some((dk_here, dv_here)));
                pieces.push(Piece {
                    sequence,
                    kv_head,
                    heads,
                    queries: 0..queries,
                    keys: range,
                    dq: vec![],
                    dkv,
                });
            }
        }
    }
    let isa = Isa::detect();
    let pitch = problem.width.next_multiple_of(isa.shape::<A>().lanes);
    let vectors = TILE * pitch;
    let square = TILE * TILE;
    let turned = problem.width * LINE;
    let lengths = [vectors, vectors, vectors, turned, turned, square, square, TILE];
    let shelf = Shelf::new(pieces.len(), lengths.iter().sum::<usize>() * size_of::<A>())?;
    par::each(pieces.len(), pieces.into_iter(), |piece| {
        shelf.with(|block| piece.run(problem, given, isa, cut(block, lengths)));
    });
    Ok(())
}

/// A matrix of the type that sums are kept in: the output itself, or one beside it.
fn wide<'o: 's, 's, T: Float>(
    out: MatMut<'o, T>,
    store: &'s mut Vec<T::Acc>,
) -> (MatMut<'s, T::Acc>, Option<MatMut<'o, T>>) {
    let (rows, cols) = (out.rows(), out.cols());
    match out.cast::<T::Acc>() {
        Ok(mut same) => {
            (0..rows).for_each(|i| same.row(i).fill(T::Acc::ZERO));
            (same, None)
        }
        Err(out) => {
            *store = vec![T::Acc::ZERO; rows * cols];
            (MatMut::new(store, rows, cols, cols), Some(out))
        }
    }
}

/// Rounds what [`wide`] put beside the output.
fn narrow<T: Float>(out: Option<MatMut<'_, T>>, store: &[T::Acc]) {
    let Some(mut out) = out else { return };
    let cols = out.cols();
    for i in 0..out.rows() {
        out.row(i).iter_mut().zip(&store[i * cols..]).for_each(|(o, &v)| *o = T::from_acc(v));
    }
}

impl<T: Float<Acc = A>, A: Real> Piece<'_, T> {
    fn run(self, problem: &Problem<'_, T>, given: &Gradients<'_, T>, isa: Isa, scratch: [&mut [A]; 8]) {
        let Piece { sequence, kv_head, heads, queries, keys, dq, dkv } = self;
        let mut stores: Vec<Vec<A>> = vec![vec![]; dq.len()];
        let (mut dq, dq_out): (Vec<_>, Vec<_>) =
            dq.into_iter().zip(&mut stores).map(|(m, s)| wide(m, s)).unzip();
        let (mut dk_store, mut dv_store) = (vec![], vec![]);
        let (mut dkv, dkv_out) = match dkv {
            Some((dk, dv)) => {
                let (dk, dk_out) = wide(dk, &mut dk_store);
                let (dv, dv_out) = wide(dv, &mut dv_store);
                (Some((dk, dv)), Some((dk_out, dv_out)))
            }
            None => (None, None),
        };
        let group = problem.heads / problem.kv_heads;
        let mut tiles = Tiles { problem, given, isa, sequence, scratch };
        for first in keys.clone().step_by(TILE) {
            let tile = first..keys.end.min(first + TILE);
            tiles.take_keys(kv_head, tile.clone(), !dq.is_empty());
            for (slot, head) in heads.clone().enumerate() {
                for start in queries.clone().step_by(TILE) {
                    let rows = start..queries.end.min(start + TILE);
                    if sequence.visible(rows.end - 1) <= first {
                        continue;
                    }
                    tiles.find(kv_head * group + head, rows.clone(), tile.clone());
                    if let Some(dq) = dq.get_mut(slot) {
                        let dq = dq.part(start - queries.start, rows.len(), 0, problem.width);
                        tiles.add_queries(rows.clone(), tile.clone(), dq);
                    }
                    if let Some((dk, dv)) = &mut dkv {
                        let at = first - keys.start;
                        let dk = dk.part(at, tile.len(), 0, problem.width);
                        let dv = dv.part(at, tile.len(), 0, problem.width);
                        tiles.add_keys(rows, tile.clone(), dk, dv);
                    }
                }
            }
        }
        drop((dq, dkv));
        dq_out.into_iter().zip(&stores).for_each(|(out, store)| narrow(out, store));
        if let Some((dk, dv)) = dkv_out {
            narrow(dk, &dk_store);
            narrow(dv, &dv_store);
        }
    }
}

/// What a task works in.
struct Tiles<'a, T: Float> {
    problem: &'a Problem<'a, T>,
    given: &'a Gradients<'a, T>,
    isa: Isa,
    sequence: Sequence,
    /// Queries times scale, do, keys times scale, keys and values turned, p, ds, delta.
    scratch: [&'a mut [T::Acc]; 8],
}

impl<T: Float<Acc = A>, A: Real> Tiles<'_, T> {
    fn pitch(&self) -> usize {
        self.problem.width.next_multiple_of(self.isa.shape::<A>().lanes)
    }

    /// How many of `keys` query `i` sees.
    #[inline(always)]
    fn seen(sequence: &Sequence, i: usize, keys: &Range<usize>) -> usize {
        sequence.visible(i).saturating_sub(keys.start).min(keys.len())
    }

    /// Fetches keys and values.
    fn take_keys(&mut self, kv_head: usize, keys: Range<usize>, rows: bool) {
        let (pitch, width, s) = (self.pitch(), self.problem.width, self.sequence);
        let place = (s.batch, kv_head, s.first + keys.start, keys.len());
        let [_, _, k, kt, vt, ..] = &mut self.scratch;
        load(&self.problem.v, place, width, A::ONE, k, pitch);
        turn(k, pitch, (keys.len(), width), vt, LINE);
        load(&self.problem.k, place, width, A::ONE, k, pitch);
        turn(k, pitch, (keys.len(), width), kt, LINE);
        if rows {
            load(&self.problem.k, place, width, A::of(self.problem.scale), k, pitch);
        }
    }

    /// Fetches queries and finds p and ds of them and the keys.
    fn find(&mut self, head: usize, rows: Range<usize>, keys: Range<usize>) {
        let (pitch, width, s) = (self.pitch(), self.problem.width, self.sequence);
        let strip = self.isa.shape::<A>().rows[0];
        let at = s.first + rows.start;
        let place = (s.batch, head, at, rows.len());
        let [q, dy, _, kt, vt, p, ds, delta] = &mut self.scratch;
        load(&self.problem.q, place, width, A::of(self.problem.scale), q, pitch);
        load(&self.given.dy, place, width, A::ONE, dy, pitch);
        let (o, lse) = (&self.given.o, &self.given.lse);
        vectorize::<A, _>(
            #[inline(always)]
            || {
                for (i, delta) in delta[..rows.len()].iter_mut().enumerate() {
                    *delta = dot(o.at(s.batch, head, at + i, width), &dy[i * pitch..][..width]);
                }
            },
        );
        for r in (0..rows.len()).step_by(strip) {
            let n = strip.min(rows.len() - r);
            let most = Self::seen(&s, rows.start + r + n - 1, &keys);
            let (p, ds) = (&mut p[r * TILE..], &mut ds[r * TILE..]);
            let of = |data| Rows { data, row_stride: pitch, col_stride: 1 };
            product(self.isa, width, of(&q[r * pitch..]), kt, LINE, MatMut::new(p, n, most, TILE), false);
            product(self.isa, width, of(&dy[r * pitch..]), vt, LINE, MatMut::new(ds, n, most, TILE), false);
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    for i in 0..n {
                        let seen = Self::seen(&s, rows.start + r + i, &keys);
                        let (p, hidden_p) = p[i * TILE..][..keys.len()].split_at_mut(seen);
                        let (ds, hidden_ds) = ds[i * TILE..][..keys.len()].split_at_mut(seen);
                        hidden_p.fill(A::ZERO);
                        hidden_ds.fill(A::ZERO);
                        let (lse, delta) = (lse.at(s.batch, head, at + r + i, 1)[0], delta[r + i]);
                        for (p, ds) in p.iter_mut().zip(ds) {
                            *p = Real::exp(*p - lse);
                            *ds = *p * (*ds - delta);
                        }
                    }
                },
            );
        }
    }

    /// dq += ds k.
    fn add_queries(&mut self, rows: Range<usize>, keys: Range<usize>, mut dq: MatMut<'_, A>) {
        let (pitch, width) = (self.pitch(), self.problem.width);
        let strip = self.isa.shape::<A>().rows[0];
        let [_, _, k, _, _, _, ds, _] = &self.scratch;
        for r in (0..rows.len()).step_by(strip) {
            let n = strip.min(rows.len() - r);
            let most = Self::seen(&self.sequence, rows.start + r + n - 1, &keys);
            let a = Rows { data: &ds[r * TILE..], row_stride: TILE, col_stride: 1 };
            product(self.isa, most, a, k, pitch, dq.part(r, n, 0, width), true);
        }
    }

    /// dk += dsᵀ q, dv += pᵀ do.
    fn add_keys(
        &mut self,
        rows: Range<usize>,
        keys: Range<usize>,
        mut dk: MatMut<'_, A>,
        mut dv: MatMut<'_, A>,
    ) {
        let (pitch, width) = (self.pitch(), self.problem.width);
        let strip = self.isa.shape::<A>().rows[0];
        let [q, dy, _, _, _, p, ds, _] = &self.scratch;
        let mut from = 0;
        for j in (0..keys.len()).step_by(strip) {
            let n = strip.min(keys.len() - j);
            // The queries before this one see none of these keys.
            while from < rows.len() && self.sequence.visible(rows.start + from) <= keys.start + j {
                from += 1;
            }
            let k = rows.len() - from;
            let of = |data| Rows { data, row_stride: 1, col_stride: TILE };
            let (a, b) = (from * TILE + j, from * pitch);
            if k > 0 {
                product(self.isa, k, of(&p[a..]), &dy[b..], pitch, dv.part(j, n, 0, width), true);
                product(self.isa, k, of(&ds[a..]), &q[b..], pitch, dk.part(j, n, 0, width), true);
            }
        }
    }
}
