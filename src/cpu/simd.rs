//! Vector code chosen at run time: feature detection, [`vectorize`] for plain loops, and the tile kernels of the matrix
//! product.
//!
//! This module is the one place under `cpu/` that contains `unsafe`. Everything public is safe to call: [`tile`] checks every
//! extent it hands to a kernel, and [`MatMut`] can only be made from, and split into, memory that nobody else can write.
//! There is one kernel body, generic over `Lanes`; the portable instance of it is the twin that the tests hold the
//! AVX2 and AVX-512 instances against, bit for bit.

mod matrix;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::dtype::{DType, Real};

pub use matrix::MatMut;

/// The instruction sets that vector code is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What the crate was compiled for; on x86-64 by default SSE2.
    Portable,
    /// AVX2, FMA and F16C: 256-bit vectors.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 512-bit vectors.
    Avx512,
}

impl Isa {
    /// The best set that this machine has; found once.
    pub fn detect() -> Isa {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| Isa::ALL.into_iter().rev().find(|isa| isa.available()).unwrap_or(Isa::Portable))
    }

    /// All sets, the narrowest first.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }

    /// The tile shape of this set for an element type.
    pub fn shape<R: Real>(self) -> TileShape {
        let (bytes, rows, vectors): (_, &[usize], _) = match self {
            Isa::Portable => (32, &[4, 2, 1], 1),
            Isa::Avx2 => (32, &[6, 4, 2, 1], 2),
            Isa::Avx512 => (64, &[8, 4, 2, 1], 3),
        };
        TileShape { lanes: bytes / size_of::<R>(), rows, vectors }
    }
}

/// How large a tile one kernel call covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileShape {
    /// Elements in one vector.
    pub lanes: usize,
    /// The row counts that there are kernels for, the largest first.
    pub rows: &'static [usize],
    /// The most vectors of a tile's row.
    pub vectors: usize,
}

impl TileShape {
    /// Columns of a full tile.
    pub fn cols(self) -> usize {
        self.lanes * self.vectors
    }

    /// The most rows that one call can take when `left` are left.
    pub fn step(self, left: usize) -> usize {
        self.rows.iter().copied().find(|&r| r <= left).unwrap_or(1)
    }
}

/// Runs `f` compiled for the widest vectors of this machine, so that the plain loops in it are vectorised at that width.
///
/// The closure and what it calls must be small enough to be inlined (`#[inline(always)]` on helpers); what is not
/// inlined runs as the baseline compiles it, correct but slower. Do not call it per element: it costs a branch and a call.
#[inline(always)]
pub fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    match Isa::detect() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: ours: `detect` saw these features on this machine.
        Isa::Avx512 => unsafe { x86::run_avx512(f) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: ours: `detect` saw these features on this machine.
        Isa::Avx2 => unsafe { x86::run_avx2(f) },
        _ => f(),
    }
}

/// One vector and what a kernel does with it.
trait Lanes {
    type E: Real;
    type V: Copy;
    const N: usize;
    /// # Safety
    /// The caller is compiled for the instruction set.
    unsafe fn splat(x: Self::E) -> Self::V;
    /// # Safety
    /// As [`Lanes::splat`], and `p` may be read for N elements.
    unsafe fn load(p: *const Self::E) -> Self::V;
    /// # Safety
    /// As [`Lanes::splat`], and `p` may be written for N elements.
    unsafe fn store(p: *mut Self::E, v: Self::V);
    /// `a · b + c`, rounded once.
    /// # Safety
    /// As [`Lanes::splat`].
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// # Safety
    /// As [`Lanes::splat`].
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Stores the first `count` ≤ N elements, or adds them to what is there.
    /// # Safety
    /// As [`Lanes::splat`], and `p` may be written for `count` elements.
    unsafe fn store_some(p: *mut Self::E, v: Self::V, count: usize, add: bool);
}

/// What one kernel call works on. `b` is a panel: k rows of whole vectors, `b_rs` apart.
#[derive(Clone, Copy)]
struct Job<E> {
    k: usize,
    a: *const E,
    a_rs: usize,
    a_cs: usize,
    b: *const E,
    b_rs: usize,
    c: *mut E,
    c_rs: usize,
    cols: usize,
    add: bool,
}

