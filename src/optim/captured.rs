//! A whole training step (forward, backward, clipping, update) as one thing that is run again and again.
//!
//! On a GPU the step is recorded once for each shape of batch and then replayed as a graph: one call of the driver a step, and
//! nothing that waits. The first batch of a shape runs eagerly, which also leaves the memory cached that the recording then
//! takes; the second is recorded. Replayed and eager steps give the same bits. On the CPU every step runs eagerly.
//!
//! What changes from step to step is in memory that the step reads: the batch in static tensors that are overwritten,
//! learning rates and counters in the arena's step block. Losses go to a ring on the device and are read when asked for.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::Step;
use crate::device::graph::is_recording;
use crate::device::kernels::step as kernels;
use crate::device::{Graph, Stream};
use crate::dtype::Element;
use crate::ops::{self, Cases, Op, Plan, Tolerance};
use crate::shape::IntoShape;
use crate::tensor::{Meta, Mode, Out, View, no_grad, overwrite_bytes};
use crate::{Arena, DType, Error, ErrorKind, Result, Shape, Tensor, dispatch};

/// Shapes of batches that a step is captured for.
pub const MAX_SHAPES: usize = 4;

/// Whether a [`TrainStep`] is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "train", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Capture {
    /// Each step runs op by op
    Off,
    /// On a GPU; what cannot be captured is an error
    On,
    /// On a GPU, for the first four shapes of batch; others run op by op
    #[default]
    Auto,
}

/// How a [`TrainStep`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepOptions {
    /// Whether it is captured.
    pub capture: Capture,
    /// Into how many equal parts a batch is cut along its first dimension; gradients are those of the mean over the parts.
    pub micro_batches: usize,
    /// Losses that the device keeps until they are read. A run that would overwrite one reads them all first.
    pub losses: usize,
    /// Whether a step that runs op by op reads its loss at once, and goes no further (an error of kind `Diverged`) unless it is
    /// finite: parameters and state are then as they were. Not for captured steps, which read nothing.
    pub check: bool,
}

impl Default for StepOptions {
    fn default() -> StepOptions {
        StepOptions { capture: Capture::Auto, micro_batches: 1, losses: 64, check: false }
    }
}

/// Host data for one step: row-major numbers of one type.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    bytes: &'a [u8],
    shape: Shape,
    dtype: DType,
}

