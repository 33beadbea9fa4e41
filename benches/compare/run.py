"""Runs warpsmith and PyTorch in turns on the same jobs and prints the ratios (ours over PyTorch's; below 1 is faster).

Both sides are fresh processes with the same number of threads, and the one that starts changes from round to round, so that
drift of the machine hits both alike. A ratio is the median over rounds of the ratio of the two neighbouring runs; the two time
columns are medians of their own, so their quotient may differ from it. Needs only Python's standard library; the PyTorch side
runs under --python (scripts/setup-python.sh makes that environment). See README.md beside this file.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The bars of the project: the largest ratio that passes.
BARS = {"gpt:4x4x128 12x64": 1 / 1.2, "cnn 128": 1.5, "lstm:128x2 64": 1.5, "step 64": 0.75, "step 256": 0.85, "step 1024": 1.0, "startup": 0.1, "digits time": 1.0}
OP_BAR = 3.0
DIGITS_MEMORY_MB = 60.0


class Failed(Exception):
    """A run that gave no usable figure; the text says why."""


def run(command, threads):
    """Runs one process; returns its JSON object, wall seconds and peak resident megabytes."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env, cwd=ROOT)
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from error
        _, status, usage = os.wait4(child.pid, 0)  # wait4, not wait: it also gives this child's peak memory
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text, complaint = out.read(), err.read().strip()
    shown = " ".join(map(str, command))
    if child.returncode != 0:
        last = complaint.splitlines()[-1] if complaint else "nothing on stderr"
        raise Failed(f"`{shown}` ended with {child.returncode}: {last}")
    try:
        answer = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise Failed(f"`{shown}`: stdout is not one JSON object ({error})") from error
    if not isinstance(answer, dict):
        raise Failed(f"`{shown}`: expected a JSON object, found {type(answer).__name__}")
    unit = 1024 if sys.platform == "darwin" else 1  # ru_maxrss is in bytes there, else in kB
    return answer, seconds, usage.ru_maxrss / unit / 1024


def field(answer, name, who):
    """One number of a JSON answer, or a Failed that says what was there instead."""
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Failed(f"{who}: expected a number `{name}`, found {value!r} (fields: {', '.join(answer) or 'none'})")
    return float(value)


def table_of(answer, key, value, who):
    """The `rows` of an answer as a dictionary from key to number; rows without both are left out and so show up as one-sided."""
    rows = answer.get("rows")
    if not isinstance(rows, list):
        raise Failed(f"{who}: expected a list `rows`, found {rows!r}")
    found, broken = {}, None
    for row in rows:
        try:
            found[row[key]] = field(row, value, f"{who}, row {row[key]}")
        except (Failed, KeyError, TypeError) as error:
            broken = error
    if not found:
        raise Failed(f"{who}: no row has `{key}` and a number `{value}` (last: {broken})")
    return found


