"""The job of `warpsmith train` on the digits, done by PyTorch on the CPU.

Read the table, cut a stratified test part (0.2) and validation part (0.1 of the rest), standardise by the training part, train
an MLP with ReLU and Adam until the validation loss has not improved for `--patience` epochs, go back to the best epoch, and
measure the test part once. Prints one JSON object. The time that counts is that of the whole process, import included.

Batches are slices of one permuted copy of the training part (with a DataLoader an epoch takes 1.3 times as long here), Adam is
the fused one, and nothing is logged: the aim is the fastest plain PyTorch, not the most usual one.
"""

import argparse
import gzip
import json
import time

START = time.perf_counter()


def parse():
    """Reads the command line; the names and defaults are those of `warpsmith train`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/digits.csv.gz", help="64 pixel columns, then the class; .csv or .csv.gz")
    parser.add_argument("--model", default="mlp:256,128")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=50, help="the most epochs that may run")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better validation loss; 0: never stop early")
    parser.add_argument("--test-split", type=float, default=0.2)
    parser.add_argument("--val-split", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the output is always JSON")
    return parser.parse_args()


def stratified(labels, rows, share, generator):
    """Cuts `share` of `rows` off, class by class; returns (cut, rest)."""
    import numpy as np

    cut = []
    for label in np.unique(labels[rows]):
        members = generator.permutation(rows[labels[rows] == label])
        cut.append(members[: round(len(members) * share)])
    cut = np.concatenate(cut)
    return cut, np.setdiff1d(rows, cut)


def read_table(path):
    """Reads the pixels and classes; a first line that is not made of numbers is a header and is left out."""
    import numpy as np

    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        lines = file.read().split("\n")
    if not lines[0].split(",")[0].replace(".", "", 1).strip().isdigit():
        lines = lines[1:]
    table = np.loadtxt([line for line in lines if line], delimiter=",", dtype=np.float32)
    return table[:, :-1], table[:, -1].astype(np.int64)


def main():
    """Trains once and prints what came out."""
    args = parse()
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    imported = time.perf_counter()

    pixels, labels = read_table(args.data)
    test, rest = stratified(labels, np.arange(len(labels)), args.test_split, generator)
    val, train = stratified(labels, rest, args.val_split, generator)
    mean, std = pixels[train].mean(0), pixels[train].std(0)
    std[std == 0] = 1.0  # some pixels are always 0
    x, y = torch.from_numpy((pixels - mean) / std), torch.from_numpy(labels)
    x_train, y_train, x_val, y_val, x_test, y_test = (part[rows] for rows in (train, val, test) for part in (x, y))

    widths = [x.shape[1], *map(int, args.model.removeprefix("mlp:").split(","))]
    layers = []
    for fan_in, fan_out in zip(widths, widths[1:]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], int(labels.max()) + 1))
    adam = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)

    best, best_epoch, best_weights, steps, epoch, first_step = float("inf"), 0, None, 0, 0, None
    for epoch in range(1, args.epochs + 1):
        model.train()
        order = torch.randperm(len(x_train))
        xs, ys = x_train[order], y_train[order]
        for at in range(0, len(xs), args.batch):
            adam.zero_grad(set_to_none=True)
            functional.cross_entropy(model(xs[at : at + args.batch]), ys[at : at + args.batch]).backward()
            adam.step()
            steps += 1
            first_step = first_step or time.perf_counter() - START
        model.eval()
        with torch.no_grad():
            loss = functional.cross_entropy(model(x_val), y_val).item()
        if loss < best:
            best, best_epoch = loss, epoch
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        elif args.patience and epoch - best_epoch >= args.patience:
            break
    model.load_state_dict(best_weights)
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    print(json.dumps({
        "torch": torch.__version__,
        "accuracy": accuracy,
        "epochs": epoch,
        "best_epoch": best_epoch,
        "steps": steps,
        "import_seconds": imported - START,
        "first_step_seconds": first_step,
        "seconds": time.perf_counter() - imported,
    }))


if __name__ == "__main__":
    main()
