//! What the op cases do not reach on a GPU (the simulated one, or that which WARPSMITH_TEST_DEVICE names): losses whose rows
//! and elements are read in vectors, sums over several blocks, logits that are far apart or infinite. Against the CPU.

use warpsmith::autograd::backward;
use warpsmith::ops::{BceWithLogits, CrossEntropy, Reduction, distillation_loss};
use warpsmith::{DType, Device, Result, Tensor};

fn device() -> Device {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or("sim".into()).parse().unwrap()
}

/// Numbers that look random but need no generator, from −scale to scale.
fn noise(shape: &[usize], salt: u64, scale: f32) -> Tensor {
    let n = shape.iter().product::<usize>() as u64;
    let number = |i: u64| (((i * 2654435761 + salt * 40503) % 10007) as f32 / 5003.5 - 1.0) * scale;
    Tensor::from_slice(&(0..n).map(number).collect::<Vec<_>>(), shape, Device::Cpu).unwrap()
}

/// A loss of the first tensor, given the others.
type Loss = fn(&[Tensor]) -> Result<Tensor>;

/// The loss and the gradient of its sum by the first tensor, on a device.
fn results(loss: Loss, inputs: &[Tensor], device: Device) -> (Vec<f64>, Vec<f64>) {
    let mut on: Vec<Tensor> = inputs.iter().map(|t| t.to_device(device).unwrap()).collect();
    on[0] = on[0].as_leaf().unwrap();
    let value = loss(&on).unwrap();
    // One element of many is as good as their sum: rows do not depend on each other.
    let first = if value.rank() == 0 {
        value.clone()
    } else {
        value.reshape(value.numel()).unwrap().select(0, 1).unwrap()
    };
    let grad = backward(&first).unwrap().get(&on[0]).unwrap().to_f64_vec().unwrap();
    (value.to_f64_vec().unwrap(), grad)
}

#[track_caller]
fn compare(name: &str, loss: Loss, inputs: &[Tensor]) {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|t| if t.dtype().is_float() { t.to_dtype(dtype).unwrap() } else { t.clone() })
            .collect();
        let (want, got) = (results(loss, &inputs, Device::Cpu), results(loss, &inputs, device()));
        // Both round to the type once; before that they differ by the order of sums and by a few units of f32.
        let unit = 1.01 * 2.0 * dtype.unit_roundoff();
        for (part, got, want) in [("value", got.0, want.0), ("gradient", got.1, want.1)] {
            let largest = want.iter().fold(0f64, |m, w| if w.is_finite() { m.max(w.abs()) } else { m });
            assert!(largest > 0.0 || part == "gradient", "{name} {dtype}: nothing to compare");
            assert_eq!(got.len(), want.len());
            for (at, (g, w)) in got.iter().zip(&want).enumerate() {
                let near = (g - w).abs() <= unit * w.abs() + 40.0 * 2f64.powi(-24) * largest;
                // Infinities and NaN: the same ones.
                assert!(
                    near || g == w || (g.is_nan() && w.is_nan()),
                    "{name} {dtype} {part}[{at}]: {g} for {w}"
                );
            }
        }
    }
}

fn targets(rows: usize, classes: usize) -> Tensor {
    let class = |r: usize| if r % 5 == 4 { -100 } else { ((r * 31) % classes) as i64 };
    Tensor::from_slice(&(0..rows).map(class).collect::<Vec<_>>(), rows, Device::Cpu).unwrap()
}

const fn options<'a>(
    weight: Option<&'a Tensor>,
    label_smoothing: f64,
    reduction: Reduction,
) -> CrossEntropy<'a> {
    CrossEntropy { weight, ignore_index: -100, label_smoothing, reduction, class_dim: 1, classes: None }
}

