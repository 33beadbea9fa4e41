#!/usr/bin/env python3
"""Writes tests/golden/*: what PyTorch computes, for the Rust tests to compare with. tests/golden/README.md has the format.

    scripts/make-golden.py             writes the files
    scripts/make-golden.py --check     writes nothing; exit 1 if PyTorch here computes anything else than the files say

Run it under the Python that scripts/setup-python.sh makes. All inputs are multiples of 1/1024 or other short numbers that f32
holds exactly, so f64 and f32 results belong to the very same inputs and the files stay small and readable.
"""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop, lr_scheduler

import make_golden_pooling

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"
DTYPES = {torch.float64: "f64", torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8"}
CHECK_TOLERANCE = 1e-12  # other processors and BLAS builds sum in another order
F32_CHECK_TOLERANCE = 1e-5  # the same, for the f32 results


# ---- the pieces of the format ----


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


# ---- layers ----


def layers():
    """Layers and activations: outputs and the gradients of inputs and parameters."""
    cases = []

    def add(name, op, function, inputs, **rest):
        cases.append(case(name, op, function, inputs, **rest))

    w, b = grid(4, 5, seed=1), grid(4, seed=2)
    add("linear_bias", "linear", lambda x, weight, bias: F.linear(x, weight, bias), {"x": grid(3, 5, seed=3), "weight": w, "bias": b})
    add("linear_no_bias", "linear", lambda x, weight: F.linear(x, weight), {"x": grid(3, 5, seed=3), "weight": w})
    add("linear_batched", "linear", lambda x, weight, bias: F.linear(x, weight, bias),
        {"x": grid(2, 3, 5, seed=4), "weight": w, "bias": b})

    for eps in [1e-5, 1e-2]:
        add(f"layer_norm_{eps:g}", "layer_norm", lambda x, weight, bias: F.layer_norm(x, (6,), weight, bias, eps),
            {"x": grid(4, 6, seed=5, scale=2.0), "weight": grid(6, seed=6), "bias": grid(6, seed=7)},
            args={"normalized_shape": [6], "eps": eps})
    add("layer_norm_plain", "layer_norm", lambda x: F.layer_norm(x, (6,), eps=1e-5), {"x": grid(4, 6, seed=5, scale=2.0)},
        args={"normalized_shape": [6], "eps": 1e-5})
    # A large mean beside a small spread: a one-pass variance in f32 loses it.
    add("layer_norm_offset", "layer_norm", lambda x: F.layer_norm(x, (8,), eps=1e-5), {"x": grid(2, 8, seed=8) + 500.0},
        args={"normalized_shape": [8], "eps": 1e-5})
    add("layer_norm_two_axes", "layer_norm", lambda x, weight, bias: F.layer_norm(x, (3, 4), weight, bias, 1e-5),
        {"x": grid(2, 3, 4, seed=9), "weight": grid(3, 4, seed=10), "bias": grid(3, 4, seed=11)},
        args={"normalized_shape": [3, 4], "eps": 1e-5})

    for eps in [1e-6, 1e-2]:
        add(f"rms_norm_{eps:g}", "rms_norm", lambda x, weight: F.rms_norm(x, (6,), weight, eps),
            {"x": grid(4, 6, seed=12), "weight": grid(6, seed=13)}, args={"normalized_shape": [6], "eps": eps})
    add("rms_norm_plain", "rms_norm", lambda x: F.rms_norm(x, (6,), eps=1e-6), {"x": grid(4, 6, seed=12)},
        args={"normalized_shape": [6], "eps": 1e-6})

    # Index 3 comes three times: its rows of the gradient add up; rows 0 and 6 are not used: zeros.
    add("embedding", "embedding", lambda weight, ids: F.embedding(ids, weight), {"weight": grid(7, 4, seed=14)},
        fixed={"ids": torch.tensor([[3, 1, 3], [5, 3, 2], [4, 4, 1]])})

    for name, function in [("softmax", F.softmax), ("log_softmax", F.log_softmax)]:
        for dim in [0, 1, 2]:
            add(f"{name}_dim{dim}", name, lambda x: function(x, dim), {"x": grid(2, 3, 4, seed=15, scale=2.0)}, args={"dim": dim})
        far = torch.tensor([[1000.0, 999.0, -1000.0], [-2000.0, -2001.0, -2000.5]], dtype=torch.float64)
        add(f"{name}_far", name, lambda x: function(x, 1), {"x": far}, args={"dim": 1})

    # Zero, both signs, and values where exp and erf saturate.
    points = [0.0625, 0.5, 1.0, 1.5, 3.0, 6.0, 20.0, 100.0]
    points = torch.tensor([-v for v in reversed(points)] + [0.0] + points, dtype=torch.float64)
    add("relu", "relu", lambda x: F.relu(x), {"x": points})
    for slope in [0.01, 0.25]:
        add(f"leaky_relu_{slope}", "leaky_relu", lambda x: F.leaky_relu(x, slope), {"x": points}, args={"negative_slope": slope})
    for approximate in ["none", "tanh"]:
        add(f"gelu_{approximate}", "gelu", lambda x: F.gelu(x, approximate=approximate), {"x": points}, args={"approximate": approximate})
    add("silu", "silu", lambda x: F.silu(x), {"x": points})
    add("sigmoid", "sigmoid", lambda x: torch.sigmoid(x), {"x": points})
    add("tanh", "tanh", lambda x: torch.tanh(x), {"x": points})
    return {"cases": cases}


# ---- losses ----


def losses():
    """Losses under all options and reductions: values and gradients."""
    cases = []

    def add(name, op, function, inputs, reductions=("mean", "sum", "none"), args=None, **rest):
        for reduction in reductions:
            cases.append(case(f"{name}_{reduction}", op, lambda **t: function(reduction=reduction, **t), inputs,
                              args={**(args or {}), "reduction": reduction}, **rest))

    logits, weight = grid(5, 4, seed=20, scale=2.0), torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64)
    classes, ignoring = torch.tensor([2, 0, 3, 1, 2]), torch.tensor([2, -100, 3, 1, -100])
    soft = torch.tensor([[0.5, 0.25, 0.125, 0.125], [1, 0, 0, 0], [0.25] * 4, [0, 0.5, 0.5, 0], [0.125, 0.125, 0.75, 0]],
                        dtype=torch.float64)
    for name, target, options in [
        ("plain", classes, {}),
        ("ignore", ignoring, {}),
        ("ignore_2", classes, {"ignore_index": 2}),
        ("smoothing", classes, {"label_smoothing": 0.1}),
        ("weight", classes, {"weight": weight}),
        ("ignore_smoothing", ignoring, {"label_smoothing": 0.1}),
        ("weight_ignore", ignoring, {"weight": weight}),
        ("weight_smoothing", classes, {"weight": weight, "label_smoothing": 0.1}),
        ("weight_ignore_smoothing", ignoring, {"weight": weight, "label_smoothing": 0.25}),
        ("soft", soft, {}),
        ("soft_smoothing", soft, {"label_smoothing": 0.1}),
        ("soft_weight", soft, {"weight": weight}),
        ("soft_weight_smoothing", soft, {"weight": weight, "label_smoothing": 0.1}),
    ]:
        tensors = {key: value for key, value in options.items() if torch.is_tensor(value)}
        scalars = {key: value for key, value in options.items() if not torch.is_tensor(value)}
        add(f"cross_entropy_{name}", "cross_entropy",
            lambda x, target, reduction, weight=None: F.cross_entropy(x, target, weight=weight, reduction=reduction, **scalars),
            {"x": logits}, fixed={"target": target, **tensors}, args={"ignore_index": -100, "label_smoothing": 0.0, **scalars})
    far = torch.tensor([[1000.0, -1000.0, 0.0], [-500.0, 500.0, 499.0]], dtype=torch.float64)
    add("cross_entropy_far", "cross_entropy", lambda x, target, reduction: F.cross_entropy(x, target, reduction=reduction), {"x": far}, fixed={"target": torch.tensor([1, 1])},
        args={"ignore_index": -100, "label_smoothing": 0.0})

    x = torch.cat([grid(3, 3, seed=21, scale=2.0), torch.tensor([[100.0, -100.0, 0.0]], dtype=torch.float64)])
    y = torch.tensor([[1, 0, 1], [0, 0, 1], [0.25, 0.5, 0.75], [1, 0, 1]], dtype=torch.float64)
    bce = lambda x, target, reduction, pos_weight=None: F.binary_cross_entropy_with_logits(  # noqa: E731
        x, target, pos_weight=pos_weight, reduction=reduction)
    add("bce_with_logits_plain", "bce_with_logits", bce, {"x": x}, fixed={"target": y})
    # The last row turned round: confident and wrong, where a log of a rounded sigmoid would be infinite.
    add("bce_with_logits_wrong", "bce_with_logits", bce, {"x": x}, fixed={"target": 1 - y})
    add("bce_with_logits_pos_weight", "bce_with_logits", bce, {"x": x},
        fixed={"target": y, "pos_weight": torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64)})

    a, b = grid(3, 4, seed=22, scale=2.0), grid(3, 4, seed=23)
    a[0, :4] = b[0, :4] + torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)  # a tie, and huber's edges
    add("mse", "mse", lambda x, target, reduction: F.mse_loss(x, target, reduction=reduction), {"x": a, "target": b})
    add("l1", "l1", lambda x, target, reduction: F.l1_loss(x, target, reduction=reduction), {"x": a, "target": b})
    for delta in [0.5, 1.0, 2.0]:
        add(f"huber_{delta:g}", "huber", lambda x, target, reduction: F.huber_loss(x, target, reduction=reduction, delta=delta),
            {"x": a, "target": b}, args={"delta": delta})

    # x holds log-probabilities, as kl_div wants; a target of zero adds nothing to the sum.
    log_q, p = F.log_softmax(grid(3, 4, seed=24), 1), F.softmax(grid(3, 4, seed=25), 1)
    log_q, p = (log_q * 1024).round() / 1024, (p * 1024).round() / 1024
    p[0] = torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    every = ("batchmean", "mean", "sum", "none")
    add("kl_div", "kl_div", lambda x, target, reduction: F.kl_div(x, target, reduction=reduction), {"x": log_q}, every,
        fixed={"target": p}, args={"log_target": False})
    log_p = (F.log_softmax(grid(3, 4, seed=26), 1) * 1024).round() / 1024
    add("kl_div_log_target", "kl_div", lambda x, target, reduction: F.kl_div(x, target, reduction=reduction, log_target=True),
        {"x": log_q}, every, fixed={"target": log_p}, args={"log_target": True})

    for temperature in [1.0, 2.0, 4.0]:
        def distil(student, teacher, t=temperature):
            return F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t

        cases.append(case(f"distillation_{temperature:g}", "kl_div_with_temperature", distil, {"student": grid(3, 5, seed=27, scale=2.0)},
                          fixed={"teacher": grid(3, 5, seed=28, scale=3.0)}, args={"temperature": temperature, "reduction": "batchmean"}))
    return {"cases": cases}


