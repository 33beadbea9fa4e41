//! What a launch is given: typed device pointers that cannot outlive their memory, and shapes by value.

use std::marker::PhantomData;

use super::driver::Range;
use crate::shape::MAX_RANK;
use crate::{DType, Error, Result};

/// Device memory to read: `len` elements of one type. Made from a view or a temporary.
#[derive(Clone, Copy, Debug)]
pub struct Src<'a> {
    address: u64,
    len: u64,
    dtype: DType,
    memory: PhantomData<&'a ()>,
}

impl Src<'_> {
    /// `len` elements at `address`, borrowed for as long as the caller says.
    pub(crate) fn new(address: u64, len: u64, dtype: DType) -> Self {
        Src { address, len, dtype, memory: PhantomData }
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.len * self.dtype.size() as u64
    }

    /// The elements from number `first` on, `len` of them; both are within the buffer.
    pub fn part(self, first: u64, len: u64) -> Self {
        assert!(first + len <= self.len, "a part of {first} + {len} elements of {}", self.len);
        Src { address: self.address + first * self.dtype.size() as u64, len, ..self }
    }

    /// The same memory as elements of another type, as many as it holds whole.
    pub fn cast(self, dtype: DType) -> Self {
        Src { len: self.bytes() / dtype.size() as u64, dtype, ..self }
    }

    pub(crate) fn range(&self, writable: bool) -> Range {
        Range { address: self.address, bytes: self.bytes(), writable: writable.into(), reserved: 0 }
    }
}

/// Device memory to write (or to change in place): `len` elements of one type.
#[derive(Debug)]
pub struct Dst<'a>(Src<'a>);

impl<'a> Dst<'a> {
    /// As [`Src::new`], for memory that nobody else reads or writes meanwhile.
    pub(crate) fn new(address: u64, len: u64, dtype: DType) -> Self {
        Dst(Src::new(address, len, dtype))
    }

    /// Another handle on the same memory, for one launch after another.
    pub fn again(&mut self) -> Dst<'_> {
        Dst(Src { memory: PhantomData, ..self.0 })
    }

    /// The elements from number `first` on, `len` of them; both are within the buffer.
    pub fn part(self, first: u64, len: u64) -> Self {
        Dst(self.0.part(first, len))
    }

    /// The same memory as elements of another type, as many as it holds whole.
    pub fn cast(self, dtype: DType) -> Self {
        Dst(self.0.cast(dtype))
    }

    /// The memory as an input of a later launch.
    pub fn as_src(&self) -> Src<'_> {
        self.0
    }
}

impl<'a> std::ops::Deref for Dst<'a> {
    type Target = Src<'a>;
    fn deref(&self) -> &Src<'a> {
        &self.0
    }
}

/// Sizes of dimensions, outermost first, as kernels get them: `Dims` in `kernels/core/platform.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Dims {
    /// The number of dimensions.
    pub rank: u32,
    /// Padding, 0.
    pub reserved: u32,
    /// The sizes; 1 beyond the rank.
    pub size: [u64; MAX_RANK],
}

impl Dims {
    /// These sizes, at most [`MAX_RANK`].
    pub fn of(sizes: &[usize]) -> Dims {
        let mut size = [1; MAX_RANK];
        for (to, &from) in size.iter_mut().zip(sizes) {
            *to = from as u64;
        }
        Dims { rank: sizes.len() as u32, reserved: 0, size }
    }

    /// The product of the sizes.
    pub fn numel(&self) -> u64 {
        self.size.iter().product()
    }
}

/// Steps in elements from one index of each dimension to the next, outermost first: `Strides` in
/// `kernels/core/platform.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Strides {
    /// The steps; 0 beyond the rank.
    pub by: [i64; MAX_RANK],
}

impl Strides {
    /// These steps, at most [`MAX_RANK`].
    pub fn of(steps: &[usize]) -> Strides {
        let mut by = [0; MAX_RANK];
        for (to, &from) in by.iter_mut().zip(steps) {
            *to = from as i64;
        }
        Strides { by }
    }
}

