//! How much memory training will take, from shapes alone.
//!
//! A step is gone through op by op as [`Gpt`](crate::nn::Gpt) and the backward pass run it: what each op makes, what it saves for
//! its gradient and when that is let go, every tensor rounded up to the block that the pool would give. Nothing is computed and
//! nothing measured. Scratch memory within an op (partial sums, panels of a product) is left out, but for the widened copies that
//! some make of 16-bit inputs on the CPU.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::Result;
use crate::nn::{FeedForwardKind, GptConfig, NormKind, Positions};
use crate::param::{ALIGN, Precision, StateDType};

/// What a [`MemoryPlan`] is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// In which types the model is computed and kept.
    pub precision: Precision,
    /// Numbers that the optimiser keeps of each parameter: Adam 2, SGD with momentum 1.
    pub states: usize,
    /// Windows a step.
    pub batch: usize,
    /// Into how many parts they are cut.
    pub micro_batches: usize,
    /// Whether blocks keep their inputs only.
    pub recompute: bool,
    /// Whether it is for the CPU rather than a GPU: blocks are multiples of 64 bytes rather than 512, and some ops widen 16-bit
    /// inputs.
    pub cpu: bool,
    /// Whether the step is captured, so that its memory is its own.
    pub captured: bool,
}

/// Bytes that training takes, as the pool would count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Values that are trained, a count.
    pub parameters: usize,
    /// The values in the type that is computed in.
    pub weights: usize,
    /// Their gradients.
    pub gradients: usize,
    /// The f32 masters of 16-bit values.
    pub master: usize,
    /// The optimiser's states.
    pub states: usize,
    /// Tables of rotary positions.
    pub tables: usize,
    /// Token ids and targets.
    pub batch: usize,
    /// What a block (the last one) keeps for backward.
    pub layer: usize,
    /// What all of the model keeps for backward, without the logits.
    pub activations: usize,
    /// The logits, which their gradient overwrites.
    pub logits: usize,
    /// The most that is in use at once.
    pub peak: usize,
}

/// The pool's books.
struct Ledger {
    granule: usize,
    live: Cell<usize>,
    peak: Cell<usize>,
    /// Blocks of each size: in use, and the most so far.
    classes: RefCell<BTreeMap<usize, [usize; 2]>>,
}

/// A tensor's memory; given back with the last clone.
#[derive(Clone)]
struct Held(#[expect(dead_code, reason = "is held only")] Rc<Block>);

struct Block {
    bytes: usize,
    ledger: Rc<Ledger>,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.ledger.live.set(self.ledger.live.get() - self.bytes);
        if let Some(class) = self.ledger.classes.borrow_mut().get_mut(&self.bytes) {
            class[0] = class[0].saturating_sub(1);
        }
    }
}

impl Ledger {
    /// The size of the block that serves `bytes`: four sizes a power of two.
    fn rounded(&self, bytes: usize) -> usize {
        let units = bytes.div_ceil(self.granule);
        let step = if units <= 4 { 1 } else { units.next_power_of_two() / 8 };
        units.next_multiple_of(step.max(1)) * self.granule
    }

    fn take(self: &Rc<Ledger>, bytes: usize) -> Held {
        let bytes = self.rounded(bytes);
        self.live.set(self.live.get() + bytes);
        self.peak.set(self.peak.get().max(self.live.get()));
        let mut classes = self.classes.borrow_mut();
        let class = classes.entry(bytes).or_default();
        class[0] += 1;
        class[1] = class[1].max(class[0]);
        Held(Rc::new(Block { bytes, ledger: self.clone() }))
    }
}

/// The stream and what is still to be added to it.
struct Stream {
    sum: Held,
    pending: Option<Held>,
}

/// One part of a batch on its way.
struct Walk<'a> {
    config: &'a GptConfig,
    ledger: Rc<Ledger>,
    /// Tokens at once.
    tokens: usize,
    /// Bytes of a number, and of a statistic.
    size: usize,
    wide: usize,
    /// Whether gradients are summed in another type than they are made in.
    narrow: bool,
    /// Whether sums and norms widen their inputs.
    widens: bool,
}

