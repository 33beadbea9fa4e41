//! A decoder with its parameters, and what can be asked of it.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::data::text::{TokenBatch, Windows};
use crate::io::HostTensor;
use crate::nn::{Cx, Gpt, GptConfig, Scope};
use crate::param::Precision;
use crate::tensor::no_grad;
use crate::train::weights;
use crate::{Arena, Device, Result, Tensor};

/// A decoder with its parameters. Cheap to clone; clones are the same model.
#[derive(Clone)]
pub struct LanguageModel {
    arena: Arena,
    gpt: Arc<Gpt>,
}

impl LanguageModel {
    /// A new decoder, its initial values drawn from `seed`.
    pub fn new(config: &GptConfig, precision: Precision, seed: u64, device: Device) -> Result<LanguageModel> {
        config.check()?;
        let arena = Arena::with_precision(precision, device)?;
        let gpt = Arc::new(Gpt::new(&Scope::new(&arena, seed), config)?);
        Ok(LanguageModel { arena, gpt })
    }

    /// What it was built from.
    pub fn config(&self) -> &GptConfig {
        self.gpt.config()
    }

    /// Its layers.
    pub fn gpt(&self) -> &Gpt {
        &self.gpt
    }

    /// Its layers, to keep.
    pub(super) fn shared(&self) -> Arc<Gpt> {
        self.gpt.clone()
    }

    /// Its parameters.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The mean loss of a batch, in nats a token, without any dropout.
    pub fn loss(&self, batch: &TokenBatch) -> Result<f64> {
        let (shape, device) = ([batch.rows, batch.context], self.arena.device());
        let ids = Tensor::from_slice(&batch.inputs, shape, device)?;
        let targets = Tensor::from_slice(&batch.targets, shape, device)?;
        no_grad(|| self.gpt.loss(&mut Cx::eval(), &ids, &targets)?.item())
    }

    /// The mean loss over all that `windows` cut, each token counted once.
    pub fn evaluate(&self, windows: &Windows) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        for batch in windows.validation() {
            let batch = batch?;
            let tokens = batch.rows * batch.context;
            sum += self.loss(&batch)? * tokens as f64;
            count += tokens;
        }
        Ok(sum / count.max(1) as f64)
    }

    /// All parameters by name, in f32 where there are masters.
    pub fn state(&self) -> Result<Vec<(String, HostTensor<'static>)>> {
        weights::master_state(&self.arena)
    }

    /// Overwrites all parameters. Errors (kind `Data`) unless there is exactly one tensor of the right shape for each.
    pub fn load_state(&self, tensors: Vec<(&str, HostTensor<'_>)>) -> Result<()> {
        weights::load_state(&self.arena, tensors)
    }
}

/// Floating-point operations of training on one token, as llm.c counts them: `6·N + 6·L·C·T` with N parameters (a tied table
/// once), L layers, width C and context T; causal attention counts half. The formula's name is `6N+6LCT`.
pub fn flops_per_token(config: &GptConfig, parameters: usize) -> f64 {
    6.0 * parameters as f64 + 6.0 * (config.layers * config.width * config.context) as f64
}
