//! [`Loader`]: batches of a [`Part`], in an order that is a pure function of (seed, epoch).
//!
//! Batches are gathered where they are asked for, or ahead of time by threads of the loader's own when they are large
//! enough to pay for it, or are augmented. All give the same batches in the same order: threads take turns through the same
//! positions, and what is random about a row is a function of (seed, epoch, row), so timing cannot show. Buffers are
//! recycled; a steady epoch allocates nothing but its order. The loader stands at a position that can be read and set, so a
//! resumed run sees the batches that the uninterrupted one would have seen.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::augment::Augment;
use super::balance::Groups;
use super::dataset::Part;
use super::target::Targets;
use crate::cpu::par;
use crate::random::Philox;
use crate::{Error, ErrorKind, Result};

// Streams of the seed; the split's are beside them.
const ORDER_SITE: u32 = 0x4f52_4445;
const SAMPLE_SITE: u32 = 0x5341_4d50;
const AUGMENT_SITE: u32 = 0x4155_474d;
const MIX_SITE: u32 = 0x4d49_5855;
const OTHER_SITE: u32 = 0x4d49_584f;

// Values in a batch from which a thread of its own gathers. Rows are in memory, so gathering is a copy: 4 µs for 64 rows of
// 64 (digits), where handing a batch over costs 40 µs; about 1 ms for 1,000 rows of 1,000, from where a second core or a
// device has something to hide. 2 shared cores, 2026-11; below that the thread gained nothing or took a core from the step.
const PREFETCH_FROM: usize = 1 << 20;

// What augmenting a value costs, in values copied: see `Plan::cost`. And the most threads that it gets, so that cores are left
// to the step.
const MOVE_COST: usize = 8;
const HARD_COST: usize = 32;
const MOST_THREADS: usize = 4;

/// In what order an epoch goes through the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are.
    Sequential,
    /// Shuffled anew each epoch.
    Shuffled {
        /// Picks the orders of all epochs.
        seed: u64,
    },
    /// As many rows as there are, drawn anew each epoch so that each class is equally likely, and each row of a class.
    /// Some rows come more than once in an epoch, some not at all.
    Weighted {
        /// Picks the rows of all epochs.
        seed: u64,
    },
}

/// What becomes of the rows at the end of an epoch that do not fill a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LastBatch {
    /// They are a smaller batch.
    #[default]
    Keep,
    /// They are left out of this epoch.
    Drop,
}

/// How a part is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Rows a batch.
    pub batch: usize,
    /// The order of the rows.
    pub order: Order,
    /// What becomes of rows that do not fill a batch.
    pub last: LastBatch,
    /// How many batches threads gather ahead; 0 for none, and without threads. Nothing: the loader decides by the size of a
    /// batch and by what is done to it.
    pub prefetch: Option<usize>,
}

/// A place between two batches: `batch` batches of epoch number `epoch` have been served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch within the epoch, from 0.
    pub batch: usize,
}

/// Some rows of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Inputs, row-major `[rows, columns]`.
    pub features: Vec<f32>,
    /// One target a row.
    pub targets: Targets,
    /// The part's row of each row here.
    pub rows: Vec<usize>,
}

/// The number of rows a batch: `asked` for, or `default` made to fit.
///
/// # Errors
/// Kind `Argument`: 0 was asked for; kind `Data`: more than the `rows` of the training part were asked for.
pub fn batch_size(asked: Option<usize>, default: usize, rows: usize) -> Result<usize> {
    match asked {
        None => Ok(default.min(rows).max(1)),
        Some(0) => Err(Error::argument("expected a batch of at least 1 row, found 0")),
        Some(asked) if asked > rows => Err(Error::new(
            ErrorKind::Data,
            format!("a batch of {asked} rows is larger than the training part, which has {rows}"),
        )),
        Some(asked) => Ok(asked),
    }
}

/// What both the loader and its threads read.
struct Plan {
    part: Arc<Part>,
    batch: usize,
    order: Order,
    /// For weighted sampling the rows of each class.
    groups: Groups,
    per_epoch: usize,
    augment: Option<Augmented>,
}

/// How rows are changed.
struct Augmented {
    how: Augment,
    seed: u64,
    /// The number of classes that mixed targets are probabilities of.
    classes: usize,
}

