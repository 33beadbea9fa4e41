//! Attention on GPUs: which kernel takes what, and what it is given.
//!
//! The kernel is a function of shapes, strides, alignment and type: tensor cores for 16-bit vectors that lie on 16 bytes, f32
//! arithmetic for the rest; no width above 256.

#![forbid(unsafe_code)]

use super::segments::bad_bound;
use super::{Attention, Setting, bad_length};
use crate::device::Stream;
use crate::device::kernels::{attention as simt, attention_mma as mma};
use crate::device::launch::{Dst, Src, Strides, narrow};
use crate::device::stream::Packed;
use crate::shape::Layout;
use crate::tensor::{Out, View};
use crate::{DType, Error, Result};

/// The widest vectors that there are kernels for.
const WIDEST: usize = 256;

/// Queries, keys and values in device memory, vectors contiguous.
pub(super) struct Inputs<'a> {
    /// One buffer for all, or one for each.
    buffers: Vec<Packed<'a>>,
    /// The first element of each of the three in its buffer.
    offsets: [usize; 3],
    /// For each of the three the steps from one batch row, head and position to the next.
    steps: [[usize; 3]; 3],
}

/// A view's memory and the steps along `dims`; a copy where vectors are not contiguous.
fn rows<'a>(stream: &'a Stream, view: &View<'a>, dims: [usize; 3]) -> Result<(Packed<'a>, [usize; 3])> {
    let (layout, last) = (view.layout(), view.shape().rank() - 1);
    if layout.strides[last] == 1 || layout.shape[last] == 1 {
        return Ok((Packed::Whole(view.src()), steps(layout, dims)));
    }
    Ok((stream.contiguous(view)?, steps(&Layout::contiguous(view.shape()), dims)))
}

/// The steps along dimensions; 0 where there is nowhere to go.
fn steps(layout: &Layout, dims: [usize; 3]) -> [usize; 3] {
    dims.map(|d| if layout.shape[d] > 1 { layout.strides[d] } else { 0 })
}

impl<'a> Inputs<'a> {
    /// Of three tensors `[B, heads, rows, D]`.
    pub fn apart(stream: &'a Stream, views: [&View<'a>; 3]) -> Result<Inputs<'a>> {
        let mut all = Inputs { buffers: vec![], offsets: [0; 3], steps: [[0; 3]; 3] };
        for (i, view) in views.into_iter().enumerate() {
            let (buffer, steps) = rows(stream, view, [0, 1, 2])?;
            all.buffers.push(buffer);
            all.steps[i] = steps;
        }
        Ok(all)
    }

    /// Of one tensor whose dimensions `[batch, head, row]` these are.
    pub fn packed(
        stream: &'a Stream,
        view: &View<'a>,
        setting: &Setting,
        dims: [usize; 3],
    ) -> Result<Inputs<'a>> {
        let (buffer, mut steps) = rows(stream, view, dims)?;
        // Without a batch dimension any stands for it.
        steps[0] = if setting.batch > 1 { steps[0] } else { 0 };
        let head = steps[1];
        let offsets = [0, setting.heads * head, (setting.heads + setting.kv_heads) * head];
        Ok(Inputs { buffers: vec![buffer], offsets, steps: [steps; 3] })
    }

    /// Queries, keys and values.
    fn sources(&self) -> [Src<'_>; 3] {
        [0, 1, 2].map(|i| {
            let all = self.buffers[i.min(self.buffers.len() - 1)].src();
            let first = (self.offsets[i] as u64).min(all.len());
            all.part(first, all.len() - first)
        })
    }

    fn strides(&self) -> [Strides; 3] {
        self.steps.map(|s| Strides::of(&s))
    }

    /// Whether all vectors start on 16 bytes.
    fn aligned(&self) -> bool {
        let whole = |s: &[usize; 3]| s.iter().all(|n| n.is_multiple_of(8));
        self.steps.iter().all(whole) && self.sources().iter().all(|s| s.address().is_multiple_of(16))
    }
}

