//! Recurrent networks and cells against PyTorch's numbers (`tests/golden/recurrent.json`), and what PyTorch's do at the edges:
//! batches of any size, views, long sequences, dropout between layers, sequences without steps.

mod golden;

use golden::{assert_close, numbers, tensor};
use serde_json::Value;
use warpsmith::autograd::Grads;
use warpsmith::nn::{
    Activation, Cx, GRU, GRUCell, LSTM, LSTMCell, Module, RNN, RNNCell, RecurrentOptions, Scope,
};
use warpsmith::{Arena, DType, Device, ErrorKind, Result, Tensor};

fn options(args: &Value) -> RecurrentOptions {
    RecurrentOptions {
        num_layers: args["num_layers"].as_u64().unwrap() as usize,
        bidirectional: args["bidirectional"].as_bool().unwrap(),
        dropout: 0.0,
        bias: args["bias"].as_bool().unwrap(),
        batch_first: args["batch_first"].as_bool().unwrap(),
    }
}

/// A network or cell of a case: its parameters, and its forward pass by the names of the outputs.
type Forward =
    Box<dyn Fn(&Tensor, Option<(&Tensor, Option<&Tensor>)>) -> Result<Vec<(&'static str, Tensor)>>>;

fn build(case: &Value, scope: &Scope) -> Forward {
    let (args, x) = (&case["args"], numbers(&case["inputs"]["x"]["shape"]));
    let inputs = *x.last().unwrap() as usize;
    let state = if case["outputs"]["h_n"].is_object() { "h_n" } else { "h" };
    let hidden = *numbers(&case["outputs"][state]["shape"]).last().unwrap() as usize;
    let activation = if args["nonlinearity"] == "relu" { Activation::Relu } else { Activation::Tanh };
    let pair = |s: Option<(&Tensor, Option<&Tensor>)>| s.map(|(h, c)| (h.clone(), c.unwrap().clone()));
    match case["op"].as_str().unwrap() {
        "lstm" => {
            let net = LSTM::new(scope, inputs, hidden, options(args)).unwrap();
            Box::new(move |x, states| {
                let states = pair(states);
                let states = states.as_ref().map(|(h, c)| (h, c));
                let (y, (h, c)) = net.forward_with_state(&mut Cx::eval(), x, states)?;
                Ok(vec![("y", y), ("h_n", h), ("c_n", c)])
            })
        }
        "gru" => {
            let net = GRU::new(scope, inputs, hidden, options(args)).unwrap();
            Box::new(move |x, states| {
                let (y, h) = net.forward_with_state(&mut Cx::eval(), x, states.map(|s| s.0))?;
                Ok(vec![("y", y), ("h_n", h)])
            })
        }
        "rnn" => {
            let net = RNN::new(scope, inputs, hidden, options(args)).unwrap();
            let net = net.with_nonlinearity(activation).unwrap();
            Box::new(move |x, states| {
                let (y, h) = net.forward_with_state(&mut Cx::eval(), x, states.map(|s| s.0))?;
                Ok(vec![("y", y), ("h_n", h)])
            })
        }
        cell => {
            let bias = args["bias"].as_bool().unwrap();
            match cell {
                "lstm_cell" => {
                    let make = if bias { LSTMCell::new } else { LSTMCell::without_bias };
                    let cell = make(scope, inputs, hidden).unwrap();
                    Box::new(move |x, states| {
                        let states = pair(states);
                        let states = states.as_ref().map(|(h, c)| (h, c));
                        let (h, c) = cell.forward_with_state(&mut Cx::eval(), x, states)?;
                        Ok(vec![("h", h), ("c", c)])
                    })
                }
                "gru_cell" => {
                    let make = if bias { GRUCell::new } else { GRUCell::without_bias };
                    let cell = make(scope, inputs, hidden).unwrap();
                    Box::new(move |x, states| {
                        let h = cell.forward_with_state(&mut Cx::eval(), x, states.map(|s| s.0))?;
                        Ok(vec![("h", h)])
                    })
                }
                "rnn_cell" => {
                    let make = if bias { RNNCell::new } else { RNNCell::without_bias };
                    let cell = make(scope, inputs, hidden).unwrap().with_nonlinearity(activation).unwrap();
                    Box::new(move |x, states| {
                        let h = cell.forward_with_state(&mut Cx::eval(), x, states.map(|s| s.0))?;
                        Ok(vec![("h", h)])
                    })
                }
                other => panic!("unknown op {other}"),
            }
        }
    }
}

/// All gradients of Σ outputs · dy.
fn gradients(arena: &Arena, outputs: &[(&str, Tensor)], dy: &Value, dtype: DType) -> Grads {
    let terms: Vec<Tensor> = outputs
        .iter()
        .map(|(name, t)| t.mul(&tensor(&dy[*name], dtype)).unwrap().sum(&[], false).unwrap())
        .collect();
    let loss = terms[1..].iter().fold(terms[0].clone(), |sum, t| sum.add(t).unwrap());
    arena.backward(&loss).unwrap()
}

#[test]
fn networks_and_cells_follow_pytorch() {
    for case in golden::cases(&golden::read("recurrent"), 31) {
        let name = case["name"].as_str().unwrap();
        for (dtype, rtol) in [(DType::F64, 1e-11), (DType::F32, 1e-5)] {
            let arena = Arena::new(dtype, Device::Cpu).unwrap();
            let forward = build(case, &Scope::new(&arena, 0));
            let parameters = case["parameters"].as_object().unwrap();
            let names: Vec<String> = arena.params().unwrap().iter().map(|p| p.name()).collect();
            assert_eq!(names.len(), parameters.len(), "{name}: {names:?}");
            for (key, value) in parameters {
                arena.param(key).unwrap().set(&tensor(value, dtype)).unwrap();
            }
            let inputs = golden::inputs(case, dtype);
            let states = inputs.get("h0").map(|h| (h, inputs.get("c0")));
            let outputs = forward(&inputs["x"], states).unwrap_or_else(|e| panic!("{name}, {dtype}: {e}"));
            assert_eq!(outputs.len(), case["outputs"].as_object().unwrap().len());
            for (key, output) in &outputs {
                assert_close(&format!("{name}, {dtype}, {key}"), output, &case["outputs"][*key], rtol);
            }
            let found = gradients(&arena, &outputs, &case["dy"], dtype);
            for (key, want) in case["grads"].as_object().unwrap() {
                let what = format!("{name}, {dtype}, gradient of {key}");
                let got = match inputs.get(key.as_str()) {
                    Some(leaf) => found.get(leaf).cloned(),
                    None => arena.param(key).unwrap().grad().unwrap(),
                };
                assert_close(&what, &got.unwrap_or_else(|| panic!("{what}: none")), want, 10.0 * rtol);
            }
        }
    }
}

/// Numbers between −1 and 1.
fn values(shape: [usize; 3], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let random = warpsmith::random::Philox::new(seed, 1);
    let data: Vec<f32> = (0..n as u64).map(|i| 2.0 * random.uniform_f32_at(i) - 1.0).collect();
    Tensor::from_slice(&data, shape, Device::Cpu).unwrap()
}

/// Whole networks by name, with bidirectional layers, each in an arena of its own.
fn networks(options: RecurrentOptions) -> Vec<(&'static str, Box<dyn Module>)> {
    let arena = || Arena::new(DType::F32, Device::Cpu).unwrap();
    let scope = |arena: &Arena| Scope::new(arena, 5);
    let (inputs, hidden) = (7, 19);
    vec![
        ("lstm", Box::new(LSTM::new(&scope(&arena()), inputs, hidden, options).unwrap())),
        ("gru", Box::new(GRU::new(&scope(&arena()), inputs, hidden, options).unwrap())),
        ("rnn", Box::new(RNN::new(&scope(&arena()), inputs, hidden, options).unwrap())),
    ]
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_row_has_the_same_bits_in_every_batch_view_and_pool() {
    let options = RecurrentOptions { num_layers: 2, bidirectional: true, ..RecurrentOptions::default() };
    for (name, net) in networks(options) {
        let x = values([9, 70, 7], 3);
        let whole = net.forward(&mut Cx::eval(), &x).unwrap();
        for row in [0, 1, 35, 69] {
            let one = x.narrow(1, row, 1).unwrap();
            let alone = net.forward(&mut Cx::eval(), &one).unwrap();
            assert_eq!(bits(&alone), bits(&whole.narrow(1, row, 1).unwrap()), "{name}, row {row}");
        }
        for threads in [1, 2, 3, 7] {
            let run = || net.forward(&mut Cx::eval(), &x).map(|y| bits(&y));
            let got = warpsmith::cpu::par::with_threads(threads, run).unwrap().unwrap();
            assert_eq!(got, bits(&whole), "{name} on {threads} threads");
        }
    }
    // The same parameters, and the batch in front: a view of the same numbers.
    for ((name, net), (_, other)) in
        networks(options).into_iter().zip(networks(RecurrentOptions { batch_first: true, ..options }))
    {
        let x = values([9, 5, 7], 4);
        let y = net.forward(&mut Cx::eval(), &x).unwrap();
        let swapped = other.forward(&mut Cx::eval(), &x.transpose(0, 1).unwrap()).unwrap();
        assert_eq!(swapped.dims(), [5, 9, 38]);
        assert_eq!(bits(&swapped.transpose(0, 1).unwrap()), bits(&y), "{name}");
    }
}

#[test]
fn a_thousand_steps_stay_finite() {
    for (name, net) in networks(RecurrentOptions::default()) {
        let x = values([1000, 3, 7], 8).mul_scalar(4.0).unwrap();
        let arena = net.params()[0].arena().clone();
        let y = net.forward(&mut Cx::eval(), &x).unwrap();
        assert!(y.to_vec::<f32>().unwrap().iter().all(|v| v.abs() <= 1.0), "{name}");
        arena.backward(&y.sum(&[], false).unwrap()).unwrap();
        for parameter in net.params() {
            let grad = parameter.grad().unwrap().unwrap().to_vec::<f32>().unwrap();
            assert!(grad.iter().all(|g| g.is_finite()), "{name}: {}", parameter.name());
            assert!(grad.iter().any(|g| *g != 0.0), "{name}: {}", parameter.name());
        }
    }
}

#[test]
fn sequences_without_steps_are_refused_and_empty_batches_are_not() {
    for (name, net) in networks(RecurrentOptions::default()) {
        let error = net.forward(&mut Cx::eval(), &values([0, 3, 7], 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shape, "{name}: {error}");
        assert!(error.to_string().contains("length 0"), "{name}: {error}");
        let error = net.forward(&mut Cx::eval(), &values([4, 3, 8], 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shape, "{name}: {error}");
        assert_eq!(net.forward(&mut Cx::eval(), &values([4, 0, 7], 1)).unwrap().dims(), [4, 0, 19], "{name}");
    }
    let arena = Arena::new(DType::F32, Device::Cpu).unwrap();
    let scope = Scope::new(&arena, 0);
    for options in [
        RecurrentOptions { num_layers: 0, ..RecurrentOptions::default() },
        RecurrentOptions { dropout: 1.5, ..RecurrentOptions::default() },
    ] {
        assert_eq!(LSTM::new(&scope, 3, 4, options).err().unwrap().kind(), ErrorKind::Argument);
    }
    assert_eq!(
        GRU::new(&scope, 3, 0, RecurrentOptions::default()).err().unwrap().kind(),
        ErrorKind::Argument
    );
    let net = RNN::new(&scope, 3, 4, RecurrentOptions::default()).unwrap();
    let state = values([2, 3, 4], 1);
    let error = net.forward_with_state(&mut Cx::eval(), &values([2, 3, 3], 1), Some(&state)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape, "{error}");
    assert_eq!(net.with_nonlinearity(Activation::Gelu).err().unwrap().kind(), ErrorKind::Argument);
}

#[test]
fn dropout_acts_between_layers_while_training_and_follows_the_place_in_the_batch() {
    let options = RecurrentOptions { num_layers: 2, dropout: 0.5, ..RecurrentOptions::default() };
    for (name, net) in networks(options) {
        let x = values([6, 8, 7], 2);
        let block = net.params()[0].arena().step_block().clone();
        let train = || Cx::train(&block, 3).unwrap();
        let whole = net.forward(&mut train(), &x).unwrap();
        assert_ne!(bits(&whole), bits(&net.forward(&mut Cx::eval(), &x).unwrap()), "{name}");
        let rest = x.narrow(1, 3, 5).unwrap();
        let part = net.forward(&mut train().with_first_sample(3), &rest).unwrap();
        assert_eq!(bits(&part), bits(&whole.narrow(1, 3, 5).unwrap()), "{name}");
    }
}