/// Memory that a thread needs beside its batch.
#[derive(Default)]
struct Spare {
    row: Vec<f32>,
    picture: Vec<f32>,
    mixed: Vec<(usize, usize, f32)>,
}

impl Plan {
    /// Fills `order` with the rows of `epoch` in the order that they are served.
    fn order_of(&self, epoch: u64, order: &mut Vec<usize>) {
        order.clear();
        let rows = self.part.rows();
        // After 2^32 epochs the orders would come again.
        let step = epoch as u32;
        match self.order {
            Order::Sequential => order.extend(0..rows),
            Order::Shuffled { seed } => {
                order.extend(0..rows);
                Philox::for_step(seed, ORDER_SITE, step).sequence(0).shuffle(order);
            }
            Order::Weighted { seed } => {
                let mut words = Philox::for_step(seed, SAMPLE_SITE, step).sequence(0);
                order.extend((0..rows).map(|_| self.groups.draw(&mut words)));
            }
        }
    }

    fn gather(&self, order: &[usize], position: Position, batch: &mut Batch, spare: &mut Spare) {
        let first = position.batch * self.batch;
        let rows = &order[first..order.len().min(first + self.batch)];
        batch.rows.clear();
        batch.rows.extend_from_slice(rows);
        match &self.augment {
            None => {
                self.part.inputs.gather(rows, &mut batch.features);
                self.part.targets.gather(rows, &mut batch.targets);
            }
            Some(augmented) => self.gather_augmented(augmented, rows, (position.epoch, first), batch, spare),
        }
    }

    fn gather_augmented(
        &self,
        Augmented { how, seed, classes }: &Augmented,
        rows: &[usize],
        (epoch, first): (u64, usize),
        batch: &mut Batch,
        spare: &mut Spare,
    ) {
        let [draws, mixing, others] =
            [AUGMENT_SITE, MIX_SITE, OTHER_SITE].map(|site| Philox::for_step(*seed, site, epoch as u32));
        let (store, width) = (&self.part.inputs, self.part.inputs.width());
        batch.features.resize(rows.len() * width, 0.0);
        spare.mixed.clear();
        spare.row.resize(width, 0.0);
        for (i, (&row, into)) in rows.iter().zip(batch.features.chunks_exact_mut(width.max(1))).enumerate() {
            // A row that may come twice in an epoch is another one each time: its place in the epoch counts.
            let key = match self.order {
                Order::Weighted { .. } => first + i,
                Order::Sequential | Order::Shuffled { .. } => row,
            } as u64;
            how.read(store, row, (&draws, key), into, &mut spare.picture);
            if how.mixup > 0.0 {
                let (share, pick) = how.mix(&mixing, key);
                let other = match self.order {
                    Order::Weighted { .. } => self.groups.draw(&mut Philox::new(pick, 0).sequence(0)),
                    Order::Sequential | Order::Shuffled { .. } => {
                        ((u128::from(pick) * store.rows() as u128) >> 64) as usize
                    }
                };
                how.read(store, other, (&others, key), &mut spare.row, &mut spare.picture);
                for (own, other) in into.iter_mut().zip(&spare.row) {
                    *own = share * *own + (1.0 - share) * other;
                }
                spare.mixed.push((row, other, share));
            }
        }
        if how.mixup > 0.0 {
            self.part.targets.gather_mixed(&spare.mixed, *classes, &mut batch.targets);
        } else {
            self.part.targets.gather(rows, &mut batch.targets);
        }
    }

    /// What gathering a batch costs, in values copied.
    fn cost(&self) -> usize {
        let values = self.batch.saturating_mul(self.part.inputs.width());
        let Some(Augmented { how, .. }) = &self.augment else { return values };
        let each = match (how.noise > 0.0 || how.rotate > 0.0, how.needs_pictures()) {
            (true, _) => HARD_COST,
            (false, true) => MOVE_COST,
            (false, false) => 1,
        };
        values.saturating_mul(if how.mixup > 0.0 { 2 * each } else { each })
    }

    fn empty_batch(&self) -> Batch {
        Batch {
            features: Vec::with_capacity(self.batch * self.part.inputs.width()),
            targets: self.part.targets.empty_like(self.batch),
            rows: Vec::with_capacity(self.batch),
        }
    }

