//! A parameter and a buffer of an arena.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::arena::Spec;
use super::{Arena, MAX_GROUPS};
use crate::tensor::copy_into;
use crate::{Error, Result, Shape, Tensor};

/// A parameter of an arena: an id. `get` makes the tensor.
#[derive(Clone)]
pub struct Param {
    pub(super) arena: Arena,
    pub(super) id: usize,
}

/// A tensor of a model's state that is no parameter, such as a running mean: see [`Arena::register_buffer`]. No gradient
/// flows to it and no optimiser touches it; layers overwrite it in place. Cheap to clone; clones are the same memory.
#[derive(Clone)]
pub struct Buffer {
    pub(super) name: Arc<str>,
    pub(super) tensor: Tensor,
}

impl Buffer {
    /// Its name, such as `1.running_mean`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its memory.
    pub fn get(&self) -> &Tensor {
        &self.tensor
    }

    /// Overwrites it by `values`, of its shape.
    #[track_caller]
    pub fn set(&self, values: &Tensor) -> Result<()> {
        copy_into(&self.tensor, values).map_err(|e| e.context(&*self.name))
    }
}

impl Param {
    fn spec<R>(&self, f: impl FnOnce(&Spec) -> R) -> R {
        match self.arena.0.sealed.get() {
            Some(Ok(sealed)) => f(&sealed.specs[self.id]),
            _ => match self.arena.open().specs.get(self.id) {
                Some(spec) => f(spec),
                // Sealed between the two looks.
                None => match self.arena.sealed() {
                    Ok(sealed) => f(&sealed.specs[self.id]),
                    Err(e) => panic!("the arena of this parameter could not be allocated: {e}"),
                },
            },
        }
    }

    /// The parameter's number in its arena, in registration order.
    pub fn id(&self) -> usize {
        self.id
    }

    /// The arena it is in.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Its name, such as `0.weight`.
    pub fn name(&self) -> String {
        self.spec(|s| s.name.clone())
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.spec(|s| s.shape)
    }

    /// Where it starts in the arena's flat buffers, in elements.
    pub fn offset(&self) -> usize {
        self.spec(|s| s.offset)
    }

    /// The parameter's values as a tensor that a gradient flows to (unless it is frozen). Shares the arena's memory.
    pub fn get(&self) -> Result<Tensor> {
        let sealed = self.arena.sealed()?;
        let (leaf, constant) = &sealed.views[self.id];
        Ok(if sealed.specs[self.id].frozen.load(Relaxed) { constant } else { leaf }.clone())
    }

    /// Overwrites the parameter's values, and their f32 masters if there are any, by those of `values`, which must have its
    /// shape.
    #[track_caller]
    pub fn set(&self, values: &Tensor) -> Result<()> {
        // Not through a closure, which would be named as the caller.
        copy_into(&self.arena.sealed()?.views[self.id].1, values).map_err(|e| e.context(self.name()))?;
        // What the values are rounded from takes them in full.
        if let Some(master) = self.arena.master()? {
            let master = master.with_layout(self.spec(Spec::layout));
            copy_into(&master, values).map_err(|e| e.context(self.name()))?;
        }
        Ok(())
    }

    /// The gradient, if one has landed since the last [`Arena::zero_grad`]. Shares the arena's memory;
    /// of type [`Precision::grads`](super::Precision::grads).
    pub fn grad(&self) -> Result<Option<Tensor>> {
        let has = self.spec(|s| s.has_grad.load(Relaxed));
        if has { Ok(Some(self.grad_slot()?)) } else { Ok(None) }
    }

    /// The memory of the gradient, whatever it holds.
    pub(crate) fn grad_slot(&self) -> Result<Tensor> {
        let layout = self.spec(Spec::layout);
        Ok(self.arena.grads()?.with_layout(layout))
    }

    pub(crate) fn has_grad(&self) -> bool {
        self.spec(|s| s.has_grad.load(Relaxed))
    }

    pub(crate) fn set_has_grad(&self) {
        self.spec(|s| s.has_grad.store(true, Relaxed));
    }

    /// Whether it is frozen: no gradient is computed for it and optimisers leave it alone.
    pub fn is_frozen(&self) -> bool {
        self.spec(|s| s.frozen.load(Relaxed))
    }

    /// Freezes or thaws it, from the next forward pass on.
    pub fn set_frozen(&self, frozen: bool) {
        self.spec(|s| s.frozen.store(frozen, Relaxed));
    }

    /// Its parameter group.
    pub fn group(&self) -> usize {
        self.spec(|s| s.group.load(Relaxed)) as usize
    }

    /// Puts it into a parameter group, below [`MAX_GROUPS`].
    pub fn set_group(&self, group: usize) -> Result<()> {
        if group >= MAX_GROUPS {
            return Err(Error::argument(format!(
                "parameter group {group}: at most {MAX_GROUPS} groups are possible"
            )));
        }
        self.spec(|s| s.group.store(group as u8, Relaxed));
        Ok(())
    }
}
