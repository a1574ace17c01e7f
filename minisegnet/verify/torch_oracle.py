"""The same ops, layers and losses in PyTorch, as an independent judge. Needs torch.

Each function takes tensors in this package's layouts (NHWC, weights as in `minisegnet.ops`) and
torch's autograd gives the gradients. Losses that torch does not have are written down from their
formulas here; autograd then still judges our gradient.
"""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F


def gradients(function, inputs, constants, upstream, device="cpu"):
    """Return `function(**inputs, **constants)`'s outputs, and the gradient of each input.

    NumPy in, NumPy out; torch computes on its `device`. Where the function returns a tuple, its
    first output is differentiated: the gradients are those of `sum(upstream * output)`.
    """
    tensors = {name: torch.tensor(array, requires_grad=True, device=device)
               for name, array in inputs.items()}
    constants = {
        name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value
        for name, value in constants.items()
    }
    outputs = function(**tensors, **constants)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs[0].backward(torch.as_tensor(upstream, dtype=outputs[0].dtype, device=device))
    return (
        [output.detach().cpu().numpy() for output in outputs],
        {name: tensor.grad.cpu().numpy() for name, tensor in tensors.items()},
    )


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


# Ops

def conv2d(x, weight, bias=None, **window):
    return nhwc(F.conv2d(nchw(x), weight.permute(3, 2, 0, 1), bias, **window))


def conv_transpose2d(x, weight, bias=None, **window):
    return nhwc(F.conv_transpose2d(nchw(x), weight.permute(3, 2, 0, 1), bias, **window))


def depthwise_conv2d(x, weight, **window):
    kernels = weight.permute(2, 0, 1).unsqueeze(1)  # (C, 1, KH, KW)
    return nhwc(F.conv2d(nchw(x), kernels, groups=x.shape[3], **window))


def batch_norm(x, weight, bias, *, running_mean, running_var, training, momentum=0.1, eps=1e-5,
               residual=None):
    mean, var = running_mean.clone(), running_var.clone()  # torch changes them in place
    out = F.batch_norm(nchw(x), mean, var, weight, bias, training, momentum, eps)
    out = nhwc(out) if residual is None else nhwc(out) + residual
    return out, mean, var


def relu(x):
    return F.relu(x)


def relu6(x):
    return F.relu6(x)


def hardsigmoid(x):
    """Not F.hardsigmoid: its backward holds 1/6 in float32, hence is 3e-8 off in float64."""
    return F.relu6(x + 3) / 6


def hardswish(x):
    return F.hardswish(x)


def sigmoid(x):
    return torch.sigmoid(x)


def global_average_pool(x):
    return nhwc(F.adaptive_avg_pool2d(nchw(x), 1))


def repeat_pixels(x, *, size):
    return x.expand(-1, *size, -1)


def channel_scale(x, gate):
    return x * gate


def squeeze_excite_gate(pooled, weight1, bias1, weight2, bias2):
    return hardsigmoid(conv2d(F.relu(conv2d(pooled, weight1, bias1)), weight2, bias2))


def max_pool2d(x, **window):
    return nhwc(F.max_pool2d(nchw(x), **window))


def upsample_bilinear(x, *, size):
    return nhwc(F.interpolate(nchw(x), size, mode="bilinear", align_corners=False))


def dropout(x, *, kept, p):
    return torch.where(kept, x / (1 - p), 0)


def concatenate(a, b, c):
    return torch.cat([a, b, c], dim=3)


# Layers and blocks, with the parameters under their dotted names

def conv2d_layer(x, *, stride, padding, dilation, **p):
    return conv2d(x, p["weight"], p["bias"], stride=stride, padding=padding, dilation=dilation)


def batch_norm_layer(x, *, training, eps=1e-5, **p):
    """Batch norm with fresh running statistics, mean 0 and variance 1."""
    C = x.shape[3]
    zeros, ones = torch.zeros(C, dtype=x.dtype), torch.ones(C, dtype=x.dtype)
    return batch_norm(x, p["weight"], p["bias"], running_mean=zeros, running_var=ones,
                      training=training, eps=eps)[0]


def under(prefix, parameters):
    """Return the parameters below `prefix`, without it."""
    return {name.removeprefix(prefix + "."): value for name, value in parameters.items()
            if name.startswith(prefix + ".")}


