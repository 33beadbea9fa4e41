//! How reductions are launched on a GPU: a plan, a function of shape and layout alone, and the launches of
//! `kernels/reduce.cu` that obey it.

#![forbid(unsafe_code)]

use super::Axes;
use crate::device::Stream;
use crate::device::kernels::reduce as kernels;
use crate::device::launch::{Dims, Dst, Src, Strides, merge, narrow};
use crate::device::stream::Temp;
use crate::ops::gpu::adds;
use crate::shape::Layout;
use crate::tensor::{Out, View};
use crate::{DType, Result};

/// Threads of a block.
const THREADS: u64 = 256;
/// Loads that a thread has under way together.
const UNROLL: u64 = 4;
/// Blocks that keep any card busy: eight for each of Hopper's 132 multiprocessors. Not the number of the card at hand, for
/// the order of a sum must not depend on it.
const BLOCKS: u64 = 1024;
/// Loads of a thread in one piece, joined four at a time: chains of at most 64 roundings.
const MOST: u64 = 256;

/// The functors of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Fold {
    /// Σ x / scale.
    Total,
    /// How many x equal w.
    Hits,
    /// The largest.
    Largest,
    /// The smallest.
    Smallest,
    /// Σ (x − mean)² / scale, or its root.
    Moments,
    /// ln Σ e^x.
    LogSum,
}

macro_rules! functor {
    ($fold:expr, $to:ident: $($name:ident)*) => {
        match $fold {
            $(Fold::$name => kernels::$to::$name,)*
        }
    };
}

impl Fold {
    /// Words of a state.
    fn words(self) -> usize {
        match self {
            Fold::Moments => 3,
            Fold::LogSum => 2,
            _ => 1,
        }
    }
}

/// The way through memory: which dimensions stay, which go, and the strides of one or two operands along them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    kept: Dims,
    kept_by: [Strides; 2],
    gone: Dims,
    gone_by: [Strides; 2],
}

impl Way {
    /// Of the reduction over `axes`. `ordered` keeps the elements behind an output in row-major order; else they are
    /// visited along memory.
    pub(super) fn new(axes: Axes, x: &Layout, w: &Layout, ordered: bool) -> Way {
        let part = |gone: bool| {
            let mut dims: Vec<usize> = (0..x.shape.rank()).filter(|&d| axes.contains(d) == gone).collect();
            if gone && !ordered {
                dims.sort_by_key(|&d| std::cmp::Reverse(x.strides[d]));
            }
            let of = |from: &[usize]| dims.iter().map(|&d| from[d]).collect::<Vec<_>>();
            merge(&of(&x.shape), [&of(&x.strides), &of(&w.strides)])
        };
        let ((kept, kept_by), (gone, gone_by)) = (part(false), part(true));
        Way { kept, kept_by, gone, gone_by }
    }

    /// The number of outputs.
    pub(super) fn outputs(&self) -> u64 {
        self.kept.numel()
    }

    /// The number of elements behind each.
    pub(super) fn length(&self) -> u64 {
        self.gone.numel()
    }
}

/// How the threads are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// So many threads for each output.
    Rows(u64),
    /// So many neighbouring threads, each for one vector of neighbouring outputs, and as many rows of them as a block has.
    Columns(u64),
}

/// How a reduction is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) form: Form,
    /// Whether loads are of 16 bytes.
    pub(super) wide: bool,
    /// Elements of a piece.
    pub(super) piece: u64,
    /// The number of pieces, which one block each works on and a further launch joins.
    pub(super) pieces: u64,
}

/// The innermost size and steps; 1 and 0 where there is no dimension.
fn innermost(dims: &Dims, by: &[Strides; 2]) -> (u64, [i64; 2]) {
    match dims.rank.checked_sub(1) {
        Some(d) => (dims.size[d as usize], [by[0].by[d as usize], by[1].by[d as usize]]),
        None => (1, [0, 0]),
    }
}

