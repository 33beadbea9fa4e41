//! GPT-2 weights in Hugging Face's layout: a decoder read from it computes what PyTorch does, writing and reading give every bit
//! back, and whatever does not fit is told at once.

#![cfg(feature = "train")]

mod golden;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use golden::{assert_numbers_close, numbers};
use serde_json::Value;
use warpsmith::io::{HostTensor, safetensors};
use warpsmith::nn::{Cx, GptConfig, Module, NormKind, Positions};
use warpsmith::param::Precision;
use warpsmith::train::lm::{LanguageModel, huggingface};
use warpsmith::{Device, ErrorKind, Tensor};

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gpt2")
}

/// A fresh folder of this test.
fn place(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("warpsmith-hf-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn model(path: &Path) -> LanguageModel {
    let (config, weights) = huggingface::import(path, None).unwrap();
    let model = LanguageModel::new(&config, Precision::f32(), 0, Device::cpu()).unwrap();
    model.load_state(weights.iter().map(|(n, t)| (n.as_str(), t.clone())).collect()).unwrap();
    model
}

fn ids(rows: &Value) -> Tensor {
    let rows: Vec<Vec<f64>> = rows.as_array().unwrap().iter().map(numbers).collect();
    let flat: Vec<i32> = rows.iter().flatten().map(|v| *v as i32).collect();
    Tensor::from_slice(&flat, [rows.len(), rows[0].len()], Device::cpu()).unwrap()
}

#[test]
fn logits_and_gradients_are_pytorchs() {
    let want: Value =
        serde_json::from_slice(&fs::read(golden_folder().join("expected.json")).unwrap()).unwrap();
    let model = model(&golden_folder());
    let config = model.config().clone();
    assert_eq!((config.vocab, config.padded_vocab, config.context, config.bias), (50, 64, 12, true));
    let (x, y) = (ids(&want["ids"]), ids(&want["targets"]));
    let logits = model.gpt().forward(&mut Cx::eval(), &x).unwrap().to_f64_vec().unwrap();
    // The padding's rows are zeros, and so are their logits.
    assert!(logits.chunks(64).all(|row| row[50..].iter().all(|v| *v == 0.0)));
    let logits: Vec<f64> = logits.chunks(64).flat_map(|row| row[..50].to_vec()).collect();
    // Some thirty roundings of f32 (6e-8) lie one behind the other.
    assert_numbers_close("logits", &logits, &numbers(&want["logits"]["data"]), 1e-5, 0.0);
    let loss = model.gpt().loss(&mut Cx::eval(), &x, &y).unwrap();
    assert_numbers_close("loss", &[loss.item().unwrap()], &[want["loss"].as_f64().unwrap()], 1e-6, 0.0);
    model.arena().backward(&loss).unwrap();
    for (name, want) in want["grads"].as_object().unwrap() {
        let param = model.arena().param(&format!("transformer.{name}")).unwrap();
        let mut got = param.grad().unwrap().unwrap();
        if got.rank() == 2 && name.starts_with("h.") {
            got = got.transpose(0, 1).unwrap().contiguous().unwrap();
        }
        let mut got = got.to_f64_vec().unwrap();
        let want = numbers(&want["data"]);
        assert!(got[want.len()..].iter().all(|v| *v == 0.0), "{name}: a gradient of the padding");
        got.truncate(want.len());
        assert_numbers_close(name, &got, &want, 2e-5, 0.0);
    }
}

#[test]
fn what_is_written_is_read_bit_for_bit() {
    let dir = place("round");
    let config = GptConfig {
        bias: true,
        padded_vocab: 64,
        hidden: 24,
        eps: 3e-6,
        tied: false,
        ..GptConfig::new(50, 8, 2, 2, 16)
    };
    let before = LanguageModel::new(&config, Precision::f32(), 3, Device::cpu()).unwrap();
    huggingface::export(&before, &dir.join("out")).unwrap();
    let after = model(&dir.join("out"));
    assert_eq!(*after.config(), config);
    for ((name, a), (_, b)) in before.state().unwrap().iter().zip(&after.state().unwrap()) {
        let padding = if name.contains("wte") || name.contains("lm_head") { 14 * 16 * 4 } else { 0 };
        let whole = a.bytes().len() - padding;
        assert!(a.bytes()[..whole] == b.bytes()[..whole], "{name}");
        assert!(b.bytes()[whole..].iter().all(|v| *v == 0), "{name}");
    }
    // The file alone, and a shorter context.
    let (short, weights) = huggingface::import(&dir.join("out/model.safetensors"), Some(5)).unwrap();
    let (_, positions) = weights.iter().find(|(name, _)| name == "transformer.wpe.weight").unwrap();
    assert_eq!((short.context, positions.shape()), (5, &[5, 16][..]));
    let error = huggingface::import(&dir.join("out"), Some(9)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    // Nothing is written over.
    let error = huggingface::export(&before, &dir.join("out")).unwrap_err();
    assert!(error.message().contains("is there already"), "{error}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "something is left beside the folder");
    // Biases that are not there are zeros; what GPT-2 has not is told.
    let plain =
        LanguageModel::new(&GptConfig::new(7, 8, 1, 2, 16), Precision::bf16(), 3, Device::cpu()).unwrap();
    huggingface::export(&plain, &dir.join("plain")).unwrap();
    assert!(model(&dir.join("plain")).config().bias);
    let other = GptConfig {
        norm: NormKind::RmsNorm,
        positions: Positions::Rotary(100.0),
        ..GptConfig::new(7, 8, 1, 2, 16)
    };
    let other = LanguageModel::new(&other, Precision::f32(), 3, Device::cpu()).unwrap();
    let error = huggingface::export(&other, &dir.join("other")).unwrap_err();
    assert!(error.message().contains("RMSNorm, rotary positions"), "{error}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn f16_is_read_into_f32_and_both_names_are_known() {
    let dir = place("f16");
    let source = safetensors::read(golden_folder().join("model.safetensors")).unwrap();
    let mut tensors: Vec<(String, HostTensor<'_>)> = Vec::new();
    for name in source.names().filter(|name| !name.ends_with(".attn.bias")) {
        let t = source.get(name).unwrap();
        let bytes: Vec<u8> =
            t.to_vec::<f32>().unwrap().iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        let t = HostTensor::new(warpsmith::DType::F16, t.shape().to_vec(), bytes).unwrap();
        tensors.push((format!("transformer.{name}"), t));
    }
    let head = tensors.iter().find(|(name, _)| name.contains("wte")).unwrap().1.clone();
    tensors.push(("lm_head.weight".to_owned(), head));
    safetensors::write(dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    fs::copy(golden_folder().join("config.json"), dir.join("config.json")).unwrap();
    let (_, narrow) = huggingface::import(&dir, None).unwrap();
    let (_, wide) = huggingface::import(&golden_folder(), None).unwrap();
    for ((name, n), (_, w)) in narrow.iter().zip(&wide) {
        let rounded = w.to_vec::<f32>().unwrap().into_iter().map(|v| half::f16::from_f32(v).to_f32());
        assert!(n.to_vec::<f32>().unwrap().into_iter().eq(rounded), "{name}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn all_differences_are_told_at_once() {
    let dir = place("wrong");
    let config = fs::read_to_string(golden_folder().join("config.json")).unwrap();
    fs::copy(golden_folder().join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(config.contains(from));
        fs::write(dir.join("config.json"), config.replace(from, to)).unwrap();
        let error = huggingface::import(&dir, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        error.message().to_owned()
    };
    let message = with("\"vocab_size\": 50", "\"vocab_size\": 51");
    assert_eq!(
        message,
        "1 differences from GPT-2's weights: wte.weight is [50, 16], the configuration needs [51, 16]"
    );
    let message = with("\"n_layer\": 2", "\"n_layer\": 3");
    assert!(
        message.starts_with("12 differences") && message.contains("h.2.ln_1.weight is missing"),
        "{message}"
    );
    let message = with("\"n_layer\": 2", "\"n_layer\": 1");
    assert!(
        message.contains("transformer.h.1.attn.c_attn.weight is unknown")
            || message.contains("h.1.attn.c_attn.weight is unknown"),
        "{message}"
    );
    let message = with("\"n_layer\": 2", "\"n_layer\": 9");
    assert!(message.starts_with("84 differences") && message.ends_with("and 64 more"), "{message}");
    assert!(with("\"model_type\": \"gpt2\"", "\"model_type\": \"llama\"").contains("llama"));
    assert!(with("gelu_new", "swish").contains("swish"));
    assert!(with("\"n_head\": 2", "\"n_head\": 3").contains("3 heads do not divide"));
    assert!(with("\"n_head\": 2", "\"n_head\": -1").contains("n_head -1 is not a size"));
    fs::remove_file(dir.join("config.json")).unwrap();
    let error = huggingface::import(&dir.join("model.safetensors"), None).unwrap_err();
    assert!(error.help().unwrap().contains("config.json"), "{error}");
    fs::remove_dir_all(&dir).unwrap();
}
