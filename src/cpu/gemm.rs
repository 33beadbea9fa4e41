//! The matrix product C = A·B with a fused epilogue, for any strides and the four float types.
//!
//! **The bits of a result.** Every element of C is computed in the same way: each run of [`RUN`] steps of k is one chain of
//! fused multiply-adds, from 0 and in ascending order; the runs are added up in ascending order, after the old value of C
//! where one is accumulated to. So the bits depend on the element's own row of A and column of B and on k, and on nothing
//! else: not on the number of threads, the batch that the row is part of, the strides, or (AVX2 and AVX-512) the machine.
//! A machine without fused multiply-add rounds each product, and keeps the rest of this contract.
//! 16-bit types are widened, summed in f32 over the whole of k and rounded once, when C is stored.
//!
//! **The method.** One factor gives a tile its vectors and is packed into panels of whole vectors; the other is broadcast
//! and read where it lies. Either factor can take either part (C = (Bᵀ·Aᵀ)ᵀ): the smaller one is packed where that pays for
//! transposing C. Work is split over threads by halving C, so threads share nothing and wait for each other once.
//!
//! Refused: nothing. Shapes are the caller's duty (`infer` of the op) and asserted here.

#![forbid(unsafe_code)]

mod epilogue;
pub(in crate::cpu) mod pack;
mod packed;
#[cfg(test)]
mod tests;

pub use super::activation::Activation;
use crate::cpu::par;
use crate::cpu::simd::{Isa, MatMut, Panel, TileShape, tile};
use crate::dtype::{Element, Float, Real};
pub use epilogue::Epilogue;
use pack::Buffers;
pub use packed::PackedFactor;

/// Steps of k in one chain of sums; part of what decides the bits of a result, so not to be tuned per shape.
pub const RUN: usize = 256;

/// The most columns of the vector side that are packed at a time: with [`RUN`] 576 KB of f32, about half of the L2 cache of
/// a Zen 4 core.
const BLOCK: usize = 576;

/// Below this many multiply-adds a product is not worth a second thread (fork and join cost 1 µs).
const SPLIT_WORK: f64 = 150_000.0;

/// A matrix to read: element (i, j) at `data[i · row_stride + j · col_stride]`. Strides of 0 repeat a row or a column.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: Element> MatRef<'a, T> {
    /// `rows` × `cols` elements of `data`.
    ///
    /// # Panics
    /// If they do not fit in `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1)
                .checked_mul(row_stride)
                .zip((cols - 1).checked_mul(col_stride))
                .and_then(|(r, c)| r.checked_add(c));
            assert!(last.is_some_and(|l| l < data.len()), "a {rows}×{cols} matrix does not fit its slice");
        }
        MatRef { data, rows, cols, row_stride, col_stride }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The transposed matrix, of the same elements.
    #[must_use]
    pub fn t(self) -> Self {
        MatRef {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The part from `row`, `col` on of `rows` × `cols` elements.
    fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        debug_assert!(row + rows <= self.rows && col + cols <= self.cols);
        // An empty part may start past the end.
        let data = self.data.get(row * self.row_stride + col * self.col_stride..).unwrap_or(&[]);
        MatRef { data, rows, cols, ..self }
    }

    /// The elements as the type they are computed in, if that is their own type.
    fn unwidened<R: Real>(&self) -> Option<&'a [R]> {
        if T::DTYPE == R::DTYPE { bytemuck::try_cast_slice(self.data).ok() } else { None }
    }
}

/// What happens to the old value of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// It is overwritten, unread.
    Write,
    /// The product is added to it.
    Add,
}

/// One product: `c = f(a · b + bias)`, or with [`Accumulate::Add`] `c = f(c + a · b + bias)`.
#[derive(Debug)]
pub struct Product<'a, T> {
    /// m × k.
    pub a: MatRef<'a, T>,
    /// k × n.
    pub b: MatRef<'a, T>,
    /// m × n.
    pub c: MatMut<'a, T>,
    /// What happens to the old value of `c`.
    pub accumulate: Accumulate,
    /// What is done to the sums before they are stored.
    pub epilogue: Epilogue<'a, T>,
}

