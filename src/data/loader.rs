//! [`Loader`]: batches of a [`Part`], in an order that is a pure function of (seed, epoch).
//!
//! Batches are gathered where they are asked for, or ahead of time by a thread of the loader's own when they are large
//! enough to pay for it. Both give the same batches in the same order: the thread counts through the same positions, so
//! timing cannot show. Buffers are recycled; a steady epoch allocates nothing but its order. The loader stands at a
//! position that can be read and set, so a resumed run sees the batches that the uninterrupted one would have seen.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::dataset::Part;
use super::target::Targets;
use crate::random::Philox;
use crate::{Error, ErrorKind, Result};

const ORDER_SITE: u32 = 0x4f52_4445;

// Values in a batch from which a thread of its own gathers. Rows are in memory, so gathering is a copy: 4 µs for 64 rows of
// 64 (digits), where handing a batch over costs 40 µs; about 1 ms for 1,000 rows of 1,000, from where a second core or a
// device has something to hide. 2 shared cores, 2026-11; below that the thread gained nothing or took a core from the step.
const PREFETCH_FROM: usize = 1 << 20;

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
    /// How many batches a thread gathers ahead; 0 for none, and without a thread. Nothing: the loader decides by the size
    /// of a batch.
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

/// What both the loader and its thread read.
struct Plan {
    part: Arc<Part>,
    batch: usize,
    order: Order,
    per_epoch: usize,
}

impl Plan {
    /// Fills `order` with the rows of `epoch` in the order that they are served.
    fn order_of(&self, epoch: u64, order: &mut Vec<usize>) {
        order.clear();
        order.extend(0..self.part.rows());
        if let Order::Shuffled { seed } = self.order {
            // After 2^32 epochs the orders would come again.
            Philox::for_step(seed, ORDER_SITE, epoch as u32).sequence(0).shuffle(order);
        }
    }

    fn gather(&self, order: &[usize], number: usize, batch: &mut Batch) {
        let rows = &order[number * self.batch..order.len().min((number + 1) * self.batch)];
        let columns = self.part.columns;
        batch.rows.clear();
        batch.rows.extend_from_slice(rows);
        batch.features.clear();
        for &row in rows {
            batch.features.extend_from_slice(&self.part.features[row * columns..(row + 1) * columns]);
        }
        self.part.targets.gather(rows, &mut batch.targets);
    }

    fn empty_batch(&self) -> Batch {
        Batch {
            features: Vec::with_capacity(self.batch * self.part.columns),
            targets: self.part.targets.empty_like(self.batch),
            rows: Vec::with_capacity(self.batch),
        }
    }

