//! Reads the goldens beside this file, PyTorch's numbers as README.md describes them, and compares tensors with them.

#![allow(dead_code)] // Each test binary uses a part.

use std::collections::BTreeMap;

use serde_json::Value;
use warpsmith::{DType, Device, Tensor};

/// `tests/golden/<name>.json`.
pub fn read(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The cases of a file, which are `least` or more: a file that was cut must not pass.
pub fn cases(file: &Value, least: usize) -> &[Value] {
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= least, "only {} cases", cases.len());
    cases
}

pub fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

pub fn dims(v: &Value) -> Vec<usize> {
    numbers(v).into_iter().map(|d| d as usize).collect()
}

pub fn sizes<const N: usize>(v: &Value) -> [usize; N] {
    dims(v).try_into().unwrap()
}

/// A tensor of the file, its floats in `dtype`.
pub fn tensor(v: &Value, dtype: DType) -> Tensor {
    let data = Tensor::from_slice(&numbers(&v["data"]), dims(&v["shape"]), Device::Cpu).unwrap();
    data.to_dtype(if v["dtype"] == "i64" { DType::I64 } else { dtype }).unwrap()
}

/// The inputs of a case by name; those that it has a gradient of are leaves.
pub fn inputs(case: &Value, dtype: DType) -> BTreeMap<&str, Tensor> {
    let input = |(key, v): (&'_ String, _)| {
        let t = tensor(v, dtype);
        if case["grads"][key].is_object() { t.as_leaf().unwrap() } else { t }
    };
    case["inputs"].as_object().unwrap().iter().map(|(key, v)| (key.as_str(), input((key, v)))).collect()
}

/// The same shape, and within `rtol` of the largest of `want`.
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Value, rtol: f64) {
    assert_close_to_terms(what, got, want, rtol, 1e-3);
}

/// The same shape, and within `rtol` of the largest of `want`, or of `terms`, the size of what was added, where all cancels.
#[track_caller]
pub fn assert_close_to_terms(what: &str, got: &Tensor, want: &Value, rtol: f64, terms: f64) {
    assert_eq!(got.dims(), dims(&want["shape"]), "{what}");
    assert_numbers_close(what, &got.to_f64_vec().unwrap(), &numbers(&want["data"]), rtol, terms);
}

/// As many numbers, within `rtol` of the largest of `want`, or of `least` where all are smaller.
#[track_caller]
pub fn assert_numbers_close(what: &str, got: &[f64], want: &[f64], rtol: f64, least: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(least, |m, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= rtol * size, "{what}[{i}]: {g:e} instead of {w:e}");
    }
}
