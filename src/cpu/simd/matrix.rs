//! A writable matrix that can be cut into parts for several threads.

use std::any::TypeId;
use std::marker::PhantomData;

/// A writable matrix: rows of contiguous elements, a fixed distance apart. Disjoint parts can go to different threads.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    pub(super) data: *mut T,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
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
