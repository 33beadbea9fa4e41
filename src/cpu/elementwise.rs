//! Elementwise loops over operands of any layout and element type, in parallel.
//!
//! An op brings a kernel over contiguous slices of the type it computes in; everything else is shared and compiled once:
//! this driver cuts the output into fixed chunks for the threads, and where an operand is strided, repeated or narrower
//! than the computing type, it brings it in a block at a time that stays in the L1 cache. So a new op costs two loops
//! (f32 and f64) to compile, whatever the layouts and dtypes it accepts. Kernels are called through `dyn`, once a block.

#![forbid(unsafe_code)]

use half::slice::HalfFloatSliceExt;

use super::par;
use super::simd::{self, vectorize};
use crate::dtype::{DType, Element, bf16, f16};
use crate::shape::{Layout, MAX_RANK};

/// Elements that a thread takes at a time: at 128 KB of f32 handing out chunks costs nothing.
pub const CHUNK: usize = 32_768;
/// Elements of a block of a converted or gathered operand.
const BLOCK: usize = 512;

/// A type that kernels compute in: f32 for all 16-bit types, every other type for itself.
pub trait Work: Element {
    /// The sum; integers wrap.
    fn plus(self, other: Self) -> Self;
}

macro_rules! works {
    ($($t:ty: $plus:expr),*) => {$(
        impl Work for $t {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                ($plus)(self, other)
            }
        }
    )*};
}
works!(f32: |a, b| a + b, f64: |a, b| a + b, u8: u8::wrapping_add, i32: i32::wrapping_add, i64: i64::wrapping_add);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Row-major without gaps.
    Dense,
    /// One element, for all.
    Repeated,
    Strided,
}

/// An operand to read: any element type, any layout.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    bytes: &'a [u8],
    dtype: DType,
    kind: Kind,
    start: usize,
    /// Size and stride of each dimension that could not be merged, outermost first.
    dims: [(usize, usize); MAX_RANK],
    rank: usize,
}

