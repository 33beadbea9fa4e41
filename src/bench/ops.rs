//! Single ops at fixed sizes: the rows of `bench ops`, the same as those of `benches/compare/ops_torch.py`.
//!
//! A row `NAME` is the forward call with nothing recorded, a row `NAME_backward` the backward pass alone from a dense
//! gradient of ones. Before a row is timed its result is checked: forward, some elements against their definition in f64;
//! backward, one random direction against the difference of two forward calls.

#![forbid(unsafe_code)]

mod convolution;
mod moving;
mod pooling;
mod recurrent;

use std::time::Duration;

use super::{Times, below, normal, wrong};
use crate::autograd::backward_from;
use crate::nn::Activation;
use crate::ops::{BceWithLogits, CrossEntropy, Reduction};
use crate::optim::{Adam, Optimizer};
use crate::tensor::no_grad;
use crate::{Arena, DType, Device, Error, Result, Tensor};

/// Rows and columns of the matrices that most ops are timed on.
const N: usize = 1024;

/// What to time.
#[derive(Clone, Debug)]
pub struct OpsBench {
    /// Only these rows; all where it is empty.
    pub only: Vec<String>,
    /// How long a row is timed, at least.
    pub time: Duration,
    /// Where to run.
    pub device: Device,
}

/// The time of one op.
#[derive(Clone, Debug, PartialEq)]
pub struct OpRow {
    /// The row's name.
    pub op: String,
    /// Median microseconds of a call.
    pub median_us: f64,
}

type Forward = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;
/// What output element number `i` is by definition, from the inputs' values.
type Expected = Box<dyn Fn(&[Vec<f32>], usize) -> f64>;

/// An op with its inputs and its definition.
struct OpCase {
    name: &'static str,
    /// All are differentiated where there is a backward row.
    inputs: Vec<Tensor>,
    forward: Forward,
    expected: Expected,
    /// Whether there is a gradient to time.
    backward: bool,
    /// Half the length of the difference that checks the gradient: large where the output is one number with few bits for a
    /// small difference, small where the op has kinks.
    probe: f64,
}

impl OpsBench {
    /// Times the rows, in the order of the list.
    ///
    /// # Errors
    /// Kind `Argument`: `only` has a name that no row has; kind `Diverged`: a check failed.
    pub fn run(&self) -> Result<Vec<OpRow>> {
        let cases = cases(self.device)?;
        let backward = cases.iter().filter(|c| c.backward).map(|c| format!("{}_backward", c.name));
        let mut known: Vec<String> = cases.iter().map(|c| c.name.to_owned()).chain(backward).collect();
        known.push("adam_1m".to_owned());
        if let Some(name) = self.only.iter().find(|name| !known.contains(name)) {
            return Err(Error::argument(format!("--only {name}: there is no such row"))
                .with_help(format!("the rows are: {}", known.join(", "))));
        }
        let wanted = |name: &str| self.only.is_empty() || self.only.iter().any(|only| only == name);
        let mut rows = Vec::new();
        for case in &cases {
            if wanted(case.name) {
                rows.push(self.forward(case)?);
            }
            if case.backward && wanted(&format!("{}_backward", case.name)) {
                rows.push(self.backward(case)?);
            }
        }
        if wanted("adam_1m") {
            rows.push(self.adam()?);
        }
        Ok(rows)
    }

    fn row(&self, op: String, f: impl FnMut() -> Result<()>) -> Result<OpRow> {
        let times = Times::of_calls(15, self.time, f)?;
        Ok(OpRow { op, median_us: (times.median() * 1e8).round() / 100.0 })
    }

    fn forward(&self, case: &OpCase) -> Result<OpRow> {
        no_grad(|| {
            let output = (case.forward)(&case.inputs)?.to_f64_vec()?;
            let inputs = case.inputs.iter().map(Tensor::to_vec).collect::<Result<Vec<Vec<f32>>>>()?;
            // First, last, and some between that fall on no regular grid.
            for i in [0, output.len() / 7 * 3 + 5, output.len() / 11 * 8 + 3, output.len() - 1] {
                let i = i.min(output.len() - 1);
                let (got, want) = (output[i], (case.expected)(&inputs, i));
                // Sums of a thousand or a million f32 products: 1e-4 leaves room for their rounding, and for no wrong term.
                if !((got - want).abs() <= 1e-4 * (1.0 + want.abs())) {
                    return Err(wrong(case.name, format!("element {i} is {got}, expected {want}")));
                }
            }
            self.row(case.name.to_owned(), || (case.forward)(&case.inputs).map(drop))
        })
    }

