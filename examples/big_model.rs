//! A network of 1000 → 500 → 250 → 100 → 1 that learns which of two books a passage is from.
//!
//! ```sh
//! cargo run --release --example big_model
//! cargo run --release --example big_model -- FOLDER      # where to save; the passages go there too, as a table
//! warpsmith train --data FOLDER/passages.csv --model mlp:500,250,100      # the same model on the command line
//! ```
//!
//! The document that this project was founded on gives this network a sigmoid at its end *and* a loss that takes logits, so
//! that the sigmoid is applied twice: its outputs then lie between 0.5 and 0.73, and gradients vanish. It is a known mistake.
//! Here the network ends in a logit, the loss takes logits, and the sigmoid is applied once, at prediction.
//!
//! A passage is 40 words in a row. Its 1,000 features are word counts: each word is hashed to one of 1,000 columns, which
//! holds log(1 + count). The two books (examples/data/README.md) are of the same decade and almost share their vocabulary.

use std::path::PathBuf;

use warpsmith::io::safetensors;
use warpsmith::nn::{Activation, Cx, Linear, Module, Scope, Sequential};
use warpsmith::ops::BceWithLogits;
use warpsmith::optim::{Adam, Optimizer};
use warpsmith::random::Philox;
use warpsmith::tensor::no_grad;
use warpsmith::{Arena, DType, Device, Result, Tensor};

const FEATURES: usize = 1000;
const WORDS: usize = 40;
const BATCH: usize = 64;
const EPOCHS: u64 = 10;
const SEED: u64 = 1;

const BOOKS: [(&str, &str); 2] =
    [("genesis", include_str!("data/genesis.txt")), ("shakespeare", include_str!("data/shakespeare.txt"))];

/// The passages and the number of the book that each is from.
struct Passages {
    /// `[rows, FEATURES]`
    features: Vec<f32>,
    labels: Vec<f32>,
}

impl Passages {
    fn rows(&self) -> usize {
        self.labels.len()
    }

    /// The rows `which` as tensors: `[rows, FEATURES]` and `[rows, 1]`.
    fn tensors(&self, which: &[usize], device: Device) -> Result<(Tensor, Tensor)> {
        let row = |&i: &usize| &self.features[i * FEATURES..][..FEATURES];
        let features: Vec<f32> = which.iter().flat_map(row).copied().collect();
        let labels: Vec<f32> = which.iter().map(|&i| self.labels[i]).collect();
        let x = Tensor::from_slice(&features, [which.len(), FEATURES], device)?;
        Ok((x, Tensor::from_slice(&labels, [which.len(), 1], device)?))
    }
}

/// The column of a word: FNV-1a, the same on every machine.
fn column(word: &str) -> usize {
    let hash =
        word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    // The high half is the better mixed one.
    ((hash >> 32) % FEATURES as u64) as usize
}

fn passages() -> Passages {
    let mut passages = Passages { features: Vec::new(), labels: Vec::new() };
    for (label, (_, text)) in BOOKS.iter().enumerate() {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty());
        let words: Vec<String> = words.map(str::to_lowercase).collect();
        for passage in words.chunks_exact(WORDS) {
            let mut counts = [0.0f32; FEATURES];
            passage.iter().for_each(|word| counts[column(word)] += 1.0);
            passages.features.extend(counts.map(f32::ln_1p));
            passages.labels.push(label as f32);
        }
    }
    passages
}

/// 1000 → 500 → 250 → 100 → 1, ReLU between.
fn network(arena: &Arena, seed: u64) -> Result<Sequential> {
    let scope = Scope::new(arena, seed);
    // Numbered as PyTorch numbers Sequential(Linear, ReLU, Linear, ReLU, Linear, ReLU, Linear), so that it can load the file.
    let linear = |i: usize, inputs, outputs| Linear::new(&scope.enter(i), inputs, outputs);
    Ok(Sequential::new()
        .push(linear(0, FEATURES, 500)?.with_activation(Activation::Relu))
        .push(linear(2, 500, 250)?.with_activation(Activation::Relu))
        .push(linear(4, 250, 100)?.with_activation(Activation::Relu))
        .push(linear(6, 100, 1)?))
}