/// `c = f(a · b + bias)`, or with [`Accumulate::Add`] `c = f(c + a · b + bias)`: a is m × k, b k × n, c m × n.
///
/// # Panics
/// If the shapes do not fit each other.
///
/// # Examples
/// ```
/// use warpsmith::cpu::gemm::{Accumulate, Epilogue, MatRef, gemm};
/// use warpsmith::cpu::simd::MatMut;
/// // x [2, 3] times the transpose of w [1, 3].
/// let (x, w, mut y) = ([1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [1f32, 0.0, -1.0], [0f32; 2]);
/// let (x, w) = (MatRef::new(&x, 2, 3, 3, 1), MatRef::new(&w, 1, 3, 3, 1));
/// gemm(x, w.t(), MatMut::new(&mut y, 2, 1, 1), Accumulate::Write, Epilogue::default());
/// assert_eq!(y, [-2.0, -2.0]);
/// ```
pub fn gemm<'a, T: Float>(
    a: MatRef<'a, T>,
    b: MatRef<'a, T>,
    c: MatMut<'a, T>,
    accumulate: Accumulate,
    epilogue: Epilogue<'a, T>,
) {
    Product { a, b, c, accumulate, epilogue }.checked().run(par::threads());
}

/// `count` products that do not depend on each other, such as the matrices of a batch. Many small ones are spread over the
/// threads whole, few large ones are split one after the other; the bits are those of [`gemm`].
///
/// # Panics
/// If the shapes of a product do not fit each other.
pub fn gemm_batch<'a, T: Float>(count: usize, mut products: impl Iterator<Item = Product<'a, T>> + Send) {
    let threads = par::threads();
    let Some(first) = products.next() else { return };
    let work = first.work();
    let products = std::iter::once(first).chain(products);
    if threads == 1 || count < threads || work > 64.0 * SPLIT_WORK {
        return products.for_each(|p| p.checked().run(threads));
    }
    // Groups large enough that taking one costs little beside it.
    let group = (SPLIT_WORK / 4.0 / work.max(1.0)).clamp(1.0, GROUP as f64) as usize;
    if count.div_ceil(group) == 1 {
        return products.for_each(|p| p.checked().run(1));
    }
    let groups = Groups { products, group };
    par::each(count.div_ceil(group), groups, |g| g.into_iter().flatten().for_each(|p| p.checked().run(1)));
}

/// The most products that a thread takes at a time.
const GROUP: usize = 16;

/// Hands out products `group` at a time.
struct Groups<I> {
    products: I,
    group: usize,
}

impl<I: Iterator> Iterator for Groups<I> {
    type Item = [Option<I::Item>; GROUP];
    fn next(&mut self) -> Option<Self::Item> {
        let mut items = std::array::from_fn(|_| None);
        for slot in &mut items[..self.group] {
            *slot = self.products.next();
        }
        items[0].is_some().then_some(items)
    }
}

impl<'a, T: Float> Product<'a, T> {
    fn checked(self) -> Self {
        let (m, n) = (self.c.rows(), self.c.cols());
        assert!(
            self.a.rows == m && self.b.cols == n && self.a.cols == self.b.rows,
            "shapes do not fit: {self:?}"
        );
        assert!(self.epilogue.bias.is_none_or(|b| b.len() == n), "a bias must have {n} elements");
        if let Some(pre) = &self.epilogue.pre {
            assert!(pre.rows() == m && pre.cols() == n, "the pre-activation must be {m}×{n}");
        }
        self
    }

    /// Multiply-adds.
    fn work(&self) -> f64 {
        self.c.rows() as f64 * self.c.cols() as f64 * self.a.cols as f64
    }