    fn backward(&self, case: &OpCase) -> Result<OpRow> {
        let name = format!("{}_backward", case.name);
        let leaves = case.inputs.iter().map(Tensor::as_leaf).collect::<Result<Vec<_>>>()?;
        let output = (case.forward)(&leaves)?;
        self.check_gradient(case, &name, &leaves, &output)?;
        let ones = Tensor::ones(output.shape(), DType::F32, self.device)?;
        self.row(name, || backward_from(&output, &ones).map(drop))
    }

    /// Compares the gradient along a random direction v with (f(x + hv) − f(x − hv)) / 2h.
    fn check_gradient(&self, case: &OpCase, name: &str, leaves: &[Tensor], output: &Tensor) -> Result<()> {
        let seed: Vec<f32> = if output.rank() == 0 { vec![1.0] } else { normal(output.numel(), 5, 0) };
        let grads = backward_from(output, &Tensor::from_slice(&seed, output.shape(), self.device)?)?;
        let (mut along, mut squares) = (0.0, 0.0);
        let (mut above, mut below) = (Vec::new(), Vec::new());
        for (number, leaf) in leaves.iter().enumerate() {
            let grad =
                grads.get(leaf).ok_or_else(|| wrong(name, format!("input {number} got no gradient")))?;
            let (x, grad) = (leaf.to_vec::<f32>()?, grad.to_f64_vec()?);
            let v = normal(x.len(), 6, number as u64);
            along += grad.iter().zip(&v).map(|(g, &v)| g * v as f64).sum::<f64>();
            squares += grad.iter().map(|g| g * g).sum::<f64>();
            let moved = |h: f64| -> Result<Tensor> {
                let x: Vec<f32> = x.iter().zip(&v).map(|(&x, &v)| (x as f64 + h * v as f64) as f32).collect();
                Tensor::from_slice(&x, leaf.shape(), self.device)
            };
            above.push(moved(case.probe)?);
            below.push(moved(-case.probe)?);
        }
        let value = |inputs: &[Tensor]| -> Result<f64> {
            let output = no_grad(|| (case.forward)(inputs))?.to_f64_vec()?;
            Ok(output.iter().zip(&seed).map(|(y, &s)| y * s as f64).sum())
        };
        let difference = (value(&above)? - value(&below)?) / (2.0 * case.probe);
        // A random direction sees a gradient of length L as a number of about L; rounding and kinks cost a few percent of it.
        if !((along - difference).abs() <= 0.1 * squares.sqrt()) {
            let message = format!("the gradient along a direction is {along}, its difference {difference}");
            return Err(wrong(name, message));
        }
        Ok(())
    }

    /// One Adam step over a million parameters.
    fn adam(&self) -> Result<OpRow> {
        const COUNT: usize = 1_000_000;
        let arena = Arena::new(DType::F32, self.device)?;
        let start: Vec<f64> = normal(COUNT, 7, 0).into_iter().map(f64::from).collect();
        let param = arena.register("p", COUNT, &start)?;
        let gradient = normal(COUNT, 7, 1);
        arena.grads()?.narrow(0, 0, COUNT)?.copy_(&Tensor::from_slice(&gradient, COUNT, self.device)?)?;
        let mut adam = Optimizer::new(&arena, Adam::default(), 1e-3)?;
        // A step forgets the gradient; here the same one counts as new each time.
        let mut step = || {
            param.set_has_grad();
            adam.step()
        };
        step()?;
        // Adam's first step is the learning rate against the gradient's sign, but for eps.
        for (i, &value) in param.get()?.to_vec::<f32>()?.iter().enumerate().step_by(9973) {
            let g = gradient[i] as f64;
            let want = start[i] - 1e-3 * g / (g.abs() + 1e-8);
            if !((value as f64 - want).abs() <= 1e-6 * (1.0 + want.abs())) {
                return Err(wrong("adam_1m", format!("parameter {i} is {value}, expected {want}")));
            }
        }
        self.row("adam_1m".to_owned(), step)
    }
}

