//! The loops of the norms on the CPU: rows are worked on while they are in cache, chunks of rows by threads.

#![forbid(unsafe_code)]

use crate::cpu::copy::move_elements;
use crate::cpu::par;
use crate::cpu::pool::Block;
use crate::cpu::reduce::{GRAIN, inlined, join_rows, sum_slices, vectorize};
use crate::dtype::{Element, Float, Real};
use crate::ops::reduce::{into_wide, store, wide};
use crate::ops::softmax::Strided;
use crate::shape::Layout;
use crate::tensor::{Out, View};
use crate::{Result, Shape};

/// `view` as rows of `n` elements; copied into `copy` where its layout does not allow that.
fn rows<'a, A: Element>(view: View<'a>, n: usize, copy: &'a mut Option<Block>) -> Result<Strided<'a, A>> {
    let shape = Shape::new(&[view.numel() / n, n])?;
    if let Some(layout) = view.layout().reshape(&shape) {
        return Ok(Strided::new(&view.with_layout(layout), 1));
    }
    let block = copy.insert(Block::new(view.numel() * size_of::<A>())?);
    let to = Layout::contiguous(view.shape());
    move_elements(view.data::<A>(), view.layout(), block.typed_mut::<A>(), &to, false);
    Ok(Strided::new(&View::of(block.typed::<A>(), shape), 1))
}

/// The elements in row-major order, widened; `fill` of them where there is no view.
fn gathered<A: Real>(view: Option<&View<'_>>, n: usize, fill: A) -> Result<Vec<A>> {
    let Some(view) = view else { return Ok(vec![fill; n]) };
    let mut copy = None;
    let view = wide(view, &mut copy)?;
    Ok(view.layout().positions().map(|i| view.data::<A>()[i]).collect())
}

/// Mean (0 unless `centred`) and reciprocal deviation of a row.
#[inline(always)]
fn statistics<A: Real>(x: &[A], centred: bool, eps: A) -> (A, A) {
    let n = A::of(x.len() as f64);
    let mean = if centred { sum_slices([x], |[x]| x) / n } else { A::ZERO };
    let square = sum_slices([x], |[x]| (x - mean) * (x - mean)) / n;
    (mean, A::ONE / (square + eps).sqrt())
}

/// Calls `put(j, x̂ · weight + bias)` for each element of a row.
#[inline(always)]
fn normalise<A: Real>(
    x: &[A],
    (mean, r): (A, A),
    affine: Option<(&[A], &[A])>,
    mut put: impl FnMut(usize, A),
) {
    let n = x.len();
    match affine {
        Some((weight, bias)) => (0..n).for_each(|j| put(j, (x[j] - mean) * r * weight[j] + bias[j])),
        None => (0..n).for_each(|j| put(j, (x[j] - mean) * r)),
    }
}

/// The forward of both norms. `outs`: y, then mean if `centred`, then rstd.
pub(super) fn forward<A: Real>(
    x: View<'_>,
    (weight, bias): (Option<&View<'_>>, Option<&View<'_>>),
    (n, centred, eps): (usize, bool, f64),
    outs: &mut [Out<'_>],
) -> Result<()> {
    if x.numel() == 0 {
        // Without elements there are no statistics: NaN, like the mean over nothing.
        outs[1..].iter_mut().for_each(|o| o.slice::<A>().fill(A::of(f64::NAN)));
        return Ok(());
    }
    let affine = weight.is_some() || bias.is_some();
    let (weight, bias) = (gathered(weight, n, A::ONE)?, gathered(bias, n, A::ZERO)?);
    let (eps, mut wider, mut copy) = (A::of(eps), None, None);
    let x = rows::<A>(wide(&x, &mut wider)?, n, &mut copy)?;
    let (y, stats) = outs.split_at_mut(1);
    let (means, rstds) = stats.split_at_mut(usize::from(centred));
    let mut nothing = [];
    let means = means.first_mut().map_or(&mut nothing[..], |m| m.slice::<A>());
    let rstds = rstds[0].slice::<A>();
    let each = (GRAIN / n).max(1);
    let count = rstds.len().div_ceil(each);
    into_wide::<A>(&mut y[0], |y, _| {
        let means = means.chunks_mut(each).map(Some).chain(std::iter::repeat_with(|| None));
        let tasks = y.chunks_mut(each * n).zip(rstds.chunks_mut(each)).zip(means).enumerate();
        par::each(count, tasks, |(task, ((y, rstds), mut means))| {
            let mut buffer = vec![A::ZERO; if x.direct() { 0 } else { n }];
            let (weight, bias) = (&weight[..n], &bias[..n]);
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    for (i, (y, rstd)) in y.chunks_exact_mut(n).zip(rstds).enumerate() {
                        let x = &x.row(task * each + i, n, &mut buffer)[..n];
                        let (mean, r) = statistics(x, centred, eps);
                        *rstd = r;
                        if let Some(means) = &mut means {
                            means[i] = mean;
                        }
                        normalise(x, (mean, r), affine.then_some((weight, bias)), |j, v| y[j] = v);
                    }
                },
            );
        });
        Ok(())
    })
}

