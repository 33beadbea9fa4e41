#!/usr/bin/env bash
# Fills a virtual environment with what benches/compare/ and scripts/make-golden.py need: PyTorch, numpy, safetensors and
# scikit-learn, at the versions the committed figures and golden files were made with. Nothing else in the repository needs Python.
#
#   scripts/setup-python.sh [FOLDER]          default: target/python-venv; PYTHON names the interpreter (3.10 or newer)
#
# On Linux PyPI's wheel of PyTorch is the CUDA build, and `import torch` loads every CUDA library by name even for work on the
# CPU. So those that it links to are installed (about 2 GB of downloads), and those that it opens only on demand are not:
# cusolver, nvtx, triton, cuda-bindings. A second run that finds the same versions does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-target/python-venv}
python=${PYTHON:-python3}

torch=2.15.0
general="numpy==2.4.6 safetensors==0.8.0 scikit-learn==1.9.1"
# What the wheel's metadata asks for, less the four above; `import torch` fails without any one of these.
torch_needs="filelock typing-extensions>=4.13.0 setuptools>=77.0.3 sympy>=1.13.3 networkx>=2.5.1 jinja2 fsspec>=0.8.5"
cuda_needs="cuda-toolkit[cublas,cudart,cufft,cufile,cupti,cusparse,nvjitlink,nvrtc]==13.2.2
nvidia-cudnn-cu13==9.26.0.51 nvidia-cusparselt-cu13==0.8.1 nvidia-nccl-cu13==2.30.7 nvidia-nvshmem-cu13==3.7.2"

# The stamp holds the request, so a change of any version above installs again; it is written last, so a broken run leaves none.
stamp="$venv/.warpsmith-python"
wanted=$(printf '%s\n' "$torch" "$general" "$torch_needs" "$cuda_needs")
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "$venv is up to date" >&2
    exit 0
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
case "$(uname -s)" in
Linux) wheels=(${cuda_needs}) ;;
*) wheels=() ;; # macOS: the wheel is a CPU build and stands alone
esac
echo "filling $venv; pip will call torch's missing triton and cuda-bindings an error: they are left out on purpose" >&2
"${pip[@]}" --no-deps "torch==$torch"
# shellcheck disable=SC2086  # lists of requirements, split on purpose
"${pip[@]}" $general $torch_needs ${wheels[@]+"${wheels[@]}"}

"$venv/bin/python" - >&2 <<'PY'
import torch, numpy, safetensors, sklearn
a = torch.ones(64, 64)
assert (a @ a)[0, 0].item() == 64.0
print(f"torch {torch.__version__} with {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; "
      f"numpy {numpy.__version__}, safetensors {safetensors.__version__}, scikit-learn {sklearn.__version__}")
PY
printf '%s\n' "$wanted" >"$stamp"
echo "$venv is ready: $venv/bin/python" >&2
