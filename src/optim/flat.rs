//! The fused pass: every rule over every parameter of an arena in one sweep.

#![forbid(unsafe_code)]

use std::ops::{Range, RangeInclusive};

use super::narrow::{Bits, Code, Halves, Narrow, Noise, front};
use super::rules::{Rule, Scalars};
use crate::cpu::{par, simd};
use crate::device::Stream;
use crate::device::kernels::optim as kernels;
use crate::dtype::Real;
use crate::ops::{Cases, Op, Plan, Tolerance};
use crate::param::{ALIGN, FROZEN, Precision, Rounding, StateDType, StepBlock};
use crate::tensor::{Meta, Out, View};
use crate::{DType, Error, Result, Shape};

/// Elements that a thread updates at a time; a multiple of [`ALIGN`].
const CHUNK: usize = 64 * ALIGN;

/// One optimiser step over an arena.
///
/// Inputs: gradients (flat), the step block's floats and counters, the group table (u8, one a block of [`ALIGN`]
/// elements). In place: values (flat), their f32 masters if there are any, then the rule's state (flat, f32, f64 or bf16;
/// or u8, followed by its scales in f32, one a block). Does nothing if the step block says that the step is skipped.
#[derive(Clone, Copy, Debug)]
pub struct Update<R> {
    /// The rule.
    pub rule: R,
    /// Gradients are clamped to ± this; infinity for no clamp.
    pub clip_value: f64,
    /// How everything is kept.
    pub precision: Precision,
}

/// A flat buffer, or a part of it, in whichever form it is kept.
enum Flat<'a, R> {
    Absent,
    /// In the type that is computed in.
    Full(&'a mut [R]),
    /// In fewer bits, which go with f32.
    Narrow(Narrow<'a>),
}

/// A flat buffer that is only read.
enum Grads<'a, R> {
    Full(&'a [R]),
    Narrow(Halves<'a>),
}

impl<'a, R: Real> Flat<'a, R> {
    fn of(out: &'a mut Out<'_>) -> Flat<'a, R> {
        match out.dtype() {
            DType::BF16 => Flat::Narrow(Narrow::Bf16(out.slice())),
            DType::F16 => Flat::Narrow(Narrow::F16(out.slice())),
            _ => Flat::Full(out.slice()),
        }
    }

    /// Takes the next [`CHUNK`] elements off.
    fn chunk(&mut self) -> Flat<'a, R> {
        match self {
            Flat::Absent => Flat::Absent,
            Flat::Full(all) => Flat::Full(front(all, CHUNK)),
            Flat::Narrow(all) => Flat::Narrow(all.front(CHUNK)),
        }
    }

    /// A block in the type that is computed in: itself, or `buffer` with its values.
    #[inline(always)]
    fn open<'b>(&'b mut self, range: Range<usize>, buffer: &'b mut [R; ALIGN]) -> &'b mut [R] {
        match self {
            Flat::Full(all) => return &mut all[range],
            Flat::Absent => {}
            Flat::Narrow(all) => all.open(range, bytemuck::cast_slice_mut(buffer)),
        }
        buffer
    }

    /// Writes a block that [`Flat::open`] gave as `buffer` back.
    #[inline(always)]
    fn close(&mut self, range: Range<usize>, buffer: &[R], noise: Option<&[u32; ALIGN]>) {
        if let Flat::Narrow(all) = self {
            all.close(range, bytemuck::cast_slice(buffer), noise);
        }
    }

    /// Whether its values change their form when they are opened and closed.
    fn is_narrow(&self) -> bool {
        matches!(self, Flat::Narrow(_))
    }
}

impl<'a, R: Real> Grads<'a, R> {
    fn of(view: &'a View<'_>) -> Option<Grads<'a, R>> {
        Some(match view.dtype() {
            DType::BF16 => Grads::Narrow(Halves::Bf16(view.slice()?)),
            DType::F16 => Grads::Narrow(Halves::F16(view.slice()?)),
            _ => Grads::Full(view.slice()?),
        })
    }

    #[inline(always)]
    fn open<'b>(&'b self, range: Range<usize>, buffer: &'b mut [R; ALIGN]) -> &'b [R] {
        match self {
            Grads::Full(all) => return &all[range],
            Grads::Narrow(all) => all.open(range, bytemuck::cast_slice_mut(buffer)),
        }
        buffer
    }
}

/// What holds for all blocks of a step.
struct Common<'a, R> {
    floats: &'a [f64],
    first: bool,
    factor: R,
    limit: R,
    noise: Noise,
}

