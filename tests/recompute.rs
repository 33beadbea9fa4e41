//! Checkpoints: the gradients of a pass that computes again what it did not keep are those of one that kept it.

use warpsmith::autograd::{backward, checkpoint};
use warpsmith::nn::{Activation, Cx, Linear, Module, Scope};
use warpsmith::{Arena, DType, Device, ErrorKind, Result, Tensor};

const WIDTH: usize = 16;

/// Two layers with dropout between.
#[derive(Clone)]
struct Block(Linear, Linear);

impl Block {
    fn new(scope: &Scope, n: usize) -> Block {
        let scope = scope.enter(n);
        let layer = |name: &str| Linear::new(&scope.enter(name), WIDTH, WIDTH).unwrap();
        Block(layer("a").with_activation(Activation::Gelu), layer("b"))
    }
}

impl Module for Block {
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let h = self.0.forward(cx, x)?;
        let h = cx.dropout(&h, 0.3)?;
        self.1.forward(cx, &h)?.add(x)
    }

    fn params(&self) -> Vec<warpsmith::Param> {
        self.0.params().into_iter().chain(self.1.params()).collect()
    }
}

fn input(device: Device) -> Tensor {
    let values: Vec<f32> = (0..8 * WIDTH).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_slice(&values, [8, WIDTH], device).unwrap()
}

/// Three blocks: the bits of the loss, of all gradients and of the input's.
fn bits(device: Device, recompute: bool, frozen: Option<&str>) -> Vec<u64> {
    let arena = Arena::new(DType::F32, device).unwrap();
    let scope = Scope::new(&arena, 5);
    let blocks: Vec<Block> = (0..3).map(|n| Block::new(&scope, n)).collect();
    if let Some(name) = frozen {
        arena.param(name).unwrap().set_frozen(true);
    }
    let x = input(device).as_leaf().unwrap();
    let mut cx = Cx::train(arena.step_block(), 11).unwrap().with_recompute(recompute);
    let mut y = x.clone();
    for block in blocks {
        y = if cx.recomputes() {
            let again = block.clone();
            let f = move |cx: &mut Cx, inputs: &[Tensor]| Ok(vec![again.forward(cx, &inputs[0])?]);
            cx.checkpoint(&[&y], &block.params(), f).unwrap().swap_remove(0)
        } else {
            block.forward(&mut cx, &y).unwrap()
        };
    }
    let loss = y.mul(&y).unwrap().mean(&[], false).unwrap();
    let mut ready = Vec::new();
    let mut note = |id| ready.push(id);
    let options = warpsmith::autograd::BackwardOptions { ready: Some(&mut note), ..Default::default() };
    let grads = arena.backward_with(&loss, options).unwrap();
    let mut all: Vec<u64> = vec![loss.item().unwrap().to_bits()];
    let mut add = |t: &Tensor| all.extend(t.to_f64_vec().unwrap().iter().map(|v| v.to_bits()));
    for param in arena.params().unwrap().iter().filter(|p| !p.is_frozen()) {
        add(&param.grad().unwrap().unwrap());
    }
    add(grads.get(&x).unwrap());
    ready.sort();
    all.extend(ready.iter().map(|&id| id as u64));
    all
}

#[test]
fn gradients_are_those_of_a_pass_that_kept_everything() {
    for device in [Device::cpu(), Device::sim()] {
        assert_eq!(bits(device, true, None), bits(device, false, None));
        assert_eq!(bits(device, true, Some("1.a.weight")), bits(device, false, Some("1.a.weight")));
    }
}

#[test]
fn a_chain_of_checkpoints_keeps_less() {
    let device = Device::sim();
    let live = |recompute: bool| {
        let stream = device.stream().unwrap();
        let before = stream.memory_report().live_bytes;
        let arena = Arena::new(DType::F32, device).unwrap();
        let scope = Scope::new(&arena, 5);
        let blocks: Vec<Block> = (0..6).map(|n| Block::new(&scope, n)).collect();
        let mut y = Tensor::full([512, WIDTH], 0.1, DType::F32, device).unwrap();
        arena.values().unwrap();
        let mut cx = Cx::train(arena.step_block(), 11).unwrap();
        for block in blocks {
            let again = block.clone();
            y = if recompute {
                let f = move |cx: &mut Cx, inputs: &[Tensor]| Ok(vec![again.forward(cx, &inputs[0])?]);
                cx.checkpoint(&[&y], &block.params(), f).unwrap().swap_remove(0)
            } else {
                block.forward(&mut cx, &y).unwrap()
            };
        }
        stream.memory_report().live_bytes - before
    };
    let (kept, again) = (live(false), live(true));
    assert!(again * 2 < kept, "{again} bytes against {kept}");
}

#[test]
fn without_an_arena_parameters_get_no_gradient_and_inputs_do() {
    let x = input(Device::cpu()).as_leaf().unwrap();
    let square = |inputs: &[Tensor]| Ok(vec![inputs[0].mul(&inputs[0])?, inputs[0].relu()?]);
    let outputs = checkpoint(&[&x], &[], square).unwrap();
    // One of the outputs is not used.
    let grads = backward(&outputs[0].sum(&[], false).unwrap()).unwrap();
    let expected: Vec<f32> = x.to_vec::<f32>().unwrap().iter().map(|v| v + v).collect();
    assert_eq!(grads.get(&x).unwrap().to_vec::<f32>().unwrap(), expected);
}

#[test]
fn a_parameter_that_was_not_named_is_an_error() {
    let arena = Arena::new(DType::F32, Device::cpu()).unwrap();
    let block = Block::new(&Scope::new(&arena, 5), 0);
    let x = input(Device::cpu());
    let again = block.clone();
    let mut cx = Cx::train(arena.step_block(), 11).unwrap();
    let params = &block.params()[1..];
    let f = move |cx: &mut Cx, inputs: &[Tensor]| Ok(vec![again.forward(cx, &inputs[0])?]);
    let y = cx.checkpoint(&[&x], params, f).unwrap().swap_remove(0);
    let error = arena.backward(&y.mean(&[], false).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("0.a.weight"), "{error}");
}
