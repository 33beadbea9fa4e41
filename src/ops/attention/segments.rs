//! Self-attention within documents of different lengths that lie one behind the other in one packed buffer.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::packed::{parts, split_parts};
use super::{
    Sdpa, Sequence, Setting, WHY, cpu, deliver, expect_integers, expect_results, given_flat, gpu, integers,
    result_metas, scale_of, with_rows, zero,
};
use crate::device::Stream;
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run, same_float};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// Self-attention over `[N, H + 2·Hkv, D]`, queries before keys before values, within the rows between neighbours of the second
/// input, i32 or i64 `[n + 1]`, which ascends from 0 to N; outputs the vectors, `[N, H, D]`, and ln Σ e^score, `[H, N]` in f32
/// (f64 in f64).
#[derive(Clone, Copy, Debug)]
pub struct SegmentedAttention {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and of the values.
    pub kv_heads: usize,
    /// Whether a query sees the keys up to its own only.
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: f64,
}

/// The error for bounds of segments that do not ascend from 0 to `total`; `value` is the first that is wrong.
pub(super) fn bad_bound(value: i64, at: u64, total: usize) -> Error {
    Error::argument(format!(
        "bound {at} of the segments is {value}; bounds ascend from 0 to {total}, the number of rows"
    ))
}

impl SegmentedAttention {
    fn setting(&self, op: &'static str, qkv: &Shape) -> Result<Setting> {
        let SegmentedAttention { heads, kv_heads, causal, scale } = *self;
        let all = kv_heads.checked_mul(2).and_then(|n| n.checked_add(heads));
        if qkv.rank() != 3 || all != Some(qkv[1]) {
            return Err(Error::shape(op, format!("{qkv} is not [N, {heads} + 2·{kv_heads}, D]")));
        }
        let (rows, width) = (qkv[0], qkv[2]);
        Setting { batch: 1, heads, kv_heads, queries: rows, keys: rows, width, causal, scale }.check(op)
    }
}

/// The documents between the bounds.
fn sequences(setting: &Setting, bounds: &View<'_>) -> Result<Vec<Sequence>> {
    let (bounds, total) = (integers(bounds), setting.queries);
    let mut last = 0;
    for (i, &bound) in bounds.iter().enumerate() {
        let right = if i == 0 { bound == 0 } else { bound >= last && bound <= total as i64 };
        if !right || i + 1 == bounds.len() && bound != total as i64 {
            return Err(bad_bound(bound, i as u64, total));
        }
        last = bound;
    }
    let shift = setting.causal.then_some(0);
    let sequence = |pair: &[i64]| {
        let (first, rows) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        Sequence { batch: 0, first, queries: rows, span: rows, keys: rows, shift }
    };
    Ok(bounds.windows(2).map(sequence).collect())
}

