//! Losses against PyTorch's results (2.15, f64), and the corners: what counts nothing, what is not finite, what is refused.

#![forbid(unsafe_code)]

use super::*;
use crate::autograd::{GradCheck, backward, gradcheck};
use crate::cpu::par;
use crate::dtype::Element;
use crate::{Device, ErrorKind};

fn tensor<T: Element>(data: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_slice(data, shape, Device::cpu()).unwrap()
}

/// The values that the figures below were made with: `(37 i mod 101) / 10 − 5`.
fn values(shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    tensor(&(0..n).map(|i: usize| ((i * 37) % 101) as f64 / 10.0 - 5.0).collect::<Vec<_>>(), shape)
}

#[track_caller]
fn near(got: &Tensor, want: &[f64]) {
    let got = got.to_f64_vec().unwrap();
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 1e-10 * w.abs().max(1.0), "{got:?} instead of {want:?}");
    }
}

/// Checks the gradients of `f` by differences.
#[track_caller]
fn check(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    gradcheck(|x| Ok(vec![f(x)?]), inputs, GradCheck::default()).unwrap();
}

/// Rows of positive numbers that add up to 1, unlike the logits.
fn probabilities() -> Tensor {
    let mut data = Vec::new();
    for r in 0..4usize {
        let x = [0, 1, 2].map(|c| ((((3 * r + c) * 53) % 101) as f64 / 20.0 - 2.0).exp());
        data.extend(x.map(|v| v / x.iter().sum::<f64>()));
    }
    tensor(&data, &[4, 3])
}

#[test]
fn cross_entropy_is_that_of_pytorch() {
    let (x, w) = (values(&[4, 3]), tensor(&[0.5, 2.0, 1.25], &[3]));
    let t = tensor(&[1i64, -100, 2, 0], &[4]);
    let p = probabilities();
    let plain = CrossEntropy::default();
    let smooth = CrossEntropy { weight: Some(&w), label_smoothing: 0.2, ..plain };
    let (mean, sum, none) = (Reduction::Mean, Reduction::Sum, Reduction::None);
    let figures: [(CrossEntropy<'_>, &Tensor, Reduction, &[f64]); 9] = [
        (plain, &t, mean, &[2.49202711597]),
        (plain, &t, sum, &[7.47608134791]),
        (plain, &t, none, &[3.72501917315, 0.0, 0.025019173148, 3.72604300162]),
        (smooth, &t, mean, &[2.56830774786]),
        (smooth, &t, sum, &[9.63115405448]),
        (smooth, &t, none, &[6.70628547032, 0.0, 0.771273966435, 2.15359461772]),
        (smooth, &p, mean, &[4.7816626432]),
        (smooth, &p, sum, &[19.1266505728]),
        (smooth, &p, none, &[6.06078800864, 2.23812745323, 6.06078800864, 4.76694710231]),
    ];
    for (options, target, reduction, want) in figures {
        let options = CrossEntropy { reduction, ..options };
        near(&x.cross_entropy(target, options).unwrap(), want);
        // In a layout with the classes apart, and as i32.
        let turned = x.t().unwrap().contiguous().unwrap().t().unwrap();
        near(&turned.cross_entropy(target, options).unwrap(), want);
        if target.dtype() == DType::I64 {
            near(&x.cross_entropy(&target.to_dtype(DType::I32).unwrap(), options).unwrap(), want);
            check(std::slice::from_ref(&x), |x| x[0].cross_entropy(target, options));
        } else {
            check(&[x.clone(), p.clone()], |x| x[0].cross_entropy(&x[1], options));
        }
    }
    let grad = |target, options| {
        let leaf = x.as_leaf().unwrap();
        let grads = backward(&leaf.cross_entropy(target, options).unwrap()).unwrap();
        grads.get(&leaf).unwrap().clone()
    };
    let want = [
        -0.008594788495,
        -0.4503266541,
        0.4589214426,
        0.0,
        0.0,
        0.0,
        -0.008690172407,
        -0.02751800952,
        0.03620818193,
        -0.1113803085,
        0.1333219311,
        -0.02194162261,
    ];
    near(&grad(&t, smooth), &want);
}

#[test]
fn classes_may_lie_in_any_dimension() {
    let (x, t) = (values(&[2, 3, 2]), tensor(&[0i64, 2, 1, 1], &[2, 2]));
    let options = CrossEntropy::default();
    near(&x.cross_entropy(&t, options).unwrap(), &[2.57753970702]);
    let last = x.transpose(1, 2).unwrap();
    let of_last = CrossEntropy { class_dim: -1, ..options };
    near(&last.cross_entropy(&t, of_last).unwrap(), &[2.57753970702]);
    check(std::slice::from_ref(&x), |x| {
        x[0].cross_entropy(&t, CrossEntropy { reduction: Reduction::None, ..options })
    });
    let one = values(&[5]).cross_entropy(&tensor(&[3i64], &[]), options).unwrap();
    near(
        &one,
        &values(&[1, 5]).cross_entropy(&tensor(&[3i64], &[1]), options).unwrap().to_f64_vec().unwrap(),
    );
    let e = last.contiguous().unwrap().cross_entropy(&t, options).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Shape);
    assert!(e.help().unwrap().contains("class_dim"));
}

