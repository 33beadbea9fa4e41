//! The vectors of AVX2 and AVX-512, the kernels compiled for them, and the transposition in registers.

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
        let (low, high) = (src.wrapping_add(r * src_stride + c), src.wrapping_add((r + 4) * src_stride + c));
        // SAFETY: the caller's: r + 4 < 8 and c + 4 <= 8.
        unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high)) }
    };
    for half in 0..2 {
        let (r0, r1, r2, r3) = (pair(0, 4 * half), pair(1, 4 * half), pair(2, 4 * half), pair(3, 4 * half));
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