/// erf by its Taylor series, which serves for arguments of a few units.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn logsumexp(row: &[f32]) -> f64 {
    row.iter().map(|&v| (v as f64).exp()).sum::<f64>().ln()
}

fn row_of(values: &[f32], i: usize, width: usize) -> &[f32] {
    &values[i / width * width..][..width]
}

/// The mean and the standard deviation of a row.
fn moments(row: &[f32]) -> (f64, f64) {
    let mean = row.iter().map(|&v| v as f64).sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / row.len() as f64;
    (mean, variance.sqrt())
}

fn mean_of(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    (0..n).map(f).sum::<f64>() / n as f64
}

/// The list, being built.
struct Cases {
    device: Device,
    list: Vec<OpCase>,
}

impl Cases {
    fn add(
        &mut self,
        name: &'static str,
        inputs: &[&Tensor],
        forward: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
        expected: impl Fn(&[Vec<f32>], usize) -> f64 + 'static,
    ) -> &mut OpCase {
        let inputs = inputs.iter().map(|&t| t.clone()).collect();
        let (forward, expected) = (Box::new(forward), Box::new(expected));
        self.list.push(OpCase { name, inputs, forward, expected, backward: true, probe: 1e-3 });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// An op of each element of one tensor.
    fn map(&mut self, name: &'static str, x: &Tensor, op: fn(&Tensor) -> Result<Tensor>, of: fn(f64) -> f64) {
        self.add(name, &[x], move |t| op(&t[0]), move |v, i| of(v[0][i] as f64));
    }

    /// An op whose backward is not timed: there is none, or PyTorch's is a view.
    fn forward_only(
        &mut self,
        name: &'static str,
        inputs: &[&Tensor],
        forward: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
        expected: impl Fn(&[Vec<f32>], usize) -> f64 + 'static,
    ) {
        self.add(name, inputs, forward, expected).backward = false;
    }

    /// A loss of one element.
    fn loss(
        &mut self,
        name: &'static str,
        input: &Tensor,
        forward: impl Fn(&Tensor) -> Result<Tensor> + 'static,
        expected: impl Fn(&[f32]) -> f64 + 'static,
    ) {
        self.add(name, &[input], move |t| forward(&t[0]), move |v, _| expected(&v[0])).probe = 0.1;
    }

    fn normal(&self, shape: &[usize], stream: u64) -> Result<Tensor> {
        Tensor::from_slice(&normal(shape.iter().product(), 1, stream), shape, self.device)
    }

    /// i64 numbers below `bound`, and the same on the device.
    fn below(&self, shape: &[usize], bound: usize, stream: u64) -> Result<(Vec<i64>, Tensor)> {
        let values = below(shape.iter().product(), bound, 2, stream);
        let tensor = Tensor::from_slice(&values, shape, self.device)?;
        Ok((values, tensor))
    }
}

fn cases(device: Device) -> Result<Vec<OpCase>> {
    let mut cases = Cases { device, list: Vec::new() };
    elementwise(&mut cases)?;
    reductions(&mut cases)?;
    losses(&mut cases)?;
    products(&mut cases)?;
    moving::moving(&mut cases)?;
    moving::ordering(&mut cases)?;
    recurrent::add(&mut cases)?;
    pooling::add(&mut cases)?;
    convolution::add(&mut cases)?;
    Ok(cases.list)
}

fn elementwise(cases: &mut Cases) -> Result<()> {
    let (x, other, bias) = (cases.normal(&[N, N], 0)?, cases.normal(&[N, N], 1)?, cases.normal(&[N], 2)?);
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    cases.map("relu", &x, Tensor::relu, |v| v.max(0.0));
    cases.map("gelu", &x, Tensor::gelu, |v| v * 0.5 * (1.0 + erf(v / 2f64.sqrt())));
    cases.map("gelu_tanh", &x, Tensor::gelu_tanh, |v| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
        0.5 * v * (1.0 + inner.tanh())
    });
    cases.map("silu", &x, Tensor::silu, |v| v / (1.0 + (-v).exp()));
    cases.map("sigmoid", &x, Tensor::sigmoid, sigmoid);
    cases.map("tanh", &x, Tensor::tanh, f64::tanh);
    cases.map("exp", &x, Tensor::exp, f64::exp);
    let positive: Vec<f32> = x.to_vec::<f32>()?.iter().map(|v| v.abs() + 0.1).collect();
    let positive = Tensor::from_slice(&positive, x.shape(), cases.device)?;
    cases.map("log", &positive, Tensor::log, f64::ln);
    cases.map("sqrt", &positive, Tensor::sqrt, f64::sqrt);
    cases.forward_only("add", &[&x, &other], |t| t[0].add(&t[1]), |v, i| v[0][i] as f64 + v[1][i] as f64);
    cases.add("add_broadcast", &[&x, &bias], |t| t[0].add(&t[1]), |v, i| v[0][i] as f64 + v[1][i % N] as f64);
    cases.add("mul", &[&x, &other], |t| t[0].mul(&t[1]), |v, i| v[0][i] as f64 * v[1][i] as f64);
    Ok(())
}