/// The plan of a reduction. `vector` elements make 16 bytes; `aligned`: every operand starts on 16 bytes.
pub(super) fn plan(way: &Way, vector: u64, aligned: bool, rows_only: bool) -> Plan {
    let (outputs, length) = (way.outputs(), way.length());
    let (kept, kept_by) = innermost(&way.kept, &way.kept_by);
    let (gone, gone_by) = innermost(&way.gone, &way.gone_by);
    let columns = !rows_only && kept > 1 && kept_by[0] == 1 && gone_by[0] != 1;
    // Vectors lie along one dimension of step 1, which they divide, and all other steps are whole vectors.
    let (size, along) = if columns { (kept, kept_by) } else { (gone, gone_by) };
    let multiple = |dims: &Dims, by: &[Strides; 2], skip: bool| {
        let rank = (dims.rank as usize).saturating_sub(usize::from(skip));
        by.iter().all(|by| by.by[..rank].iter().all(|step| step % vector as i64 == 0))
    };
    let wide = aligned
        && vector > 1
        && along == [1, 1]
        && size.is_multiple_of(vector)
        && multiple(&way.kept, &way.kept_by, columns)
        && multiple(&way.gone, &way.gone_by, !columns);
    let vector = if wide { vector } else { 1 };
    let power = |x: u64| x.max(1).next_power_of_two();
    // `unit` elements of an output are loaded at a time.
    let (form, unit, blocks) = if columns {
        let vectors = outputs.div_ceil(vector);
        let across = if vectors >= BLOCKS * THREADS { THREADS } else { power(vectors).min(32) };
        (Form::Columns(across), THREADS / across, vectors.div_ceil(across))
    } else {
        let steps = length.div_ceil(vector);
        let enough = power((BLOCKS * THREADS).div_ceil(outputs.max(1))).min(power(steps));
        let lanes = power(steps.div_ceil(UNROLL)).max(enough).min(THREADS);
        (Form::Rows(lanes), lanes * vector, outputs.div_ceil(THREADS / lanes))
    };
    let whole = matches!(form, Form::Columns(_) | Form::Rows(THREADS));
    let for_order = length.div_ceil(unit * MOST);
    let for_blocks = BLOCKS.div_ceil(blocks.max(1)).min(length / (unit * 2 * UNROLL));
    let pieces = if whole { for_order.max(for_blocks).clamp(1, 65535) } else { 1 };
    let piece = length.div_ceil(pieces).next_multiple_of(unit).max(1);
    Plan { form, wide, piece, pieces: length.div_ceil(piece).max(1) }
}

/// Whether all of these start on 16 bytes.
fn aligned(sources: &[Src<'_>]) -> bool {
    sources.iter().all(|s| s.address().is_multiple_of(16))
}

/// Where results go.
enum To<'a> {
    /// To the output; whether to add.
    Output(Dst<'a>, u32),
    /// As states.
    States(Dst<'a>),
}

/// What a result is divided by, and whether its root is taken.
pub(in crate::ops) type Finish = (f32, bool);

/// An op's operands.
pub(in crate::ops) type Operands<'a, 'b> = (&'b View<'a>, Option<&'b View<'a>>);

struct Job<'a> {
    stream: &'a Stream,
    fold: Fold,
    way: Way,
    plan: Plan,
    x: Src<'a>,
    w: Option<Src<'a>>,
    finish: Finish,
}

impl<'a> Job<'a> {
    fn new(
        stream: &'a Stream,
        fold: Fold,
        (x, w): Operands<'a, '_>,
        axes: Axes,
        finish: Finish,
    ) -> Result<Job<'a>> {
        let w = w.map(|w| w.expand(&x.shape())).transpose()?;
        let way = Way::new(axes, x.layout(), w.as_ref().map_or(x.layout(), View::layout), false);
        let (x, w) = (x.src(), w.map(|w| w.src()));
        let plan = plan(
            &way,
            (16 / x.dtype().size()) as u64,
            aligned(&[x]) && w.is_none_or(|w| aligned(&[w])),
            false,
        );
        Ok(Job { stream, fold, way, plan, x, w, finish })
    }

    /// The first launch.
    fn pass(&self, to: To<'_>) -> Result<()> {
        let Job { way: Way { kept, kept_by: [x_kept, w_kept], gone, gone_by: [x_gone, w_gone] }, .. } = *self;
        let (x, w, wide) = (self.x, self.w, u32::from(self.plan.wide));
        let (n, length, piece) = (self.way.outputs(), self.way.length(), self.plan.piece);
        let (scale, root) = (self.finish.0, u32::from(self.finish.1));
        let pieces = self.plan.pieces as u32;
        let (y, states, add) = match to {
            To::Output(y, add) => (Some(y), None, add),
            To::States(states) => (None, Some(states), 0),
        };
        match self.plan.form {
            Form::Rows(lanes) => {
                let grid = [narrow("a grid", n.div_ceil(THREADS / lanes) as usize)?, pieces, 1];
                let f = functor!(self.fold, ReduceRowsF: Total Hits Largest Smallest Moments LogSum);
                let lanes = lanes as u32;
                kernels::ReduceRows {
                    f,
                    wide,
                    x,
                    w,
                    y,
                    states,
                    kept,
                    x_kept,
                    w_kept,
                    gone,
                    x_gone,
                    w_gone,
                    n,
                    length,
                    piece,
                    lanes,
                    scale,
                    root,
                    add,
                    grid,
                }
                .launch(self.stream)
            }
            Form::Columns(columns) => {
                let vector = if self.plan.wide { 16 / x.dtype().size() as u64 } else { 1 };
                let grid = [narrow("a grid", n.div_ceil(vector * columns) as usize)?, pieces, 1];
                let f = functor!(self.fold, ReduceColumnsF: Total Hits Largest Smallest Moments LogSum);
                let columns = columns as u32;
                kernels::ReduceColumns {
                    f,
                    wide,
                    x,
                    w,
                    y,
                    states,
                    kept,
                    x_kept,
                    w_kept,
                    gone,
                    x_gone,
                    w_gone,
                    n,
                    length,
                    piece,
                    columns,
                    scale,
                    root,
                    add,
                    grid,
                }
                .launch(self.stream)
            }
        }
    }

    /// Scratch memory for the states of all pieces of all outputs.
    fn room(&self, pieces: u64) -> Result<Temp<'a>> {
        self.stream.temp(DType::I32, (pieces * self.way.outputs()) as usize * self.fold.words())
    }
}