#[test]
fn rows_in_vectors_and_of_every_width_give_what_the_cpu_gives() {
    // Widths that vectors of both sizes divide: a lane, some lanes, a warp, a block a row; several blocks of rows.
    for (rows, classes) in [(6, 8), (7, 40), (300, 24), (3, 1024), (5, 2056)] {
        let name = format!("{rows} x {classes}");
        let (x, w) =
            (noise(&[rows, classes], 1, 4.0), noise(&[classes], 2, 0.5).add(&noise(&[1], 0, -1.0)).unwrap());
        let w = w.mul(&w).unwrap();
        let (y, soft) = (targets(rows, classes), noise(&[rows, classes], 3, 4.0).softmax(1).unwrap());
        compare(
            &name,
            |t| t[0].cross_entropy(&t[1], options(None, 0.0, Reduction::Mean)),
            &[x.clone(), y.clone()],
        );
        let smooth: Loss = |t| t[0].cross_entropy(&t[1], options(Some(&t[2]), 0.2, Reduction::Sum));
        compare(&name, smooth, &[x.clone(), y.clone(), w.clone()]);
        let each: Loss = |t| t[0].cross_entropy(&t[1], options(None, 0.1, Reduction::None));
        compare(&name, each, &[x.clone(), y]);
        let soft_loss: Loss = |t| t[0].cross_entropy(&t[1], options(Some(&t[2]), 0.1, Reduction::BatchMean));
        compare(&name, soft_loss, &[x.clone(), soft.clone(), w]);
        compare(&name, |t| distillation_loss(&t[0], &t[1], 2.0), &[x, noise(&[rows, classes], 5, 4.0)]);
    }
}

#[test]
fn elements_in_vectors_and_in_several_blocks_give_what_the_cpu_gives() {
    let (x, t) = (noise(&[104, 96], 1, 3.0), noise(&[104, 96], 2, 1.0));
    let weight = noise(&[104, 96], 4, 1.0);
    let positive = t.mul(&t).unwrap();
    let all = [x.clone(), positive.clone(), weight];
    compare("vectors", |t| t[0].mse_loss(&t[1], Reduction::Mean), &all[..2]);
    compare("vectors", |t| t[0].l1_loss(&t[1], Reduction::None), &all[..2]);
    compare("vectors", |t| t[0].huber_loss(&t[1], 0.7, Reduction::Sum), &all[..2]);
    compare("vectors", |t| t[0].smooth_l1_loss(&t[1], 0.7, Reduction::BatchMean), &all[..2]);
    compare("turned", |t| t[0].t()?.mse_loss(&t[1].t()?, Reduction::Mean), &all[..2]);
    let each: Loss = |t| {
        let (weight, pos_weight) = (Some(&t[2]), None);
        t[0].bce_with_logits(&t[1], BceWithLogits { weight, pos_weight, reduction: Reduction::Mean })
    };
    compare("vectors", each, &all);
    let one: Loss = |t| {
        let pos_weight = Some(&t[2]);
        t[0].bce_with_logits(&t[1], BceWithLogits { weight: None, pos_weight, reduction: Reduction::Sum })
    };
    compare("one weight for all", one, &[x, positive, noise(&[1], 0, -2.5)]);
}

#[test]
fn logits_far_apart_and_infinite_ones_keep_their_meaning() {
    let inf = f32::INFINITY;
    // Rising maxima, -inf before and after a maximum, -inf alone, +inf, NaN: in a lane's own share and across lanes.
    let mut rows = vec![vec![0f32; 40]; 7];
    #[allow(clippy::needless_range_loop, reason = "seven rows by one column")]
    for c in 0..40 {
        rows[0][c] = c as f32 * 30.0;
        rows[1][c] = -(c as f32) * 30.0;
        rows[2][c] = if c < 37 { -inf } else { c as f32 };
        rows[3][c] = if c == 3 { 1.0 } else { -inf };
        rows[4][c] = -inf;
        rows[5][c] = if c == 30 { inf } else { 1.0 };
        rows[6][c] = if c == 9 { f32::NAN } else { c as f32 };
    }
    let x = Tensor::from_slice(&rows.concat(), [7, 40], Device::Cpu).unwrap();
    let y = Tensor::from_slice(&[0i64, 0, 38, 3, 1, 2, 5], 7, Device::Cpu).unwrap();
    compare(
        "far",
        |t| t[0].cross_entropy(&t[1], options(None, 0.0, Reduction::None)),
        &[x.clone(), y.clone()],
    );
    let two = x.narrow(0, 0, 2).unwrap();
    let first = y.narrow(0, 0, 2).unwrap();
    compare("far", |t| t[0].cross_entropy(&t[1], options(None, 0.3, Reduction::Mean)), &[two, first]);
}
