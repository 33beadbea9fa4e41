//! Moving values between tensors' memory, below the tape: what autograd, the arena and `copy_` are made of.

#![forbid(unsafe_code)]

use std::panic::Location;

use super::{Tensor, View};
use crate::cpu::copy::move_elements;
use crate::device::launch::Dst;
use crate::dtype::Element;
use crate::shape::Layout;
use crate::{Device, Error, ErrorKind, Result, dispatch};

#[track_caller]
fn write_strided(dst: &Tensor, src: &Tensor, add: bool) -> Result<()> {
    let name = if add { "accumulate" } else { "copy_into" };
    if dst.shape() != src.shape() {
        return Err(Error::shape(name, format!("{} into {}", src.shape(), dst.shape())));
    }
    if dst.device() != src.device() {
        let message = format!("from {} to {}", src.device(), dst.device());
        return Err(Error::new(ErrorKind::Device, message)
            .with_op(name)
            .with_help("move one with to_device"));
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
        device => {
            let stream = device.gpu()?;
            stream.enter(name, [src.shape(), dst.shape()].into_iter(), Location::caller());
            let to = Dst::new(target.address(), dst.layout().span().len() as u64, dst.dtype());
            crate::device::copy::strided(stream, view.src(), view.layout(), to, &layout, add)?;
        }
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

/// Overwrites contiguous `dst` by `values`, without waiting.
#[track_caller]
pub(crate) fn overwrite<T: Element>(dst: &Tensor, values: &[T]) -> Result<()> {
    if dst.numel() != values.len() || dst.dtype() != T::DTYPE || !dst.is_contiguous() {
        let message = format!("{} values of {} into {}", values.len(), T::DTYPE, dst.meta());
        return Err(Error::shape("overwrite", message));
    }
    overwrite_bytes(dst, bytemuck::cast_slice(values))
}

/// Overwrites contiguous `dst` by zeros.
#[track_caller]
pub(crate) fn fill_zero(dst: &Tensor) -> Result<()> {
    let mut target = dst.write("fill_zero")?;
    match dst.device() {
        Device::Cpu => target.bytes().fill(0),
        device => device.gpu()?.fill(target.address(), 0, dst.byte_span().len())?,
    }
    Ok(())
}

/// Overwrites contiguous `dst`, on a GPU, by `value` converted to its type.
#[track_caller]
pub(crate) fn fill(dst: &Tensor, value: f64) -> Result<()> {
    let (dtype, mut bits) = (dst.dtype(), [0; 8]);
    dispatch!(dtype, T => bits[..dtype.size()].copy_from_slice(bytemuck::bytes_of(&T::from_f64(value))));
    let target = dst.write("fill")?;
    let to = Dst::new(target.address(), dst.numel() as u64, dtype);
    crate::device::copy::fill(dst.device().gpu()?, to, u64::from_le_bytes(bits))
}

/// Overwrites contiguous `dst` by host bytes, as many as it has. On a GPU they may be reused when this returns; nothing waits.
#[track_caller]
pub(crate) fn overwrite_bytes(dst: &Tensor, bytes: &[u8]) -> Result<()> {
    let span = dst.byte_span().len();
    if span != bytes.len() || !dst.is_contiguous() {
        return Err(Error::internal(format!("{} bytes over a tensor of {span}", bytes.len())));
    }
    let mut target = dst.write("overwrite")?;
    match dst.device() {
        Device::Cpu => target.bytes().copy_from_slice(bytes),
        device => device.gpu()?.upload(target.address(), bytes)?,
    }
    Ok(())
}

impl Tensor {
    /// The same values on another device, in row-major order, as a constant; this tensor itself if it is there already.
    /// Waits for the work that makes them, if they come from a GPU.
    #[track_caller]
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        if device == self.device() {
            return Ok(self.clone());
        }
        dispatch!(self.dtype(), T => Tensor::from_slice(&self.to_vec::<T>()?, self.shape(), device))
    }

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
