//! Sorting: NaN and zeros, ties, every way to choose, errors, gradients.

#![forbid(unsafe_code)]

use super::*;
use crate::Device;
use crate::autograd::backward_from;

fn of<T: Element>(values: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, Device::Cpu).unwrap()
}

/// Bits, so that the zeros differ and NaN is one.
fn same(got: &Tensor, want: &[f32]) {
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&got.to_vec::<f32>().unwrap()), bits(want));
}

#[test]
fn nan_is_the_largest_and_zeros_keep_their_order() {
    let nan = f32::NAN;
    let x = of(&[0.0, nan, -0.0, f32::INFINITY, -1.0, 0.0, nan, f32::NEG_INFINITY], &[8]);
    let (values, places) = x.sort(0, false, false).unwrap();
    same(&values, &[f32::NEG_INFINITY, -1.0, 0.0, -0.0, 0.0, f32::INFINITY, nan, nan]);
    assert_eq!(places.to_vec::<i64>().unwrap(), [7, 4, 0, 2, 5, 3, 1, 6]);
    let (values, places) = x.sort(-1, true, true).unwrap();
    same(&values, &[nan, nan, f32::INFINITY, 0.0, -0.0, 0.0, -1.0, f32::NEG_INFINITY]);
    assert_eq!(places.to_vec::<i64>().unwrap(), [1, 6, 3, 0, 2, 5, 4, 7]);
    assert_eq!(x.topk(3, 0, true, true).unwrap().1.to_vec::<i64>().unwrap(), [1, 6, 3]);
    assert_eq!(x.topk(4, 0, false, false).unwrap().1.to_vec::<i64>().unwrap(), [7, 4, 0, 2]);
    assert_eq!(x.argsort(0, false).unwrap().to_vec::<i64>().unwrap(), [7, 4, 0, 2, 5, 3, 1, 6]);
}

#[test]
fn integers_of_the_whole_range_are_in_order() {
    let x = of(&[i64::MAX, 0, i64::MIN, -1, 1 << 53, (1 << 53) + 1], &[6]);
    let (values, _) = x.sort(0, false, false).unwrap();
    assert_eq!(values.to_vec::<i64>().unwrap(), [i64::MIN, -1, 0, 1 << 53, (1 << 53) + 1, i64::MAX]);
    let x = of(&[3, i32::MIN, i32::MAX, -7], &[4]);
    assert_eq!(x.sort(0, true, false).unwrap().0.to_vec::<i32>().unwrap(), [i32::MAX, 3, -7, i32::MIN]);
}

#[test]
fn every_way_to_choose_gives_the_first_of_the_sorted_row() {
    // Ascending rows are the worst for the list of the best so far; few values try the ties.
    let n = 5000;
    let rows = [
        (0..n).map(|i| i as f32).collect::<Vec<_>>(),
        (0..n).map(|i| ((i * 7919) % 41) as f32).collect(),
        (0..n).map(|i| ((i * 7919) % n) as f32 - 2500.0).collect(),
    ];
    for row in rows {
        let x = of(&row, &[n]);
        for largest in [false, true] {
            let (all, places) = x.sort(0, largest, true).unwrap();
            let (all, places) = (all.to_vec::<f32>().unwrap(), places.to_vec::<i64>().unwrap());
            for k in [1, 2, 64, 65, 1249, 1250, 4999, 5000] {
                let (v, p) = x.topk(k, 0, largest, true).unwrap();
                same(&v, &all[..k]);
                assert_eq!(p.to_vec::<i64>().unwrap(), places[..k], "{k}");
            }
        }
    }
}

#[test]
fn too_many_and_missing_dimensions_are_errors() {
    let x = of(&[1.0f32, 2.0, 3.0], &[3]);
    for error in [x.topk(4, 0, true, true).unwrap_err(), x.sort(1, false, false).unwrap_err()] {
        assert_eq!(error.kind(), crate::ErrorKind::Shape);
    }
    assert!(x.topk(4, 0, true, true).unwrap_err().to_string().contains("4 elements wanted of 3"));
    assert_eq!(x.topk(0, 0, true, true).unwrap().0.dims(), [0]);
    let none = of::<f32>(&[], &[2, 0]);
    assert_eq!(none.sort(1, false, false).unwrap().1.dims(), [2, 0]);
}

#[test]
fn gradients_go_where_the_values_came_from() {
    let x = of(&[3.0f32, 1.0, 2.0, 0.0, 5.0, 4.0], &[2, 3]).as_leaf().unwrap();
    let dy = of(&[10.0f32, 20.0, 30.0, 40.0, 50.0, 60.0], &[2, 3]);
    let (sorted, _) = x.sort(1, false, false).unwrap();
    let dx = backward_from(&sorted, &dy).unwrap().get(&x).unwrap().clone();
    same(&dx, &[30.0, 10.0, 20.0, 40.0, 60.0, 50.0]);
    let (top, _) = x.topk(1, 0, true, true).unwrap();
    let dx = backward_from(&top, &of(&[1.0f32, 2.0, 3.0], &[1, 3])).unwrap().get(&x).unwrap().clone();
    same(&dx, &[1.0, 0.0, 0.0, 0.0, 2.0, 3.0]);
}

#[test]
fn a_place_that_does_not_exist_is_an_error() {
    let dy = of(&[1.0f32, 2.0], &[2]);
    let error = super::run(SortBackward { dim: 0, size: 2 }, &[&dy, &of(&[0i64, 2], &[2])]).unwrap_err();
    assert!(error.to_string().contains("index 2 at position [1]"), "{error}");
}
