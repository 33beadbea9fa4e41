//! Copies within a device's memory: any layout to any layout, with a cast, overwriting or adding.

use super::launch::{Dst, Src};
use super::stream::Stream;
use crate::shape::Layout;
use crate::{Error, Result};

/// Copies the elements that `src_layout` names to where `dst_layout` names them (same shape), cast to `dst`'s type; adds
/// to what is there if `add`.
pub(crate) fn strided(
    stream: &Stream,
    src: Src<'_>,
    src_layout: &Layout,
    dst: Dst<'_>,
    dst_layout: &Layout,
    add: bool,
) -> Result<()> {
    if src.dtype() == dst.dtype() && src_layout.is_contiguous() && dst_layout.is_contiguous() && !add {
        return stream.copy(dst.address(), src.address(), dst.bytes() as usize);
    }
    Err(Error::unsupported("copy", "a strided copy on a GPU"))
}
