#!/usr/bin/env bash
# Fuzzes the readers of foreign files, SECONDS each, starting from fuzz/corpus/. Two targets at a time.
#
#   scripts/fuzz.sh SECONDS [TARGET …]        default: all targets
#
# Needs cargo-fuzz (`cargo install cargo-fuzz`) and a nightly toolchain, or RUSTC_BOOTSTRAP=1 with the stable one. What is found
# on the way stays in target/fuzz/; an input that crashes is named, and the exit code is 1.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET …]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(csv npy npz idx safetensors model_toml network_toml)

export CARGO_TARGET_DIR=$PWD/target/fuzz/build
# Without a nightly toolchain the stable one is told to accept the sanitizer's flags.
rustc --version | grep -q nightly || export RUSTC_BOOTSTRAP=1
cargo fuzz build --fuzz-dir fuzz --sanitizer none >&2

fuzz() {
    local target=$1 found=target/fuzz/found/$1 log=target/fuzz/$1.log
    mkdir -p "$found"
    # -malloc_limit_mb: one allocation that no file of this size can justify. -timeout is by the clock: on a busy machine ten seconds
    # pass without a turn.
    if cargo fuzz run --fuzz-dir fuzz --sanitizer none "$target" "$found" "fuzz/corpus/$target" -- -max_total_time="$seconds" \
        -max_len=4096 -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=60 -print_final_stats=1 >"$log" 2>&1; then
        echo "$target: $(awk '/number_of_executed_units/ { print $2 }' "$log") runs in $seconds s, nothing found"
    else
        echo "$target: FOUND SOMETHING, see $log"
        tail -25 "$log" >&2
        return 1
    fi
}
export -f fuzz
export seconds
printf '%s\n' "${targets[@]}" | xargs -P 2 -I{} bash -euo pipefail -c 'fuzz {}'