class Runner:
    """What was asked for, and the figures so far: name → {"ours": [...], "torch": [...]}, one entry a round."""

    def __init__(self, args):
        self.args = args
        self.figures = {}
        self.notes = []
        self.dead = set()  # sides of sections that failed: named once, not asked again

    def torch(self, script, *arguments):
        return run([self.args.python, HERE / script, *arguments], self.args.threads)

    def ours(self, *arguments):
        return run([self.args.warpsmith, *arguments, "--threads", str(self.args.threads)], self.args.threads)

    def take(self, section, number, ours, torch):
        """One round of one section: the two sides in turn; each returns {name: figure}."""
        sides = [("ours", ours), ("torch", torch)]
        for side, measure in sides if number % 2 == 0 else reversed(sides):
            if (section, side) in self.dead or (side == "ours" and self.args.warpsmith == "none"):
                continue
            try:
                answer = measure()
            except Failed as failure:
                self.dead.add((section, side))
                self.notes.append(f"{section}, {side}: {failure}")
                print(f"run.py: {self.notes[-1]}", file=sys.stderr)
                continue
            for name, figure in answer.items():
                self.figures.setdefault(name, {"ours": [], "torch": []})[side].append(figure)

    def step(self, number):
        """The full training step, at each batch size."""
        batch = ["--batch", self.args.batch, "--json"]
        shape = ["--model", "mlp:500,250,100", "--inputs", "1000", "--outputs", "1"]

        def rows(answer, who):
            return {f"step {size}": ms for size, ms in table_of(answer, "batch", "median_ms", who).items()}

        self.take(
            "step", number,
            lambda: rows(self.ours("bench", "step", *shape, "--device", "cpu", *batch)[0], "warpsmith bench step"),
            lambda: rows(self.torch("step_torch.py", *shape, *batch, "--optimizer", self.args.optimizer,
                                    "--threads", str(self.args.threads))[0], "step_torch.py"),
        )

    def nets(self, number):
        """The full training step of a convolutional and of a recurrent network."""
        jobs = [("cnn", "1x28x28", 128), ("lstm:128x2", "64x64", 64)]
        shapes = [["--model", model, "--inputs", inputs, "--outputs", "10", "--batch", str(batch), "--json"]
                  for model, inputs, batch in jobs]

        def figures(answers, who):
            return {f"{model} {batch}": table_of(answer, "batch", "median_ms", who)[batch]
                    for (model, _, batch), answer in zip(jobs, answers)}

        self.take(
            "nets", number,
            lambda: figures([self.ours("bench", "step", *shape, "--device", "cpu")[0] for shape in shapes], "warpsmith bench step"),
            lambda: figures([self.torch("step_torch.py", *shape, "--optimizer", self.args.optimizer,
                                        "--threads", str(self.args.threads))[0] for shape in shapes], "step_torch.py"),
        )

    def gpt(self, number):
        """The full training step of a small GPT on characters, data included."""
        name, steps, tokens = "gpt:4x4x128 12x64", "150", 12 * 64

        def ours():
            with tempfile.TemporaryDirectory() as folder:
                answer, *_ = self.ours("train", "--task", "lm", "--data", self.args.text, "--steps", steps, "--eval-every", "0",
                                       "--val-split", "0.001", "--device", "cpu", "--out", f"{folder}/model", "--quiet", "--json")
            return {name: 1e3 * tokens / field(answer, "tokens_per_second", "warpsmith train --task lm")}

        def torch():
            answer, *_ = self.torch("gpt_torch.py", "--data", self.args.text, "--steps", steps, "--threads", str(self.args.threads))
            return {name: field(answer, "step_ms", "gpt_torch.py")}

        self.take("gpt", number, ours, torch)

    def startup(self, number):
        """Process start to the end of the first training step (ours), and `import torch` alone (theirs)."""
        def ours():
            with tempfile.TemporaryDirectory() as folder:
                answer, *_ = self.ours("train", "--epochs", "1", "--out", f"{folder}/model", "--quiet", "--json")
            if "first_step_seconds" in answer:
                return {"startup": field(answer, "first_step_seconds", "warpsmith train") * 1e3}
            # Without that field: the whole life of a process that does one step, which is more.
            _, seconds, _ = self.ours("bench", "step", "--batch", "1", "--steps", "1", "--json")
            return {"startup": seconds * 1e3}

        def torch():
            code = "import time, json; t = time.perf_counter(); import torch; print(json.dumps({'s': time.perf_counter() - t}))"
            answer, *_ = run([self.args.python, "-c", code], self.args.threads)
            return {"startup": field(answer, "s", "import torch") * 1e3}

        self.take("startup", number, ours, torch)

    def digits(self, number):
        """Training on the digits to the end, as whole processes; the seed is the round's."""
        seed, extra = str(number + 1), self.args.digits_args.split()

        def figures(answer, seconds, memory, accuracy, who):
            return {
                "digits time": seconds * 1e3,
                "digits per epoch": seconds * 1e3 / field(answer, "epochs", who),
                "digits accuracy": accuracy,
                "digits memory": memory,
            }

        def ours():
            with tempfile.TemporaryDirectory() as folder:
                answer, seconds, memory = self.ours("train", "--seed", seed, "--out", f"{folder}/model", "--quiet", "--json", *extra)
            metrics = answer.get("metrics")
            accuracy = field(metrics if isinstance(metrics, dict) else {}, "accuracy", "warpsmith train, `metrics`")
            return figures(answer, seconds, memory, accuracy, "warpsmith train")

        def torch():
            answer, seconds, memory = self.torch("digits_torch.py", "--data", self.args.data, "--seed", seed,
                                                 "--threads", str(self.args.threads), *extra)
            return figures(answer, seconds, memory, field(answer, "accuracy", "digits_torch.py"), "digits_torch.py")

        self.take("digits", number, ours, torch)

    def ops(self, number):
        """Single ops; rows that only one side has are named in a note."""
        def rows(answer, who):
            return {f"op {name}": us for name, us in table_of(answer, "op", "median_us", who).items()}

        self.take(
            "ops", number,
            lambda: rows(self.ours("bench", "ops", "--json")[0], "warpsmith bench ops"),
            lambda: rows(self.torch("ops_torch.py", "--threads", str(self.args.threads))[0], "ops_torch.py"),
        )


