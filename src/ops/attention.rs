//! Scaled dot-product attention without the matrix of scores, and its gradients.
//!
//! o = softmax(scale · q kᵀ) v for each head, by online softmax over tiles of keys; what is kept for the backward is ln Σ e^score of
//! each query. The backward finds the probabilities again from that. Three forms: queries, keys and values apart; one buffer of
//! all three, as a fused projection makes it, whose gradient is one buffer again; and such a buffer of documents of different
//! lengths, one behind the other. Query heads share those of keys and values in groups.

#![forbid(unsafe_code)]

mod gpu;
mod packed;
mod segments;

use std::ops::RangeInclusive;

use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run, same_float};
use crate::cpu::attention::{self as cpu, Gradients, Problem, Results, Sequence, Vectors};
use crate::cpu::copy::move_elements;
use crate::cpu::pool::Block;
use crate::cpu::simd::MatMut;
use crate::device::Stream;
use crate::dtype::{Element, Float};
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

pub use packed::{PackedAttention, PackedAttentionBackward};
pub use segments::{SegmentedAttention, SegmentedAttentionBackward};

super::family!(
    Attention,
    AttentionBackward,
    PackedAttention,
    PackedAttentionBackward,
    SegmentedAttention,
    SegmentedAttentionBackward,
);

/// How attention is computed: [`Tensor::scaled_dot_product_attention`], [`Tensor::packed_attention`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Sdpa<'a> {
    /// Query i sees keys j ≤ i + (S − T) only: aligned at the last query and the last key, so that new queries see the keys of a
    /// cache. PyTorch's `is_causal` aligns at the first ones; the two agree where there are as many queries as keys. A
    /// query that sees no key gives 0.
    pub causal: bool,
    /// What scores are multiplied by; `None`: 1/√D.
    pub scale: Option<f64>,
    /// How many keys of each batch row are valid, i32 or i64 `[B]`, the first ones; `None`: all. The others are never read.
    pub lengths: Option<&'a Tensor>,
}

/// Sizes and arguments of one attention, whichever form it has.
#[derive(Clone, Copy, Debug)]
struct Setting {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    causal: bool,
    scale: f64,
}

impl Setting {
    fn shift(&self) -> Option<isize> {
        self.causal.then(|| self.keys as isize - self.queries as isize)
    }

    /// A sequence for each batch row.
    fn sequences(&self, lengths: Option<&View<'_>>) -> Result<Vec<Sequence>> {
        let lengths = match lengths {
            Some(view) => integers(view),
            None => vec![self.keys as i64; self.batch],
        };
        let sequence = |(batch, &length): (usize, &i64)| {
            let keys = usize::try_from(length).ok().filter(|&n| n <= self.keys);
            let keys = keys.ok_or_else(|| bad_length(length, batch as u64, self.keys))?;
            let (queries, span, shift) = (self.queries, self.keys, self.shift());
            Ok(Sequence { batch, first: 0, queries, span, keys, shift })
        };
        lengths.iter().enumerate().map(sequence).collect()
    }

