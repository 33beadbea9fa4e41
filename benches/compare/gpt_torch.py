"""PyTorch's side of training a GPT on characters: the same decoder, data, optimiser and steps as `warpsmith train --task lm`.

Prints one JSON object: `tokens_per_second` over the steps behind a warm-up, and, with --eval, `val_loss` over all of the
validation part. With --compile the model is compiled first (the time of that is not counted).
"""

import argparse
import gzip
import json
import math
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.attn_proj = nn.Linear(width, width, bias=False)
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.mlp_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        batch, steps, width = x.shape
        heads = self.c_attn(self.ln_1(x)).view(batch, steps, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(batch, steps, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class Gpt(nn.Module):
    def __init__(self, vocab, context, layers, heads, width):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = 0.02 / math.sqrt(2 * layers) if "_proj" in name else 0.02
                nn.init.normal_(weight, 0.0, std)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="4x4x128", help="layers x heads x width")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--horizon", type=int, default=2000, help="steps that the schedule is laid out for")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--eval", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    opened = gzip.open if args.data.endswith(".gz") else open
    with opened(args.data, "rt", encoding="utf-8", newline="") as file:
        text = file.read()
    chars = sorted(set(text))
    index = {c: i for i, c in enumerate(chars)}
    tokens = torch.tensor([index[c] for c in text])
    cut = int(0.9 * len(tokens))
    train, val = tokens[:cut], tokens[cut:]
    layers, heads, width = map(int, args.model.split("x"))
    model = Gpt(len(chars), args.context, layers, heads, width)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    # foreach is PyTorch's default on a CPU too; fused is its fastest.
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    step_loss = torch.compile(model) if args.compile else model

    def rate(k):
        if k < 100:
            return 1e-3 * (k + 1) / 100
        share = min(1.0, (k - 100) / max(1, args.horizon - 100))
        return 1e-4 + 9e-4 * (1 + math.cos(math.pi * share)) / 2

    start, loss = None, None
    for k in range(args.steps + args.warm_up):
        if k == args.warm_up:
            start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(k)
        at = torch.randint(len(train) - args.context, (args.batch,)).tolist()
        x = torch.stack([train[i : i + args.context] for i in at])
        y = torch.stack([train[i + 1 : i + 1 + args.context] for i in at])
        loss = step_loss(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    answer = {
        "tokens_per_second": args.steps * args.batch * args.context / seconds,
        "step_ms": 1e3 * seconds / args.steps,
        "train_loss": loss.item(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if args.eval:
        with torch.no_grad():
            windows = (len(val) - 1) // args.context
            x = val[: windows * args.context].view(windows, args.context)
            y = val[1 : windows * args.context + 1].view(windows, args.context)
            losses = [model(x[i : i + 100], y[i : i + 100]) * len(x[i : i + 100]) for i in range(0, windows, 100)]
            answer["val_loss"] = (sum(losses) / windows).item()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