def summary(figures):
    """Per name: the medians of both sides, the median, least and largest ratio of neighbouring runs, and the bar."""
    result = {}
    for name, sides in figures.items():
        ours, torch = sides["ours"], sides["torch"]
        # A side that failed in a later round has fewer entries; pairs are formed as long as both lasted.
        ratios = [a / b for a, b in zip(ours, torch) if b > 0]
        bar = OP_BAR if name.startswith("op ") else BARS.get(name)
        ratio = statistics.median(ratios) if ratios else None
        result[name] = {
            "ours": statistics.median(ours) if ours else None,
            "torch": statistics.median(torch) if torch else None,
            "ours_min": min(ours, default=None),
            "torch_min": min(torch, default=None),
            "ratio": ratio,
            "ratio_min": min(ratios, default=None),
            "ratio_max": max(ratios, default=None),
            "bar": bar,
            "passes": None if ratio is None or bar is None else ratio <= bar,
        }
    memory = result.get("digits memory")
    if memory and memory["ours"] is not None:
        memory["passes"] = memory["ours"] < DIGITS_MEMORY_MB
    return result


def unit_of(name):
    """The unit of a row's figures."""
    if name.startswith("op "):
        return "µs"
    return {"digits accuracy": "", "digits memory": "MB"}.get(name, "ms")


