#!/usr/bin/env bash
# Everything that only a GPU can show, in one command: doctor, primitives against the simulator's record, the op cases, planted
# faults, compute-sanitizer, training against the CPU, kernel benchmarks beside PyTorch. Writes one JSON and one markdown file.
#
#   scripts/gpu-check.sh                            all steps on cuda:0, about nine minutes
#   scripts/gpu-check.sh --only doctor,primitives   some steps
#   scripts/gpu-check.sh --device sim --quick       a rehearsal without a GPU (needs a build with --features sim)
#
# The machine needs no Rust: where there is no cargo, the binary comes from .carry/ (ignored by git), which is filled by
#
#   scripts/get-nvcc.sh && cargo build --release && mkdir -p .carry && cp target/release/warpsmith .carry/
#
# on a machine with the same or an older libc. Kernels are inside the binary; nvcc is not needed here. compute-sanitizer comes with
# the toolkit; where there is none:  pip install --no-deps --target .carry/sanitizer 'nvidia-cuda-sanitizer-api==13.0.*'
#
# Exit code: 0 all steps passed or were skipped, 1 one failed. With --strict a skipped step fails too.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

device=cuda out=benches/results binary="" only="" quick=0 strict=0 budget=570
usage() { sed -n '2,16p' "$0" | sed 's/^# \{0,1\}//'; }
while [[ $# -gt 0 ]]; do
  case "$1" in
    --device) device="$2"; shift 2 ;;
    --binary) binary="$2"; shift 2 ;;
    --out) out="$2"; shift 2 ;;
    --only) only="$2"; shift 2 ;;
    --budget) budget="$2"; shift 2 ;;
    --quick) quick=1; shift ;;
    --strict) strict=1; shift ;;
    --help | -h) usage; exit 0 ;;
    *) echo "unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
done

begun=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" || exit 1
stamp=$(date -u +%Y%m%dT%H%M%SZ)

# --- the binary ------------------------------------------------------------------------------------------------------
features=()
[[ $device == sim* ]] && features=(--features sim)
if [[ -z $binary ]]; then
  if command -v cargo >/dev/null; then
    cargo build --release "${features[@]}" >&2 || exit 1
    binary="${CARGO_TARGET_DIR:-target}/release/warpsmith"
  elif [[ -f .carry/warpsmith ]]; then
    chmod +x .carry/warpsmith 2>/dev/null
    binary=.carry/warpsmith
  else
    echo "neither cargo nor .carry/warpsmith is here: see the head of $0" >&2
    exit 2
  fi
fi
"$binary" --version >/dev/null || { echo "$binary does not run here" >&2; exit 2; }