/// The kernel: `MR` rows by `NV` vectors of sums, each one chain of fused multiply-adds over k in ascending order from 0,
/// so the bits of a sum do not depend on where in a tile, or in which tile, it is computed.
///
/// # Safety
/// Of the caller, [`tile`]: it is compiled for the instruction set of `L`; `a` may be read at `i·a_rs + p·a_cs` for i < MR,
/// p < k; `b` for NV·N elements at `p·b_rs`; `c` may be written for `cols` ≤ NV·N elements at `i·c_rs`.
#[allow(clippy::needless_range_loop, reason = "iterators over the sums keep them from registers")]
#[inline(always)]
unsafe fn kernel<L: Lanes, const MR: usize, const NV: usize>(job: Job<L::E>) {
    let Job { k, a, a_rs, a_cs, b, b_rs, c, c_rs, cols, add } = job;
    // SAFETY: the caller's: compiled for the instruction set; and so for every call into `L` below.
    let mut sums = [[unsafe { L::splat(L::E::ZERO) }; NV]; MR];
    let (mut ap, mut bp) = (a, b);
    for _ in 0..k {
        // SAFETY: the caller's: row p of b may be read for NV vectors.
        let row: [L::V; NV] = std::array::from_fn(|j| unsafe { L::load(bp.add(j * L::N)) });
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's: column p of a may be read for MR rows.
            let x = unsafe { L::splat(*ap.add(i * a_rs)) };
            for j in 0..NV {
                // SAFETY: as at `sums`.
                sum[j] = unsafe { L::fma(x, row[j], sum[j]) };
            }
        }
        // Wrapping: after the last step these point past the end.
        ap = ap.wrapping_add(a_cs);
        bp = bp.wrapping_add(b_rs);
    }
    // Three loops of known lengths, so that the sums stay in registers.
    let place = |i: usize, j: usize| c.wrapping_add(i * c_rs + j * L::N);
    if cols < NV * L::N {
        for i in 0..MR {
            for j in 0..NV {
                let count = cols.saturating_sub(j * L::N).min(L::N);
                // SAFETY: the caller's: row i of c has `count` elements from column j·N on.
                unsafe { L::store_some(place(i, j), sums[i][j], count, add) };
            }
        }
    } else if add {
        for i in 0..MR {
            for j in 0..NV {
                // SAFETY: the caller's: row i of c has N elements from column j·N on.
                unsafe { L::store(place(i, j), L::add(L::load(place(i, j)), sums[i][j])) };
            }
        }
    } else {
        for i in 0..MR {
            for j in 0..NV {
                // SAFETY: the caller's: row i of c has N elements from column j·N on.
                unsafe { L::store(place(i, j), sums[i][j]) };
            }
        }
    }
}

/// [`Lanes::store_some`] without masks.
///
/// # Safety
/// Of the caller: compiled for the instruction set of `L`, and `p` may be written for `count` elements.
#[inline(always)]
unsafe fn store_one_by_one<L: Lanes>(p: *mut L::E, v: L::V, count: usize, add: bool) {
    let mut lanes = [L::E::ZERO; 16];
    // SAFETY: the caller's: the instruction set; and no vector is longer than 16 elements.
    unsafe { L::store(lanes.as_mut_ptr(), v) };
    for (i, &x) in lanes[..count].iter().enumerate() {
        // SAFETY: the caller's: i < count.
        unsafe { *p.add(i) = if add { *p.add(i) + x } else { x } };
    }
}

/// The portable vector: an array that the compiler maps to what the target has.
struct Array<E, const FUSED: bool>(PhantomData<E>);

/// Whether `mul_add` is an instruction of the target; elsewhere it is a library call that costs fifty times a product.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

