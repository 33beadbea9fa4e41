"""The pieces that the files of make-golden.py are made of: inputs, tensors, and a case with both passes."""

import math

import torch

DTYPES = {torch.float64: "f64", torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8"}


def grid(*shape, seed, scale=1.0):
    """Normal numbers rounded to multiples of 1/1024, in f64."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale * 1024).round() / 1024


def numbers(t):
    """The elements in row-major order; f32 ones as the shortest decimal that reads back as the same f32."""
    values = t.detach().reshape(-1).tolist()
    if t.dtype == torch.float32:
        values = [float(f"{v:.9g}") for v in values]
    if t.is_floating_point() and not all(map(math.isfinite, values)):
        raise ValueError("JSON has no NaN or infinity: leave such a case out")
    return values


def tensor(t):
    """A tensor of the format."""
    return {"shape": list(t.shape), "dtype": DTYPES[t.dtype], "data": numbers(t)}


def case(name, op, function, inputs, args=None, fixed=None, no_grad=()):
    """One forward and backward pass. `inputs` get gradients (but those in `no_grad`), `fixed` (indices) do not."""
    fixed = fixed or {}

    def once(dtype):
        leaves = {key: t.to(dtype).requires_grad_(key not in no_grad) for key, t in inputs.items()}
        y = function(**leaves, **{key: t if not t.is_floating_point() else t.to(dtype) for key, t in fixed.items()})
        dy = torch.ones((), dtype=dtype) if y.dim() == 0 else grid(*y.shape, seed=99).to(dtype)
        wanted = [key for key in leaves if key not in no_grad]
        grads = torch.autograd.grad(y, [leaves[key] for key in wanted], dy)
        return y, dy, dict(zip(wanted, grads))

    y, dy, grads = once(torch.float64)
    y32, _, grads32 = once(torch.float32)
    return {
        "name": name,
        "op": op,
        "args": args or {},
        "inputs": {key: tensor(t) for key, t in {**inputs, **fixed}.items()},
        "output": tensor(y),
        "dy": tensor(dy),
        "grads": {key: tensor(t) for key, t in grads.items()},
        "f32": {"output": numbers(y32), "grads": {key: numbers(t) for key, t in grads32.items()}},
    }
