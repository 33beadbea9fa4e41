//! Moving elements between layouts and types.

#![forbid(unsafe_code)]

use super::elementwise::{Source, Target, apply, convert as convert_all, each1, transpose};
use super::par;
use super::simd::vectorize;
use super::strided::Runs;
use crate::dtype::{DType, Element};
use crate::shape::Layout;

/// Moves the elements that `src_layout` names in `src` to the places that `dst_layout` names in `dst`, converting (see
/// `ops::Cast`) and, if `add`, adding to what is there. The shapes must be equal. Elements go in row-major order, so that
/// a `dst_layout` that names a place twice is well defined.
pub fn move_elements<S: Element, T: Element>(
    src: &[S],
    src_layout: &Layout,
    dst: &mut [T],
    dst_layout: &Layout,
    add: bool,
) {
    if S::DTYPE == T::DTYPE && !add && src_layout.is_contiguous() && dst_layout.is_contiguous() {
        let n = src_layout.numel();
        let bytes: &[u8] = bytemuck::cast_slice(&src[src_layout.offset..src_layout.offset + n]);
        let to = &mut dst[dst_layout.offset..dst_layout.offset + n];
        let to = bytemuck::cast_slice_mut::<T, u8>(to);
        return par::for_each_chunk_mut(to, PIECE, |i, to| {
            to.copy_from_slice(&bytes[i * PIECE..][..to.len()])
        });
    }
    if dst_layout.is_contiguous() && (!add || S::DTYPE == T::DTYPE && S::DTYPE.is_float()) {
        let to = &mut dst[dst_layout.offset..dst_layout.offset + dst_layout.numel()];
        return in_order::<S, T>(Source::new(src, src_layout), to, add);
    }
    let runs = Runs::new([src_layout, dst_layout]);
    if add {
        each(&runs, src, dst, |s, d| *d = sum(convert::<S, T>(s), *d));
    } else {
        each(&runs, src, dst, |s, d| *d = convert::<S, T>(s));
    }
}

/// Bytes that a thread copies at a time.
const PIECE: usize = 1 << 18;

/// Moves elements of any layout to a row-major target. If `add`, both types are one float type.
fn in_order<S: Element, T: Element>(source: Source<'_>, to: &mut [T], add: bool) {
    let narrow = |d: DType| matches!(d, DType::F32 | DType::BF16 | DType::F16);
    match (S::DTYPE, T::DTYPE) {
        (DType::F32, DType::F32) if !add && transpose(bytemuck::cast_slice_mut(to), &source) => {}
        (a, b) if a == b && !add => convert_all(to, source, |from: &[S], to: &mut [T]| {
            bytemuck::cast_slice_mut::<T, u8>(to).copy_from_slice(bytemuck::cast_slice(from));
        }),
        // f32 holds the 16-bit types and the exact sum of two of them as far as rounding can tell.
        (a, b) if narrow(a) && narrow(b) => apply(Target::new(to, add), [source], &each1(|x: f32| x)),
        (DType::F64, DType::F64) => apply(Target::new(to, add), [source], &each1(|x: f64| x)),
        _ => convert_all(to, source, |from: &[S], to: &mut [T]| {
            vectorize(
                #[inline(always)]
                || {
                    for (to, &from) in to.iter_mut().zip(from) {
                        *to = convert(from);
                    }
                },
            )
        }),
    }
}

fn each<S: Element, T>(runs: &Runs<2>, src: &[S], dst: &mut [T], f: impl Fn(S, &mut T)) {
    let ([ss, ds], len) = (runs.strides, runs.len);
    runs.visit(0..runs.count, |_, [s, d]| (0..len).for_each(|i| f(src[s + i * ss], &mut dst[d + i * ds])));
}

/// Exact for equal types (an `i64` beyond 2⁵³ included).
#[inline(always)]
fn convert<S: Element, T: Element>(v: S) -> T {
    if S::DTYPE == T::DTYPE { bytemuck::cast(v) } else { T::from_f64(v.to_f64()) }
}

/// The sum, rounded once to `T`: f64 holds the exact sum of two 16-bit floats and rounds that of two f32 harmlessly.
#[inline(always)]
fn sum<T: Element>(a: T, b: T) -> T {
    T::from_f64(a.to_f64() + b.to_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::dtype::{bf16, f16};

    /// Compares a move to a row-major target with the plain walk over positions.
    fn check<S: Element, T: Element>(layout: &Layout, add: bool) {
        let src: Vec<S> =
            (0..layout.span().end).map(|i| S::from_f64((i % 251) as f64 * 0.37 - 9.0)).collect();
        let mut dst = vec![T::from_f64(3.0); layout.numel()];
        move_elements(&src, layout, &mut dst, &Layout::contiguous(layout.shape), add);
        for (at, (got, i)) in dst.iter().zip(layout.positions()).enumerate() {
            let value = T::from_f64(src[i].to_f64());
            let want = if add { T::from_f64(value.to_f64() + 3.0) } else { value };
            assert!(*got == want, "{} to {}, {at}: {got}, not {want}", S::DTYPE, T::DTYPE);
        }
    }

    #[test]
    fn any_layout_and_pair_of_types_moves_to_row_major_order() {
        let of = |dims: &[usize]| Layout::contiguous(Shape::new(dims).unwrap());
        let layouts = [
            of(&[41, 33]).permute(&[1, 0]).unwrap(),
            of(&[3, 70, 37]).permute(&[0, 2, 1]).unwrap(),
            of(&[300, 260]).permute(&[1, 0]).unwrap().slice(0, 1, 250, 1).unwrap(),
            of(&[4, 9, 11]).permute(&[2, 1, 0]).unwrap(),
            of(&[70, 30]).slice(1, 1, 30, 3).unwrap(),
            of(&[12]).expand(&Shape::new(&[9, 12]).unwrap(), "t").unwrap(),
            of(&[9, 0]).permute(&[1, 0]).unwrap(),
            Layout { offset: 2, ..of(&[90_000]) },
        ];
        for layout in &layouts {
            check::<f32, f32>(layout, false);
            check::<f32, f32>(layout, true);
            check::<f64, f64>(layout, true);
            check::<bf16, bf16>(layout, true);
            check::<f32, bf16>(layout, false);
            check::<f16, f32>(layout, false);
            check::<f32, f64>(layout, false);
            check::<f64, bf16>(layout, false);
            check::<f32, i64>(layout, false);
            check::<i64, i64>(layout, false);
            check::<u8, u8>(layout, false);
            check::<u8, f32>(layout, false);
            check::<i32, u8>(layout, true);
        }
    }
}
