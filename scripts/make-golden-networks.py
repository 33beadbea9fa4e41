#!/usr/bin/env python3
"""Writes tests/golden/networks.json: what PyTorch computes with the networks that `--model` names. See tests/golden/README.md.

    scripts/make-golden-networks.py             writes the file
    scripts/make-golden-networks.py --check     writes nothing; exit 1 if PyTorch here computes anything else than the file says

Run it under the Python that scripts/setup-python.sh makes. Weights and inputs follow from formulas, so the file holds results only.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

FILE = Path(__file__).resolve().parent.parent / "tests" / "golden" / "networks.json"
ROWS, OUTPUTS = 4, 10


def fill(shape, kind, phase):
    """The values of a parameter or input: a sine of the position, about as large as a fresh network's."""
    wave = torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) ** 1.1 + phase).reshape(shape)
    if kind == "input":
        return wave
    if len(shape) > 1:
        return wave * math.sqrt(2 / math.prod(shape[1:]))
    return 1 + 0.1 * wave if kind == "weight" else 0.1 * wave


class Block(nn.Module):
    """Two convolutions of 3 x 3 and what goes past them."""

    def __init__(self, channels, made, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        changes = stride != 1 or channels != made
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, made, 1, stride, bias=False), nn.BatchNorm2d(made)) if changes else None

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """The 18-layer network in its form for small pictures, with the names of torchvision."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.fc = nn.Linear(512, OUTPUTS)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class Recurrent(nn.Module):
    """The last state of a recurrent network to the answers."""

    def __init__(self, kind, features, width, layers):
        super().__init__()
        self.kind = kind
        setattr(self, kind, getattr(nn, kind.upper())(features, width, layers, batch_first=True))
        self.fc = nn.Linear(width, OUTPUTS)

    def forward(self, x):
        # A picture is a sequence of its rows, over all channels.
        rows = x.transpose(1, 2).flatten(2)
        last = getattr(self, self.kind)(rows)[1]
        return self.fc((last[0] if self.kind == "lstm" else last)[-1])


def cnn(channels, side):
    """Two convolutions with pooling and a hidden layer."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, OUTPUTS))


def case(name, shape, network):
    """A forward and backward pass in training, the running statistics after it, and the answers of evaluation then.

    Of gradients and statistics the sum, the norm and the product with a sine of the position, which tells their order.
    """
    network = network.double()
    with torch.no_grad():
        for key, p in network.named_parameters():
            p.copy_(fill(p.shape, "bias" if "bias" in key else "weight", 0.3 * len(key)))
    x = fill((ROWS, *shape), "input", 0.5)
    network.train()
    logits = network(x)
    loss = F.cross_entropy(logits, torch.arange(ROWS))
    loss.backward()
    network.eval()
    with torch.no_grad():
        evaluated = network(x)
    sums = lambda t: [t.sum().item(), t.norm().item(), (t * fill(t.shape, "input", 0)).sum().item()]
    return {
        "model": name, "input": list(shape), "logits": logits.flatten().tolist(), "loss": loss.item(),
        "grads": {key: sums(p.grad) for key, p in network.named_parameters()},
        "buffers": {key: sums(b.double()) for key, b in network.named_buffers()},
        "evaluated": evaluated.flatten().tolist(),
    }


def differ(a, b):
    """Whether two results are further apart than another processor's sums would be."""
    if isinstance(a, dict):
        return a.keys() != b.keys() or any(differ(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) != len(b) or any(map(differ, a, b))
    return a != b if isinstance(a, (str, int)) else abs(a - b) > 1e-8 * max(1, abs(a))


def main():
    """Makes all cases, then writes or compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    cases = [
        case("cnn", (1, 12, 12), cnn(1, 12)),
        case("resnet:18", (3, 16, 16), ResNet18(3)),
        case("lstm:24x2", (1, 9, 7), Recurrent("lstm", 7, 24, 2)),
        case("gru:24x2", (2, 9, 7), Recurrent("gru", 14, 24, 2)),
        case("rnn:24", (1, 9, 7), Recurrent("rnn", 7, 24, 1)),
    ]
    if args.check:
        wrong = [c["model"] for c, d in zip(cases, json.loads(FILE.read_text())["cases"]) if differ(c, d)]
        if wrong:
            sys.exit(f"PyTorch {torch.__version__} computes other values for {', '.join(wrong)}")
        return
    rows = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    about = "PyTorch's results for tests/golden/README.md; made by scripts/make-golden-networks.py, not edited by hand"
    FILE.write_text(f'{{\n"about":"{about}",\n"torch":"{torch.__version__.split("+")[0]}",\n"cases":[\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
