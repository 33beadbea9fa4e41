//! Moving elements between layouts and types.

#![forbid(unsafe_code)]

use super::strided::Runs;
use crate::dtype::Element;
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
        bytemuck::cast_slice_mut::<T, u8>(to).copy_from_slice(bytes);
        return;
    }
    let runs = Runs::new([src_layout, dst_layout]);
    if add {
        each(&runs, src, dst, |s, d| *d = sum(convert::<S, T>(s), *d));
    } else {
        each(&runs, src, dst, |s, d| *d = convert::<S, T>(s));
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