    fn after(&self, position: Position) -> Position {
        if position.batch + 1 < self.per_epoch {
            Position { batch: position.batch + 1, ..position }
        } else {
            Position { epoch: position.epoch + 1, batch: 0 }
        }
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
/// use warpsmith::data::{LastBatch, Loader, LoaderOptions, Order, Part, Targets};
/// let part = Part {
///     features: vec![1.0, 2.0, 3.0],
///     columns: 1,
///     targets: Targets::Classes(vec![0, 1, 0]),
///     source_rows: vec![0, 1, 2],
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
    prefetch: usize,
    position: Position,
    /// The batch that was given out last; recycled by the next call.
    current: Batch,
    orders: Orders,
    worker: Option<Worker>,
}

impl Loader {
    /// A loader at the start of epoch 0.
    ///
    /// # Errors
    /// Kind `Argument`: a batch of 0 rows; kind `Data`: a part without rows, or with too few for one batch where the last
    /// one is dropped.
    pub fn new(part: Arc<Part>, options: LoaderOptions) -> Result<Self> {
        let rows = part.rows();
        if options.batch == 0 {
            return Err(Error::argument("expected a batch of at least 1 row, found 0"));
        }
        if part.features.len() != rows * part.columns {
            let message =
                format!("{} features for {rows} rows of {} columns", part.features.len(), part.columns);
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
        let batch = options.batch.min(rows);
        let auto = if batch * part.columns >= PREFETCH_FROM { 2 } else { 0 };
        let plan = Arc::new(Plan { part, batch, order: options.order, per_epoch });
        Ok(Loader {
            prefetch: options.prefetch.unwrap_or(auto),
            position: Position::default(),
            current: plan.empty_batch(),
            orders: Orders::default(),
            worker: None,
            plan,
        })
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
        self.worker = None;
        Ok(())
    }

    /// The next batch of the epoch; nothing at its end, and the next call begins the next epoch.
    ///
    /// # Errors
    /// Kind `Internal`: the prefetching thread could not be started or has panicked.
    pub fn next_batch(&mut self) -> Result<Option<&Batch>> {
        if self.position.batch == self.plan.per_epoch {
            self.position = Position { epoch: self.position.epoch + 1, batch: 0 };
            return Ok(None);
        }
        if self.prefetch == 0 {
            let order = self.orders.get(&self.plan, self.position.epoch);
            self.plan.gather(order, self.position.batch, &mut self.current);
        } else {
            let worker = match &mut self.worker {
                Some(worker) => worker,
                none => none.insert(Worker::start(&self.plan, self.position, self.prefetch)?),
            };
            match worker.exchange(&mut self.current) {
                Ok(()) => {}
                Err(error) => {
                    self.worker = None;
                    return Err(error);
                }
            }
        }
        self.position.batch += 1;
        Ok(Some(&self.current))
    }
}

/// The prefetching thread and the two queues between it and the loader.
struct Worker {
    // Options because dropping them is what ends the thread; both must be gone before it is joined.
    filled: Option<Receiver<Result<Batch, String>>>,
    used: Option<Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(plan: &Arc<Plan>, from: Position, ahead: usize) -> Result<Self> {
        // One batch more is being gathered while `ahead` of them wait.
        let (to_loader, filled) = sync_channel(ahead);
        let (used, recycled) = channel();
        let plan = Arc::clone(plan);
        let work = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| prefetch(&plan, from, &to_loader, &recycled)));
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

/// Gathers batch after batch until the loader is gone.
fn prefetch(
    plan: &Plan,
    mut position: Position,
    to_loader: &SyncSender<Result<Batch, String>>,
    recycled: &Receiver<Batch>,
) {
    let mut orders = Orders::default();
    loop {
        let mut batch = recycled.try_recv().unwrap_or_else(|_| plan.empty_batch());
        plan.gather(orders.get(plan, position.epoch), position.batch, &mut batch);
        if to_loader.send(Ok(batch)).is_err() {
            return;
        }
        position = plan.after(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A panic on the thread is an error of the call that waits for the batch, and ends neither the process nor hangs.
    #[test]
    fn a_panic_on_the_thread_is_reported() {
        // Too few features for its rows, which `Loader::new` would refuse.
        let part = Part {
            features: vec![0.0; 3],
            columns: 2,
            targets: Targets::Classes(vec![0, 1]),
            source_rows: vec![0, 1],
        };
        let plan = Plan { part: Arc::new(part), batch: 1, order: Order::Sequential, per_epoch: 2 };
        let plan = Arc::new(plan);
        let mut batch = plan.empty_batch();
        let mut worker = Worker::start(&plan, Position::default(), 1).unwrap();
        worker.exchange(&mut batch).unwrap();
        assert_eq!(batch.rows, [0]);
        let error = worker.exchange(&mut batch).unwrap_err();
        assert!(error.kind() == ErrorKind::Internal && error.message().contains("panicked: "), "{error}");
        assert_eq!(worker.exchange(&mut batch).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn buffers_are_recycled() {
        let part = Part {
            features: vec![0.0; 64],
            columns: 2,
            targets: Targets::Classes(vec![0; 32]),
            source_rows: (0..32).collect(),
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
