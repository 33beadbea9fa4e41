//! Convolutional, residual and recurrent networks trained on a GPU, the simulated one: the losses are the CPU's, the bits are
//! the same under every schedule, and the race and address checks find nothing.

#![cfg(feature = "train")]

use warpsmith::data::{Targets, Task};
use warpsmith::device::sim::{Order, SimOptions, Timing};
use warpsmith::nn::Cx;
use warpsmith::optim::{Adam, Optimizer};
use warpsmith::tensor::no_grad;
use warpsmith::train::{Architecture, Model, Network};
use warpsmith::{Device, Result, Tensor};

const ROWS: usize = 6;

/// A few layers of each kind that the named networks lack.
const STACK: &str = r#"
input = "image"
layers = [
    { type = "conv2d", out_channels = 4, kernel_size = 3, padding = 1, groups = 2, bias = false },
    { type = "batch_norm2d" },
    { type = "gelu" },
    { type = "residual", layers = [
        { type = "conv2d", out_channels = 6, kernel_size = 3, stride = 2, padding = 1 },
        { type = "group_norm", num_groups = 3 },
    ], shortcut = [{ type = "conv2d", out_channels = 6, kernel_size = 1, stride = 2 }] },
    { type = "upsample", scale_factor = 2, mode = "bilinear" },
    { type = "avg_pool2d", kernel_size = 3, stride = 2, padding = 1 },
    { type = "adaptive_avg_pool2d", output_size = 2 },
    { type = "dropout", p = 0.2 },
]
"#;

fn networks() -> Vec<(Network, Vec<usize>)> {
    let named = |name: &str| name.parse::<Network>().unwrap();
    vec![
        (named("cnn:5,6"), vec![2, 8, 9]),
        (Network::from_toml(STACK, "stack", None, None).unwrap().unwrap(), vec![2, 8, 6]),
        (Network::by_name("lstm:9x2", None, Some(0.3)).unwrap(), vec![1, 7, 5]),
        (named("gru:9"), vec![1, 7, 5]),
        (named("rnn:9"), vec![1, 7, 5]),
    ]
}

/// The losses of some steps, the loss in evaluation behind them, and the bits of all parameters and buffers.
fn trained(device: Device, network: &Network, input: &[usize], steps: usize) -> Result<(Vec<f64>, Vec<u8>)> {
    let model = Model::new(Architecture::new(Task::Multiclass, input, 4, network.clone()), 3, device)?;
    let mut adam = Optimizer::new(model.arena(), Adam::default(), 3e-3)?;
    let shape: Vec<usize> = [&[ROWS], input].concat();
    let values =
        (0..shape.iter().product::<usize>() as u64).map(|i| (i * 2654435761 % 10007) as f32 / 5003.5 - 1.0);
    let x = Tensor::from_slice(&values.collect::<Vec<_>>(), shape, device)?;
    let targets = model.targets(&Targets::Classes((0..ROWS as i64).map(|i| i % 4).collect()))?;
    let mut losses = Vec::new();
    for _ in 0..steps {
        let mut cx = Cx::train(model.arena().step_block(), 7)?;
        let loss = model.loss(&model.forward(&mut cx, &x)?, &targets)?;
        model.arena().backward(&loss)?;
        adam.step()?;
        losses.push(loss.item()?);
    }
    losses.push(no_grad(|| model.loss(&model.forward(&mut Cx::eval(), &x)?, &targets)?.item())?);
    let bits = model.state()?.iter().flat_map(|(_, tensor)| tensor.bytes().to_vec()).collect();
    Ok((losses, bits))
}

#[test]
fn networks_train_as_on_the_cpu() {
    for (network, input) in networks() {
        let (cpu, _) = trained(Device::Cpu, &network, &input, 12).unwrap();
        let (sim, bits) = trained(Device::sim(), &network, &input, 12).unwrap();
        for (step, (a, b)) in cpu.iter().zip(&sim).enumerate() {
            assert!(
                (a - b).abs() <= 2e-4 * (1.0 + a.abs()),
                "{network}, step {step}: {a} on the CPU, {b} here"
            );
        }
        assert!(sim[11] < sim[0], "{network} learnt nothing: {sim:?}");
        let options =
            SimOptions { order: Order::Pct, timing: Timing::Random, seed: 11, ..SimOptions::default() };
        let again = trained(Device::sim_with(options), &network, &input, 12).unwrap();
        assert!(again == (sim, bits), "{network}: other bits under another schedule");
    }
}

#[test]
fn the_checks_find_nothing_in_their_steps() {
    for (network, input) in networks() {
        let options =
            SimOptions { order: Order::Random, timing: Timing::Random, checked: true, ..Default::default() };
        let device = Device::sim_with(options);
        trained(device, &network, &input, 2).unwrap_or_else(|e| panic!("{network}: {e}"));
    }
}