def markdown(result):
    """The table, one row a figure."""
    def number(value, unit=""):
        if value is None:
            return "–"
        digits = 4 if unit == "" else max(0, 3 - len(str(int(value))))
        return f"{value:.{digits}f} {unit}".strip()

    lines = ["| | warpsmith | PyTorch | PyTorch, best run | ratio | least to most | bar | |", "| --- | --: | --: | --: | --: | --: | --: | --- |"]
    for name, row in result.items():
        unit = unit_of(name)
        spread = "–" if row["ratio"] is None else f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        verdict = {None: "", True: "ok", False: "**over**"}[row["passes"]]
        bar = f"< {DIGITS_MEMORY_MB:.0f} MB" if name == "digits memory" else "–" if row["bar"] is None else f"{row['bar']:g}"
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells = [name, number(row["ours"], unit), number(row["torch"], unit), number(row["torch_min"], unit), ratio, spread, bar, verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(args):
    """What the figures were made on."""
    cpu = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux
    load = os.getloadavg()[0]
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": args.threads, "load_before": round(load, 2), "rounds": args.rounds}


def commit():
    """The commit that the figures belong to, with a + where files differ from it; None outside a repository."""
    git = lambda *words: subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    head = git("rev-parse", "--short", "HEAD")
    return head.stdout.strip() + "+" * bool(git("status", "--porcelain", "-uno").stdout) if head.returncode == 0 else None


def torch_version(python):
    """The version of the other side."""
    found = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    return found.stdout.strip() or None


def main():
    """Runs the sections round by round and prints the table; exit 1 with --check when a bar is missed or not measured."""
    default_python = ROOT / "target" / "python-venv" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="step,nets,gpt,startup,digits,ops", help="sections, separated by commas")
    parser.add_argument("--warpsmith", default=str(ROOT / "target" / "release" / "warpsmith"), help="the binary, or none")
    parser.add_argument("--python", default=str(default_python), help="a Python that has PyTorch")
    parser.add_argument("--batch", default="64,256,1024", help="batch sizes of the step")
    parser.add_argument("--optimizer", default="fused", choices=["fused", "foreach", "single"], help="PyTorch's kind of Adam")
    parser.add_argument("--data", default=str(ROOT / "data" / "digits.csv.gz"), help="the digits, for PyTorch (ours has them built in)")
    parser.add_argument("--text", default=str(ROOT / "data" / "text.txt.gz"), help="the text for the GPT of both sides")
    parser.add_argument("--digits-args", default="", help="flags for both digits runs, for example '--epochs 20 --patience 0'")
    parser.add_argument("--json", metavar="OUT", help="write every figure of every round to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed or could not be measured")
    args = parser.parse_args()

    sections = args.only.split(",")
    unknown = set(sections) - {"step", "nets", "gpt", "startup", "digits", "ops"}
    if unknown:
        parser.error(f"--only: unknown section {', '.join(sorted(unknown))}; expected step, nets, gpt, startup, digits, ops")
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads: expected at least 1")
    if args.warpsmith != "none":
        found = shutil.which(args.warpsmith)
        if found is None:
            parser.error(f"--warpsmith: no program at {args.warpsmith}; run `cargo build --release`, or give none to time PyTorch alone")
        args.warpsmith = os.path.abspath(found)
    if shutil.which(args.python) is None:
        parser.error(f"--python: no interpreter at {args.python}; run scripts/setup-python.sh, or name one that has PyTorch")
    if "digits" in sections and not Path(args.data).is_file():
        parser.error(f"--data: no file {args.data}")

    about = machine(args)
    if about["load_before"] > 0.5:
        print(f"run.py: something else uses this machine (load {about['load_before']}); the figures will be noisy", file=sys.stderr)
    runner = Runner(args)
    for number in range(args.rounds):
        for section in sections:
            print(f"run.py: round {number + 1} of {args.rounds}: {section}", file=sys.stderr)
            getattr(runner, section)(number)

    result = summary(runner.figures)
    # A section that failed on one side has its own note already.
    failed = {section for section, _ in runner.dead}
    lonely = [name for name, row in result.items()
              if row["ratio"] is None and (("ops" if name.startswith("op ") else name.split()[0]) not in failed)]
    if lonely and args.warpsmith != "none":
        runner.notes.append(f"only one side has: {', '.join(lonely)}")
    print(markdown(result))
    print(f"\n{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {about['rounds']} rounds, load before {about['load_before']}.")
    for note in runner.notes:
        print(f"\nNote: {note}.")
    if args.json:
        how = f"benches/compare/run.py --only {args.only} --rounds {args.rounds} --threads {args.threads}"
        report = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "torch": torch_version(args.python), "how": how, "machine": about, "summary": result, "runs": runner.figures, "notes": runner.notes}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    missed = [name for name, row in result.items() if row["passes"] is False]
    unmeasured = [section for section, _ in runner.dead] or (["warpsmith"] if args.warpsmith == "none" else [])
    unmeasured += lonely
    if args.check and (missed or unmeasured):
        print(f"run.py: over the bar: {', '.join(missed) or 'none'}; not measured: {', '.join(unmeasured) or 'none'}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
