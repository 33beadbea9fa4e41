//! The CPU back end: threads, vector code and the matrix product. Knows slices, strides and numbers, and no tensor.

pub mod gemm;
pub mod par;
pub mod simd;
