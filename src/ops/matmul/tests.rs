//! Every product kernel by name on the simulator: transposes, ragged edges, batches, slices of k, epilogues, against f64.

#![forbid(unsafe_code)]

use crate::cpu::activation::Activation;
use crate::cpu::gemm::{Accumulate, Epilogue, MatRef, gemm};
use crate::cpu::simd::MatMut;
use crate::device::Stream;
use crate::device::gemm::plan::{Desc, Plan, Tile};
use crate::device::gemm::{Factor, Gemm};
use crate::device::kernels::matmul::Simt32x32;
use crate::device::launch::{Dims, Dst, Src, Strides};
use crate::device::sim::{Order, SimOptions, Timing};
use crate::device::stream::Memory;
use crate::ops::Tolerance;
use crate::selftest::Rng;
use crate::selftest::compare::{bound, value_ok};
use crate::selftest::reference::round;
use crate::{DType, Device};

/// How a factor lies in memory, as rows of A (columns of B) by k.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// k contiguous; lines start on multiples of so many elements.
    AlongK(usize),
    /// Rows contiguous; lines of k start on multiples of so many elements.
    AlongRows(usize),
    /// No two elements are neighbours.
    Apart,
}

const ALIGNED: [Lie; 2] = [Lie::AlongK(8), Lie::AlongRows(8)];
const ANY: [Lie; 6] =
    [Lie::AlongK(8), Lie::AlongRows(8), Lie::AlongK(1), Lie::AlongRows(1), Lie::AlongK(4), Lie::Apart];

/// What is computed.
#[derive(Clone, Debug)]
struct Task {
    dtype: DType,
    batch: Vec<usize>,
    /// Dimensions of the batch that each factor repeats.
    repeats: [Vec<usize>; 2],
    m: usize,
    n: usize,
    k: usize,
    lies: [Lie; 2],
    /// Elements that the factors' first ones are shifted by.
    shift: usize,
    bias: bool,
    activation: Activation,
    pre: bool,
    add: bool,
    /// Small integers, whose sums are exact in any order.
    integers: bool,
    /// Whether the result is f32 whatever the factors are.
    wide: bool,
}

impl Task {
    fn new(dtype: DType, (m, n, k): (usize, usize, usize)) -> Task {
        Task {
            dtype,
            batch: vec![],
            repeats: [vec![], vec![]],
            m,
            n,
            k,
            lies: [Lie::AlongK(8), Lie::AlongRows(8)],
            shift: 0,
            bias: false,
            activation: Activation::Identity,
            pre: false,
            add: false,
            integers: false,
            wide: false,
        }
    }

    fn out_dtype(&self) -> DType {
        if self.wide { DType::F32 } else { self.dtype }
    }
}

