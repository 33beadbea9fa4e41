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

import make_golden_optim
import make_golden_pooling
from make_golden_format import case, grid, numbers, tensor

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"
CHECK_TOLERANCE = 1e-12  # other processors and BLAS builds sum in another order
F32_CHECK_TOLERANCE = 1e-5  # the same, for the f32 results


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

    def attention(causal, scale):
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)

    add("attention_causal", "attention", attention(True, None),
        {"q": grid(2, 2, 5, 4, seed=16), "k": grid(2, 2, 5, 4, seed=17), "v": grid(2, 2, 5, 4, seed=18)}, args={"causal": True})
    # Four heads share two of keys and values; more keys than queries.
    add("attention_grouped", "attention", attention(False, 0.25),
        {"q": grid(1, 4, 3, 6, seed=19, scale=2.0), "k": grid(1, 2, 7, 6, seed=20), "v": grid(1, 2, 7, 6, seed=21)},
        args={"causal": False, "scale": 0.25})

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
        "model.json": model_content, "optimizers.json": make_golden_optim.optimizers(),
        "schedulers.json": make_golden_optim.schedulers(), "clipping.json": make_golden_optim.clipping(),
        "initialisers.json": initialisers(),
        "pooling.json": make_golden_pooling.pooling(), "batch_norm.json": make_golden_pooling.batch_norm(),
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
