//! Threads: splits work over the current rayon pool, so that an embedder's pool is used as it is.
//!
//! Work is cut into chunks that depend on its length and on nothing else; threads take chunks as they get free. So what
//! a chunk computes never depends on the number of threads, and sums over chunks are added up in the order of the chunks.
//!
//! A worker that rayon has put to sleep takes 20 to 70 µs to wake (two cores of a virtual EPYC 9004, 2026-11), a whole
//! matrix product of a small network. Regions therefore keep the other workers looking for work for [`KEEP_AWAKE`] after
//! the last one, which makes fork and join cost 1 µs. A caller outside the pool sleeps and wakes itself on each region
//! (12 to 90 µs): run the whole loop inside [`with_threads`].

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, ErrorKind, Result};

/// How long idle workers look for work before rayon may put them to sleep. The gaps between the parallel parts of a
/// training step are shorter; a longer time would burn a core for nothing after each.
pub const KEEP_AWAKE: Duration = Duration::from_micros(200);

/// The number of threads that a parallel region here would use: those of the current rayon pool.
#[inline]
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Runs `f` on a pool of `n` threads (0 counts as 1); parallel regions inside use that pool.
///
/// `f` runs on a thread of the pool, so thread-locals of the caller are not seen. Pools are kept for the next call; two
/// callers at a time get a pool each, for a pool that two share would run one inside a wait of the other.
///
/// # Errors
/// If the system refuses the threads.
pub fn with_threads<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> Result<R> {
    let n = n.max(1);
    if rayon::current_thread_index().is_some() && threads() == n {
        return Ok(f());
    }
    let pool = Lease::of(n)?;
    Ok(pool.pool().install(f))
}

/// A pool taken from the shelf; goes back when dropped, also after a panic.
struct Lease(usize, Option<ThreadPool>);

/// The pools nobody uses now, by number of threads.
fn shelf() -> MutexGuard<'static, HashMap<usize, Vec<ThreadPool>>> {
    static POOLS: LazyLock<Mutex<HashMap<usize, Vec<ThreadPool>>>> = LazyLock::new(Mutex::default);
    POOLS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lease {
    fn of(n: usize) -> Result<Lease> {
        if let Some(pool) = shelf().get_mut(&n).and_then(Vec::pop) {
            return Ok(Lease(n, Some(pool)));
        }
        let name = |i| format!("warpsmith-{i}");
        let pool = ThreadPoolBuilder::new().num_threads(n).thread_name(name).build().map_err(|cause| {
            Error::new(ErrorKind::OutOfMemory, format!("could not start {n} threads")).caused_by(cause)
        })?;
        Ok(Lease(n, Some(pool)))
    }

    fn pool(&self) -> &ThreadPool {
        self.1.as_ref().expect("a lease holds its pool until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pool) = self.1.take() {
            shelf().entry(self.0).or_default().push(pool);
        }
    }
}

/// Runs both, on two threads if there are two.
#[inline]
pub fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    if threads() == 1 {
        return (a(), b());
    }
    let (mut a, mut b) = (Some(a), Some(b));
    let (mut first, mut second) = (None, None);
    join_erased(&mut || first = a.take().map(|a| a()), &mut || second = b.take().map(|b| b()));
    first.zip(second).expect("rayon runs both halves")
}

/// [`join`] without type parameters, so that rayon's machinery is compiled once and not for every loop of the crate.
fn join_erased(a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
    keep_awake();
    // rayon would put this thread to sleep while the other finishes; so it waits here for a b that has been taken. One that has
    // not is left to rayon, which runs it on this thread.
    let state = AtomicU8::new(WAITING);
    let first = || {
        a();
        if state.load(Ordering::Relaxed) == TAKEN {
            let start = Instant::now();
            while state.load(Ordering::Acquire) == TAKEN && start.elapsed() < KEEP_AWAKE {
                pause();
            }
        }
    };
    let second = || {
        state.store(TAKEN, Ordering::Relaxed);
        b();
        state.store(DONE, Ordering::Release);
    };
    rayon::join(first, second);
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const DONE: u8 = 2;

/// Runs `f` once for each item, on as many threads as there are, in no particular order.
///
/// For chunks of several slices zip their `chunks_mut`; `count` is the number of items (more threads are not woken).
pub fn each<I: Send>(count: usize, items: impl Iterator<Item = I> + Send, f: impl Fn(I) + Sync) {
    let workers = threads().min(count);
    if workers <= 1 {
        return items.for_each(f);
    }
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    spread(workers, &|| {
        while let Some(item) = next() {
            f(item);
        }
    });
}

/// Runs `f` for each range of at most `grain` elements of `0..len`: `0..grain`, `grain..2·grain`, and so on.
pub fn chunks(len: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
    let grain = grain.max(1);
    let count = len.div_ceil(grain);
    let range = |i: usize| i * grain..len.min((i + 1) * grain);
    let workers = threads().min(count);
    if workers <= 1 {
        return (0..count).for_each(|i| f(range(i)));
    }
    let next = AtomicUsize::new(0);
    spread(workers, &|| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            f(range(i));
        }
    });
}