    /// Computes the product on up to `threads` threads.
    fn run(self, threads: usize) {
        if threads <= 1 || self.work() < SPLIT_WORK {
            return self.serial();
        }
        let (m, n, shape) = (self.c.rows(), self.c.cols(), Isa::detect().shape::<T::Acc>());
        let first = threads - threads / 2;
        let share = |len: usize, unit: usize| (len * first / threads).next_multiple_of(unit).min(len);
        let cost = |rows: usize, cols: usize, t: usize| self.cost(shape, rows, cols).0 / t as f64;
        // Whole tiles on both sides of the cut, whichever factor gives the vectors.
        let (at_row, at_col) = (share(m, shape.lanes), share(n, shape.lanes));
        let by_rows = cost(at_row, n, first).max(cost(m - at_row, n, threads - first));
        let by_cols = cost(m, at_col, first).max(cost(m, n - at_col, threads - first));
        if by_rows.min(by_cols) > 0.9 * self.cost(shape, m, n).0 {
            return self.serial();
        }
        let (left, right) = if by_rows < by_cols { self.split_rows(at_row) } else { self.split_cols(at_col) };
        par::join(|| left.run(first), || right.run(threads - first));
    }

    fn split_rows(self, at: usize) -> (Self, Self) {
        let Product { a, b, c, accumulate, epilogue } = self;
        let (top, bottom) = c.split_rows(at);
        let (e_top, e_bottom) = epilogue.split_rows(at);
        let (a_top, a_bottom) = (a.part(0, at, 0, a.cols), a.part(at, a.rows - at, 0, a.cols));
        (
            Product { a: a_top, b, c: top, accumulate, epilogue: e_top },
            Product { a: a_bottom, b, c: bottom, accumulate, epilogue: e_bottom },
        )
    }

    fn split_cols(self, at: usize) -> (Self, Self) {
        let Product { a, b, c, accumulate, epilogue } = self;
        let (left, right) = c.split_cols(at);
        let (e_left, e_right) = epilogue.split_cols(at);
        let (b_left, b_right) = (b.part(0, b.rows, 0, at), b.part(0, b.rows, at, b.cols - at));
        (
            Product { a, b: b_left, c: left, accumulate, epilogue: e_left },
            Product { a, b: b_right, c: right, accumulate, epilogue: e_right },
        )
    }

    /// Estimated cycles for `rows` × `cols` of the result on one thread, and whether A should give the vectors.
    fn cost(&self, shape: TileShape, rows: usize, cols: usize) -> (f64, bool) {
        let k = self.a.cols;
        let one = |s: usize, s_col_stride: usize, v: usize, v_col_stride: usize| {
            // Vectors are filled up with zeros; fewer than four rows do not fill the pipeline.
            let rows = if s < 4 { 4 } else { s };
            let sums = rows as f64 * v.div_ceil(shape.lanes) as f64 * k as f64;
            let pack = match (pack::in_place::<T>(s, v_col_stride), v_col_stride) {
                (true, _) => 0.0,
                (false, 1) => 0.1,
                (false, _) => 0.25,
            };
            let strips = if pack::copies::<T>(v, s_col_stride, shape) { 0.15 } else { 0.0 };
            sums + (pack * v as f64 + strips * (s * v.div_ceil(BLOCK)) as f64) * k as f64
        };
        let by_b = one(rows, self.a.col_stride, cols, self.b.col_stride);
        let by_a = one(cols, self.b.row_stride, rows, self.a.row_stride) + 0.5 * rows as f64 * cols as f64;
        if by_a < by_b { (by_a, true) } else { (by_b, false) }
    }

    /// Computes the product on this thread.
    fn serial(self) {
        self.serial_on(Isa::detect());
    }

