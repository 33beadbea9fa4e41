"""The part of make-golden.py that is about training: optimisers, schedules, clipping."""

import math

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop, lr_scheduler

from make_golden_format import grid, numbers, tensor

# ---- optimisers ----

STEPS, KEPT = 20, (1, 2, 5, 20)


def optimizers():
    """20 steps of each optimiser on two parameters with given gradients."""
    start = {"w": grid(3, 4, seed=50), "b": grid(4, seed=51)}
    grads = []
    for t in range(STEPS):
        # Changing signs and sizes; b's gradient is small, so that eps matters there.
        w = [round(1024 * math.sin(1.3 * i + 0.7 * t) * (1 + i % 3)) / 1024 for i in range(12)]
        b = [round(65536 * 1e-3 * math.cos(0.9 * i + 0.4 * t)) / 65536 for i in range(4)]
        grads.append({"w": torch.tensor(w, dtype=torch.float64).reshape(3, 4), "b": torch.tensor(b, dtype=torch.float64)})

    def case_of(name, kind, args, groups=None, lrs=None):
        def once(dtype):
            params = {key: t.to(dtype).clone().requires_grad_() for key, t in start.items()}
            sets = [{"params": [params[key]], **(groups or {}).get(key, {})} for key in params]
            optimizer = kind(sets, foreach=False, **args)
            kept = []
            for t in range(STEPS):
                for key, parameter in params.items():
                    parameter.grad = grads[t][key].to(dtype)
                for group in optimizer.param_groups if lrs else []:
                    group["lr"] = lrs[t]
                optimizer.step()
                if t + 1 in KEPT:
                    kept.append({key: p.detach().clone() for key, p in params.items()})
            return kept

        after, after32 = once(torch.float64), once(torch.float32)
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in args.items()}
        return {
            "name": name, "optimizer": kind.__name__.lower(), "args": listed, "groups": groups or {}, "lrs": lrs or [],
            "after": [{"step": step, **{key: numbers(t) for key, t in values.items()}} for step, values in zip(KEPT, after)],
            "f32": {key: numbers(t) for key, t in after32[-1].items()},
        }

    falling = [0.1 * (1 - t / STEPS) for t in range(STEPS)]
    off_for_b = {"b": {"weight_decay": 0.0}}
    # All that PyTorch defaults to is written out: a reader needs no manual.
    sgd = {"lr": 0.05, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
    rms = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False, "weight_decay": 0.0}
    adam = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    return {
        "steps": STEPS,
        "start": {key: tensor(t) for key, t in start.items()},
        "grads": [{key: numbers(t) for key, t in g.items()} for g in grads],
        "cases": [
            case_of("sgd", SGD, sgd),
            case_of("sgd_weight_decay", SGD, {**sgd, "weight_decay": 0.1}),
            case_of("sgd_momentum", SGD, {**sgd, "momentum": 0.9}),
            case_of("sgd_momentum_weight_decay", SGD, {**sgd, "momentum": 0.9, "weight_decay": 0.1}),
            case_of("sgd_dampening", SGD, {**sgd, "momentum": 0.9, "dampening": 0.5}),
            case_of("sgd_nesterov", SGD, {**sgd, "momentum": 0.9, "nesterov": True}),
            case_of("sgd_nesterov_weight_decay", SGD, {**sgd, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
            case_of("sgd_momentum_lrs", SGD, {**sgd, "momentum": 0.9}, lrs=falling),
            case_of("rmsprop", RMSprop, rms),
            case_of("rmsprop_alpha", RMSprop, {**rms, "alpha": 0.9, "eps": 1e-3}),
            case_of("rmsprop_weight_decay", RMSprop, {**rms, "weight_decay": 0.1}),
            case_of("rmsprop_momentum", RMSprop, {**rms, "momentum": 0.9}),
            case_of("rmsprop_centered", RMSprop, {**rms, "centered": True}),
            case_of("rmsprop_centered_momentum", RMSprop, {**rms, "centered": True, "momentum": 0.9, "weight_decay": 0.1}),
            case_of("adam", Adam, adam),
            case_of("adam_betas_eps", Adam, {**adam, "betas": (0.8, 0.95), "eps": 1e-3}),
            case_of("adam_weight_decay", Adam, {**adam, "weight_decay": 0.1}),
            case_of("adam_lrs", Adam, adam, lrs=falling),
            case_of("adamw", AdamW, {**adam, "weight_decay": 0.01}),
            case_of("adamw_groups", AdamW, {**adam, "weight_decay": 0.1}, groups=off_for_b),
            case_of("adamw_lrs", AdamW, {**adam, "weight_decay": 0.1}, lrs=falling),
        ],
    }


# ---- schedules ----


def schedulers():
    """The learning rate of each of 40 steps (for plateau: of each of 40 epochs, the metric of epoch k known after it)."""
    count, base = 40, 0.1
    cases = []

    def rates(make, metrics=None):
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=base)
        scheduler = make(optimizer)
        found = []
        for k in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if k + 1 < count:  # one-cycle refuses a step past its end
                scheduler.step(*([metrics[k]] if metrics else []))
        return found

    def add(name, schedule, make, args, formula, check=None, **rest):
        found = rates(make, rest.get("metrics"))
        if check:  # the formula in words is the formula that PyTorch has
            worst = max(abs(check(k) - lr) for k, lr in enumerate(found))
            assert worst < 1e-12, (name, worst)
        cases.append({"name": name, "schedule": schedule, "args": {"lr": base, **args}, "formula": formula, **rest, "lrs": found})

    add("constant", "constant", lambda o: lr_scheduler.LambdaLR(o, lambda k: 1.0), {}, "lr", lambda k: base)

    # Three customs of warming up over `warmup` = 8 steps, then constant; a program has one of them.
    n = 8
    add("warmup_k_plus_1", "constant", lambda o: lr_scheduler.LinearLR(o, 1 / n, 1.0, n - 1), {"warmup": n},
        "k < warmup: lr (k + 1) / warmup", lambda k: base * min(1, (k + 1) / n))
    add("warmup_k", "constant", lambda o: lr_scheduler.LambdaLR(o, lambda k: min(1.0, k / n)), {"warmup": n},
        "k < warmup: lr k / warmup", lambda k: base * min(1, k / n))
    add("warmup_from_third", "constant", lambda o: lr_scheduler.LinearLR(o, 1 / 3, 1.0, n), {"warmup": n, "start_factor": 1 / 3},
        "k < warmup: lr (start_factor + (1 - start_factor) k / warmup); PyTorch's LinearLR",
        lambda k: base * min(1, 1 / 3 + 2 / 3 * k / n))

    for end, total in [(0.0, 40), (0.1, 40), (0.25, 20)]:
        add(f"linear_{end:g}_{total}", "linear", lambda o: lr_scheduler.LinearLR(o, 1.0, end, total),
            {"end_factor": end, "total_steps": total}, "lr (1 + (end_factor - 1) min(k, total_steps) / total_steps)",
            lambda k: base * (1 + (end - 1) * min(k, total) / total))
    for low in [0.0, 0.01]:
        add(f"cosine_{low:g}", "cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, count, low),
            {"total_steps": count, "min_lr": low}, "min_lr + (lr - min_lr) (1 + cos(π k / total_steps)) / 2",
            lambda k: low + (base - low) * (1 + math.cos(math.pi * k / count)) / 2)

    def sequence(warm, after):
        return lambda o: lr_scheduler.SequentialLR(o, [warm(o), after(o)], milestones=[n])

    def hot(k):
        return base * (k + 1) / n

    k_plus_1 = lambda o: lr_scheduler.LinearLR(o, 1 / n, 1.0, n - 1)  # noqa: E731
    rest = count - n
    for low in [0.0, 0.01]:
        add(f"cosine_warmup_{low:g}", "cosine", sequence(k_plus_1, lambda o: lr_scheduler.CosineAnnealingLR(o, rest, low)),
            {"warmup": n, "total_steps": count, "min_lr": low},
            "k < warmup: lr (k + 1) / warmup; else min_lr + (lr - min_lr) (1 + cos(π (k - warmup) / (total_steps - warmup))) / 2",
            lambda k: hot(k) if k < n else low + (base - low) * (1 + math.cos(math.pi * (k - n) / rest)) / 2)
    add("linear_warmup", "linear", sequence(k_plus_1, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, rest)),
        {"warmup": n, "total_steps": count, "end_factor": 0.0},
        "k < warmup: lr (k + 1) / warmup; else lr (1 - (k - warmup) / (total_steps - warmup))",
        lambda k: hot(k) if k < n else base * (1 - (k - n) / rest))

    add("step_7_0.5", "step", lambda o: lr_scheduler.StepLR(o, 7, 0.5), {"step_size": 7, "gamma": 0.5},
        "lr gamma^floor(k / step_size)", lambda k: base * 0.5 ** (k // 7))
    add("step_10_0.1", "step", lambda o: lr_scheduler.StepLR(o, 10, 0.1), {"step_size": 10, "gamma": 0.1},
        "lr gamma^floor(k / step_size)", lambda k: base * 0.1 ** (k // 10))
    for gamma in [0.9, 0.99]:
        add(f"exponential_{gamma:g}", "exponential", lambda o: lr_scheduler.ExponentialLR(o, gamma), {"gamma": gamma},
            "lr gamma^k", lambda k: base * gamma**k)

    for anneal in ["cos", "linear"]:
        for pct, div, final in [(0.3, 25.0, 1e4), (0.25, 10.0, 100.0)]:
            def one_cycle(k, pct=pct, div=div, final=final, anneal=anneal):
                top, low = pct * count - 1, base / div
                end = low / final
                a, b, share = (low, base, k / top) if k <= top else (base, end, (k - top) / (count - 1 - top))
                return a + (b - a) * (share if anneal == "linear" else (1 - math.cos(math.pi * share)) / 2)

            add(f"one_cycle_{anneal}_{pct:g}", "one_cycle",
                lambda o: lr_scheduler.OneCycleLR(o, base, total_steps=count, pct_start=pct, anneal_strategy=anneal,
                                                  cycle_momentum=False, div_factor=div, final_div_factor=final),
                {"total_steps": count, "pct_start": pct, "anneal": anneal, "div_factor": div, "final_div_factor": final},
                "low = lr / div_factor, end = low / final_div_factor, top = pct_start total_steps - 1; k <= top: from low to lr over "
                "k / top; then from lr to end over (k - top) / (total_steps - 1 - top); along a line or half a cosine", one_cycle)

    # Falls, then flat with small dents, a better stretch, flat again.
    losses_ = [round(1 / (k + 1), 4) for k in range(8)] + [0.125, 0.1249, 0.1251, 0.13, 0.126, 0.125, 0.1248, 0.127]
    losses_ += [0.12, 0.11, 0.10] + [0.1] * 10 + [0.0999, 0.09, 0.095, 0.091, 0.0901, 0.0899, 0.0905, 0.0902, 0.09, 0.092, 0.094]
    assert len(losses_) == count
    default = {"mode": "min", "factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel", "cooldown": 0, "min_lr": 0.0}
    for name, changes in [
        ("default", {"patience": 5}),
        ("patience_2", {"factor": 0.5, "patience": 2}),
        ("patience_0", {"factor": 0.5, "patience": 0, "min_lr": 0.001}),
        ("cooldown", {"factor": 0.5, "patience": 2, "cooldown": 3}),
        ("threshold", {"factor": 0.5, "patience": 2, "threshold": 0.05}),
        ("absolute", {"factor": 0.5, "patience": 2, "threshold": 0.01, "threshold_mode": "abs"}),
        ("max", {"mode": "max", "factor": 0.5, "patience": 2}),
    ]:
        args = {**default, **changes}
        metrics = [-m for m in losses_] if args["mode"] == "max" else losses_
        if args["mode"] == "max":
            metrics = [1.0 + m for m in metrics]  # positive, like an accuracy
        add(f"plateau_{name}", "plateau", lambda o: lr_scheduler.ReduceLROnPlateau(o, **args), {**args, "eps": 1e-8},
            "better: metric < best (1 - threshold), with abs: metric < best - threshold (max: > best (1 + threshold), > best + threshold); "
            "during a cooldown bad epochs do not count; after more than patience bad ones lr = max(lr factor, min_lr), unless the change is <= eps",
            metrics=metrics)
    return {"steps": count, "cases": cases}


# ---- clipping ----


def clipping():
    """Clipping by global norm and by value: gradients before and after."""
    start = {"w": grid(3, 4, seed=60, scale=2.0), "b": grid(4, seed=61)}
    cases = []
    for name, scale, how, limit in [
        ("norm_1", 1.0, "norm", 1.0), ("norm_0.01", 1.0, "norm", 0.01), ("norm_unreached", 1.0, "norm", 100.0),
        ("norm_zero_gradients", 0.0, "norm", 1.0), ("value_0.5", 1.0, "value", 0.5), ("value_unreached", 1.0, "value", 100.0),
    ]:
        params = {key: nn.Parameter(torch.zeros_like(t)) for key, t in start.items()}
        for key, parameter in params.items():
            parameter.grad = start[key] * scale
        before = {key: tensor(p.grad) for key, p in params.items()}
        entry = {"name": name, "kind": how, "limit": limit, "before": before}
        if how == "norm":
            entry["total_norm"] = nn.utils.clip_grad_norm_(params.values(), limit).item()
        else:
            nn.utils.clip_grad_value_(params.values(), limit)
        cases.append({**entry, "after": {key: tensor(p.grad) for key, p in params.items()}})
    return {"formula": "norm: g * min(1, limit / (total_norm + 1e-6)); value: clamp(g, -limit, limit)", "cases": cases}
