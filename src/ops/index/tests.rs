//! Lookups: what is refused, gradients, the order of sums.

#![forbid(unsafe_code)]

use super::*;
use crate::autograd::{GradCheck, backward_from, gradcheck};
use crate::dtype::Element;
use crate::{Device, ErrorKind};

fn ids<T: Element>(data: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_slice(data, shape, Device::cpu()).unwrap()
}

fn values(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let data: Vec<f64> = (0..n).map(|i| ((i * 37) % 101) as f64 / 10.0 - 5.0).collect();
    Tensor::from_slice(&data, shape, Device::cpu()).unwrap()
}

#[test]
fn bad_indices_are_named_with_their_position() {
    let x = values(&[4, 3]);
    let message = |e: Result<Tensor>| {
        let e = e.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Argument);
        e.message().to_owned()
    };
    let found = message(x.embedding(&ids(&[0i64, 1, 2, 3, 4, 9], &[2, 3])));
    assert_eq!(found, "index 4 at position [1, 1] is out of range for size 4");
    let found = message(x.index_select(1, &ids(&[0i32, -1], &[2])));
    assert_eq!(found, "index -1 at position [1] is out of range for size 3");
    let found = message(x.gather(0, &ids(&[0i64, 1, i64::MIN], &[1, 3])));
    assert_eq!(found, format!("index {} at position [0, 2] is out of range for size 4", i64::MIN));
    let bad = ids(&[7i64], &[1]);
    message(run1(EmbeddingBackward { rows: 4 }, &[&values(&[1, 3]), &bad]));
    message(run1(IndexSelectBackward { dim: 0, size: 4 }, &[&values(&[1, 3]), &bad]));
    message(run1(IndexSelectBackward { dim: 1, size: 0 }, &[&values(&[3, 1]), &bad]));
    let op = GatherBackward { dim: 1, shape: Shape::from_dims(&[1, 4]) };
    message(run1(op, &[&values(&[1, 1]), &bad.reshape([1, 1]).unwrap()]));
    let e = x.embedding(&x).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DType);
    assert!(values(&[0, 3]).embedding(&ids::<i64>(&[], &[0])).is_ok());
    message(values(&[0, 3]).embedding(&ids(&[0i64], &[1])));
}

#[test]
fn gradients_of_strided_and_expanded_arguments_agree_with_differences() {
    let check = |f: &dyn Fn(&Tensor) -> Result<Tensor>, x: Tensor| {
        gradcheck(|x| Ok(vec![f(&x[0])?]), &[x], GradCheck::default()).unwrap();
    };
    let index = ids(&[0i64, 2, 2, 1, 0, 2], &[2, 3]);
    let turned = index.t().unwrap();
    let wide = ids(&[1i32, 2], &[2, 1]).expand([2, 4]).unwrap();
    check(&|x| x.t()?.embedding(&turned), values(&[2, 3]));
    check(&|x| x.embedding(&index)?.permute(&[2, 0, 1])?.contiguous(), values(&[3, 2]));
    check(&|x| x.slice(0, 1, 6, 2)?.gather(1, &index), values(&[6, 3]));
    check(&|x| x.gather(0, &turned), values(&[3, 2]));
    check(&|x| x.gather(0, &wide), values(&[3, 4]));
    check(&|x| x.t()?.index_select(0, &index.select(0, 1)?), values(&[2, 3]));
    check(&|x| x.index_select(-1, &index.select(0, 0)?)?.t()?.contiguous(), values(&[2, 3]));
}

#[test]
fn repeated_rows_add_in_order_for_any_number_of_threads_and_either_sorting() {
    // 1000 ids into 3000 rows sort, into 500 they go to buckets; both must equal a plain loop bit for bit.
    for rows in [500usize, 3000] {
        let (n, width) = (1000, 70);
        let list: Vec<i64> = (0..n).map(|i| (i * i * 7919 % rows.min(333)) as i64).collect();
        let dy: Vec<f32> = (0..n * width).map(|i| ((i * 7_919) % 10_007) as f32 / 1e3 - 5.0).collect();
        let mut want = vec![1f32; rows * width];
        for (i, &id) in list.iter().enumerate() {
            (0..width).for_each(|j| want[id as usize * width + j] += dy[i * width + j]);
        }
        let (list, dy) = (ids(&list, &[n]), ids(&dy, &[n, width]));
        for threads in [1, 2, 8] {
            type Into<'a> = &'a (dyn Fn(&Tensor) -> Result<()> + Sync);
            let ops: [Into<'_>; 2] = [
                &|g| {
                    crate::ops::run_into(EmbeddingBackward { rows }, &[&dy, &list], &[(g, Mode::Accumulate)])
                },
                &|g| {
                    let op = IndexSelectBackward { dim: 0, size: rows };
                    crate::ops::run_into(op, &[&dy, &list], &[(g, Mode::Accumulate)])
                },
            ];
            for op in ops {
                let grad = Tensor::ones([rows, width], DType::F32, Device::cpu()).unwrap();
                par::with_threads(threads, || op(&grad)).unwrap().unwrap();
                assert_eq!(grad.to_vec::<f32>().unwrap(), want);
            }
        }
    }
}

#[test]
fn rows_that_nobody_asked_for_get_zero_gradient() {
    let weight = Tensor::ones([40, 3], DType::F16, Device::cpu()).unwrap().as_leaf().unwrap();
    let out = weight.embedding(&ids(&[7i64, 7], &[2])).unwrap();
    let seed = Tensor::ones([2, 3], DType::F16, Device::cpu()).unwrap();
    let grads = backward_from(&out, &seed).unwrap();
    let got = grads.get(&weight).unwrap().to_f64_vec().unwrap();
    let want: Vec<f64> = (0..120).map(|i| if i / 3 == 7 { 2.0 } else { 0.0 }).collect();
    assert_eq!(got, want);
}