    /// The position `count` batches after `position`.
    fn after(&self, position: Position, count: usize) -> Position {
        let batch = position.batch + count;
        Position { epoch: position.epoch + (batch / self.per_epoch) as u64, batch: batch % self.per_epoch }
    }
}

/// The order of the epoch that was asked for last.
#[derive(Default)]
struct Orders {
    epoch: Option<u64>,
    rows: Vec<usize>,
}

impl Orders {
    fn get(&mut self, plan: &Plan, epoch: u64) -> &[usize] {
        if self.epoch != Some(epoch) {
            plan.order_of(epoch, &mut self.rows);
            self.epoch = Some(epoch);
        }
        &self.rows
    }
}

/// Serves the batches of a part, epoch after epoch.
///
/// ```
/// use std::sync::Arc;
/// use warpsmith::data::{LastBatch, Loader, LoaderOptions, Order, Part, Store, Targets};
/// let part = Part {
///     inputs: Store::values(vec![1.0, 2.0, 3.0], 3, &[1])?,
///     targets: Targets::Classes(vec![0, 1, 0]),
///     source_rows: vec![0, 1, 2],
///     names: Vec::new(),
/// };
/// let options = LoaderOptions { batch: 2, order: Order::Sequential, last: LastBatch::Keep, prefetch: None };
/// let mut loader = Loader::new(Arc::new(part), options)?;
/// while let Some(batch) = loader.next_batch()? {
///     assert_eq!(batch.features.len(), batch.rows.len());
/// }
/// assert_eq!(loader.position().epoch, 1);
/// # Ok::<(), warpsmith::Error>(())
/// ```
pub struct Loader {
    plan: Arc<Plan>,
    /// Batches gathered ahead, if it was said how many.
    asked: Option<usize>,
    /// The most threads that gather.
    threads: usize,
    position: Position,
    /// The batch that was given out last; recycled by the next call.
    current: Batch,
    orders: Orders,
    spare: Spare,
    workers: Option<Workers>,
}

impl Loader {
    /// A loader at the start of epoch 0.
    ///
    /// # Errors
    /// Kind `Argument`: a batch of 0 rows, weighted sampling of a regression; kind `Data`: a part without rows, or with too
    /// few for one batch where the last one is dropped; kind `Shape`: not as many inputs as targets.
    pub fn new(part: Arc<Part>, options: LoaderOptions) -> Result<Self> {
        let rows = part.rows();
        if options.batch == 0 {
            return Err(Error::argument("expected a batch of at least 1 row, found 0"));
        }
        if part.inputs.rows() != rows {
            let message = format!("inputs of {} rows for {rows} targets", part.inputs.rows());
            return Err(Error::shape("loader", message));
        }
        let per_epoch = match options.last {
            LastBatch::Keep => rows.div_ceil(options.batch),
            LastBatch::Drop => rows / options.batch,
        };
        if per_epoch == 0 {
            let message = format!("{rows} rows do not make one batch of {}", options.batch);
            return Err(Error::new(ErrorKind::Data, message));
        }
        let groups = match options.order {
            Order::Weighted { .. } => Groups::of(&part.targets)?,
            Order::Sequential | Order::Shuffled { .. } => Groups::default(),
        };
        let batch = options.batch.min(rows);
        let plan = Plan { part, batch, order: options.order, groups, per_epoch, augment: None };
        Ok(Loader {
            asked: options.prefetch,
            threads: par::threads().clamp(1, MOST_THREADS),
            position: Position::default(),
            current: plan.empty_batch(),
            orders: Orders::default(),
            spare: Spare::default(),
            workers: None,
            plan: Arc::new(plan),
        })
    }

    /// The same loader, at the start of epoch 0, whose rows are changed as `augment` says. Random numbers come from
    /// `seed`; where rows are mixed, targets become probabilities of `classes` classes (for a regression, mixed values).
    ///
    /// # Errors
    /// Kind `Argument`: as [`Augment::check_for`].
    pub fn with_augment(self, augment: Augment, seed: u64, classes: usize) -> Result<Self> {
        augment.check_for(&self.plan.part.inputs)?;
        if let Targets::Classes(all) = &self.plan.part.targets
            && augment.mixup > 0.0
            && let Some(class) = all.iter().find(|&&class| class < 0 || class as usize >= classes)
        {
            return Err(Error::argument(format!("there is no class {class} in {classes}")));
        }
        let augment = (!augment.is_none()).then_some(Augmented { how: augment, seed, classes });
        let old = &*self.plan;
        let (part, groups) = (Arc::clone(&old.part), old.groups.clone());
        let plan = Plan { part, groups, augment, ..*old };
        Ok(Loader { plan: Arc::new(plan), position: Position::default(), workers: None, ..self })
    }