/// Runs `f(i, chunk)` for each chunk of `chunk_len` elements of `out` (the last may be shorter).
pub fn for_each_chunk_mut<T: Send>(out: &mut [T], chunk_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let chunk_len = chunk_len.max(1);
    let count = out.len().div_ceil(chunk_len);
    each(count, out.chunks_mut(chunk_len).enumerate(), |(i, chunk)| f(i, chunk));
}

/// The results of `f` for the ranges that [`chunks`] makes, in their order: the first half of a reduction whose bits do
/// not depend on the number of threads.
pub fn map_chunks<R: Send>(len: usize, grain: usize, f: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
    let grain = grain.max(1);
    let mut results: Vec<Option<R>> = (0..len.div_ceil(grain)).map(|_| None).collect();
    for_each_chunk_mut(&mut results, 1, |i, slot| slot[0] = Some(f(i * grain..len.min((i + 1) * grain))));
    results.into_iter().flatten().collect()
}

/// Runs `f` on `workers` threads at once.
fn spread(workers: usize, f: &(dyn Fn() + Sync)) {
    if workers <= 1 {
        return f();
    }
    let half = workers / 2;
    join_erased(&mut || spread(workers - half, f), &mut || spread(half, f));
}

thread_local! {
    /// How many workers look for work on behalf of this thread.
    static AWAKE: RefCell<Option<Arc<AtomicUsize>>> = const { RefCell::new(None) };
}

/// Sees to it that the other workers of this thread's pool look for work until there has been none for [`KEEP_AWAKE`].
#[inline]
fn keep_awake() {
    let Some(me) = rayon::current_thread_index() else { return };
    AWAKE.with_borrow_mut(|slot| {
        let awake = slot.get_or_insert_default();
        if awake.load(Ordering::Relaxed) == 0 {
            awake.store(threads() - 1, Ordering::Relaxed);
            let awake = awake.clone();
            rayon::spawn_broadcast(move |cx| {
                // Not on the calling thread: it would idle here while it should go on once its join is complete.
                if cx.index() != me {
                    look_for_work();
                    awake.fetch_sub(1, Ordering::Relaxed);
                }
            });
        }
    });
}

/// A moment of waiting: gives the core away only where the pool has more threads than there are cores, because on a busy machine
/// it comes back milliseconds later.
fn pause() {
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    if threads() > cores {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// Does what work there is on this pool until there has been none for [`KEEP_AWAKE`].
fn look_for_work() {
    let mut last = Instant::now();
    while last.elapsed() < KEEP_AWAKE {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => last = Instant::now(),
            _ => pause(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: [usize; 5] = [1, 2, 3, 4, 8];

    #[test]
    fn every_element_is_visited_once_and_chunks_are_fixed() {
        for n in COUNTS {
            with_threads(n, || {
                assert_eq!(threads(), n);
                for (len, grain) in [(0, 4), (1, 4), (4, 4), (1001, 10), (3, 0)] {
                    let mut out = vec![0; len];
                    for_each_chunk_mut(&mut out, grain, |i, c| c.iter_mut().for_each(|x| *x += i + 1));
                    let want: Vec<usize> = (0..len).map(|i| i / grain.max(1) + 1).collect();
                    assert_eq!(out, want);
                    let sums = map_chunks(len, grain, |r| r.clone().sum::<usize>());
                    assert_eq!(sums.len(), len.div_ceil(grain.max(1)));
                    assert_eq!(sums.iter().sum::<usize>(), (0..len).sum::<usize>());
                    let total = AtomicUsize::new(0);
                    chunks(len, grain, |r| {
                        total.fetch_add(r.sum(), Ordering::Relaxed);
                    });
                    assert_eq!(total.into_inner(), (0..len).sum::<usize>());
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn regions_nest_and_pools_nest() {
        let sum = AtomicUsize::new(0);
        with_threads(3, || {
            chunks(5, 1, |outer| {
                chunks(7, 2, |inner| {
                    sum.fetch_add(outer.start * 100 + inner.len(), Ordering::Relaxed);
                });
            });
            assert_eq!(with_threads(2, threads).unwrap(), 2);
            assert_eq!(threads(), 3);
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 4 * 100 * 10 + 5 * 7);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for _ in 0..3 {
            let caught = std::panic::catch_unwind(|| {
                with_threads(2, || chunks(10, 1, |r| assert!(r.start != 7, "chunk seven")))
            });
            assert!(caught.is_err());
        }
        assert_eq!(with_threads(2, || map_chunks(4, 1, |r| r.start)).unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn callers_at_the_same_time_do_not_wait_for_each_other() {
        // The first caller leaves its pool only when the second has been inside one.
        let (to_first, from_second) = std::sync::mpsc::channel();
        std::thread::scope(|s| {
            let first = s.spawn(|| with_threads(2, move || from_second.recv().unwrap()).unwrap());
            s.spawn(move || with_threads(2, move || to_first.send(5).unwrap()).unwrap());
            assert_eq!(first.join().unwrap(), 5);
        });
    }
}
