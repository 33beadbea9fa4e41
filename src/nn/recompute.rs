//! Blocks whose activations are computed again in backward instead of being kept.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::Cx;
use crate::autograd::checkpoint;
use crate::{Param, Result, Tensor};

impl Cx {
    /// For a pass in which modules that can (such as the blocks of [`Gpt`](super::Gpt)) keep their inputs only and compute
    /// everything else again in backward. Results and gradients stay the same, bit for bit.
    pub fn with_recompute(mut self, recompute: bool) -> Cx {
        self.recompute = recompute;
        self
    }

    /// Whether modules should compute again what backward needs.
    pub fn recomputes(&self) -> bool {
        self.recompute
    }

    /// As [`checkpoint`], for an `f` that needs this context: the second run makes the random choices of the first.
    #[track_caller]
    pub fn checkpoint(
        &mut self,
        inputs: &[&Tensor],
        params: &[Param],
        f: impl Fn(&mut Cx, &[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Result<Vec<Tensor>> {
        let (start, sites) = (self.clone(), Arc::new(AtomicU32::new(self.sites)));
        let end = sites.clone();
        let outputs = checkpoint(inputs, params, move |inputs| {
            let mut cx = start.clone();
            let outputs = f(&mut cx, inputs)?;
            end.store(cx.sites, Relaxed);
            Ok(outputs)
        })?;
        self.sites = sites.load(Relaxed);
        Ok(outputs)
    }
}