# ---- recurrent networks ----


def recurrent():
    """Whole recurrent networks and single cells: outputs, last states, and the gradients of input, states and parameters."""
    cases = []

    def add(name, op, net, args, x, states):
        inputs = {"x": x, **states}
        named = dict(net.named_parameters())
        with torch.no_grad():
            for index, parameter in enumerate(named.values()):
                parameter.copy_(grid(*parameter.shape, seed=200 + index, scale=0.5))
        net.double()
        leaves = {key: t.clone().requires_grad_() for key, t in inputs.items()}
        given = [leaves[key] for key in states]
        found = net(leaves["x"], *([] if not given else [tuple(given)] if len(given) == 2 else given))
        # Cells return h, or h and c; networks y and the last states.
        if op.endswith("_cell"):
            names, parts = ["h", "c"], found if isinstance(found, tuple) else (found,)
        else:
            names, parts = ["y", "h_n", "c_n"], (found[0], *(found[1] if isinstance(found[1], tuple) else (found[1],)))
        outputs = dict(zip(names, parts))
        seeds = {key: grid(*t.shape, seed=300 + index) for index, (key, t) in enumerate(outputs.items())}
        loss = sum((t * seeds[key]).sum() for key, t in outputs.items())
        wanted = {**leaves, **named}
        grads = torch.autograd.grad(loss, list(wanted.values()))
        cases.append({
            "name": name, "op": op, "args": args,
            "inputs": {key: tensor(t) for key, t in inputs.items()},
            "parameters": {key: tensor(t) for key, t in named.items()},
            "outputs": {key: tensor(t) for key, t in outputs.items()},
            "dy": {key: tensor(t) for key, t in seeds.items()},
            "grads": {key: tensor(t) for key, t in zip(wanted, grads)},
        })

    width, hidden, batch = 4, 3, 2
    kinds = [("lstm", nn.LSTM, nn.LSTMCell, {}), ("gru", nn.GRU, nn.GRUCell, {}), ("rnn", nn.RNN, nn.RNNCell, {}),
             ("rnn_relu", nn.RNN, nn.RNNCell, {"nonlinearity": "relu"})]
    shapes = {
        "plain": (5, {}, False),
        "one_step": (1, {}, True),
        "no_bias": (3, {"bias": False}, True),
        "bidirectional": (4, {"bidirectional": True}, True),
        "two_layers": (3, {"num_layers": 2}, False),
        "all": (3, {"num_layers": 2, "bidirectional": True, "batch_first": True}, True),
        "long": (40, {"batch_first": True}, False),
    }
    for kind, network, cell, extra in kinds:
        for shape, (steps, options, given) in shapes.items():
            if kind == "rnn_relu" and shape not in ("plain", "all"):
                continue
            net = network(width, hidden, **options, **extra)
            args = {"num_layers": 1, "bidirectional": False, "bias": True, "batch_first": False, **options, **extra}
            x = grid(steps, batch, width, seed=100)
            rows = args["num_layers"] * (2 if args["bidirectional"] else 1)
            names = (["h0", "c0"] if kind == "lstm" else ["h0"]) if given else []
            states = {key: grid(rows, batch, hidden, seed=101 + index) for index, key in enumerate(names)}
            x = x.transpose(0, 1).contiguous() if args["batch_first"] else x
            add(f"{kind}_{shape}", kind.split("_")[0], net, args, x, states)
        for bias in [True, False]:
            names = (["h0", "c0"] if kind == "lstm" else ["h0"]) if bias else []
            states = {key: grid(batch, hidden, seed=111 + index) for index, key in enumerate(names)}
            add(f"{kind}_cell" + ("" if bias else "_no_bias"), f"{kind.split('_')[0]}_cell", cell(width, hidden, bias=bias, **extra),
                {"bias": bias, **extra}, grid(batch, width, seed=110), states)
    return {"cases": cases}


