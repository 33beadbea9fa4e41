//! Moving values between tensors' memory, below the tape: what autograd, the arena and `copy_` are made of.

#![forbid(unsafe_code)]

use super::{Tensor, View};
use crate::cpu::copy::move_elements;
use crate::shape::Layout;
use crate::{Device, Error, Result, dispatch};

#[track_caller]
fn write_strided(dst: &Tensor, src: &Tensor, add: bool) -> Result<()> {
    let name = if add { "accumulate" } else { "copy_into" };
    if dst.shape() != src.shape() {
        return Err(Error::shape(name, format!("{} into {}", src.shape(), dst.shape())));
    }
    if dst.numel() == 0 {
        return Ok(());
    }
    let source = src.read().map_err(|e| e.with_op(name))?;
    let mut target = dst.write(name)?;
    let layout = Layout { offset: 0, ..*dst.layout() };
    let view = View::new(src, &source);
    match dst.device() {
        Device::Cpu => dispatch!(src.dtype(), S => dispatch!(dst.dtype(), T => {
            move_elements(
                view.data::<S>(),
                view.layout(),
                bytemuck::cast_slice_mut::<u8, T>(target.bytes()),
                &layout,
                add,
            )
        })),
    }
    Ok(())
}

/// Adds `src` to `dst` in place; `dst` may have any layout that names no element twice. Casts to `dst`'s dtype.
#[track_caller]
pub(crate) fn accumulate(dst: &Tensor, src: &Tensor) -> Result<()> {
    write_strided(dst, src, true)
}

/// Overwrites `dst` by `src`; `dst` may have any layout that names no element twice. Casts to `dst`'s dtype.
#[track_caller]
pub(crate) fn copy_into(dst: &Tensor, src: &Tensor) -> Result<()> {
    write_strided(dst, src, false)
}

/// Overwrites contiguous `dst` by zeros.
#[track_caller]
pub(crate) fn fill_zero(dst: &Tensor) -> Result<()> {
    dst.write("fill_zero")?.bytes().fill(0);
    Ok(())
}

impl Tensor {
    /// Overwrites this tensor's memory by `src` (same shape; cast to this dtype). Not recorded; tensors saved for
    /// backward notice. An error if the memory is borrowed, or if `self` repeats elements (an expanded dimension).
    #[track_caller]
    pub fn copy_(&self, src: &Tensor) -> Result<()> {
        if self.layout().strides.iter().zip(self.dims()).any(|(&s, &n)| s == 0 && n > 1) {
            return Err(Error::shape("copy_", "cannot write to an expanded tensor: it names elements twice"));
        }
        copy_into(self, src)
    }
}