# --- steps -----------------------------------------------------------------------------------------------------------
# Text as a JSON string.
quote() {
  local text="$1"
  text=${text//\\/\\\\} text=${text//\"/\\\"} text=${text//$'\t'/\\t} text=${text//$'\r'/} text=${text//$'\n'/\\n}
  printf '"%s"' "$(printf '%s' "$text" | tr -d '\000-\010\013\014\016-\037')"
}

names=() verdicts=() seconds=() notes=()
failed=0 skipped=0

# verdict NAME VERDICT SECONDS NOTE
verdict() {
  names+=("$1") verdicts+=("$2") seconds+=("$3") notes+=("$4")
  [[ $2 == failed ]] && failed=$((failed + 1))
  [[ $2 == skipped ]] && skipped=$((skipped + 1))
  printf '%-8s %-24s %4ss  %s\n' "$2" "$1" "$3" "${4%%$'\n'*}" >&2
}

wanted() { [[ -z $only || ",$only," == *",$1,"* ]]; }

# run NAME LIMIT COMMAND...: the command under a time limit; output in $work/NAME.out and .err; sets `code` and `took`.
run() {
  local name="$1" limit="$2" left start
  shift 2
  left=$((budget - (SECONDS - begun)))
  ((left < limit)) && limit=$left
  ((limit < 1)) && limit=1
  start=$SECONDS
  timeout --kill-after=5 "$limit" "$@" >"$work/$name.out" 2>"$work/$name.err" </dev/null
  code=$?
  took=$((SECONDS - start))
}

# The last lines of what a step said on stderr, or how it ended.
said() {
  if ((code == 124 || code == 137)); then echo "ran past its time limit"; return; fi
  local text
  text=$(tail -n 4 "$work/$1.err" | head -c 600)
  echo "${text:-exit code $code}"
}

# plain NAME LIMIT COMMAND...: passes if the command exits with 0.
plain() {
  wanted "$1" || return 0
  if ((budget - (SECONDS - begun) < 5)); then verdict "$1" skipped 0 "no time left"; return; fi
  run "$@"
  if ((code == 0)); then verdict "$1" passed "$took" ""; else verdict "$1" failed "$took" "$(said "$1")"; fi
}

# 1. Is the machine fit for it?
plain doctor 60 "$binary" doctor --device "$device" --json
# 2. The bits of each primitive; the words themselves are in the JSON, to be recorded.
plain primitives 60 "$binary" selftest --primitives --device "$device" --json
# 3. The op cases.
filter=()
((quick)) && filter=(--filter softmax)
plain selftest 240 "$binary" selftest --device "$device" --json --quiet "${filter[@]}"

# 4. A sticky fault: its own exit code, a clear text, no abort.
if wanted fault; then
  run fault 60 "$binary" selftest --canary fault --device "$device"
  if ((code == 7)) && grep -q '^error: ' "$work/fault.err" && ! grep -qi 'panick\|abort' "$work/fault.err"; then
    verdict fault passed "$took" "$(head -n 1 "$work/fault.err" | head -c 300)"
  else
    verdict fault failed "$took" "a planted illegal store ended with $code instead of 7: $(said fault)"
  fi
fi

# 5. compute-sanitizer: first it must report what is planted, else its silence about the rest proves nothing.
sanitizer=""
for place in "${COMPUTE_SANITIZER:-}" compute-sanitizer /usr/local/cuda/bin/compute-sanitizer \
  .carry/sanitizer/nvidia/cu13/bin/compute-sanitizer; do
  [[ $place == .carry/* && -f $place ]] && chmod +x "$place" 2>/dev/null
  [[ -n $place ]] && command -v "$place" >/dev/null && { sanitizer=$place; break; }
done
# sanitize TOOL FAULT WORDS: WORDS is what the tool's report of the canary contains.
sanitize() {
  local tool="$1" fault="$2" words="$3" name="sanitizer_$1" clean
  wanted "$name" || wanted sanitizer || return 0
  if [[ -z $sanitizer ]]; then
    verdict "$name" skipped 0 "compute-sanitizer is not here: nothing was checked by it"
    return
  fi
  if ((budget - (SECONDS - begun) < 20)); then verdict "$name" skipped 0 "no time left"; return; fi
  run "$name.canary" 60 "$sanitizer" --tool "$tool" --error-exitcode 42 "$binary" selftest --canary "$fault" --device "$device"
  cat "$work/$name.canary.out" >>"$work/$name.canary.err"
  if ((code != 42)) || ! grep -qiE "$words" "$work/$name.canary.err"; then
    verdict "$name" failed "$took" "the planted fault was not reported (exit code $code): $(said "$name.canary")"
    return
  fi
  clean=("$binary" selftest --device "$device" --quiet)
  run "$name.primitives" 90 "$sanitizer" --tool "$tool" --error-exitcode 42 "$binary" selftest --primitives --device "$device"
  if ((code != 0)); then
    tail -n 30 "$work/$name.primitives.out" >>"$work/$name.primitives.err"
    verdict "$name" failed "$took" "primitives: $(said "$name.primitives")"
    return
  fi
  local total=$took op done=""
  for op in softmax cross_entropy layer_norm matmul embedding; do
    ((quick)) && [[ $op != softmax ]] && continue
    # A minute for the ops of one tool, so that the steps behind it get their turn.
    ((total > 60 || budget - (SECONDS - begun) < 20)) && break
    run "$name.$op" 60 "$sanitizer" --tool "$tool" --error-exitcode 42 "${clean[@]}" --case "$op:0"
    total=$((total + took))
    # Past the limit is no finding.
    if ((code != 0 && code != 124 && code != 137)); then
      tail -n 30 "$work/$name.$op.out" >>"$work/$name.$op.err"
      verdict "$name" failed "$total" "$op: $(said "$name.$op")"
      return
    fi
    ((code == 0)) && done+=" $op"
  done
  verdict "$name" passed "$total" "the planted fault was reported; clean: primitives${done:- and, for want of time, no op}"
}
sanitize memcheck bounds 'invalid __global__ write|out of bounds'
sanitize racecheck race 'hazard|race reported'

# 6. Training: the CPU's loss within tolerance, and twice the same bits; of a perceptron, a convolutional and a recurrent network.
train() {
  local name=$1 epochs=$2 model=$3 ok=1 total=0 note="" where kind turn rows=()
  ((quick)) && epochs=1 rows=(--limit 96)
  for where in "$device:1" "$device:2" cpu:1; do
    kind=${where%:*} turn=${where##*:}
    run "$name.$kind.$turn" 120 "$binary" train --device "$kind" --model "$model" --epochs "$epochs" --seed 5 --quiet --json \
      "${rows[@]}" --out "$work/$name.model.$kind.$turn"
    total=$((total + took))
    if ((code != 0)); then ok=0 note="on $kind: $(said "$name.$kind.$turn")"; break; fi
  done
  if ((ok)); then
    weights() { cksum <"$work/$name.model.$1/model.safetensors"; }
    # The losses of metrics.jsonl, one a line.
    losses() { grep -oE '"(train_)?loss": *[0-9.eE+-]+' "$work/$name.model.$1/metrics.jsonl" | sed 's/.*: *//'; }
    if [[ $(weights "$device.1") != $(weights "$device.2") ]]; then
      ok=0 note="two runs on $device gave different weights"
    elif ! paste <(losses "$device.1") <(losses cpu.1) |
      awk 'BEGIN { worst = 0 } { d = $1 - $2; d = d < 0 ? -d : d; r = d / ($2 < 0 ? -$2 : $2); if (r > worst) worst = r }
           END { printf "worst relative difference of the losses: %.2e over %d\n", worst, NR; exit !(NR > 0 && worst < 1e-3) }' \
        >"$work/$name.note"; then
      ok=0 note="the losses differ from the CPU's: $(cat "$work/$name.note")"
    else
      note="$model: twice the same bits; $(cat "$work/$name.note")"
    fi
  fi
  if ((ok)); then verdict "$name" passed "$total" "$note"; else verdict "$name" failed "$total" "$note"; fi
}
if wanted train; then
  train train 6 mlp:256,128
  train train.cnn 2 cnn:8,16
  train train.lstm 2 lstm:32x2
fi

# 7. Kernels, ours and PyTorch's in turns, so that drift of the clocks hits both.
if wanted bench; then
  python=""
  for place in .venv/bin/python python3; do
    command -v "$place" >/dev/null && "$place" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null &&
      { python=$place; break; }
  done
  turns=2
  args=(bench kernels --device "$device" --json --quiet)
  ((quick)) && turns=1 args+=(--seconds 0.01 --small)
  for ((turn = 1; turn <= turns; turn++)); do
    plain_name="bench.$turn"
    if ((budget - (SECONDS - begun) < 10)); then verdict "$plain_name" skipped 0 "no time left"; continue; fi
    run "$plain_name" 90 "$binary" "${args[@]}"
    if ((code == 0)); then verdict "$plain_name" passed "$took" ""; else verdict "$plain_name" failed "$took" "$(said "$plain_name")"; fi
    if [[ -z $python ]]; then
      verdict "torch.$turn" skipped 0 "no PyTorch with CUDA here"
    else
      run "torch.$turn" 90 "$python" scripts/bench-torch.py
      if ((code == 0)); then verdict "torch.$turn" passed "$took" ""; else verdict "torch.$turn" failed "$took" "$(said "torch.$turn")"; fi
    fi
  done
fi

# --- the report ------------------------------------------------------------------------------------------------------
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
commit=$(git rev-parse --short HEAD 2>/dev/null)
json="$out/gpu-check-$stamp.json" markdown="$out/gpu-check-$stamp.md"
{
  printf '{\n"date": "%s",\n"device": %s,\n"gpu": %s,\n' "$stamp" "$(quote "$device")" "$(quote "${gpu:-none}")"
  printf '"commit": %s,\n"version": %s,\n' "$(quote "${commit:-unknown}")" "$(quote "$("$binary" --version)")"
  printf '"kernel": %s,\n"failed": %d,\n"skipped": %d,\n"steps": [' "$(quote "$(uname -sr)")" "$failed" "$skipped"
  for i in "${!names[@]}"; do
    ((i)) && printf ','
    printf '\n{"name": %s, "verdict": "%s", "seconds": %d, "note": %s' \
      "$(quote "${names[i]}")" "${verdicts[i]}" "${seconds[i]}" "$(quote "${notes[i]}")"
    result="$work/${names[i]}.out"
    # What a step printed is one JSON object, or nothing that belongs here.
    if [[ -s $result && $(head -c 1 "$result") == '{' ]]; then printf ', "result": %s' "$(cat "$result")"; fi
    printf '}'
  done
  printf '\n]\n}\n'
} >"$json"

# A table of the rows of the benchmarks, where python is at hand to read them.
table() {
  command -v python3 >/dev/null || return 0
  python3 - "$json" <<'PYTHON'
import json, sys
steps = json.load(open(sys.argv[1]))["steps"]
rows = {}
for kind in ("bench", "torch"):
    for step in steps:
        if step["name"].split(".")[0] == kind and "result" in step:
            for row in step["result"]["rows"]:
                rows.setdefault(row["kernel"], {}).setdefault(kind, []).append(row)
if rows:
    print("| kernel | µs | GB/s or TFLOP/s | of the copy rate | PyTorch µs | PyTorch / ours |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
for name, by in rows.items():
    best = {kind: min(r["median_us"] for r in by[kind]) for kind in by}
    ours = min(by["bench"], key=lambda r: r["median_us"]) if "bench" in by else {}
    rate = next((f"{ours[k]:.1f} {u}" for k, u in (("gb_s", "GB/s"), ("tflop_s", "TFLOP/s")) if ours.get(k)), "")
    share = f"{ours['share']:.0%}" if ours.get("share") else ""
    cell = lambda v: f"{v:.2f}" if v is not None else ""
    ratio = cell(best["torch"] / best["bench"]) if len(best) == 2 else ""
    print(f"| {name} | {cell(best.get('bench'))} | {rate} | {share} | {cell(best.get('torch'))} | {ratio} |")
PYTHON
}
{
  echo "# GPU check, $stamp"
  echo
  echo "Device \`$device\`: ${gpu:-no GPU}. $("$binary" --version), commit ${commit:-unknown}. $failed failed, $skipped skipped."
  echo "All that the steps printed is in $(basename "$json")."
  echo
  echo '| step | verdict | s | note |'
  echo '| --- | --- | ---: | --- |'
  for i in "${!names[@]}"; do
    note=${notes[i]//$'\n'/ }
    echo "| ${names[i]} | ${verdicts[i]} | ${seconds[i]} | ${note//|/\\|} |"
  done
  echo
  table
} >"$markdown"
echo "$json" >&2
echo "$markdown" >&2
((failed == 0)) || exit 1
((strict && skipped)) && exit 1
exit 0
