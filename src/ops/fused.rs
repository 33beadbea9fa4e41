//! What a linear layer and a convolution do with their product, in the same pass: y = f(product + b).

#![forbid(unsafe_code)]

use super::{ActivationBackward, run1};
use crate::cpu::activation::{Activation, Reads};
use crate::tensor::{BackwardCx, Meta, Saves, Tensor, grad_enabled};
use crate::{Error, Result};

/// What the gradients of a product of inputs 0 and 1 read: each the other factor.
pub(super) fn factors(needs: &[bool]) -> Saves {
    let mut saves = Saves::NONE;
    if needs[0] {
        saves = saves.and_inputs(&[1]);
    }
    if needs[1] {
        saves = saves.and_inputs(&[0]);
    }
    saves
}

/// Whether a call must keep product + b: it is recorded, and the derivative of f needs its argument (rather than its value).
pub(super) fn keeps_pre(activation: Activation, inputs: &[&Tensor]) -> bool {
    grad_enabled() && inputs.iter().any(|t| t.requires_grad()) && activation.reads() == Reads::Input
}

/// The part of an op behind its product. Input 2 is b, if there is one; output 1 is product + b, if it is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fused {
    pub op: &'static str,
    pub bias: bool,
    pub activation: Activation,
    pub keep_pre: bool,
}

impl Fused {
    pub fn saves(&self, needs: &[bool]) -> Saves {
        let saves = factors(needs);
        match self.activation.reads() {
            Reads::Nothing => saves,
            Reads::Output => saves.and_outputs(&[0]),
            // Without a kept pre-activation nothing is there to save; backward says so.
            Reads::Input if self.keep_pre => saves.and_outputs(&[1]),
            Reads::Input => saves,
        }
    }

    /// An error if there are too few or too many inputs.
    pub fn check_count(&self, inputs: &[Meta]) -> Result<()> {
        let needed = 2 + usize::from(self.bias);
        if inputs.len() == needed {
            return Ok(());
        }
        let message = format!("{} inputs given; with bias: {} it takes {needed}", inputs.len(), self.bias);
        Err(Error::shape(self.op, message))
    }

    /// An error if the bias is not `[out]`.
    pub fn check_bias(&self, inputs: &[Meta], out: usize) -> Result<()> {
        match inputs.get(2) {
            Some(b) if b.shape.dims() != [out] => {
                Err(Error::shape(self.op, format!("the bias has shape {}, not [{out}]", b.shape)))
            }
            _ => Ok(()),
        }
    }

    /// y and, if it is kept, product + b.
    pub fn outputs(&self, y: Meta) -> Vec<Meta> {
        vec![y; 1 + usize::from(self.keep_pre)]
    }

    /// The gradient of product + b, `None` for zero; `method` of Tensor is named where the op was not made to have one.
    pub fn gradient(
        &self,
        method: &str,
        cx: &BackwardCx<'_>,
        dys: &[Option<Tensor>],
    ) -> Result<Option<Tensor>> {
        let through = |dy: &Tensor| {
            let read = match self.activation.reads() {
                Reads::Nothing => return Ok(dy.clone()),
                Reads::Output => cx.output(0)?,
                Reads::Input if self.keep_pre => cx.output(1)?,
                Reads::Input => {
                    let message = "the gradient of this activation needs the pre-activation";
                    let help = format!("set keep_pre, or call Tensor::{method}, which does");
                    return Err(Error::unsupported(self.op, message).with_help(help));
                }
            };
            run1(ActivationBackward { activation: self.activation }, &[dy, &read])
        };
        let of_y = dys[0].as_ref().map(through).transpose()?;
        match (of_y, dys.get(1).cloned().flatten()) {
            (Some(of_y), Some(of_pre)) => Ok(Some(of_y.add(&of_pre)?)),
            (of_y, of_pre) => Ok(of_y.or(of_pre)),
        }
    }
}
