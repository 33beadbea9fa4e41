//! tmp
#![forbid(unsafe_code)]
use crate::*;
impl Tensor {
    /// t
    pub fn layer_norm(&self, _: usize, _: Option<&Tensor>, _: Option<&Tensor>, _: f64) -> Result<Tensor> { Err(Error::internal("x")) }
    /// t
    pub fn rms_norm(&self, _: usize, _: Option<&Tensor>, _: f64) -> Result<Tensor> { Err(Error::internal("x")) }
    /// t
    pub fn dropout(&self, _: f64, _: u64, _: u32, _: u64, _: &Tensor) -> Result<Tensor> { Err(Error::internal("x")) }
}
