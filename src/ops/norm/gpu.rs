//! The norms on a GPU: which kernels of `norm.cu` run, and in which pieces the parameters' gradients are added up.

#![forbid(unsafe_code)]

use super::Tape;
use crate::device::Stream;
use crate::device::kernels::norm as kernels;
use crate::device::launch::{Rows, Src, narrow};
use crate::ops::gpu::{packed, src};
use crate::tensor::{Mode, Out, View};
use crate::{DType, Result};

/// The forward of both norms. `outs`: y, then mean if `centred`, then rstd. With `sum` the norm is that of x plus a residual,
/// and their sum is written too.
pub(super) fn forward(
    stream: &Stream,
    x: &View<'_>,
    sum: Option<(&View<'_>, &mut Out<'_>)>,
    (weight, bias): (Option<&View<'_>>, Option<&View<'_>>),
    (n, centred, eps): (usize, bool, f64),
    outs: &mut [Out<'_>],
) -> Result<()> {
    let (y, stats) = outs.split_at_mut(1);
    let (means, rstds) = stats.split_at_mut(usize::from(centred));
    let count = rstds[0].shape().numel();
    let (x, weight, bias) = (stream.contiguous(x)?, packed(stream, weight)?, packed(stream, bias)?);
    let (residual, sum) = sum.unzip();
    let residual = packed(stream, residual)?;
    let (x, residual, weight, bias) = (x.src(), src(&residual), src(&weight), src(&bias));
    let sum = sum.map(|s| s.dst());
    let add = u32::from(y[0].mode() == Mode::Accumulate);
    let (y, mean, rstd) = (y[0].dst(), means.first_mut().map(|m| m.dst()), rstds[0].dst());
    let address = |s: &Option<Src<'_>>| s.map_or(0, |s| s.address());
    let sum_address = sum.as_ref().map_or(0, |s| s.as_src().address());
    let addresses =
        [x.address(), y.address(), address(&weight), address(&bias), address(&residual), sum_address];
    let Rows { rows, n, vector, .. } = Rows::new(count, narrow("a row", n)?, &addresses, x.dtype());
    let (eps, fused) = (eps as f32, u32::from(sum.is_some()));
    match Rows::per_lane(n, x.dtype(), &[1, 2, 4, 8]) {
        Some(per) => {
            let f = if centred { kernels::NormWarpF::LayerNorm } else { kernels::NormWarpF::RmsNorm };
            kernels::NormWarp {
                f,
                fused,
                per,
                x,
                residual,
                weight,
                bias,
                sum,
                y,
                mean,
                rstd,
                rows,
                n,
                vector,
                eps,
                add,
            }
            .launch(stream)
        }
        None => {
            let f = if centred { kernels::NormBlockF::LayerNorm } else { kernels::NormBlockF::RmsNorm };
            let cached = Rows::cached(n);
            kernels::NormBlock {
                f,
                fused,
                x,
                residual,
                weight,
                bias,
                sum,
                y,
                mean,
                rstd,
                rows,
                n,
                vector,
                cached,
                eps,
                add,
            }
            .launch(stream)
        }
    }
}

/// Rows that one block adds up for the gradients of the parameters: at least 64, and at most 1,024 such chunks.
fn chunk(rows: usize) -> usize {
    rows.div_ceil(1024).max(64)
}

/// The backward of both norms. `dparams`: of weight, of bias, where there are such.
pub(super) fn backward(
    stream: &Stream,
    tape: &Tape<'_>,
    n: usize,
    dx: &mut Out<'_>,
    dparams: [Option<&mut Out<'_>>; 2],
) -> Result<()> {
    let centred = tape.mean.is_some();
    let rows = tape.rstd.numel();
    let (x, dy, rstd) =
        (stream.contiguous(&tape.x)?, stream.contiguous(&tape.dy)?, stream.contiguous(&tape.rstd)?);
    let (x, dy, rstd) = (x.src(), dy.src(), rstd.src());
    let mean = packed(stream, tape.mean.as_ref())?;
    if dx.wanted() {
        let weight = packed(stream, tape.weight.as_ref())?;
        let (dmean, drstd) = (packed(stream, tape.dmean.as_ref())?, packed(stream, tape.drstd.as_ref())?);
        let dsum = packed(stream, tape.dsum.as_ref())?;
        let add = u32::from(dx.mode() == Mode::Accumulate);
        let (mean, weight, dx) = (src(&mean), src(&weight), dx.dst());
        let (dmean, drstd, dsum) = (src(&dmean), src(&drstd), src(&dsum));
        let f = if centred { kernels::NormBackwardF::LayerNorm } else { kernels::NormBackwardF::RmsNorm };
        let address = |s: Option<Src<'_>>| s.map_or(0, |s| s.address());
        let addresses = [x.address(), dy.address(), dx.address(), address(weight), address(dsum)];
        let Rows { rows, n, vector, .. } = Rows::new(rows, narrow("a row", n)?, &addresses, x.dtype());
        kernels::NormBackward { f, x, mean, rstd, dy, weight, dmean, drstd, dsum, dx, rows, n, vector, add }
            .launch(stream)?;
    }
    let dparams = dparams.map(|d| d.filter(|d| d.wanted()));
    if dparams.iter().all(Option::is_none) {
        return Ok(());
    }
    let chunk = chunk(rows);
    let chunks = rows.div_ceil(chunk);
    let mut sums = [stream.temp(DType::F32, chunks * n)?, stream.temp(DType::F32, chunks * n)?];
    let [weight_sums, bias_sums] = &mut sums;
    let f = if centred { kernels::NormParametersF::LayerNorm } else { kernels::NormParametersF::RmsNorm };
    let n = narrow("a row", n)?;
    kernels::NormParameters {
        f,
        x,
        mean: src(&mean),
        rstd,
        dy,
        dweight: weight_sums.dst(),
        dbias: bias_sums.dst(),
        rows: rows as u64,
        n,
        chunk: chunk as u64,
    }
    .launch(stream)?;
    for (out, sums) in dparams.into_iter().zip(&sums) {
        if let Some(out) = out {
            let add = u32::from(out.mode() == Mode::Accumulate);
            let (parts, total, chunks) = (sums.src(), out.dst(), chunks as u64);
            kernels::NormFinish { parts, total, n, chunks, add }.launch(stream)?;
        }
    }
    Ok(())
}
