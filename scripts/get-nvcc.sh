#!/usr/bin/env bash
# Installs nvcc 13.0, cuobjdump and nvdisasm from PyPI into target/cuda-toolkit, where build.rs looks for them. About 100 MB
# to load; no driver, no root. Does nothing if they are there. Needs Python 3 with pip or venv; CARGO_TARGET_DIR is obeyed.
#
#   scripts/get-nvcc.sh && cargo build
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*'
  'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  # There are no wheels of 13.0 for these two; they read what 13.0 writes.
  'nvidia-cuda-cuobjdump==13.2.*' 'nvidia-cuda-nvdisasm==13.2.*'
)
target="${CARGO_TARGET_DIR:-target}"
toolkit="$target/cuda-toolkit"
# build.rs makes this folder too, and watches it: the next build finds the new nvcc.
stamp="$target/cuda-toolkit-stamp/installed"

if [[ -f "$stamp" && "$(cat "$stamp")" == "${packages[*]}" ]] && "$toolkit/bin/nvcc" --version >/dev/null 2>&1; then
  echo "$toolkit is up to date"
  exit 0
fi

work="$target/cuda-toolkit.new"
rm -rf "$work"
mkdir -p "$work" "$(dirname "$stamp")"
trap 'rm -rf "$work"' EXIT

python=python3
if ! "$python" -m pip --version >/dev/null 2>&1; then
  if ! "$python" -m venv "$work/venv"; then
    echo "get-nvcc.sh needs Python 3 with pip or venv (Debian: apt install python3-venv)" >&2
    exit 1
  fi
  python="$work/venv/bin/python"
fi
PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --target "$work/site" "${packages[@]}"

chmod +x "$work"/site/nvidia/cu13/bin/* "$work"/site/nvidia/cu13/nvvm/bin/*
"$work/site/nvidia/cu13/bin/nvcc" --version >/dev/null
rm -rf "$toolkit"
mv "$work/site/nvidia/cu13" "$toolkit"
printf '%s\n' "${packages[*]}" >"$stamp"
"$toolkit/bin/nvcc" --version | tail -n 2
