//! Self-attention over a sequence, with grouped queries, rotary positions and a cache of keys and values.
//!
//! One product makes queries, keys and values side by side, `[B, T, (H + 2·Hkv)·D]`, and attention reads them there: no head
//! is ever copied apart. Without a cache positions count from 0; with one they go on where the cache ends.

#![forbid(unsafe_code)]

use super::{Activation, Cx, Init, Module, Scope};
use crate::ops::{RotaryTable, Sdpa};
use crate::shape::IntoShape;
use crate::tensor::no_grad;
use crate::{DType, Device, Error, Param, Result, Shape, Tensor};

/// What a [`SelfAttention`] is built from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// The width of input and output, C.
    pub width: usize,
    /// Query heads, H; a head is C / H wide.
    pub heads: usize,
    /// Key and value heads, Hkv, of which H is a multiple.
    pub kv_heads: usize,
    /// Whether a position sees only itself and those before it.
    pub causal: bool,
    /// Whether both products have a bias.
    pub bias: bool,
    /// The base of rotary positions (10,000 in the paper, arXiv:2104.09864); no positions in attention without.
    pub rotary: Option<f64>,
    /// The longest sequence.
    pub context: usize,
    /// Standard deviations of the initial weights: of the first and of the last product.
    pub std: [f64; 2],
}

impl AttentionOptions {
    /// The width of a head, D.
    ///
    /// Errors unless the width is a multiple of the heads, these a multiple of the key heads, and, for rotary positions, D even.
    pub fn head_width(&self) -> Result<usize> {
        let AttentionOptions { width, heads, kv_heads, .. } = *self;
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(Error::argument(format!("{heads} heads do not divide a width of {width}")));
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            let message = format!("{heads} query heads are no multiple of {kv_heads} key and value heads");
            return Err(Error::argument(message));
        }
        let d = width / heads;
        if self.rotary.is_some() && d % 2 == 1 {
            return Err(Error::argument(format!("rotary positions need heads of even width, not {d}")));
        }
        Ok(d)
    }
}

/// Multi-head self-attention `[B, T, C]` to `[B, T, C]`. Parameters `c_attn.weight [(H + 2·Hkv)·D, C]`, rows in the order
/// queries, keys, values, and `c_proj.weight [C, C]`; with `bias` also `c_attn.bias` and `c_proj.bias`.
#[derive(Clone)]
pub struct SelfAttention {
    options: AttentionOptions,
    head_width: usize,
    attn: Product,
    proj: Product,
    table: Option<RotaryTable>,
}

/// A linear layer: weight and bias.
#[derive(Clone)]
pub(super) struct Product {
    weight: Param,
    bias: Option<Param>,
}

impl Product {
    pub(super) fn new(scope: &Scope, sizes: [usize; 2], bias: bool, std: f64) -> Result<Product> {
        let [inputs, outputs] = sizes;
        let weight = scope.param("weight", [outputs, inputs], Init::Normal { mean: 0.0, std })?;
        let bias = bias.then(|| scope.param("bias", outputs, Init::Constant(0.0))).transpose()?;
        Ok(Product { weight, bias })
    }

    #[track_caller]
    pub(super) fn apply(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Param::get).transpose()?;
        x.linear(&self.weight.get()?, bias.as_ref(), activation)
    }

    pub(super) fn params(&self) -> impl Iterator<Item = Param> + '_ {
        [&self.weight].into_iter().chain(&self.bias).cloned()
    }
}

