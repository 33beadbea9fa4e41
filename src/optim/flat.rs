//! The fused pass: every rule over every parameter of an arena in one sweep.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::rules::{Rule, Scalars};
use crate::cpu::{par, simd};
use crate::device::Stream;
use crate::device::kernels::optim as kernels;
use crate::dtype::{Float, Real};
use crate::ops::{Cases, Op, Plan, Tolerance};
use crate::param::{ALIGN, FROZEN, StepBlock};
use crate::tensor::{Meta, Out, View};
use crate::{DType, Device, Error, Result, dispatch};

/// Elements that a thread updates at a time; a multiple of [`ALIGN`].
const CHUNK: usize = 64 * ALIGN;

/// Counts a step in the step block: step + 1, powers of the betas times the betas. In place: floats, step.
#[derive(Clone, Copy, Debug)]
pub struct Advance {
    /// β₁
    pub beta1: f64,
    /// β₂
    pub beta2: f64,
    /// Where the step block is.
    pub device: Device,
}

impl Op for Advance {
    const NAME: &'static str = "advance";
    const INPUTS: RangeInclusive<usize> = 0..=0;
    const ACCUMULATES: bool = true;

    fn infer(&self, _: &[Meta]) -> Result<Plan> {
        let floats = Meta { shape: StepBlock::floats_shape(), dtype: DType::F64, device: self.device };
        let step = floats.with_dtype(DType::I64).with_shape(crate::Shape::from_dims(&[]));
        Ok(Plan { outputs: vec![floats, step], scratch: 0 })
    }

    fn cpu(&self, _: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let floats = outputs[0].slice::<f64>();
        floats[StepBlock::BETA1_POWER] *= self.beta1;
        floats[StepBlock::BETA2_POWER] *= self.beta2;
        outputs[1].slice::<i64>()[0] += 1;
        Ok(())
    }

