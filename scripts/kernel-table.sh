#!/usr/bin/env bash
# Prints registers, shared memory, stack and spills of each kernel and architecture, as the last build's ptxas reported them.
# A line that starts with # is a kernel that may spill, and why. Fails if the last build had no nvcc.
#
#   scripts/kernel-table.sh [PROFILE]          debug by default
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${CARGO_TARGET_DIR:-target}/${1:-debug}/build"
table="$(ls -t "$folder"/warpsmith-*/out/kernel-table.tsv 2>/dev/null | head -n 1)"
if [[ -z "$table" ]]; then
  echo "no build in $folder yet: cargo build first" >&2
  exit 1
fi
if [[ "$(grep -vc '^#' "$table")" -lt 2 ]]; then
  echo "the last build found no nvcc: scripts/get-nvcc.sh installs one" >&2
  exit 1
fi
column -t -s $'\t' "$table" 2>/dev/null || cat "$table"