/// Which rows belong together, and which keys are valid.
pub(super) enum Extent<'a> {
    /// A number of keys for each batch row, or all.
    Lengths(Option<&'a View<'a>>),
    /// Bounds of documents.
    Segments(&'a View<'a>),
}

impl Extent<'_> {
    fn view(&self) -> Option<&View<'_>> {
        match self {
            Extent::Lengths(view) => *view,
            Extent::Segments(view) => Some(view),
        }
    }

    fn segments(&self) -> usize {
        match self {
            Extent::Lengths(_) => 0,
            Extent::Segments(view) => view.numel() - 1,
        }
    }

    /// Tiles of `tile` rows of a head, at most.
    fn tiles(&self, rows: usize, tile: usize) -> usize {
        rows.div_ceil(tile) + self.segments()
    }
}

/// The extent as kernels take it: one of two types, or none.
fn extents<'a>(buffer: &'a Option<Packed<'_>>) -> (Option<Src<'a>>, Option<Src<'a>>) {
    let src = buffer.as_ref().map(Packed::src);
    let of = |dtype: DType| src.filter(|s| s.dtype() == dtype);
    (of(DType::I32), of(DType::I64))
}

/// The result, the statistics and the gradient of the result, each in row-major order.
pub(super) struct Results<'a> {
    o: Packed<'a>,
    lse: Packed<'a>,
    dy: Packed<'a>,
}

impl<'a> Results<'a> {
    pub fn new(stream: &'a Stream, [o, lse, dy]: [&View<'a>; 3]) -> Result<Results<'a>> {
        Ok(Results { o: stream.contiguous(o)?, lse: stream.contiguous(lse)?, dy: stream.contiguous(dy)? })
    }
}

/// Where the gradients go.
pub(super) struct Grads<'a> {
    /// One buffer for all three, or one for each.
    buffers: Vec<Dst<'a>>,
    offsets: [usize; 3],
    /// Of the queries, and of the other two.
    steps: [[usize; 3]; 2],
}

impl<'a> Grads<'a> {
    pub fn apart(outputs: &'a mut [Out<'_>], setting: &Setting) -> Grads<'a> {
        let plane =
            |heads: usize, rows: usize| [heads * rows * setting.width, rows * setting.width, setting.width];
        let steps = [plane(setting.heads, setting.queries), plane(setting.kv_heads, setting.keys)];
        Grads { buffers: outputs.iter_mut().map(Out::dst).collect(), offsets: [0; 3], steps }
    }

    pub fn packed(out: &'a mut Out<'_>, setting: &Setting) -> Grads<'a> {
        let Setting { heads, kv_heads, queries, width, .. } = *setting;
        let row = (heads + 2 * kv_heads) * width;
        let offsets = [0, heads * width, (heads + kv_heads) * width];
        Grads { buffers: vec![out.dst()], offsets, steps: [[queries * row, width, row]; 2] }
    }

    fn zero(&mut self, stream: &Stream) -> Result<()> {
        self.buffers.iter_mut().try_for_each(|dst| {
            let src = dst.as_src();
            if src.is_empty() { Ok(()) } else { stream.fill(src.address(), 0, src.bytes() as usize) }
        })
    }
}

/// What kernels of a family need to know about widths.
#[derive(Clone, Copy)]
struct Shape {
    mma: bool,
    /// The width rounded up to one there is an instance for.
    pad: usize,
}

impl Shape {
    fn new(op: &'static str, setting: &Setting, dtype: DType, aligned: bool) -> Result<Shape> {
        let width = setting.width;
        if width > WIDEST {
            let message = format!("heads of {width} elements: kernels take {WIDEST} at most");
            return Err(Error::unsupported(op, message));
        }
        let pad = if width <= 64 { 64 } else { width.next_power_of_two() };
        Ok(Shape { mma: dtype.size() == 2 && aligned && width.is_multiple_of(8), pad })
    }

    /// Rows of the tile that a block owns.
    fn rows(self) -> usize {
        match self.mma {
            true => 64,
            false if self.pad == 256 => 16,
            false => 32,
        }
    }

