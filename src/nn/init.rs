//! Initial values of parameters. Names, formulas and defaults are PyTorch's (`torch.nn.init`).
//!
//! Values are drawn on the host, in f64, from a Philox stream that depends on the seed and the parameter's place in the
//! model alone: the same seed gives the same model on every machine and device.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::param::Buffer;
use crate::random::Philox;
use crate::shape::IntoShape;
use crate::{Arena, DType, Error, Param, Result, Shape};

/// Streams below this number belong to dropout and data; initialisation takes those from it on.
const STREAM: u64 = 1 << 63;

/// Which count of connections a variance is kept over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fan {
    /// Inputs: keeps the variance in the forward pass.
    #[default]
    In,
    /// Outputs: keeps the variance in the backward pass.
    Out,
}

/// How the values of a parameter are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All the same.
    Constant(f64),
    /// Uniform in `[low, high)`.
    Uniform {
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Uniform with variance `gain²· 2 / (fan_in + fan_out)`.
    XavierUniform {
        /// See [`gain`].
        gain: f64,
    },
    /// Normal with variance `gain² · 2 / (fan_in + fan_out)`.
    XavierNormal {
        /// See [`gain`].
        gain: f64,
    },
    /// Uniform with variance `gain² / fan`.
    KaimingUniform {
        /// See [`gain`].
        gain: f64,
        /// Inputs or outputs.
        fan: Fan,
    },
    /// Normal with variance `gain² / fan`.
    KaimingNormal {
        /// See [`gain`].
        gain: f64,
        /// Inputs or outputs.
        fan: Fan,
    },
    /// A matrix of orthonormal rows or columns, whichever are fewer, times `gain`.
    Orthogonal {
        /// Factor.
        gain: f64,
    },
}

/// The gain that keeps the variance through a nonlinearity, by PyTorch's name of it: `linear`, `sigmoid`, `tanh`, `relu`,
/// `leaky_relu` (with its slope as `parameter`).
pub fn gain(nonlinearity: &str, parameter: f64) -> Result<f64> {
    match nonlinearity {
        "linear" | "sigmoid" => Ok(1.0),
        "tanh" => Ok(5.0 / 3.0),
        "relu" => Ok(2f64.sqrt()),
        "leaky_relu" => Ok((2.0 / (1.0 + parameter * parameter)).sqrt()),
        other => Err(Error::argument(format!("no gain is known for the nonlinearity {other:?}"))),
    }
}

/// Inputs and outputs of a weight `[out, in, ..]`; further dimensions count as kernel size.
fn fans(shape: &Shape) -> Result<(f64, f64)> {
    if shape.rank() < 2 {
        let message = format!("a parameter of shape {shape} has no fan: at least [out, in] is needed");
        return Err(Error::shape("init", message));
    }
    let kernel: usize = shape[2..].iter().product();
    Ok(((shape[1] * kernel) as f64, (shape[0] * kernel) as f64))
}

impl Init {
    /// The default of PyTorch's linear layers for weights: `kaiming_uniform_(a = √5)`, which is U(−1/√in, 1/√in).
    pub fn linear_weight() -> Init {
        Init::KaimingUniform { gain: (1f64 / 3.0).sqrt(), fan: Fan::In }
    }

    /// The default of PyTorch's linear layers for biases: U(−1/√in, 1/√in).
    pub fn linear_bias(inputs: usize) -> Init {
        let bound = if inputs == 0 { 0.0 } else { 1.0 / (inputs as f64).sqrt() };
        Init::Uniform { low: -bound, high: bound }
    }