    fn gpu(&self, s: &Stream, _: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let [floats, step] = outputs else {
            return Err(Error::internal("the step block has two parts"));
        };
        let (beta1, beta2) = (self.beta1, self.beta2);
        kernels::Advance { floats: floats.dst(), step: step.dst(), beta1, beta2 }.launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}

/// One optimiser step over an arena.
///
/// Inputs: gradients (flat), the step block's floats and step number, the group table (u8, one a block of [`ALIGN`]
/// elements). In place: values (flat, the gradients' dtype), then the rule's state (flat, f32 or f64).
#[derive(Clone, Copy, Debug)]
pub struct Update<R> {
    /// The rule.
    pub rule: R,
    /// Gradients are clamped to ± this; infinity for no clamp.
    pub clip_value: f64,
}

impl<R: Rule> Update<R> {
    fn body<T: Float>(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let contiguous =
            |view: &View<'_>| Error::internal(format!("a flat buffer of shape {} has gaps", view.shape()));
        let grads = inputs[0].slice::<T>().ok_or_else(|| contiguous(&inputs[0]))?;
        let floats = inputs[1].slice::<f64>().ok_or_else(|| contiguous(&inputs[1]))?;
        let first = inputs[2].data::<i64>()[0] == 1;
        let table = inputs[3].slice::<u8>().ok_or_else(|| contiguous(&inputs[3]))?;
        let (values, state) = outputs.split_at_mut(1);
        let values = values[0].slice::<T>();
        let mut state: Vec<&mut [T::Acc]> = state.iter_mut().map(|s| s.slice::<T::Acc>()).collect();
        let scalars = |group: u8| {
            let lr = floats[StepBlock::LR + group as usize];
            Scalars {
                lr: T::Acc::of(lr),
                weight_decay: T::Acc::of(floats[StepBlock::WEIGHT_DECAY + group as usize]),
                root_bias2: T::Acc::of((1.0 - floats[StepBlock::BETA2_POWER]).sqrt()),
                step_size: T::Acc::of(lr / (1.0 - floats[StepBlock::BETA1_POWER])),
                first,
            }
        };
        let factor = T::Acc::of(floats[StepBlock::CLIP] / floats[StepBlock::LOSS_SCALE]);
        let limit = T::Acc::of(self.clip_value);
        let mut state = state.drain(..);
        let [s0, s1, s2] = std::array::from_fn(|_| pieces(state.next()));
        let count = values.len().div_ceil(CHUNK);
        let chunks = values.chunks_mut(CHUNK).zip(grads.chunks(CHUNK)).zip(table.chunks(CHUNK / ALIGN));
        par::each(count, chunks.zip(s0).zip(s1).zip(s2), |(((((values, grads), table), s0), s1), s2)| {
            simd::vectorize(
                #[inline(always)]
                || {
                    let mut absent = [[T::Acc::ZERO; ALIGN]; 3];
                    let [a0, a1, a2] = &mut absent;
                    for (block, &group) in table.iter().enumerate().filter(|(_, group)| **group != FROZEN) {
                        let range = block * ALIGN..(block + 1) * ALIGN;
                        let state = [
                            s0.get_mut(range.clone()).unwrap_or(a0),
                            s1.get_mut(range.clone()).unwrap_or(a1),
                            s2.get_mut(range.clone()).unwrap_or(a2),
                        ];
                        let (values, grads) = (&mut values[range.clone()], &grads[range]);
                        update_block(&self.rule, values, grads, state, factor, limit, &scalars(group));
                    }
                },
            );
        });
        Ok(())
    }
}

/// A state buffer in chunks; endless empty ones for a buffer that the rule does not have.
fn pieces<R: Send>(state: Option<&mut [R]>) -> impl Iterator<Item = &mut [R]> + Send {
    let absent = if state.is_some() { 0 } else { usize::MAX };
    let empty = std::iter::repeat_with(|| &mut [] as &mut [R]).take(absent);
    state.unwrap_or_default().chunks_mut(CHUNK).chain(empty)
}

/// Updates one block of parameters of one group.
#[inline(always)]
fn update_block<T: Float, R: Rule>(
    rule: &R,
    values: &mut [T],
    grads: &[T],
    [s0, s1, s2]: [&mut [T::Acc]; 3],
    factor: T::Acc,
    limit: T::Acc,
    scalars: &Scalars<T::Acc>,
) {
    let n = ALIGN;
    let (values, grads) = (&mut values[..n], &grads[..n]);
    let (s0, s1, s2) = (&mut s0[..n], &mut s1[..n], &mut s2[..n]);
    for i in 0..n {
        let g = grads[i].to_acc() * factor;
        // Not `clamp`, so that NaN stays NaN.
        let g = if g > limit { limit } else { g };
        let g = if g < -limit { -limit } else { g };
        let state = [&mut s0[i], &mut s1[i], &mut s2[i]];
        values[i] = T::from_acc(rule.update(values[i].to_acc(), g, state, scalars));
    }
}

impl<R: Rule> Op for Update<R> {
    const NAME: &'static str = R::NAME;
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let grads = inputs[0];
        let blocks = inputs[3].shape.numel();
        if grads.shape.rank() != 1 || grads.shape.numel() != blocks * ALIGN {
            let message =
                format!("gradients {} do not fit a table of {blocks} blocks of {ALIGN}", grads.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        let state = grads.with_dtype(if grads.dtype == DType::F64 { DType::F64 } else { DType::F32 });
        let mut outputs = vec![grads];
        outputs.resize(1 + self.rule.state().len(), state);
        Ok(Plan { outputs, scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, outputs), else Err(Error::internal("not a float")))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let [grads, floats, step, table] = [0, 1, 2, 3].map(|k: usize| inputs[k].src());
        let Some((values, state)) = outputs.split_first_mut() else {
            return Err(Error::internal("an update has values"));
        };
        let mut state = state.iter_mut().map(Out::dst);
        let (f, numbers, flag) = self.rule.gpu();
        let [a, b, c, d] = numbers.map(|v| v as f32);
        let (values, n, limit) = (values.dst(), inputs[0].numel() as u64, self.clip_value as f32);
        let [s0, s1, s2] = std::array::from_fn(|_| state.next());
        let flag = flag.into();
        kernels::Update { f, grads, values, s0, s1, s2, floats, step, table, n, limit, a, b, c, d, flag }
            .launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}
