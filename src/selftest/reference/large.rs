//! Inputs far above the sizes at which op bodies split their work over threads: `Op::cases` stays small for the gradient
//! check.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::cpu::activation::Activation;
use crate::ops::*;
use crate::{DType, Shape};

fn case<O: Op>(op: O, inputs: Vec<Arg>) -> Box<dyn Any> {
    Box::new(Case { op, inputs })
}

fn normal(shape: &[usize]) -> Arg {
    Arg::new(shape, Values::Normal(1.0))
}

fn index(shape: &[usize], below: usize) -> Arg {
    Arg::typed(shape, Values::Index(below), DType::I64)
}

/// The axes that reductions are tried over, for the shapes in [`REDUCED`].
fn axes(shape: &[usize], dims: &[isize]) -> Axes {
    Axes::resolve("large", &Shape::new(shape).unwrap(), dims).unwrap()
}

/// Long rows, many rows, columns, the middle, and everything; rows so long that several tasks share one (a few of them: the
/// bits of a single sum may survive another order by chance); and more than 65,536 rows (a limit of CUDA's grids).
const REDUCED: [(&[usize], &[isize]); 7] = [
    (&[5, 66_000], &[1]),
    (&[3, 40_000], &[1]),
    (&[40_000, 3], &[0]),
    (&[300, 257], &[0]),
    (&[31, 70, 33], &[1]),
    (&[120_011], &[]),
    (&[65_537, 2], &[1]),
];

/// A case for each of [`REDUCED`].
fn reductions<O: Op>(op: impl Fn(Axes, bool) -> O) -> Vec<Box<dyn Any>> {
    REDUCED.iter().map(|(shape, dims)| case(op(axes(shape, dims), false), vec![normal(shape)])).collect()
}

