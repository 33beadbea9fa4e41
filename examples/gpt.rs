//! A small GPT that learns to write like the built-in text, the King James Bible, character by character.
//!
//! ```sh
//! cargo run --release --example gpt                      # about a minute on two cores
//! cargo run --release --example gpt -- 2000              # as many steps
//! warpsmith train --task lm --model gpt:4x4x128 --steps 1000      # much the same on the command line
//! ```
//!
//! The loop is written out, so that one sees what a step is made of; `warpsmith::train::lm::LmTrainer` also looks at the
//! validation part meanwhile, keeps the best weights, saves and resumes.

use warpsmith::data::text::{Sampler, TextData, TokenizerKind, VAL_SHARE, Windows};
use warpsmith::nn::{Cx, Gpt, GptConfig};
use warpsmith::optim::{AdamW, Clip, Input, Optimizer, Schedule, StepOptions, TrainStep};
use warpsmith::param::{Precision, StepBlock};
use warpsmith::train::lm::{Generator, LanguageModel};
use warpsmith::{Device, Error, Result};

const CONTEXT: usize = 64;
const BATCH: usize = 12;
const SEED: u64 = 1;

fn main() -> Result<()> {
    let steps = match std::env::args().nth(1) {
        Some(text) => text.parse().map_err(|_| Error::argument(format!("{text:?} is no number of steps")))?,
        None => 1000u64,
    };
    let data = TextData::builtin(TokenizerKind::Char, VAL_SHARE)?;
    let train = Windows::new(&data.train, BATCH, CONTEXT)?;
    let config = GptConfig {
        padded_vocab: data.tokenizer.padded_vocab(),
        ..GptConfig::new(data.tokenizer.vocab(), CONTEXT, 4, 4, 128)
    };
    let model = LanguageModel::new(&config, Precision::f32(), SEED, Device::cpu())?;
    let arena = model.arena();
    println!("{} parameters, {} characters to learn from", arena.numel()?, data.train.len());

    let rule = AdamW { betas: [0.9, 0.99], weight_decay: 0.1, ..AdamW::default() };
    let adamw = Optimizer::new(arena, rule, 1e-3)?.with_clip(Clip::Norm(1.0))?;
    arena.step_block().set(StepBlock::WEIGHT_DECAY + Gpt::UNDECAYED, 0.0)?;

    // Forward, backward, clipping and update are one thing, which a GPU records once and replays.
    let (inner, block) = (model.clone(), arena.step_block().clone());
    let forward = move |batch: &[_], _: usize| {
        let mut cx = Cx::train(&block, SEED)?;
        inner.gpt().loss(&mut cx, &batch[0], &batch[1])
    };
    let mut step = TrainStep::new(arena, Box::new(adamw), Box::new(forward), StepOptions::default())?;
    let schedule = Schedule::Cosine { min_lr: 1e-4 };
    for k in 0..steps {
        step.set_lr(schedule.lr(1e-3, k, 100.min(steps / 10), steps))?;
        let batch = train.random(SEED, k)?;
        let shape = [batch.rows, batch.context];
        step.run(&[Input::new(&batch.inputs, shape)?, Input::new(&batch.targets, shape)?])?;
        if (k + 1) % 100 == 0 || k + 1 == steps {
            let losses = step.losses()?;
            println!("step {:5}: mean loss {:.4}", k + 1, losses.iter().sum::<f64>() / losses.len() as f64);
        }
    }

    // Losses are the mean of a whole part, in nats a character.
    let few = Windows::new(&data.val, BATCH, CONTEXT)?.validation().take(100).collect::<Result<Vec<_>>>()?;
    let sum = few.iter().map(|batch| model.loss(batch)).sum::<Result<f64>>()?;
    println!("loss on a part of the text it has not seen: {:.4}", sum / few.len() as f64);

    let sampler = Sampler { temperature: 0.8, seed: SEED, ..Sampler::default() };
    let made = Generator::new(&model, &data.tokenizer, sampler)?.run("In the ", 300, &mut |_| true)?;
    println!("In the {}", made.text);
    Ok(())
}
