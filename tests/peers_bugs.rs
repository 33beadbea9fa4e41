//! Bugs that other engines had, each as a test of ours. The numbers are those of our list of 37 real cases.
//!
//! Here: 2 to 8, 10 to 13, 15, 16, 19 to 23, 25 to 33, 34 (threads), 37. In other files: 2, 5, 7, 8, 19 and 33 for **every** op
//! (conformance.rs, gradients.rs), 14 (training.rs: curves and goldens), 17 and 36 (faults_*.rs), 1 and 20 (golden_conv.rs:
//! strides, and an image alone or in a batch; the batch rule of 20 is tested here for products too), 35 (pooling.rs,
//! golden_pooling.rs). With the issue that brings what they are about: 9 (doctor), 18 (several ranks), 24 (captured steps),
//! 34 for streams.

use std::sync::Arc;

use warpsmith::autograd::{GradCheck, backward, backward_from, gradcheck};
use warpsmith::cpu::activation::Activation;
use warpsmith::cpu::par::with_threads;
use warpsmith::ops::{CrossEntropy, Dropout};
use warpsmith::{DType, Device, Result, Tensor};

const CPU: Device = Device::Cpu;

/// Numbers that look random: the fractional parts of multiples of the golden ratio, in [-1, 1).
fn noise(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let data: Vec<f32> =
        (1..=n).map(|i| (i as f64 * 0.618_033_988_749_894_9).fract() as f32 * 2.0 - 1.0).collect();
    Tensor::from_slice(&data, shape, CPU).unwrap()
}