    fn problem<'a, T>(&self, [q, k, v]: [Vectors<'a, T>; 3], sequences: &'a [Sequence]) -> Problem<'a, T> {
        let Setting { heads, kv_heads, width, scale, .. } = *self;
        Problem { q, k, v, heads, kv_heads, width, scale, sequences }
    }

    /// Runs the forward into vectors `[B, T, H, D]` and statistics `[B, H, T]`.
    fn forward<T: Float>(
        &self,
        vectors: [Vectors<'_, T>; 3],
        sequences: &[Sequence],
        outputs: &mut [Out<'_>],
    ) -> Result<()> {
        let (o, lse) = outputs.split_at_mut(1);
        let o = o[0].slice::<T>();
        if o.is_empty() {
            return Ok(());
        }
        let o = split_heads(o, self.queries, self.heads, self.width);
        let lse = lse[0].slice::<T::Acc>().chunks_mut(self.queries);
        let results = o.into_iter().zip(lse).map(|(o, lse)| Results { o, lse });
        cpu::forward(&self.problem(vectors, sequences), results)
    }

    fn check(self, op: &'static str) -> Result<Setting> {
        if self.width == 0
            || self.kv_heads == 0
            || self.heads == 0
            || !self.heads.is_multiple_of(self.kv_heads)
        {
            let message = format!(
                "{} heads of {} elements cannot share {} heads of keys",
                self.heads, self.width, self.kv_heads
            );
            let help = "heads are a multiple of those of keys and values, none of them without elements";
            return Err(Error::shape(op, message).with_help(help));
        }
        if !self.scale.is_finite() {
            return Err(
                Error::argument(format!("scale {} is not a number to multiply by", self.scale)).with_op(op)
            );
        }
        Ok(self)
    }
}

/// The values of an integer tensor of rank 1.
fn integers(view: &View<'_>) -> Vec<i64> {
    let at = |i: usize| i * view.layout().strides[0];
    match view.dtype() {
        DType::I32 => (0..view.numel()).map(|i| view.data::<i32>()[at(i)].into()).collect(),
        _ => (0..view.numel()).map(|i| view.data::<i64>()[at(i)]).collect(),
    }
}

fn bad_length(length: i64, batch: u64, keys: usize) -> Error {
    Error::argument(format!("length {length} of batch row {batch} is not in 0..={keys}, the number of keys"))
}

/// Checks that `meta` is `n` integers.
fn expect_integers(op: &'static str, what: &str, meta: &Meta, n: usize) -> Result<()> {
    if !matches!(meta.dtype, DType::I32 | DType::I64) {
        return Err(Error::dtype(op, format!("{what} are {}, not i32 or i64", meta.dtype)));
    }
    if meta.shape.dims() != [n] {
        return Err(Error::shape(op, format!("{what} are {}, not [{n}]", meta.shape)));
    }
    Ok(())
}

/// The type of the statistics.
fn statistics_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The matrices of the heads of `[B, rows, heads, width]`, batch rows outermost.
fn split_heads<T>(data: &mut [T], rows: usize, heads: usize, width: usize) -> Vec<MatMut<'_, T>> {
    let mut all = Vec::new();
    for batch in data.chunks_mut(rows * heads * width) {
        let mut rest = MatMut::new(batch, rows, heads * width, heads * width);
        for _ in 0..heads {
            let (head, others) = rest.split_cols(width);
            all.push(head);
            rest = others;
        }
    }
    all
}

/// The matrices of `[.., rows, width]`.
fn planes<T>(data: &mut [T], rows: usize, width: usize) -> Vec<MatMut<'_, T>> {
    data.chunks_mut(rows * width).map(|m| MatMut::new(m, rows, width, width)).collect()
}

/// `view` with contiguous vectors along the last dimension: itself, or a copy.
fn with_rows<'a, T: Element>(view: View<'a>, copy: &'a mut Option<Block>) -> Result<View<'a>> {
    let last = view.shape().rank() - 1;
    if view.layout().strides[last] == 1 || view.shape()[last] <= 1 || view.numel() == 0 {
        return Ok(view);
    }
    let block = copy.insert(Block::new(view.numel() * size_of::<T>())?);
    let to = Layout::contiguous(view.shape());
    move_elements(view.data::<T>(), view.layout(), block.typed_mut::<T>(), &to, false);
    Ok(View::of(block.typed::<T>(), view.shape()))
}

/// The vectors of a view whose dimensions `[batch, head, row]` these are.
fn vectors<'a, T: Element>(view: &View<'a>, [batch, head, row]: [usize; 3]) -> Vectors<'a, T> {
    let strides = view.layout().strides;
    Vectors { data: view.data(), batch: strides[batch], head: strides[head], row: strides[row] }
}

/// Fills all outputs with zeros.
fn zero<T: Element>(outputs: &mut [Out<'_>]) {
    outputs.iter_mut().for_each(|o| o.slice::<T>().fill(T::default()));
}

/// Puts the gradient of a result of zeros where none reached it.
fn gradient(cx: &BackwardCx<'_>, dy: &Option<Tensor>) -> Result<Tensor> {
    match dy {
        Some(dy) => Ok(dy.clone()),
        None => {
            let meta = cx.output_meta(0);
            Tensor::zeros((), meta.dtype, meta.device)?.expand(meta.shape)
        }
    }
}

/// Runs the forward `op` on `q`, `k`, `v` or a packed buffer, and lengths if there are such; its vectors.
#[track_caller]
fn attend<O: Op>(op: O, inputs: &[&Tensor], options: &Sdpa<'_>) -> Result<Tensor> {
    let mut inputs = inputs.to_vec();
    inputs.extend(options.lengths);
    Ok(run(op, &inputs)?.swap_remove(0))
}

/// The backward of any form: runs `op` on the saved inputs, o, lse, dy and whatever stands behind the inputs.
fn deliver<O: Op>(
    cx: &mut BackwardCx<'_>,
    dys: &[Option<Tensor>],
    op: O,
    inputs: usize,
    extra: bool,
) -> Result<()> {
    if dys[0].is_none() {
        return Ok(());
    }
    let mut args = (0..inputs).map(|i| cx.input(i)).collect::<Result<Vec<_>>>()?;
    args.extend([cx.output(0)?, cx.output(1)?, gradient(cx, &dys[0])?]);
    if extra {
        args.push(cx.input(inputs)?);
    }
    let targets: Vec<usize> = (0..inputs).collect();
    cx.run(op, &args.iter().collect::<Vec<_>>(), &targets)
}

/// Attention of queries `[B, H, T, D]` over keys and values `[B, Hkv, S, D]` and, as a fourth input, how many keys of each batch row
/// are valid; outputs the vectors, `[B, T, H, D]`, and ln Σ e^score, `[B, H, T]` in f32 (f64 in f64).
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Whether query i sees keys up to i + (S − T) only.
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: f64,
}

