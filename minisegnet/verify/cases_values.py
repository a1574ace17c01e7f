"""What has numbers but no backward pass: optimizers, schedules, metrics, class weights.

Optimizers and schedules are compared with torch's. Metrics, weights and what else torch does not
have are compared with plain formulas that share nothing with the package's code.
"""

import math

import numpy as np

from minisegnet import imbalance, layers, metrics, optim
from minisegnet.optim.adamw import adamw_update_plain
from minisegnet.verify.case import ValueCase


def cases():
    """Return the `ValueCase`s."""
    return _optimizers() + _schedules() + _watchers() + _metrics() + _weights()


# Optimizers: ten steps with gradients of very different sizes

def _optimizers():
    rng = np.random.default_rng(5)
    start = rng.standard_normal(30)
    gradients = rng.standard_normal((10, 30)) * 10.0 ** rng.integers(-4, 3, (10, 1))
    decay = {"weight_decay": 0.1}
    adamw = {"lr": 0.03, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.2}
    found = []

    def add(name, path=_optimizer_path, implementation="in place", *, note="", **options):
        found.append(ValueCase(
            "optimizer", name, implementation=implementation, options=note or _words(options),
            compute=lambda: path(name, start, gradients, **options),
            expected=lambda oracle: oracle.optimizer_path(name, start, gradients, **options),
            reference="torch"))

    for path, implementation in ((_plain_adamw_path, "plain"), (_optimizer_path, "in place")):
        add("AdamW", path, implementation)
        add("AdamW", path, implementation, note="every option changed", **adamw)
    add("SGD", lr=0.1, **decay)
    add("SGD", lr=0.1, momentum=0.9, **decay)
    add("SGD", note="the same, nesterov", lr=0.1, momentum=0.9, nesterov=True, **decay)
    add("RMSprop", **decay)
    add("RMSprop", note="every option changed", lr=0.02, alpha=0.8, eps=1e-2, momentum=0.7,
        **decay)
    for max_norm in (0.5, 100.0):
        found.append(_clipping(gradients[0], max_norm))
    found.append(_averages(gradients))
    return found


def _layer_of(parameter):
    layer = layers.Layer()
    layer.add_parameter("weight", parameter.copy())
    return layer


def _optimizer_path(name, start, gradients, **options):
    """Return the parameters after each step of `optim.<name>`: (steps, P)."""
    optimizer = getattr(optim, name)(_layer_of(start), **options)
    path = []
    for gradient in gradients:
        optimizer.flat.grad[:] = gradient
        optimizer.step()
        path.append(optimizer.flat.data.copy())
    return np.array(path)


def _plain_adamw_path(name, start, gradients, *, lr=1e-3, **options):
    p, m, v = start, np.zeros_like(start), np.zeros_like(start)
    path = []
    for t, gradient in enumerate(gradients, start=1):
        p, m, v = adamw_update_plain(p, gradient, m, v, t=t, lr=lr, **options)
        path.append(p)
    return np.array(path)


def _clipping(gradient, max_norm):
    def clipped():
        flat = optim.FlatParameters(_layer_of(gradient))
        flat.grad[:] = gradient
        optim.clip_grad_norm(flat, max_norm)
        return flat.grad

    return ValueCase("optimizer", "clip_grad_norm", options=f"max_norm={max_norm}",
                     compute=clipped, expected=lambda oracle: oracle.clipped(gradient, max_norm),
                     reference="torch")


def _averages(weights):
    decay = 0.15  # below the warm-up of the decay, which torch does not have

    def averages():
        layer, path = _layer_of(weights[0]), []
        ema = optim.ExponentialMovingAverage(optim.FlatParameters(layer), layer, decay)
        for present in weights:
            layer.params["weight"][:] = present
            ema.update()
            path.append(ema.state_dict()["weight"])
        return np.array(path)

    def expected(oracle):
        torch = oracle.torch
        module, path = torch.nn.ParameterList([torch.tensor(weights[0])]), []
        theirs = torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay))
        for present in weights:
            module[0].data[:] = torch.tensor(present)
            theirs.update_parameters(module)
            path.append(theirs.module[0].detach().numpy().copy())
        return np.array(path)

    return ValueCase("optimizer", "ExponentialMovingAverage", options=f"decay={decay}",
                     compute=averages, expected=expected, reference="torch")