#[test]
fn bad_classes_and_options_are_refused() {
    let (x, options) = (values(&[2, 3]), CrossEntropy::default());
    for (class, reduction) in [(3i64, Reduction::Mean), (-1, Reduction::None)] {
        let e =
            x.cross_entropy(&tensor(&[0, class], &[2]), CrossEntropy { reduction, ..options }).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Argument);
        let want = format!(
            "a target is none of the 3 classes: index {class} at position [1] is out of range for size 3"
        );
        assert_eq!(e.message(), want);
    }
    let t = tensor(&[0i64, 1], &[2]);
    let (short, single) = (values(&[2]), tensor(&[1f32; 3], &[3]));
    let kind = |options| x.cross_entropy(&t, options).unwrap_err().kind();
    assert_eq!(kind(CrossEntropy { label_smoothing: f64::NAN, ..options }), ErrorKind::Argument);
    assert_eq!(kind(CrossEntropy { weight: Some(&short), ..options }), ErrorKind::Shape);
    assert_eq!(kind(CrossEntropy { weight: Some(&single), ..options }), ErrorKind::DType);
    let bytes = tensor(&[0u8, 1], &[2]);
    assert_eq!(x.cross_entropy(&bytes, options).unwrap_err().kind(), ErrorKind::DType);
    let ignoring = CrossEntropy { ignore_index: 0, ..options };
    assert_eq!(x.cross_entropy(&x, ignoring).unwrap_err().kind(), ErrorKind::Argument);
    let weight = values(&[3]).as_leaf().unwrap();
    let loss = x.cross_entropy(&t, CrossEntropy { weight: Some(&weight), ..options }).unwrap();
    assert!(backward(&loss).unwrap_err().message().ends_with("the weight has no gradient"));
    let e = values(&[2]).mse_loss(&values(&[2, 1]), Reduction::Mean).unwrap_err();
    assert_eq!(e.message(), "the input is [2] but the target is [2, 1]");
    for delta in [0.0, -1.0, f64::NAN] {
        let e = x.huber_loss(&x, delta, Reduction::Sum).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Argument);
        assert!(distillation_loss(&x, &x, delta).is_err());
    }
    let e = x.bce_with_logits(&x, BceWithLogits { pos_weight: Some(&values(&[2])), ..Default::default() });
    assert_eq!(e.unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn the_mean_of_nothing_is_nan_and_what_is_ignored_gets_no_gradient() {
    let x = values(&[2, 3]).as_leaf().unwrap();
    let loss = x.cross_entropy(&tensor(&[-100i64; 2], &[2]), CrossEntropy::default()).unwrap();
    assert!(loss.item().unwrap().is_nan());
    near(backward(&loss).unwrap().get(&x).unwrap(), &[0.0; 6]);
    let none = tensor::<f32>(&[], &[0]);
    for (reduction, nan) in [(Reduction::Mean, true), (Reduction::Sum, false), (Reduction::BatchMean, true)] {
        assert_eq!(none.mse_loss(&none, reduction).unwrap().item().unwrap().is_nan(), nan);
    }
    let rows = tensor::<f32>(&[], &[0, 3]);
    assert!(
        rows.cross_entropy(&tensor::<i64>(&[], &[0]), CrossEntropy::default())
            .unwrap()
            .item()
            .unwrap()
            .is_nan()
    );
    assert!(rows.cross_entropy(&rows, CrossEntropy::default()).unwrap().item().unwrap().is_nan());
}

#[test]
fn large_logits_keep_their_differences() {
    // f32: the log-sum-exp of row 0 would be rounded to a multiple of 0.0078; both answers are known exactly.
    let x = tensor(&[1e5f32, 1e5 - 1.0, -1e5, f32::NEG_INFINITY, 3.0, 3.0], &[2, 3]).as_leaf().unwrap();
    let options = CrossEntropy { reduction: Reduction::None, ..CrossEntropy::default() };
    let loss = x.cross_entropy(&tensor(&[1i64, 2], &[2]), options).unwrap();
    let got = loss.to_f64_vec().unwrap();
    let (a, b) = (1.0 + (-1f64).exp().ln_1p(), 2f64.ln());
    assert!((got[0] - a).abs() < 2e-7 && (got[1] - b).abs() < 2e-7, "{got:?}");
    let sum = CrossEntropy { reduction: Reduction::Sum, ..options };
    let grads = backward(&x.cross_entropy(&tensor(&[1i64, 2], &[2]), sum).unwrap()).unwrap();
    let got = grads.get(&x).unwrap().to_f64_vec().unwrap();
    let p = 1.0 / (1.0 + (-1f64).exp());
    for (g, w) in got.iter().zip([p, -p, 0.0, 0.0, 0.5, -0.5]) {
        assert!((g - w).abs() < 1e-6, "{got:?}");
    }
    let logits = tensor(&[1e4f32, -1e4, 0.0, f32::NAN], &[4]);
    let target = tensor(&[1f32, 0.0, 0.5, 0.5], &[4]);
    let none = BceWithLogits { reduction: Reduction::None, ..BceWithLogits::default() };
    let got = logits.bce_with_logits(&target, none).unwrap().to_f64_vec().unwrap();
    assert!(got[..2] == [0.0, 0.0] && (got[2] - 2f64.ln()).abs() < 1e-7 && got[3].is_nan(), "{got:?}");
}

#[test]
fn point_losses_are_those_of_pytorch() {
    let a = values(&[2, 3]);
    let b = tensor(&[0.0, 1.0, 0.25, 0.5, 1.0, 0.0], &[2, 3]);
    let both = [a.clone(), b.clone()];
    let (mean, sum, none) = (Reduction::Mean, Reduction::Sum, Reduction::None);
    near(&a.mse_loss(&b, sum).unwrap(), &[68.4125]);
    near(&a.l1_loss(&b, sum).unwrap(), &[18.65]);
    near(&a.huber_loss(&b, 1.5, sum).unwrap(), &[21.245]);
    near(&a.smooth_l1_loss(&b, 0.5, sum).unwrap(), &[17.15]);
    for reduction in Reduction::ALL {
        check(&both, |x| x[0].mse_loss(&x[1], reduction));
        check(&both, |x| x[0].l1_loss(&x[1], reduction));
        check(&both, |x| x[0].huber_loss(&x[1], 1.5, reduction));
        check(&both, |x| x[0].smooth_l1_loss(&x[1], 0.5, reduction));
        check(&both, |x| x[0].t()?.mse_loss(&x[1].t()?, reduction));
    }
    let (pw, w) = (tensor(&[2.0, 0.5, 3.0], &[3]), tensor(&[0.5, 2.0], &[2, 1]));
    for (reduction, want) in [
        (mean, &[2.85469981181][..]),
        (sum, &[17.1281988709]),
        (
            none,
            &[0.00335767424456, 0.385252113458, 0.965127114115, 8.05444978375, 0.854355244469, 6.86565694085],
        ),
    ] {
        let options = BceWithLogits { weight: Some(&w), pos_weight: Some(&pw), reduction };
        near(&a.bce_with_logits(&b, options).unwrap(), want);
        check(&both, |x| x[0].bce_with_logits(&x[1], options));
        let only = BceWithLogits { weight: None, ..options };
        check(&both, |x| x[0].bce_with_logits(&x[1], only));
    }
}

#[test]
fn divergences_are_those_of_pytorch() {
    let log_softmax = |x: &Tensor| -> Tensor {
        let rows = x.to_f64_vec().unwrap();
        let lse = |r: &[f64]| r.iter().map(|v| v.exp()).sum::<f64>().ln();
        let data: Vec<f64> =
            rows.chunks(3).flat_map(|r| r.iter().map(|v| v - lse(r)).collect::<Vec<_>>()).collect();
        tensor(&data, x.dims())
    };
    let a = values(&[2, 3]);
    let b = tensor(&[0.0, 1.0, 0.25, 0.5, 1.0, 0.0], &[2, 3]);
    let t = tensor(&[0.0, 0.75, 0.25, 0.5, 0.1, 0.4], &[2, 3]);
    let (q, r) = (log_softmax(&a), log_softmax(&b));
    for (reduction, want, want_log) in [
        (Reduction::Mean, 0.898225801558, 0.944111693345),
        (Reduction::BatchMean, 2.69467740467, 2.83233508004),
        (Reduction::Sum, 5.38935480935, 5.66467016007),
    ] {
        near(&q.kl_div(&t, KlDiv { log_target: false, reduction }).unwrap(), &[want]);
        near(&q.kl_div(&r, KlDiv { log_target: true, reduction }).unwrap(), &[want_log]);
    }
    check(std::slice::from_ref(&q), |x| x[0].kl_div(&t, KlDiv::default()));
    let positive = tensor(&[0.2, 0.75, 0.25, 0.5, 0.1, 0.4], &[2, 3]);
    check(&[q.clone(), positive], |x| x[0].kl_div(&x[1], KlDiv::default()));
    check(&[q, r], |x| x[0].kl_div(&x[1], KlDiv { log_target: true, reduction: Reduction::None }));
    near(&distillation_loss(&a, &b, 2.0).unwrap(), &[3.8998731914]);
    check(std::slice::from_ref(&a), |x| distillation_loss(&x[0].t()?.contiguous()?.t()?, &b, 2.0));
    let loss = distillation_loss(&a, &b.as_leaf().unwrap(), 2.0).unwrap();
    assert!(backward(&loss).unwrap_err().message().ends_with("the teacher has no gradient"));
    assert_eq!(distillation_loss(&b, &b, 3.0).unwrap().item().unwrap(), 0.0);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (n, classes) = (700, 101);
    let data: Vec<f32> = (0..n * classes).map(|i| ((i * 7919) % 10_007) as f32 / 1e3 - 5.0).collect();
    let x = tensor(&data, &[n, classes]);
    let t = tensor(&(0..n as i64).map(|i| i * i % 101).collect::<Vec<_>>(), &[n]);
    let all = || {
        let leaf = x.as_leaf().unwrap();
        let losses = [
            leaf.cross_entropy(&t, CrossEntropy { label_smoothing: 0.1, ..CrossEntropy::default() }),
            leaf.cross_entropy(&x, CrossEntropy::default()),
            leaf.mse_loss(&x.t().unwrap().contiguous().unwrap().t().unwrap(), Reduction::Mean),
            leaf.bce_with_logits(&x, BceWithLogits::default()),
            distillation_loss(&leaf, &x, 2.0),
        ];
        losses.map(|loss| {
            let loss = loss.unwrap();
            let grad = backward(&loss).unwrap().get(&leaf).unwrap().to_vec::<f32>().unwrap();
            (loss.to_vec::<f32>().unwrap()[0].to_bits(), grad)
        })
    };
    let one = par::with_threads(1, all).unwrap();
    for threads in [2, 3, 8] {
        assert!(par::with_threads(threads, all).unwrap() == one, "{threads} threads differ from one");
    }
}