impl<R: Real> Common<'_, R> {
    fn scalars(&self, group: u8) -> Scalars<R> {
        let lr = self.floats[StepBlock::LR + group as usize];
        Scalars {
            lr: R::of(lr),
            weight_decay: R::of(self.floats[StepBlock::WEIGHT_DECAY + group as usize]),
            root_bias2: R::of((1.0 - self.floats[StepBlock::BETA2_POWER]).sqrt()),
            step_size: R::of(lr / (1.0 - self.floats[StepBlock::BETA1_POWER])),
            first: self.first,
        }
    }
}

impl<U: Rule> Update<U> {
    fn body<R: Real>(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let contiguous =
            |view: &View<'_>| Error::internal(format!("a flat buffer of shape {} has gaps", view.shape()));
        let grads = Grads::<R>::of(&inputs[0]).ok_or_else(|| contiguous(&inputs[0]))?;
        let floats = inputs[1].slice::<f64>().ok_or_else(|| contiguous(&inputs[1]))?;
        let step = inputs[2].data::<i64>()[0];
        let table = inputs[3].slice::<u8>().ok_or_else(|| contiguous(&inputs[3]))?;
        if floats[StepBlock::SKIP] != 0.0 {
            return Ok(());
        }
        let common = Common {
            floats,
            first: step == 1,
            factor: R::of(floats[StepBlock::CLIP] / floats[StepBlock::UNSCALE]),
            limit: R::of(self.clip_value),
            noise: Noise::new(self.precision.rounding, step),
        };
        let mut outputs = outputs.iter_mut();
        let mut next = || outputs.next().map_or(Flat::Absent, Flat::<R>::of);
        let values = next();
        // What the step is made from, and what gets a rounded copy of it.
        let (mut main, mut copy) =
            if self.precision.has_master() { (next(), values) } else { (values, Flat::Absent) };
        let mut states: [Flat<'_, R>; 3] = std::array::from_fn(|_| Flat::Absent);
        let int8 = self.precision.states == StateDType::Int8;
        for (k, state) in states.iter_mut().take(self.rule.state().len()).enumerate() {
            *state = match (int8, &mut outputs) {
                (false, outputs) => outputs.next().map_or(Flat::Absent, Flat::of),
                (true, outputs) => match (outputs.next(), outputs.next()) {
                    (Some(bytes), Some(scales)) => Flat::Narrow(Narrow::Bytes(
                        Code::new(self.rule.unsigned()[k]),
                        bytes.slice(),
                        scales.slice(),
                    )),
                    _ => return Err(Error::internal("a state of bytes has scales")),
                },
            };
        }
        let chunks = table.chunks(CHUNK / ALIGN).enumerate();
        let items = chunks.map(move |(k, table)| {
            (k, table, main.chunk(), copy.chunk(), states.each_mut().map(Flat::chunk))
        });
        par::each(table.len().div_ceil(CHUNK / ALIGN), items, |(k, table, main, copy, states)| {
            simd::vectorize(
                #[inline(always)]
                || self.chunk(k * CHUNK, table, &grads, main, copy, states, &common),
            );
        });
        Ok(())
    }

    /// Updates the blocks from element `start` on.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the buffers of an arena")]
    fn chunk<R: Real>(
        &self,
        start: usize,
        table: &[u8],
        grads: &Grads<'_, R>,
        mut main: Flat<'_, R>,
        mut copy: Flat<'_, R>,
        mut states: [Flat<'_, R>; 3],
        common: &Common<'_, R>,
    ) {
        let mut buffers = [[R::ZERO; ALIGN]; 5];
        let [g, p, b0, b1, b2] = &mut buffers;
        let mut noise = [0; ALIGN];
        for (block, &group) in table.iter().enumerate().filter(|(_, group)| **group != FROZEN) {
            let range = block * ALIGN..(block + 1) * ALIGN;
            let place = start + range.start;
            let grads = grads.open(place..place + ALIGN, g);
            let values = main.open(range.clone(), p);
            let [s0, s1, s2] = &mut states;
            let state = [s0.open(range.clone(), b0), s1.open(range.clone(), b1), s2.open(range.clone(), b2)];
            update_block(
                &self.rule,
                values,
                grads,
                state,
                common.factor,
                common.limit,
                &common.scalars(group),
            );
            // One of the two at most is narrow.
            if main.is_narrow() || copy.is_narrow() {
                let by_chance = common.noise.block(Bits::Weights, place, &mut noise);
                let noise = by_chance.then_some(&noise);
                if copy.is_narrow() {
                    copy.close(range.clone(), main.open(range.clone(), p), noise);
                } else {
                    main.close(range.clone(), p, noise);
                }
            }
            for (k, (state, buffer)) in states.iter_mut().zip([&*b0, &*b1, &*b2]).enumerate() {
                if state.is_narrow() {
                    let by_chance = common.noise.block(Bits::State(k), place, &mut noise);
                    state.close(range.clone(), buffer, by_chance.then_some(&noise));
                }
            }
        }
    }
}

/// Updates one block of parameters of one group.
#[inline(always)]
fn update_block<R: Real, U: Rule>(
    rule: &U,
    values: &mut [R],
    grads: &[R],
    [s0, s1, s2]: [&mut [R]; 3],
    factor: R,
    limit: R,
    scalars: &Scalars<R>,
) {
    let n = ALIGN;
    let (values, grads) = (&mut values[..n], &grads[..n]);
    let (s0, s1, s2) = (&mut s0[..n], &mut s1[..n], &mut s2[..n]);
    for i in 0..n {
        let g = grads[i] * factor;
        // Not `clamp`, so that NaN stays NaN.
        let g = if g > limit { limit } else { g };
        let g = if g < -limit { -limit } else { g };
        let state = [&mut s0[i], &mut s1[i], &mut s2[i]];
        values[i] = rule.update(values[i], g, state, scalars);
    }
}

impl<U: Rule> Op for Update<U> {
    const NAME: &'static str = U::NAME;
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const ACCUMULATES: bool = true;
    const UPDATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (grads, precision) = (inputs[0], &self.precision);
        let blocks = inputs[3].shape.numel();
        if grads.shape.rank() != 1 || grads.shape.numel() != blocks * ALIGN {
            let message =
                format!("gradients {} do not fit a table of {blocks} blocks of {ALIGN}", grads.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        if grads.dtype != precision.grads {
            return Err(Error::dtype(
                Self::NAME,
                format!("gradients are {}, not {}", grads.dtype, precision.grads),
            ));
        }
        let mut outputs = vec![grads.with_dtype(precision.compute)];
        if precision.has_master() {
            outputs.push(grads.with_dtype(DType::F32));
        }
        for _ in self.rule.state() {
            match precision.states {
                StateDType::F32 if precision.compute == DType::F64 => {
                    outputs.push(grads.with_dtype(DType::F64))
                }
                StateDType::F32 => outputs.push(grads.with_dtype(DType::F32)),
                StateDType::BF16 => outputs.push(grads.with_dtype(DType::BF16)),
                StateDType::Int8 => {
                    outputs.push(grads.with_dtype(DType::U8));
                    outputs.push(grads.with_dtype(DType::F32).with_shape(Shape::from_dims(&[blocks])));
                }
            }
        }
        Ok(Plan { outputs, scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        match self.precision.compute {
            DType::F64 => self.body::<f64>(inputs, outputs),
            _ => self.body::<f32>(inputs, outputs),
        }
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let [grads, floats, counters, table] = [0, 1, 2, 3].map(|k: usize| inputs[k].src());
        let n = inputs[0].numel() as u64;
        let mut outputs = outputs.iter_mut().map(Out::dst);
        let values = outputs.next().ok_or_else(|| Error::internal("an update has values"))?;
        let master = if self.precision.has_master() { outputs.next() } else { None };
        let (mut full, mut half, mut bytes, mut scales) =
            ([None, None, None], [None, None, None], [None, None, None], [None, None, None]);
        for k in 0..self.rule.state().len() {
            match self.precision.states {
                StateDType::F32 => full[k] = outputs.next(),
                StateDType::BF16 => half[k] = outputs.next(),
                StateDType::Int8 => (bytes[k], scales[k]) = (outputs.next(), outputs.next()),
            }
        }
        let ([s0, s1, s2], [h0, h1, h2], [q0, q1, q2], [c0, c1, c2]) = (full, half, bytes, scales);
        // Gradients of the weights' type, or in f32 beside 16-bit weights.
        let same = self.precision.grads == self.precision.compute;
        let (grads, wide) = if same { (Some(grads), None) } else { (None, Some(grads)) };
        let (f, numbers, flag) = self.rule.gpu();
        let [a, b, c, d] = numbers.map(|v| v as f32);
        let (flag, limit) = (flag.into(), self.clip_value as f32);
        let (random, seed) = match self.precision.rounding {
            Rounding::Nearest => (0, 0),
            Rounding::Stochastic { seed } => (1, seed),
        };
        let blocks = n / ALIGN as u64;
        kernels::Update {
            f,
            grads,
            wide,
            values,
            master,
            s0,
            s1,
            s2,
            h0,
            h1,
            h2,
            q0,
            q1,
            q2,
            c0,
            c1,
            c2,
            floats,
            counters,
            table,
            n,
            blocks,
            limit,
            a,
            b,
            c,
            d,
            flag,
            random,
            seed,
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}