def conv_norm_activation(x, *, activation="relu", stride=1, dilation=1, eps=1e-5, **p):
    """Dense or depthwise by the weight's axes, with "same" padding."""
    weight = p["conv.weight"]
    conv = conv2d if weight.ndim == 4 else depthwise_conv2d
    padding = dilation * (weight.shape[0] - 1) // 2
    x = conv(x, weight, stride=stride, padding=padding, dilation=dilation)
    x = batch_norm_layer(x, training=True, eps=eps, **under("norm", p))
    return getattr(F, activation)(x) if activation else x


def separable_conv2d(x, *, dilation, **p):
    x = conv_norm_activation(x, dilation=dilation, **under("depthwise", p))
    return conv_norm_activation(x, **under("pointwise", p))


def squeeze_excite(x, **p):
    return x * squeeze_excite_gate(global_average_pool(x), p["fc1.weight"], p["fc1.bias"],
                                   p["fc2.weight"], p["fc2.bias"])


def inverted_residual(x, *, activation, stride, dilation, residual, **p):
    norm = {"eps": 1e-3}
    out = conv_norm_activation(x, activation=activation, **norm, **under("expand", p))
    out = conv_norm_activation(out, activation=activation, stride=stride, dilation=dilation,
                               **norm, **under("depthwise", p))
    if under("squeeze_excite", p):
        out = squeeze_excite(out, **under("squeeze_excite", p))
    out = conv_norm_activation(out, activation=None, **norm, **under("project", p))
    return x + out if residual else out


def aspp(x, *, rates, **p):
    """Without dropout."""
    _, H, W, _ = x.shape
    branches = [conv_norm_activation(x, **under("pointwise", p))]
    for rate in rates:
        branches.append(
            conv_norm_activation(x, dilation=rate, **under(f"atrous.rate{rate}", p)))
    pooled = conv_norm_activation(global_average_pool(x), **under("pooled", p))
    branches.append(upsample_bilinear(pooled, size=(H, W)))
    return conv_norm_activation(torch.cat(branches, dim=3), **under("project", p))


def concatenate_thrice(x):
    return concatenate(x, x, x)


# Losses

def cross_entropy(logits, *, target, weight=None, ignore_index=255, label_smoothing=0.0):
    return F.cross_entropy(nchw(logits), target.long(), weight, ignore_index=ignore_index,
                           label_smoothing=label_smoothing)


def valid_pixels(logits, target, ignore_index):
    """Return the log-probabilities (P, K) and labels (P,) of the pixels that are not ignored."""
    valid = target != ignore_index
    return F.log_softmax(logits[valid], dim=-1), target[valid].long()


def focal(logits, *, target, alpha=None, gamma=2.0, ignore_index=255):
    log_p, y = valid_pixels(logits, target, ignore_index)
    log_pt = log_p.gather(1, y[:, None])[:, 0]
    losses = -(1 - log_pt.exp()) ** gamma * log_pt
    if alpha is not None:
        losses = losses * (alpha[y] if isinstance(alpha, torch.Tensor) else alpha)
    return losses.mean()


def dice(logits, *, target, smooth=1.0, classes="present", weight=None, log=False, mode="pooled",
         ignore_index=255):
    log_p, y = valid_pixels(logits, target, ignore_index)
    p, t = log_p.exp(), F.one_hot(y, logits.shape[-1]).to(logits.dtype)  # (P, K)
    intersection, predicted, truth = (p * t).sum(0), p.sum(0), t.sum(0)  # (K,)
    if mode == "smp":  # segmentation_models.pytorch: half the smoothing, divided by all K classes
        denominator = ((predicted + truth) / 2 + smooth).clamp_min(1e-7)
        score = (intersection + smooth) / denominator
        loss = -score.clamp_min(1e-7).log() if log else 1 - score
        return (loss * (truth > 0)).mean()
    score = (2 * intersection + smooth) / (predicted + truth + smooth)
    loss = -score.log() if log else 1 - score
    return mean_over_classes(loss, truth, classes, weight)


def mean_over_classes(losses, truth, classes, weight):
    """Return the weighted mean of losses (K,), over classes with truth (K,) > 0, or over all."""
    w = torch.ones_like(losses) if weight is None else weight
    if classes == "present":
        w = w * (truth > 0)
    return (w * losses).sum() / w.sum()


def combined(logits, *, target, lambda_focal=1.0, lambda_dice=1.0, alpha=None, gamma=2.0,
             smooth=1.0, dice_mode="pooled", ignore_index=255):
    return (
        lambda_focal * focal(logits, target=target, alpha=alpha, gamma=gamma,
                             ignore_index=ignore_index)
        + lambda_dice * dice(logits, target=target, smooth=smooth, mode=dice_mode,
                             ignore_index=ignore_index)
    )