fn all() -> Vec<Box<dyn Any>> {
    let mut all = vec![
        case(Contiguous, vec![normal(&[300, 701])]),
        case(Contiguous, vec![normal(&[70_001, 3])]),
        case(Cast { to: DType::F16 }, vec![normal(&[300, 701])]),
        case(MeanBackward { count: 7 }, vec![normal(&[300, 401])]),
        case(Embedding, vec![normal(&[1000, 65]), index(&[40, 50], 1000)]),
        case(EmbeddingBackward { rows: 1000 }, vec![normal(&[40, 50, 65]), index(&[40, 50], 1000)]),
        case(EmbeddingBackward { rows: 3 }, vec![normal(&[3000, 33]), index(&[3000], 3)]),
        case(Gather { dim: 1 }, vec![normal(&[500, 200]), index(&[500, 150], 200)]),
        case(
            GatherBackward { dim: 0, shape: Shape::new(&[300, 300]).unwrap() },
            vec![normal(&[250, 300]), index(&[250, 300], 300)],
        ),
        case(IndexSelect { dim: 0 }, vec![normal(&[700, 90]), index(&[900], 700)]),
        case(IndexSelectBackward { dim: 0, size: 700 }, vec![normal(&[900, 90]), index(&[900], 700)]),
        case(IndexSelectBackward { dim: 1, size: 70 }, vec![normal(&[90, 900]), index(&[900], 70)]),
        case(Cat { dim: 1 }, vec![normal(&[500, 90]), normal(&[500, 33]), normal(&[500, 70])]),
        case(Cat { dim: 0 }, vec![normal(&[500, 90]), normal(&[333, 90])]),
        case(
            Pad { before: [3, 5, 0, 0, 0, 0, 0, 0], after: [2, 7, 0, 0, 0, 0, 0, 0], value: 0.5 },
            vec![normal(&[300, 301])],
        ),
    ];
    for (shape, dim) in [
        ([300, 257], 1),
        ([300, 257], 0),
        ([3, 40_000], 1),
        ([40_000, 3], 0),
        ([65_537, 2], 1),
        ([2, 66_001], 1),
    ] {
        let few = || Arg::constant(&shape, Values::Integers(-40, 40));
        all.push(case(Sort { dim, descending: false }, vec![normal(&shape)]));
        all.push(case(Sort { dim, descending: true }, vec![few()]));
        for k in [1, shape[dim].min(20), shape[dim] / 2] {
            all.push(case(TopK { k, dim, largest: true }, vec![few()]));
        }
        all.push(case(SortBackward { dim, size: 50 }, vec![normal(&shape), index(&shape, 50)]));
        all.push(case(ScatterAdd { dim }, vec![normal(&shape), index(&shape, shape[dim]), normal(&shape)]));
    }
    all.push(case(OneHot { classes: 70 }, vec![Arg::typed(&[3000], Values::Index(70), DType::I64)]));
    for (shape, dim) in [
        (&[5, 4097][..], 1),
        (&[4100, 4], 0),
        (&[40, 300, 3], 1),
        (&[9, 70, 600], 1),
        (&[66_000, 2], 1),
        (&[2, 70_001], 1),
    ] {
        for reverse in [false, true] {
            all.push(case(CumSum { dim, reverse }, vec![normal(shape)]));
        }
    }
    all.extend(reductions(|axes, keepdim| Sum { axes, keepdim }));
    all.extend(reductions(|axes, keepdim| Mean { axes, keepdim }));
    all.extend(reductions(|axes, keepdim| Amax { axes, keepdim }));
    all.extend(reductions(|axes, keepdim| Amin { axes, keepdim }));
    all.extend(reductions(|axes, keepdim| Argmax { axes, keepdim }));
    all.extend(reductions(|axes, keepdim| Argmin { axes, keepdim }));
    all.extend(reductions(|axes, keepdim| Var { axes, correction: 1, keepdim }));
    all.extend(reductions(|axes, keepdim| LogSumExp { axes, keepdim }));
    for shape in [[300, 257], [3, 40_000], [65_537, 2]] {
        all.push(case(Softmax { dim: 1 }, vec![normal(&shape)]));
        all.push(case(LogSoftmax { dim: 1 }, vec![normal(&shape)]));
        all.push(case(
            SoftmaxBackward { dim: 1 },
            vec![Arg::new(&shape, Values::Distribution), normal(&shape)],
        ));
        all.push(case(
            LogSoftmaxBackward { dim: 1 },
            vec![Arg::new(&shape, Values::Uniform(-4.0, 0.0)), normal(&shape)],
        ));
        all.push(case(Softmax { dim: 0 }, vec![normal(&shape)]));
        let one = Shape::new(&shape[1..]).unwrap();
        let parameter = || normal(&shape[1..]);
        let norm = LayerNorm { shape: one, weight: true, bias: true, eps: 1e-5 };
        all.push(case(norm, vec![normal(&shape), parameter(), parameter()]));
        all.push(case(RmsNorm { shape: one, weight: true, eps: 1e-5 }, vec![normal(&shape), parameter()]));
        let (mean, rstd) =
            (Arg::new(&shape[..1], Values::Normal(0.1)), Arg::new(&shape[..1], Values::Uniform(0.3, 0.7)));
        let back = LayerNormBackward { shape: one, weight: true, bias: true, stats: false };
        all.push(case(back, vec![normal(&shape), mean, rstd.clone(), normal(&shape), parameter()]));
        let back = RmsNormBackward { shape: one, weight: true, stats: false };
        all.push(case(back, vec![normal(&shape), rstd, normal(&shape), parameter()]));
        for reduction in [Reduction::Mean, Reduction::None] {
            let target = || index(&shape[..1], shape[1]);
            let op = loss::CrossEntropyLoss {
                weighted: false,
                ignore_index: 1,
                label_smoothing: 0.1,
                reduction,
                classes: None,
                overwrites: false,
            };
            all.push(case(op, vec![normal(&shape), target()]));
            all.push(case(
                loss::PointLoss { kind: loss::Mse, reduction },
                vec![normal(&shape), normal(&shape)],
            ));
            let bce = loss::Bce { weight: false, pos_weight: false };
            let likely = Arg::new(&shape, Values::Uniform(0.0, 1.0));
            all.push(case(loss::PointLoss { kind: bce, reduction }, vec![normal(&shape), likely]));
        }
    }
    let wide = [251, 260];
    for (a, b) in [([251, 260], vec![251, 260]), (wide, vec![260]), (wide, vec![251, 1]), (wide, vec![])] {
        let b = Arg::new(&b, Values::AwayFrom { points: &[0.0], gap: 0.1 });
        all.push(case(Zip(Add), vec![normal(&a), b.clone()]));
        all.push(case(Zip(Mul), vec![b.clone(), normal(&a)]));
        all.push(case(Zip(Div), vec![normal(&a), b.clone()]));
        all.push(case(ZipBackward { of: Mul, operand: 0 }, vec![normal(&a), b.clone()]));
        all.push(case(Compare(Lt), vec![normal(&a), b.clone()]));
        all.push(case(Where, vec![Arg::typed(&a, Values::Integers(0, 1), DType::U8), normal(&a), b]));
    }
    for shape in [vec![70_001], vec![333, 200]] {
        all.push(case(Map(Relu {}), vec![normal(&shape)]));
        all.push(case(MapBackward(Relu {}), vec![normal(&shape), normal(&shape)]));
        all.push(case(Map(Gelu {}), vec![normal(&shape)]));
        all.push(case(Map(Exp {}), vec![normal(&shape)]));
        all.push(case(Map(Tanh {}), vec![normal(&shape)]));
        all.push(case(Map(Silu {}), vec![normal(&shape)]));
        let step = Arg::typed(&[], Values::Exactly(vec![5.0]), DType::I64);
        all.push(case(Dropout { p: 0.4, seed: 9, site: 1, offset: 3 }, vec![normal(&shape), step]));
        all.push(case(SumTo { shape: Shape::new(&shape[1..]).unwrap() }, vec![normal(&shape)]));
    }
    for (m, k, n) in [(64, 1000, 50), (257, 129, 65), (1, 1000, 333), (1025, 33, 7)] {
        all.push(case(MatMul, vec![normal(&[m, k]), normal(&[k, n])]));
        let op = Linear { bias: true, activation: Activation::Relu, keep_pre: false };
        all.push(case(op, vec![normal(&[m, k]), normal(&[n, k]), normal(&[n])]));
    }
    all.push(case(MatMul, vec![normal(&[40, 17, 31]), normal(&[40, 31, 19])]));
    all.push(case(MatMul, vec![normal(&[40, 17, 31]), normal(&[31, 19])]));
    all.extend(recurrent());
    all.extend(images());
    all.extend(windows());
    all
}

