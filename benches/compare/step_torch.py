"""The training step of `warpsmith bench step`, done by PyTorch on the CPU.

One step is forward, loss (BCE on logits; cross-entropy with more than one output), backward, Adam, gradients dropped. The batch stays
the same from step to step and the loss is never read, as in ours: what is timed is the step, not the data or the log.
Prints one JSON object whose `rows` have `batch` and `median_ms`, as `warpsmith bench step --json` does.
"""

import argparse
import json
import statistics
import time


def parse():
    """Reads the command line; the names are those of `warpsmith bench step`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mlp:500,250,100", help="mlp:H1,H2,…, cnn or lstm:WIDTHxLAYERS")
    parser.add_argument("--inputs", default="1000", help="the shape of one example: 1000, 1x28x28, 64x64 (steps x features)")
    parser.add_argument("--outputs", type=int, default=1)
    parser.add_argument("--batch", default="64,256,1024", help="batch sizes, separated by commas")
    parser.add_argument("--optimizer", default="fused", choices=["fused", "foreach", "single"],
                        help="which of PyTorch's three Adam implementations (fused is the fastest here)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=20, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=0, help="timed steps; 0: at least 60, for at least --seconds")
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the output is always JSON")
    args = parser.parse_args()
    if args.model != "cnn" and args.model.split(":")[0] not in ("mlp", "lstm"):
        parser.error(f"--model: expected mlp:H1,H2,…, cnn or lstm:WIDTHxLAYERS, found {args.model}")
    args.inputs = [int(n) for n in args.inputs.split("x")]
    return args


def network(args, nn):
    """The network that warpsmith calls by the same name, layer by layer."""
    if args.model == "cnn":
        channels, height, width = args.inputs
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Linear(128, args.outputs))
    if args.model.startswith("lstm:"):
        width, _, layers = args.model[5:].partition("x")

        class Lstm(nn.Module):
            """The last state of the last layer to the answers."""

            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(args.inputs[-1], int(width), int(layers or 1), batch_first=True)
                self.fc = nn.Linear(int(width), args.outputs)

            def forward(self, x):
                _, (last, _) = self.lstm(x)
                return self.fc(last[-1])

        return Lstm()
    widths = [*args.inputs, *map(int, args.model[4:].split(","))]
    layers = []
    for fan_in, fan_out in zip(widths, widths[1:]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], args.outputs))


def main():
    """Times every batch size and prints the rows."""
    args = parse()
    import torch  # after the command line, so that --help is quick
    from torch import nn

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    rows = []
    for batch in map(int, args.batch.split(",")):
        model = network(args, nn)
        loss_of = nn.BCEWithLogitsLoss() if args.outputs == 1 else nn.CrossEntropyLoss()
        kind = {"fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False}}[args.optimizer]
        adam = torch.optim.Adam(model.parameters(), lr=1e-3, **kind)
        x = torch.randn(batch, *args.inputs)
        y = (torch.rand(batch, 1) > 0.5).float() if args.outputs == 1 else torch.randint(args.outputs, (batch,))

        def step():
            adam.zero_grad(set_to_none=True)
            loss = loss_of(model(x), y)
            loss.backward()
            adam.step()

        for _ in range(args.warmup):
            step()
        times, begin = [], time.perf_counter()
        while True:
            start = time.perf_counter()
            step()
            now = time.perf_counter()
            times.append((now - start) * 1e3)
            # On a machine with other work a step may take 100 times as long: 10 steps must do then.
            enough = 60 if now - begin < 10 * args.seconds else 10
            if len(times) >= args.steps if args.steps else len(times) >= enough and now - begin >= args.seconds:
                break
        times.sort()
        rows.append({
            "batch": batch,
            "median_ms": round(statistics.median(times), 4),
            "min_ms": round(times[0], 4),
            "p90_ms": round(times[len(times) * 9 // 10], 4),
            "steps": len(times),
        })
    print(json.dumps({"torch": torch.__version__, "optimizer": args.optimizer, "threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
