//! A network for a task: built from its description, with PyTorch's parameter names, and its loss and answers.

#![forbid(unsafe_code)]

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::metrics::{self, Metrics};
use super::network::{self, Network, SummaryRow};
use super::spec::Hidden;
use super::weights;
use crate::data::{Store, Target, Targets, Task};
use crate::io::HostTensor;
use crate::nn::{Cx, Module, Scope, Sequential};
use crate::ops::{BceWithLogits, CrossEntropy, Reduction};
use crate::optim::Input;
use crate::param::Precision;
use crate::tensor::no_grad;
use crate::{Arena, Device, Error, Result, Shape, Tensor};

/// All that is needed to build a network again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ArchitectureFile")]
pub struct Architecture {
    /// What is learnt: decides the loss and what an answer is.
    #[serde(with = "task_name")]
    pub task: Task,
    /// The shape of one example: `[columns]`, `[channels, height, width]`.
    pub input: Vec<usize>,
    /// Numbers an answer: one logit a class, one logit for two classes, one value.
    pub outputs: usize,
    /// What is between.
    pub network: Network,
}

/// [`Architecture`] as it is read: format 1 had an MLP on a row of numbers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchitectureFile {
    #[serde(with = "task_name")]
    task: Task,
    inputs: Option<usize>,
    mlp: Option<MlpOfFormat1>,
    input: Option<Vec<usize>>,
    network: Option<Network>,
    outputs: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MlpOfFormat1 {
    hidden: Vec<usize>,
    activation: Hidden,
    dropout: f64,
}

impl TryFrom<ArchitectureFile> for Architecture {
    type Error = &'static str;

    fn try_from(file: ArchitectureFile) -> Result<Architecture, &'static str> {
        let (input, network) = match (file.input, file.network, file.inputs, file.mlp) {
            (Some(input), Some(network), None, None) => (input, network),
            (None, None, Some(inputs), Some(mlp)) => {
                (vec![inputs], Network::mlp(&mlp.hidden, mlp.activation, mlp.dropout))
            }
            _ => return Err("expected `input` and `network`"),
        };
        Ok(Architecture { task: file.task, input, outputs: file.outputs, network })
    }
}

mod task_name {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::data::Task;

    pub fn serialize<S: Serializer>(task: &Task, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(task.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Task, D::Error> {
        String::deserialize(d)?.parse().map_err(|e: crate::Error| serde::de::Error::custom(e.message()))
    }
}

impl Architecture {
    /// The network for `task` on examples of shape `input`, with `classes` classes (0 for regression).
    pub fn new(task: Task, input: &[usize], classes: usize, network: Network) -> Architecture {
        let outputs = if task == Task::Multiclass { classes } else { 1 };
        Architecture { task, input: input.to_vec(), outputs, network }
    }

    /// Numbers an example.
    pub fn width(&self) -> usize {
        self.input.iter().product()
    }
}

/// A network with its parameters.
pub struct Model {
    architecture: Architecture,
    arena: Arena,
    modules: Sequential,
    summary: Vec<SummaryRow>,
}

/// What a loss compares outputs with.
pub(super) enum Numbers<'a> {
    /// A class a row.
    Classes(Cow<'a, [i64]>),
    /// A number a row, or one for each class.
    Values(Cow<'a, [f32]>, Shape),
}

impl Numbers<'_> {
    /// As what a step takes.
    pub(super) fn input(&self) -> Result<Input<'_>> {
        match self {
            Numbers::Classes(classes) => Input::new(classes, classes.len()),
            Numbers::Values(values, shape) => Input::new(values, *shape),
        }
    }
}

/// Factors of the training loss, one a class.
pub struct ClassFactors {
    values: Vec<f32>,
    /// The same where the model is: a step that is captured may not bring them there.
    tensor: Tensor,
}

impl ClassFactors {
    /// `values` for a model on `device`.
    pub fn new(values: Vec<f32>, device: Device) -> Result<ClassFactors> {
        let tensor = Tensor::from_slice(&values, values.len(), device)?;
        Ok(ClassFactors { values, tensor })
    }
}

/// A network's answers to some rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    /// Probabilities, row-major `[rows, classes]`.
    Classes {
        /// The probabilities.
        probabilities: Vec<f32>,
        /// The number of classes.
        classes: usize,
    },
    /// Scaled values, one a row.
    Values(Vec<f32>),
}

impl Answers {
    /// The most probable class of each row; the lower of two that tie. Two classes: class 1 from one half on.
    pub fn classes(&self) -> Vec<i64> {
        match self {
            Answers::Values(_) => Vec::new(),
            Answers::Classes { probabilities, classes: 2 } => {
                probabilities.chunks_exact(2).map(|row| (row[1] >= 0.5) as i64).collect()
            }
            Answers::Classes { probabilities, classes } => {
                let best = |row: &[f32]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
                probabilities.chunks_exact(*classes).map(|row| best(row).unwrap_or(0) as i64).collect()
            }
        }
    }
}