impl Walk<'_> {
    /// A tensor of so many numbers a token.
    fn rows(&self, width: usize) -> Held {
        self.ledger.take(self.tokens * width * self.size)
    }

    fn statistics(&self, width: usize) -> Held {
        self.ledger.take(self.tokens * width * self.wide)
    }

    /// Copies of tensors of so many numbers a token that an op needs while it runs.
    fn widened(&self, widths: &[usize]) {
        if self.widens {
            drop(widths.iter().map(|w| self.ledger.take(self.tokens * w * self.wide)).collect::<Vec<_>>());
        }
    }

    /// The gradient of a bias.
    fn bias(&self, width: usize) {
        if self.config.bias {
            self.widened(&[width]);
        }
    }

    /// Queries, keys and values of a token.
    fn heads(&self) -> usize {
        self.config.width / self.config.heads * (self.config.heads + 2 * self.config.kv_heads)
    }

    fn dropped(&self, x: &Held) -> Held {
        if self.config.dropout > 0.0 { self.rows(self.config.width) } else { x.clone() }
    }

    /// The sum and its norm.
    fn norm(&self, from: &Stream, tape: &mut Vec<Held>) -> (Held, Held) {
        let sum = match from.pending {
            Some(_) => self.rows(self.config.width),
            None => from.sum.clone(),
        };
        let y = self.rows(self.config.width);
        let count = if self.config.norm == NormKind::LayerNorm { 2 } else { 1 };
        tape.push(sum.clone());
        tape.extend((0..count).map(|_| self.statistics(1)));
        (sum, y)
    }

    /// A block forward. What its ops save goes on `tape`; without gradients the caller forgets that at once.
    fn block(&self, from: &Stream, recorded: bool, tape: &mut Vec<Held>) -> Stream {
        let GptConfig { width, hidden, heads, activation, .. } = *self.config;
        let keep = |tape: &mut Vec<Held>, t: &Held| {
            if recorded {
                tape.push(t.clone());
            } else {
                tape.clear();
            }
        };
        let (sum, x) = self.norm(from, tape);
        keep(tape, &x);
        let mut qkv = self.rows(self.heads());
        if self.config.positions != Positions::Learned {
            qkv = self.rows(self.heads());
        }
        keep(tape, &qkv);
        let y = self.rows(width);
        let lse = self.statistics(heads);
        keep(tape, &y);
        keep(tape, &lse);
        drop((qkv, lse));
        let attended = self.rows(width);
        drop(y);
        let middle = Stream { sum, pending: Some(self.dropped(&attended)) };
        let (sum, normed) = self.norm(&middle, tape);
        drop(middle);
        keep(tape, &normed);
        let hidden_rows = match activation {
            FeedForwardKind::SwiGlu => {
                let both = self.rows(2 * hidden);
                keep(tape, &both);
                self.rows(hidden)
            }
            FeedForwardKind::Gelu | FeedForwardKind::GeluTanh => {
                let h = self.rows(hidden);
                if recorded {
                    tape.push(self.rows(hidden));
                }
                h
            }
            FeedForwardKind::Relu => self.rows(hidden),
        };
        keep(tape, &hidden_rows);
        let fed = self.rows(width);
        drop(hidden_rows);
        Stream { sum, pending: Some(self.dropped(&fed)) }
    }

    /// The gradient of a weight that is made beside its sum.
    fn weight(&self, numbers: usize) -> Option<Held> {
        self.narrow.then(|| self.ledger.take(numbers * self.size))
    }

    /// A block backward, from the gradient of its stream to that of the one it was given.
    fn block_back(&self, dstream: Held) -> Held {
        let GptConfig { width, hidden, heads, activation, .. } = *self.config;
        let dpending = self.dropped(&dstream);
        let dhidden = self.rows(hidden);
        drop(self.weight(hidden * width));
        self.bias(width);
        drop(dpending);
        let first = if activation == FeedForwardKind::SwiGlu { 2 * hidden } else { hidden };
        let dfirst = self.rows(first);
        // The gradient behind a fused activation waits until its layer is through; SwiGLU is an op of its own.
        let waits = (activation != FeedForwardKind::SwiGlu).then_some(dhidden);
        let dx = self.rows(width);
        drop(self.weight(first * width));
        self.bias(first);
        drop((dfirst, waits));
        let dmiddle = self.rows(width);
        self.widened(&[width; 4]);
        drop((dstream, dx));
        let dattended = self.dropped(&dmiddle);
        let dy = self.rows(width);
        drop(self.weight(width * width));
        self.bias(width);
        drop(dattended);
        let delta = self.statistics(heads);
        let mut dqkv = self.rows(self.heads());
        drop((dy, delta));
        if self.config.positions != Positions::Learned {
            dqkv = self.rows(self.heads());
        }
        let dx = self.rows(width);
        drop(self.weight(self.heads() * width));
        self.bias(self.heads());
        drop(dqkv);
        let dstream = self.rows(width);
        self.widened(&[width; 4]);
        drop((dmiddle, dx));
        dstream
    }

    /// Forward and backward of one part; notes down what is kept in between.
    fn part(&self, recompute: bool, plan: &mut MemoryPlan) {
        let GptConfig { width, padded_vocab, layers, context, .. } = *self.config;
        let start = self.ledger.live.get();
        let mut tape = Vec::new();
        let mut embedded = self.rows(width);
        if self.config.positions == Positions::Learned {
            embedded = self.rows(width);
        }
        let mut stream = Stream { sum: self.dropped(&embedded), pending: None };
        let mut inputs = Vec::new();
        for _ in 0..layers {
            let before = self.ledger.live.get();
            if recompute {
                inputs.push(stream.sum.clone());
                inputs.extend(stream.pending.clone());
                stream = self.block(&stream, false, &mut Vec::new());
            } else {
                stream = self.block(&stream, true, &mut tape);
            }
            plan.layer = self.ledger.live.get() - before;
        }
        let (_, y) = self.norm(&stream, &mut tape);
        tape.push(y);
        let logits = self.rows(padded_vocab);
        plan.logits = self.ledger.rounded(self.tokens * padded_vocab * self.size);
        drop((stream, embedded));
        tape.push(self.ledger.take(self.tokens * 2 * 8));
        plan.activations = self.ledger.live.get() - start - plan.logits;
        let dx = self.rows(width);
        drop(self.weight(padded_vocab * width));
        let mut dstream = self.rows(width);
        drop(dx);
        for layer in (0..layers).rev() {
            if recompute {
                // Its inputs are held already; its outputs and what came from above until it is through.
                let pending = (layer > 0).then(|| inputs[inputs.len() - 1].clone());
                let from = Stream { sum: inputs[0].clone(), pending };
                let mut again = Vec::new();
                let outputs = self.block(&from, true, &mut again);
                let above = dstream.clone();
                dstream = self.block_back(dstream);
                drop((outputs, above));
            } else {
                dstream = self.block_back(dstream);
            }
        }
        if self.config.positions == Positions::Learned {
            drop(self.ledger.take(context * width * self.size));
            self.widened(&[width]);
        }
        drop(self.weight(padded_vocab * width));
        drop((dstream, logits, inputs));
    }
}