# Schedules: the whole sequence of rates

def _schedules():
    lr, found = 0.05, []

    def add(schedule, name, steps, *arguments, options="", **torch_options):
        kind = type(schedule).__name__
        found.append(ValueCase(
            "schedule", kind, options=options or f"{steps} steps", reference="torch",
            compute=lambda: np.array([schedule(step) for step in range(steps)]),
            expected=lambda oracle: oracle.schedule_rates(
                name, steps, lr, *arguments, **torch_options)))

    add(optim.ConstantLR(lr), "ConstantLR", 10, factor=1.0)
    add(optim.StepLR(lr, 7, 0.3), "StepLR", 30, 7, 0.3)
    add(optim.CosineAnnealingLR(lr, 20, 1e-3), "CosineAnnealingLR", 45, 20, 1e-3)
    restarts = optim.CosineAnnealingWarmRestarts
    add(restarts(lr, 20, 2, 1e-6), "CosineAnnealingWarmRestarts", 310, 20, 2, 1e-6,
        options="restarts at 20, 60, 140, 300")
    add(restarts(lr, 7), "CosineAnnealingWarmRestarts", 30, 7, options="T_0=7")
    add(optim.PolynomialLR(lr, 25), "PolynomialLR", 30, 25, power=0.9)
    add(optim.OneCycleLR(lr, 40), "OneCycleLR", 40, lr, 40, cycle_momentum=False)
    add(optim.LinearWarmup(optim.CosineAnnealingLR(lr, 20), 5, 0.01), "CosineAnnealingLR", 25, 20,
        warmup=(5, 0.01), options="5 steps, then cosine")
    found.append(_two_stages(lr))
    found.append(_restart_tops(restarts(lr, 20, 2)))
    return found


def _two_stages(lr):
    schedule = optim.SequentialLR([optim.StepLR(lr, 3, 0.5), optim.StepLR(lr, 4, 0.2)], [10])

    def expected(oracle):
        first, second = (oracle.schedule_rates("StepLR", steps, lr, *arguments)
                         for steps, arguments in ((10, (3, 0.5)), (15, (4, 0.2))))
        return np.concatenate([first, second])

    return ValueCase("schedule", "SequentialLR", options="10 steps, then 15", reference="torch",
                     compute=lambda: np.array([schedule(step) for step in range(25)]),
                     expected=expected)


def _restart_tops(schedule):
    def compute():
        tops = [optim.near_restart_top(schedule, step) for step in range(300)]
        return np.array([top.cycle_ends[-1] if top else 0 for top in tops])

    def expected():
        ends = [20] * 20 + [60] * 40 + [140] * 80 + [300] * 160
        rates = [schedule(step) for step in range(300)]
        return [end if rate > schedule.lr / 2 + 1e-12 else 0 for end, rate in zip(ends, rates)]

    return ValueCase("schedule", "near_restart_top", compute, expected, "formula",
                     options="restarts at 20, 60, 140")


# What watches a score: one that gets better, then only trembles

def _watchers():
    rng = np.random.default_rng(9)
    scores = np.minimum(np.arange(60) / 20, 1) + 0.05 * rng.standard_normal(60)
    found = []
    for mode in ("min", "max"):
        options = {"factor": 0.5, "patience": 2, "cooldown": 1}
        found.append(ValueCase(
            "schedule", "ReduceLROnPlateau", options=mode, reference="torch",
            compute=lambda mode=mode, options=options: _scales(mode, scores, options),
            expected=lambda oracle, mode=mode, options=options: _torch_scales(
                oracle.torch, mode, scores, options)))

    def stops():
        stopping = optim.EarlyStopping("max", 5)
        return np.array([stopping.update(score) for score in scores])

    found.append(ValueCase("schedule", "EarlyStopping", stops, lambda: [
        i - scores[:i + 1].argmax() >= 5 for i in range(60)], "formula", options="patience=5"))
    return found


def _scales(mode, scores, options):
    plateau, path = optim.ReduceLROnPlateau(mode, **options), []
    for score in scores:
        plateau.update(score)
        path.append(plateau.scale)
    return np.array(path)


