//! Norms over channels on a GPU: the launches of `batch_norm.cu`.

#![forbid(unsafe_code)]

use super::sets::Sets;
use crate::device::kernels::batch_norm as kernels;
use crate::device::launch::{Src, narrow};
use crate::device::stream::{Packed, Temp};
use crate::device::{Stream, copy};
use crate::ops::gpu::{adds, packed};
use crate::shape::Layout;
use crate::tensor::{Out, View};
use crate::{DType, Error, Result};

/// The numbers of [`Sets`] as kernels take them.
#[derive(Clone, Copy)]
struct Numbers {
    segments: u64,
    length: u32,
    groups: u32,
    per: u32,
    pooled: u32,
    sets: u64,
    /// Segments of a set.
    members: u64,
    size: f32,
    /// Threads of a segment.
    lanes: u32,
}

impl Numbers {
    fn new(sets: Sets) -> Result<Numbers> {
        narrow("channels", sets.channels())?;
        Ok(Numbers {
            segments: (sets.batch * sets.channels()) as u64,
            length: narrow("a channel", sets.length)?,
            groups: sets.groups as u32,
            per: sets.per as u32,
            pooled: sets.pooled.into(),
            sets: sets.count() as u64,
            members: if sets.pooled { sets.batch } else { sets.per } as u64,
            size: sets.size() as f32,
            lanes: if sets.length < 32 { 1 } else { 32 },
        })
    }

    /// For elementwise passes over `n` elements at `addresses`: whether in pieces of 16 bytes, and the grid.
    fn pieces(&self, n: u64, dtype: DType, addresses: &[u64]) -> Result<(u32, [u32; 3])> {
        let vector = 16 / dtype.size() as u64;
        let wide = u64::from(self.length) % vector == 0 && addresses.iter().all(|a| a % 16 == 0);
        let blocks = n.div_ceil(256 * if wide { vector } else { 1 });
        Ok((wide.into(), [narrow("a grid", blocks as usize)?, 1, 1]))
    }
}

/// Statistics or a weight as f32.
enum Widened<'a> {
    There(Packed<'a>),
    Cast(Temp<'a>),
}

impl Widened<'_> {
    fn new<'a>(stream: &'a Stream, view: &View<'a>) -> Result<Widened<'a>> {
        if view.dtype() == DType::F64 {
            return Err(Error::unsupported("batch_norm", "no kernel for f64"));
        }
        if view.dtype() == DType::F32 {
            return Ok(Widened::There(stream.contiguous(view)?));
        }
        let mut cast = stream.temp(DType::F32, view.numel())?;
        let to = Layout::contiguous(view.shape());
        copy::strided(stream, view.src(), view.layout(), cast.dst(), &to, false)?;
        Ok(Widened::Cast(cast))
    }

    fn src(&self) -> Src<'_> {
        match self {
            Widened::There(packed) => packed.src(),
            Widened::Cast(temp) => temp.src(),
        }
    }
}

/// Mean and variance of each set of `x`, into the outputs.
fn moments(stream: &Stream, k: Numbers, x: Src<'_>, outputs: &mut [Out<'_>]) -> Result<()> {
    let Numbers { segments, length, groups, per, pooled, sets, members, size, lanes } = k;
    let (means, variances) = outputs.split_at_mut(1);
    let (mean, variance) = (means[0].dst(), variances[0].dst());
    let length_f32 = length as f32;
    let whole = |totals, squares| kernels::SetMoments {
        totals,
        squares,
        mean,
        variance,
        sets,
        members,
        groups,
        per,
        pooled,
        length: length_f32,
        size,
    };
    if length == 1 {
        return whole(x, None).launch(stream);
    }
    let mut totals = stream.temp(DType::F32, segments as usize)?;
    let mut squares = stream.temp(DType::F32, segments as usize)?;
    kernels::SegmentMoments { lanes, x, totals: totals.dst(), squares: squares.dst(), segments, length }
        .launch(stream)?;
    whole(totals.src(), Some(squares.src())).launch(stream)
}