def convolutions():
    """Convolutional layers: outputs, and the gradients of input, weight and bias."""
    cases = []

    def add(name, op, layer, x, args):
        named = dict(layer.named_parameters())
        with torch.no_grad():
            for index, parameter in enumerate(named.values()):
                parameter.copy_(grid(*parameter.shape, seed=400 + index, scale=0.5))
        layer.double()
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        dy = grid(*y.shape, seed=499)
        wanted = {"x": leaf, **named}
        grads = torch.autograd.grad(y, list(wanted.values()), dy)
        cases.append({
            "name": name, "op": op, "args": args, "x": tensor(x),
            "parameters": {key: tensor(t) for key, t in named.items()},
            "output": tensor(y), "dy": tensor(dy),
            "grads": {key: tensor(t) for key, t in zip(wanted, grads)},
        })

    kinds = [("conv1d", nn.Conv1d, 1), ("conv2d", nn.Conv2d, 2), ("conv_transpose2d", nn.ConvTranspose2d, 2)]
    for op, kind, dims in kinds:
        options = {
            "plain": {},
            "same": {"padding": 1},
            "stride": {"stride": 2, "padding": 1},
            "dilation": {"dilation": 2, "padding": 2},
            "groups": {"groups": 2, "padding": 1},
            "depthwise": {"groups": 4, "stride": 2, "padding": 1},
            "no_bias": {"bias": False},
            "all": {"stride": 3, "padding": 2, "dilation": 2, "groups": 2},
        }
        if dims == 2:
            options["uneven"] = {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)}
        if op == "conv_transpose2d":
            options["output_padding"] = {"stride": (3, 2), "padding": 1, "output_padding": (2, 1)}
        for name, own in options.items():
            kernel = 3 if dims == 1 or name != "uneven" else (2, 3)
            layer = kind(4, 4 if name != "plain" else 6, kernel, **own)
            x = grid(2 if name in ("plain", "stride") else 1, 4, *([6, 5][:dims]), seed=401)
            pair = lambda v: list(v) if isinstance(v, tuple) else [v] * dims  # noqa: E731
            args = {"kernel": pair(kernel), "stride": pair(own.get("stride", 1)), "padding": pair(own.get("padding", 0)),
                    "dilation": pair(own.get("dilation", 1)), "groups": own.get("groups", 1), "bias": own.get("bias", True),
                    "output_padding": pair(own.get("output_padding", 0)), "outputs": layer.out_channels}
            add(f"{op}_{name}", op, layer, x, args)
    return {"cases": cases}


