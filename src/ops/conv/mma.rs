//! Convolution on tensor cores: which products `conv_mma.cu` takes, and how their factors are laid out for it.
//!
//! Images go there with their channels last, so that 16 bytes are eight channels of a pixel; a copy turns them where they do
//! not lie so already. Weights are turned alike.

#![forbid(unsafe_code)]

use super::gpu::{Finish, moves, slices, split_grid};
use crate::cpu::conv::Geometry;
use crate::device::Stream;
use crate::device::copy::strided;
use crate::device::kernels::{conv_mma as kernels, matmul};
use crate::device::launch::{Dst, narrow};
use crate::device::stream::Packed;
use crate::shape::Layout;
use crate::tensor::{Mode, Out, View};
use crate::{DType, Result, Shape};

/// Channels that one access moves.
const CHUNK: usize = 8;
/// Multiply-adds up to which tensor cores gain nothing.
const TINY: usize = 32 * 32 * 32;

/// Whether a product of `m` rows by `n` columns over `k` goes to tensor cores; the channels that are fetched are `chunked`.
fn serves(g: &Geometry, dtype: DType, [m, n, k]: [usize; 3], chunked: &[usize]) -> bool {
    let narrow = matches!(dtype, DType::BF16 | DType::F16);
    let small = (0..2).all(|d| g.image[d] + 2 * g.padding[d] < 1 << 29);
    let work = m.saturating_mul(n).saturating_mul(k);
    narrow && small && m >= CHUNK && work > TINY && chunked.iter().all(|c| c.is_multiple_of(CHUNK) && *c > 0)
}

/// `view [n, c, h, w]` as `[n, h, w, c]`, and whether it can be read in chunks.
fn channels_last<'a>(stream: &'a Stream, view: &View<'a>) -> Result<(Packed<'a>, bool)> {
    let packed = stream.contiguous(&view.with_layout(view.layout().permute(&[0, 2, 3, 1])?))?;
    let aligned = packed.src().address().is_multiple_of(16);
    Ok((packed, aligned))
}

/// A product of pixels: what y and dx differ in.
struct Pixels<'a> {
    g: &'a Geometry,
    /// Channels a group of the image that is read, and of the result.
    channels: usize,
    filters: usize,
    /// Size of the image that is read, and of the result.
    from: [usize; 2],
    to: [usize; 2],
    divide: [usize; 2],
    k_step: [i64; 2],
    c_step: [i64; 2],
    start: [i64; 2],
}

impl Pixels<'_> {
    fn run(
        &self,
        stream: &Stream,
        b: &View<'_>,
        a: &Packed<'_>,
        c: Dst<'_>,
        finish: Finish<'_>,
    ) -> Result<bool> {
        let (image, aligned) = channels_last(stream, b)?;
        if !aligned || !a.src().address().is_multiple_of(16) {
            return Ok(false);
        }
        let g = self.g;
        let pixel = g.groups * self.channels;
        let (m, n) = (self.filters, g.images * self.to[0] * self.to[1]);
        let k = self.channels * g.kernel[0] * g.kernel[1];
        let plane = self.to[0] * self.to[1];
        macro_rules! launch {
            ($kernel:ident, $tile:expr) => {
                kernels::$kernel {
                    div: u32::from(self.divide != [1, 1]),
                    a: a.src(),
                    b: image.src(),
                    bias: finish.bias,
                    c,
                    pre: finish.pre,
                    groups: g.groups as u64,
                    by_h: (self.from[1] * pixel) as u64,
                    by_w: pixel as u64,
                    b_apart: (self.from[0] * self.from[1] * pixel) as u64,
                    apart: (g.groups * m * plane) as u64,
                    m: narrow("channels", m)?,
                    n: narrow("pixels", n)?,
                    k: narrow("k", k)?,
                    channels: narrow("channels", self.channels)?,
                    k_low: narrow("kernel", g.kernel[1])?,
                    c_mid: narrow("rows", self.to[0])?,
                    c_low: narrow("columns", self.to[1])?,
                    k_h: self.k_step[0] as i32,
                    k_w: self.k_step[1] as i32,
                    c_h: self.c_step[0] as i32,
                    c_w: self.c_step[1] as i32,
                    h0: self.start[0] as i32,
                    w0: self.start[1] as i32,
                    height: narrow("rows", self.from[0])?,
                    width: narrow("columns", self.from[1])?,
                    div_h: narrow("stride", self.divide[0])?,
                    div_w: narrow("stride", self.divide[1])?,
                    plane: narrow("pixels", plane)?,
                    activation: finish.activation,
                    add: finish.add.into(),
                    grid: split_grid([m.div_ceil($tile), n.div_ceil($tile), 1, g.groups])?,
                }
                .launch(stream)?
            };
        }
        // A large tile where it is not mostly empty.
        if m > 64 && n > 64 {
            launch!(ConvMma128, 128)
        } else {
            launch!(ConvMma64, 64)
        }
        Ok(true)
    }
}

