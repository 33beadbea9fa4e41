//! The CPU back end: memory, threads, loops and products. It knows nothing of tensors, ops or GPUs.

pub mod gemm;
pub mod par;
pub mod pool;
pub mod simd;
pub mod strided;
