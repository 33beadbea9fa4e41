//! Convolution on a GPU: y, dx and dw as products, and which kernel of `conv.cu` makes each (`kernels/core/conv.cuh` says how an
//! image stands for a matrix).
//!
//! The bits of a result depend on shapes, strides, types and, for elements of 16 bits, on whether the operands begin at
//! multiples of 16 bytes: views that do not go to the plain kernels. k is cut, for dw only, by the same numbers on any card.

#![forbid(unsafe_code)]

use super::shapes::Sizes;
use super::{ConvInputBackward, ConvWeightBackward, Convolution, mma};
use crate::cpu::conv::Geometry;
use crate::device::Stream;
use crate::device::kernels::{conv as kernels, matmul};
use crate::device::launch::{Dst, Src, narrow};
use crate::tensor::{Mode, Out, View};
use crate::{DType, Error, Result};

/// Rows and columns of C that a block of `conv_tile` makes.
const TILE: usize = 64;
/// Rows a group up to which a thread (or a block) makes an element.
const THIN: usize = 4;
/// Blocks that dw is cut into by slices of k, which are whole multiples of [`SLICE`]; and elements of their sums at most.
const BLOCKS: usize = 264;
const SLICE: usize = 256;
const SUMS: usize = 1 << 26;

/// A number whose digits run below these sizes.
type Digits = [usize; 3];

/// C[row, col] = Σ A[row, k] · image[place of col and k], for each group.
struct Product<'a> {
    groups: usize,
    m: usize,
    k: Digits,
    col: Digits,
    a: Src<'a>,
    /// Elements from a group, a row and a unit of each digit of k to the next.
    a_group: usize,
    a_row: usize,
    a_k: [usize; 3],
    image: Src<'a>,
    /// Elements from a group, and from a unit of the first digits of k and col, to the next.
    b_group: usize,
    k_offset: usize,
    c_offset: usize,
    /// Size of the image and distances of its rows and columns.
    size: [usize; 2],
    by: [usize; 2],
    /// Rows and columns that a unit of the other digits moves, and where both begin.
    k_step: [i64; 2],
    c_step: [i64; 2],
    start: [i64; 2],
    /// What places are divided by.
    divide: [usize; 2],
    /// Columns of an image of C, and elements from one image to the next.
    plane: usize,
    apart: usize,
}

/// What becomes of C.
pub(super) struct Finish<'a> {
    pub bias: Option<Src<'a>>,
    pub pre: Option<Dst<'a>>,
    pub activation: u32,
    pub add: bool,
}

impl Finish<'_> {
    /// The same for a shorter time.
    fn again(&mut self) -> Finish<'_> {
        Finish { bias: self.bias, pre: self.pre.as_mut().map(Dst::again), ..*self }
    }
}

fn signed(what: &str, value: usize) -> Result<i64> {
    Ok(i64::from(narrow(what, value)?))
}

/// Stride, padding and dilation as numbers that stay small.
pub(super) fn moves(g: &Geometry) -> Result<([i64; 2], [i64; 2], [i64; 2])> {
    for (image, padding) in g.image.iter().zip(g.padding) {
        narrow("the padded image", image + 2 * padding)?;
    }
    let both = |what: &str, [a, b]: [usize; 2]| Ok::<_, crate::Error>([signed(what, a)?, signed(what, b)?]);
    Ok((both("stride", g.stride)?, both("padding", g.padding)?, both("dilation", g.dilation)?))
}

impl<'a> Product<'a> {
    /// y from x and w.
    fn forward(g: &Geometry, x: &View<'a>, w: &View<'a>) -> Result<Self> {
        let (stride, padding, dilation) = moves(g)?;
        let (x_by, w_by) = (&x.layout().strides, &w.layout().strides);
        let plane = g.result[0] * g.result[1];
        Ok(Product {
            groups: g.groups,
            m: g.filters,
            k: [g.channels, g.kernel[0], g.kernel[1]],
            col: [g.images, g.result[0], g.result[1]],
            a: w.src(),
            a_group: g.filters * w_by[0],
            a_row: w_by[0],
            a_k: [w_by[1], w_by[2], w_by[3]],
            image: x.src(),
            b_group: g.channels * x_by[1],
            k_offset: x_by[1],
            c_offset: x_by[0],
            size: g.image,
            by: [x_by[2], x_by[3]],
            k_step: dilation,
            c_step: stride,
            start: padding.map(|p| -p),
            divide: [1, 1],
            plane,
            apart: g.groups * g.filters * plane,
        })
    }

