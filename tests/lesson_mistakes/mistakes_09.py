"""Wrong answers to the exercises of lesson 9, and a part of the hint that each must get."""

MISTAKES = [
    ("9.1", """
def updated_statistics(x, running_mean, running_var, momentum):
    _, mean, var, _ = normalize(x)
    return ((1 - momentum) * running_mean + momentum * mean,
            (1 - momentum) * running_var + momentum * var)
""", "this is the biased variance"),
    ("9.1", """
def updated_statistics(x, running_mean, running_var, momentum):
    n = x.size / x.shape[-1]
    _, mean, var, _ = normalize(x)
    return (momentum * running_mean + (1 - momentum) * mean,
            momentum * running_var + (1 - momentum) * var * n / (n - 1))
""", "the share of the new batch"),
    ("9.1", """
def updated_statistics(x, running_mean, running_var, momentum):
    running_mean += momentum * (x.mean(axis=(0, 1, 2)) - running_mean)
    running_var += momentum * (x.var(axis=(0, 1, 2), ddof=1) - running_var)
    return running_mean, running_var
""", "it changes its input running_mean"),
    ("9.1", """
def updated_statistics(x, running_mean, running_var, momentum):
    _, mean, var, _ = normalize(x)
    return ((1 - momentum) * running_mean + momentum * mean,
            (1 - momentum) * running_var + momentum * var * x.size / (x.size - 1))
""", "N * H * W, not x.size"),
    ("9.2", """
def parameter_gradients(dout, x, weight, bias):
    return (dout * x).sum(axis=(0, 1, 2)), dout.sum(axis=(0, 1, 2))
""", "multiplied by xhat, not by x"),
    ("9.2", """
def parameter_gradients(dout, x, weight, bias):
    xhat = normalize(x)[0]
    return (dout * xhat).mean(axis=(0, 1, 2)), dout.mean(axis=(0, 1, 2))
""", "n, the number of values of a channel"),
    ("9.2", """
def parameter_gradients(dout, x, weight, bias):
    return dout * normalize(x)[0], dout
""", "summed over axes 0, 1, 2"),
    ("9.3", """
def input_gradient(dout, x, weight):
    return weight * normalize(x)[3] * dout
""", "treats mean and variance as constants"),
    ("9.3", """
def input_gradient(dout, x, weight):
    xhat, _, _, inv_std = normalize(x)
    return weight * inv_std * (dout - dout.mean(axis=(0, 1, 2)))
""", "the way through the variance is missing"),
    ("9.3", """
def input_gradient(dout, x, weight):
    xhat, _, _, inv_std = normalize(x)
    return weight * inv_std * (dout - xhat * (dout * xhat).mean(axis=(0, 1, 2)))
""", "the way through the mean is missing"),
    ("9.3", """
def input_gradient(dout, x, weight):
    xhat, _, _, inv_std = normalize(x)
    return weight * inv_std * (dout - dout.sum(axis=(0, 1, 2))
                               - xhat * (dout * xhat).mean(axis=(0, 1, 2)))
""", "means over the n values of the channel"),
    ("9.3", """
def input_gradient(dout, x, weight):
    xhat, _, _, inv_std = normalize(x)
    return inv_std * (dout - dout.mean(axis=(0, 1, 2)) - xhat * (dout * xhat).mean(axis=(0, 1, 2)))
""", "weight and inv_std"),
    ("9.1", """
def updated_statistics(x, running_mean, running_var, momentum):
    n = x[0, ..., 0].size
    _, mean, var, _ = normalize(x)
    return ((1 - momentum) * running_mean + momentum * mean,
            (1 - momentum) * running_var + momentum * var * n / (n - 1))
""", "not those of one picture"),
    ("9.1", """
def updated_statistics(x, running_mean, running_var, momentum):
    n = x[..., 0].size
    _, mean, var, _ = normalize(x)
    return ((1 - momentum) * running_mean + momentum * mean,
            (1 - momentum) * running_var + momentum * var * (n - 1) / n)
""", "upside down"),
    ("9.1", """
def updated_statistics(x, running_mean, running_var, momentum):
    return (running_mean + momentum * x.mean(axis=(0, 1, 2)),
            running_var + momentum * x.var(axis=(0, 1, 2), ddof=1))
""", "plus 0.3 times running_mean"),
    ("9.2", """
def parameter_gradients(dout, x, weight, bias):
    xhat = normalize(x)[0]
    return (dout * weight * xhat).sum(axis=(0, 1, 2)), dout.sum(axis=(0, 1, 2))
""", "no place in its own gradient"),
    ("9.2", """
def parameter_gradients(dout, x, weight, bias):
    xhat = normalize(x)[0]
    return dout.sum(axis=(0, 1, 2)), (dout * xhat).sum(axis=(0, 1, 2))
""", "dweight comes first"),
    ("9.3", """
def input_gradient(dout, x, weight):
    xhat, _, _, inv_std = normalize(x)
    return weight * inv_std * (dout - dout.sum(axis=(0, 1, 2))
                               - xhat * (dout * xhat).sum(axis=(0, 1, 2)))
""", "not sums"),
    ("9.3", """
def input_gradient(dout, x, weight):
    xhat, _, _, inv_std = normalize(x)
    return weight * inv_std * (dout - dout.mean(axis=(1, 2), keepdims=True)
                               - xhat * (dout * xhat).mean(axis=(1, 2), keepdims=True))
""", "not over each picture"),
    ("9.3", """
def input_gradient(dout, x, weight):
    xhat, _, _, inv_std = normalize(x)
    return weight * inv_std * (dout - dout.mean(axis=(0, 1, 2))
                               - (dout * xhat).mean(axis=(0, 1, 2)))
""", "by its own xhat"),
]