    /// Bytes of shared memory: `own` tiles that a block owns, and two of the other side for each stage of `other` rows.
    fn shared(self, own: usize, (stages, other): (usize, usize), statistics: bool) -> u32 {
        let bytes = if self.mma {
            (own * 64 + stages * 2 * other) * self.pad * 2 + if statistics { stages * other * 8 } else { 0 }
        } else {
            let rows = self.rows();
            let tiles = (own + 2) * rows * (self.pad + 4) + rows * (rows + 1);
            4 * (tiles + if statistics { 2 * rows } else { 0 })
        };
        bytes.next_multiple_of(16) as u32
    }

    /// Stages and rows of the other side in the forward, and in the backward.
    fn forward_stages(self) -> (usize, usize) {
        (2, if self.pad == 256 { 32 } else { 64 })
    }

    fn backward_stages(self) -> (usize, usize) {
        match self.pad {
            64 => (2, 64),
            128 => (2, 32),
            _ => (1, 16),
        }
    }
}

/// Fills in what all kernels but that of delta take alike.
macro_rules! launch {
    ($stream:expr, $family:ident :: $kernel:ident, $plan:ident, { $($field:ident $(: $value:expr)?),* $(,)? }) => {
        $family::$kernel {
            pad: $plan.pad,
            q: $plan.q,
            k: $plan.k,
            v: $plan.v,
            extent32: $plan.extents.0,
            extent64: $plan.extents.1,
            qs: $plan.strides[0],
            ks: $plan.strides[1],
            vs: $plan.strides[2],
            batch: $plan.batch,
            group: $plan.group,
            queries: $plan.queries,
            keys: $plan.keys,
            width: $plan.width,
            causal: $plan.causal,
            segments: $plan.segments,
            scale: $plan.scale,
            $($field $(: $value)?,)*
        }
        .launch($stream)
    };
}

/// The arguments that all kernels take alike.
struct Common<'a> {
    pad: u32,
    q: Src<'a>,
    k: Src<'a>,
    v: Src<'a>,
    extents: (Option<Src<'a>>, Option<Src<'a>>),
    strides: [Strides; 3],
    batch: u64,
    group: u32,
    queries: u32,
    keys: u32,
    width: u32,
    causal: u32,
    segments: u32,
    scale: f32,
}

impl<'a> Common<'a> {
    fn new(
        s: &Setting,
        shape: Shape,
        inputs: &'a Inputs<'_>,
        extent: &Extent<'_>,
        buffer: &'a Option<Packed<'_>>,
    ) -> Result<Common<'a>> {
        let [q, mut k, mut v] = inputs.sources();
        if s.keys == 0 {
            // Nothing is read of them, but an address there must be.
            (k, v) = (q, q);
        }
        Ok(Common {
            pad: shape.pad as u32,
            q,
            k,
            v,
            extents: extents(buffer),
            strides: inputs.strides(),
            batch: s.batch as u64,
            group: narrow("heads", s.heads / s.kv_heads)?,
            queries: narrow("queries", s.queries)?,
            keys: narrow("keys", s.keys)?,
            width: s.width as u32,
            causal: s.causal.into(),
            segments: narrow("segments", extent.segments())?,
            scale: s.scale as f32,
        })
    }
}

/// The grid for all tiles of all heads.
fn grid(s: &Setting, heads: usize, tiles: usize, across: u32) -> Result<([u32; 3], u32)> {
    let blocks = s.batch.checked_mul(heads).and_then(|n| n.checked_mul(tiles)).unwrap_or(usize::MAX);
    Ok(([narrow("tiles", blocks)?, across, 1], narrow("tiles", tiles)?))
}

