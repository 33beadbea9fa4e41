//! The matrix product C = f((C +) A·B + bias) on a GPU, for any strides, broadcast batches and three float types.
//!
//! [`plan`](plan::plan) chooses the kernel; what stands here fills in its arguments. The bits of a result depend on the plan
//! and so on the shapes (the number of batches too), strides, alignment, type and architecture, not on who else uses the card. f32 products with
//! k up to 256 have the bits that the CPU gives them.
//!
//! Refused: f64 (no instance), dimensions from 2³² on.

#![forbid(unsafe_code)]

pub mod plan;

use super::kernels::{matmul, matmul_mma};
use super::launch::{Dims, Dst, Src, Strides, merge, narrow};
use super::stream::Stream;
use crate::{DType, Error, Result};
use plan::{Access, Arch, Desc, Plan, Tile};

/// One factor: a batch of matrices of rows of A (columns of B) by k.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    /// From the first element on.
    pub src: Src<'a>,
    /// Elements from one row of A (column of B) to the next.
    pub stride: usize,
    /// Elements from one k to the next.
    pub k_stride: usize,
    /// Elements from one matrix to the next in each dimension of the batch; 0 repeats it.
    pub batch: &'a [usize],
}

/// A product and what becomes of it.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// Sizes of the batch's dimensions.
    pub batch: &'a [usize],
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The dimension that is summed over.
    pub k: usize,
    /// [batch, m, k]
    pub a: Factor<'a>,
    /// [batch, k, n]
    pub b: Factor<'a>,
    /// [batch, m, n], row-major: of the factors' type, or f32.
    pub c: Dst<'a>,
    /// Whether the product is added to C rather than stored.
    pub add: bool,
    /// n elements that are added to every row, of C's type.
    pub bias: Option<Src<'a>>,
    /// The number of the activation: `enum WsActivation` in `kernels/core/math.cuh`.
    pub activation: u32,
    /// Receives what the activation is applied to: as C.
    pub pre: Option<Dst<'a>>,
    /// Whether f32 factors may be rounded to tf32: an error of up to 2⁻¹⁰ of each product, for several times the speed.
    pub tf32: bool,
}

/// The largest power of two that divides all of these, at most 8.
fn alignment(numbers: impl Iterator<Item = u64>) -> usize {
    1 << numbers.map(u64::trailing_zeros).min().unwrap_or(3).min(3)
}

impl Factor<'_> {
    /// As a plan sees it, for matrices of `rows` rows in a batch of these sizes.
    fn access(&self, rows: usize, batch: &[usize]) -> Access {
        let size = self.src.dtype().size() as u64;
        let address = self.src.address();
        let first = if address.is_multiple_of(size) { address / size } else { 1 };
        let walked = self.batch.iter().zip(batch).filter(|(_, size)| **size > 1);
        let aligned = alignment(walked.map(|(&step, _)| step as u64).chain([first]));
        Access { rows, stride: self.stride, k_stride: self.k_stride, aligned }
    }
}

/// Computes `g` by the kernels that its plan says.
pub fn gemm(stream: &Stream, g: Gemm<'_>) -> Result<()> {
    let arch = Arch { capability: stream.info().capability };
    let plan = plan::plan(&g.desc(), arch);
    g.run(stream, plan)
}

/// The arguments that all product kernels have.
struct Common<'a> {
    a: Src<'a>,
    b: Src<'a>,
    bias: Option<Src<'a>>,
    c: Option<Dst<'a>>,
    pre: Option<Dst<'a>>,
    part: Option<Dst<'a>>,
    batch: Dims,
    a_batch: Strides,
    b_batch: Strides,
    batches: u64,
    m: u32,
    n: u32,
    k: u32,
    splits: u32,
    slice: u32,
    activation: u32,
    add: u32,
    quads: u32,
    grid: [u32; 3],
}

/// Launches a kernel with the common arguments and its own.
macro_rules! launch {
    ($stream:expr, $kernel:path, $common:expr, $($own:ident: $value:expr),* $(,)?) => {{
        let Common {
            a, b, bias, c, pre, part, batch, a_batch, b_batch, batches,
            m, n, k, splits, slice, activation, add, quads, grid,
        } = $common;
        $kernel {
            a, b, bias, c, pre, part, batch, a_batch, b_batch, batches,
            m, n, k, splits, slice, activation, add, quads, grid, $($own: $value),*
        }
        .launch($stream)
    }};
}