impl Model {
    /// A new network in f32, its initial values drawn from `seed`.
    pub fn new(architecture: Architecture, seed: u64, device: Device) -> Result<Model> {
        Model::with_precision(architecture, seed, Precision::f32(), device)
    }

    /// As [`Model::new`], computed and kept in other types. What goes in and comes out stays f32.
    pub fn with_precision(
        architecture: Architecture,
        seed: u64,
        precision: Precision,
        device: Device,
    ) -> Result<Model> {
        let arena = Arena::with_precision(precision, device)?;
        let scope = Scope::new(&arena, seed);
        let built = network::build(&architecture.network, &scope, &architecture.input, architecture.outputs)?;
        Ok(Model { architecture, arena, modules: built.modules, summary: built.summary })
    }

    /// What it was built from.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Its layers, in order, with the shapes behind them.
    pub fn summary(&self) -> &[SummaryRow] {
        &self.summary
    }

    /// Its parameters.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The answers before the last nonlinearity, `[rows, outputs]`, to `x`: `[rows, ..]` with an example's dimensions, or
    /// with all its numbers in one. Logits or scaled values.
    pub fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let (x, dtype) = (self.architecture.network.see(x, &self.architecture.input)?, self.arena.dtype());
        if dtype == x.dtype() {
            return self.modules.forward(cx, &x);
        }
        self.modules.forward(cx, &x.to_dtype(dtype)?)?.to_dtype(x.dtype())
    }

    /// The mean loss of `outputs` `[rows, outputs]`, a 0-d tensor: cross-entropy, two-class cross-entropy on logits, or
    /// mean squared error of the scaled values.
    pub fn loss(&self, outputs: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.training_loss(outputs, targets, 0.0, None)
    }

    /// As [`Model::loss`], with label smoothing where there are several classes, and with a factor for each class. Factors
    /// make it a weighted mean over the rows, but for targets that are probabilities of several classes: there it is divided
    /// by the number of rows, as in PyTorch.
    pub fn training_loss(
        &self,
        outputs: &Tensor,
        targets: &Tensor,
        label_smoothing: f64,
        class_weights: Option<&ClassFactors>,
    ) -> Result<Tensor> {
        let factors = class_weights.map(|w| &w.values[..]);
        match (self.architecture.task, factors) {
            (Task::Multiclass, _) => {
                let weight = class_weights.map(|w| &w.tensor);
                outputs.cross_entropy(
                    targets,
                    CrossEntropy { label_smoothing, weight, ..CrossEntropy::default() },
                )
            }
            (Task::Binary, Some(&[negative, positive])) => {
                let weight = targets.mul_scalar((positive - negative).into())?.add_scalar(negative.into())?;
                let weight = weight.div(&weight.mean(&[], false)?)?;
                let options = BceWithLogits { weight: Some(&weight), ..BceWithLogits::default() };
                outputs.reshape(targets.shape())?.bce_with_logits(targets, options)
            }
            (Task::Binary, _) => {
                outputs.reshape(targets.shape())?.bce_with_logits(targets, BceWithLogits::default())
            }
            (Task::Regression, _) => outputs.reshape(targets.shape())?.mse_loss(targets, Reduction::Mean),
        }
    }

    /// Targets as the tensor that [`Model::loss`] takes.
    pub fn targets(&self, targets: &Targets) -> Result<Tensor> {
        match self.target_numbers(targets)? {
            Numbers::Classes(classes) => Tensor::from_slice(&classes, classes.len(), self.arena.device()),
            Numbers::Values(values, shape) => Tensor::from_slice(&values, shape, self.arena.device()),
        }
    }

    /// The numbers of [`Model::targets`], in host memory.
    pub(super) fn target_numbers<'t>(&self, targets: &'t Targets) -> Result<Numbers<'t>> {
        let rows = |values: Vec<f32>| {
            let shape = Shape::new(&[values.len()])?;
            Ok(Numbers::Values(values.into(), shape))
        };
        match (self.architecture.task, targets) {
            (Task::Multiclass, Targets::Classes(classes)) => Ok(Numbers::Classes(classes.into())),
            (Task::Binary, Targets::Classes(classes)) => rows(classes.iter().map(|&c| c as f32).collect()),
            (Task::Multiclass, Targets::Probabilities { values, classes }) => {
                Ok(Numbers::Values(values.into(), Shape::new(&[values.len() / classes, *classes])?))
            }
            (Task::Binary, Targets::Probabilities { values, classes: 2 }) => {
                rows(values.chunks_exact(2).map(|row| row[1]).collect())
            }
            (Task::Regression, Targets::Values(values)) => {
                Ok(Numbers::Values(values.into(), Shape::new(&[values.len()])?))
            }
            (task, _) => Err(Error::internal(format!("targets that do not fit the task {task}"))),
        }
    }

    /// The outputs of [`Model::forward`] as answers: probabilities or scaled values.
    pub fn answers(&self, outputs: &Tensor) -> Result<Answers> {
        match self.architecture.task {
            Task::Multiclass => {
                let probabilities = outputs.softmax(-1)?.to_vec()?;
                Ok(Answers::Classes { probabilities, classes: self.architecture.outputs })
            }
            Task::Binary => {
                let positive: Vec<f32> = outputs.sigmoid()?.to_vec()?;
                let probabilities = positive.into_iter().flat_map(|p| [1.0 - p, p]).collect();
                Ok(Answers::Classes { probabilities, classes: 2 })
            }
            Task::Regression => Ok(Answers::Values(outputs.to_vec()?)),
        }
    }

    /// Answers to all rows of `inputs` in evaluation mode, and the mean loss if targets are given.
    pub fn evaluate(&self, inputs: &Store, targets: Option<&Targets>) -> Result<(Answers, f64)> {
        let at_once = self.rows_at_once();
        let width = self.architecture.width();
        let rows = inputs.rows();
        let classes = if self.architecture.task == Task::Binary { 2 } else { self.architecture.outputs };
        let mut all = match self.architecture.task {
            Task::Regression => Answers::Values(Vec::with_capacity(rows)),
            _ => Answers::Classes { probabilities: Vec::with_capacity(rows * classes), classes },
        };
        let mut loss = 0.0;
        let mut buffer = Vec::new();
        no_grad(|| -> Result<()> {
            for start in (0..rows).step_by(at_once) {
                let count = at_once.min(rows - start);
                let part = inputs.slice(start..start + count, &mut buffer);
                let x = Tensor::from_slice(part, [count, width], self.arena.device())?;
                let outputs = self.forward(&mut Cx::eval(), &x)?;
                if let Some(targets) = targets {
                    let targets = self.targets(&targets.range(start..start + count))?;
                    loss += self.loss(&outputs, &targets)?.item()? * count as f64;
                }
                match (&mut all, self.answers(&outputs)?) {
                    (Answers::Values(all), Answers::Values(part)) => all.extend(part),
                    (
                        Answers::Classes { probabilities, .. },
                        Answers::Classes { probabilities: part, .. },
                    ) => {
                        probabilities.extend(part);
                    }
                    _ => return Err(Error::internal("answers of two kinds")),
                }
            }
            Ok(())
        })?;
        Ok((all, loss / rows as f64))
    }

    /// Rows to evaluate at a time: enough for fast products, few enough for what lies between two layers to stay small.
    fn rows_at_once(&self) -> usize {
        const ROWS: usize = 1024;
        const NUMBERS: usize = 1 << 22;
        let shapes = self.summary.iter().map(|row| row.shape.iter().product());
        let widest: usize = shapes.max().unwrap_or(0).max(self.architecture.width());
        (NUMBERS / widest.max(1)).clamp(1, ROWS)
    }

    /// The figures of `answers`, those of a regression in the target's own units.
    pub fn metrics(&self, answers: &Answers, targets: &Targets, target: &Target) -> Metrics {
        match (answers, targets) {
            (Answers::Classes { probabilities, classes: 2 }, Targets::Classes(truth))
                if self.architecture.task == Task::Binary =>
            {
                let scores: Vec<f64> = probabilities.chunks_exact(2).map(|row| row[1] as f64).collect();
                metrics::binary(&scores, truth)
            }
            (Answers::Classes { .. }, Targets::Classes(truth)) => {
                Metrics::from([("accuracy".to_owned(), metrics::accuracy(&answers.classes(), truth))])
            }
            (Answers::Values(predicted), Targets::Values(truth)) => {
                let back = |values: &[f32]| values.iter().map(|&v| target.invert(v)).collect::<Vec<f64>>();
                metrics::regression(&back(predicted), &back(truth))
            }
            _ => Metrics::new(),
        }
    }

    /// All parameters, then all buffers, by name, copied to host memory.
    pub fn state(&self) -> Result<Vec<(String, HostTensor<'static>)>> {
        weights::state(&self.arena)
    }

    /// As [`Model::state`], with the f32 masters of 16-bit parameters in their place: what is worth keeping.
    pub fn master_state(&self) -> Result<Vec<(String, HostTensor<'static>)>> {
        weights::master_state(&self.arena)
    }

    /// Overwrites all parameters and buffers. Errors (kind `Data`) that list all differences unless there is exactly one tensor of
    /// the right shape for each.
    pub fn load_state(&self, tensors: Vec<(&str, HostTensor<'_>)>) -> Result<()> {
        weights::load_state(&self.arena, tensors)
    }
}

/// Whether the system would give so many bytes now. It may still run out of them when they are used.
pub(crate) fn can_allocate(bytes: usize) -> bool {
    let mut probe = Vec::<u8>::new();
    let granted = probe.try_reserve_exact(bytes).is_ok();
    // An allocation that nobody sees may be left out, and is then taken for granted.
    std::hint::black_box(&probe);
    granted
}