/// Threads side by side of a launch that joins the pieces of `n` outputs.
fn across(n: u64) -> u32 {
    n.max(1).next_power_of_two().min(32) as u32
}

/// Joins `pieces` rows of states, one for each element of `out`, into it.
pub(in crate::ops) fn finish(
    stream: &Stream,
    fold: Fold,
    states: Src<'_>,
    pieces: u64,
    (scale, root): Finish,
    out: &mut Out<'_>,
) -> Result<()> {
    let (n, add) = (out.shape().numel() as u64, adds(out));
    let f = functor!(fold, ReduceFinishF: Total Hits Largest Smallest Moments LogSum);
    let (y, root, columns, pieces) = (out.dst(), root.into(), across(n), narrow("pieces", pieces as usize)?);
    kernels::ReduceFinish { f, states, y, n, pieces, columns, scale, root, add }.launch(stream)
}

/// Reduces the operands over `axes` into `out`.
pub(in crate::ops) fn fold<'a>(
    stream: &'a Stream,
    fold: Fold,
    operands: Operands<'a, '_>,
    axes: Axes,
    how: Finish,
    out: &mut Out<'_>,
) -> Result<()> {
    let job = Job::new(stream, fold, operands, axes, how)?;
    if job.plan.pieces == 1 {
        let add = adds(out);
        return job.pass(To::Output(out.dst(), add));
    }
    let mut states = job.room(job.plan.pieces)?;
    job.pass(To::States(states.dst()))?;
    finish(stream, fold, states.src(), job.plan.pieces, how, out)
}

/// The states of the reduction over `axes`, one for each output, for [`spread`].
pub(in crate::ops) fn states<'a>(
    stream: &'a Stream,
    fold: Fold,
    operands: Operands<'a, '_>,
    axes: Axes,
) -> Result<Temp<'a>> {
    let job = Job::new(stream, fold, operands, axes, (1.0, false))?;
    let mut joined = job.room(1)?;
    if job.plan.pieces == 1 {
        job.pass(To::States(joined.dst()))?;
        return Ok(joined);
    }
    let mut parts = job.room(job.plan.pieces)?;
    job.pass(To::States(parts.dst()))?;
    let f = match fold {
        Fold::Total => kernels::JoinStatesF::Total,
        Fold::Hits => kernels::JoinStatesF::Hits,
        _ => return Err(crate::Error::internal("only sums and numbers are kept as states")),
    };
    let (n, pieces) = (job.way.outputs(), job.plan.pieces as u32);
    let (columns, joins) = (across(n), joined.dst());
    kernels::JoinStates { f, states: parts.src(), joins, n, pieces, columns }.launch(stream)?;
    Ok(joined)
}

pub(in crate::ops) use kernels::SpreadF as Spread;