def tversky(logits, *, target, alpha=0.3, beta=0.7, smooth=1.0, classes="present", weight=None,
            ignore_index=255):
    log_p, y = valid_pixels(logits, target, ignore_index)
    p, t = log_p.exp(), F.one_hot(y, logits.shape[-1]).to(logits.dtype)  # (P, K)
    found, wrong, missed = ((a * b).sum(0) for a, b in ((p, t), (p, 1 - t), (1 - p, t)))  # (K,)
    index = (found + smooth) / (found + alpha * wrong + beta * missed + smooth)
    return mean_over_classes(1 - index, t.sum(0), classes, weight)


def lovasz(logits, *, target, classes="present", weight=None, ignore_index=255):
    """The IoU of every cut through the sorted errors, class by class, and its steps."""
    log_p, y = valid_pixels(logits, target, ignore_index)
    t = F.one_hot(y, logits.shape[-1]).to(logits.dtype)  # (P, K)
    errors, order = (t - log_p.exp()).abs().sort(dim=0, descending=True)
    t_sorted, truth = t.gather(0, order), t.sum(0)
    iou = (truth - t_sorted.cumsum(0)) / (truth + (1 - t_sorted).cumsum(0))  # (P, K)
    steps = (1 - iou).diff(dim=0, prepend=torch.zeros_like(iou[:1]))
    return mean_over_classes((errors * steps).sum(0), truth, classes, weight)


def ohem(logits, *, target, thresh=0.7, min_kept=1 / 16, weight=None, ignore_index=255):
    """torch's cross-entropy of the n hardest pixels, n from both rules at once."""
    log_p, y = valid_pixels(logits, target, ignore_index)
    log_pt = log_p.gather(1, y[:, None])[:, 0].detach()
    n = max(math.ceil(min_kept * len(y)), int((log_pt.exp() < thresh).sum()))
    hardest = log_pt.topk(n, largest=False).indices
    return F.nll_loss(log_p[hardest], y[hardest], weight)


def logit_adjusted(logits, *, target, prior, tau=1.0, weight=None, ignore_index=255):
    """log sum_c (pi_c / pi_y)^tau exp(z_c - z_y): every class bids against the true one."""
    valid = target != ignore_index
    z, y = logits[valid], target[valid].long()[:, None]  # (P, K), (P, 1)
    share = torch.where(prior > 0, prior, prior.max()) ** tau
    losses = (share / share[y] * (z - z.gather(1, y)).exp()).sum(1).log()
    w = torch.ones_like(losses) if weight is None else weight[y[:, 0]]
    return (w * losses).sum() / w.sum()


LOSSES = {"ce": cross_entropy, "focal": focal, "dice": dice, "combined": combined,
          "tversky": tversky, "lovasz": lovasz, "ohem": ohem, "logit_adjusted": logit_adjusted}


def upsampled_loss(coarse, *, target, loss, **options):
    """The plain path: upsample to the target's size, then the loss."""
    logits = upsample_bilinear(coarse, size=tuple(target.shape[1:]))
    return LOSSES[loss](logits, target=target, **options)


# Optimizers and schedules

def optimizer_path(name, start, gradients, **options):
    """Return the parameter after each step of `torch.optim.<name>`: (steps, P)."""
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(torch.optim, name)([p], **options)
    path = []
    for gradient in gradients:
        p.grad = torch.tensor(gradient)
        optimizer.step()
        path.append(p.detach().numpy().copy())
    return np.array(path)


def clipped(gradient, max_norm):
    """Return `gradient` clipped by its global norm."""
    p = torch.nn.Parameter(torch.zeros(gradient.shape, dtype=torch.float64))
    p.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_([p], max_norm)
    return p.grad.numpy()


def schedule_rates(name, steps, lr, *args, warmup=None, **options):
    """Return the rates of `torch.optim.lr_scheduler.<name>` at steps 0 .. steps-1.

    `warmup=(iterations, start_factor)` puts a LinearLR before it.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = torch.optim.lr_scheduler
    if warmup is None:
        scheduler = getattr(schedulers, name)(optimizer, *args, **options)
    else:
        # The order matters: each scheduler sets the first rate as it is made.
        before = schedulers.LinearLR(optimizer, warmup[1], total_iters=warmup[0])
        after = getattr(schedulers, name)(optimizer, *args, **options)
        scheduler = schedulers.SequentialLR(optimizer, [before, after], [warmup[0]])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's own, from inside SequentialLR
            if len(rates) < steps:
                scheduler.step()
    return np.array(rates)