/// Collapses dimensions that all operands walk through alike: drops those of size 1 and joins neighbours. Returns the
/// sizes and, an operand each, the steps; a shape of one element becomes no dimensions at all.
pub fn merge<const N: usize>(sizes: &[usize], steps: [&[usize]; N]) -> (Dims, [Strides; N]) {
    let mut kept: Vec<(usize, [usize; N])> = Vec::with_capacity(MAX_RANK);
    for (d, &size) in sizes.iter().enumerate().filter(|(_, size)| **size != 1) {
        let by = steps.map(|s| s[d]);
        match kept.last_mut() {
            Some((outer, outer_by)) if (0..N).all(|k| outer_by[k] == by[k] * size) => {
                *outer *= size;
                *outer_by = by;
            }
            _ => kept.push((size, by)),
        }
    }
    let sizes: Vec<usize> = kept.iter().map(|k| k.0).collect();
    let strides = std::array::from_fn(|n| {
        let by: Vec<usize> = kept.iter().map(|k| k.1[n]).collect();
        Strides::of(&by)
    });
    (Dims::of(&sizes), strides)
}

/// Whether steps are those of a contiguous array of these sizes.
pub fn is_row_major(dims: &Dims, strides: &Strides) -> bool {
    let mut expected = 1;
    for d in (0..dims.rank as usize).rev() {
        if dims.size[d] != 1 && strides.by[d] != expected {
            return false;
        }
        expected *= dims.size[d] as i64;
    }
    true
}

/// A number that a kernel takes as u32. Errors above 2³¹ − 1, so that steps past its end do not wrap.
pub fn narrow(what: &str, value: usize) -> Result<u32> {
    let number = u32::try_from(value).ok().filter(|n| *n <= i32::MAX as u32);
    number.ok_or_else(|| Error::unsupported("launch", format!("{what} of {value} does not fit 31 bits")))
}

/// Rows of a contiguous matrix, for kernels that give a warp or a block to each (`kernels/core/rows.cuh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many.
    pub rows: u64,
    /// Elements of each.
    pub n: u32,
    /// 1 if every row of every operand can be moved in pieces of 16 bytes.
    pub vector: u32,
}

impl Rows {
    /// `rows` rows of `n` elements of `dtype`, in operands at `addresses` (0: absent).
    pub fn new(rows: usize, n: u32, addresses: &[u64], dtype: DType) -> Rows {
        let aligned = addresses.iter().all(|a| a % 16 == 0);
        let vector = aligned && (n as usize * dtype.size()).is_multiple_of(16);
        Rows { rows: rows as u64, n, vector: vector.into() }
    }

    /// The smallest of `choices` (ascending) so that a warp's 32 lanes hold a row in so many pieces of 16 bytes each;
    /// `None` if the row is too long.
    pub fn per_lane(n: u32, dtype: DType, choices: &[u32]) -> Option<u32> {
        let piece = 16 / dtype.size() as u32;
        choices.iter().copied().find(|per| n <= 32 * per * piece)
    }

    /// 1 if a block keeps a row of `n` numbers as f32 in 32 KiB of shared memory.
    pub fn cached(n: u32) -> u32 {
        u32::from(n <= 8192)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_that_all_operands_share_are_merged() {
        let (dims, [a, b]) = merge(&[2, 3, 1, 4], [&[12, 4, 4, 1], &[12, 4, 4, 1]]);
        assert_eq!((dims, a), (Dims::of(&[24]), Strides::of(&[1])));
        assert_eq!(a, b);
        // A broadcast operand keeps them apart where it differs.
        let (dims, [a, b]) = merge(&[2, 3, 4], [&[12, 4, 1], &[0, 4, 1]]);
        assert_eq!((dims, a, b), (Dims::of(&[2, 12]), Strides::of(&[12, 1]), Strides::of(&[0, 1])));
        assert_eq!(merge(&[1, 1], [&[7, 7]]), (Dims::of(&[]), [Strides::of(&[])]));
        assert!(is_row_major(&Dims::of(&[24]), &Strides::of(&[1])));
        assert!(!is_row_major(&Dims::of(&[2, 12]), &Strides::of(&[0, 1])));
    }

    #[test]
    fn rows_are_moved_whole_where_all_operands_allow_it() {
        assert_eq!(Rows::new(3, 8, &[512, 0], DType::BF16).vector, 1);
        assert_eq!(Rows::new(3, 8, &[512, 1032], DType::BF16).vector, 0);
        assert_eq!(Rows::new(3, 7, &[512], DType::BF16).vector, 0);
        assert_eq!(Rows::per_lane(128, DType::F32, &[1, 2]), Some(1));
        assert_eq!(Rows::per_lane(129, DType::F32, &[1, 2]), Some(2));
        assert_eq!(Rows::per_lane(257, DType::F32, &[1, 2]), None);
    }

    #[test]
    fn the_layout_is_that_of_the_kernels() {
        assert_eq!((size_of::<Dims>(), size_of::<Strides>()), (72, 64));
        assert_eq!(std::mem::offset_of!(Dims, size), 8);
    }
}