/// `out` = f(x, y, dy, state), where `operands` are x, y and dy, expanded, and the state of an element is that of the output
/// it belongs to. `constants`: what the functor takes.
pub(in crate::ops) fn spread(
    stream: &Stream,
    f: Spread,
    operands: [Option<&View<'_>>; 3],
    states: Option<(&Temp<'_>, Axes)>,
    (count, scale): (f32, f32),
    out: &mut Out<'_>,
) -> Result<()> {
    let shape = out.shape();
    let own = Layout::contiguous(shape);
    let mut layouts = [own; 4];
    let mut sources = [None; 3];
    for (k, view) in operands.iter().enumerate() {
        if let Some(view) = view {
            let view = view.expand(&shape)?;
            (layouts[k], sources[k]) = (*view.layout(), Some(view.src()));
        }
    }
    if let Some((_, axes)) = states {
        layouts[3] = Layout::contiguous(axes.kept(&shape)).expand(&shape, "spread")?;
    }
    let (dims, [x_by, y_by, dy_by, stat_by]) =
        merge(&shape, [&layouts[0].strides, &layouts[1].strides, &layouts[2].strides, &layouts[3].strides]);
    let ([x, y, dy], stat, n, add) = (sources, states.map(|s| s.0.src()), shape.numel() as u64, adds(out));
    let r = out.dst();
    kernels::Spread { f, x, y, dy, stat, r, dims, x_by, y_by, dy_by, stat_by, n, count, scale, add }
        .launch(stream)
}

/// A way and a plan for the kernels that have the form of rows only; pieces where `split`.
fn rows(axes: Axes, x: &View<'_>, split: bool) -> Result<(Way, Plan, u32, [u32; 3])> {
    let way = Way::new(axes, x.layout(), x.layout(), true);
    let plan = plan(&way, 1, false, true);
    let Form::Rows(lanes) = plan.form else { return Err(crate::Error::internal("rows only")) };
    let blocks = narrow("a grid", way.outputs().div_ceil(THREADS / lanes) as usize)?;
    Ok((way, plan, lanes as u32, [blocks, if split { plan.pieces as u32 } else { 1 }, 1]))
}

/// Where over `axes` the first largest, or smallest, element stands.
pub(in crate::ops) fn choose(
    stream: &Stream,
    f: kernels::ChooseRowsF,
    x: &View<'_>,
    axes: Axes,
    out: &mut Out<'_>,
) -> Result<()> {
    let (way, plan, lanes, grid) = rows(axes, x, true)?;
    let Way { kept, kept_by: [x_kept, _], gone, gone_by: [x_gone, _] } = way;
    let (x, n, length, piece) = (x.src(), way.outputs(), way.length(), plan.piece);
    let launch = |y, states| {
        kernels::ChooseRows { f, x, y, states, kept, x_kept, gone, x_gone, n, length, piece, lanes, grid }
            .launch(stream)
    };
    if plan.pieces == 1 {
        return launch(Some(out.dst()), None);
    }
    let mut states = stream.temp(DType::I64, (2 * plan.pieces * n) as usize)?;
    launch(None, Some(states.dst()))?;
    let (states, y, pieces, columns) = (states.src(), out.dst(), plan.pieces as u32, across(n));
    kernels::ChooseFinish { states, y, n, pieces, columns }.launch(stream)
}

/// Σ of integers.
pub(in crate::ops) fn integer_sum(
    stream: &Stream,
    x: &View<'_>,
    axes: Axes,
    out: &mut Out<'_>,
) -> Result<()> {
    let (way, _, lanes, grid) = rows(axes, x, false)?;
    let Way { kept, kept_by: [x_kept, _], gone, gone_by: [x_gone, _] } = way;
    let (x, add, n, length) = (x.src(), adds(out), way.outputs(), way.length());
    let y = out.dst();
    kernels::IntegerSum { x, y, kept, x_kept, gone, x_gone, n, length, lanes, add, grid }.launch(stream)
}

/// The largest or smallest of integers.
pub(in crate::ops) fn integer_extremum(
    stream: &Stream,
    f: kernels::IntegerExtremumF,
    x: &View<'_>,
    axes: Axes,
    out: &mut Out<'_>,
) -> Result<()> {
    let (way, _, lanes, grid) = rows(axes, x, false)?;
    let Way { kept, kept_by: [x_kept, _], gone, gone_by: [x_gone, _] } = way;
    let (x, n, length) = (x.src(), way.outputs(), way.length());
    let add = adds(out);
    let y = out.dst();
    kernels::IntegerExtremum { f, x, y, kept, x_kept, gone, x_gone, n, length, lanes, add, grid }
        .launch(stream)
}

pub(in crate::ops) use kernels::{ChooseRowsF as Choose, IntegerExtremumF as IntegerExtremum};

#[cfg(test)]
mod tests;