    /// The values of a parameter of `shape` in row-major order, from stream `stream` of `seed`.
    pub fn draw(&self, shape: &Shape, seed: u64, stream: u64) -> Result<Vec<f64>> {
        let random = Philox::new(seed, STREAM | stream);
        let n = shape.numel();
        let uniform = |low: f64, high: f64| -> Vec<f64> {
            (0..n as u64).map(|i| low + (high - low) * random.uniform_f64_at(i)).collect()
        };
        let normal = |mean: f64, std: f64| -> Vec<f64> {
            (0..n.div_ceil(2) as u64)
                .flat_map(|i| random.normal_pair_at(i))
                .take(n)
                .map(|z| mean + std * z)
                .collect()
        };
        let spread = |fan: f64, gain: f64| if fan == 0.0 { 0.0 } else { gain / fan.sqrt() };
        let of_fan =
            |fan: Fan| fans(shape).map(|(inputs, outputs)| if fan == Fan::In { inputs } else { outputs });
        let mean_fan = || fans(shape).map(|(inputs, outputs)| (inputs + outputs) / 2.0);
        // A uniform distribution of standard deviation s reaches √3 s to both sides.
        let symmetric = |std: f64| uniform(-3f64.sqrt() * std, 3f64.sqrt() * std);
        Ok(match *self {
            Init::Constant(value) => vec![value; n],
            Init::Uniform { low, high } => uniform(low, high),
            Init::Normal { mean, std } => normal(mean, std),
            Init::XavierUniform { gain } => symmetric(spread(mean_fan()?, gain)),
            Init::XavierNormal { gain } => normal(0.0, spread(mean_fan()?, gain)),
            Init::KaimingUniform { gain, fan } => symmetric(spread(of_fan(fan)?, gain)),
            Init::KaimingNormal { gain, fan } => normal(0.0, spread(of_fan(fan)?, gain)),
            Init::Orthogonal { gain } => {
                fans(shape)?;
                let rows = shape[0];
                let mut matrix = normal(0.0, 1.0);
                orthonormalise(&mut matrix, rows, n / rows.max(1));
                matrix.iter_mut().for_each(|v| *v *= gain);
                matrix
            }
        })
    }
}

/// Makes the rows of `matrix` `[rows, cols]` (its columns, if those are fewer) orthonormal: Gram–Schmidt, twice, which
/// leaves an error of a few roundings. The result is uniformly distributed if the entries are independent and normal.
fn orthonormalise(matrix: &mut [f64], rows: usize, cols: usize) {
    let (count, length, step, stride) =
        if rows <= cols { (rows, cols, 1, cols) } else { (cols, rows, cols, 1) };
    for i in 0..count {
        for _ in 0..2 {
            for j in 0..i {
                let dot: f64 =
                    (0..length).map(|k| matrix[i * stride + k * step] * matrix[j * stride + k * step]).sum();
                (0..length)
                    .for_each(|k| matrix[i * stride + k * step] -= dot * matrix[j * stride + k * step]);
            }
            let norm = (0..length).map(|k| matrix[i * stride + k * step].powi(2)).sum::<f64>().sqrt();
            (0..length).for_each(|k| matrix[i * stride + k * step] /= norm);
        }
    }
}

/// A place in a model under construction: an arena, the prefix of names, and the random state of initial values.
///
/// ```
/// use warpsmith::{Arena, DType, Device, nn::{Init, Scope}};
/// let arena = Arena::new(DType::F32, Device::cpu())?;
/// let scope = Scope::new(&arena, 42);
/// let weight = scope.enter("encoder").enter(0).param("weight", [3, 4], Init::linear_weight())?;
/// assert_eq!(weight.name(), "encoder.0.weight");
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone)]
pub struct Scope {
    arena: Arena,
    prefix: String,
    seed: u64,
    /// The number of parameters drawn so far: the next stream.
    drawn: Arc<AtomicU64>,
}

impl Scope {
    /// The root of a model whose initial values follow from `seed`.
    pub fn new(arena: &Arena, seed: u64) -> Scope {
        Scope { arena: arena.clone(), prefix: String::new(), seed, drawn: Arc::default() }
    }

    /// A child: its parameters' names start with this one's prefix, `name` and a dot.
    pub fn enter(&self, name: impl std::fmt::Display) -> Scope {
        Scope { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The arena that parameters go to.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Registers a parameter, initialised by `init`.
    pub fn param(&self, name: &str, shape: impl IntoShape, init: Init) -> Result<Param> {
        let shape = shape.into_shape()?;
        let values = init.draw(&shape, self.seed, self.drawn.fetch_add(1, Relaxed))?;
        self.arena.register(format!("{}{name}", self.prefix), shape, &values)
    }

    /// Registers a buffer, all `value` at first; see [`Arena::register_buffer`].
    pub fn buffer(&self, name: &str, shape: impl IntoShape, dtype: DType, value: f64) -> Result<Buffer> {
        self.arena.register_buffer(format!("{}{name}", self.prefix), shape, dtype, value)
    }
}