pub(super) fn forward(
    stream: &Stream,
    s: &Setting,
    inputs: Inputs<'_>,
    extent: Extent<'_>,
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let (o, lse) = outputs.split_at_mut(1);
    let dtype = o[0].dtype();
    let shape = Shape::new(<Attention as crate::ops::Op>::NAME, s, dtype, inputs.aligned())?;
    if s.batch * s.heads * s.queries == 0 {
        return Ok(());
    }
    let buffer = extent.view().map(|v| stream.contiguous(v)).transpose()?;
    let (keys, rows, documents) = (s.keys, s.queries, extent.segments() > 0);
    let mut fault = stream.fault_slot(move |value, at| {
        if documents { bad_bound(value, at, rows) } else { bad_length(value, at, keys) }
    })?;
    let plan = Common::new(s, shape, &inputs, &extent, &buffer)?;
    let (grid, tiles) = grid(s, s.heads, extent.tiles(s.queries, shape.rows()), 1)?;
    let heads = narrow("heads", s.heads)?;
    let shared = shape.shared(1, shape.forward_stages(), false);
    let (o, lse, fault) = (o[0].dst(), lse[0].dst(), fault.dst());
    if shape.mma {
        launch!(stream, mma::FlashForward, plan, { o, lse, fault, heads, tiles, grid, shared })
    } else {
        launch!(stream, simt::AttentionForward, plan, { o, lse, fault, heads, tiles, grid, shared })
    }
}

pub(super) fn backward(
    stream: &Stream,
    s: &Setting,
    inputs: Inputs<'_>,
    extent: Extent<'_>,
    results: Results<'_>,
    mut grads: Grads<'_>,
) -> Result<()> {
    let (o, lse, dy) = (results.o.src(), results.lse.src(), results.dy.src());
    let aligned = inputs.aligned() && dy.address().is_multiple_of(16);
    let shape = Shape::new("attention_backward", s, o.dtype(), aligned)?;
    if s.batch * s.queries * s.keys == 0 {
        return grads.zero(stream);
    }
    let buffer = extent.view().map(|v| stream.contiguous(v)).transpose()?;
    let mut delta = stream.temp(DType::F32, s.batch * s.heads * s.queries)?;
    let (rows, queries) = ((s.batch * s.queries) as u64, s.queries as u64);
    let (heads, width) = (s.heads as u64, s.width as u64);
    simt::AttentionDelta { o, dy, delta: delta.dst(), rows, queries, heads, width }.launch(stream)?;

    let delta = delta.src();
    let [dqs, dks] = grads.steps.map(|s| Strides::of(&s));
    {
        let plan = Common::new(s, shape, &inputs, &extent, &buffer)?;
        let (grid, tiles) = grid(s, s.heads, extent.tiles(s.queries, shape.rows()), 1)?;
        let heads = narrow("heads", s.heads)?;
        let shared = shape.shared(2, shape.backward_stages(), false);
        let dq = grads.buffers[0].again();
        if shape.mma {
            launch!(stream, mma::FlashQueries, plan, { dy, lse, delta, dq, dqs, heads, tiles, grid, shared })?;
        } else {
            launch!(stream, simt::AttentionQueries, plan, { dy, lse, delta, dq, dqs, heads, tiles, grid, shared })?;
        }
    }
    let plan = Common::new(s, shape, &inputs, &extent, &buffer)?;
    // A block of the tensor cores makes 128 columns.
    let across = if shape.mma && shape.pad == 256 { 2 } else { 1 };
    let (grid, tiles) = grid(s, s.kv_heads, extent.tiles(s.keys, shape.rows()), across)?;
    let heads = narrow("heads", s.kv_heads)?;
    let shared = shape.shared(2, shape.backward_stages(), true);
    let dv_at = (grads.offsets[2] - grads.offsets[1]) as u64;
    let mut rest = grads.buffers.iter_mut().skip(1);
    let (dk, dv) = match (rest.next(), rest.next()) {
        (Some(dk), Some(dv)) => (dk.again(), Some(dv.again())),
        _ => {
            let (all, first) = (grads.buffers[0].again(), grads.offsets[1] as u64);
            let len = all.as_src().len();
            (all.part(first, len - first), None)
        }
    };
    if shape.mma {
        launch!(stream, mma::FlashKeys, plan, { dy, lse, delta, dk, dv, dks, dv_at, heads, tiles, grid, shared })
    } else {
        launch!(stream, simt::AttentionKeys, plan, { dy, lse, delta, dk, dv, dks, dv_at, heads, tiles, grid, shared })
    }
}