impl Gemm<'_> {
    /// What the plan is made from.
    pub fn desc(&self) -> Desc {
        Desc {
            dtype: self.a.src.dtype(),
            a: self.a.access(self.m, self.batch),
            b: self.b.access(self.n, self.batch),
            k: self.k,
            batches: self.batch.iter().product(),
            tf32: self.tf32,
        }
    }

    /// Whether rows of all results start on multiples of four elements.
    fn quads(&self) -> bool {
        let aligned = |dst: &Dst<'_>| dst.address().is_multiple_of(4 * dst.dtype().size() as u64);
        self.n.is_multiple_of(4) && aligned(&self.c) && self.pre.as_ref().is_none_or(aligned)
    }

    /// Computes it as `plan` says.
    pub(crate) fn run(mut self, stream: &Stream, plan: Plan) -> Result<()> {
        let desc = self.desc();
        if self.m == 0 || self.n == 0 || desc.batches == 0 {
            return Ok(());
        }
        if !plan.tile.serves(&desc) {
            return Err(Error::unsupported(
                "matmul",
                format!("{:?} cannot multiply {}", plan.tile, desc.dtype),
            ));
        }
        let too_many = || Error::unsupported("matmul", "more blocks than a grid has");
        let sums = self.m as u64 * self.n as u64 * desc.batches as u64;
        let quads = u32::from(self.quads());
        let (batch, [a_batch, b_batch]) = merge(self.batch, [self.a.batch, self.b.batch]);
        let mut common = Common {
            a: self.a.src,
            b: self.b.src,
            bias: None,
            c: None,
            pre: None,
            part: None,
            batch,
            a_batch,
            b_batch,
            batches: desc.batches as u64,
            m: narrow("m", self.m)?,
            n: narrow("n", self.n)?,
            k: narrow("k", self.k)?,
            splits: narrow("splits", plan.splits)?,
            slice: narrow("slice", plan.slice)?,
            activation: self.activation,
            add: self.add.into(),
            quads,
            grid: plan.grid(&desc).ok_or_else(too_many)?,
        };
        let same = self.c.dtype() == desc.dtype;
        if plan.splits == 1 && same {
            common.bias = self.bias;
            common.c = Some(self.c.again());
            common.pre = self.pre.as_mut().map(Dst::again);
            return multiply(stream, plan.tile, &desc, common);
        }
        let plain = self.bias.is_none() && self.pre.is_none() && self.activation == 0 && !self.add;
        if plan.splits == 1 && self.c.dtype() == DType::F32 && plain {
            // The sums are the result.
            common.part = Some(self.c.again());
            return multiply(stream, plan.tile, &desc, common);
        }
        let count = usize::try_from(sums).ok().and_then(|s| s.checked_mul(plan.splits)).ok_or_else(|| {
            Error::unsupported("matmul", "the sums of the slices do not fit the address space")
        })?;
        let mut part = stream.temp(DType::F32, count)?;
        common.part = Some(part.dst());
        multiply(stream, plan.tile, &desc, common)?;
        matmul::SplitSum {
            part: part.src(),
            bias: self.bias,
            c: self.c,
            pre: self.pre,
            batches: desc.batches as u64,
            m: self.m as u64,
            n: self.n as u64,
            splits: plan.splits as u64,
            activation: self.activation,
            add: self.add.into(),
            quads,
        }
        .launch(stream)
    }
}

/// Launches the product kernel of `tile`.
fn multiply(stream: &Stream, tile: Tile, d: &Desc, common: Common<'_>) -> Result<()> {
    let k = d.k;
    match tile {
        Tile::Simt128 | Tile::Simt64 | Tile::Simt32 | Tile::MmaAny => {
            let ((a_row, a_k), (b_col, b_k)) = (d.a.strides(k), d.b.strides(k));
            let (a_mode, b_mode) = (d.a.mode(k), d.b.mode(k));
            macro_rules! any {
                ($kernel:path) => {
                    launch!(stream, $kernel, common, a_row: a_row, a_k: a_k, b_k: b_k, b_col: b_col, a_mode: a_mode, b_mode: b_mode)
                };
            }
            match tile {
                Tile::Simt128 => any!(matmul::Simt128x128),
                Tile::Simt64 => any!(matmul::Simt64x64),
                Tile::Simt32 => any!(matmul::Simt32x32),
                _ => any!(matmul_mma::MmaAny),
            }
        }
        Tile::Mma256 | Tile::Mma128 | Tile::Mma64 | Tile::MmaTf32 => {
            let pitch = |access: Access| {
                let pitch =
                    access.pitch(k).ok_or_else(|| Error::internal("a tensor-core tile without a pitch"));
                pitch.map(|p| p as u64)
            };
            let (a_pitch, b_pitch) = (pitch(d.a)?, pitch(d.b)?);
            let (ka, kb) = (u32::from(d.a.along_k(k)), u32::from(d.b.along_k(k)));
            macro_rules! aligned {
                ($kernel:path) => {
                    launch!(stream, $kernel, common, ka: ka, kb: kb, a_pitch: a_pitch, b_pitch: b_pitch)
                };
            }
            match tile {
                Tile::Mma256 => aligned!(matmul_mma::Mma256x128),
                Tile::Mma128 => aligned!(matmul_mma::Mma128x128),
                Tile::Mma64 => aligned!(matmul_mma::Mma64x64),
                _ => aligned!(matmul_mma::MmaTf32),
            }
        }
    }
}