    /// dx from dy and w.
    fn input(g: &Geometry, dy: &View<'a>, w: &View<'a>) -> Result<Self> {
        let (_, padding, dilation) = moves(g)?;
        let (y_by, w_by) = (&dy.layout().strides, &w.layout().strides);
        let plane = g.image[0] * g.image[1];
        Ok(Product {
            groups: g.groups,
            m: g.channels,
            k: [g.filters, g.kernel[0], g.kernel[1]],
            col: [g.images, g.image[0], g.image[1]],
            a: w.src(),
            a_group: g.filters * w_by[0],
            a_row: w_by[1],
            a_k: [w_by[0], w_by[2], w_by[3]],
            image: dy.src(),
            b_group: g.filters * y_by[1],
            k_offset: y_by[1],
            c_offset: y_by[0],
            size: g.result,
            by: [y_by[2], y_by[3]],
            k_step: dilation.map(|d| -d),
            c_step: [1, 1],
            start: padding,
            divide: g.stride,
            plane,
            apart: g.groups * g.channels * plane,
        })
    }

    /// dw from dy and x.
    fn weight(g: &Geometry, dy: &View<'a>, x: &View<'a>) -> Result<Self> {
        let (stride, padding, dilation) = moves(g)?;
        let (y_by, x_by) = (&dy.layout().strides, &x.layout().strides);
        Ok(Product {
            groups: g.groups,
            m: g.filters,
            k: [g.images, g.result[0], g.result[1]],
            col: [g.channels, g.kernel[0], g.kernel[1]],
            a: dy.src(),
            a_group: g.filters * y_by[1],
            a_row: y_by[1],
            a_k: [y_by[0], y_by[2], y_by[3]],
            image: x.src(),
            b_group: g.channels * x_by[1],
            k_offset: x_by[0],
            c_offset: x_by[1],
            size: g.image,
            by: [x_by[2], x_by[3]],
            k_step: stride,
            c_step: dilation,
            start: padding.map(|p| -p),
            divide: [1, 1],
            plane: g.channels * g.kernel[0] * g.kernel[1],
            apart: 0,
        })
    }

    fn n(&self) -> usize {
        self.col.iter().product()
    }

    fn depth(&self) -> usize {
        self.k.iter().product()
    }
}

/// Launches a kernel with the arguments that all have and its own.
macro_rules! launch {
    ($stream:expr, $kernel:path, $p:expr, $($own:ident: $value:expr),* $(,)?) => {{
        let p = $p;
        $kernel {
            a: p.a,
            b: p.image,
            groups: p.groups as u64,
            a_group: p.a_group as u64,
            b_group: p.b_group as u64,
            a_row: p.a_row as u64,
            a_hi: p.a_k[0] as u64,
            a_mid: p.a_k[1] as u64,
            a_low: p.a_k[2] as u64,
            k_offset: p.k_offset as u64,
            c_offset: p.c_offset as u64,
            by_h: p.by[0] as u64,
            by_w: p.by[1] as u64,
            m: narrow("channels", p.m)?,
            n: narrow("pixels", p.n())?,
            k_mid: narrow("k", p.k[1])?,
            k_low: narrow("k", p.k[2])?,
            c_mid: narrow("rows", p.col[1])?,
            c_low: narrow("columns", p.col[2])?,
            k_h: p.k_step[0] as i32,
            k_w: p.k_step[1] as i32,
            c_h: p.c_step[0] as i32,
            c_w: p.c_step[1] as i32,
            h0: p.start[0] as i32,
            w0: p.start[1] as i32,
            height: narrow("rows", p.size[0])?,
            width: narrow("columns", p.size[1])?,
            $($own: $value),*
        }
        .launch($stream)
    }};
}

/// A grid of as many blocks as the product of these, numbered through x and y.
pub(super) fn split_grid(counts: [usize; 4]) -> Result<[u32; 3]> {
    let blocks = counts.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
    let grid = blocks.and_then(|blocks| {
        let y = blocks.div_ceil(i32::MAX as usize).max(1);
        Some([u32::try_from(blocks.div_ceil(y)).ok()?, u32::try_from(y).ok()?, 1])
    });
    grid.ok_or_else(|| Error::unsupported("conv2d", "more blocks than a grid has"))
}

/// C (or the sums of slices of k) in tiles, each by a block.
fn tiles(
    stream: &Stream,
    p: &Product<'_>,
    c: Option<Dst<'_>>,
    part: Option<Dst<'_>>,
    (splits, slice): (usize, usize),
    finish: Finish<'_>,
) -> Result<()> {
    let grid = split_grid([p.m.div_ceil(TILE), p.n().div_ceil(TILE), splits, p.groups])?;
    launch!(stream, kernels::ConvTile, p,
        div: u32::from(p.divide != [1, 1]),
        bias: finish.bias,
        c: c,
        pre: finish.pre,
        part: part,
        apart: p.apart as u64,
        k: narrow("k", p.depth())?,
        div_h: narrow("stride", p.divide[0])?,
        div_w: narrow("stride", p.divide[1])?,
        plane: narrow("pixels", p.plane)?,
        splits: narrow("splits", splits)?,
        slice: narrow("slice", slice)?,
        activation: finish.activation,
        add: finish.add.into(),
        grid: grid,
    )
}

