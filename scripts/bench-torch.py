#!/usr/bin/env python3
"""PyTorch's times for the rows of `warpsmith bench kernels`, in the same form: same sizes, same counting of bytes, times from
events around several calls. Needs torch with CUDA. `--small` is a rehearsal; `--device cpu` too, with the host's clock."""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

SPAN_MS = 4.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    # As ours: products of f32 are f32's, unless the row says otherwise.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(11)
    rows, cols, sides, parameters = (6, 96, (48, 64), 1000) if args.small else (16384, 4096, (4096, 8192), 1 << 26)
    done = []

    def span(call, calls):
        if not on_gpu:
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) * 1e3
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(calls):
            call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    def bench(name, call, bytes=None, operations=None):
        if args.only and not any(part in name for part in args.only.split(",")):
            return
        span(call, 2)
        calls = int(min(1000, max(1, SPAN_MS / max(span(call, 3) / 3, 1e-4) + 1)))
        times, end = [], time.monotonic() + args.seconds
        while len(times) < 7 or time.monotonic() < end:
            times.append(span(call, calls) / calls)
        times.sort()
        n = len(times)
        median = (times[(n - 1) // 2] + times[n // 2]) / 2
        done.append({
            "kernel": name,
            "median_us": round(median * 1e3, 3),
            "min_us": round(times[0] * 1e3, 3),
            "p90_us": round(times[min(int(n * 0.9), n - 1)] * 1e3, 3),
            "gb_s": bytes / median / 1e6 if bytes else None,
            "tflop_s": operations / median / 1e9 if operations else None,
        })

    with torch.no_grad():
        source = torch.randn(rows * cols, device=args.device)
        target = torch.empty_like(source)
        bench("copy", lambda: target.copy_(source), bytes=8 * rows * cols)
        del source, target
        for name, dtype, size in (("f32", torch.float32, 4), ("bf16", torch.bfloat16, 2)):
            x = torch.randn(rows, cols, device=args.device).to(dtype)
            y = torch.randn(rows, cols, device=args.device).to(dtype)
            w = torch.randn(cols, device=args.device).to(dtype)
            b = torch.randn(cols, device=args.device).to(dtype)
            whole, line = rows * cols * size, cols * size
            bench(f"relu_{name}", lambda: F.relu(x), bytes=2 * whole)
            bench(f"gelu_{name}", lambda: F.gelu(x), bytes=2 * whole)
            bench(f"add_{name}", lambda: x + y, bytes=3 * whole)
            bench(f"mul_add_{name}", lambda: x * y + y, bytes=6 * whole)
            bench(f"softmax_{name}", lambda: F.softmax(x, -1), bytes=2 * whole)
            bench(f"log_softmax_{name}", lambda: F.log_softmax(x, -1), bytes=2 * whole)
            bench(f"layer_norm_{name}", lambda: F.layer_norm(x, (cols,), w, b), bytes=2 * whole + 2 * line)
            bench(f"rms_norm_{name}", lambda: F.rms_norm(x, (cols,), w), bytes=2 * whole + line)
            del x, y
    p = torch.full((parameters,), 0.25, device=args.device, requires_grad=True)
    p.grad = torch.randn_like(p)
    adam = torch.optim.Adam([p], lr=1e-3, fused=on_gpu)
    bench("adam_f32", adam.step, bytes=28 * parameters)
    del p, adam
    with torch.no_grad():
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            for side in sides:
                a = torch.randn(side, side, device=args.device).to(dtype)
                b = torch.randn(side, side, device=args.device).to(dtype)
                bench(f"matmul_{name}_{side}", lambda: a @ b, operations=2 * side**3)
    n, c, side = (2, 8, 6) if args.small else (64, 128, 28)
    pixels = n * c * side * side
    with torch.no_grad():
        for name, dtype, size in (("f32", torch.float32, 4), ("bf16", torch.bfloat16, 2)):
            x = torch.randn(n, c, side, side, device=args.device).to(dtype)
            dy = torch.randn(n, c, side, side, device=args.device).to(dtype)
            for kernel in (3, 1):
                w = torch.randn(c, c, kernel, kernel, device=args.device).to(dtype)
                operations, pad = 2 * pixels * c * kernel * kernel, [kernel // 2] * 2
                bench(f"conv{kernel}x{kernel}_{name}", lambda: F.conv2d(x, w, padding=pad), operations=operations)
                if kernel == 3:
                    back = lambda mask: torch.ops.aten.convolution_backward(
                        dy, x, w, [0], [1, 1], pad, [1, 1], False, [0, 0], 1, mask)
                    bench(f"conv3x3_dgrad_{name}", lambda: back([True, False, False]), operations=operations)
                    bench(f"conv3x3_wgrad_{name}", lambda: back([False, True, False]), operations=operations)
            mean, var = torch.randn(c, device=args.device).to(dtype), torch.rand(c, device=args.device).to(dtype)
            bench(f"max_pool_{name}", lambda: F.max_pool2d(x, 2), bytes=1.25 * pixels * size)
            bench(f"batch_norm_{name}", lambda: F.batch_norm(x, mean, var), bytes=2 * pixels * size)
    gpu = torch.cuda.get_device_name() if on_gpu else "cpu"
    json.dump({"torch": torch.__version__, "gpu": gpu, "small": args.small, "rows": done}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
