"""The part of make-golden.py that is about images: pooling, resizing, batch norm over several steps, group norm."""

import torch
from torch import nn
from torch.nn import functional as F

from make_golden_format import case, grid, tensor


def pooling():
    """Pooling, resizing and group norm: outputs and gradients, as `layers.json`."""
    cases = []

    def add(name, op, function, inputs, **args):
        cases.append(case(name, op, function, inputs, args=args))

    x, odd, small = grid(1, 2, 4, 6, seed=101), grid(1, 1, 5, 7, seed=102), grid(1, 1, 3, 4, seed=107)
    windows = [
        ("plain", x, dict(kernel=[2, 2])),
        ("odd", odd, dict(kernel=[2, 2])),
        ("ceil", odd, dict(kernel=[2, 2], ceil_mode=True)),
        ("padded", x, dict(kernel=[3, 3], stride=[2, 2], padding=[1, 1])),
        ("padded_ceil", odd, dict(kernel=[3, 2], stride=[2, 3], padding=[1, 1], ceil_mode=True)),
        ("overlapping", odd, dict(kernel=[3, 4], stride=[1, 2])),
        ("without_batch", x[0], dict(kernel=[2, 3], stride=[2, 1])),
    ]
    dilated = ("dilated", odd, dict(kernel=[2, 3], stride=[1, 1], padding=[1, 1], dilation=[2, 2]))

    def window(kernel, stride=None, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
        return dict(kernel=list(kernel), stride=list(stride or kernel), padding=list(padding), dilation=list(dilation), ceil_mode=ceil_mode)

    for name, t, w in [*windows, dilated]:
        w = window(**w)
        add(f"max_pool2d_{name}", "max_pool2d",
            lambda x: F.max_pool2d(x, w["kernel"], w["stride"], w["padding"], w["dilation"], w["ceil_mode"]), {"x": t}, **w)
        if name != "dilated":
            for counted in [True, False]:
                add(f"avg_pool2d_{name}_{'counted' if counted else 'not_counted'}", "avg_pool2d",
                    lambda x: F.avg_pool2d(x, w["kernel"], w["stride"], w["padding"], w["ceil_mode"], counted), {"x": t}, **w, count_include_pad=counted)
    # Equal elements: the first of them gets the gradient.
    ties = torch.tensor([[1.0, 2, 2, 0], [2, 2, 0, 0], [3, 3, -1, -1], [3, 3, -1, -1]], dtype=torch.float64).reshape(1, 1, 4, 4)
    w = window([3, 3], [1, 1], [1, 1])
    add("max_pool2d_ties", "max_pool2d", lambda x: F.max_pool2d(x, 3, 1, 1), {"x": ties}, **w)
    row = grid(2, 2, 9, seed=103)
    for name, k, s, p, d in [("plain", 2, 2, 0, 1), ("padded", 3, 2, 1, 1), ("dilated", 2, 1, 1, 3)]:
        args = dict(kernel=[k], stride=[s], padding=[p], dilation=[d], ceil_mode=False)
        add(f"max_pool1d_{name}", "max_pool1d", lambda x: F.max_pool1d(x, k, s, p, d), {"x": row}, **args)
        if d == 1:
            add(f"avg_pool1d_{name}", "avg_pool1d", lambda x: F.avg_pool1d(x, k, s, p), {"x": row}, **args, count_include_pad=True)
    for size in [[1, 1], [2, 3], [4, 6], [5, 7], [3, 4]]:
        add(f"adaptive_avg_pool2d_{size[0]}x{size[1]}", "adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, size), {"x": x}, size=size)
    for size in [1, 4]:
        add(f"adaptive_avg_pool1d_{size}", "adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, size), {"x": row}, size=[size])

    def resized(name, **how):
        modes = [("nearest", None), ("bilinear", False), ("bilinear", True)]
        for mode, corners in modes:
            tail = {None: "", False: "_edges", True: "_corners"}[corners]
            add(f"interpolate_{name}_{mode}{tail}", "interpolate", lambda x: F.interpolate(x, mode=mode, align_corners=corners, **how), {"x": small},
                mode=mode + tail, **how)

    for size in [[6, 8], [2, 3], [1, 1], [4, 7], [3, 4], [10, 2]]:
        resized(f"to_{size[0]}x{size[1]}", size=size)
    for scale in [[2.0, 2.0], [1.5, 0.7], [1.05, 2.9], [0.4, 1.0], [1.0, 2.2]]:
        resized(f"by_{scale[0]:g}x{scale[1]:g}", scale_factor=scale)

    for groups in [1, 2, 4]:
        for shape in [(3, 4), (2, 4, 5), (2, 4, 3, 2)]:
            add(f"group_norm_{groups}_{len(shape)}d", "group_norm", lambda x, weight, bias: F.group_norm(x, groups, weight, bias, 1e-5),
                {"x": grid(*shape, seed=104, scale=2.0), "weight": grid(4, seed=105), "bias": grid(4, seed=106)}, groups=groups, eps=1e-5)
    return {"cases": cases}


def batch_norm():
    """Batch norm over several steps: results, gradients and running statistics of each, then an evaluation."""
    cases = []

    def add(name, layer, shape, steps=4, offset=0.0, **options):
        channels, result = shape[1], []
        module = layer(channels, **options).double()
        for key, seed in [("weight", 201), ("bias", 202)]:
            if getattr(module, key) is not None:
                with torch.no_grad():
                    getattr(module, key).copy_(grid(channels, seed=seed))
        start = {key: tensor(p.clone()) for key, p in module.named_parameters()}

        def once(k, shape):
            x = (grid(*shape, seed=300 + k, scale=2.0) + offset).requires_grad_()
            dy = grid(*shape, seed=400 + k)
            module.zero_grad()
            y = module(x)
            y.backward(dy)
            grads = {"x": x.grad, **{key: p.grad for key, p in module.named_parameters()}}
            return {"x": tensor(x), "dy": tensor(dy), "output": tensor(y), "grads": {key: tensor(g) for key, g in grads.items()},
                    "buffers": {key: tensor(b.clone()) for key, b in module.named_buffers()}}

        for k in range(steps):
            # The last batch is smaller, as at the end of an epoch.
            result.append(once(k, (shape[0] - 1, *shape[1:]) if k == steps - 1 else shape))
        module.eval()
        cases.append({"name": name, "layer": layer.__name__, "options": {key: v for key, v in options.items() if v is not None},
                      "cumulative": options.get("momentum", 0.1) is None, "channels": channels, "parameters": start, "steps": result,
                      "eval": once(99, shape)})

    add("images", nn.BatchNorm2d, (4, 3, 2, 5))
    add("images_without_affine", nn.BatchNorm2d, (3, 2, 3, 3), affine=False)
    add("images_without_statistics", nn.BatchNorm2d, (3, 2, 3, 3), track_running_stats=False)
    add("rows", nn.BatchNorm1d, (5, 4))
    add("sequences", nn.BatchNorm1d, (3, 4, 7), momentum=0.3, eps=1e-3)
    add("average_of_all", nn.BatchNorm1d, (4, 3), momentum=None)
    # A large mean beside a small spread: a one-pass variance in f32 loses it.
    add("offset", nn.BatchNorm2d, (4, 2, 3, 3), offset=500.0)
    return {"cases": cases}