/// y; false where the plain kernels must do it.
pub(super) fn forward(
    stream: &Stream,
    g: &Geometry,
    (x, w): (&View<'_>, &View<'_>),
    y: Dst<'_>,
    finish: Finish<'_>,
) -> Result<bool> {
    let n = g.images * g.result[0] * g.result[1];
    let k = g.channels * g.kernel[0] * g.kernel[1];
    if !serves(g, x.dtype(), [g.filters, n, k], &[g.channels]) {
        return Ok(false);
    }
    let weights = stream.contiguous(&w.with_layout(w.layout().permute(&[0, 2, 3, 1])?))?;
    let (stride, padding, dilation) = moves(g)?;
    let product = Pixels {
        g,
        channels: g.channels,
        filters: g.filters,
        from: g.image,
        to: g.result,
        divide: [1, 1],
        k_step: dilation,
        c_step: stride,
        start: padding.map(|p| -p),
    };
    product.run(stream, x, &weights, y, finish)
}

/// dx; false where the plain kernels must do it.
pub(super) fn input(
    stream: &Stream,
    g: &Geometry,
    (dy, w): (&View<'_>, &View<'_>),
    dx: Dst<'_>,
    finish: Finish<'_>,
) -> Result<bool> {
    let n = g.images * g.image[0] * g.image[1];
    let k = g.filters * g.kernel[0] * g.kernel[1];
    if !serves(g, dy.dtype(), [g.channels, n, k], &[g.filters]) {
        return Ok(false);
    }
    let grouped = Shape::new(&[g.groups, g.filters, g.channels, g.kernel[0], g.kernel[1]])?;
    let Some(layout) = w.layout().reshape(&grouped) else { return Ok(false) };
    let weights = stream.contiguous(&w.with_layout(layout.permute(&[0, 2, 3, 4, 1])?))?;
    let (_, padding, dilation) = moves(g)?;
    let product = Pixels {
        g,
        channels: g.filters,
        filters: g.channels,
        from: g.result,
        to: g.image,
        divide: g.stride,
        k_step: dilation.map(|d| -d),
        c_step: [1, 1],
        start: padding,
    };
    product.run(stream, dy, &weights, dx, finish)
}

/// dw; false where the plain kernels must do it.
pub(super) fn weight(
    stream: &Stream,
    g: &Geometry,
    (dy, x): (&View<'_>, &View<'_>),
    dw: &mut Out<'_>,
) -> Result<bool> {
    let (m, n) = (g.filters, g.channels * g.kernel[0] * g.kernel[1]);
    let k = g.images * g.result[0] * g.result[1];
    if !serves(g, x.dtype(), [m, n, k], &[g.channels, g.filters]) {
        return Ok(false);
    }
    let ((a, a_aligned), (b, b_aligned)) = (channels_last(stream, dy)?, channels_last(stream, x)?);
    if !a_aligned || !b_aligned {
        return Ok(false);
    }
    let (stride, padding, dilation) = moves(g)?;
    let pixel = g.groups * g.channels;
    let (splits, slice) = slices(g.groups, m, n, k);
    let size = g.groups * m * n;
    let mut part = stream.temp(DType::F32, size * splits)?;
    kernels::ConvMmaWeight {
        a: a.src(),
        b: b.src(),
        part: part.dst(),
        groups: g.groups as u64,
        a_pitch: (g.groups * g.filters) as u64,
        by_h: (g.image[1] * pixel) as u64,
        by_w: pixel as u64,
        b_apart: (g.image[0] * g.image[1] * pixel) as u64,
        m: narrow("filters", m)?,
        n: narrow("channels", n)?,
        k: narrow("k", k)?,
        channels: narrow("channels", g.channels)?,
        c_low: narrow("kernel", g.kernel[1])?,
        k_mid: narrow("rows", g.result[0])?,
        k_low: narrow("columns", g.result[1])?,
        k_h: stride[0] as i32,
        k_w: stride[1] as i32,
        c_h: dilation[0] as i32,
        c_w: dilation[1] as i32,
        h0: -padding[0] as i32,
        w0: -padding[1] as i32,
        height: narrow("rows", g.image[0])?,
        width: narrow("columns", g.image[1])?,
        splits: narrow("splits", splits)?,
        slice: narrow("slice", slice)?,
        grid: split_grid([m.div_ceil(64), n.div_ceil(64), splits, g.groups])?,
    }
    .launch(stream)?;
    let mut sums = stream.temp(DType::F32, if splits == 1 { 0 } else { size })?;
    if splits > 1 {
        matmul::SplitSum {
            part: part.src(),
            bias: None,
            c: sums.dst(),
            pre: None,
            batches: g.groups as u64,
            m: m as u64,
            n: n as u64,
            splits: splits as u64,
            activation: 0,
            add: 0,
            quads: 0,
        }
        .launch(stream)?;
    }
    // [filter, row, column of the kernel, channel] to [filter, channel, row, column].
    let from = Layout::contiguous(Shape::new(&[g.groups * m, g.kernel[0], g.kernel[1], g.channels])?);
    let from = from.permute(&[0, 3, 1, 2])?;
    let add = dw.mode() == Mode::Accumulate;
    let to = Layout::contiguous(dw.shape());
    let sums = if splits == 1 { part.src() } else { sums.src() };
    strided(stream, sums, &from, dw.dst(), &to, add)?;
    Ok(true)
}