/// Largest elements of windows that overlap, of squares side by side (which have a body of their own), and of more than 65,536
/// planes.
fn windows() -> Vec<Box<dyn Any>> {
    let overlapping = Window::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
    let (dense, squares) = (Window::new([3, 2]).with_stride([1, 1]), Window::new([2, 2]));
    let shapes = [
        ([37, 30, 14, 11], overlapping),
        ([2, 6, 130, 141], overlapping),
        ([3, 20, 31, 45], dense),
        ([19, 21, 28, 33], squares),
        ([70_001, 1, 2, 3], squares),
    ];
    let mut all = Vec::new();
    for (shape, window) in shapes {
        let input = [shape[2], shape[3]];
        let places = |d: usize| (input[d] + 2 * window.padding[d] - window.kernel[d]) / window.stride[d] + 1;
        let small = [shape[0], shape[1], places(0), places(1)];
        // The elements of window o along a dimension that lie within.
        let within = |d: usize, o: usize| {
            let start = o * window.stride[d];
            let end = (start + window.kernel[d]).min(input[d] + window.padding[d]) - window.padding[d];
            (start.saturating_sub(window.padding[d]), end)
        };
        // One element of each, and of some none: the same in all planes.
        let chosen = |i: usize| {
            let ((top, bottom), (left, right)) = (within(0, i / small[3]), within(1, i % small[3]));
            let row = top + i * 7 % (bottom - top);
            if i % 11 == 10 { -1.0 } else { (row * input[1] + left + i * 5 % (right - left)) as f64 }
        };
        let index = Values::Exactly((0..small[2] * small[3]).map(chosen).collect());
        all.push(case(MaxPool2d { window }, vec![normal(&shape)]));
        let inputs = vec![normal(&small), Arg::typed(&small, index, DType::I32)];
        all.push(case(MaxPool2dBackward { window, input }, inputs));
    }
    all
}

