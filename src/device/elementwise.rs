//! How elementwise kernels are launched: dimensions that all operands share are merged, vectors of 16 bytes are used where
//! every operand allows them, and what has too many elements for 32-bit positions is cut into several launches.

use super::launch::{Dims, Dst, Src, Strides, merge};
use crate::Result;

/// Elements of a launch whose kernel divides in 32 bits.
const MOST: u64 = u32::MAX as u64;

/// One launch: what kernels that call `for_each` (`kernels/core/each.cuh`) take.
pub(crate) struct Piece<'a> {
    /// The merged sizes.
    pub dims: Dims,
    /// The steps of the operands and of the result. Those of an absent operand are of no use.
    pub by: [Strides; 4],
    /// The number of elements.
    pub n: u64,
    /// 1 if the kernel may load vectors of 16 bytes.
    pub wide: u32,
    /// The operands.
    pub src: [Option<Src<'a>>; 3],
    /// The result.
    pub dst: Dst<'a>,
}

/// Device memory and the step of each dimension; the shape stands elsewhere.
pub(crate) type Strided<'a> = (Src<'a>, &'a [usize]);

/// Calls `launch` for each piece of an elementwise operation over `sizes`. Vectors have `vector` elements.
pub(crate) fn each(
    sizes: &[usize],
    operands: [Option<Strided<'_>>; 3],
    (dst, dst_by): (Dst<'_>, &[usize]),
    vector: u64,
    launch: &mut dyn FnMut(Piece<'_>) -> Result<()>,
) -> Result<()> {
    let steps = operands.map(|o| o.map_or(dst_by, |o| o.1));
    let (dims, by) = merge(sizes, [steps[0], steps[1], steps[2], dst_by]);
    let piece = Piece { dims, by, n: dims.numel(), wide: 0, src: operands.map(|o| o.map(|o| o.0)), dst };
    cut(piece, MOST, vector, launch)
}

/// Launches `piece`, in parts of at most `most` elements if it has several dimensions.
fn cut(
    mut piece: Piece<'_>,
    most: u64,
    vector: u64,
    launch: &mut dyn FnMut(Piece<'_>) -> Result<()>,
) -> Result<()> {
    let Piece { dims, by, n, .. } = piece;
    if dims.rank <= 1 || n <= most {
        piece.wide = wide(&piece, vector).into();
        return launch(piece);
    }
    let (outer, inner) = (dims.size[0], n / dims.size[0]);
    let rows = (most / inner).max(1);
    for first in (0..outer).step_by(rows as usize) {
        let taken = rows.min(outer - first);
        let from = |k: usize| first * by[k].by[0] as u64;
        let mut part = Piece {
            dims,
            by,
            n: taken * inner,
            wide: 0,
            src: std::array::from_fn(|k| piece.src[k].map(|s| s.part(from(k), s.len() - from(k)))),
            dst: {
                let len = piece.dst.len() - from(3);
                piece.dst.again().part(from(3), len)
            },
        };
        part.dims.size[0] = taken;
        if taken == 1 {
            drop_outermost(&mut part);
        }
        cut(part, most, vector, launch)?;
    }
    Ok(())
}

fn drop_outermost(piece: &mut Piece<'_>) {
    let Dims { rank, size, .. } = &mut piece.dims;
    *rank -= 1;
    size.rotate_left(1);
    size[*rank as usize..].fill(1);
    for Strides { by } in &mut piece.by {
        by.rotate_left(1);
        by[*rank as usize..].fill(0);
    }
}

/// Whether every operand can be read, and the result written, in whole vectors: the innermost dimension is contiguous (or
/// an operand's one element again), and each row starts on a vector.
fn wide(piece: &Piece<'_>, vector: u64) -> bool {
    let Piece { dims, by, src, dst, .. } = piece;
    let rank = dims.rank as usize;
    let rows = &by.map(|s| s.by[..rank.saturating_sub(1)].iter().all(|s| (*s as u64).is_multiple_of(vector)));
    let inner = by.map(|s| if rank == 0 { 1 } else { s.by[rank - 1] });
    let aligned = |s: &Src<'_>| s.address().is_multiple_of(vector * s.dtype().size() as u64);
    let fits = |k: usize, s: &Src<'_>| inner[k] == 1 && rows[k] && aligned(s);
    (rank <= 1 || dims.size[rank - 1] % vector == 0)
        && (0..3).all(|k| src[k].is_none_or(|s| inner[k] == 0 || fits(k, &s)))
        && fits(3, dst)
}

/// A kernel's `dst` where no more than its own number of elements may be passed.
impl<'a> Piece<'a> {
    /// The result of a kernel that wants exactly `n` elements.
    pub(crate) fn y(self) -> Dst<'a> {
        let n = self.n;
        self.dst.part(0, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    /// The element numbers of memory that a piece touches, operand and result side by side, in order.
    fn walked(piece: &Piece<'_>, base: [u64; 2]) -> Vec<[u64; 2]> {
        let rank = piece.dims.rank as usize;
        let at = |mut i: u64, by: &Strides, start: u64| {
            let mut place = start;
            for d in (0..rank).rev() {
                place += i % piece.dims.size[d] * by.by[d] as u64;
                i /= piece.dims.size[d];
            }
            place
        };
        let starts = [(piece.src[0].unwrap().address() - base[0]) / 4, (piece.dst.address() - base[1]) / 4];
        (0..piece.n).map(|i| [at(i, &piece.by[0], starts[0]), at(i, &piece.by[3], starts[1])]).collect()
    }

    #[test]
    fn pieces_together_are_the_whole_and_none_is_too_large() {
        let sizes = [5, 4, 3, 7];
        let (turned, plain) = ([3, 105, 15, 420], [84, 21, 7, 1]);
        let all = |most: u64| {
            let mut found = Vec::new();
            let src = Src::new(1 << 20, 3000, DType::F32);
            let dst = Dst::new(1 << 30, 420, DType::F32);
            let (dims, by) = merge(&sizes, [&turned, &plain, &plain, &plain]);
            let piece = Piece { dims, by, n: 420, wide: 0, src: [Some(src), None, None], dst };
            cut(piece, most, 4, &mut |p| {
                assert!(p.n <= most.max(7), "{} elements in a piece of at most {most}", p.n);
                found.extend(walked(&p, [1 << 20, 1 << 30]));
                Ok(())
            })
            .unwrap();
            found
        };
        let whole = all(u64::MAX);
        assert_eq!(whole.len(), 420);
        assert!(whole.iter().enumerate().all(|(i, [_, y])| *y == i as u64));
        for most in [1, 7, 20, 21, 50, 84, 100, 300, 419] {
            assert_eq!(all(most), whole, "{most}");
        }
    }

    #[test]
    fn vectors_are_used_only_where_every_row_starts_on_one() {
        let of = |sizes: &[usize], by: &[usize], address: u64| {
            let dst_by: Vec<usize> =
                (0..sizes.len()).map(|d| sizes[d + 1..].iter().product::<usize>()).collect();
            let operand = Some((Src::new(address, 1 << 20, DType::F32), by));
            let mut found = 0;
            let dst = (Dst::new(1 << 30, 1 << 20, DType::F32), &dst_by[..]);
            each(sizes, [operand, None, None], dst, 4, &mut |p| {
                found = p.wide;
                Ok(())
            })
            .unwrap();
            found == 1
        };
        assert!(of(&[1001], &[1], 256) && of(&[], &[], 256) && of(&[8, 12], &[0, 1], 256));
        assert!(of(&[8, 12], &[1, 0], 256) && of(&[8, 12], &[16, 1], 256) && of(&[8, 12], &[0, 0], 260));
        assert!(!of(&[1001], &[1], 260) && !of(&[1001], &[2], 256) && !of(&[8, 13], &[0, 1], 256));
        assert!(!of(&[8, 12], &[13, 1], 256) && !of(&[8, 12], &[1, 8], 256));
    }
}
