//! A model's tensors on their way to and from files.

#![forbid(unsafe_code)]

use crate::io::HostTensor;
use crate::{Arena, Device, Error, ErrorKind, Result, Shape, Tensor};

/// Differences that an error lists.
const SHOWN: usize = 10;

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

/// Overwrites all parameters and buffers. Errors (kind `Data`) that list the differences unless there is exactly one tensor of
/// the right shape for each; nothing is overwritten then.
pub fn load_state(arena: &Arena, mut tensors: Vec<(&str, HostTensor<'_>)>) -> Result<()> {
    let mut faults = Vec::new();
    let mut take = |name: &str, shape: Shape| {
        let Some(at) = tensors.iter().position(|(n, _)| *n == name) else {
            faults.push(format!("the weights lack {name:?}"));
            return None;
        };
        let (_, tensor) = tensors.swap_remove(at);
        if tensor.shape() != shape.dims() {
            faults.push(format!("{name:?} has shape {:?}, the model needs {shape}", tensor.shape()));
            return None;
        }
        Some(tensor)
    };
    let params = arena.params()?;
    let buffers = arena.buffers();
    let for_params: Vec<_> = params.iter().map(|param| take(&param.name(), param.shape())).collect();
    let for_buffers: Vec<_> =
        buffers.iter().map(|buffer| take(buffer.name(), buffer.get().shape())).collect();
    faults.extend(tensors.iter().map(|(name, _)| format!("the model has no parameter {name:?}")));
    if !faults.is_empty() {
        let more = faults.len().saturating_sub(SHOWN);
        faults.truncate(SHOWN);
        if more > 0 {
            faults.push(format!("and {more} more"));
        }
        return Err(Error::new(ErrorKind::Data, faults.join("; ")));
    }
    for (param, tensor) in params.iter().zip(for_params.iter().flatten()) {
        param.set(&from_host(tensor, arena.device())?)?;
    }
    for (buffer, tensor) in buffers.iter().zip(for_buffers.iter().flatten()) {
        buffer.set(&from_host(tensor, arena.device())?)?;
    }
    Ok(())
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
