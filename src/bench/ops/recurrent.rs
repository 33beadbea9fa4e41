//! The rows of recurrent networks: two layers of width 128 over 64 steps of a batch of 64, and their definition step by step.

#![forbid(unsafe_code)]

use super::Cases;
use crate::nn::Activation;
use crate::ops::Direction;
use crate::{DType, Result, Tensor};

const STEPS: usize = 64;
const BATCH: usize = 64;
const INPUTS: usize = 64;
const HIDDEN: usize = 128;

/// x, and of each layer the weights of input and state and their biases.
fn inputs(cases: &Cases, gates: usize) -> Result<Vec<Tensor>> {
    let mut all = vec![cases.normal(&[STEPS, BATCH, INPUTS], 20)?];
    for (layer, width) in [INPUTS, HIDDEN].into_iter().enumerate() {
        let shapes: [&[usize]; 4] =
            [&[gates * HIDDEN, width], &[gates * HIDDEN, HIDDEN], &[gates * HIDDEN], &[gates * HIDDEN]];
        for (k, shape) in shapes.into_iter().enumerate() {
            let stream = 21 + 4 * layer + k;
            let values = cases.normal(shape, stream as u64)?.to_vec::<f32>()?;
            // The spread that PyTorch's initialisation has.
            let values: Vec<f32> = values.iter().map(|v| v / (3.0 * HIDDEN as f32).sqrt()).collect();
            all.push(Tensor::from_slice(&values, shape, cases.device)?);
        }
    }
    Ok(all)
}

/// Both layers, one after the other; `layer(xw, zeros, w_hh, b_hh)`.
fn forward(
    t: &[Tensor],
    bias_outside: bool,
    layer: impl Fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let zeros = Tensor::zeros([BATCH, HIDDEN], DType::F32, t[0].device())?;
    let mut x = t[0].clone();
    for p in t[1..].chunks_exact(4) {
        let bias = if bias_outside { p[2].add(&p[3])? } else { p[2].clone() };
        x = layer(&x.linear(&p[0], Some(&bias), Activation::Identity)?, &zeros, &p[1], &p[3])?;
    }
    Ok(x)
}

/// Element `i` of the last layer's output by `step(from x, from h, h, c) -> (h', c')`, a unit's sums gate by gate.
fn element(
    v: &[Vec<f32>],
    i: usize,
    gates: usize,
    step: impl Fn(&[f64], &[f64], f64, f64) -> (f64, f64),
) -> f64 {
    let (t, row, unit) = (i / (BATCH * HIDDEN), i / HIDDEN % BATCH, i % HIDDEN);
    let mut x: Vec<Vec<f64>> = (0..=t)
        .map(|t| v[0][(t * BATCH + row) * INPUTS..][..INPUTS].iter().map(|&x| x as f64).collect())
        .collect();
    for p in v[1..].chunks_exact(4) {
        let (mut h, mut c) = (vec![0.0; HIDDEN], vec![0.0; HIDDEN]);
        let sum = |w: &[f32], bias: &[f32], x: &[f64], j: usize| {
            let w = &w[j * x.len()..][..x.len()];
            w.iter().zip(x).map(|(&w, x)| w as f64 * x).sum::<f64>() + bias[j] as f64
        };
        for x in &mut x {
            let unit = |u: usize| {
                let a: Vec<f64> = (0..gates).map(|q| sum(&p[0], &p[2], x, q * HIDDEN + u)).collect();
                let b: Vec<f64> = (0..gates).map(|q| sum(&p[1], &p[3], &h, q * HIDDEN + u)).collect();
                step(&a, &b, h[u], c[u])
            };
            (h, c) = (0..HIDDEN).map(unit).unzip();
            x.clone_from(&h);
        }
    }
    x[t][unit]
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Adds the rows.
pub(super) fn add(cases: &mut Cases) -> Result<()> {
    let tensors = inputs(cases, 4)?;
    cases.add(
        "lstm",
        &tensors.iter().collect::<Vec<_>>(),
        |t| forward(t, true, |xw, zeros, w, _| Ok(xw.lstm(zeros, zeros, w, Direction::Forward)?.0)),
        |v, i| {
            element(v, i, 4, |a, b, _, c| {
                let [i, f, g, o] = [0, 1, 2, 3].map(|q| a[q] + b[q]);
                let c = sigmoid(f) * c + sigmoid(i) * g.tanh();
                (sigmoid(o) * c.tanh(), c)
            })
        },
    );
    let tensors = inputs(cases, 3)?;
    cases.add(
        "gru",
        &tensors.iter().collect::<Vec<_>>(),
        |t| forward(t, false, |xw, zeros, w, b| xw.gru(zeros, w, Some(b), Direction::Forward)),
        |v, i| {
            element(v, i, 3, |a, b, h, _| {
                let (r, z) = (sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1]));
                let n = (a[2] + r * b[2]).tanh();
                ((1.0 - z) * n + z * h, 0.0)
            })
        },
    );
    let tensors = inputs(cases, 1)?;
    cases.add(
        "rnn",
        &tensors.iter().collect::<Vec<_>>(),
        |t| forward(t, true, |xw, zeros, w, _| xw.rnn(zeros, w, Activation::Tanh, Direction::Forward)),
        |v, i| element(v, i, 1, |a, b, _, _| ((a[0] + b[0]).tanh(), 0.0)),
    );
    Ok(())
}