impl Op for SegmentedAttention {
    const NAME: &'static str = "segmented_attention";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const STATISTICS: usize = 1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[0, 1]).and_outputs(&[0, 1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, &inputs[..1])?;
        let s = self.setting(Self::NAME, &inputs[0].shape)?;
        let bounds = inputs[1].shape.numel();
        if bounds == 0 {
            return Err(Error::shape(Self::NAME, "segments without a bound: there are n + 1 for n of them"));
        }
        expect_integers(Self::NAME, "segments", &inputs[1], bounds)?;
        let outputs = result_metas(inputs[0], &[s.queries, s.heads, s.width], &[s.heads, s.queries])?;
        Ok(Plan { outputs, scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let setting = self.setting(Self::NAME, &inputs[0].shape())?;
        let sequences = sequences(&setting, &inputs[1])?;
        dispatch!(float inputs[0].dtype(), T => {
            let mut copy = None;
            let qkv = with_rows::<T>(inputs[0], &mut copy)?;
            // There is one batch row: its stride is never used.
            setting.forward(parts::<T>(&qkv, &setting, [0, 1, 0]), &sequences, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let setting = self.setting(Self::NAME, &inputs[0].shape())?;
        let qkv = gpu::Inputs::packed(stream, &inputs[0], &setting, [0, 1, 0])?;
        gpu::forward(stream, &setting, qkv, gpu::Extent::Segments(&inputs[1]), outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let SegmentedAttention { heads, kv_heads, causal, scale } = *self;
        deliver(cx, dys, SegmentedAttentionBackward { heads, kv_heads, causal, scale }, 1, true)
    }

    fn cases() -> Cases<Self> {
        let list = SHAPES.iter().map(|&(bounds, heads, kv_heads, width, causal)| {
            let op = SegmentedAttention { heads, kv_heads, causal, scale: 1.0 / (width as f64).sqrt() };
            let rows = bounds[bounds.len() - 1] as usize;
            let qkv = Arg::new(&[rows, heads + 2 * kv_heads, width], Values::Normal(1.0));
            Case { op, inputs: vec![qkv, segments(bounds)] }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list: list.collect() }
    }
}

fn segments(bounds: &[f64]) -> Arg {
    let dtype = if bounds.len().is_multiple_of(2) { DType::I32 } else { DType::I64 };
    Arg::typed(&[bounds.len()], Values::Exactly(bounds.to_vec()), dtype)
}

/// Bounds, heads, heads of keys, width, causal.
const SHAPES: &[(&[f64], usize, usize, usize, bool)] = &[
    (&[0.0, 2.0, 2.0, 5.0], 2, 1, 4, true),
    (&[0.0, 1.0, 69.0], 1, 1, 64, true),
    (&[0.0, 5.0, 37.0, 40.0], 2, 2, 8, false),
    (&[0.0], 1, 1, 4, true),
];

/// The gradient of the buffer of [`SegmentedAttention`], from the buffer, the two outputs, the gradient of the first, and the bounds.
#[derive(Clone, Copy, Debug)]
pub struct SegmentedAttentionBackward {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and of the values.
    pub kv_heads: usize,
    /// Whether a query sees the keys up to its own only.
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: f64,
}

impl SegmentedAttentionBackward {
    fn forward(&self) -> SegmentedAttention {
        let SegmentedAttentionBackward { heads, kv_heads, causal, scale } = *self;
        SegmentedAttention { heads, kv_heads, causal, scale }
    }
}

impl Op for SegmentedAttentionBackward {
    const NAME: &'static str = "segmented_attention_backward";
    const INPUTS: RangeInclusive<usize> = 5..=5;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let args = [inputs[0], inputs[4]];
        expect_results(Self::NAME, inputs, 1, &self.forward().infer(&args)?.outputs)?;
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let setting = self.forward().setting(Self::NAME, &inputs[0].shape())?;
        let sequences = sequences(&setting, &inputs[4])?;
        dispatch!(float inputs[0].dtype(), T => {
            if inputs[0].numel() == 0 {
                zero::<T>(outputs);
                return Ok(());
            }
            let (mut copy, mut copies) = (None, [const { None }; 2]);
            let qkv = with_rows::<T>(inputs[0], &mut copy)?;
            let given = given_flat::<T>([inputs[1], inputs[2], inputs[3]], &mut copies)?;
            let rows = split_parts(outputs[0].slice::<T>(), &setting);
            let problem = setting.problem(parts::<T>(&qkv, &setting, [0, 1, 0]), &sequences);
            cpu::backward(&problem, &given, rows)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let setting = self.forward().setting(Self::NAME, &inputs[0].shape())?;
        let qkv = gpu::Inputs::packed(stream, &inputs[0], &setting, [0, 1, 0])?;
        let results = gpu::Results::new(stream, [&inputs[1], &inputs[2], &inputs[3]])?;
        let grads = gpu::Grads::packed(&mut outputs[0], &setting);
        gpu::backward(stream, &setting, qkv, gpu::Extent::Segments(&inputs[4]), results, grads)
    }

    fn cases() -> Cases<Self> {
        let list = SHAPES.iter().map(|&(bounds, heads, kv_heads, width, causal)| {
            let scale = 1.0 / (width as f64).sqrt();
            let op = SegmentedAttentionBackward { heads, kv_heads, causal, scale };
            let rows = bounds[bounds.len() - 1] as usize;
            let inputs = vec![
                Arg::constant(&[rows, heads + 2 * kv_heads, width], Values::Normal(1.0)),
                Arg::constant(&[rows, heads, width], Values::Normal(1.0)),
                Arg::constant(&[heads, rows], Values::Uniform(3.0, 5.0)),
                Arg::constant(&[rows, heads, width], Values::Normal(1.0)),
                segments(bounds),
            ];
            Case { op, inputs }
        });
        Cases {
            dtypes: &[DType::F32, DType::F64],
            tolerance: Tolerance::Sum(16.0, WHY),
            list: list.collect(),
        }
    }
}

impl Tensor {
    /// [`Tensor::packed_attention`] over documents of different lengths that lie one behind the other: `[N, heads + 2·kv_heads, D]`,
    /// where document i has the rows from `segments[i]` up to `segments[i + 1]`; `segments` is i32 or i64 and ascends from 0 to N.
    /// The result is `[N, heads, D]`, contiguous. `options.lengths` must be `None`.
    ///
    /// # Errors
    /// Another shape, heads that do not divide, segments that do not ascend from 0 to N, lengths.
    #[track_caller]
    pub fn segmented_attention(
        &self,
        heads: usize,
        kv_heads: usize,
        segments: &Tensor,
        options: Sdpa<'_>,
    ) -> Result<Tensor> {
        if options.lengths.is_some() {
            let message = "segments say how long each document is; lengths are for batches of rows";
            return Err(Error::argument(message).with_op(SegmentedAttention::NAME));
        }
        let width = if self.rank() == 3 { self.dims()[2] } else { 1 };
        let op =
            SegmentedAttention { heads, kv_heads, causal: options.causal, scale: scale_of(&options, width) };
        Ok(run(op, &[self, segments])?.swap_remove(0))
    }
}