    /// How many batches are gathered ahead, and by how many threads.
    fn ahead(&self) -> (usize, usize) {
        let most = if self.plan.augment.is_some() { self.threads } else { 1 };
        let auto = if self.plan.cost() >= PREFETCH_FROM { 2 * most } else { 0 };
        let ahead = self.asked.unwrap_or(auto);
        (ahead, most.min(ahead))
    }

    /// Batches an epoch, at least 1.
    pub fn batches_per_epoch(&self) -> usize {
        self.plan.per_epoch
    }

    /// The part that is served.
    pub fn part(&self) -> &Part {
        &self.plan.part
    }

    /// Where the loader stands. At the end of an epoch, before the call that says so, `batch` is
    /// [`Loader::batches_per_epoch`].
    pub fn position(&self) -> Position {
        self.position
    }

    /// Goes to `position`; the next batch is the one that a loader which served everything before would give.
    ///
    /// # Errors
    /// Kind `Argument`: an epoch has fewer batches, or the epoch's number is 2³² or more.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        if position.epoch > u64::from(u32::MAX) {
            return Err(Error::argument(format!(
                "there is no epoch {}: expected fewer than 2^32",
                position.epoch
            )));
        }
        if position.batch > self.plan.per_epoch {
            let message =
                format!("an epoch has {} batches; there is no batch {}", self.plan.per_epoch, position.batch);
            return Err(Error::argument(message));
        }
        self.position = position;
        self.workers = None;
        Ok(())
    }

    /// The next batch of the epoch; nothing at its end, and the next call begins the next epoch.
    ///
    /// # Errors
    /// Kind `Internal`: a prefetching thread could not be started or has panicked.
    pub fn next_batch(&mut self) -> Result<Option<&Batch>> {
        if self.position.batch == self.plan.per_epoch {
            self.position = Position { epoch: self.position.epoch + 1, batch: 0 };
            return Ok(None);
        }
        let (ahead, threads) = self.ahead();
        if ahead == 0 {
            let order = self.orders.get(&self.plan, self.position.epoch);
            self.plan.gather(order, self.position, &mut self.current, &mut self.spare);
        } else {
            let workers = match &mut self.workers {
                Some(workers) => workers,
                none => none.insert(Workers::start(&self.plan, self.position, ahead, threads)?),
            };
            match workers.exchange(&mut self.current) {
                Ok(()) => {}
                Err(error) => {
                    self.workers = None;
                    return Err(error);
                }
            }
        }
        self.position.batch += 1;
        Ok(Some(&self.current))
    }
}

/// The prefetching threads, which take turns.
struct Workers {
    all: Vec<Worker>,
    /// The one whose turn it is.
    next: usize,
}

impl Workers {
    fn start(plan: &Arc<Plan>, from: Position, ahead: usize, threads: usize) -> Result<Self> {
        let start = |i| Worker::start(plan, plan.after(from, i), threads, ahead.div_ceil(threads));
        Ok(Workers { all: (0..threads).map(start).collect::<Result<_>>()?, next: 0 })
    }

    fn exchange(&mut self, batch: &mut Batch) -> Result<()> {
        let next = self.next;
        self.next = (next + 1) % self.all.len();
        self.all[next].exchange(batch)
    }
}

