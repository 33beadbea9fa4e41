//! The CPU back end: memory, threads, loops and products. It knows nothing of tensors, ops or GPUs.

pub mod copy;
pub mod pool;
pub mod strided;
