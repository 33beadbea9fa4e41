//! What the plans of reductions choose, and that they are within the limits of a launch.

#![forbid(unsafe_code)]

use super::*;
use crate::Shape;

fn way(dims: &[usize], axes: &[isize]) -> Way {
    let shape = Shape::from_dims(dims);
    let layout = Layout::contiguous(shape);
    Way::new(Axes::resolve("test", &shape, axes).unwrap(), &layout, &layout, false)
}

fn planned(dims: &[usize], axes: &[isize]) -> Plan {
    plan(&way(dims, axes), 4, true, false)
}

#[test]
fn rows_of_many_outputs_take_as_few_threads_as_keep_loads_under_way() {
    assert_eq!(planned(&[1 << 20, 16], &[1]), Plan { form: Form::Rows(1), wide: true, piece: 16, pieces: 1 });
    assert_eq!(
        planned(&[1 << 16, 1024], &[1]),
        Plan { form: Form::Rows(64), wide: true, piece: 1024, pieces: 1 }
    );
    // Few outputs: more threads each, then pieces.
    assert_eq!(
        planned(&[64, 1024], &[1]),
        Plan { form: Form::Rows(256), wide: true, piece: 1024, pieces: 1 }
    );
    let one = planned(&[1 << 24], &[0]);
    assert_eq!((one.form, one.pieces), (Form::Rows(256), 1024));
}

#[test]
fn columns_are_read_along_memory() {
    let bias = planned(&[65536, 1024], &[0]);
    assert_eq!((bias.form, bias.wide), (Form::Columns(32), true));
    assert!(bias.pieces * 8 >= BLOCKS, "{bias:?} keeps a card busy");
    // Narrow rows take the power of two above them; a width of 5 allows no vectors.
    let narrow = planned(&[1 << 20, 5], &[0]);
    assert_eq!((narrow.form, narrow.wide), (Form::Columns(8), false));
    let many = planned(&[8, 1 << 22], &[0]);
    assert_eq!((many.form, many.pieces), (Form::Columns(256), 1));
}

#[test]
fn vectors_need_whole_rows_and_an_aligned_start() {
    assert!(!planned(&[64, 1023], &[1]).wide);
    assert!(!plan(&way(&[64, 1024], &[1]), 4, false, false).wide);
    // The rows of a slice begin between vectors.
    let shape = Shape::from_dims(&[64, 1026]);
    let layout = Layout::contiguous(shape).slice(1, 0, 1024, 1).unwrap();
    let axes = Axes::resolve("test", &layout.shape, &[1]).unwrap();
    assert!(!plan(&Way::new(axes, &layout, &layout, false), 4, true, false).wide);
}

#[test]
fn chains_are_short_and_launches_within_limits() {
    for (dims, axes) in [
        (&[1usize << 34][..], &[0isize][..]),
        (&[1 << 40], &[0]),
        (&[1 << 22, 1 << 10], &[0]),
        (&[70_000, 3, 1 << 12], &[0, 2]),
        (&[3, 1 << 30], &[1]),
        (&[0, 3], &[0]),
        (&[3, 0], &[0]),
    ] {
        let (way, plan) = (way(dims, axes), planned(dims, axes));
        assert!((1..=65535).contains(&plan.pieces), "{dims:?}: {plan:?}");
        assert!(plan.piece * plan.pieces >= way.length(), "{dims:?}: {plan:?} covers all");
        assert!(plan.piece * (plan.pieces - 1) <= way.length(), "{dims:?}: {plan:?} has no empty piece");
        let unit = match plan.form {
            Form::Rows(lanes) => lanes * if plan.wide { 4 } else { 1 },
            Form::Columns(columns) => THREADS / columns,
        };
        // Beyond what pieces can be counted, they grow.
        if way.length() <= 65535 * unit * MOST {
            assert!(plan.piece <= unit * MOST, "{dims:?}: {plan:?} has long chains");
        }
    }
}

#[test]
fn the_order_of_a_choice_is_that_of_the_shape() {
    // Dimensions that go are visited along memory, but for a place, which counts row-major.
    let layout = Layout::contiguous(Shape::from_dims(&[4, 6])).permute(&[1, 0]).unwrap();
    let free = Way::new(Axes::all(2), &layout, &layout, false);
    let ordered = Way::new(Axes::all(2), &layout, &layout, true);
    assert_eq!((free.gone.rank, free.gone_by[0].by[0]), (1, 1));
    assert_eq!((ordered.gone.rank, &ordered.gone_by[0].by[..2]), (2, &[1, 6][..]));
}