impl Attention {
    fn setting(&self, op: &'static str, [q, k, v]: [Shape; 3]) -> Result<Setting> {
        let alike = q.rank() == 4 && k.rank() == 4 && v == k && q[0] == k[0] && q[3] == k[3];
        if !alike {
            let message =
                format!("queries {q}, keys {k} and values {v} are not [B, H, T, D] and twice [B, Hkv, S, D]");
            return Err(Error::shape(op, message));
        }
        let (batch, heads, queries, width) = (q[0], q[1], q[2], q[3]);
        let (kv_heads, keys) = (k[1], k[2]);
        let Attention { causal, scale } = *self;
        Setting { batch, heads, kv_heads, queries, keys, width, causal, scale }.check(op)
    }

    fn of(&self, op: &'static str, inputs: &[View<'_>]) -> Result<Setting> {
        self.setting(op, [inputs[0].shape(), inputs[1].shape(), inputs[2].shape()])
    }
}

/// The shapes of the vectors and of the statistics.
fn result_metas(like: Meta, vectors: &[usize], statistics: &[usize]) -> Result<Vec<Meta>> {
    let lse = like.with_shape(Shape::new(statistics)?).with_dtype(statistics_dtype(like.dtype));
    Ok(vec![like.with_shape(Shape::new(vectors)?), lse])
}

impl Op for Attention {
    const NAME: &'static str = "attention";
    const INPUTS: RangeInclusive<usize> = 3..=4;
    const STATISTICS: usize = 1;