fn reductions(cases: &mut Cases) -> Result<()> {
    let x = cases.normal(&[N, N], 0)?;
    let sum = |values: &mut dyn Iterator<Item = &f32>| values.map(|&v| v as f64).sum::<f64>();
    cases.forward_only("sum_all", &[&x], |t| t[0].sum(&[], false), move |v, _| sum(&mut v[0].iter()));
    cases.forward_only(
        "sum_axis0",
        &[&x],
        |t| t[0].sum(&[0], false),
        move |v, i| sum(&mut v[0].iter().skip(i).step_by(N)),
    );
    cases.forward_only(
        "sum_axis1",
        &[&x],
        |t| t[0].sum(&[1], false),
        move |v, i| sum(&mut row_of(&v[0], i * N, N).iter()),
    );
    cases
        .add("mean_all", &[&x], |t| t[0].mean(&[], false), move |v, _| sum(&mut v[0].iter()) / (N * N) as f64)
        .probe = 0.1;
    let max = |row: &[f32]| row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    cases.add("max_axis1", &[&x], |t| t[0].max(&[1], false), move |v, i| max(row_of(&v[0], i * N, N)) as f64);
    cases.forward_only(
        "argmax_axis1",
        &[&x],
        |t| t[0].argmax(&[1], false),
        move |v, i| {
            let row = row_of(&v[0], i * N, N);
            row.iter().position(|&value| value == max(row)).unwrap_or(N) as f64
        },
    );
    cases.add(
        "softmax",
        &[&x],
        |t| t[0].softmax(1),
        |v, i| (v[0][i] as f64 - logsumexp(row_of(&v[0], i, N))).exp(),
    );
    cases.add(
        "log_softmax",
        &[&x],
        |t| t[0].log_softmax(1),
        |v, i| v[0][i] as f64 - logsumexp(row_of(&v[0], i, N)),
    );
    let (weight, bias) = (cases.normal(&[N], 3)?, cases.normal(&[N], 2)?);
    cases.add(
        "layer_norm",
        &[&x, &weight, &bias],
        |t| t[0].layer_norm(N, Some(&t[1]), Some(&t[2]), 1e-5),
        |v, i| {
            let (mean, deviation) = moments(row_of(&v[0], i, N));
            (v[0][i] as f64 - mean) / (deviation.powi(2) + 1e-5).sqrt() * v[1][i % N] as f64
                + v[2][i % N] as f64
        },
    );
    cases.add(
        "rms_norm",
        &[&x, &weight],
        |t| t[0].rms_norm(N, Some(&t[1]), 1e-6),
        |v, i| {
            let (mean, deviation) = moments(row_of(&v[0], i, N));
            v[0][i] as f64 / (mean.powi(2) + deviation.powi(2) + 1e-6).sqrt() * v[1][i % N] as f64
        },
    );
    Ok(())
}

