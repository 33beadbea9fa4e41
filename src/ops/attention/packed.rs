//! Self-attention over one buffer of queries, keys and values, as a fused projection makes it.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{
    Sdpa, Setting, Vectors, WHY, attend, cpu, deliver, expect_integers, expect_results, given, gpu,
    result_metas, scale_of, split_heads, vectors, with_rows, zero,
};
use crate::cpu::pool::Block;
use crate::device::Stream;
use crate::dtype::Element;
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values, same_float};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// Self-attention over `[B, T, H + 2·Hkv, D]`, queries before keys before values, and, as a second input, how many keys of each batch
/// row are valid; outputs the vectors, `[B, T, H, D]`, and ln Σ e^score, `[B, H, T]` in f32 (f64 in f64).
#[derive(Clone, Copy, Debug)]
pub struct PackedAttention {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and of the values.
    pub kv_heads: usize,
    /// Whether query i sees keys up to i only.
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: f64,
}

impl PackedAttention {
    fn setting(&self, op: &'static str, qkv: &Shape) -> Result<Setting> {
        let PackedAttention { heads, kv_heads, causal, scale } = *self;
        let all = kv_heads.checked_mul(2).and_then(|n| n.checked_add(heads));
        if qkv.rank() != 4 || all != Some(qkv[2]) {
            let message = format!("{qkv} is not [B, T, {heads} + 2·{kv_heads}, D]");
            return Err(Error::shape(op, message));
        }
        let (batch, rows, width) = (qkv[0], qkv[1], qkv[3]);
        Setting { batch, heads, kv_heads, queries: rows, keys: rows, width, causal, scale }.check(op)
    }
}

/// Queries, keys and values of a packed buffer whose dimensions `[batch, head, row]` these are; without a batch dimension any
/// will do.
pub(super) fn parts<'a, T: Element>(
    view: &View<'a>,
    setting: &Setting,
    dims: [usize; 3],
) -> [Vectors<'a, T>; 3] {
    let all = vectors::<T>(view, dims);
    let from = |head: usize| Vectors { data: all.data.get(head * all.head..).unwrap_or(&[]), ..all };
    [from(0), from(setting.heads), from(setting.heads + setting.kv_heads)]
}

/// The matrices of dq, dk and dv in a packed buffer of gradients.
pub(super) fn split_parts<'a, T>(
    data: &'a mut [T],
    setting: &Setting,
) -> [Vec<crate::cpu::simd::MatMut<'a, T>>; 3] {
    let Setting { queries, heads, kv_heads, width, .. } = *setting;
    let mut parts = [vec![], vec![], vec![]];
    for (i, head) in split_heads(data, queries, heads + 2 * kv_heads, width).into_iter().enumerate() {
        let head_of = i % (heads + 2 * kv_heads);
        parts[usize::from(head_of >= heads) + usize::from(head_of >= heads + kv_heads)].push(head);
    }
    parts
}

impl Op for PackedAttention {
    const NAME: &'static str = "packed_attention";
    const INPUTS: RangeInclusive<usize> = 1..=2;
    const STATISTICS: usize = 1;