impl<'a> Source<'a> {
    /// The elements of `data` that `layout` names.
    pub fn new<T: Element>(data: &'a [T], layout: &Layout) -> Source<'a> {
        let (mut dims, mut rank) = ([(1, 1); MAX_RANK], 0);
        for (&n, &s) in layout.shape.iter().zip(layout.strides.iter()) {
            if n == 1 {
            } else if rank > 0 && dims[rank - 1].1 == n * s {
                dims[rank - 1] = (dims[rank - 1].0 * n, s);
            } else {
                dims[rank] = (n, s);
                rank += 1;
            }
        }
        let kind = match &dims[..rank] {
            [] => Kind::Dense,
            [(_, 1)] => Kind::Dense,
            [(_, 0)] => Kind::Repeated,
            _ if layout.numel() == 0 => Kind::Dense,
            _ => Kind::Strided,
        };
        Source { bytes: bytemuck::cast_slice(data), dtype: T::DTYPE, kind, start: layout.offset, dims, rank }
    }

    /// The elements of a slice, in order.
    fn row_major(data: &'a [f32]) -> Source<'a> {
        let (mut dims, rank) = ([(1, 1); MAX_RANK], 1);
        dims[0] = (data.len(), 1);
        Source {
            bytes: bytemuck::cast_slice(data),
            dtype: DType::F32,
            kind: Kind::Dense,
            start: 0,
            dims,
            rank,
        }
    }

    /// If these are transposed matrices of f32: the number of dimensions before them, their rows and columns, and the
    /// distance of neighbours in a row; those in a column are neighbours in memory.
    fn turned(&self) -> Option<(usize, usize, usize, usize)> {
        let outer = self.rank.checked_sub(2)?;
        let [(rows, row_stride), (cols, stride)] = [self.dims[outer], self.dims[outer + 1]];
        let large = rows >= 8 && cols >= 8;
        let turned = self.kind == Kind::Strided && row_stride == 1 && stride >= rows;
        (turned && large && self.dtype == DType::F32).then_some((outer, rows, cols, stride))
    }

    /// All elements, if they lie in order and have type `W`.
    fn dense<W: Element>(&self, len: usize) -> Option<&'a [W]> {
        let fits = self.kind == Kind::Dense && self.dtype == W::DTYPE;
        fits.then(|| &bytemuck::cast_slice(self.bytes)[self.start..self.start + len])
    }

    /// `len` ≤ [`BLOCK`] elements from number `first` on, as `W`: of the operand's own memory where they lie there so.
    /// Floats widen; a u8 read as another type is a mask and becomes 0 or 1.
    fn load<'b, W: Element>(&'b self, first: usize, len: usize, buffer: &'b mut Buffer<W>) -> &'b [W] {
        match self.dtype.size() {
            1 => self.load_sized::<u8, W>(first, len, buffer),
            2 => self.load_sized::<u16, W>(first, len, buffer),
            4 => self.load_sized::<u32, W>(first, len, buffer),
            _ => self.load_sized::<u64, W>(first, len, buffer),
        }
    }

    fn load_sized<'b, U: bytemuck::Pod, W: Element>(
        &'b self,
        first: usize,
        len: usize,
        buffer: &'b mut Buffer<W>,
    ) -> &'b [W] {
        if self.kind == Kind::Repeated && buffer.filled {
            return &buffer.work[..len];
        }
        let Buffer { raw, work, filled } = buffer;
        let gathered = &mut bytemuck::cast_slice_mut::<u64, U>(raw)[..BLOCK];
        let found = match self.kind {
            Kind::Repeated => {
                gathered.fill(bytemuck::cast_slice(self.bytes)[self.start]);
                *filled = true;
                &gathered[..]
            }
            _ => match self.lying(first, len) {
                Some(at) => &bytemuck::cast_slice(self.bytes)[at..at + len],
                None => {
                    self.gather(first, &mut gathered[..len]);
                    &gathered[..len]
                }
            },
        };
        if self.dtype == W::DTYPE && self.kind != Kind::Repeated {
            return bytemuck::cast_slice(found);
        }
        widen(self.dtype, bytemuck::cast_slice(found), &mut work[..found.len()]);
        &work[..len]
    }

    /// Where the elements from number `first` on lie, if `len` of them lie in order.
    fn lying(&self, first: usize, len: usize) -> Option<usize> {
        if self.kind == Kind::Dense {
            return Some(self.start + first);
        }
        let (n, stride) = self.dims[self.rank - 1];
        let column = first % n;
        (stride == 1 && column + len <= n).then(|| self.position(first / n, self.rank - 1) + column)
    }

    /// The position of element number `index` of the first `rank` dimensions.
    fn position(&self, mut index: usize, rank: usize) -> usize {
        let mut at = self.start;
        for &(n, stride) in self.dims[..rank].iter().rev() {
            at += index % n * stride;
            index /= n;
        }
        at
    }

    fn gather<U: bytemuck::Pod>(&self, first: usize, out: &mut [U]) {
        let data: &[U] = bytemuck::cast_slice(self.bytes);
        let (n, stride) = self.dims[self.rank - 1];
        let (mut row, mut column, mut done) = (first / n, first % n, 0);
        while done < out.len() {
            let run = (n - column).min(out.len() - done);
            let at = self.position(row, self.rank - 1) + column * stride;
            let out = &mut out[done..done + run];
            match stride {
                0 => out.fill(data[at]),
                1 => out.copy_from_slice(&data[at..at + run]),
                _ => out.iter_mut().zip(data[at..].iter().step_by(stride)).for_each(|(o, &x)| *o = x),
            }
            (row, column, done) = (row + 1, 0, done + run);
        }
    }
}

/// Writes the elements of `source` in order, in parallel, through `convert`, which sees equally long pieces.
pub fn convert<S: Element, T: Element>(
    out: &mut [T],
    source: Source<'_>,
    convert: impl Fn(&[S], &mut [T]) + Sync,
) {
    par::for_each_chunk_mut(out, CHUNK, |i, out| {
        let mut buffer = Buffer { raw: [0; BLOCK], work: [S::default(); BLOCK], filled: false };
        for (k, out) in out.chunks_mut(BLOCK).enumerate() {
            convert(source.load(i * CHUNK + k * BLOCK, out.len(), &mut buffer), out);
        }
    });
}