impl<'a> Input<'a> {
    /// `data` as a tensor of `shape`. Errors if the counts differ.
    pub fn new<T: Element>(data: &'a [T], shape: impl IntoShape) -> Result<Input<'a>> {
        let shape = shape.into_shape()?;
        if shape.numel() != data.len() {
            return Err(Error::shape("input", format!("{} numbers for {shape}", data.len())));
        }
        Ok(Input { bytes: bytemuck::cast_slice(data), shape, dtype: T::DTYPE })
    }
}

/// The forward pass of a step: the loss, a tensor of one element, of a part of the batch; the second argument is its number.
pub type Forward = Box<dyn FnMut(&[Tensor], usize) -> Result<Tensor> + Send>;

/// A training step over an arena: see the module.
///
/// ```
/// use warpsmith::nn::{Cx, Linear, Module, Scope};
/// use warpsmith::optim::{Adam, Input, Optimizer, StepOptions, TrainStep};
/// use warpsmith::ops::Reduction;
/// use warpsmith::{Arena, DType, Device};
///
/// let arena = Arena::new(DType::F32, Device::cpu())?;
/// let net = Linear::new(&Scope::new(&arena, 1), 2, 1)?;
/// let adam = Optimizer::new(&arena, Adam::default(), 0.1)?;
/// let block = arena.step_block().clone();
/// let forward = move |batch: &[_], _: usize| {
///     let mut cx = Cx::train(&block, 1)?;
///     net.forward(&mut cx, &batch[0])?.mse_loss(&batch[1], Reduction::Mean)
/// };
/// let mut step = TrainStep::new(&arena, Box::new(adam), Box::new(forward), StepOptions::default())?;
/// for _ in 0..200 {
///     step.run(&[Input::new(&[0f32, 1.0, 1.0, 0.0], [2, 2])?, Input::new(&[1f32, -1.0], [2, 1])?])?;
/// }
/// let losses = step.losses()?;
/// assert!(losses[199] < losses[0] / 100.0);
/// # Ok::<(), warpsmith::Error>(())
/// ```
pub struct TrainStep {
    arena: Arena,
    optimizer: Box<dyn Step>,
    forward: Forward,
    options: StepOptions,
    shapes: Vec<Batch>,
    /// The last batch.
    last: Vec<Tensor>,
    /// What the graphs were recorded with.
    groups: Vec<u8>,
    ring: Tensor,
    cursor: Tensor,
    /// Steps whose losses are in the ring only.
    unread: usize,
    losses: Vec<f64>,
}

/// A shape of batch, its static tensors and, once recorded, its graph.
struct Batch {
    inputs: Vec<Tensor>,
    graph: Option<Graph>,
}

impl TrainStep {
    /// A step that updates `arena` by `optimizer`, which must be of that arena, from the loss that `forward` computes.
    ///
    /// `forward` is called for eager steps and once for each recording; it must compute the same from the same tensors and may
    /// keep no state of its own but in tensors.
    pub fn new(
        arena: &Arena,
        optimizer: Box<dyn Step>,
        forward: Forward,
        options: StepOptions,
    ) -> Result<TrainStep> {
        if options.micro_batches == 0 || options.losses == 0 {
            return Err(Error::argument("a step needs at least one part and room for one loss"));
        }
        let device = arena.device();
        Ok(TrainStep {
            arena: arena.clone(),
            optimizer,
            forward,
            options,
            shapes: Vec::new(),
            last: Vec::new(),
            groups: arena.group_table()?,
            ring: Tensor::zeros(options.losses, DType::F64, device)?,
            cursor: Tensor::zeros(1, DType::I64, device)?,
            unread: 0,
            losses: Vec::new(),
        })
    }

