#!/usr/bin/env bash
# Fashion-MNIST with three seeds: `mlp` (12 epochs) must reach 0.88 on the test part, `cnn` (8 epochs) 0.91. Prints one line of
# JSON a run. Some minutes on two cores.
#
#   scripts/fashion-mnist.sh [DATA]           default: fashion-mnist, as installed by Debian's dataset-fashion-mnist
set -euo pipefail
cd "$(dirname "$0")/.."

data=${1:-fashion-mnist}
cargo build --release --quiet
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for seed in 1 2 3; do
    for run in "mlp:256,128 12 0.88" "cnn 8 0.91"; do
        read -r model epochs bar <<<"$run"
        target/release/warpsmith train --data "$data" --model "$model" --batch 128 --epochs "$epochs" --seed "$seed" \
            --out "$out/model" --quiet --json >"$out/report.json"
        python3 - "$out/report.json" "$model" "$bar" <<'PY'
import json, sys
report, model, bar = json.load(open(sys.argv[1])), sys.argv[2], float(sys.argv[3])
accuracy = report["metrics"]["accuracy"]
print(json.dumps({"model": model, "seed": report["seed"], "epochs": report["epochs"], "accuracy": accuracy, "bar": bar}))
sys.exit(accuracy < bar)
PY
    done
done