/// The forward of both norms: `stats` as given, or those of `x`, which go to the outputs after the first.
pub(in crate::ops) fn forward(
    stream: &Stream,
    sets: Sets,
    eps: f64,
    x: &View<'_>,
    stats: Option<[&View<'_>; 2]>,
    parameters: [Option<&View<'_>>; 2],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let (k, eps) = (Numbers::new(sets)?, eps as f32);
    let Numbers { length, groups, per, pooled, .. } = k;
    let (weight, bias) = (packed(stream, parameters[0])?, packed(stream, parameters[1])?);
    let (weight, bias) = (weight.as_ref().map(Packed::src), bias.as_ref().map(Packed::src));
    let x = stream.contiguous(x)?;
    let (x, n) = (x.src(), x.src().len());
    let (y, found) = outputs.split_at_mut(1);
    let y = y[0].dst();
    let (wide, grid) = k.pieces(n, x.dtype(), &[x.address(), y.address()])?;
    let normalise = |mean, variance| kernels::Normalise {
        wide,
        x,
        mean,
        variance,
        weight,
        bias,
        y,
        n,
        length,
        groups,
        per,
        pooled,
        eps,
        grid,
    };
    match stats {
        Some([mean, variance]) => {
            let (mean, variance) = (Widened::new(stream, mean)?, Widened::new(stream, variance)?);
            normalise(mean.src(), variance.src()).launch(stream)
        }
        None => {
            moments(stream, k, x, found)?;
            let (means, variances) = found.split_at_mut(1);
            let (mean, variance) = (means[0].dst(), variances[0].dst());
            normalise(mean.as_src(), variance.as_src()).launch(stream)
        }
    }
}

/// The backward of both norms: see the CPU's.
pub(in crate::ops) fn backward(
    stream: &Stream,
    sets: Sets,
    (eps, found): (f64, bool),
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
    (has_weight, has_bias): (bool, bool),
) -> Result<()> {
    let (k, eps) = (Numbers::new(sets)?, eps as f32);
    let Numbers { segments, length, groups, per, pooled, sets: count, members, size, lanes } = k;
    let (mean, variance) = (Widened::new(stream, &inputs[1])?, Widened::new(stream, &inputs[2])?);
    let (mean, variance) = (mean.src(), variance.src());
    let (x, dy) = (stream.contiguous(&inputs[0])?, stream.contiguous(&inputs[3])?);
    let (x, dy) = (x.src(), dy.src());
    let weights = packed(stream, inputs.get(4).filter(|_| has_weight))?;
    let weight = weights.as_ref().map(Packed::src);
    let (dxs, parameters) = outputs.split_at_mut(1);
    let dx = &mut dxs[0];
    let wanted = parameters.iter().any(|p| p.wanted());
    let through = found && dx.wanted();
    let mut dys = stream.temp(DType::F32, segments as usize)?;
    let mut products = stream.temp(DType::F32, segments as usize)?;
    if wanted || through {
        let (dys, products) = (dys.dst(), products.dst());
        kernels::SegmentProducts {
            lanes,
            x,
            dy,
            mean,
            variance,
            dys,
            products,
            segments,
            length,
            groups,
            per,
            pooled,
            eps,
        }
        .launch(stream)?;
    }
    let (dys, products) = (dys.src(), products.src());
    if wanted {
        let there = [(products, has_weight), (dys, has_bias)].into_iter().filter(|(_, there)| *there);
        for (out, (parts, _)) in parameters.iter_mut().zip(there).filter(|(out, _)| out.wanted()) {
            let (add, total) = (adds(out), out.dst());
            let (batch, channels) = (sets.batch as u64, groups * per);
            kernels::ChannelSum { parts, total, batch, channels, add }.launch(stream)?;
        }
    }
    if !dx.wanted() {
        return Ok(());
    }
    let mut averages = [stream.temp(DType::F32, count as usize)?, stream.temp(DType::F32, count as usize)?];
    if through {
        let [first, second] = &mut averages;
        let (first, second) = (first.dst(), second.dst());
        let weights = inputs.get(4).filter(|_| has_weight).map(|w| Widened::new(stream, w)).transpose()?;
        let weight = weights.as_ref().map(Widened::src);
        kernels::SetProducts {
            dys,
            products,
            weight,
            first,
            second,
            sets: count,
            members,
            groups,
            per,
            pooled,
            size,
        }
        .launch(stream)?;
    }
    let [first, second] = averages.each_ref().map(|average| through.then(|| average.src()));
    let (add, n, dx) = (adds(dx), x.len(), dx.dst());
    let (wide, grid) = k.pieces(n, x.dtype(), &[x.address(), dy.address(), dx.address()])?;
    kernels::ChannelDx {
        wide,
        x,
        dy,
        mean,
        variance,
        weight,
        first,
        second,
        dx,
        n,
        length,
        groups,
        per,
        pooled,
        eps,
        add,
        grid,
    }
    .launch(stream)
}

/// The running statistics, whose old values are in the outputs or among the inputs.
pub(super) fn running(
    stream: &Stream,
    momentum: Option<f64>,
    unbiased: f64,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    for (old, out) in inputs[2..].iter().zip(outputs.iter_mut()) {
        let to = Layout::contiguous(out.shape());
        copy::strided(stream, old.src(), old.layout(), out.dst(), &to, false)?;
    }
    let (mean, variance) = (stream.contiguous(&inputs[0])?, stream.contiguous(&inputs[1])?);
    let [running_mean, running_variance, batches] = outputs else {
        return Err(Error::internal("infer gives three outputs"));
    };
    kernels::RunningStatistics {
        mean: mean.src(),
        variance: variance.src(),
        running_mean: running_mean.dst(),
        running_variance: running_variance.dst(),
        batches: batches.dst(),
        channels: narrow("channels", inputs[0].numel())?,
        momentum: momentum.unwrap_or(0.0) as f32,
        unbiased: unbiased as f32,
        average: momentum.is_none().into(),
    }
    .launch(stream)
}