/// Writes the elements of `source` in order if it is a transposed matrix, or a batch of them; false if it is not.
pub fn transpose(out: &mut [f32], source: &Source<'_>) -> bool {
    /// Rows of the result that a thread writes at a time: with 16 of them two cache lines of each row of the operand are
    /// used whole, and their targets stay in the L1 cache although they lie a power of two apart.
    const STRIP: usize = 32;
    let Some(outer) = source.rank.checked_sub(2).filter(|_| source.kind == Kind::Strided) else {
        return false;
    };
    let [(rows, row_stride), (cols, stride)] = [source.dims[outer], source.dims[outer + 1]];
    if row_stride != 1 || stride < rows || source.dtype != DType::F32 || rows < 8 || cols < 8 {
        return false;
    }
    let data: &[f32] = bytemuck::cast_slice(source.bytes);
    let strips = out.chunks_mut(rows * cols).enumerate().flat_map(|(matrix, out)| {
        let pieces = out.chunks_mut(STRIP * cols).enumerate();
        pieces.map(move |(i, piece)| (matrix, i * STRIP, piece))
    });
    let count = source.dims[..outer].iter().map(|d| d.0).product::<usize>() * rows.div_ceil(STRIP);
    let workers = if rows * cols < CHUNK { 1 } else { count };
    par::each(workers, strips, |(matrix, first, piece)| {
        let at = source.position(matrix, outer) + first;
        simd::transpose(&data[at..], stride, (cols, piece.len() / cols), piece, cols);
    });
    true
}

/// Where a block of an operand is put together.
struct Buffer<W> {
    raw: [u64; BLOCK],
    work: [W; BLOCK],
    /// Whether `work` holds the one element of a repeated operand.
    filled: bool,
}

/// An output: contiguous, of any element type, overwritten or added to.
#[derive(Debug)]
pub struct Target<'a> {
    bytes: &'a mut [u8],
    dtype: DType,
    add: bool,
}