# ---- a whole model, and PyTorch's own file of it ----


def model():
    """Linear, ReLU, LayerNorm, Linear and cross-entropy as one model with named parameters; its state dict goes to a file."""
    torch.manual_seed(30)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.copy_(grid(*parameter.shape, seed=31 + index, scale=0.5))
    x, target = grid(5, 6, seed=40), torch.tensor([0, 2, 1, 1, 0])

    def once(dtype):
        net.to(dtype).zero_grad()
        y = net(x.to(dtype))
        loss = F.cross_entropy(y, target)
        loss.backward()
        return y, loss, {name: p.grad.clone() for name, p in net.named_parameters()}

    y32, loss32, grads32 = once(torch.float32)
    state = {name: t.clone() for name, t in net.state_dict().items()}
    y, loss, grads = once(torch.float64)
    return {
        "layers": ["linear 6 8", "relu", "layer_norm 8 eps 1e-5", "linear 8 3"],
        "file": "model.safetensors",
        "parameters": {name: tensor(t.double()) for name, t in state.items()},
        "x": tensor(x),
        "target": tensor(target),
        "output": tensor(y),
        "loss": tensor(loss),
        "grads": {name: tensor(t) for name, t in grads.items()},
        "f32": {"output": numbers(y32), "loss": numbers(loss32), "grads": {name: numbers(t) for name, t in grads32.items()}},
    }, {"model.safetensors": state, "dtypes.safetensors": every_dtype()}


def every_dtype():
    """One tensor of each element type that warpsmith has, with the shapes a reader may trip over."""
    ramp = torch.arange(6).reshape(2, 3)
    halves = ramp * 0.5 - 1.0
    return {
        "f32": halves.float(), "f64": halves.double(), "f16": halves.half(), "bf16": halves.bfloat16(),
        "u8": (ramp * 51).to(torch.uint8), "i32": (ramp - 3).int(), "i64": (ramp - 3) * 2**40,
        "scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "scale.µ": torch.tensor([0.25]),
    }


# ---- optimisers ----

STEPS, KEPT = 20, (1, 2, 5, 20)


