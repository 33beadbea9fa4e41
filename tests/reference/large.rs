//! Inputs far above the sizes at which op bodies split their work over threads: `Op::cases` stays small for the gradient
//! check.

use std::any::Any;

use warpsmith::ops::*;
use warpsmith::{DType, Shape};

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

/// Long rows, many rows, columns, the middle, and everything; the last has more than 65,536 rows (a limit of CUDA's grids).
const REDUCED: [(&[usize], &[isize]); 6] = [
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
    all.extend(reductions(|axes, keepdim| Sum { axes, keepdim }));
    all.extend(reductions(|axes, keepdim| Mean { axes, keepdim }));
    all
}

/// The large cases of one op.
pub fn cases<O: Op>() -> Vec<Case<O>> {
    all().into_iter().filter_map(|c| c.downcast::<Case<O>>().ok()).map(|c| *c).collect()
}
