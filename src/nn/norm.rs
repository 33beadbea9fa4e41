//! Norms over channels: batch norm with its running statistics, and group norm.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::layers::checked_eps;
use super::{Cx, Init, Module, Scope};
use crate::ops::{RunningStats, update_running_stats};
use crate::param::Buffer;
use crate::{DType, Error, Param, Result, Tensor};

/// The settings of batch norm, with PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormOptions {
    /// Added to the variance: 1e-5.
    pub eps: f64,
    /// How much a new batch counts in the running statistics: 0.1. `None`: as much as each before it.
    pub momentum: Option<f64>,
    /// Whether there are a weight and a bias: yes.
    pub affine: bool,
    /// Whether running statistics are kept, for evaluation: yes. Without them evaluation uses those of its batch.
    pub track_running_stats: bool,
}

impl Default for BatchNormOptions {
    fn default() -> BatchNormOptions {
        BatchNormOptions { eps: 1e-5, momentum: Some(0.1), affine: true, track_running_stats: true }
    }
}

/// What both batch norms are.
#[derive(Clone)]
struct Channels {
    affine: Option<[Param; 2]>,
    /// Mean, variance, number of batches.
    running: Option<[Buffer; 3]>,
    channels: usize,
    options: BatchNormOptions,
}

impl Channels {
    fn new(scope: &Scope, channels: usize, options: BatchNormOptions) -> Result<Channels> {
        if channels == 0 {
            return Err(Error::argument("batch norm needs at least one channel"));
        }
        checked_eps("batch norm", options.eps)?;
        if let Some(momentum) = options.momentum.filter(|m| !(0.0..=1.0).contains(m)) {
            return Err(Error::argument(format!("batch norm's momentum {momentum} is not in [0, 1]")));
        }
        let parameter = |name, value| scope.param(name, channels, Init::Constant(value));
        let affine =
            if options.affine { Some([parameter("weight", 1.0)?, parameter("bias", 0.0)?]) } else { None };
        // As the statistics are computed.
        let dtype = if scope.arena().dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let running = match options.track_running_stats {
            true => Some([
                scope.buffer("running_mean", channels, dtype, 0.0)?,
                scope.buffer("running_var", channels, dtype, 1.0)?,
                scope.buffer("num_batches_tracked", (), DType::I64, 0.0)?,
            ]),
            false => None,
        };
        Ok(Channels { affine, running, channels, options })
    }

    #[track_caller]
    fn forward(&self, cx: &Cx, x: &Tensor, op: &'static str, ranks: RangeInclusive<usize>) -> Result<Tensor> {
        if !ranks.contains(&x.rank()) || x.dims()[1] != self.channels {
            let message = format!("{op} of {} channels was given {}", self.channels, x.shape());
            return Err(Error::shape(op, message));
        }
        let affine = self.affine.as_ref().map(|[w, b]| Ok::<_, Error>((w.get()?, b.get()?))).transpose()?;
        let (weight, bias) = (affine.as_ref().map(|a| &a.0), affine.as_ref().map(|a| &a.1));
        let eps = self.options.eps;
        if let Some([mean, variance, _]) = self.running.as_ref().filter(|_| !cx.is_training()) {
            return x.batch_norm_eval(mean.get(), variance.get(), weight, bias, eps);
        }
        let (y, mean, variance) = x.batch_norm(weight, bias, eps)?;
        // Nothing is learnt from an empty batch, nor by an evaluation.
        if let Some(running) = self.running.as_ref().filter(|_| x.numel() > 0) {
            let op = RunningStats { momentum: self.options.momentum, count: x.numel() / self.channels };
            update_running_stats(op, [&mean, &variance], running.each_ref().map(Buffer::get))?;
        }
        Ok(y)
    }

    fn params(&self) -> Vec<Param> {
        self.affine.iter().flatten().cloned().collect()
    }
}

macro_rules! batch_norm {
    ($(#[$doc:meta])* $name:ident, $text:literal, $ranks:expr) => {
        $(#[$doc])*
        ///
        /// In training each channel is normalised by its mean and variance over the batch, which go into the running
        /// statistics; in evaluation by those. Parameters `weight` (ones) and `bias` (zeros) `[C]`; buffers `running_mean` (zeros)
        /// and `running_var` (ones) `[C]`, in f32 (f64 in f64), and `num_batches_tracked`. Training with one value a channel is an error.
        #[derive(Clone)]
        pub struct $name(Channels);

        impl $name {
            /// With PyTorch's defaults.
            pub fn new(scope: &Scope, channels: usize) -> Result<$name> {
                $name::with_options(scope, channels, BatchNormOptions::default())
            }

            /// With these settings. An error for no channels, and for an eps or a momentum out of range.
            pub fn with_options(scope: &Scope, channels: usize, options: BatchNormOptions) -> Result<$name> {
                Ok($name(Channels::new(scope, channels, options)?))
            }

            /// The running mean, running variance and number of batches, where they are kept.
            pub fn running(&self) -> Option<&[Buffer; 3]> {
                self.0.running.as_ref()
            }
        }

        impl Module for $name {
            #[track_caller]
            fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
                self.0.forward(cx, x, $text, $ranks)
            }

            fn params(&self) -> Vec<Param> {
                self.0.params()
            }
        }
    };
}
batch_norm!(
    /// Batch norm of `[N, C]` or `[N, C, L]`.
    BatchNorm1d, "BatchNorm1d", 2..=3
);
batch_norm!(
    /// Batch norm of `[N, C, H, W]`.
    BatchNorm2d, "BatchNorm2d", 4..=4
);

/// Group norm of `[N, C, ..]`: each sample's channels in `groups` groups, normalised by their mean and variance. Parameters
/// `weight` (ones) and `bias` (zeros) `[C]`.
#[derive(Clone)]
pub struct GroupNorm {
    weight: Param,
    bias: Param,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// PyTorch's eps: 1e-5.
    pub fn new(scope: &Scope, groups: usize, channels: usize) -> Result<GroupNorm> {
        GroupNorm::with_eps(scope, groups, channels, 1e-5)
    }

    /// `eps` is added to the variance. An error unless `groups` divides `channels` and eps is a number from 0 on.
    pub fn with_eps(scope: &Scope, groups: usize, channels: usize, eps: f64) -> Result<GroupNorm> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::argument(format!("{channels} channels do not fall into {groups} groups")));
        }
        checked_eps("group norm", eps)?;
        let weight = scope.param("weight", channels, Init::Constant(1.0))?;
        let bias = scope.param("bias", channels, Init::Constant(0.0))?;
        Ok(GroupNorm { weight, bias, groups, eps })
    }
}

impl Module for GroupNorm {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        x.group_norm(self.groups, Some(&self.weight.get()?), Some(&self.bias.get()?), self.eps)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.weight.clone(), self.bias.clone()]
    }
}
