#!/usr/bin/env bash
# The bars for accuracy, with defaults only, on all their seeds (the tests of a debug build take the first few); then the
# founding document's model, as an example and through the command line. Some minutes, most of them for the release build.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo test --release --test cli_quality -- --nocapture
cargo run --release --example big_model -- target/big_model
cargo run --release -- train --data target/big_model/passages.csv --model mlp:500,250,100 --epochs 10 --out target/big_model/cli
