//! Vector code chosen at run time: feature detection, [`vectorize`] for plain loops, and the tile kernels of the matrix
//! product.
//!
//! This is the one file under `cpu/` that contains `unsafe`. Everything public is safe to call: [`tile`] checks every
//! extent it hands to a kernel, and [`MatMut`] can only be made from, and split into, memory that nobody else can write.
//! There is one kernel body, generic over `Lanes`; the portable instance of it is the twin that the tests hold the
//! AVX2 and AVX-512 instances against, bit for bit.

#[cfg(test)]
mod tests;

use std::any::TypeId;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::dtype::{DType, Real};

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

/// A writable matrix: rows of contiguous elements, a fixed distance apart. Disjoint parts can go to different threads.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: *mut T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: ours: a `MatMut` is the only way to its elements while it lives, as a `&mut [T]` would be.
unsafe impl<T: Send> Send for MatMut<'_, T> {}

impl<'a, T> MatMut<'a, T> {
    /// `rows` × `cols` elements of `data`, row i starting at `i · row_stride`.
    ///
    /// # Panics
    /// If rows overlap or do not fit in `data`.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!(rows == 1 || row_stride >= cols, "rows of {cols} overlap at a stride of {row_stride}");
            let end = (rows - 1).checked_mul(row_stride).and_then(|o| o.checked_add(cols));
            assert!(end.is_some_and(|e| e <= data.len()), "a {rows}×{cols} matrix does not fit its slice");
        }
        MatMut { data: data.as_mut_ptr(), rows, cols, row_stride, life: PhantomData }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `i`.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows);
        // SAFETY: ours: i < rows, `new` checked that every row lies in the slice, and `&mut self` excludes other users.
        unsafe { std::slice::from_raw_parts_mut(self.at(i, 0), self.cols) }
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { life: PhantomData, ..*self }
    }

    /// Rows before `at`, and the rest.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows);
        let below = self.at(at, 0);
        (MatMut { rows: at, ..self }, MatMut { data: below, rows: self.rows - at, ..self })
    }

    /// Columns before `at`, and the rest.
    pub fn split_cols(self, at: usize) -> (Self, Self) {
        assert!(at <= self.cols);
        let right = self.at(0, at);
        (MatMut { cols: at, ..self }, MatMut { data: right, cols: self.cols - at, ..self })
    }

    /// The part from `row`, `col` on of `rows` × `cols` elements.
    #[inline(always)]
    pub fn part(&mut self, row: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_, T> {
        assert!(row <= self.rows && rows <= self.rows - row && col <= self.cols && cols <= self.cols - col);
        MatMut { data: self.at(row, col), rows, cols, row_stride: self.row_stride, life: PhantomData }
    }

    /// The same matrix if `T` is `U`.
    pub fn cast<U: 'static>(self) -> Result<MatMut<'a, U>, Self>
    where
        T: 'static,
    {
        if TypeId::of::<T>() != TypeId::of::<U>() {
            return Err(self);
        }
        let MatMut { data, rows, cols, row_stride, .. } = self;
        Ok(MatMut { data: data.cast(), rows, cols, row_stride, life: PhantomData })
    }

    /// Address arithmetic only; wrapping, because the end of an empty part may lie outside the slice.
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> *mut T {
        self.data.wrapping_add(i * self.row_stride + j)
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
mod x86 {
    use super::{Job, Lanes, kernel, store_one_by_one};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn run_avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn run_avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    /// Transposes whole blocks of 8 × 8; (rows, cols) are multiples of 8.
    ///
    /// # Safety
    /// Of the caller, [`super::transpose`]: the machine has AVX2; `src` may be read for `cols` elements at `i·src_stride`,
    /// i < rows, and `dst` written for `rows` elements at `j·dst_stride`, j < cols.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose_blocks(
        src: *const f32,
        src_stride: usize,
        (rows, cols): (usize, usize),
        dst: *mut f32,
        dst_stride: usize,
    ) {
        for i in (0..rows).step_by(8) {
            for j in (0..cols).step_by(8) {
                // SAFETY: the caller's: rows i..i+8 of src have 8 elements from j on, rows j..j+8 of dst from i on.
                unsafe {
                    block8(src.add(i * src_stride + j), src_stride, dst.add(j * dst_stride + i), dst_stride)
                };
            }
        }
    }

    /// # Safety
    /// Of the caller, [`transpose_blocks`]: 8 rows of 8 elements on both sides.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn block8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        // Each register takes four elements of row r in its low half and of row r + 4 in its high half: the loads do half of
        // the transposition, and what is left stays within halves.
        let pair = |r: usize, c: usize| {
            let (low, high) =
                (src.wrapping_add(r * src_stride + c), src.wrapping_add((r + 4) * src_stride + c));
            // SAFETY: the caller's: r + 4 < 8 and c + 4 <= 8.
            unsafe {
                _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high))
            }
        };
        for half in 0..2 {
            let (r0, r1, r2, r3) =
                (pair(0, 4 * half), pair(1, 4 * half), pair(2, 4 * half), pair(3, 4 * half));
            let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            let columns = [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xee>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xee>(b, d),
            ];
            for (j, column) in columns.into_iter().enumerate() {
                // SAFETY: the caller's: 4·half + j < 8.
                unsafe { _mm256_storeu_ps(dst.add((4 * half + j) * dst_stride), column) };
            }
        }
    }

    macro_rules! x86_lanes {
        ($($name:ident: $e:ty, $v:ty, $n:expr, $splat:ident $load:ident $store:ident $fma:ident $add:ident $some:ident;)*) => {$(
            pub(super) struct $name;
            impl Lanes for $name {
                type E = $e;
                type V = $v;
                const N: usize = $n;
                #[inline(always)]
                unsafe fn splat(x: $e) -> $v {
                    // SAFETY: the caller's: compiled for the instruction set.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                unsafe fn load(p: *const $e) -> $v {
                    // SAFETY: the caller's: the instruction set, and N elements may be read, at any alignment.
                    unsafe { $load(p) }
                }
                #[inline(always)]
                unsafe fn store(p: *mut $e, v: $v) {
                    // SAFETY: the caller's: the instruction set, and N elements may be written, at any alignment.
                    unsafe { $store(p, v) }
                }
                #[inline(always)]
                unsafe fn fma(a: $v, b: $v, c: $v) -> $v {
                    // SAFETY: the caller's: compiled for the instruction set.
                    unsafe { $fma(a, b, c) }
                }
                #[inline(always)]
                unsafe fn add(a: $v, b: $v) -> $v {
                    // SAFETY: the caller's: compiled for the instruction set.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                unsafe fn store_some(p: *mut $e, v: $v, count: usize, add: bool) {
                    // SAFETY: the caller's: the instruction set, and `count` elements may be written.
                    unsafe { $some(p, v, count, add) }
                }
            }
        )*};
    }
    macro_rules! masked {
        ($($name:ident: $e:ty, $v:ty, $mask:ty, $load:ident $store:ident $add:ident;)*) => {$(
            /// # Safety
            /// Of the caller: the machine has AVX-512, and `p` may be written for `count` elements.
            #[inline]
            #[target_feature(enable = "avx512f")]
            unsafe fn $name(p: *mut $e, v: $v, count: usize, add: bool) {
                let mask = ((1u32 << count) - 1) as $mask;
                // SAFETY: the caller's: what the mask leaves out is neither read nor written.
                let sum = if add { $add(unsafe { $load(mask, p) }, v) } else { v };
                // SAFETY: the caller's: as above.
                unsafe { $store(p, mask, sum) };
            }
        )*};
    }
    masked! {
        some_f32x16: f32, __m512, __mmask16, _mm512_maskz_loadu_ps _mm512_mask_storeu_ps _mm512_add_ps;
        some_f64x8: f64, __m512d, __mmask8, _mm512_maskz_loadu_pd _mm512_mask_storeu_pd _mm512_add_pd;
    }

    macro_rules! unmasked {
        ($($name:ident: $e:ty, $v:ty, $lanes:ident;)*) => {$(
            /// # Safety
            /// Of the caller: the machine has AVX2, and `p` may be written for `count` elements.
            // Not inlined: it would force the sums of the kernel out of their registers.
            #[inline(never)]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn $name(p: *mut $e, v: $v, count: usize, add: bool) {
                // SAFETY: the caller's, the same.
                unsafe { store_one_by_one::<$lanes>(p, v, count, add) }
            }
        )*};
    }
    unmasked! {
        some_f32x8: f32, __m256, F32x8;
        some_f64x4: f64, __m256d, F64x4;
    }

    x86_lanes! {
        F32x16: f32, __m512, 16, _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_fmadd_ps _mm512_add_ps some_f32x16;
        F64x8: f64, __m512d, 8, _mm512_set1_pd _mm512_loadu_pd _mm512_storeu_pd _mm512_fmadd_pd _mm512_add_pd some_f64x8;
        F32x8: f32, __m256, 8, _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_fmadd_ps _mm256_add_ps some_f32x8;
        F64x4: f64, __m256d, 4, _mm256_set1_pd _mm256_loadu_pd _mm256_storeu_pd _mm256_fmadd_pd _mm256_add_pd some_f64x4;
    }

    /// # Safety
    /// Of the caller, [`super::tile`]: the machine has AVX-512, and `kernel`'s own for (rows, vectors).
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn tile_avx512<L: Lanes>(rows: usize, vectors: usize, job: Job<L::E>) {
        // SAFETY: the caller's, as above.
        unsafe {
            by_shape!(
                L,
                rows,
                vectors,
                job,
                (8, 3)(8, 2)(8, 1)(4, 3)(4, 2)(4, 1)(2, 3)(2, 2)(2, 1)(1, 3)(1, 2)(1, 1)
            )
        }
    }

    /// # Safety
    /// Of the caller, [`super::tile`]: the machine has AVX2 and FMA, and `kernel`'s own for (rows, vectors).
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn tile_avx2<L: Lanes>(rows: usize, vectors: usize, job: Job<L::E>) {
        // SAFETY: the caller's, as above.
        unsafe { by_shape!(L, rows, vectors, job, (6, 2)(6, 1)(4, 2)(4, 1)(2, 2)(2, 1)(1, 2)(1, 1)) }
    }
}

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