fn losses(cases: &mut Cases) -> Result<()> {
    let (x, other) = (cases.normal(&[N, N], 0)?, cases.normal(&[N, N], 1)?);
    let (classes, target) = cases.below(&[N], N, 0)?;
    cases.loss(
        "cross_entropy",
        &x,
        move |x| x.cross_entropy(&target, CrossEntropy::default()),
        move |x| mean_of(N, |row| logsumexp(&x[row * N..][..N]) - x[row * N + classes[row] as usize] as f64),
    );
    let halves: Vec<f32> = below(N * N, 2, 2, 1).into_iter().map(|v| v as f32).collect();
    let target = Tensor::from_slice(&halves, [N, N], cases.device)?;
    cases.loss(
        "bce_with_logits",
        &x,
        move |x| x.bce_with_logits(&target, BceWithLogits::default()),
        move |x| mean_of(N * N, |i| (x[i] as f64).exp().ln_1p() - x[i] as f64 * halves[i] as f64),
    );
    let values: Vec<f32> = other.to_vec()?;
    cases.loss(
        "mse",
        &x,
        move |x| x.mse_loss(&other, Reduction::Mean),
        move |x| mean_of(N * N, |i| (x[i] as f64 - values[i] as f64).powi(2)),
    );
    Ok(())
}

fn products(cases: &mut Cases) -> Result<()> {
    let dot = |a: &mut dyn Iterator<Item = &f32>, b: &mut dyn Iterator<Item = &f32>| {
        a.zip(b).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>()
    };
    let (a, b) = (cases.normal(&[512, 512], 4)?, cases.normal(&[512, 512], 5)?);
    cases.add(
        "matmul_512",
        &[&a, &b],
        |t| t[0].matmul(&t[1]),
        move |v, i| dot(&mut row_of(&v[0], i, 512).iter(), &mut v[1].iter().skip(i % 512).step_by(512)),
    );
    let (a, b) = (cases.normal(&[16, 128, 128], 4)?, cases.normal(&[16, 128, 128], 5)?);
    cases.add(
        "matmul_batched",
        &[&a, &b],
        |t| t[0].matmul(&t[1]),
        move |v, i| {
            let matrix = row_of(&v[1], i, 128 * 128);
            dot(&mut row_of(&v[0], i, 128).iter(), &mut matrix.iter().skip(i % 128).step_by(128))
        },
    );
    let (x, weight, bias) =
        (cases.normal(&[256, 1000], 4)?, cases.normal(&[500, 1000], 5)?, cases.normal(&[500], 6)?);
    let linear = move |v: &[Vec<f32>], i: usize| {
        let (row, column) = (i / 500, i % 500);
        dot(&mut v[0][row * 1000..][..1000].iter(), &mut v[1][column * 1000..][..1000].iter())
            + v[2][column] as f64
    };
    let inputs = [&x, &weight, &bias];
    cases.add("linear", &inputs, |t| t[0].linear(&t[1], Some(&t[2]), Activation::Identity), linear);
    cases.add(
        "linear_relu",
        &inputs,
        |t| t[0].linear(&t[1], Some(&t[2]), Activation::Relu),
        move |v, i| linear(v, i).max(0.0),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_that_of_the_tables() {
        for (x, value) in
            [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (-2.0, -0.9953222650189527)]
        {
            approx::assert_abs_diff_eq!(erf(x), value, epsilon = 1e-14);
        }
    }

    #[test]
    fn a_wrong_definition_or_gradient_fails_the_check() {
        let bench = OpsBench { only: Vec::new(), time: Duration::ZERO, device: Device::cpu() };
        let x = Tensor::from_slice(&normal(64, 0, 0), [8, 8], Device::cpu()).unwrap();
        let mut cases = Cases { device: Device::cpu(), list: Vec::new() };
        cases.map("exp", &x, Tensor::exp, f64::exp);
        cases.map("exp", &x, Tensor::exp, |v| v.exp() + 0.01);
        // A detached half: the value is right, the gradient lacks a factor of two.
        cases.add("square", &[&x], |t| t[0].mul(&t[0].detach()), |v, i| (v[0][i] as f64).powi(2));
        assert!(bench.forward(&cases.list[0]).is_ok() && bench.backward(&cases.list[0]).is_ok());
        assert_eq!(bench.forward(&cases.list[1]).unwrap_err().kind(), crate::ErrorKind::Diverged);
        assert!(bench.forward(&cases.list[2]).is_ok());
        assert_eq!(bench.backward(&cases.list[2]).unwrap_err().kind(), crate::ErrorKind::Diverged);
    }

    #[test]
    fn unknown_rows_are_refused() {
        let bench = OpsBench { only: vec!["nosuch".into()], time: Duration::ZERO, device: Device::cpu() };
        assert_eq!(bench.run().unwrap_err().kind(), crate::ErrorKind::Argument);
    }
}