macro_rules! array_lanes {
    ($($e:ty: $n:expr),*) => {$(
        impl<const FUSED: bool> Lanes for Array<$e, FUSED> {
            type E = $e;
            type V = [$e; $n];
            const N: usize = $n;
            #[inline(always)]
            unsafe fn splat(x: $e) -> Self::V {
                [x; $n]
            }
            #[inline(always)]
            unsafe fn load(p: *const $e) -> Self::V {
                // SAFETY: the caller's: N elements may be read; an array needs no more alignment than its elements.
                unsafe { *p.cast::<Self::V>() }
            }
            #[inline(always)]
            unsafe fn store(p: *mut $e, v: Self::V) {
                // SAFETY: the caller's: N elements may be written.
                unsafe { *p.cast::<Self::V>() = v }
            }
            #[inline(always)]
            unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                let one = |i: usize| if FUSED { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] };
                std::array::from_fn(one)
            }
            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            unsafe fn store_some(p: *mut $e, v: Self::V, count: usize, add: bool) {
                // SAFETY: the caller's, the same.
                unsafe { store_one_by_one::<Self>(p, v, count, add) }
            }
        }
    )*};
}
array_lanes!(f32: 8, f64: 4);

/// `dst[j · dst_stride + i] = src[i · src_stride + j]` for i < `rows`, j < `cols`.
///
/// # Panics
/// If a slice is shorter than that.
pub fn transpose<R: Real>(
    src: &[R],
    src_stride: usize,
    (rows, cols): (usize, usize),
    dst: &mut [R],
    dst_stride: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let fits = |lines: usize, stride: usize, width: usize, length: usize| {
        (lines - 1).checked_mul(stride).and_then(|o| o.checked_add(width)).is_some_and(|end| end <= length)
    };
    assert!(fits(rows, src_stride, cols, src.len()) && fits(cols, dst_stride, rows, dst.len()));
    #[allow(unused_mut, reason = "elsewhere there is only the plain loop")]
    let (mut whole_rows, mut whole_cols) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if R::DTYPE == DType::F32 && Isa::detect() != Isa::Portable {
        (whole_rows, whole_cols) = (rows / 8 * 8, cols / 8 * 8);
        let (s, d) = (src.as_ptr().cast::<f32>(), dst.as_mut_ptr().cast::<f32>());
        // SAFETY: ours: R is f32, the machine has AVX2, and the extents were checked above.
        unsafe { x86::transpose_blocks(s, src_stride, (whole_rows, whole_cols), d, dst_stride) };
    }
    for i in 0..rows {
        let from = if i < whole_rows { whole_cols } else { 0 };
        for j in from..cols {
            dst[j * dst_stride + i] = src[i * src_stride + j];
        }
    }
}

