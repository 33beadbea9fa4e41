"""Times single ops of PyTorch on the CPU; `warpsmith bench ops --json` has rows with the same names and sizes.

A row `NAME` is the forward call with nothing recorded. A row `NAME_backward` is the backward pass alone: the graph was recorded
before the clock started, and only the gradients of the op's inputs and parameters are made. All inputs are f32 and contiguous.
Prints one JSON object whose `rows` have `op` and `median_us`.
"""

import argparse
import json
import statistics
import time


def cases(torch):
    """Yields (name, function, differentiable inputs); the function takes those inputs."""
    from torch.nn import functional as F

    n = 1024
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    x, other, bias = normal(n, n), normal(n, n), normal(n)
    for name, function in [
        ("relu", torch.relu),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda t: F.gelu(t, approximate="tanh")),
        ("silu", F.silu),
        ("sigmoid", torch.sigmoid),
        ("tanh", torch.tanh),
        ("exp", torch.exp),
    ]:
        yield name, function, [x]
    yield "log", torch.log, [x.abs() + 0.1]
    yield "sqrt", torch.sqrt, [x.abs() + 0.1]
    yield "add", torch.add, [x, other]
    yield "add_broadcast", torch.add, [x, bias]  # [1024, 1024] + [1024]
    yield "mul", torch.mul, [x, other]
    yield "sum_all", torch.sum, [x]
    yield "sum_axis0", lambda t: torch.sum(t, 0), [x]
    yield "sum_axis1", lambda t: torch.sum(t, 1), [x]
    yield "mean_all", torch.mean, [x]
    yield "max_axis1", lambda t: torch.amax(t, 1), [x]
    yield "argmax_axis1", lambda t: torch.argmax(t, 1), [x.detach()]
    yield "softmax", lambda t: F.softmax(t, 1), [x]
    yield "log_softmax", lambda t: F.log_softmax(t, 1), [x]
    weight = normal(n)
    yield "layer_norm", lambda t, w, b: F.layer_norm(t, (n,), w, b), [x, weight, bias]
    yield "rms_norm", lambda t, w: F.rms_norm(t, (n,), w, 1e-6), [x, weight]
    classes = torch.randint(n, (n,), generator=g)
    yield "cross_entropy", lambda t: F.cross_entropy(t, classes), [x]
    halves = (torch.rand(n, n, generator=g) > 0.5).float()
    yield "bce_with_logits", lambda t: F.binary_cross_entropy_with_logits(t, halves), [x]
    yield "mse", lambda t: F.mse_loss(t, other), [x]
    yield "matmul_512", torch.matmul, [normal(512, 512), normal(512, 512)]
    yield "matmul_batched", torch.matmul, [normal(16, 128, 128), normal(16, 128, 128)]
    yield "linear", F.linear, [normal(256, 1000), normal(500, 1000), normal(500)]  # [batch, in], [out, in], [out]
    yield "linear_relu", lambda t, w, b: F.relu(F.linear(t, w, b)), [normal(256, 1000), normal(500, 1000), normal(500)]
    ids = torch.randint(10_000, (4096,), generator=g)
    yield "embedding", lambda w: F.embedding(ids, w), [normal(10_000, 256)]
    columns = torch.randint(n, (n, n), generator=g)
    yield "gather", lambda t: torch.gather(t, 1, columns), [x]
    chosen = torch.randint(n, (n,), generator=g)
    yield "index_select", lambda t: torch.index_select(t, 0, chosen), [x]
    yield "cat_axis0", lambda a, b: torch.cat([a, b], 0), [x, other]
    yield "cat_axis1", lambda a, b: torch.cat([a, b], 1), [x, other]
    yield "transpose_copy", lambda t: t.t().contiguous(), [x]
    yield "dropout", lambda t: F.dropout(t, 0.5, True), [x]
    yield "sort", lambda t: torch.sort(t, 1)[0], [x]
    yield "argsort", lambda t: torch.argsort(t, 1, descending=True), [x.detach()]
    yield "topk", lambda t: torch.topk(t, 10, 1)[0], [x]
    yield "cumsum_axis0", lambda t: torch.cumsum(t, 0), [x]
    yield "cumsum_axis1", lambda t: torch.cumsum(t, 1), [x]
    yield "scatter_add", lambda t, s: torch.scatter_add(t, 1, columns, s), [x, other]
    yield "one_hot", lambda t: F.one_hot(chosen, n), [x.detach()]
    # Two recurrent layers of width 128: 64 steps, batch 64, 64 inputs.
    zeros = torch.zeros(2, 64, 128)
    for name, gates in [("lstm", 4), ("gru", 3), ("rnn", 1)]:
        shapes = [(gates * 128, width) for layer in (64, 128) for width in (layer, 128, None, None)]
        weights = [normal(*(s for s in shape if s)) / 384**0.5 for shape in shapes]
        function = {
            "lstm": lambda t, *w: torch.lstm(t, (zeros, zeros), w, True, 2, 0.0, True, False, False)[0],
            "gru": lambda t, *w: torch.gru(t, zeros, w, True, 2, 0.0, True, False, False)[0],
            "rnn": lambda t, *w: torch.rnn_tanh(t, zeros, w, True, 2, 0.0, True, False, False)[0],
        }[name]
        yield name, function, [normal(64, 64, 64), *weights]
    yield from images(torch, normal)
    yield from convolutions(normal)


