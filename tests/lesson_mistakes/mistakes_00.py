"""Wrong answers to the exercises of lesson 0, and a part of the hint that each must get."""

MISTAKES = [
    ("0.1", """
def central_differences(f, x, upstream, h):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = 1
        gradient[index] = (upstream * (f(x + h * e) - f(x))).sum() / h
    return gradient
""", "one-sided"),
    ("0.1", """
def central_differences(f, x, upstream, h):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = 1
        gradient[index] = (upstream * (f(x + h * e) - f(x - h * e))).sum() / h
    return gradient
""", "it is a way of 2h"),
    ("0.1", """
def central_differences(f, x, upstream, h):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        x[index] += h
        ahead = f(x)
        x[index] -= 2 * h
        gradient[index] = (upstream * (ahead - f(x))).sum() / (2 * h)
    return gradient
""", "it changes its input x"),
    ("0.1", """
def central_differences(f, x, upstream, h):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = 1
        gradient[index] = (f(x + h * e) - f(x - h * e)).sum() / (2 * h)
    return gradient
""", "the upstream gradient is not used"),
    ("0.1", """
def central_differences(f, x, upstream, h):
    return np.full(x.shape, (upstream * (f(x + h) - f(x - h))).sum() / (2 * h))
""", "one at a time"),
    ("0.1", """
def central_differences(f, x, upstream, h):
    return upstream * (f(x + h) - f(x - h)) / (2 * h)
""", "shape"),
    ("0.1", """
def central_differences(f, x, upstream, h):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = h
        gradient[index] = (upstream * (f(x + e) - f(x - e))).mean() / (2 * h)
    return gradient
""", "multiply the change of f by upstream, sum"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return weight * dout, dout * x, dout
""", "summed over axes 0, 1, 2"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return weight * dout, (dout * x).mean(axis=(0, 1, 2)), dout.mean(axis=(0, 1, 2))
""", "is a sum, not a mean"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return dout, (dout * x).sum(axis=(0, 1, 2)), dout.sum(axis=(0, 1, 2))
""", "passes through the factor weight"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return weight * dout, x.sum(axis=(0, 1, 2)), dout.sum(axis=(0, 1, 2))
""", "dout is not used"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return weight * np.ones_like(dout), x.sum(axis=(0, 1, 2)), np.full_like(bias, x[..., 0].size)
""", "dout is not used"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return (weight * dout, (dout * x).sum(axis=(0, 1, 2), keepdims=True),
            dout.sum(axis=(0, 1, 2), keepdims=True))
""", "without keepdims"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return weight * dout + bias, (dout * x).sum(axis=(0, 1, 2)), dout.sum(axis=(0, 1, 2))
""", "a term that is summed over there is missing or too much"),
    ("0.2", """
def scale_and_shift_backward(dout, x, weight, bias):
    return weight * dout, (dout * x).sum(axis=(1, 2, 3)), dout.sum(axis=(1, 2, 3))
""", "sum over N, H and W"),
]