impl<'a> Target<'a> {
    /// All of `out`.
    pub fn new<T: Element>(out: &'a mut [T], add: bool) -> Target<'a> {
        Target { bytes: bytemuck::cast_slice_mut(out), dtype: T::DTYPE, add }
    }
}

/// A kernel: reads equally long slices and writes every element of the last argument. The first argument is the number,
/// in row-major order, of the first of them.
pub type Kernel<'k, W, V, const N: usize> = &'k (dyn Fn(usize, [&[W]; N], &mut [V]) + Sync);

/// Computes `out` from `sources`, all of the output's shape. `W` and `V` are the types that the sources and the output are
/// computed in (see [`Work`]).
pub fn apply<W: Work, V: Work, const N: usize>(
    out: Target<'_>,
    sources: [Source<'_>; N],
    kernel: Kernel<'_, W, V, N>,
) {
    let Target { bytes, dtype, add } = out;
    let len = bytes.len() / dtype.size();
    // Gathered a row at a time, a transposed operand would be read one cache line an element.
    let mut turned: [Vec<f32>; N] = std::array::from_fn(|_| Vec::new());
    for (source, turned) in sources.iter().zip(&mut turned).filter(|(s, _)| s.turned().is_some()) {
        *turned = vec![0.0; len];
        transpose(turned, source);
    }
    let sources: [Source<'_>; N] = std::array::from_fn(|k| match &turned[k][..] {
        [] => sources[k],
        turned => Source::row_major(turned),
    });
    let dense = sources.map(|s| s.dense::<W>(len));
    if dtype == V::DTYPE && !add && dense.iter().all(Option::is_some) {
        let dense = dense.map(Option::unwrap_or_default);
        return par::for_each_chunk_mut(bytemuck::cast_slice_mut::<u8, V>(bytes), CHUNK, |i, out| {
            kernel(i * CHUNK, dense.map(|d| &d[i * CHUNK..][..out.len()]), out)
        });
    }
    par::for_each_chunk_mut(bytes, CHUNK * dtype.size(), |i, out| {
        in_blocks(i * CHUNK, Target { bytes: out, dtype, add }, &sources, kernel)
    });
}

#[inline(never)]
fn in_blocks<W: Work, V: Work, const N: usize>(
    first: usize,
    out: Target<'_>,
    sources: &[Source<'_>; N],
    kernel: Kernel<'_, W, V, N>,
) {
    let mut buffers: [Buffer<W>; N] =
        std::array::from_fn(|_| Buffer { raw: [0; BLOCK], work: [W::default(); BLOCK], filled: false });
    let mut results = [V::default(); BLOCK];
    for (i, out_block) in out.bytes.chunks_mut(BLOCK * out.dtype.size()).enumerate() {
        let (at, len) = (first + i * BLOCK, out_block.len() / out.dtype.size());
        let mut sources = sources.iter().zip(&mut buffers);
        let mut load = || match sources.next() {
            Some((source, buffer)) => source.load(at, len, buffer),
            None => &[],
        };
        let blocks: [&[W]; N] = std::array::from_fn(|_| load());
        if out.dtype == V::DTYPE && !out.add {
            kernel(at, blocks, bytemuck::cast_slice_mut(out_block));
        } else {
            kernel(at, blocks, &mut results[..len]);
            store(&results[..len], out_block, out.dtype, out.add);
        }
    }
}

/// Reads `raw`, elements of `dtype`, as `W`.
fn widen<W: Element>(dtype: DType, raw: &[u8], work: &mut [W]) {
    match (dtype, W::DTYPE) {
        (from, to) if from == to => work.copy_from_slice(bytemuck::cast_slice(raw)),
        (DType::BF16, DType::F32) => widen_bf16(bytemuck::cast_slice(raw), bytemuck::cast_slice_mut(work)),
        (DType::F16, DType::F32) => {
            bytemuck::cast_slice::<u8, f16>(raw).convert_to_f32_slice(bytemuck::cast_slice_mut(work));
        }
        (DType::U8, _) => {
            let (zero, one) = (W::from_f64(0.0), W::from_f64(1.0));
            vectorize(
                #[inline(always)]
                || work.iter_mut().zip(raw).for_each(|(w, &m)| *w = if m != 0 { one } else { zero }),
            );
        }
        (from, to) => unreachable!("an elementwise kernel in {to} reads an operand of {from}"),
    }
}

fn widen_bf16(raw: &[bf16], work: &mut [f32]) {
    vectorize(
        #[inline(always)]
        || work.iter_mut().zip(raw).for_each(|(w, x)| *w = f32::from_bits(u32::from(x.to_bits()) << 16)),
    );
}

/// Rounds to nearest even, as `bf16::from_f32`, without its branch.
#[inline(always)]
fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
}

/// Writes or adds `results` to `out`, elements of `dtype`; a sum is rounded once.
fn store<V: Work>(results: &[V], out: &mut [u8], dtype: DType, add: bool) {
    let mut wide = [0f32; BLOCK];
    let wide = &mut wide[..results.len()];
    match (V::DTYPE, dtype) {
        (from, to) if from == to => {
            let out: &mut [V] = bytemuck::cast_slice_mut(out);
            if add {
                vectorize(
                    #[inline(always)]
                    || out.iter_mut().zip(results).for_each(|(o, &x)| *o = o.plus(x)),
                );
            } else {
                out.copy_from_slice(results);
            }
        }
        (DType::F32, DType::BF16 | DType::F16) => {
            let results: &[f32] = bytemuck::cast_slice(results);
            if add {
                widen(dtype, out, wide);
                vectorize(
                    #[inline(always)]
                    || wide.iter_mut().zip(results).for_each(|(w, &x)| *w += x),
                );
            } else {
                wide.copy_from_slice(results);
            }
            if dtype == DType::F16 {
                bytemuck::cast_slice_mut::<u8, f16>(out).convert_from_f32_slice(wide);
            } else {
                let out: &mut [bf16] = bytemuck::cast_slice_mut(out);
                vectorize(
                    #[inline(always)]
                    || out.iter_mut().zip(&*wide).for_each(|(o, &x)| *o = round_bf16(x)),
                );
            }
        }
        (from, to) => unreachable!("an elementwise kernel in {from} writes {to}"),
    }
}

// The inner closures below own a copy of `f`: what `f` holds would else be read again after each write of an output, which
// the compiler must assume to have changed it.

/// The kernel that calls `f` for each element, as vector code: give it a closure marked `#[inline(always)]`.
pub fn each1<W: Work, V: Work>(
    f: impl Fn(W) -> V + Sync + Copy,
) -> impl Fn(usize, [&[W]; 1], &mut [V]) + Sync {
    move |_, [a]: [&[W]; 1], out: &mut [V]| {
        vectorize(
            #[inline(always)]
            move || {
                for (out, &a) in out.iter_mut().zip(a) {
                    *out = f(a);
                }
            },
        );
    }
}

/// The kernel that calls `f` for each pair of elements, as vector code.
pub fn each2<W: Work, V: Work>(
    f: impl Fn(W, W) -> V + Sync + Copy,
) -> impl Fn(usize, [&[W]; 2], &mut [V]) + Sync {
    move |_, [a, b]: [&[W]; 2], out: &mut [V]| {
        vectorize(
            #[inline(always)]
            move || {
                for (out, (&a, &b)) in out.iter_mut().zip(a.iter().zip(b)) {
                    *out = f(a, b);
                }
            },
        );
    }
}

/// The kernel that calls `f` for each triple of elements, as vector code.
pub fn each3<W: Work, V: Work>(
    f: impl Fn(W, W, W) -> V + Sync + Copy,
) -> impl Fn(usize, [&[W]; 3], &mut [V]) + Sync {
    move |_, [a, b, c]: [&[W]; 3], out: &mut [V]| {
        vectorize(
            #[inline(always)]
            move || {
                for (out, (&a, (&b, &c))) in out.iter_mut().zip(a.iter().zip(b.iter().zip(c))) {
                    *out = f(a, b, c);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::dtype::Float;

    fn check<T: Float<Acc: Work>>(rows: usize, cols: usize) {
        let data: Vec<T> = (0..2 * rows * cols + 1).map(|i| T::from_f64((i % 97) as f64 - 40.0)).collect();
        let plain = Layout::contiguous(Shape::new(&[rows, cols]).unwrap());
        let wide = Layout::contiguous(Shape::new(&[rows, 2 * cols]).unwrap());
        let column = Layout::contiguous(Shape::new(&[rows, 1]).unwrap());
        let layouts = [
            plain,
            Layout::contiguous(Shape::new(&[cols, rows]).unwrap()).permute(&[1, 0]).unwrap(),
            wide.slice(1, 1, 2 * cols, 2).unwrap(),
            wide.slice(1, cols - 1, 2 * cols - 1, 1).unwrap(),
            column.expand(&plain.shape, "t").unwrap(),
            Layout::contiguous(Shape::new(&[cols]).unwrap()).expand(&plain.shape, "t").unwrap(),
            Layout::contiguous(Shape::new(&[]).unwrap()).expand(&plain.shape, "t").unwrap(),
            Layout { offset: 1, ..plain },
        ];
        for a in &layouts {
            for b in &layouts {
                for add in [false, true] {
                    let mut out = vec![T::from_f64(5.0); rows * cols];
                    let sources = [Source::new(&data, a), Source::new(&data, b)];
                    let target = Target::new(&mut out, add);
                    apply(target, sources, &each2(|x: T::Acc, y: T::Acc| x + y + y));
                    let before = if add { 5.0 } else { 0.0 };
                    for ((got, i), j) in out.iter().zip(a.positions()).zip(b.positions()) {
                        let want = T::from_f64(data[i].to_f64() + 2.0 * data[j].to_f64() + before);
                        assert!(*got == want, "{a:?} {b:?} add {add}: {got}, not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_layout_and_float_type_gives_the_elements_in_order() {
        for (rows, cols) in [(1, 1), (3, 7), (40, 33), (2, 700), (700, 2), (90, 800)] {
            check::<f32>(rows, cols);
            check::<bf16>(rows, cols);
            check::<f16>(rows, cols);
            check::<f64>(rows, cols);
        }
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        for i in 0..=u32::MAX / 4001 {
            let x = f32::from_bits(i * 4001);
            assert_eq!(round_bf16(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
    }
}
