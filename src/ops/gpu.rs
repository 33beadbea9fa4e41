//! What the GPU bodies of elementwise ops share.

#![forbid(unsafe_code)]

use crate::Result;
use crate::device::elementwise::{Piece, each};
use crate::device::launch::Src;
use crate::device::stream::{Packed, Stream};
use crate::shape::Layout;
use crate::tensor::{Mode, Out, View};

/// The `add` of a kernel: whether the output is added to.
pub(super) fn adds(out: &Out<'_>) -> u32 {
    (out.mode() == Mode::Accumulate).into()
}

/// An operand in row-major order, if there is one.
pub(super) fn packed<'a>(stream: &'a Stream, view: Option<&View<'a>>) -> Result<Option<Packed<'a>>> {
    view.map(|v| stream.contiguous(v)).transpose()
}

/// The memory of [`packed`].
pub(super) fn src<'a>(packed: &'a Option<Packed<'_>>) -> Option<Src<'a>> {
    packed.as_ref().map(Packed::src)
}

/// Sizes along height and width, which `infer` found to be below 2³¹.
pub(super) fn pair(numbers: [usize; 2]) -> [u32; 2] {
    numbers.map(|n| n as u32)
}

/// Calls `launch` for each piece of an elementwise op that reads `views`, all of which expand to the output's shape. The
/// first of them decides how many elements a vector has.
pub(super) fn elementwise(
    out: &mut Out<'_>,
    views: [Option<&View<'_>>; 3],
    launch: &mut dyn FnMut(Piece<'_>) -> Result<()>,
) -> Result<()> {
    let shape = out.shape();
    let mut operands: [Option<(Src<'_>, Layout)>; 3] = [None; 3];
    for (operand, view) in operands.iter_mut().zip(views) {
        if let Some(view) = view {
            let view = view.expand(&shape)?;
            *operand = Some((view.src(), *view.layout()));
        }
    }
    let steps = Layout::contiguous(shape).strides;
    let sources: [_; 3] = std::array::from_fn(|k| operands[k].as_ref().map(|o| (o.0, &o.1.strides[..])));
    let size = out.dtype().size().max(views[0].map_or(1, |v| v.dtype().size()));
    each(&shape, sources, (out.dst(), &steps), (16 / size) as u64, launch)
}

/// An operand that the kernel declares as present.
pub(super) fn present<'a>(piece: &Piece<'a>, k: usize) -> Result<Src<'a>> {
    piece.src[k].ok_or_else(|| crate::Error::internal("an elementwise kernel lacks an operand"))
}