fn encode(dtype: DType, v: f64) -> Vec<u8> {
    match dtype {
        DType::F32 => (v as f32).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f64(v).to_le_bytes().to_vec(),
        _ => half::f16::from_f64(v).to_le_bytes().to_vec(),
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let one = |b: &[u8]| match dtype {
        DType::F32 => f32::from_le_bytes(b.try_into().unwrap()).into(),
        DType::BF16 => half::bf16::from_le_bytes(b.try_into().unwrap()).into(),
        _ => half::f16::from_le_bytes(b.try_into().unwrap()).into(),
    };
    bytes.chunks_exact(dtype.size()).map(one).collect()
}

fn upload(stream: &'static Stream, dtype: DType, values: &[f64]) -> Memory<'static> {
    let bytes: Vec<u8> = values.iter().flat_map(|&v| encode(dtype, v)).collect();
    let memory = stream.take(bytes.len().max(16), "a test").unwrap();
    stream.upload(memory.address(), &bytes).unwrap();
    memory
}

/// A batch of matrices in device memory, NaN between the elements, and the values, [batch, rows, k].
struct Side {
    memory: Memory<'static>,
    len: usize,
    strides: (usize, usize),
    batch: Vec<usize>,
    values: Vec<f64>,
}

fn draw(rng: &mut Rng, task: &Task) -> f64 {
    if task.integers { rng.below(7) as f64 - 3.0 } else { round::to(task.dtype, rng.normal()) }
}

fn side(stream: &'static Stream, rng: &mut Rng, task: &Task, which: usize) -> Side {
    let (rows, k) = ([task.m, task.n][which], task.k);
    let (stride, k_stride, size) = match task.lies[which] {
        Lie::AlongK(unit) => {
            let pitch = k.max(1).next_multiple_of(unit) + if unit == 1 { k % 2 } else { 0 };
            (pitch, 1, rows * pitch)
        }
        Lie::AlongRows(unit) => {
            let pitch = rows.max(1).next_multiple_of(unit);
            (1, pitch, k.max(1) * pitch)
        }
        Lie::Apart => (2 * k.max(1), 2, 2 * rows * k.max(1)),
    };
    let size = size.next_multiple_of(8);
    let mut batch = vec![0; task.batch.len()];
    let mut matrices = 1;
    for d in (0..task.batch.len()).rev() {
        if !task.repeats[which].contains(&d) {
            batch[d] = size * matrices;
            matrices *= task.batch[d];
        }
    }
    let mut memory = vec![f64::NAN; task.shift + size * matrices];
    for matrix in 0..matrices {
        for (i, j) in (0..rows).flat_map(|i| (0..k).map(move |j| (i, j))) {
            memory[task.shift + matrix * size + i * stride + j * k_stride] = draw(rng, task);
        }
    }
    let mut values = Vec::new();
    for number in 0..task.batch.iter().product::<usize>() {
        let mut at = task.shift;
        let mut left = number;
        for d in (0..task.batch.len()).rev() {
            at += left % task.batch[d] * batch[d];
            left /= task.batch[d];
        }
        values.extend(
            (0..rows)
                .flat_map(|i| (0..k).map(move |j| (i, j)))
                .map(|(i, j)| memory[at + i * stride + j * k_stride]),
        );
    }
    let len = memory.len() - task.shift;
    Side { memory: upload(stream, task.dtype, &memory), len, strides: (stride, k_stride), batch, values }
}

impl Side {
    fn factor(&self, task: &Task) -> Factor<'_> {
        let address = self.memory.address() + (task.shift * task.dtype.size()) as u64;
        let src = Src::new(address, self.len as u64, task.dtype);
        Factor { src, stride: self.strides.0, k_stride: self.strides.1, batch: &self.batch }
    }
}

/// A result and its factors.
struct Done {
    c: Vec<f64>,
    a: Side,
    b: Side,
}

/// Computes `task` by the plan that `choose` gives, and compares everything with f64.
fn run(stream: &'static Stream, task: &Task, choose: impl Fn(&Desc) -> Plan) -> Done {
    let mut rng = Rng::of(&[&format!("{task:?}")]);
    let (a, b) = (side(stream, &mut rng, task, 0), side(stream, &mut rng, task, 1));
    let out = task.out_dtype();
    let batches: usize = task.batch.iter().product();
    let (m, n, k, count) = (task.m, task.n, task.k, batches * task.m * task.n);
    let bias: Vec<f64> = (0..n).map(|_| round::to(out, draw(&mut rng, task))).collect();
    let old: Vec<f64> = (0..count).map(|_| round::to(out, draw(&mut rng, task))).collect();
    // What follows a result must stay as it is.
    let guard = [7.0; 64];
    let with_guard = |values: &[f64]| [values, &guard].concat();
    let c = upload(stream, out, &with_guard(&if task.add { old.clone() } else { vec![f64::NAN; count] }));
    let pre = task.pre.then(|| upload(stream, out, &with_guard(&vec![f64::NAN; count])));
    let bias_memory = task.bias.then(|| upload(stream, out, &bias));
    let g = Gemm {
        batch: &task.batch,
        m,
        n,
        k,
        a: a.factor(task),
        b: b.factor(task),
        c: Dst::new(c.address(), count as u64, out),
        add: task.add,
        bias: bias_memory.as_ref().map(|m| Src::new(m.address(), n as u64, out)),
        activation: task.activation as u32,
        pre: pre.as_ref().map(|m| Dst::new(m.address(), count as u64, out)),
        tf32: true,
    };
    let plan = choose(&g.desc());
    g.run(stream, plan).unwrap_or_else(|e| panic!("{task:?} by {plan:?}: {e}"));

    let read = |memory: &Memory| {
        let mut bytes = vec![0; (count + guard.len()) * out.size()];
        stream.download(&mut bytes, memory.address()).unwrap();
        let mut values = decode(out, &bytes);
        assert_eq!(values.split_off(count), guard, "{task:?} by {plan:?} wrote past the result");
        values
    };
    let (got, got_pre) = (read(&c), pre.as_ref().map(read));
    // An FMA chain rounds k times; tensor cores truncate, twice as badly, once for every 16 of k. A few more for the rest.
    // Factors rounded to tf32 are off by half a unit of 10 bits each.
    let sums = match plan.tile {
        Tile::MmaTf32 => (1 << 14) + 2 * k.div_ceil(8),
        tile if tile.tensor_cores() => 2 * k.div_ceil(16),
        _ => k,
    };
    let sums = sums + 2 * plan.splits + 8;
    let tolerance = Tolerance::Sum(sums as f64 * 1.13, "");
    for at in 0..count {
        let (batch, i, j) = (at / (m * n), at / n % m, at % n);
        let (x, y) = (&a.values[(batch * m + i) * k..][..k], &b.values[(batch * n + j) * k..][..k]);
        let mut want: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
        let mut scale: f64 = x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum();
        for (on, extra) in [(task.add, old[at]), (task.bias, bias[j])] {
            if on {
                want += extra;
                scale += extra.abs();
            }
        }
        let check = |got: f64, want: f64, what: &str| {
            let allowed = (!task.integers).then(|| bound(tolerance, out, want, scale));
            assert!(
                value_ok(out, got, want, allowed),
                "{task:?} by {plan:?}: {what}[{batch}, {i}, {j}] is {got}, not {want}"
            );
        };
        if let Some(pre) = &got_pre {
            check(pre[at], want, "pre");
        }
        check(got[at], task.activation.apply(want), "c");
    }
    Done { c: got, a, b }
}

fn stream(options: SimOptions) -> &'static Stream {
    Device::sim_with(options).stream().unwrap()
}

