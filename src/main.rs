//! The `warpsmith` program: all of it is [`warpsmith::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    warpsmith::cli::main(Instant::now())
}