/// The numbers of each parameter.
fn parameters(config: &GptConfig) -> Vec<usize> {
    let GptConfig { padded_vocab, context, width, hidden, heads, kv_heads, bias, .. } = *config;
    let mut all = vec![padded_vocab * width];
    if config.positions == Positions::Learned {
        all.push(context * width);
    }
    let qkv = width / heads * (heads + 2 * kv_heads);
    let first = if config.activation == FeedForwardKind::SwiGlu { 2 * hidden } else { hidden };
    let norm_bias = bias && config.norm == NormKind::LayerNorm;
    let norm = |all: &mut Vec<usize>| all.extend(std::iter::repeat_n(width, 1 + usize::from(norm_bias)));
    for _ in 0..config.layers {
        norm(&mut all);
        norm(&mut all);
        for (inputs, outputs) in [(width, qkv), (width, width), (width, first), (hidden, width)] {
            all.push(inputs * outputs);
            all.extend(bias.then_some(outputs));
        }
    }
    norm(&mut all);
    if !config.tied {
        all.push(padded_vocab * width);
    }
    all
}

impl MemoryPlan {
    /// What training `config` takes.
    ///
    /// # Errors
    /// Kind `Argument` for numbers that do not fit, as training would give it.
    pub fn new(config: &GptConfig, options: &PlanOptions) -> Result<MemoryPlan> {
        config.check()?;
        options.precision.check()?;
        let PlanOptions { precision, states, batch, micro_batches, recompute, cpu, captured } = *options;
        if batch == 0 || micro_batches == 0 || !batch.is_multiple_of(micro_batches) {
            let message = format!("{micro_batches} micro-batches do not divide a batch of {batch}");
            return Err(crate::Error::argument(message));
        }
        let ledger = Rc::new(Ledger {
            granule: if cpu { 64 } else { 512 },
            live: Cell::default(),
            peak: Cell::default(),
            classes: RefCell::default(),
        });
        let numbers = parameters(config);
        let flat: usize = numbers.iter().map(|n| n.next_multiple_of(ALIGN)).sum();
        let size = precision.compute.size();
        let mut fixed = Vec::new();
        let mut hold = |bytes: &[usize]| {
            fixed.extend(bytes.iter().map(|b| ledger.take(*b)));
            bytes.iter().map(|b| ledger.rounded(*b)).sum()
        };
        let mut plan = MemoryPlan { parameters: numbers.iter().sum(), ..MemoryPlan::default() };
        plan.weights = hold(&[flat * size]);
        plan.gradients = hold(&[flat * precision.grads.size()]);
        plan.master = if precision.has_master() { hold(&[flat * 4]) } else { 0 };
        for _ in 0..states {
            plan.states += match precision.states {
                StateDType::F32 => hold(&[flat * size.max(4)]),
                StateDType::BF16 => hold(&[flat * 2]),
                StateDType::Int8 => hold(&[flat, flat / ALIGN * 4]),
            };
        }
        if config.positions != Positions::Learned {
            let table = config.context * config.width / config.heads * 4;
            plan.tables = hold(&vec![table; config.layers]);
        }
        plan.batch = hold(&[batch * config.context * 4; 2]);
        let before = ledger.live.get();
        ledger.classes.borrow_mut().clear();
        let walk = Walk {
            config,
            ledger: ledger.clone(),
            tokens: batch / micro_batches * config.context,
            size,
            wide: size.max(4),
            narrow: precision.grads != precision.compute,
            widens: cpu && size == 2,
        };
        walk.part(recompute, &mut plan);
        plan.peak = ledger.peak.get();
        if captured {
            // A recording keeps as many blocks of each size as it ever used at once.
            let own: usize = ledger.classes.borrow().iter().map(|(bytes, [_, most])| bytes * most).sum();
            plan.peak = plan.peak.max(before + own);
        }
        Ok(plan)
    }
}