fn noise64(shape: &[usize]) -> Tensor {
    noise(shape).to_dtype(DType::F64).unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

/// An op's name and the op.
type Named = (&'static str, fn(&Tensor) -> Result<Tensor>);

/// Ops that work row by row, as one function each.
fn row_wise() -> Vec<Named> {
    vec![
        ("softmax", |x| x.softmax(-1)),
        ("log_softmax", |x| x.log_softmax(-1)),
        ("sum", |x| x.sum(&[-1], false)),
        ("mean", |x| x.mean(&[-1], false)),
        ("max", |x| x.max(&[-1], false)),
        ("argmax", |x| x.argmax(&[-1], false)),
        ("var", |x| x.var(&[-1], 0, false)),
        ("logsumexp", |x| x.logsumexp(&[-1], false)),
        ("layer_norm", |x| x.layer_norm([x.dims()[1]], None, None, 1e-5)),
        ("rms_norm", |x| x.rms_norm([x.dims()[1]], None, 1e-5)),
    ]
}

/// The same in f64, written plainly.
fn plain_row(name: &str, x: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: f64 = x.iter().map(|v| (v - max).exp()).sum();
    let sum: f64 = x.iter().sum();
    let var = x.iter().map(|v| (v - sum / n).powi(2)).sum::<f64>() / n;
    let square = x.iter().map(|v| v * v).sum::<f64>() / n;
    match name {
        "softmax" => x.iter().map(|v| (v - max).exp() / exps).collect(),
        "log_softmax" => x.iter().map(|v| (v - max) - exps.ln()).collect(),
        "sum" => vec![sum],
        "mean" => vec![sum / n],
        "max" => vec![max],
        "argmax" => vec![x.iter().position(|&v| v == max).unwrap() as f64],
        "var" => vec![var],
        "logsumexp" => vec![exps.ln() + max],
        "layer_norm" => x.iter().map(|v| (v - sum / n) / (var + 1e-5).sqrt()).collect(),
        "rms_norm" => x.iter().map(|v| v / (square + 1e-5).sqrt()).collect(),
        other => panic!("no plain form of {other}"),
    }
}

/// Compares an op on `[rows, width]` with the plain form, row by row; f32 with sums of `width` terms of size 1.
fn check_rows(name: &str, op: fn(&Tensor) -> Result<Tensor>, x: &Tensor) {
    let [rows, width] = x.dims() else { panic!("two dimensions") };
    let (got, x) = (values(&op(x).unwrap()), values(x));
    let size = x.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let each = got.len() / rows;
    for r in 0..*rows {
        let want = plain_row(name, &x[r * width..(r + 1) * width]);
        for (k, (g, w)) in got[r * each..(r + 1) * each].iter().zip(&want).enumerate() {
            // 2⁻²⁴ a rounding; sums in a tree of chains of at most 32 additions of terms up to `size`.
            let terms = if name == "sum" { *width as f64 } else { 1.0 };
            let bound = 64.0 * (f32::EPSILON as f64 / 2.0) * (w.abs() + size * size * terms);
            assert!((g - w).abs() <= bound, "{name} of {rows}x{width}: [{r}][{k}] is {g:e}, expected {w:e}");
        }
    }
}

/// 2: a sort that ignored where a view starts. Every row-wise op on the second row of a matrix.
#[test]
fn n02_a_view_starts_where_it_starts() {
    let x = noise(&[3, 37]);
    let row = x.narrow(0, 1, 1).unwrap();
    for (name, op) in row_wise() {
        let copy = Tensor::from_slice(&row.to_vec::<f32>().unwrap(), [1, 37], CPU).unwrap();
        assert_eq!(values(&op(&row).unwrap()), values(&op(&copy).unwrap()), "{name}");
    }
}

/// 3: rows longer than one block. (Sorting comes with its op.)
#[test]
fn n03_wide_rows() {
    for width in [1023, 1024, 1025, 8192, 8193, 32_000, 128_256] {
        let x = noise(&[2, width]);
        row_wise().into_iter().for_each(|(name, op)| check_rows(name, op, &x));
    }
}

/// 4: more rows than fit a 16-bit grid dimension.
#[test]
fn n04_many_rows() {
    for rows in [65_535, 65_536, 70_000] {
        let x = noise(&[rows, 3]);
        row_wise().into_iter().for_each(|(name, op)| check_rows(name, op, &x));
    }
}

/// 5 and 6: tensors without elements, and what comes after them.
#[test]
fn n05_n06_zero_size_works_and_poisons_nothing() {
    let empty = Tensor::zeros([2, 1, 1, 0], DType::F32, CPU).unwrap();
    let binary: Vec<fn(&Tensor, &Tensor) -> Result<Tensor>> = vec![
        |a, b| a.add(b),
        |a, b| a.mul(b),
        |a, b| a.div(b),
        |a, b| a.maximum(b),
        |a, b| a.lt(b),
        |a, b| a.ge(b),
        |a, b| a.eq(b),
    ];
    for op in binary {
        assert_eq!(op(&empty, &empty).unwrap().dims(), [2, 1, 1, 0]);
        assert_eq!(
            op(&empty, &Tensor::zeros([3, 1, 1], DType::F32, CPU).unwrap()).unwrap().dims(),
            [2, 3, 1, 0]
        );
    }
    assert_eq!(empty.relu().unwrap().numel(), 0);
    assert_eq!(values(&empty.sum(&[], false).unwrap()), [0.0]);
    assert_eq!(values(&empty.sum(&[-1], false).unwrap()), [0.0, 0.0]);
    assert_eq!(empty.softmax(-1).unwrap().dims(), [2, 1, 1, 0]);
    assert_eq!(Tensor::cat(&[&empty, &empty], 3).unwrap().numel(), 0);
    let none = Tensor::zeros([0, 4], DType::F32, CPU).unwrap();
    let inner = none.t().unwrap().matmul(&none).unwrap();
    assert_eq!(values(&inner), vec![0.0; 16]);
    let leaf = empty.as_leaf().unwrap();
    let loss = leaf.sum(&[], false).unwrap();
    assert_eq!(backward(&loss).unwrap().get(&leaf).unwrap().dims(), [2, 1, 1, 0]);
    assert_eq!(values(&noise(&[4]).add(&noise(&[4])).unwrap()).len(), 4);
}

/// 7: a backward that overwrote a gradient where it had to add.
#[test]
fn n07_a_tensor_used_three_times_gets_three_gradients() {
    let f = |x: &[Tensor]| {
        let y = x[0].mul(&x[0])?.add(&x[0].exp()?)?;
        Ok(vec![y.add(&x[0].matmul(&x[0].t()?)?)?])
    };
    gradcheck(f, &[noise64(&[3, 3])], GradCheck::default()).unwrap();
}

/// 8: a dimension of size 1 with a large stride, taken for contiguous (or not) and multiplied wrongly.
#[test]
fn n08_size_one_dimensions_with_odd_strides() {
    let (x, w) = (noise(&[5, 8, 256]), noise(&[256, 17]));
    let row = x.select(1, 3).unwrap().narrow(0, 2, 1).unwrap();
    assert_eq!(row.layout().strides.dims(), [2048, 1]);
    let copy = Tensor::from_slice(&row.to_vec::<f32>().unwrap(), [1, 256], CPU).unwrap();
    assert_eq!(bits(&row.matmul(&w).unwrap()), bits(&copy.matmul(&w).unwrap()));
    let column = x.select(0, 1).unwrap().t().unwrap().narrow(1, 2, 1).unwrap();
    let copy = Tensor::from_slice(&column.to_vec::<f32>().unwrap(), [256, 1], CPU).unwrap();
    let left = noise(&[9, 256]);
    assert_eq!(bits(&left.matmul(&column).unwrap()), bits(&left.matmul(&copy).unwrap()));
    assert_eq!(bits(&column.t().unwrap().matmul(&w).unwrap()), bits(&copy.t().unwrap().matmul(&w).unwrap()));
}

/// 10: the backward of a broadcast sum. All patterns of sizes 1 and n, and of missing leading dimensions.
#[test]
fn n10_gradients_of_every_broadcast_pattern() {
    let shapes: [&[usize]; 9] = [&[], &[1], &[3], &[1, 1], &[1, 3], &[2, 1], &[2, 3], &[1, 2, 1], &[2, 1, 3]];
    let ops: [fn(&Tensor, &Tensor) -> Result<Tensor>; 5] =
        [|a, b| a.add(b), |a, b| a.sub(b), |a, b| a.mul(b), |a, b| a.div(b), |a, b| a.pow(b)];
    for a in shapes {
        for b in shapes {
            let (x, y) = (noise64(a).add_scalar(2.0).unwrap(), noise64(b).add_scalar(1.5).unwrap());
            for op in ops {
                gradcheck(|x| Ok(vec![op(&x[0], &x[1])?]), &[x.clone(), y.clone()], GradCheck::default())
                    .unwrap_or_else(|e| panic!("{a:?} with {b:?}: {e}"));
            }
        }
    }
}

/// 11: a slice of a tensor times the tensor.
#[test]
fn n11_a_slice_times_the_whole() {
    for (start, length) in [(0, 1), (2, 1), (0, 3)] {
        let f = |x: &[Tensor]| Ok(vec![x[0].narrow(0, start, length)?.mul(&x[0])?]);
        gradcheck(f, &[noise64(&[3, 2])], GradCheck::default()).unwrap();
    }
}

/// 12: a fused head of one output, wrong beyond the first row.
#[test]
fn n12_fused_and_unfused_heads_agree() {
    for (rows, width, out) in [(7, 64, 1), (130, 33, 1), (65, 100, 3), (1, 7, 1), (300, 16, 17)] {
        let (x, w, b) = (noise(&[rows, width]), noise(&[out, width]), noise(&[out]));
        for activation in [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Gelu] {
            let fused = values(&x.linear(&w, Some(&b), activation).unwrap());
            let z = x.matmul(&w.t().unwrap()).unwrap().add(&b).unwrap();
            let plain = match activation {
                Activation::Relu => z.relu(),
                Activation::Tanh => z.tanh(),
                Activation::Gelu => z.gelu(),
                _ => Ok(z),
            };
            for (i, (f, p)) in fused.iter().zip(values(&plain.unwrap())).enumerate() {
                // The two may add in another order; `width` terms of size up to 1.
                let bound = 4.0 * f32::EPSILON as f64 * width as f64;
                assert!((f - p).abs() <= bound, "{rows}x{width}x{out} {activation:?} [{i}]: {f} and {p}");
            }
        }
    }
}

/// 13: gradients that were not zero for inputs that are, above some size.
#[test]
fn n13_zero_inputs_give_zero_gradients() {
    for n in [64, 255, 1024, 8192] {
        let w = Tensor::zeros([16, n], DType::F32, CPU).unwrap().as_leaf().unwrap();
        let x = Tensor::zeros([4, n], DType::F32, CPU).unwrap().as_leaf().unwrap();
        let loss = x.linear(&w, None, Activation::Tanh).unwrap().square().unwrap().sum(&[], false).unwrap();
        let grads = backward(&loss).unwrap();
        for leaf in [&w, &x] {
            assert!(values(grads.get(leaf).unwrap()).iter().all(|&g| g == 0.0), "{n}");
        }
    }
}

/// 15, 16 and 21: memory that grows with the number of steps. Nothing that a step made may outlive it: neither gradients
/// nor what the graph kept for backward. (training.rs watches the pool over 10,000 steps.)
#[test]
fn n16_n21_nothing_outlives_its_step() {
    let x = noise(&[8, 32]).as_leaf().unwrap();
    let w = noise(&[32, 8]).as_leaf().unwrap();
    let mut kept = Vec::new();
    for _ in 0..2000 {
        let hidden = x.matmul(&w).unwrap().add(&noise(&[8])).unwrap();
        let loss = hidden.gelu().unwrap().mean(&[], false).unwrap();
        let grads = backward(&loss).unwrap();
        for made in [&hidden, &loss, grads.get(&x).unwrap(), grads.get(&w).unwrap()] {
            kept.push(Arc::downgrade(made.storage()));
        }
    }
    let alive = kept.iter().filter(|weak| weak.upgrade().is_some()).count();
    assert_eq!(alive, 0, "of {} tensors", kept.len());
}

/// 19 and 26 and 28: results that depend on threads or vary from run to run.
#[test]
fn n19_n26_n28_a_thousand_repeats_on_any_number_of_threads_are_bit_equal() {
    let (x, dy) = (noise(&[64, 257]), noise(&[64, 257]));
    let softmax_gradient = || {
        let leaf = x.as_leaf().unwrap();
        bits(backward_from(&leaf.softmax(-1).unwrap(), &dy).unwrap().get(&leaf).unwrap())
    };
    let first = softmax_gradient();
    for i in 0..1000 {
        assert_eq!(with_threads([1, 2, 3, 4, 8][i % 5], softmax_gradient).unwrap(), first, "repeat {i}");
    }
    for c in [1600, 1601, 768, 33] {
        let (x, w, b, dy) = (noise(&[70, c]), noise(&[c]), noise(&[c]), noise(&[70, c]));
        let gradients = || {
            let [x, w, b] = [&x, &w, &b].map(|t| t.as_leaf().unwrap());
            let y = x.layer_norm([c], Some(&w), Some(&b), 1e-5).unwrap();
            let grads = backward_from(&y, &dy).unwrap();
            [&x, &w, &b].map(|leaf| bits(grads.get(leaf).unwrap()))
        };
        let first = gradients();
        for threads in [1, 2, 3, 4, 8, 2, 1] {
            assert_eq!(with_threads(threads, gradients).unwrap(), first, "width {c} on {threads} threads");
        }
    }
}

/// 20: a batch must give what its rows give alone.
#[test]
fn n20_a_batch_equals_its_slices() {
    let (x, w) = (noise(&[6, 5, 33]), noise(&[6, 33, 7]));
    let whole = x.matmul(&w).unwrap();
    for i in 0..6 {
        let one = x.select(0, i).unwrap().matmul(&w.select(0, i).unwrap()).unwrap();
        assert_eq!(bits(&whole.select(0, i).unwrap()), bits(&one), "matrix {i}");
    }
}

/// 2 and 3 for sorting: a view's start is forgotten; rows wider than a block (1,024), than its shared memory (8,192), than
/// any; as many rows as a grid's side has blocks (65,535), and more.
#[test]
fn n2_n3_rows_of_any_width_and_number_are_sorted_wherever_they_lie() {
    let sizes = [
        (2, 1023),
        (2, 1024),
        (2, 1025),
        (2, 8192),
        (1, 8193),
        (1, 32_000),
        (1, 128_256),
        (65_536, 3),
        (70_000, 2),
    ];
    for (rows, n) in sizes {
        let all = noise(&[rows + 2, n + 5]);
        let x = all.narrow(0, 1, rows).unwrap().narrow(1, 3, n).unwrap();
        let plain: Vec<f32> = x.to_vec().unwrap();
        let (sorted, places) = x.sort(1, false, false).unwrap();
        let (turned, _) = x.t().unwrap().sort(0, false, false).unwrap();
        let (top, top_places) = x.topk(2, 1, false, true).unwrap();
        let (sorted, places) = (sorted.to_vec::<f32>().unwrap(), places.to_vec::<i64>().unwrap());
        let top: Vec<f32> = top.to_vec().unwrap();
        for (r, row) in plain.chunks(n).enumerate() {
            let mut want: Vec<usize> = (0..n).collect();
            want.sort_by(|&a, &b| row[a].total_cmp(&row[b]));
            let here = r * n..(r + 1) * n;
            assert!(places[here.clone()].iter().zip(&want).all(|(&p, &w)| p as usize == w), "{rows} x {n}");
            assert!(sorted[here].iter().zip(&want).all(|(&v, &w)| v == row[w]), "{rows} x {n}");
            assert_eq!(top[2 * r..2 * r + 2], [row[want[0]], row[want[1]]], "{rows} x {n}");
        }
        assert_eq!(top_places.dims(), [rows, 2]);
        let back: Vec<f32> = turned.t().unwrap().to_vec().unwrap();
        assert!(back == sorted, "{rows} x {n}");
    }
}

/// Running sums of i32 whose total does not fit 32 bits.
#[test]
fn running_sums_of_integers_are_those_of_64_bits() {
    let x = Tensor::full([5], 2e9, DType::I32, CPU).unwrap();
    let want: Vec<i64> = (1..=5).map(|i| i * 2_000_000_000).collect();
    assert_eq!(x.cumsum(0).unwrap().to_vec::<i64>().unwrap(), want);
}

/// 22: leaves that are told apart by their values.
#[test]
fn n22_leaves_of_equal_value_have_gradients_of_their_own() {
    let [a, b] = [2.0f32, 2.0].map(|v| Tensor::scalar(v, CPU).unwrap().as_leaf().unwrap());
    let grads = backward(&a.mul(&b).unwrap().add(&a).unwrap()).unwrap();
    assert_eq!(values(grads.get(&a).unwrap()), [3.0]);
    assert_eq!(values(grads.get(&b).unwrap()), [2.0]);
}

/// 23: ties counted in half precision: 65,504 and more give infinity, and a gradient of zero.
#[test]
fn n23_seventy_thousand_ties_share_the_gradient() {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let x = Tensor::ones([70_000], dtype, CPU).unwrap().as_leaf().unwrap();
        let grads = backward(&x.max(&[], false).unwrap()).unwrap();
        let each = values(grads.get(&x).unwrap());
        // One 70,000th is subnormal in f16, with 8 bits left.
        assert!(each.iter().all(|g| (g * 70_000.0 - 1.0).abs() < 0.005), "{dtype}: {}", each[0]);
    }
}

/// 25, 27 and 29: positions beyond 2³¹. One u8 tensor of 2 GiB and a little, and views of more elements than that.
#[test]
fn n25_n27_n29_positions_beyond_two_to_the_31() {
    let n = (1usize << 31) + 513;
    let x = Tensor::zeros([n], DType::U8, CPU).unwrap();
    let tail: Vec<u8> = (0..600).map(|i| (i % 251) as u8 + 1).collect();
    x.narrow(0, n - 600, 600).unwrap().copy_(&Tensor::from_slice(&tail, 600, CPU).unwrap()).unwrap();
    let index = Tensor::from_slice(&[n as i64 - 1, 5, n as i64 - 600, 1 << 31], 4, CPU).unwrap();
    let want = [tail[599], 0, tail[0], tail[599 - 512]];
    assert_eq!(x.index_select(0, &index).unwrap().to_vec::<u8>().unwrap(), want);
    assert_eq!(x.gather(0, &index).unwrap().to_vec::<u8>().unwrap(), want);
    let table = x.reshape([n, 1]).unwrap();
    assert_eq!(table.embedding(&index).unwrap().to_vec::<u8>().unwrap(), want);
    let end = x.slice(0, n - 600, n, 7).unwrap();
    let sum: i64 = tail.iter().step_by(7).map(|&v| v as i64).sum();
    assert_eq!(values(&end.sum(&[], false).unwrap()), [sum as f64]);
    assert_eq!(values(&x.narrow(0, n - 600, 600).unwrap().argmax(&[], false).unwrap()), [250.0]);
    // More elements than 2³²; none of them takes memory.
    let wide = Tensor::from_slice(&[3u8, 4], [1, 2], CPU).unwrap().expand([1 << 32, 2]).unwrap();
    let last = wide.narrow(0, (1 << 32) - 2, 2).unwrap();
    assert_eq!(last.contiguous().unwrap().to_vec::<u8>().unwrap(), [3, 4, 3, 4]);
}

/// 30: softmax wrong for 240 odd widths. Every width up to 4096, two rows and more.
#[test]
fn n30_every_width() {
    for width in 1..=4096 {
        let x = noise(&[2, width]);
        row_wise().into_iter().for_each(|(name, op)| check_rows(name, op, &x));
    }
}

/// 31: NaN swallowed by max, min, relu or clamp, depending on its place or on the order of operands.
#[test]
fn n31_nan_goes_through_from_every_place() {
    for n in [1, 2, 7, 16, 17, 33, 64, 65, 130] {
        for at in 0..n {
            let mut data = vec![1.0f32; n];
            data[at] = f32::NAN;
            let (x, ones) =
                (Tensor::from_slice(&data, n, CPU).unwrap(), Tensor::ones([n], DType::F32, CPU).unwrap());
            let each: [(&str, Result<Tensor>); 8] = [
                ("relu", x.relu()),
                ("clamp", x.clamp(-1.0, 2.0)),
                ("abs", x.abs()),
                ("maximum", x.maximum(&ones)),
                ("maximum, other side", ones.maximum(&x)),
                ("minimum", x.minimum(&ones)),
                ("minimum, other side", ones.minimum(&x)),
                ("gelu", x.gelu()),
            ];
            for (name, y) in each {
                let y = values(&y.unwrap());
                assert!(
                    y.iter().enumerate().all(|(i, v)| v.is_nan() == (i == at)),
                    "{name} of {n}, NaN at {at}: {y:?}"
                );
            }
            for (name, y) in
                [("max", x.max(&[], false)), ("min", x.min(&[], false)), ("sum", x.sum(&[], false))]
            {
                assert!(y.unwrap().item().unwrap().is_nan(), "{name} of {n}, NaN at {at}");
            }
            assert_eq!(x.argmax(&[], false).unwrap().item().unwrap(), at as f64);
            assert!(values(&x.softmax(0).unwrap()).iter().all(|v| v.is_nan()));
        }
    }
}

/// 32: log_softmax of logits near −10⁷. A shift that every logit can take exactly must change no bit.
#[test]
fn n32_log_softmax_does_not_depend_on_an_offset() {
    let x: Vec<f32> = (0..64).map(|i| (i * 37 % 64) as f32).collect();
    let base = Tensor::from_slice(&x, [2, 32], CPU).unwrap();
    for offset in [-1e7f32, 1e7, -8_388_608.0, 123_456.0] {
        let moved: Vec<f32> = x.iter().map(|v| v + offset).collect();
        assert!(moved.iter().zip(&x).all(|(m, v)| m - offset == *v), "the shift must be exact");
        let moved = Tensor::from_slice(&moved, [2, 32], CPU).unwrap();
        assert_eq!(bits(&moved.log_softmax(-1).unwrap()), bits(&base.log_softmax(-1).unwrap()), "{offset}");
        assert_eq!(bits(&moved.softmax(-1).unwrap()), bits(&base.softmax(-1).unwrap()), "{offset}");
        let target = Tensor::from_slice(&[3i64, 30], 2, CPU).unwrap();
        let loss = |x: &Tensor| bits(&x.cross_entropy(&target, CrossEntropy::default()).unwrap());
        assert_eq!(loss(&moved), loss(&base), "{offset}");
    }
}

/// 33: vector loads from odd element offsets.
#[test]
fn n33_every_base_offset_gives_the_same_bits() {
    let buffer = noise(&[16 + 30 * 67]);
    let w = noise(&[67, 5]);
    let copy = |t: &Tensor| Tensor::from_slice(&t.to_vec::<f32>().unwrap(), t.shape(), CPU).unwrap();
    for offset in 0..16 {
        let x = buffer.narrow(0, offset, 30 * 67).unwrap().reshape([30, 67]).unwrap();
        let y = copy(&x);
        for (name, op) in row_wise() {
            assert_eq!(values(&op(&x).unwrap()), values(&op(&y).unwrap()), "{name} at offset {offset}");
        }
        let both = |f: &dyn Fn(&Tensor) -> Result<Tensor>| (bits(&f(&x).unwrap()), bits(&f(&y).unwrap()));
        for (a, b) in [
            both(&|t| t.exp()),
            both(&|t| t.gelu()),
            both(&|t| t.add(&x)),
            both(&|t| y.mul(t)),
            both(&|t| t.matmul(&w)),
            both(&|t| t.t()?.matmul(&y)),
            both(&|t| t.sum(&[0], false)),
        ] {
            assert_eq!(a, b, "offset {offset}");
        }
    }
}

/// 34: a temporary that is freed, and handed to another thread, while it is still read.
#[test]
fn n34_threads_that_share_the_pool_do_not_disturb_each_other() {
    let work = |k: usize| {
        let x = noise(&[50 + k, 64]);
        let mut y = x.clone();
        for _ in 0..20 {
            y = y.matmul(&noise(&[64, 64])).unwrap().tanh().unwrap().add(&x).unwrap();
        }
        bits(&y)
    };
    let alone: Vec<_> = (0..4).map(work).collect();
    let together: Vec<_> = std::thread::scope(|s| {
        let handles: Vec<_> = (0..4).map(|k| s.spawn(move || work(k))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

/// 37: dropout whose seed is a constant, an address, or the same everywhere.
#[test]
fn n37_dropout_masks_differ_by_seed_site_and_step_and_repeat() {
    let x = Tensor::ones([20_000], DType::F32, CPU).unwrap();
    let mask = |seed, site, step: i64| {
        let step = Tensor::scalar(step, CPU).unwrap();
        x.dropout(Dropout { p: 0.25, seed, site, offset: 0 }, &step).unwrap().to_vec::<f32>().unwrap()
    };
    let base = mask(1, 0, 0);
    assert_eq!(mask(1, 0, 0), base);
    for other in [mask(2, 0, 0), mask(1, 1, 0), mask(1, 0, 1), mask(1 << 40, 0, 0)] {
        // Independent masks agree in 1 − 2 · p · (1 − p) = 0.625 of the places; five deviations of 0.0034 either way.
        let same = other.iter().zip(&base).filter(|(a, b)| a == b).count() as f64 / 20_000.0;
        assert!((same - 0.625).abs() < 0.018, "{same}");
    }
    let dropped = base.iter().filter(|&&v| v == 0.0).count() as f64 / 20_000.0;
    assert!((dropped - 0.25).abs() < 0.016, "{dropped}");
    assert!(base.iter().all(|&v| v == 0.0 || v == (1.0 / 0.75) as f32));
}