/// Calls the kernel instance for a run-time tile shape.
macro_rules! by_shape {
    ($L:ty, $rows:expr, $vectors:expr, $job:expr, $(($r:literal, $v:literal))*) => {
        match ($rows, $vectors) {
            $(($r, $v) => kernel::<$L, $r, $v>($job),)*
            (rows, vectors) => unreachable!("no kernel for {rows} rows of {vectors} vectors"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
mod x86;

/// # Safety
/// Of the caller, [`tile`]: `kernel`'s own for (rows, vectors).
unsafe fn tile_portable<L: Lanes>(rows: usize, vectors: usize, job: Job<L::E>) {
    // SAFETY: the caller's, as above.
    unsafe { by_shape!(L, rows, vectors, job, (4, 1)(2, 1)(1, 1)) }
}

/// The left factor of a tile: element (i, p) at `data[i · row_stride + p · col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, R> {
    /// The elements.
    pub data: &'a [R],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between steps of k.
    pub col_stride: usize,
}

/// The right factor of a tile: k rows of `vectors` whole vectors, row p at `data[p · row_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a, R> {
    /// The elements.
    pub data: &'a [R],
    /// Distance between steps of k.
    pub row_stride: usize,
    /// Vectors in a row.
    pub vectors: usize,
}

/// `c = a · b`, or `c += a · b` with `add`, for one tile: c has a row count that [`TileShape::step`] gives and at most
/// `b.vectors` vectors of columns.
///
/// # Panics
/// If an operand is shorter than the extents say, or no kernel has that shape.
#[inline]
pub fn tile<R: Real>(isa: Isa, k: usize, a: Rows<'_, R>, b: Panel<'_, R>, c: MatMut<'_, R>, add: bool) {
    let shape = isa.shape::<R>();
    assert!(b.vectors <= shape.vectors);
    let (rows, job) = (c.rows, job(k, a, b, c, add, b.vectors * shape.lanes));
    match R::DTYPE {
        // SAFETY: ours: R is f32, and `job` checked the extents.
        DType::F32 => unsafe { tile_f32(isa, rows, b.vectors, job.cast()) },
        // SAFETY: ours: as above; the only other `Real` is f64.
        _ => unsafe { tile_f64(isa, rows, b.vectors, job.cast()) },
    }
}

/// What `kernel` needs for c = a · b with rows of b of `width` elements, once it is known to lie within the slices.
fn job<R>(k: usize, a: Rows<'_, R>, b: Panel<'_, R>, c: MatMut<'_, R>, add: bool, width: usize) -> Job<R> {
    assert!(c.rows >= 1 && c.cols >= 1 && c.cols <= width);
    if k > 0 {
        let last = (c.rows - 1).checked_mul(a.row_stride).zip((k - 1).checked_mul(a.col_stride));
        assert!(last.and_then(|(i, p)| i.checked_add(p)).is_some_and(|o| o < a.data.len()));
        let last = (k - 1).checked_mul(b.row_stride);
        assert!(last.is_some_and(|o| o < b.data.len() && width <= b.data.len() - o));
    }
    Job {
        k,
        a: a.data.as_ptr(),
        a_rs: a.row_stride,
        a_cs: a.col_stride,
        b: b.data.as_ptr(),
        b_rs: b.row_stride,
        c: c.data,
        c_rs: c.row_stride,
        cols: c.cols,
        add,
    }
}

/// The portable twin of the kernels: one row, one vector of 32 bytes, products fused on any machine.
#[cfg(test)]
fn tile_twin<R: Real>(k: usize, a: Rows<'_, R>, b: Panel<'_, R>, c: MatMut<'_, R>, add: bool) {
    assert!(c.rows == 1 && b.vectors == 1);
    let job = job(k, a, b, c, add, 32 / size_of::<R>());
    match R::DTYPE {
        // SAFETY: ours: R is f32, and `job` checked the extents.
        DType::F32 => unsafe { tile_portable::<Array<f32, true>>(1, 1, job.cast()) },
        // SAFETY: ours: as above; the only other `Real` is f64.
        _ => unsafe { tile_portable::<Array<f64, true>>(1, 1, job.cast()) },
    }
}

impl<E> Job<E> {
    /// The same job for the type that `E` is.
    fn cast<F>(self) -> Job<F> {
        let Job { k, a, a_rs, a_cs, b, b_rs, c, c_rs, cols, add } = self;
        Job { k, a: a.cast(), a_rs, a_cs, b: b.cast(), b_rs, c: c.cast(), c_rs, cols, add }
    }
}

macro_rules! tile_of {
    ($($name:ident: $e:ty, $avx512:ident, $avx2:ident;)*) => {$(
        /// # Safety
        /// Of the caller, [`tile`]: `kernel`'s own for (rows, vectors). The instruction set is checked here.
        unsafe fn $name(isa: Isa, rows: usize, vectors: usize, job: Job<$e>) {
            debug_assert!(isa.available());
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller's for the extents; ours for the instruction set.
                Isa::Avx512 if Isa::detect() == Isa::Avx512 => unsafe {
                    x86::tile_avx512::<x86::$avx512>(rows, vectors, job)
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller's for the extents; ours for the instruction set, which AVX-512 includes.
                Isa::Avx2 if Isa::detect() != Isa::Portable => unsafe {
                    x86::tile_avx2::<x86::$avx2>(rows, vectors, job)
                },
                // SAFETY: the caller's for the extents; this one needs no instruction set.
                Isa::Portable => unsafe { tile_portable::<Array<$e, FUSED>>(rows, vectors, job) },
                other => unreachable!("{other:?} is not available on this machine"),
            }
        }
    )*};
}
tile_of! {
    tile_f32: f32, F32x16, F32x8;
    tile_f64: f64, F64x8, F64x4;
}