fn hostile() -> &'static Stream {
    stream(SimOptions { order: Order::Random, timing: Timing::Random, seed: 5, ..SimOptions::default() })
}

fn dtypes(tile: Tile) -> &'static [DType] {
    match tile {
        Tile::Simt128 | Tile::MmaTf32 => &[DType::F32],
        Tile::Simt64 | Tile::Simt32 => &[DType::F32, DType::BF16, DType::F16],
        _ => &[DType::BF16, DType::F16],
    }
}

fn lies(tile: Tile) -> &'static [Lie] {
    if matches!(tile, Tile::Mma256 | Tile::Mma128 | Tile::Mma64 | Tile::MmaTf32) { &ALIGNED } else { &ANY }
}

#[test]
fn all_kernels_take_all_transposes_and_ragged_edges() {
    let stream = hostile();
    for tile in Tile::ALL {
        let (rows, cols) = tile.size();
        for (d, &dtype) in dtypes(tile).iter().enumerate() {
            for (i, &a) in lies(tile).iter().enumerate() {
                for (j, &b) in lies(tile).iter().enumerate() {
                    // Once around a tile's edge, with a ragged last step of k; once much smaller than a tile.
                    let sizes =
                        if (d + i + j) % 2 == 0 { (rows + 3, cols - 5, 45) } else { (7, cols + 9, 33) };
                    let task = Task { lies: [a, b], ..Task::new(dtype, sizes) };
                    run(stream, &task, |_| Plan::whole(tile, task.k));
                }
            }
        }
    }
}