def _torch_scales(torch, mode, scores, options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau, path = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, **options), []
    for score in scores:
        plateau.step(score)
        path.append(optimizer.param_groups[0]["lr"])
    return np.array(path)


# Metrics: pixels counted class by class with boolean masks, no confusion matrix

def _metrics():
    rng = np.random.default_rng(6)
    K = 6
    target = rng.choice([0, 1, 2, 3], (3, 8, 9), p=[0.6, 0.2, 0.15, 0.05])  # 4 and 5 never
    prediction = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, 5, target.shape))
    target[rng.random(target.shape) < 0.1] = 255

    def confusion():
        matrix = metrics.ConfusionMatrix(K)
        for t, p in zip(target, prediction):  # pooled over images
            matrix.update(t, p)
        return matrix

    def add(name, expected):
        def compute():
            value = getattr(confusion(), name)
            return value() if callable(value) else value

        found.append(ValueCase("metric", name, compute, expected, "formula"))

    valid = target != 255
    t, p = target[valid], prediction[valid]
    iou, dice, precision, recall = (np.full(K, np.nan) for _ in range(4))
    for c in range(K):
        both, either = np.sum((t == c) & (p == c)), np.sum((t == c) | (p == c))
        if either:
            iou[c] = both / either
            dice[c] = 2 * both / (np.sum(t == c) + np.sum(p == c))
        if (p == c).any():
            precision[c] = both / np.sum(p == c)
        if (t == c).any():
            recall[c] = both / np.sum(t == c)

    found = []
    add("counts", lambda: [[np.sum((t == c) & (p == c)) for c in range(K)],
                           [np.sum(t == c) for c in range(K)], [np.sum(p == c) for c in range(K)]])
    add("iou", lambda: iou)
    add("dice", lambda: dice)
    add("precision", lambda: precision)
    add("recall", lambda: recall)
    add("absent", lambda: [c not in t and c not in p for c in range(K)])
    add("pixel_accuracy", lambda: np.mean(t == p))
    add("mean_class_accuracy", lambda: np.mean([np.mean(p[t == c] == c) for c in range(4)]))
    add("mean_iou_present", lambda: sum(iou[:5]) / 5)
    add("mean_iou_all", lambda: sum(iou[:5]) / 6)
    add("mean_dice_present", lambda: sum(dice[:5]) / 5)
    add("mean_dice_all", lambda: sum(dice[:5]) / 6)
    add("fw_iou", lambda: sum(np.mean(t == c) * iou[c] for c in range(4)))
    add("active_classes", lambda: sum(value > 0.01 for value in iou))
    return found


# Class weights: one class at a time, in plain Python

def _weights():
    rng = np.random.default_rng(8)
    K = 5  # class 4 is in no mask
    masks = [rng.choice(4, (12, 10), p=[0.7, 0.2, 0.08, 0.02]) for _ in range(6)]
    masks[0][masks[0] == 3] = 255
    masks[1][masks[1] >= 2] = 255

    valid = [[int(label) for label in mask.flat if label != 255] for mask in masks]
    n = [sum(labels.count(c) for labels in valid) for c in range(K)]
    f = [n_c / sum(n) for n_c in n]
    with_class = [[labels for labels in valid if c in labels] for c in range(K)]
    share = [n[c] / sum(map(len, with_class[c])) for c in range(4)]  # within those images
    formulas = {
        "none": lambda c: 1,
        "inverse": lambda c: min(1 / (K * f[c]), 100),
        "sqrt": lambda c: math.sqrt(max(n) / n[c]),
        "median": lambda c: (sorted(share)[1] + sorted(share)[2]) / 2 / share[c],
        "enet": lambda c: 1 / math.log(1.02 + f[c]),
        "effective": lambda c: (1 - 0.9999) / (1 - 0.9999 ** len(with_class[c])),
    }

    def case(scheme):
        def compute():
            statistics = imbalance.ClassStatistics.from_masks(masks, K)
            return imbalance.class_weights(statistics, scheme)

        def expected():
            absent = 1 if scheme == "none" else 0
            return [formulas[scheme](c) for c in range(4)] + [absent]

        return ValueCase("weights", scheme, compute, expected, "formula")

    return [case(scheme) for scheme in imbalance.SCHEMES]


def _words(options):
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"