/// The probability of the second book, for each row of `x`.
fn predict(model: &Sequential, x: &Tensor) -> Result<Vec<f32>> {
    // The model gives logits; here, and only here, they become probabilities.
    no_grad(|| model.forward(&mut Cx::eval(), x)?.sigmoid()?.to_vec())
}

fn main() -> Result<()> {
    let device = Device::cpu();
    let dir = std::env::args().nth(1).map_or_else(|| PathBuf::from("runs/big_model"), PathBuf::from);
    std::fs::create_dir_all(&dir).map_err(|e| warpsmith::Error::io(&dir, "create", e))?;

    let data = passages();
    let mut order: Vec<usize> = (0..data.rows()).collect();
    Philox::new(SEED, 0).sequence(0).shuffle(&mut order);
    let (test, train) = order.split_at(data.rows() / 5);
    let mut train = train.to_vec();
    println!("{} passages to train on, {} to test", train.len(), test.len());

    let arena = Arena::new(DType::F32, device)?;
    let model = network(&arena, SEED)?;
    let mut adam = Optimizer::new(&arena, Adam::default(), 1e-3)?;
    for epoch in 1..=EPOCHS {
        Philox::new(SEED, epoch).sequence(0).shuffle(&mut train);
        let mut sum = 0.0;
        for rows in train.chunks(BATCH) {
            let (x, y) = data.tensors(rows, device)?;
            let mut cx = Cx::train(arena.step_block(), SEED)?;
            let loss = model.forward(&mut cx, &x)?.bce_with_logits(&y, BceWithLogits::default())?;
            arena.backward(&loss)?;
            adam.step()?;
            sum += loss.item()? * rows.len() as f64;
        }
        println!("epoch {epoch:2}: mean loss {:.5}", sum / train.len() as f64);
    }

    let (x, y) = data.tensors(test, device)?;
    let (probabilities, truth) = (predict(&model, &x)?, y.to_vec::<f32>()?);
    let right = probabilities.iter().zip(&truth).filter(|&(p, t)| (*p >= 0.5) == (*t == 1.0)).count();
    println!("held-out accuracy {:.4}", right as f64 / truth.len() as f64);

    save(&dir, &arena, &data)?;
    // Load into a network of other initial weights, and ask it about one passage.
    let loaded = Arena::new(DType::F32, device)?;
    let model = network(&loaded, SEED + 1)?;
    load(&dir, &loaded)?;
    let p = predict(&model, &data.tensors(&test[..1], device)?.0)?[0];
    assert_eq!(p, probabilities[0], "a loaded model answers as the saved one did");
    println!("the first held-out passage is from {} with probability {:.4}", BOOKS[1].0, p);
    println!("it is from {}", BOOKS[truth[0] as usize].0);
    Ok(())
}

/// Writes the weights, and the passages as a table for the command line.
fn save(dir: &std::path::Path, arena: &Arena, data: &Passages) -> Result<()> {
    let values = arena
        .params()?
        .iter()
        .map(|param| Ok((param.name(), param.shape(), param.get()?.to_vec::<f32>()?)))
        .collect::<Result<Vec<_>>>()?;
    let tensors = values
        .iter()
        .map(|(name, shape, values)| Ok((name, warpsmith::io::HostTensor::from_slice(shape.dims(), values)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::write(dir.join("model.safetensors"), &tensors, &Default::default())?;

    warpsmith::io::write_atomically(dir.join("passages.csv"), |out| {
        let mut table: String = (0..FEATURES).map(|i| format!("h{i},")).collect();
        table += "book\n";
        for (row, &label) in data.features.chunks_exact(FEATURES).zip(&data.labels) {
            row.iter().for_each(|value| table += &format!("{value},"));
            table += BOOKS[label as usize].0;
            table.push('\n');
        }
        out.write_all(table.as_bytes()).map_err(|e| warpsmith::Error::io(dir, "write the table", e))
    })?;
    println!("saved to {}", dir.display());
    Ok(())
}

/// Reads the weights back.
fn load(dir: &std::path::Path, arena: &Arena) -> Result<()> {
    let file = safetensors::read(dir.join("model.safetensors"))?;
    for param in arena.params()? {
        let values = file.get(&param.name())?.to_vec::<f32>()?;
        param.set(&Tensor::from_slice(&values, param.shape(), arena.device())?)?;
    }
    Ok(())
}