    fn serial_on(self, isa: Isa) {
        let (m, n, k) = (self.c.rows(), self.c.cols(), self.a.cols);
        if m == 0 || n == 0 {
            return;
        }
        let shape = isa.shape::<T::Acc>();
        let swap = self.cost(shape, m, n).1;
        let Product { a, b, mut c, accumulate, mut epilogue } = self;
        let add = accumulate == Accumulate::Add;
        Buffers::with(|buffers| {
            if !swap {
                match c.cast::<T::Acc>() {
                    Ok(mut sums) => {
                        let mut epilogue = epilogue.computed();
                        return product(isa, a, b, &mut sums, add, buffers, |strip, row, col| {
                            epilogue.in_place(strip, row, col);
                        });
                    }
                    Err(narrow) => c = narrow,
                }
            }
            // The sums go to a buffer, [m, n] or transposed, a block of columns of the vector side at a time.
            let mut sums = std::mem::take(&mut buffers.sums);
            let (s, v) = if swap { (b.t(), a.t()) } else { (a, b) };
            for at in (0..v.cols).step_by(BLOCK) {
                let width = BLOCK.min(v.cols - at);
                let stride = width.next_multiple_of(shape.lanes);
                let block = pack::view::<T::Acc>(&mut sums, s.rows * stride);
                let mut part = if swap { c.part(at, width, 0, n) } else { c.part(0, m, at, width) };
                if add {
                    epilogue::preload(block, stride, swap, &mut part);
                }
                let mut out = MatMut::new(block, s.rows, width, stride);
                product(isa, s, v.part(0, k, at, width), &mut out, add, buffers, |_, _, _| ());
                let origin = if swap { (at, 0) } else { (0, at) };
                epilogue.store(block, stride, swap, &mut part, origin, &mut buffers.strip);
            }
            buffers.sums = sums;
        });
    }
}

/// `out = s · v` (`out += s · v` with `add`), where v gives the vectors. Calls `done(strip, row, col)` for each part of `out`
/// once its sums are complete and while it is in the cache.
fn product<T: Float<Acc = R>, R: Real>(
    isa: Isa,
    s: MatRef<'_, T>,
    v: MatRef<'_, T>,
    out: &mut MatMut<'_, R>,
    add: bool,
    buffers: &mut Buffers,
    mut done: impl FnMut(&mut MatMut<'_, R>, usize, usize),
) {
    let shape = isa.shape::<R>();
    let (m, n, k) = (s.rows, v.cols, v.rows);
    let in_place = pack::in_place::<T>(m, v.col_stride);
    let Buffers { panels, strip, .. } = buffers;
    // Blocks of the same number of whole panels, so that none is left with a few columns.
    let block_cols = n.div_ceil(n.div_ceil(BLOCK)).next_multiple_of(shape.cols());
    for col in (0..n).step_by(block_cols) {
        let width = block_cols.min(n - col);
        for start in (0..k.max(1)).step_by(RUN) {
            let steps = RUN.min(k - start);
            let block = v.part(start, steps, col, width);
            // The columns from `packed` on are packed; in place, that is what does not fill a vector.
            let packed = if in_place { width / shape.lanes * shape.lanes } else { 0 };
            let rest = block.part(0, steps, packed, width - packed);
            let panels = pack::view::<R>(panels, steps * rest.cols.next_multiple_of(shape.lanes));
            pack::panels(rest, shape, panels);
            let mut strips = pack::Strips::new(s.part(0, m, start, steps), width, shape, strip);
            let mut row = 0;
            while row < m {
                let rows = shape.step(m - row);
                let left = strips.get(row, rows);
                let mut at = 0;
                while at < width {
                    let limit = if at < packed { packed } else { width };
                    let cols = shape.cols().min(limit - at);
                    let vectors = cols.div_ceil(shape.lanes);
                    let right = if at < packed {
                        let here = block.part(0, steps, at, cols).unwidened().unwrap_or(&[]);
                        Panel { data: here, row_stride: block.row_stride, vectors }
                    } else {
                        let data = &panels[(at - packed) * steps..];
                        Panel { data, row_stride: vectors * shape.lanes, vectors }
                    };
                    tile(isa, steps, left, right, out.part(row, rows, col + at, cols), add || start > 0);
                    at += cols;
                }
                if start + steps >= k {
                    done(&mut out.part(row, rows, col, width), row, col);
                }
                row += rows;
            }
        }
    }
}
