#!/usr/bin/env python3
"""Writes tests/golden/gpt2/: a tiny GPT-2 in Hugging Face's layout, and what PyTorch computes with it. See tests/golden/README.md.

    scripts/make-golden-gpt2.py             writes config.json, model.safetensors and expected.json
    scripts/make-golden-gpt2.py --check     writes nothing; exit 1 if PyTorch here computes anything else than expected.json says

Run it under the Python that scripts/setup-python.sh makes. The decoder is written out here from the description of GPT-2 (Conv1D
weights [in, out], tanh GELU, tied head), so that no other package is needed. All is computed in f64 from f32 weights.
"""

import argparse
import json
import math
import struct
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "gpt2"
LAYERS, HEADS, WIDTH, VOCAB, CONTEXT, EPS = 2, 2, 16, 50, 12, 1e-5
ROWS, STEPS = 2, 9
GRADIENTS = ["wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.ln_1.weight", "h.1.mlp.c_fc.weight",
             "h.1.mlp.c_proj.bias", "h.1.attn.c_proj.weight", "ln_f.bias"]


def shapes():
    yield "wte.weight", [VOCAB, WIDTH]
    yield "wpe.weight", [CONTEXT, WIDTH]
    for n in range(LAYERS):
        for norm in ["ln_1", "ln_2"]:
            yield f"h.{n}.{norm}.weight", [WIDTH]
            yield f"h.{n}.{norm}.bias", [WIDTH]
        for name, inputs, outputs in [("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH),
                                      ("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH)]:
            yield f"h.{n}.{name}.weight", [inputs, outputs]
            yield f"h.{n}.{name}.bias", [outputs]
    yield "ln_f.weight", [WIDTH]
    yield "ln_f.bias", [WIDTH]


def weights():
    """Drawn at random, larger than a fresh network's, so that no part of it is lost among the others."""
    torch.manual_seed(5)
    made = {}
    for name, shape in shapes():
        values = torch.randn(shape, dtype=torch.float32) * 0.3
        made[name] = 1 + values if "ln_" in name and name.endswith("weight") else values
    return made


def forward(w, ids):
    def conv1d(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, [WIDTH], w[f"{name}.weight"], w[f"{name}.bias"], EPS)

    def gelu_new(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    rows, steps = ids.shape
    x = w["wte.weight"][ids] + w["wpe.weight"][:steps]
    seen = torch.ones(steps, steps, dtype=torch.bool).tril()
    for n in range(LAYERS):
        h = f"h.{n}"
        parts = conv1d(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(WIDTH, dim=2)
        q, k, v = (p.view(rows, steps, HEADS, WIDTH // HEADS).transpose(1, 2) for p in parts)
        scores = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).masked_fill(~seen, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, steps, WIDTH)
        x = x + conv1d(y, f"{h}.attn.c_proj")
        x = x + conv1d(gelu_new(conv1d(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")), f"{h}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def expected(made):
    w = {name: t.double().requires_grad_() for name, t in made.items()}
    tokens = (torch.arange(ROWS * (STEPS + 1)) * 17 % VOCAB).view(ROWS, STEPS + 1)
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    logits = forward(w, ids)
    loss = F.cross_entropy(logits.reshape(-1, VOCAB), targets.reshape(-1))
    loss.backward()

    def numbers(t):
        return {"shape": list(t.shape), "data": [float(f"{v:.10g}") for v in t.detach().flatten().tolist()]}

    return {
        "about": "logits, mean cross-entropy and gradients of the decoder beside this file, in f64",
        "torch": torch.__version__.split("+")[0],
        "ids": ids.tolist(), "targets": targets.tolist(), "loss": float(f"{loss.item():.12g}"), "logits": numbers(logits),
        "grads": {name: numbers(w[name].grad) for name in GRADIENTS},
    }


def safetensors(made):
    """The format's bytes: header length, JSON header, data."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    masks = {f"h.{n}.attn.bias": torch.ones(CONTEXT, CONTEXT).tril().view(1, 1, CONTEXT, CONTEXT) for n in range(LAYERS)}
    for name, t in sorted({**made, **masks}.items()):
        raw = t.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a if k not in ("about", "torch"))
    if isinstance(a, list):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b))
    return abs(a - b) <= 1e-8 * max(1, abs(b))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    made = weights()
    result = expected(made)
    if check:
        same = close(result, json.loads((FOLDER / "expected.json").read_text()))
        same &= safetensors(made) == (FOLDER / "model.safetensors").read_bytes()
        print("the same" if same else "DIFFERENT")
        sys.exit(0 if same else 1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": VOCAB, "n_positions": CONTEXT,
              "n_ctx": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": None,
              "activation_function": "gelu_new", "layer_norm_epsilon": EPS, "tie_word_embeddings": True}
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (FOLDER / "model.safetensors").write_bytes(safetensors(made))
    (FOLDER / "expected.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