    fn saves(&self, needs: &[bool]) -> Saves {
        Saves::inputs(if needs.len() > 3 { &[0, 1, 2, 3] } else { &[0, 1, 2] }).and_outputs(&[0, 1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, &inputs[..3])?;
        let s = self.setting(Self::NAME, [inputs[0].shape, inputs[1].shape, inputs[2].shape])?;
        if let Some(lengths) = inputs.get(3) {
            expect_integers(Self::NAME, "lengths", lengths, s.batch)?;
        }
        let outputs =
            result_metas(inputs[0], &[s.batch, s.queries, s.heads, s.width], &[s.batch, s.heads, s.queries])?;
        Ok(Plan { outputs, scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let setting = self.of(Self::NAME, inputs)?;
        let sequences = setting.sequences(inputs.get(3))?;
        dispatch!(float inputs[0].dtype(), T => {
            let mut copies = [const { None }; 3];
            let vectors = apart::<T>(inputs, &mut copies)?;
            setting.forward(vectors, &sequences, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let setting = self.of(Self::NAME, inputs)?;
        let qkv = gpu::Inputs::apart(stream, [&inputs[0], &inputs[1], &inputs[2]])?;
        gpu::forward(stream, &setting, qkv, gpu::Extent::Lengths(inputs.get(3)), outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Attention { causal, scale } = *self;
        let lengths = cx.node.inputs.len() > 3;
        deliver(cx, dys, AttentionBackward { causal, scale }, 3, lengths)
    }

    fn cases() -> Cases<Self> {
        let list = SHAPES.iter().map(|shape| {
            let op = Attention { causal: shape.causal, scale: shape.scale() };
            Case { op, inputs: shape.inputs(Arg::new).into_iter().chain(shape.lengths()).collect() }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list: list.collect() }
    }
}

/// Queries, keys and values of the form in which they are apart.
fn apart<'a, T: Element>(
    inputs: &[View<'a>],
    copies: &'a mut [Option<Block>; 3],
) -> Result<[Vectors<'a, T>; 3]> {
    let mut views = [inputs[0], inputs[1], inputs[2]];
    for (view, copy) in views.iter_mut().zip(copies) {
        *view = with_rows::<T>(*view, copy)?;
    }
    Ok(views.map(|v| vectors(&v, [0, 1, 2])))
}

/// dq, dk and dv of [`Attention`], from q, k, v, its two outputs, the gradient of the first, and the lengths if there were such.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBackward {
    /// Whether query i sees keys up to i + (S − T) only.
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: f64,
}

/// Checks o, lse and dy, the inputs of a backward behind the first `at`.
fn expect_results(op: &'static str, inputs: &[Meta], at: usize, expected: &[Meta]) -> Result<()> {
    let expected = [expected[0], expected[1], expected[0]];
    if inputs[at..at + 3] == expected {
        return Ok(());
    }
    Err(Error::shape(op, format!("results are {:?}, expected {expected:?}", &inputs[at..at + 3])))
}

impl Op for AttentionBackward {
    const NAME: &'static str = "attention_backward";
    const INPUTS: RangeInclusive<usize> = 6..=7;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let forward = Attention { causal: self.causal, scale: self.scale };
        let mut args = inputs[..3].to_vec();
        args.extend(inputs.get(6));
        expect_results(Self::NAME, inputs, 3, &forward.infer(&args)?.outputs)?;
        Ok(Plan { outputs: inputs[..3].to_vec(), scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let setting = Attention { causal: self.causal, scale: self.scale }.of(Self::NAME, inputs)?;
        let sequences = setting.sequences(inputs.get(6))?;
        dispatch!(float inputs[0].dtype(), T => {
            if inputs[0].numel() == 0 || inputs[1].numel() == 0 {
                zero::<T>(outputs);
                return Ok(());
            }
            let mut copies = [const { None }; 3];
            let vectors = apart::<T>(inputs, &mut copies)?;
            let [dq, dk, dv] = outputs else { return Err(Error::internal("three outputs")) };
            let rows = [
                planes(dq.slice::<T>(), setting.queries, setting.width),
                planes(dk.slice::<T>(), setting.keys, setting.width),
                planes(dv.slice::<T>(), setting.keys, setting.width),
            ];
            let mut copies = [const { None }; 2];
            let given = given::<T>([inputs[3], inputs[4], inputs[5]], &mut copies)?;
            cpu::backward(&setting.problem(vectors, &sequences), &given, rows)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let setting = Attention { causal: self.causal, scale: self.scale }.of(Self::NAME, inputs)?;
        let qkv = gpu::Inputs::apart(stream, [&inputs[0], &inputs[1], &inputs[2]])?;
        let results = gpu::Results::new(stream, [&inputs[3], &inputs[4], &inputs[5]])?;
        let grads = gpu::Grads::apart(outputs, &setting);
        gpu::backward(stream, &setting, qkv, gpu::Extent::Lengths(inputs.get(6)), results, grads)
    }

    fn cases() -> Cases<Self> {
        let list = SHAPES.iter().filter(|s| s.backward).map(|shape| {
            let op = AttentionBackward { causal: shape.causal, scale: shape.scale() };
            let inputs =
                shape.inputs(Arg::constant).into_iter().chain(shape.results()).chain(shape.lengths());
            Case { op, inputs: inputs.collect() }
        });
        Cases {
            dtypes: &[DType::F32, DType::F64],
            tolerance: Tolerance::Sum(16.0, WHY),
            list: list.collect(),
        }
    }
}

/// o and dy, `[B, T, H, D]`, and lse, `[B, H, T]`.
fn given<'a, T: Float>(
    [o, lse, dy]: [View<'a>; 3],
    [o_copy, dy_copy]: &'a mut [Option<Block>; 2],
) -> Result<Gradients<'a, T>> {
    let (o, dy) = (with_rows::<T>(o, o_copy)?, with_rows::<T>(dy, dy_copy)?);
    Ok(Gradients { o: vectors(&o, [0, 2, 1]), dy: vectors(&dy, [0, 2, 1]), lse: vectors(&lse, [0, 1, 2]) })
}

/// The same of the form without a batch dimension: `[N, H, D]` and `[H, N]`.
fn given_flat<'a, T: Float>(
    [o, lse, dy]: [View<'a>; 3],
    [o_copy, dy_copy]: &'a mut [Option<Block>; 2],
) -> Result<Gradients<'a, T>> {
    let (o, dy) = (with_rows::<T>(o, o_copy)?, with_rows::<T>(dy, dy_copy)?);
    Ok(Gradients { o: vectors(&o, [0, 1, 0]), dy: vectors(&dy, [0, 1, 0]), lse: vectors(&lse, [0, 0, 1]) })
}

const WHY: &str = "dot products, an exponential and a weighted sum; the reference's scale has what an error of a score does";

/// Sizes of a case.
struct Sizes {
    batch: usize,
    heads: [usize; 2],
    rows: [usize; 2],
    width: usize,
    causal: bool,
    lengths: Option<&'static [f64]>,
    /// The deviation of queries and keys.
    size: f64,
    /// Whether the backward has a case too.
    backward: bool,
}

const fn sizes(batch: usize, heads: [usize; 2], rows: [usize; 2], width: usize, causal: bool) -> Sizes {
    Sizes { batch, heads, rows, width, causal, lengths: None, size: 1.0, backward: true }
}

const SHAPES: &[Sizes] = &[
    sizes(1, [1, 1], [1, 1], 1, false),
    sizes(1, [2, 1], [3, 5], 4, true),
    sizes(1, [1, 1], [5, 3], 8, true),
    Sizes { lengths: Some(&[0.0, 2.0, 6.0]), ..sizes(3, [2, 1], [2, 6], 5, false) },
    Sizes { lengths: Some(&[17.0, 4.0]), ..sizes(2, [4, 2], [1, 17], 40, true) },
    // Beyond a tile of each kernel, and ragged.
    sizes(1, [2, 1], [70, 70], 32, true),
    sizes(1, [1, 1], [9, 133], 64, false),
    sizes(1, [1, 1], [20, 33], 128, true),
    // Scores whose exponentials overflow.
    Sizes { size: 8.0, backward: false, ..sizes(1, [1, 1], [5, 40], 16, true) },
    Sizes { backward: false, ..sizes(1, [1, 1], [4, 6], 136, false) },
    sizes(0, [1, 1], [2, 2], 4, false),
    sizes(1, [1, 1], [0, 3], 4, false),
    sizes(1, [1, 1], [3, 0], 4, false),
];

impl Sizes {
    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    fn inputs(&self, arg: fn(&[usize], Values) -> Arg) -> Vec<Arg> {
        let [h, kv] = self.heads;
        let [t, s] = self.rows;
        vec![
            arg(&[self.batch, h, t, self.width], Values::Normal(self.size)),
            arg(&[self.batch, kv, s, self.width], Values::Normal(self.size)),
            arg(&[self.batch, kv, s, self.width], Values::Normal(1.0)),
        ]
    }

    fn lengths(&self) -> Option<Arg> {
        let lengths = self.lengths?;
        let dtype = if lengths.len() > 2 { DType::I32 } else { DType::I64 };
        Some(Arg::typed(&[self.batch], Values::Exactly(lengths.to_vec()), dtype))
    }

    /// o, lse (larger than any score, as it should be) and dy.
    fn results(&self) -> Vec<Arg> {
        let (b, h, t, d) = (self.batch, self.heads[0], self.rows[0], self.width);
        let largest = 3.0 * self.size * self.size;
        vec![
            Arg::constant(&[b, t, h, d], Values::Normal(1.0)),
            Arg::constant(&[b, h, t], Values::Uniform(largest, largest + 2.0)),
            Arg::constant(&[b, t, h, d], Values::Normal(1.0)),
        ]
    }
}

impl Tensor {
    /// Attention of the queries `self`, `[B, H, T, D]`, over `k` and `v`, `[B, Hkv, S, D]`, as PyTorch's
    /// `scaled_dot_product_attention`: softmax(scale · q kᵀ) v for each head; H is a multiple of Hkv, and H / Hkv neighbours share
    /// a head of keys (`enable_gqa`). The result, `[B, H, T, D]`, is a transposed view of a contiguous `[B, T, H, D]`, so that
    /// `transpose(1, 2)` and a reshape, which merge the heads, copy nothing. The matrix of scores is never in memory.
    ///
    /// ```
    /// # use warpsmith::{Device, Tensor, ops::Sdpa};
    /// # fn main() -> warpsmith::Result<()> {
    /// let q = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0], [1, 1, 2, 2], Device::Cpu)?;
    /// let y = q.scaled_dot_product_attention(&q, &q, Sdpa { causal: true, ..Sdpa::default() })?;
    /// // The first query sees itself alone.
    /// assert_eq!(y.to_f64_vec()?[..2], [1.0, 0.0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Other shapes, different types, lengths that are not i32 or i64 `[B]` or lie beyond S.
    #[track_caller]
    pub fn scaled_dot_product_attention(&self, k: &Tensor, v: &Tensor, options: Sdpa<'_>) -> Result<Tensor> {
        let width = if self.rank() == 4 { self.dims()[3] } else { 1 };
        let op = Attention { causal: options.causal, scale: scale_of(&options, width) };
        attend(op, &[self, k, v], &options)?.transpose(1, 2)
    }
}

/// The scale that is asked for.
fn scale_of(options: &Sdpa<'_>, width: usize) -> f64 {
    options.scale.unwrap_or(1.0 / (width.max(1) as f64).sqrt())
}
