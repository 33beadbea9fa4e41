//! placeholder
#![forbid(unsafe_code)]
use std::time::Duration;
use crate::{Device, Result};
/// x
pub struct OpsBench { pub only: Vec<String>, pub time: Duration, pub device: Device }
/// x
pub struct OpRow { pub op: String, pub median_us: f64 }
impl OpsBench { pub fn run(&self) -> Result<Vec<OpRow>> { Ok(vec![]) } }