/// y or dx.
fn pixels(stream: &Stream, p: &Product<'_>, c: Dst<'_>, finish: Finish<'_>) -> Result<()> {
    if p.m > THIN {
        return tiles(stream, p, Some(c), None, (1, p.depth().max(1)), finish);
    }
    launch!(stream, kernels::ConvThin, p,
        div: u32::from(p.divide != [1, 1]),
        bias: finish.bias,
        c: c,
        pre: finish.pre,
        apart: p.apart as u64,
        k_hi: narrow("k", p.k[0])?,
        div_h: narrow("stride", p.divide[0])?,
        div_w: narrow("stride", p.divide[1])?,
        plane: narrow("pixels", p.plane)?,
        activation: finish.activation,
        add: finish.add.into(),
    )
}

pub(super) fn forward(
    op: &Convolution,
    stream: &Stream,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let (x, w) = (&inputs[0], &inputs[1]);
    let sizes = Sizes::forward("conv2d", &op.conv, &x.shape(), &w.shape())?;
    let (y, pre) = outputs.split_at_mut(1);
    if y[0].shape().numel() == 0 {
        return Ok(());
    }
    let bias = inputs.get(2).map(|b| stream.contiguous(b)).transpose()?;
    let mut finish = Finish {
        bias: bias.as_ref().map(|b| b.src()),
        pre: pre.first_mut().map(|p| p.dst()),
        activation: op.activation as u32,
        add: false,
    };
    if mma::forward(stream, &sizes.0, (x, w), y[0].dst(), finish.again())? {
        return Ok(());
    }
    pixels(stream, &Product::forward(&sizes.0, x, w)?, y[0].dst(), finish)
}

pub(super) fn input_backward(
    op: &ConvInputBackward,
    stream: &Stream,
    inputs: &[View<'_>],
    dx: &mut Out<'_>,
) -> Result<()> {
    let (dy, w) = (&inputs[0], &inputs[1]);
    let sizes = Sizes::input("conv2d_input_backward", &op.conv, &dy.shape(), &w.shape(), op.size)?;
    if dx.shape().numel() == 0 {
        return Ok(());
    }
    let mut finish = Finish { bias: None, pre: None, activation: 0, add: dx.mode() == Mode::Accumulate };
    if mma::input(stream, &sizes.0, (dy, w), dx.dst(), finish.again())? {
        return Ok(());
    }
    pixels(stream, &Product::input(&sizes.0, dy, w)?, dx.dst(), finish)
}

pub(super) fn weight_backward(
    op: &ConvWeightBackward,
    stream: &Stream,
    inputs: &[View<'_>],
    dw: &mut Out<'_>,
) -> Result<()> {
    let (dy, x) = (&inputs[0], &inputs[1]);
    let sizes = Sizes::weight("conv2d_weight_backward", &op.conv, &dy.shape(), &x.shape(), op.kernel)?;
    if dw.shape().numel() == 0 {
        return Ok(());
    }
    if mma::weight(stream, &sizes.0, (dy, x), dw)? {
        return Ok(());
    }
    let p = Product::weight(&sizes.0, dy, x)?;
    let add = dw.mode() == Mode::Accumulate;
    let k = p.depth();
    if p.m <= THIN {
        return launch!(stream, kernels::ConvDot, &p, c: dw.dst(), k: narrow("k", k)?, add: add.into());
    }
    let (splits, slice) = slices(p.groups, p.m, p.n(), k);
    let none = Finish { bias: None, pre: None, activation: 0, add };
    if splits == 1 {
        return tiles(stream, &p, Some(dw.dst()), None, (1, slice), none);
    }
    let size = p.groups * p.m * p.n();
    let mut part = stream.temp(DType::F32, size * splits)?;
    tiles(stream, &p, None, Some(part.dst()), (splits, slice), none)?;
    matmul::SplitSum {
        part: part.src(),
        bias: None,
        c: dw.dst(),
        pre: None,
        batches: p.groups as u64,
        m: p.m as u64,
        n: p.n() as u64,
        splits: splits as u64,
        activation: 0,
        add: add.into(),
        quads: 0,
    }
    .launch(stream)
}

/// How many slices dw's k is cut into, and steps of k in each.
pub(super) fn slices(groups: usize, m: usize, n: usize, k: usize) -> (usize, usize) {
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE) * groups;
    let most = SUMS / (groups * m * n).max(1);
    let wanted = BLOCKS.div_ceil(tiles).min(most).max(1);
    let slice = k.div_ceil(wanted).next_multiple_of(SLICE).max(SLICE);
    (k.div_ceil(slice).max(1), slice)
}