/// Windows, norms over channels and other sizes of images: more planes than one task takes, and planes of several tasks' size.
fn images() -> Vec<Box<dyn Any>> {
    let mut all = Vec::new();
    for (n, c, input) in [(37, 30, [14, 11]), (2, 6, [130, 141])] {
        let out = input.map(|size| (size - 1) / 2 + 1);
        let [large, small] = [input, out].map(|[h, w]| normal(&[n, c, h, w]));
        let window = Window::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
        let pool = AvgPool2d { window, count_include_pad: false };
        all.push(case(pool, vec![large.clone()]));
        all.push(case(AvgPool2dBackward { pool, input }, vec![small.clone()]));
        all.push(case(AdaptiveAvgPool2d { size: out }, vec![large.clone()]));
        all.push(case(AdaptiveAvgPool2dBackward { input }, vec![small.clone()]));
        let mode = Interpolation::Bilinear { align_corners: false };
        let resize = Interpolate { size: input, scale: None, mode };
        all.push(case(resize, vec![small.clone()]));
        all.push(case(InterpolateBackward { resize, input: out }, vec![large.clone()]));
        let parameter = || normal(&[c]);
        let (weight, bias, eps) = (true, true, 1e-5);
        all.push(case(BatchNorm { weight, bias, eps }, vec![large.clone(), parameter(), parameter()]));
        let norm = GroupNorm { groups: 3, weight, bias, eps };
        all.push(case(norm, vec![large.clone(), parameter(), parameter()]));
        let back = |stats: &[usize]| {
            let (mean, variance) =
                (Arg::new(stats, Values::Normal(0.1)), Arg::new(stats, Values::Uniform(2.0, 9.0)));
            vec![large.clone(), mean, variance, large.clone(), parameter()]
        };
        all.push(case(BatchNormBackward { weight, bias, eps, training: true }, back(&[c])));
        all.push(case(GroupNormBackward { groups: 3, weight, bias, eps }, back(&[n, 3])));
    }
    all
}

/// Batches of several shares of rows, and widths of more than one run of the product.
fn recurrent() -> Vec<Box<dyn Any>> {
    let mut all = Vec::new();
    for (steps, batch, hidden, direction) in
        [(5, 150, 12, Direction::Forward), (2, 3, 270, Direction::Reverse), (3, 70, 33, Direction::Reverse)]
    {
        let small = |shape: &[usize]| Arg::new(shape, Values::Normal(1.0 / (hidden as f64).sqrt()));
        let (state, weights) = (normal(&[batch, hidden]), |gates: usize| small(&[gates * hidden, hidden]));
        let wide = |n: usize| normal(&[steps, batch, n * hidden]);
        let gates = || Arg::new(&[steps, batch, 4 * hidden], Values::Uniform(0.05, 0.95));
        let states = || Arg::new(&[steps, batch, hidden], Values::Uniform(-0.9, 0.9));
        let s = || state.clone();
        all.push(case(Lstm { direction }, vec![wide(4), s(), s(), weights(4)]));
        let inputs = vec![wide(1), s(), weights(4), gates(), states(), s()];
        all.push(case(LstmBackward { direction }, inputs));
        let inputs = vec![wide(3), s(), weights(3), small(&[3 * hidden])];
        all.push(case(Gru { bias: true, direction }, inputs));
        all.push(case(GruBackward { direction }, vec![wide(1), weights(3), gates(), states(), s()]));
        let activation = Activation::Tanh;
        all.push(case(Rnn { activation, direction }, vec![wide(1), s(), weights(1)]));
        all.push(case(RnnBackward { activation, direction }, vec![wide(1), weights(1), states()]));
    }
    all
}

/// The large cases of one op.
pub fn cases<O: Op>() -> Vec<Case<O>> {
    all().into_iter().filter_map(|c| c.downcast::<Case<O>>().ok()).map(|c| *c).collect()
}