#[test]
fn all_depths_of_k_fill_and_drain_the_pipelines() {
    let stream = hostile();
    for tile in [Tile::Simt64, Tile::Simt32, Tile::Mma64, Tile::MmaAny] {
        for k in [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 97, 128, 160] {
            for lies in [[Lie::AlongK(8), Lie::AlongK(8)], [Lie::AlongRows(8), Lie::AlongRows(8)]] {
                let task = Task { lies, ..Task::new(DType::F16, (33, 24, k)) };
                run(stream, &task, |_| Plan::whole(tile, k));
            }
        }
    }
}

#[test]
fn small_integers_come_out_exactly() {
    let stream = hostile();
    for tile in Tile::ALL {
        for &dtype in dtypes(tile) {
            for (m, n, k) in [(50, 72, 100), (129, 40, 300)] {
                let task = Task { integers: true, add: true, bias: true, ..Task::new(dtype, (m, n, k)) };
                run(stream, &task, |_| Plan::whole(tile, k));
                run(stream, &task, |_| Plan::split(tile, k, 2));
            }
        }
    }
}

#[test]
fn sums_in_f32_have_the_cpus_bits_up_to_a_k_of_256() {
    let stream = hostile();
    for tile in [Tile::Simt128, Tile::Simt64, Tile::Simt32] {
        for (k, splits) in [(64, 1), (256, 1), (700, 3)] {
            let task = Task { lies: [Lie::AlongK(1), Lie::AlongK(4)], ..Task::new(DType::F32, (35, 41, k)) };
            // Slices of 256 are the CPU's runs.
            let done = run(stream, &task, |_| Plan::split(tile, k, splits));
            let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
            let (a, b) = (narrow(&done.a.values), narrow(&done.b.values));
            let mut c = vec![0.0f32; 35 * 41];
            let (a, b) = (MatRef::new(&a, 35, k, k, 1), MatRef::new(&b, 41, k, k, 1).t());
            gemm(a, b, MatMut::new(&mut c, 35, 41, 41), Accumulate::Write, Epilogue::default());
            assert_eq!(narrow(&done.c), c, "{tile:?}, k = {k}");
        }
    }
}

#[test]
fn epilogues_add_bias_and_old_values_keep_what_they_activate_and_activate() {
    let stream = hostile();
    for (t, tile) in Tile::ALL.into_iter().enumerate() {
        for (i, activation) in Activation::ALL.into_iter().enumerate() {
            // n a multiple of four, so that four columns are stored at once, and not.
            for (j, n) in [68, 67].into_iter().enumerate() {
                let dtypes = dtypes(tile);
                let dtype = dtypes[(i + j) % dtypes.len()];
                let (bias, pre, add) = ((i + j + t) % 2 == 0, (i + t) % 2 == 1 || j == 1, (i + j) % 3 == 0);
                let lies = [Lie::AlongK(8), Lie::AlongRows(8)];
                let task = Task { activation, bias, pre, add, lies, ..Task::new(dtype, (37, n, 40)) };
                run(stream, &task, |_| Plan::whole(tile, task.k));
                let task = Task { k: 520, m: 9, ..task };
                run(stream, &task, |_| Plan::split(tile, task.k, 3));
            }
        }
    }
}

#[test]
fn sixteen_bit_factors_give_f32_results_on_demand() {
    let stream = hostile();
    for (tile, splits) in [(Tile::Mma64, 1), (Tile::MmaAny, 2), (Tile::Simt32, 1)] {
        let plain = Task { wide: true, ..Task::new(DType::BF16, (20, 36, 300)) };
        run(stream, &plain, |_| Plan::split(tile, 300, splits));
        let all = Task { add: true, bias: true, pre: true, activation: Activation::Gelu, ..plain };
        run(stream, &all, |_| Plan::split(tile, 300, splits));
    }
}