def images(torch, normal):
    """The rows about images, as `cases`."""
    from torch.nn import functional as F

    x, weight, bias, rows = normal(128, 32, 28, 28), normal(32), normal(32), normal(512, 256)
    yield "max_pool2d", lambda t: F.max_pool2d(t, 2), [x]
    yield "relu_max_pool2d", lambda t: F.max_pool2d(F.relu(t), 2), [x]
    yield "max_pool2d_3x3", lambda t: F.max_pool2d(t, 3, 2, 1), [x]
    yield "avg_pool2d", lambda t: F.avg_pool2d(t, 2), [x]
    yield "adaptive_avg_pool2d", lambda t: F.adaptive_avg_pool2d(t, 7), [x]
    yield "batch_norm", lambda t, w, b: F.batch_norm(t, None, None, w, b, True), [x, weight, bias]
    mean, variance = torch.zeros(32), torch.ones(32)
    yield "batch_norm_eval", lambda t, w, b: F.batch_norm(t, mean, variance, w, b), [x, weight, bias]
    yield "group_norm", lambda t, w, b: F.group_norm(t, 8, w, b), [x, weight, bias]
    yield "batch_norm_rows", lambda t, w, b: F.batch_norm(t, None, None, w, b, True), [rows, normal(256), normal(256)]
    small = normal(128, 32, 14, 14)
    yield "interpolate_nearest", lambda t: F.interpolate(t, (28, 28)), [small]
    yield "interpolate_bilinear", lambda t: F.interpolate(t, (28, 28), mode="bilinear"), [small]


def convolutions(normal):
    """The rows about convolution, as `cases`."""
    from torch.nn import functional as F

    for name, x, w, options in [
        ("conv2d_1_to_32", (128, 1, 28, 28), (32, 1, 3, 3), {"padding": 1}),
        ("conv2d_32_to_64", (128, 32, 14, 14), (64, 32, 3, 3), {"padding": 1}),
        ("conv2d_64_to_64", (32, 64, 32, 32), (64, 64, 3, 3), {"padding": 1}),
        ("conv2d_stride_2", (32, 64, 32, 32), (128, 64, 3, 3), {"padding": 1, "stride": 2}),
        ("conv2d_1x1", (32, 64, 32, 32), (64, 64, 1, 1), {}),
        ("conv2d_depthwise", (32, 64, 32, 32), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
    ]:
        yield name, lambda t, w, b, options=options: F.conv2d(t, w, b, **options), [normal(*x), normal(*w), normal(w[0])]
    images, kernels = normal(32, 64, 16, 16), normal(64, 32, 2, 2)
    yield "conv_transpose2d", lambda t, w: F.conv_transpose2d(t, w, None, 2), [images, kernels]


# No gradient, or one that PyTorch returns as a view of dy (expand, narrow, transpose): there is nothing to time.
NO_BACKWARD = {
    "argmax_axis1", "add", "sum_all", "sum_axis0", "sum_axis1", "cat_axis0", "cat_axis1", "transpose_copy", "argsort", "one_hot",
}


def measure(function, seconds):
    """The median microseconds of one call; short calls are timed in groups of about half a millisecond."""
    for _ in range(3):
        function()
    start = time.perf_counter()
    function()
    group = max(1, round(5e-4 / max(time.perf_counter() - start, 1e-7)))
    times, end = [], time.perf_counter() + seconds
    while len(times) < 15 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(group):
            function()
        times.append((time.perf_counter() - start) / group * 1e6)
    return round(statistics.median(times), 2)


def main():
    """Times the list and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.15, help="how long one row is timed, at least")
    parser.add_argument("--only", default="", help="names, separated by commas; empty: all")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the output is always JSON")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    only = set(filter(None, args.only.split(",")))
    rows = []

    def row(name, function):
        if not only or name in only:
            rows.append({"op": name, "median_us": measure(function, args.seconds)})

    for name, function, inputs in cases(torch):
        with torch.no_grad():
            row(name, lambda: function(*inputs))
        if name not in NO_BACKWARD:
            leaves = [t.detach().clone().requires_grad_() for t in inputs]
            y = function(*leaves)
            dy = torch.ones_like(y)
            row(f"{name}_backward", lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True))

    million = torch.nn.Parameter(torch.randn(1_000_000))
    million.grad = torch.randn(1_000_000)
    adam = torch.optim.Adam([million], lr=1e-3, fused=True)
    row("adam_1m", adam.step)
    print(json.dumps({"torch": torch.__version__, "threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