/// A prefetching thread and the two queues between it and the loader.
struct Worker {
    // Options because dropping them is what ends the thread; both must be gone before it is joined.
    filled: Option<Receiver<Result<Batch, String>>>,
    used: Option<Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// A thread that gathers every `stride`th batch from `from` on.
    fn start(plan: &Arc<Plan>, from: Position, stride: usize, ahead: usize) -> Result<Self> {
        // One batch more is being gathered while `ahead` of them wait.
        let (to_loader, filled) = sync_channel(ahead);
        let (used, recycled) = channel();
        let plan = Arc::clone(plan);
        let work = move || {
            let outcome =
                catch_unwind(AssertUnwindSafe(|| prefetch(&plan, from, stride, &to_loader, &recycled)));
            if let Err(panic) = outcome {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                // The loader may be gone; then nobody needs to know.
                let _ = to_loader.send(Err(text));
            }
        };
        let thread = std::thread::Builder::new().name("warpsmith-loader".to_owned()).spawn(work);
        let thread = thread
            .map_err(|cause| Error::internal("could not start the loader's thread").caused_by(cause))?;
        Ok(Worker { filled: Some(filled), used: Some(used), thread: Some(thread) })
    }

    /// Gives the used batch back and takes the next one in its place.
    fn exchange(&mut self, batch: &mut Batch) -> Result<()> {
        let next = self.filled.as_ref().and_then(|filled| filled.recv().ok());
        match next {
            Some(Ok(next)) => {
                let used = std::mem::replace(batch, next);
                if let Some(channel) = &self.used {
                    // The thread may have ended already; then the buffer is not needed.
                    let _ = channel.send(used);
                }
                Ok(())
            }
            Some(Err(panic)) => Err(Error::internal(format!("the loader's thread panicked: {panic}"))),
            None => Err(Error::internal("the loader's thread has ended")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.filled = None;
        self.used = None;
        if let Some(thread) = self.thread.take() {
            // A panic was caught and reported already.
            let _ = thread.join();
        }
    }
}

/// Gathers every `stride`th batch until the loader is gone.
fn prefetch(
    plan: &Plan,
    mut position: Position,
    stride: usize,
    to_loader: &SyncSender<Result<Batch, String>>,
    recycled: &Receiver<Batch>,
) {
    let (mut orders, mut spare) = (Orders::default(), Spare::default());
    loop {
        let mut batch = recycled.try_recv().unwrap_or_else(|_| plan.empty_batch());
        plan.gather(orders.get(plan, position.epoch), position, &mut batch, &mut spare);
        if to_loader.send(Ok(batch)).is_err() {
            return;
        }
        position = plan.after(position, stride);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Store;

    /// A panic on the thread is an error of the call that waits for the batch, and ends neither the process nor hangs.
    #[test]
    fn a_panic_on_the_thread_is_reported() {
        // Too few inputs for its rows, which `Loader::new` would refuse.
        let part = Part {
            inputs: Store::values(vec![0.0; 2], 1, &[2]).unwrap(),
            targets: Targets::Classes(vec![0, 1]),
            source_rows: vec![0, 1],
            names: Vec::new(),
        };
        let plan = Plan {
            part: Arc::new(part),
            batch: 1,
            order: Order::Sequential,
            groups: Groups::default(),
            per_epoch: 2,
            augment: None,
        };
        let plan = Arc::new(plan);
        let mut batch = plan.empty_batch();
        let mut worker = Worker::start(&plan, Position::default(), 1, 1).unwrap();
        worker.exchange(&mut batch).unwrap();
        assert_eq!(batch.rows, [0]);
        let error = worker.exchange(&mut batch).unwrap_err();
        assert!(error.kind() == ErrorKind::Internal && error.message().contains("panicked: "), "{error}");
        assert_eq!(worker.exchange(&mut batch).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn buffers_are_recycled() {
        let part = Part {
            inputs: Store::values(vec![0.0; 64], 32, &[2]).unwrap(),
            targets: Targets::Classes(vec![0; 32]),
            source_rows: (0..32).collect(),
            names: Vec::new(),
        };
        let part = Arc::new(part);
        for prefetch in [0, 2] {
            let options = LoaderOptions {
                batch: 4,
                order: Order::Shuffled { seed: 0 },
                last: LastBatch::Keep,
                prefetch: Some(prefetch),
            };
            let mut loader = Loader::new(Arc::clone(&part), options).unwrap();
            let mut buffers = std::collections::BTreeSet::new();
            for _ in 0..400 {
                if let Some(batch) = loader.next_batch().unwrap() {
                    buffers.insert(batch.features.as_ptr().addr());
                }
            }
            // One here, the queue, one in the making and one on its way back.
            assert!(buffers.len() <= prefetch + 3, "{} buffers", buffers.len());
        }
    }
}