#[test]
fn batches_repeat_factors() {
    let stream = hostile();
    for tile in [Tile::Simt64, Tile::Simt32, Tile::Mma64, Tile::MmaAny, Tile::Mma128] {
        let dtype = dtypes(tile)[0];
        for repeats in [[vec![], vec![]], [vec![0], vec![1]], [vec![0, 1, 2], vec![]], [vec![], vec![0, 2]]] {
            let batch = vec![2, 3, 2];
            let task = Task {
                batch,
                repeats,
                lies: [Lie::AlongRows(8), Lie::AlongK(8)],
                ..Task::new(dtype, (5, 9, 17))
            };
            run(stream, &task, |_| Plan::whole(tile, task.k));
        }
    }
}

#[test]
fn tiles_are_walked_in_bands() {
    // 20 rows of tiles, in bands of 8, 8 and 4; 3 columns.
    let task = Task::new(DType::F32, (610, 70, 5));
    run(hostile(), &task, |_| Plan::whole(Tile::Simt32, task.k));
}

#[test]
fn unaligned_addresses_are_fetched_piecemeal() {
    let stream = hostile();
    for shift in [1, 2, 4] {
        for (tile, dtype) in
            [(Tile::Simt128, DType::F32), (Tile::Simt32, DType::BF16), (Tile::MmaAny, DType::F16)]
        {
            let task = Task { shift, ..Task::new(dtype, (40, 24, 64)) };
            run(stream, &task, |d| {
                assert!(!Tile::Mma64.serves(d), "an address {shift} off is not aligned");
                Plan::whole(tile, 64)
            });
        }
    }
}

#[test]
fn blocks_go_on_in_y() {
    let stream = hostile();
    // Five matrices in a grid of 3 by 2: the sixth block has nothing to do.
    let ones = |count: usize| upload(stream, DType::F32, &(0..count).map(|i| i as f64).collect::<Vec<_>>());
    let (a, b, c) = (ones(5), ones(5), ones(5 + 1));
    let src = |m: &Memory| Src::new(m.address(), 5, DType::F32);
    let launch = Simt32x32 {
        a: src(&a),
        b: src(&b),
        bias: None,
        c: Some(Dst::new(c.address(), 5, DType::F32)),
        pre: None,
        part: None,
        batch: Dims::of(&[5]),
        a_batch: Strides::of(&[1]),
        b_batch: Strides::of(&[1]),
        batches: 5,
        a_row: 1,
        a_k: 1,
        b_k: 1,
        b_col: 1,
        m: 1,
        n: 1,
        k: 1,
        splits: 1,
        slice: 1,
        a_mode: 0,
        b_mode: 0,
        activation: 0,
        add: 0,
        quads: 0,
        grid: [3, 2, 1],
    };
    launch.launch(stream).unwrap();
    let mut bytes = vec![0; 24];
    stream.download(&mut bytes, c.address()).unwrap();
    assert_eq!(decode(DType::F32, &bytes), [0.0, 1.0, 4.0, 9.0, 16.0, 5.0]);
}

#[test]
fn results_do_not_depend_on_the_schedule_and_no_schedule_races() {
    let mut first = Vec::new();
    for (order, timing) in [
        (Order::Forward, Timing::Earliest),
        (Order::Reverse, Timing::Latest),
        (Order::Random, Timing::Random),
        (Order::Pct, Timing::Latest),
        (Order::Pct, Timing::Earliest),
    ] {
        let stream = stream(SimOptions { order, timing, seed: 11, checked: true, ..SimOptions::default() });
        let mut results = Vec::new();
        for tile in Tile::ALL {
            let dtype = *dtypes(tile).last().unwrap();
            // Four steps of the ring, so that every stage is filled again.
            let task = Task {
                bias: true,
                pre: true,
                activation: Activation::Silu,
                ..Task::new(dtype, (70, 37, 140))
            };
            results.push(run(stream, &task, |_| Plan::whole(tile, 140)).c);
            let task = Task { k: 300, m: 5, lies: [Lie::AlongRows(8), Lie::AlongK(8)], ..task };
            results.push(run(stream, &task, |_| Plan::split(tile, 300, 2)).c);
        }
        if first.is_empty() {
            first = results;
        } else {
            assert!(first == results, "{order:?}, {timing:?}: other bits");
        }
    }
}