/// The keys and values of the positions that one layer has seen, for [`SelfAttention::forward_cached`].
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[B, context, Hkv, D]` each.
    keys: Tensor,
    values: Tensor,
    len: usize,
}

impl KvCache {
    /// Room for `context` positions of `batch` sequences.
    pub fn new(
        batch: usize,
        context: usize,
        heads: [usize; 2],
        dtype: DType,
        device: Device,
    ) -> Result<KvCache> {
        let [kv_heads, head_width] = heads;
        let shape = [batch, context, kv_heads, head_width].into_shape()?;
        Ok(KvCache {
            keys: Tensor::zeros(shape, dtype, device)?,
            values: Tensor::zeros(shape, dtype, device)?,
            len: 0,
        })
    }

    /// Positions seen so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds keys and values `[B, T, Hkv, D]` and gives all there are so far, as views.
    fn extend(&mut self, keys: &Tensor, values: &Tensor) -> Result<[Tensor; 2]> {
        let (new, room) = (keys.dims()[1], self.keys.dims()[1]);
        if self.len + new > room {
            let message = format!("{new} positions do not fit a cache of {room} that holds {}", self.len);
            return Err(
                Error::argument(message).with_help("clear the cache and start from the last positions")
            );
        }
        self.keys.narrow(1, self.len, new)?.copy_(keys)?;
        self.values.narrow(1, self.len, new)?.copy_(values)?;
        self.len += new;
        Ok([self.keys.narrow(1, 0, self.len)?, self.values.narrow(1, 0, self.len)?])
    }
}

impl SelfAttention {
    /// A layer with weights drawn from N(0, std²) and biases of zero. Errors: see [`AttentionOptions::head_width`].
    pub fn new(scope: &Scope, options: AttentionOptions) -> Result<SelfAttention> {
        let head_width = options.head_width()?;
        let AttentionOptions { width, heads, kv_heads, bias, std: [first, last], .. } = options;
        let all = (heads + 2 * kv_heads) * head_width;
        let attn = Product::new(&scope.enter("c_attn"), [width, all], bias, first)?;
        let proj = Product::new(&scope.enter("c_proj"), [width, width], bias, last)?;
        let device = scope.arena().device();
        let table = options
            .rotary
            .map(|theta| RotaryTable::new(options.context, head_width, theta, device))
            .transpose()?;
        Ok(SelfAttention { options, head_width, attn, proj, table })
    }

    /// Queries, keys and values `[B, T, H + 2·Hkv, D]`, the first two turned to their positions from `offset` on.
    #[track_caller]
    fn heads(&self, x: &Tensor, offset: usize) -> Result<Tensor> {
        let AttentionOptions { width, heads, kv_heads, context, .. } = self.options;
        let &[batch, steps, _] = x.dims() else { return Err(wrong_input(x, width)) };
        if x.dims()[2] != width {
            return Err(wrong_input(x, width));
        }
        if offset + steps > context {
            let message = format!("position {} of a sequence, but the context is {context}", offset + steps);
            return Err(Error::shape("self_attention", message));
        }
        let all = Shape::new(&[batch, steps, heads + 2 * kv_heads, self.head_width])?;
        let qkv = self.attn.apply(x, Activation::Identity)?.reshape(all)?;
        match &self.table {
            Some(table) => qkv.rotary_embedding(table.tensor(), heads + kv_heads, offset),
            None => Ok(qkv),
        }
    }

    /// As [`Module::forward`] for the positions that follow those in `cache`, which it adds them to. No gradient flows.
    #[track_caller]
    pub fn forward_cached(&self, x: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let AttentionOptions { heads, kv_heads, causal, .. } = self.options;
        no_grad(|| {
            let qkv = self.heads(x, cache.len())?;
            let [keys, values] = cache
                .extend(&qkv.narrow(2, heads, kv_heads)?, &qkv.narrow(2, heads + kv_heads, kv_heads)?)?;
            let by_head = |t: Tensor| t.transpose(1, 2);
            let q = by_head(qkv.narrow(2, 0, heads)?)?;
            let options = Sdpa { causal, ..Sdpa::default() };
            let y = q.scaled_dot_product_attention(&by_head(keys)?, &by_head(values)?, options)?;
            self.proj.apply(&by_head(y)?.reshape(x.shape())?, Activation::Identity)
        })
    }
}

fn wrong_input(x: &Tensor, width: usize) -> Error {
    Error::shape("self_attention", format!("the input is {}, expected [B, T, {width}]", x.shape()))
}

impl Module for SelfAttention {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let AttentionOptions { heads, kv_heads, causal, .. } = self.options;
        let options = Sdpa { causal, ..Sdpa::default() };
        let y = self.heads(x, 0)?.packed_attention(heads, kv_heads, options)?;
        self.proj.apply(&y.reshape(x.shape())?, Activation::Identity)
    }

    fn params(&self) -> Vec<Param> {
        self.attn.params().chain(self.proj.params()).collect()
    }
}