    /// Sets the learning rate of the next steps, captured ones too.
    pub fn set_lr(&self, lr: f64) -> Result<()> {
        self.optimizer.set_lr(lr)
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &dyn Step {
        &*self.optimizer
    }

    /// Makes one step on a batch. On a GPU this returns when the step is queued.
    ///
    /// # Errors
    /// Those of `forward`, of the backward pass and of the optimiser. With [`Capture::On`] also, of kind `Unsupported`, what in
    /// the step cannot be captured and where, and a shape of batch beyond [`MAX_SHAPES`].
    #[track_caller]
    pub fn run(&mut self, batch: &[Input<'_>]) -> Result<()> {
        self.forget_stale()?;
        let meta =
            |input: &Input| Meta { shape: input.shape, dtype: input.dtype, device: self.arena.device() };
        let metas: Vec<Meta> = batch.iter().map(meta).collect();
        let same = |inputs: &[Tensor]| inputs.iter().map(Tensor::meta).eq(metas.iter().copied());
        let known = self.shapes.iter().map(|b| &b.inputs).find(|inputs| same(inputs));
        self.last = match known {
            Some(inputs) => inputs.clone(),
            None => metas.iter().map(|m| Tensor::empty(*m, "batch")).collect::<Result<_>>()?,
        };
        self.last.iter().zip(batch).try_for_each(|(tensor, input)| overwrite_bytes(tensor, input.bytes))?;
        self.repeat()
    }

    /// Takes tensors on the arena's device for the batch that [`TrainStep::repeat`] steps on. They are kept, and overwritten by
    /// later batches of their shapes.
    pub fn set_batch(&mut self, batch: Vec<Tensor>) {
        self.last = batch;
    }

    /// Makes one more step on the batch of the last [`TrainStep::run`] or [`TrainStep::set_batch`].
    ///
    /// # Errors
    /// As [`TrainStep::run`]; kind `Argument` if there was none.
    #[track_caller]
    pub fn repeat(&mut self) -> Result<()> {
        if self.last.is_empty() {
            return Err(Error::argument("there is no batch to repeat"));
        }
        if self.unread == self.options.losses {
            self.collect()?;
        }
        self.forget_stale()?;
        let inputs = self.last.clone();
        let same = |b: &Batch| b.inputs.iter().map(Tensor::meta).eq(inputs.iter().map(Tensor::meta));
        match self.shapes.iter().position(same) {
            Some(at) => {
                let own = self.shapes[at].inputs.clone();
                // Tensors of someone else's are not what was recorded.
                for (own, given) in own.iter().zip(&inputs).filter(|(own, given)| !own.is_same(given)) {
                    own.copy_(given)?;
                }
                self.captured(at, &own)?;
            }
            None => self.first_of_its_shape(inputs)?,
        }
        self.unread += 1;
        Ok(())
    }

    /// An eager step on a batch of a new shape, whose tensors are kept if it will be captured.
    fn first_of_its_shape(&mut self, inputs: Vec<Tensor>) -> Result<()> {
        let captures = self.options.capture != Capture::Off && !self.arena.device().is_cpu();
        let room = self.shapes.len() < MAX_SHAPES;
        if captures && !room && self.options.capture == Capture::On {
            return Err(self.too_many_shapes(&inputs));
        }
        self.eager(&inputs).inspect_err(|_| self.forget_gradients())?;
        if captures && room {
            self.shapes.push(Batch { inputs, graph: None });
        }
        Ok(())
    }

    /// A replayed step, recorded first if it was not yet.
    fn captured(&mut self, at: usize, inputs: &[Tensor]) -> Result<()> {
        let graph = match self.shapes[at].graph.take() {
            Some(graph) => graph,
            None => {
                let stream = self.arena.device().gpu()?;
                let captured = stream.capture(|| self.eager(inputs));
                captured.inspect_err(|_| self.forget_gradients())?.0
            }
        };
        // Whoever reads these meanwhile is an error, and tensors saved of them notice the change.
        let mut written = vec![self.arena.values()?, self.arena.grads()?];
        written.extend(self.arena.states()?.into_iter().map(|(_, state)| state));
        written.push(self.arena.step_block().floats().clone());
        let guards = written.iter().map(|t| t.write("captured step")).collect::<Result<Vec<_>>>()?;
        let outcome = graph.replay();
        drop(guards);
        self.shapes[at].graph = Some(graph);
        outcome
    }

    /// The step, op by op.
    fn eager(&mut self, inputs: &[Tensor]) -> Result<()> {
        let parts = self.options.micro_batches;
        for part in 0..parts {
            let cut = |input: &Tensor| match input.dims().first() {
                _ if parts == 1 => Ok(input.clone()),
                Some(rows) if rows % parts == 0 => input.narrow(0, part * (rows / parts), rows / parts),
                _ => {
                    let message = format!("a batch of shape {} cannot be cut into {parts}", input.shape());
                    Err(Error::shape("micro_batches", message))
                }
            };
            let inputs = inputs.iter().map(cut).collect::<Result<Vec<_>>>()?;
            let loss = (self.forward)(&inputs, part)?;
            if self.options.check && !is_recording(loss.device()) {
                let value = loss.item()?;
                if !value.is_finite() {
                    return Err(Error::new(ErrorKind::Diverged, format!("the loss is {value}")));
                }
            }
            let share = if parts == 1 { loss.clone() } else { loss.mul_scalar(1.0 / parts as f64)? };
            self.arena.backward(&share)?;
            let push = PushLoss {
                factor: 1.0 / parts as f64,
                add: part > 0,
                advance: part + 1 == parts,
                count: self.options.losses,
            };
            let outs = [(&self.ring, Mode::Update), (&self.cursor, Mode::Update)];
            no_grad(|| ops::run_into(push, &[&loss.detach().reshape(())?], &outs))?;
        }
        self.optimizer.step()
    }

    /// After an error, so that the next step starts afresh.
    fn forget_gradients(&self) {
        // An arena that cannot be asked has no gradients.
        let _ = self.arena.zero_grad();
    }

    /// Drops recordings that froze another choice of groups and frozen parameters.
    fn forget_stale(&mut self) -> Result<()> {
        let groups = self.arena.group_table()?;
        if groups != self.groups {
            self.shapes.clear();
            self.groups = groups;
        }
        Ok(())
    }

    fn too_many_shapes(&self, inputs: &[Tensor]) -> Error {
        let text =
            |inputs: &[Tensor]| inputs.iter().map(|t| t.shape().to_string()).collect::<Vec<_>>().join(", ");
        let known = self.shapes.iter().map(|b| text(&b.inputs));
        let message = format!(
            "a batch of {} is a shape beyond the {MAX_SHAPES} that were captured: {}",
            text(inputs),
            known.collect::<Vec<_>>().join("; ")
        );
        Error::unsupported("captured step", message)
            .with_help("pad batches to fewer shapes, or capture with Capture::Auto")
    }

    /// Reads the losses that are on the device only.
    fn collect(&mut self) -> Result<()> {
        if self.unread == 0 {
            return Ok(());
        }
        let next = self.cursor.to_vec::<i64>()?[0] as usize;
        let ring = self.ring.to_vec::<f64>()?;
        let first = next.saturating_sub(self.unread);
        self.losses.extend((first..next).map(|at| ring[at % ring.len()]));
        self.unread = 0;
        Ok(())
    }

    /// The losses of all steps since the last call, in order. Waits for the device.
    pub fn losses(&mut self) -> Result<Vec<f64>> {
        self.collect()?;
        Ok(std::mem::take(&mut self.losses))
    }

    /// The recorded graphs, in the order of their making: launches and bytes of each.
    pub fn graphs(&self) -> Vec<(u64, usize)> {
        self.shapes.iter().flat_map(|b| &b.graph).map(|g| (g.launches(), g.bytes())).collect()
    }
}

/// Notes a loss down: input the loss (0-d), in place the ring (f64 `[count]`) and the cursor (i64 `[1]`).
#[derive(Clone, Copy, Debug)]
struct PushLoss {
    /// By which the loss is multiplied.
    factor: f64,
    /// To what is there already.
    add: bool,
    /// Whether the cursor moves on.
    advance: bool,
    /// The length of the ring.
    count: usize,
}

impl Op for PushLoss {
    const NAME: &'static str = "push_loss";
    const UPDATES: bool = true;
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::same_float(Self::NAME, inputs)?;
        let ring = inputs[0].with_dtype(DType::F64).with_shape(Shape::new(&[self.count])?);
        let cursor = inputs[0].with_dtype(DType::I64).with_shape(Shape::new(&[1])?);
        Ok(Plan { outputs: vec![ring, cursor], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let loss = dispatch!(float inputs[0].dtype(), T => inputs[0].data::<T>()[0].to_f64(),
            else return Err(Error::internal("not a float")));
        let [ring, cursor] = outputs else { return Err(Error::internal("ring and cursor")) };
        let cursor = &mut cursor.slice::<i64>()[0];
        let place = &mut ring.slice::<f64>()[*cursor as usize % self.count];
        *place = if self.add { *place + loss * self.factor } else { loss * self.factor };
        *cursor += i64::from(self.advance);
        Ok(())
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let [ring, cursor] = outputs else { return Err(Error::internal("ring and cursor")) };
        kernels::PushLoss {
            loss: inputs[0].src(),
            ring: ring.dst(),
            cursor: cursor.dst(),
            count: self.count as u64,
            factor: self.factor,
            add: u32::from(self.add),
            advance: u32::from(self.advance),
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}