    fn saves(&self, needs: &[bool]) -> Saves {
        Saves::inputs(if needs.len() > 1 { &[0, 1] } else { &[0] }).and_outputs(&[0, 1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, &inputs[..1])?;
        let s = self.setting(Self::NAME, &inputs[0].shape)?;
        if let Some(lengths) = inputs.get(1) {
            expect_integers(Self::NAME, "lengths", lengths, s.batch)?;
        }
        let vectors = [s.batch, s.queries, s.heads, s.width];
        Ok(Plan { outputs: result_metas(inputs[0], &vectors, &[s.batch, s.heads, s.queries])?, scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let setting = self.setting(Self::NAME, &inputs[0].shape())?;
        let sequences = setting.sequences(inputs.get(1))?;
        dispatch!(float inputs[0].dtype(), T => {
            let mut copy: Option<Block> = None;
            let qkv = with_rows::<T>(inputs[0], &mut copy)?;
            setting.forward(parts::<T>(&qkv, &setting, [0, 2, 1]), &sequences, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let setting = self.setting(Self::NAME, &inputs[0].shape())?;
        let qkv = gpu::Inputs::packed(stream, &inputs[0], &setting, [0, 2, 1])?;
        gpu::forward(stream, &setting, qkv, gpu::Extent::Lengths(inputs.get(1)), outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let PackedAttention { heads, kv_heads, causal, scale } = *self;
        let lengths = cx.node.inputs.len() > 1;
        deliver(cx, dys, PackedAttentionBackward { heads, kv_heads, causal, scale }, 1, lengths)
    }

    fn cases() -> Cases<Self> {
        let list = SHAPES.iter().map(|&(batch, rows, heads, kv_heads, width, causal, lengths)| {
            let op = PackedAttention { heads, kv_heads, causal, scale: 1.0 / (width as f64).sqrt() };
            let mut inputs = vec![Arg::new(&[batch, rows, heads + 2 * kv_heads, width], Values::Normal(1.0))];
            inputs.extend(lengths.map(|l| Arg::typed(&[batch], Values::Exactly(l.to_vec()), DType::I64)));
            Case { op, inputs }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list: list.collect() }
    }
}

/// Batch rows, positions, heads, heads of keys, width, causal, lengths.
type Sizes = (usize, usize, usize, usize, usize, bool, Option<&'static [f64]>);

const SHAPES: &[Sizes] = &[
    (1, 3, 2, 1, 4, true, None),
    (2, 4, 2, 2, 3, false, Some(&[0.0, 3.0])),
    (2, 35, 2, 1, 64, true, Some(&[35.0, 20.0])),
    (0, 2, 1, 1, 4, true, None),
];

/// The gradient of the buffer of [`PackedAttention`], all in one go, from the buffer, the two outputs, the gradient of the first, and
/// the lengths if there were such.
#[derive(Clone, Copy, Debug)]
pub struct PackedAttentionBackward {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and of the values.
    pub kv_heads: usize,
    /// Whether query i sees keys up to i only.
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: f64,
}

impl PackedAttentionBackward {
    fn forward(&self) -> PackedAttention {
        let PackedAttentionBackward { heads, kv_heads, causal, scale } = *self;
        PackedAttention { heads, kv_heads, causal, scale }
    }
}

impl Op for PackedAttentionBackward {
    const NAME: &'static str = "packed_attention_backward";
    const INPUTS: RangeInclusive<usize> = 4..=5;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let mut args = inputs[..1].to_vec();
        args.extend(inputs.get(4));
        expect_results(Self::NAME, inputs, 1, &self.forward().infer(&args)?.outputs)?;
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let setting = self.forward().setting(Self::NAME, &inputs[0].shape())?;
        let sequences = setting.sequences(inputs.get(4))?;
        dispatch!(float inputs[0].dtype(), T => {
            if inputs[0].numel() == 0 {
                zero::<T>(outputs);
                return Ok(());
            }
            let (mut copy, mut copies) = (None, [const { None }; 2]);
            let qkv = with_rows::<T>(inputs[0], &mut copy)?;
            let given = given::<T>([inputs[1], inputs[2], inputs[3]], &mut copies)?;
            let rows = split_parts(outputs[0].slice::<T>(), &setting);
            let problem = setting.problem(parts::<T>(&qkv, &setting, [0, 2, 1]), &sequences);
            cpu::backward(&problem, &given, rows)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let setting = self.forward().setting(Self::NAME, &inputs[0].shape())?;
        let qkv = gpu::Inputs::packed(stream, &inputs[0], &setting, [0, 2, 1])?;
        let results = gpu::Results::new(stream, [&inputs[1], &inputs[2], &inputs[3]])?;
        let grads = gpu::Grads::packed(&mut outputs[0], &setting);
        gpu::backward(stream, &setting, qkv, gpu::Extent::Lengths(inputs.get(4)), results, grads)
    }

    fn cases() -> Cases<Self> {
        let list = SHAPES.iter().map(|&(batch, rows, heads, kv_heads, width, causal, lengths)| {
            let scale = 1.0 / (width as f64).sqrt();
            let op = PackedAttentionBackward { heads, kv_heads, causal, scale };
            let mut inputs = vec![
                Arg::constant(&[batch, rows, heads + 2 * kv_heads, width], Values::Normal(1.0)),
                Arg::constant(&[batch, rows, heads, width], Values::Normal(1.0)),
                Arg::constant(&[batch, heads, rows], Values::Uniform(3.0, 5.0)),
                Arg::constant(&[batch, rows, heads, width], Values::Normal(1.0)),
            ];
            inputs.extend(lengths.map(|l| Arg::typed(&[batch], Values::Exactly(l.to_vec()), DType::I64)));
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
    /// Self-attention over a buffer `[B, T, heads + 2·kv_heads, D]` of queries, keys and values, in this order, such as one
    /// linear layer makes of all three: `[B, T, heads, D]`, contiguous, so that merging the heads is a free reshape. Its gradient
    /// is one buffer, written once.
    ///
    /// # Errors
    /// Another shape, heads that do not divide, lengths that are not i32 or i64 `[B]` or lie beyond T.
    #[track_caller]
    pub fn packed_attention(&self, heads: usize, kv_heads: usize, options: Sdpa<'_>) -> Result<Tensor> {
        let width = if self.rank() == 4 { self.dims()[3] } else { 1 };
        let op =
            PackedAttention { heads, kv_heads, causal: options.causal, scale: scale_of(&options, width) };
        attend(op, &[self], &options)
    }
}