def optimizers():
    """20 steps of each optimiser on two parameters with given gradients."""
    start = {"w": grid(3, 4, seed=50), "b": grid(4, seed=51)}
    grads = []
    for t in range(STEPS):
        # Changing signs and sizes; b's gradient is small, so that eps matters there.
        w = [round(1024 * math.sin(1.3 * i + 0.7 * t) * (1 + i % 3)) / 1024 for i in range(12)]
        b = [round(65536 * 1e-3 * math.cos(0.9 * i + 0.4 * t)) / 65536 for i in range(4)]
        grads.append({"w": torch.tensor(w, dtype=torch.float64).reshape(3, 4), "b": torch.tensor(b, dtype=torch.float64)})

    def case_of(name, kind, args, groups=None, lrs=None):
        def once(dtype):
            params = {key: t.to(dtype).clone().requires_grad_() for key, t in start.items()}
            sets = [{"params": [params[key]], **(groups or {}).get(key, {})} for key in params]
            optimizer = kind(sets, foreach=False, **args)
            kept = []
            for t in range(STEPS):
                for key, parameter in params.items():
                    parameter.grad = grads[t][key].to(dtype)
                for group in optimizer.param_groups if lrs else []:
                    group["lr"] = lrs[t]
                optimizer.step()
                if t + 1 in KEPT:
                    kept.append({key: p.detach().clone() for key, p in params.items()})
            return kept

        after, after32 = once(torch.float64), once(torch.float32)
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in args.items()}
        return {
            "name": name, "optimizer": kind.__name__.lower(), "args": listed, "groups": groups or {}, "lrs": lrs or [],
            "after": [{"step": step, **{key: numbers(t) for key, t in values.items()}} for step, values in zip(KEPT, after)],
            "f32": {key: numbers(t) for key, t in after32[-1].items()},
        }

    falling = [0.1 * (1 - t / STEPS) for t in range(STEPS)]
    off_for_b = {"b": {"weight_decay": 0.0}}
    # All that PyTorch defaults to is written out: a reader needs no manual.
    sgd = {"lr": 0.05, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
    rms = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False, "weight_decay": 0.0}
    adam = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    return {
        "steps": STEPS,
        "start": {key: tensor(t) for key, t in start.items()},
        "grads": [{key: numbers(t) for key, t in g.items()} for g in grads],
        "cases": [
            case_of("sgd", SGD, sgd),
            case_of("sgd_weight_decay", SGD, {**sgd, "weight_decay": 0.1}),
            case_of("sgd_momentum", SGD, {**sgd, "momentum": 0.9}),
            case_of("sgd_momentum_weight_decay", SGD, {**sgd, "momentum": 0.9, "weight_decay": 0.1}),
            case_of("sgd_dampening", SGD, {**sgd, "momentum": 0.9, "dampening": 0.5}),
            case_of("sgd_nesterov", SGD, {**sgd, "momentum": 0.9, "nesterov": True}),
            case_of("sgd_nesterov_weight_decay", SGD, {**sgd, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
            case_of("sgd_momentum_lrs", SGD, {**sgd, "momentum": 0.9}, lrs=falling),
            case_of("rmsprop", RMSprop, rms),
            case_of("rmsprop_alpha", RMSprop, {**rms, "alpha": 0.9, "eps": 1e-3}),
            case_of("rmsprop_weight_decay", RMSprop, {**rms, "weight_decay": 0.1}),
            case_of("rmsprop_momentum", RMSprop, {**rms, "momentum": 0.9}),
            case_of("rmsprop_centered", RMSprop, {**rms, "centered": True}),
            case_of("rmsprop_centered_momentum", RMSprop, {**rms, "centered": True, "momentum": 0.9, "weight_decay": 0.1}),
            case_of("adam", Adam, adam),
            case_of("adam_betas_eps", Adam, {**adam, "betas": (0.8, 0.95), "eps": 1e-3}),
            case_of("adam_weight_decay", Adam, {**adam, "weight_decay": 0.1}),
            case_of("adam_lrs", Adam, adam, lrs=falling),
            case_of("adamw", AdamW, {**adam, "weight_decay": 0.01}),
            case_of("adamw_groups", AdamW, {**adam, "weight_decay": 0.1}, groups=off_for_b),
            case_of("adamw_lrs", AdamW, {**adam, "weight_decay": 0.1}, lrs=falling),
        ],
    }


# ---- schedules ----


def schedulers():
    """The learning rate of each of 40 steps (for plateau: of each of 40 epochs, the metric of epoch k known after it)."""
    count, base = 40, 0.1
    cases = []

    def rates(make, metrics=None):
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=base)
        scheduler = make(optimizer)
        found = []
        for k in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if k + 1 < count:  # one-cycle refuses a step past its end
                scheduler.step(*([metrics[k]] if metrics else []))
        return found

    def add(name, schedule, make, args, formula, check=None, **rest):
        found = rates(make, rest.get("metrics"))
        if check:  # the formula in words is the formula that PyTorch has
            worst = max(abs(check(k) - lr) for k, lr in enumerate(found))
            assert worst < 1e-12, (name, worst)
        cases.append({"name": name, "schedule": schedule, "args": {"lr": base, **args}, "formula": formula, **rest, "lrs": found})

    add("constant", "constant", lambda o: lr_scheduler.LambdaLR(o, lambda k: 1.0), {}, "lr", lambda k: base)

    # Three customs of warming up over `warmup` = 8 steps, then constant; a program has one of them.
    n = 8
    add("warmup_k_plus_1", "constant", lambda o: lr_scheduler.LinearLR(o, 1 / n, 1.0, n - 1), {"warmup": n},
        "k < warmup: lr (k + 1) / warmup", lambda k: base * min(1, (k + 1) / n))
    add("warmup_k", "constant", lambda o: lr_scheduler.LambdaLR(o, lambda k: min(1.0, k / n)), {"warmup": n},
        "k < warmup: lr k / warmup", lambda k: base * min(1, k / n))
    add("warmup_from_third", "constant", lambda o: lr_scheduler.LinearLR(o, 1 / 3, 1.0, n), {"warmup": n, "start_factor": 1 / 3},
        "k < warmup: lr (start_factor + (1 - start_factor) k / warmup); PyTorch's LinearLR",
        lambda k: base * min(1, 1 / 3 + 2 / 3 * k / n))

    for end, total in [(0.0, 40), (0.1, 40), (0.25, 20)]:
        add(f"linear_{end:g}_{total}", "linear", lambda o: lr_scheduler.LinearLR(o, 1.0, end, total),
            {"end_factor": end, "total_steps": total}, "lr (1 + (end_factor - 1) min(k, total_steps) / total_steps)",
            lambda k: base * (1 + (end - 1) * min(k, total) / total))
    for low in [0.0, 0.01]:
        add(f"cosine_{low:g}", "cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, count, low),
            {"total_steps": count, "min_lr": low}, "min_lr + (lr - min_lr) (1 + cos(π k / total_steps)) / 2",
            lambda k: low + (base - low) * (1 + math.cos(math.pi * k / count)) / 2)

    def sequence(warm, after):
        return lambda o: lr_scheduler.SequentialLR(o, [warm(o), after(o)], milestones=[n])

    def hot(k):
        return base * (k + 1) / n

    k_plus_1 = lambda o: lr_scheduler.LinearLR(o, 1 / n, 1.0, n - 1)  # noqa: E731
    rest = count - n
    for low in [0.0, 0.01]:
        add(f"cosine_warmup_{low:g}", "cosine", sequence(k_plus_1, lambda o: lr_scheduler.CosineAnnealingLR(o, rest, low)),
            {"warmup": n, "total_steps": count, "min_lr": low},
            "k < warmup: lr (k + 1) / warmup; else min_lr + (lr - min_lr) (1 + cos(π (k - warmup) / (total_steps - warmup))) / 2",
            lambda k: hot(k) if k < n else low + (base - low) * (1 + math.cos(math.pi * (k - n) / rest)) / 2)
    add("linear_warmup", "linear", sequence(k_plus_1, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, rest)),
        {"warmup": n, "total_steps": count, "end_factor": 0.0},
        "k < warmup: lr (k + 1) / warmup; else lr (1 - (k - warmup) / (total_steps - warmup))",
        lambda k: hot(k) if k < n else base * (1 - (k - n) / rest))

    add("step_7_0.5", "step", lambda o: lr_scheduler.StepLR(o, 7, 0.5), {"step_size": 7, "gamma": 0.5},
        "lr gamma^floor(k / step_size)", lambda k: base * 0.5 ** (k // 7))
    add("step_10_0.1", "step", lambda o: lr_scheduler.StepLR(o, 10, 0.1), {"step_size": 10, "gamma": 0.1},
        "lr gamma^floor(k / step_size)", lambda k: base * 0.1 ** (k // 10))
    for gamma in [0.9, 0.99]:
        add(f"exponential_{gamma:g}", "exponential", lambda o: lr_scheduler.ExponentialLR(o, gamma), {"gamma": gamma},
            "lr gamma^k", lambda k: base * gamma**k)

    for anneal in ["cos", "linear"]:
        for pct, div, final in [(0.3, 25.0, 1e4), (0.25, 10.0, 100.0)]:
            def one_cycle(k, pct=pct, div=div, final=final, anneal=anneal):
                top, low = pct * count - 1, base / div
                end = low / final
                a, b, share = (low, base, k / top) if k <= top else (base, end, (k - top) / (count - 1 - top))
                return a + (b - a) * (share if anneal == "linear" else (1 - math.cos(math.pi * share)) / 2)

            add(f"one_cycle_{anneal}_{pct:g}", "one_cycle",
                lambda o: lr_scheduler.OneCycleLR(o, base, total_steps=count, pct_start=pct, anneal_strategy=anneal,
                                                  cycle_momentum=False, div_factor=div, final_div_factor=final),
                {"total_steps": count, "pct_start": pct, "anneal": anneal, "div_factor": div, "final_div_factor": final},
                "low = lr / div_factor, end = low / final_div_factor, top = pct_start total_steps - 1; k <= top: from low to lr over "
                "k / top; then from lr to end over (k - top) / (total_steps - 1 - top); along a line or half a cosine", one_cycle)

    # Falls, then flat with small dents, a better stretch, flat again.
    losses_ = [round(1 / (k + 1), 4) for k in range(8)] + [0.125, 0.1249, 0.1251, 0.13, 0.126, 0.125, 0.1248, 0.127]
    losses_ += [0.12, 0.11, 0.10] + [0.1] * 10 + [0.0999, 0.09, 0.095, 0.091, 0.0901, 0.0899, 0.0905, 0.0902, 0.09, 0.092, 0.094]
    assert len(losses_) == count
    default = {"mode": "min", "factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel", "cooldown": 0, "min_lr": 0.0}
    for name, changes in [
        ("default", {"patience": 5}),
        ("patience_2", {"factor": 0.5, "patience": 2}),
        ("patience_0", {"factor": 0.5, "patience": 0, "min_lr": 0.001}),
        ("cooldown", {"factor": 0.5, "patience": 2, "cooldown": 3}),
        ("threshold", {"factor": 0.5, "patience": 2, "threshold": 0.05}),
        ("absolute", {"factor": 0.5, "patience": 2, "threshold": 0.01, "threshold_mode": "abs"}),
        ("max", {"mode": "max", "factor": 0.5, "patience": 2}),
    ]:
        args = {**default, **changes}
        metrics = [-m for m in losses_] if args["mode"] == "max" else losses_
        if args["mode"] == "max":
            metrics = [1.0 + m for m in metrics]  # positive, like an accuracy
        add(f"plateau_{name}", "plateau", lambda o: lr_scheduler.ReduceLROnPlateau(o, **args), {**args, "eps": 1e-8},
            "better: metric < best (1 - threshold), with abs: metric < best - threshold (max: > best (1 + threshold), > best + threshold); "
            "during a cooldown bad epochs do not count; after more than patience bad ones lr = max(lr factor, min_lr), unless the change is <= eps",
            metrics=metrics)
    return {"steps": count, "cases": cases}


# ---- clipping ----


def clipping():
    """Clipping by global norm and by value: gradients before and after."""
    start = {"w": grid(3, 4, seed=60, scale=2.0), "b": grid(4, seed=61)}
    cases = []
    for name, scale, how, limit in [
        ("norm_1", 1.0, "norm", 1.0), ("norm_0.01", 1.0, "norm", 0.01), ("norm_unreached", 1.0, "norm", 100.0),
        ("norm_zero_gradients", 0.0, "norm", 1.0), ("value_0.5", 1.0, "value", 0.5), ("value_unreached", 1.0, "value", 100.0),
    ]:
        params = {key: nn.Parameter(torch.zeros_like(t)) for key, t in start.items()}
        for key, parameter in params.items():
            parameter.grad = start[key] * scale
        before = {key: tensor(p.grad) for key, p in params.items()}
        entry = {"name": name, "kind": how, "limit": limit, "before": before}
        if how == "norm":
            entry["total_norm"] = nn.utils.clip_grad_norm_(params.values(), limit).item()
        else:
            nn.utils.clip_grad_value_(params.values(), limit)
        cases.append({**entry, "after": {key: tensor(p.grad) for key, p in params.items()}})
    return {"formula": "norm: g * min(1, limit / (total_norm + 1e-6)); value: clamp(g, -limit, limit)", "cases": cases}


# ---- initialisers ----


def initialisers():
    """What each initialiser draws from, in theory and as PyTorch drew 120,000 numbers."""
    rows, columns = 400, 300
    fan = {"fan_in": columns, "fan_out": rows}
    cases = []

    def add(name, init, fill, args, shape=(rows, columns), **theory):
        torch.manual_seed(1000 + len(cases))
        t = torch.empty(*shape, dtype=torch.float64)
        t = fill(t).detach().double()
        if theory.get("distribution") == "uniform":
            theory = {**theory, "low": -theory["bound"], "high": theory["bound"], "mean": 0.0, "std": theory["bound"] / math.sqrt(3)}
            theory.pop("bound")
        # Six standard errors: a wrong fan or gain is outside, a correct draw is not.
        assert abs(t.mean().item() - theory["mean"]) <= 6 * theory["std"] / math.sqrt(t.numel()), name
        if theory["std"]:
            assert abs(t.std().item() / theory["std"] - 1) < 6 / math.sqrt(2 * t.numel()) + (0.01 if init == "orthogonal" else 0), name
        measured = {"mean": t.mean().item(), "std": t.std(correction=0).item(), "min": t.min().item(), "max": t.max().item(),
                    "quantiles": torch.quantile(t.flatten(), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)).tolist()}
        if init == "orthogonal":
            product = t @ t.T if shape[0] <= shape[1] else t.T @ t
            measured["largest_error_of_gram"] = (product - args["gain"] ** 2 * torch.eye(len(product), dtype=torch.float64)).abs().max().item()
        cases.append({"name": name, "init": init, "shape": list(shape), "args": args, "theory": theory, "measured": measured})

    bound = 1 / math.sqrt(columns)
    add("linear_weight", "linear_weight", lambda t: nn.Linear(columns, rows).weight, {}, distribution="uniform", bound=bound)
    add("linear_bias", "linear_bias", lambda t: nn.Linear(columns, 20_000).bias, {}, (20_000,), distribution="uniform", bound=bound)
    add("embedding", "embedding", lambda t: nn.Embedding(rows, columns).weight, {}, distribution="normal", mean=0.0, std=1.0)
    add("uniform", "uniform", lambda t: nn.init.uniform_(t, -0.25, 0.25), {"low": -0.25, "high": 0.25}, distribution="uniform", bound=0.25)
    add("normal", "normal", lambda t: nn.init.normal_(t, 0.5, 0.02), {"mean": 0.5, "std": 0.02}, distribution="normal", mean=0.5, std=0.02)
    add("constant", "constant", lambda t: nn.init.constant_(t, 0.375), {"value": 0.375}, distribution="constant", mean=0.375, std=0.0)
    for gain in [1.0, nn.init.calculate_gain("relu"), nn.init.calculate_gain("tanh")]:
        std = gain * math.sqrt(2 / (rows + columns))
        add(f"xavier_uniform_{gain:.3g}", "xavier_uniform", lambda t: nn.init.xavier_uniform_(t, gain), {"gain": gain},
            distribution="uniform", bound=std * math.sqrt(3))
        add(f"xavier_normal_{gain:.3g}", "xavier_normal", lambda t: nn.init.xavier_normal_(t, gain), {"gain": gain},
            distribution="normal", mean=0.0, std=std)
    for mode in ["fan_in", "fan_out"]:
        for nonlinearity, a in [("relu", 0.0), ("leaky_relu", 0.01), ("leaky_relu", math.sqrt(5)), ("tanh", 0.0), ("linear", 0.0)]:
            gain = nn.init.calculate_gain(nonlinearity, a if nonlinearity == "leaky_relu" else None)
            std = gain / math.sqrt(fan[mode])
            args = {"mode": mode, "nonlinearity": nonlinearity, "a": a, "gain": gain}
            tail = f"{mode}_{nonlinearity}" + (f"_{a:.3g}" if a else "")
            add(f"kaiming_uniform_{tail}", "kaiming_uniform", lambda t: nn.init.kaiming_uniform_(t, a, mode, nonlinearity), args,
                distribution="uniform", bound=std * math.sqrt(3))
            add(f"kaiming_normal_{tail}", "kaiming_normal", lambda t: nn.init.kaiming_normal_(t, a, mode, nonlinearity), args,
                distribution="normal", mean=0.0, std=std)
    for shape in [(60, 100), (100, 60), (80, 80)]:
        for gain in [1.0, 2.0]:
            add(f"orthogonal_{shape[0]}x{shape[1]}_{gain:g}", "orthogonal", lambda t: nn.init.orthogonal_(t, gain), {"gain": gain}, shape,
                distribution="orthogonal", mean=0.0, std=gain / math.sqrt(max(shape)))
    return {"gains": {name: nn.init.calculate_gain(name) for name in ["linear", "sigmoid", "tanh", "relu", "leaky_relu"]}, "cases": cases}


# ---- writing and checking ----


def text_of(name, content):
    """The JSON text: one case a line, so that a change shows as a changed line."""
    head = {"about": "PyTorch's results for tests/golden/README.md; made by scripts/make-golden.py, not edited by hand", "torch": torch.__version__.split("+")[0]}
    lines = []
    for key, value in {**head, **content}.items():
        if key == "cases":
            items = ",\n  ".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in value)
            lines.append(f'"cases":[\n  {items}\n ]')
        else:
            lines.append(f"{json.dumps(key)}:{json.dumps(value, ensure_ascii=False, separators=(',', ':'))}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def differences(found, wanted, path="", tolerance=CHECK_TOLERANCE):
    """Yields where two JSON values differ by more than the tolerance; f32 results have a wider one."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in wanted.keys() | found.keys():
            wider = F32_CHECK_TOLERANCE if key == "f32" else tolerance
            yield from differences(found.get(key), wanted.get(key), f"{path}/{key}", wider)
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, pair in enumerate(zip(found, wanted)):
            yield from differences(*pair, f"{path}/{index}", tolerance)
    elif isinstance(wanted, float) and isinstance(found, float):
        if abs(found - wanted) > tolerance * max(1.0, abs(wanted)):
            yield f"{path}: {found} here, {wanted} in the file"
    elif found != wanted and not path.endswith("/torch"):
        yield f"{path}: {found!r} here, {wanted!r} in the file"


def main():
    """Makes everything, then writes it or compares it with what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    from safetensors.torch import load_file, save_file

    warnings.filterwarnings("ignore", message="reduction: 'mean' divides")  # kl_div; its plain mean is wanted here as well
    torch.set_num_threads(1)
    model_content, tensors = model()
    contents = {
        "layers.json": layers(), "losses.json": losses(), "recurrent.json": recurrent(), "convolutions.json": convolutions(),
        "model.json": model_content, "optimizers.json": optimizers(),
        "schedulers.json": schedulers(), "clipping.json": clipping(), "initialisers.json": initialisers(),
        "pooling.json": make_golden_pooling.pooling(case, grid), "batch_norm.json": make_golden_pooling.batch_norm(grid, tensor),
    }
    bad = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        text, path = text_of(name, content), FOLDER / name
        if not args.check:
            path.write_text(text)
            print(f"{path.name}: {len(text.encode())} bytes, {len(content.get('cases', [1]))} cases", file=sys.stderr)
        else:
            bad += [f"{name}{where}" for where in differences(json.loads(text), json.loads(path.read_text()))]
    for name, content in tensors.items():
        path = FOLDER / name
        if not args.check:
            save_file(content, path)
        elif {key: t.tolist() for key, t in load_file(path).items()} != {key: t.tolist() for key, t in content.items()}:
            bad.append(f"{name}: other tensors")
    for line in bad[:20]:
        print(f"make-golden: {line}", file=sys.stderr)
    if bad:
        sys.exit(f"make-golden: {len(bad)} differences")


if __name__ == "__main__":
    main()
