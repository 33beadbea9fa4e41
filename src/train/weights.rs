//! A model's tensors on their way to and from files.

#![forbid(unsafe_code)]

use crate::io::HostTensor;
use crate::{Arena, Device, Error, ErrorKind, Result, Shape, Tensor};

/// All parameters, then all buffers, by name, copied to host memory.
pub fn state(arena: &Arena) -> Result<Vec<(String, HostTensor<'static>)>> {
    let params = arena.params()?.into_iter().map(|param| Ok((param.name(), to_host(&param.get()?)?)));
    let buffers = arena.buffers().into_iter();
    params.chain(buffers.map(|buffer| Ok((buffer.name().to_owned(), to_host(buffer.get())?)))).collect()
}

/// As [`state`], with the f32 masters of 16-bit parameters in their place: what is worth keeping.
pub fn master_state(arena: &Arena) -> Result<Vec<(String, HostTensor<'static>)>> {
    let mut state = state(arena)?;
    if let Some(master) = arena.master()? {
        for (param, (_, tensor)) in arena.params()?.iter().zip(&mut state) {
            let slice = master.narrow(0, param.offset(), param.shape().numel())?;
            *tensor = to_host(&slice.reshape(param.shape())?)?;
        }
    }
    Ok(state)
}

/// Overwrites all parameters and buffers. Errors (kind `Data`) unless there is exactly one tensor of the right shape for
/// each.
pub fn load_state(arena: &Arena, mut tensors: Vec<(&str, HostTensor<'_>)>) -> Result<()> {
    let mut take = |name: &str, shape: Shape| {
        let Some(at) = tensors.iter().position(|(n, _)| *n == name) else {
            return Err(Error::new(ErrorKind::Data, format!("the weights lack {name:?}")));
        };
        let (_, tensor) = tensors.swap_remove(at);
        if tensor.shape() != shape.dims() {
            let message = format!("{name:?} has shape {:?}, the model needs {shape}", tensor.shape());
            return Err(Error::new(ErrorKind::Data, message));
        }
        from_host(&tensor, arena.device())
    };
    for param in arena.params()? {
        param.set(&take(&param.name(), param.shape())?)?;
    }
    for buffer in arena.buffers() {
        buffer.set(&take(buffer.name(), buffer.get().shape())?)?;
    }
    match tensors.first() {
        Some((name, _)) => Err(Error::new(ErrorKind::Data, format!("the model has no parameter {name:?}"))),
        None => Ok(()),
    }
}

/// A copy in host memory.
pub(super) fn to_host(tensor: &Tensor) -> Result<HostTensor<'static>> {
    let shape = tensor.dims().to_vec();
    crate::dispatch!(tensor.dtype(), T => {
        let values = tensor.to_vec::<T>()?;
        HostTensor::new(tensor.dtype(), shape, bytemuck::cast_slice::<T, u8>(&values).to_vec())
    })
}

/// A copy on `device`.
pub(super) fn from_host(tensor: &HostTensor<'_>, device: Device) -> Result<Tensor> {
    let shape = Shape::new(tensor.shape())?;
    crate::dispatch!(tensor.dtype(), T => Tensor::from_slice(&tensor.to_vec::<T>()?, shape, device))
}