/// x + residual, rounded, and the norm of that. `outs`: the sum, y, then mean if `centred`, then rstd.
pub(super) fn forward_sum<T: Float>(
    [x, residual]: [View<'_>; 2],
    (weight, bias): (Option<&View<'_>>, Option<&View<'_>>),
    (n, centred, eps): (usize, bool, f64),
    outs: &mut [Out<'_>],
) -> Result<()> {
    type Acc<T> = <T as Float>::Acc;
    let nothing = Acc::<T>::of(f64::NAN);
    let [sum, y, stats @ ..] = outs else { unreachable!("infer gave the outputs") };
    if x.numel() == 0 {
        stats.iter_mut().for_each(|o| o.slice::<Acc<T>>().fill(nothing));
        return Ok(());
    }
    let affine = weight.is_some() || bias.is_some();
    let (weight, bias) = (gathered(weight, n, Acc::<T>::ONE)?, gathered(bias, n, Acc::<T>::ZERO)?);
    let (eps, mut x_copy, mut residual_copy) = (Acc::<T>::of(eps), None, None);
    let (x, residual) = (rows::<T>(x, n, &mut x_copy)?, rows::<T>(residual, n, &mut residual_copy)?);
    let (means, rstds) = stats.split_at_mut(usize::from(centred));
    let mut none = [];
    let means = means.first_mut().map_or(&mut none[..], |m| m.slice::<Acc<T>>());
    let rstds = rstds[0].slice::<Acc<T>>();
    let each = (GRAIN / n).max(1);
    let count = rstds.len().div_ceil(each);
    let means = means.chunks_mut(each).map(Some).chain(std::iter::repeat_with(|| None));
    let outputs = sum.slice::<T>().chunks_mut(each * n).zip(y.slice::<T>().chunks_mut(each * n));
    let tasks = outputs.zip(rstds.chunks_mut(each)).zip(means).enumerate();
    par::each(count, tasks, |(task, (((sums, y), rstds), mut means))| {
        let mut buffers = [&x, &residual].map(|r| vec![T::default(); if r.direct() { 0 } else { n }]);
        let mut widened = vec![Acc::<T>::ZERO; n];
        let (weight, bias) = (&weight[..n], &bias[..n]);
        vectorize::<Acc<T>, _>(
            #[inline(always)]
            || {
                let [x_buffer, residual_buffer] = &mut buffers;
                let rows = sums.chunks_exact_mut(n).zip(y.chunks_exact_mut(n)).zip(rstds);
                for (i, ((sum, y), rstd)) in rows.enumerate() {
                    let (a, b) = (
                        &x.row(task * each + i, n, x_buffer)[..n],
                        &residual.row(task * each + i, n, residual_buffer)[..n],
                    );
                    let (wide, y) = (&mut widened[..n], &mut y[..n]);
                    for j in 0..n {
                        sum[j] = T::from_acc(a[j].to_acc() + b[j].to_acc());
                        wide[j] = sum[j].to_acc();
                    }
                    let (mean, r) = statistics(wide, centred, eps);
                    *rstd = r;
                    if let Some(means) = &mut means {
                        means[i] = mean;
                    }
                    let affine = affine.then_some((weight, bias));
                    normalise(wide, (mean, r), affine, |j, v| y[j] = T::from_acc(v));
                }
            },
        );
    });
    Ok(())
}

/// What the backwards read.
pub(super) struct Tape<'a> {
    pub(super) x: View<'a>,
    pub(super) mean: Option<View<'a>>,
    pub(super) rstd: View<'a>,
    pub(super) dy: View<'a>,
    pub(super) weight: Option<View<'a>>,
    /// Gradients of the statistics, where somebody used them.
    pub(super) dmean: Option<View<'a>>,
    pub(super) drstd: Option<View<'a>>,
    /// The gradient of x from elsewhere, where x is a sum that others use too.
    pub(super) dsum: Option<View<'a>>,
}

/// The backward of both norms. `dparams`: of weight, of bias, where there are such.
///
/// With g = dy · weight: dx = rstd · (g − c₁ − x̂ · c₂) + dmean / n, where c₁ = Σ g / n (RMS norm: 0) and
/// c₂ = (Σ g x̂ + drstd · rstd) / n; dweight = Σ dy x̂ and dbias = Σ dy over the rows. rstd is 0 where a variance overflowed.
pub(super) fn backward<A: Real>(
    tape: &Tape<'_>,
    n: usize,
    dx: &mut Out<'_>,
    dparams: [Option<&mut Out<'_>>; 2],
) -> Result<()> {
    let dparams = dparams.map(|d| d.filter(|d| d.wanted()));
    if tape.x.numel() == 0 {
        dparams.into_iter().flatten().for_each(|out| store(out, &vec![A::ZERO; n]));
        return Ok(());
    }
    // Chunks of rows depend on n alone, so the order of the sums does too.
    let each = (GRAIN / n).clamp(8, 256);
    let chunks = tape.rstd.numel().div_ceil(each);
    let parameters = dparams.iter().any(Option::is_some);
    let mut partial = Block::new(if parameters { chunks * 2 * n * size_of::<A>() } else { 0 })?;
    let partial = partial.typed_mut::<A>();
    if dx.wanted() {
        into_wide::<A>(dx, |dx, add| backward_pass(tape, (n, each), dx, add, partial))?;
    } else {
        backward_pass(tape, (n, each), &mut [], false, partial)?;
    }
    if parameters {
        join_rows(partial, chunks, 2 * n, |a, b| a + b);
        let (weight, bias) = partial[..2 * n].split_at(n);
        for (out, sums) in dparams.into_iter().zip([weight, bias]) {
            out.into_iter().for_each(|out| store(out, sums));
        }
    }
    Ok(())
}

/// Computes dx if it is not empty, and for each chunk of `each` rows the sums for weight and bias if `partial` is not empty.
fn backward_pass<A: Real>(
    tape: &Tape<'_>,
    (n, each): (usize, usize),
    dx: &mut [A],
    add: bool,
    partial: &mut [A],
) -> Result<()> {
    let (zero, count) = (A::ZERO, tape.rstd.numel());
    let stats = |v: Option<&View<'_>>| gathered(v, count, zero);
    let (means, rstds) = (stats(tape.mean.as_ref())?, stats(Some(&tape.rstd))?);
    let (dmeans, drstds) = (stats(tape.dmean.as_ref())?, stats(tape.drstd.as_ref())?);
    let (centred, over) = (tape.mean.is_some(), A::ONE / A::of(n as f64));
    let weight = gathered(tape.weight.as_ref(), n, A::ONE)?;
    let (mut x_wider, mut dy_wider, mut x_copy, mut dy_copy) = (None, None, None, None);
    let (mut dsum_wider, mut dsum_copy) = (None, None);
    let x = rows::<A>(wide(&tape.x, &mut x_wider)?, n, &mut x_copy)?;
    let dy = rows::<A>(wide(&tape.dy, &mut dy_wider)?, n, &mut dy_copy)?;
    let dsum = tape.dsum.as_ref().map(|dsum| rows::<A>(wide(dsum, &mut dsum_wider)?, n, &mut dsum_copy));
    let dsum = dsum.transpose()?;
    let dxs = dx.chunks_mut(each * n).map(Some).chain(std::iter::repeat_with(|| None));
    let sums = partial.chunks_mut(2 * n).map(Some).chain(std::iter::repeat_with(|| None));
    let chunks = count.div_ceil(each);
    par::each(chunks, (0..chunks).zip(dxs).zip(sums), |((task, mut dx), mut sums)| {
        let mut x_row = vec![zero; if x.direct() { 0 } else { n }];
        let mut dy_row = vec![zero; if dy.direct() { 0 } else { n }];
        let mut dsum_row = vec![zero; if dsum.as_ref().is_none_or(|d| d.direct()) { 0 } else { n }];
        let weight = &weight[..n];
        vectorize::<A, _>(
            #[inline(always)]
            || {
                if let Some(sums) = &mut sums {
                    sums.fill(zero);
                }
                for i in task * each..count.min((task + 1) * each) {
                    let (x, dy) = (&x.row(i, n, &mut x_row)[..n], &dy.row(i, n, &mut dy_row)[..n]);
                    let (mean, r) = (means[i], rstds[i]);
                    if let Some(sums) = &mut sums {
                        let (dweight, dbias) = sums.split_at_mut(n);
                        let dbias = &mut dbias[..n];
                        for j in 0..n {
                            dweight[j] += dy[j] * ((x[j] - mean) * r);
                            dbias[j] += dy[j];
                        }
                    }
                    let Some(dx) = &mut dx else { continue };
                    let c1 = if centred { sum_slices([dy, weight], |[dy, w]| dy * w) } else { zero };
                    let (c1, shift) = (c1 * over, dmeans[i] * over);
                    let c2 = sum_slices([x, dy, weight], |[x, dy, w]| dy * w * ((x - mean) * r));
                    let c2 = (c2 + drstds[i] * r) * over;
                    let dx = &mut dx[(i - task * each) * n..][..n];
                    let gradient = inlined(
                        #[inline(always)]
                        |j: usize| r * (dy[j] * weight[j] - c1 - (x[j] - mean) * r * c2) + shift,
                    );
                    let dsum = dsum.as_ref().map(|d| &d.row(i, n, &mut dsum_row)[..n]);
                    for j in 0..n {
                        let v = gradient(j);
                        let v = if let Some(dsum) = dsum { dsum[j] + v } else { v };
                        dx[j] = if add { dx[j] + v } else { v };
                    }
                }
            },
        );
    });
    Ok(())
}
