//! The CPU back end: memory, threads, loops and products. Knows slices, strides and numbers; no tensor, no op, no GPU.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod copy;
pub mod elementwise;
pub mod gemm;
pub mod par;
pub mod pool;
mod real;
pub mod reduce;
pub mod simd;
pub mod strided;
pub mod vmath;
