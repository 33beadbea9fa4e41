//! The rules of backward that no single op owns: views, fan-out, arenas, missing and stale tensors, memory.

use warpsmith::autograd::{BackwardOptions, GradCheck, backward, backward_from, gradcheck};
use warpsmith::{Arena, DType, Device, ErrorKind, Result, Tensor};

const CPU: Device = Device::Cpu;

fn iota(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_slice(&(0..n).map(|i| i as f64 * 0.5 - 1.0).collect::<Vec<_>>(), shape, CPU).unwrap()
}

#[test]
fn every_view_passes_the_gradient_check() {
    let x = iota(&[2, 3, 4]);
    let views: Vec<fn(&Tensor) -> Result<Tensor>> = vec![
        |x| x.permute(&[2, 0, 1]),
        |x| x.transpose(0, -1),
        |x| x.narrow(1, 1, 2),
        |x| x.slice(2, 1, 4, 2),
        |x| x.select(0, 1),
        |x| x.unsqueeze(1)?.expand([2, 5, 3, 4]),
        |x| x.reshape([6, 4]),
        |x| x.t()?.reshape([24]),
        |x| x.flatten(1, 2),
        |x| x.narrow(2, 0, 1)?.squeeze(2),
        |x| x.narrow(2, 1, 0),
    ];
    for (i, view) in views.into_iter().enumerate() {
        gradcheck(|x| Ok(vec![view(&x[0])?]), std::slice::from_ref(&x), GradCheck::default())
            .unwrap_or_else(|e| panic!("view {i}: {e}"));
    }
}

#[test]
fn a_tensor_used_three_times_gets_three_contributions() {
    let x = iota(&[4]).as_leaf().unwrap();
    let pieces = [x.narrow(0, 0, 2).unwrap(), x.narrow(0, 1, 2).unwrap(), x.narrow(0, 2, 2).unwrap()];
    let mut total = vec![0.0; 4];
    let sum = pieces.map(|p| p.expand([2, 2]).unwrap().contiguous().unwrap());
    for piece in &sum {
        let seed = Tensor::ones([2, 2], DType::F64, CPU).unwrap();
        let grads = backward_from(piece, &seed).unwrap();
        let g: Vec<f64> = grads.get(&x).unwrap().to_vec().unwrap();
        total.iter_mut().zip(g).for_each(|(t, g)| *t += g);
    }
    assert_eq!(total, [2.0, 4.0, 4.0, 2.0]);
}

#[test]
fn equal_valued_leaves_have_gradients_of_their_own() {
    let data = [3.0f64];
    let a = Tensor::from_slice(&data, [1], CPU).unwrap().as_leaf().unwrap();
    let b = Tensor::from_slice(&data, [1], CPU).unwrap().as_leaf().unwrap();
    let grads = backward(&a.reshape(()).unwrap()).unwrap();
    assert_eq!(grads.get(&a).unwrap().to_vec::<f64>().unwrap(), [1.0]);
    assert!(grads.get(&b).is_none());
}

fn arena() -> Arena {
    let arena = Arena::new(DType::F32, CPU).unwrap();
    arena.register("w", [2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    arena.register("b", [300], &[0.5; 300]).unwrap();
    arena.register("unused", (), &[7.0]).unwrap();
    arena
}

#[test]
fn arena_places_parameters_on_256_elements_and_keeps_gaps_zero() {
    let arena = arena();
    let offsets: Vec<usize> = arena.params().unwrap().iter().map(|p| p.offset()).collect();
    assert_eq!(offsets, [0, 256, 768]);
    let values: Vec<f32> = arena.values().unwrap().to_vec().unwrap();
    assert_eq!(values.len(), 1024);
    assert_eq!(values.iter().filter(|&&v| v != 0.0).count(), 6 + 300 + 1);
    assert_eq!(arena.numel().unwrap(), 307);
    assert_eq!(arena.group_table().unwrap(), [0; 4]);
    arena.param("b").unwrap().set_frozen(true);
    arena.param("unused").unwrap().set_group(3).unwrap();
    assert_eq!(arena.group_table().unwrap(), [0, 255, 255, 3]);
}

#[test]
fn a_parameter_without_gradient_is_an_error_that_names_it() {
    let arena = arena();
    let loss = arena.param("w").unwrap().get().unwrap().select(0, 0).unwrap().select(0, 1).unwrap();
    let error = arena.backward(&loss).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingGradient);
    assert!(error.to_string().contains("b, unused"), "{error}");
    arena.param("b").unwrap().set_frozen(true);
    arena.zero_grad().unwrap();
    let mut order = Vec::new();
    let mut ready = |id| order.push(id);
    let options = BackwardOptions { allow_unused: &["unused"], ready: Some(&mut ready), seed: None };
    arena.backward_with(&loss, options).unwrap();
    assert_eq!(order, [0, 2], "also the one that is allowed to be unused, at the end");
    let grad = |name: &str| arena.param(name).unwrap().grad().unwrap().unwrap().to_vec::<f32>().unwrap();
    assert_eq!(grad("w"), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(grad("unused"), [0.0]);
    // Without zero_grad a second pass adds.
    arena.backward_with(&loss, BackwardOptions { allow_unused: &["unused"], ..Default::default() }).unwrap();
    assert_eq!(grad("w"), [0.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn ready_is_called_once_after_the_last_use() {
    let arena = Arena::new(DType::F64, CPU).unwrap();
    let param = arena.register("w", [3], &[1.0, 2.0, 3.0]).unwrap();
    let w = param.get().unwrap();
    let loss = w.narrow(0, 0, 1).unwrap().reshape(()).unwrap();
    let mut calls = 0;
    let mut ready = |_| calls += 1;
    arena.backward_with(&loss, BackwardOptions { ready: Some(&mut ready), ..Default::default() }).unwrap();
    assert_eq!(calls, 1);
}

#[test]
fn registering_after_first_use_or_twice_is_an_error() {
    let arena = arena();
    assert_eq!(arena.register("w", [1], &[0.0]).err().unwrap().kind(), ErrorKind::Argument);
    arena.param("w").unwrap().get().unwrap();
    assert_eq!(arena.register("late", [1], &[0.0]).err().unwrap().kind(), ErrorKind::Argument);
}

#[test]
fn a_chain_of_a_million_nodes_drops_without_recursion() {
    let mut x = iota(&[1]).as_leaf().unwrap();
    for _ in 0..1_000_000 {
        x = x.unsqueeze(0).unwrap().squeeze(0).unwrap();
    }
    drop(x);
}

#[test]
fn backward_of_a_constant_and_of_a_vector_are_errors() {
    assert_eq!(backward(&iota(&[1])).unwrap_err().kind(), ErrorKind::MissingGradient);
    let x = iota(&[2]).as_leaf().unwrap();
    assert_eq!(backward(&x.unsqueeze(0).unwrap()).unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn reading_what_is_being_written_is_an_error_and_never_a_wait() {
    let x = iota(&[8]);
    let error = x.narrow(0, 0, 5).unwrap().copy_(&x.narrow(0, 3, 5).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Borrowed);
    x.narrow(0, 0, 4).unwrap().copy_(&x.narrow(0, 4, 4).unwrap()).unwrap();
    assert_eq!(x.to_vec::<f64>().unwrap(), [1.0, 1.5, 2.0, 2.5, 1.0, 1.5, 2.0, 2.5]);
}
