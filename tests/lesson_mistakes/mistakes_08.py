"""Wrong answers to the exercises of lesson 8, and a part of the hint that each must get."""

FORWARD = """
def depthwise(x, weight, stride, padding, dilation):
    N, H, W, C = x.shape
    K = len(weight)
    OH = output_size(H, K, stride, padding, dilation)
    OW = output_size(W, K, stride, padding, dilation)
    padded = pad(x, padding)
    out = np.zeros((N, OH, OW, C), x.dtype)
    for a, b in np.ndindex(K, K):
        out += seen_from(padded, a * dilation, b * dilation, OH, OW, stride) * weight[a, b]
    return out
"""
BACKWARD = """
def depthwise_backward(dout, x, weight, stride, padding, dilation):
    _, H, W, _ = x.shape
    _, OH, OW, _ = dout.shape
    padded = pad(x, padding)
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight)
    for a, b in np.ndindex(*weight.shape[:2]):
        tap = (a * dilation, b * dilation, OH, OW, stride)
        dweight[a, b] = (seen_from(padded, *tap) * dout).sum(axis=(0, 1, 2))
        seen_from(dpadded, *tap)[...] += dout * weight[a, b]
    return dpadded[:, padding:padding + H, padding:padding + W], dweight
"""


def changed(source, old, new):
    """Return `source` with one piece replaced, which must be there."""
    assert source.count(old) == 1, old
    return source.replace(old, new)


MISTAKES = [
    ("8.1", changed(FORWARD, "a * dilation, b * dilation", "a, b"), "right without dilation"),
    # A sum over the channels, as in a dense convolution.
    ("8.1", changed(FORWARD, "stride) * weight[a, b]",
                    "stride) @ weight[a, b][:, None] * np.ones(C)"), "each one stays by itself"),
    ("8.1", changed(FORWARD, "    OH = output_size(H, K, stride, padding, dilation)",
                    "    OH = output_size(H, K, stride, padding, 1)"), "a * dilation"),
    ("8.1", changed(FORWARD, "out +=", "out ="), "out += seen_from"),
    ("8.1", changed(FORWARD, "OH, OW, stride) *", "OH, OW, 1) *"), "hand the stride on"),
    ("8.2", changed(BACKWARD, ".sum(axis=(0, 1, 2))", ".sum()"), "adds up the channels as well"),
    ("8.2", changed(BACKWARD, "dpadded[:, padding:padding + H, padding:padding + W], ",
                    "dpadded[:, :H, :W], "), "begins at [padding, padding]"),
    ("8.2", changed(BACKWARD, "[...] += dout", "[...] = dout"), "add (+=)"),
    ("8.2", changed(BACKWARD, ".sum(axis=(0, 1, 2))", ".mean(axis=(0, 1, 2))"),
     "the number of windows, N * OH * OW"),
    ("8.2", changed(BACKWARD, "dpadded[:, padding:padding + H, padding:padding + W], ",
                    "dpadded, "), "cut the padding off"),
    ("8.2", changed(BACKWARD, "(seen_from(padded, *tap) * dout)", "seen_from(padded, *tap)"),
     "dout is not used"),
    ("8.3", """
def separable_cost(C, OC, K, P):
    parameters = K * K * C + C * OC
    return parameters, P * parameters, P * C + P * OC + parameters
""", "mid is missing"),
    ("8.3", """
def separable_cost(C, OC, K, P):
    parameters = K * K * C + C * OC
    return parameters, P * parameters, P * C + P * C + P * OC + parameters
""", "written once and read once"),
    ("8.3", """
def separable_cost(C, OC, K, P):
    parameters = K * K * C + C * OC
    return parameters, P * parameters, 2 * P * C + 2 * P * OC + parameters
""", "mid has as many channels as x"),
    ("8.3", """
def separable_cost(C, OC, K, P):
    parameters = K * K * C + C * OC
    return parameters, P * parameters, 3 * P * C + P * OC
""", "the weights are read, too"),
    ("8.3", """
def separable_cost(C, OC, K, P):
    parameters = K * K * OC + C * OC
    return parameters, P * parameters, 3 * P * C + P * OC + parameters
""", "not for OC"),
    ("8.3", """
def separable_cost(C, OC, K, P):
    parameters = K * K * C * C + C * OC
    return parameters, P * parameters, 3 * P * C + P * OC + parameters
""", "one K x K kernel per channel"),
]
