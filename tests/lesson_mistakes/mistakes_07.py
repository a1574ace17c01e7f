"""Wrong answers to the exercises of lesson 7, and a part of the hint that each must get."""

FORWARD = """
def conv2d(x, weight, stride, padding):
    N, H, W, C = x.shape
    KH, KW, _, OC = weight.shape
    OH, OW = output_size(H, KH, stride, padding), output_size(W, KW, stride, padding)
    padded = pad(x, padding)
    cols = np.empty((N, OH, OW, KH, KW, C), x.dtype)
    for a, b in np.ndindex(KH, KW):
        cols[:, :, :, a, b] = seen_by(padded, a, b, OH, OW, stride)
    return (cols.reshape(-1, KH * KW * C) @ weight.reshape(-1, OC)).reshape(N, OH, OW, OC)
"""
DWEIGHT = """
def conv2d_dweight(dout, x, weight, stride, padding):
    KH, KW, C, OC = weight.shape
    _, OH, OW, _ = dout.shape
    padded = pad(x, padding)
    dweight = np.empty_like(weight)
    for a, b in np.ndindex(KH, KW):
        X = seen_by(padded, a, b, OH, OW, stride).reshape(-1, C)
        dweight[a, b] = X.T @ dout.reshape(-1, OC)
    return dweight
"""
DX = """
def conv2d_dx(dout, x, weight, stride, padding):
    _, H, W, _ = x.shape
    KH, KW, _, _ = weight.shape
    _, OH, OW, _ = dout.shape
    dpadded = np.zeros_like(pad(x, padding))
    for a, b in np.ndindex(KH, KW):
        seen_by(dpadded, a, b, OH, OW, stride)[...] += dout @ weight[a, b].T
    return dpadded[:, padding:padding + H, padding:padding + W]
"""


def changed(source, old, new):
    """Return `source` with one piece replaced, which must be there."""
    assert source.count(old) == 1, old
    return source.replace(old, new)


MISTAKES = [
    # The kernel turned, as in mathematics.
    ("7.1", changed(FORWARD, "cols[:, :, :, a, b] =", "cols[:, :, :, KH - 1 - a, KW - 1 - b] ="),
     "turned by 180 degrees"),
    # The columns in the order of NCHW code.
    ("7.1", changed(changed(FORWARD, "(N, OH, OW, KH, KW, C)", "(N, OH, OW, C, KH, KW)"),
                    "cols[:, :, :, a, b]", "cols[..., a, b]"),
     "both must run over KH, then KW, then C"),
    ("7.1", changed(FORWARD, "padded = pad(x, padding)", "padded = x"), "seen_by(pad(x, padding)"),
    ("7.1", changed(FORWARD, "output_size(W, KW, stride, padding)",
                    "output_size(W, KH, stride, padding)"), "OH and OW come from output_size"),
    ("7.1", changed(FORWARD, ".reshape(N, OH, OW, OC)", ""), "reshape"),
    ("7.1", changed(FORWARD, "a, b, OH, OW, stride)", "a, b, OH, OW, 1)"), "hand the stride on"),
    ("7.1", """
def conv2d(x, weight, stride, padding):
    N, H, W, C = x.shape
    KH, KW, _, OC = weight.shape
    OH, OW = output_size(H, KH, stride, padding), output_size(W, KW, stride, padding)
    for a, b in np.ndindex(KH, KW):
        out = seen_by(pad(x, padding), a, b, OH, OW, stride) @ weight[a, b]
    return out
""", "add (+=) the products"),
    ("7.2", changed(DWEIGHT, "padded = pad(x, padding)",
                    "padded = np.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)))"),
     "must be padded as it was forward"),
    ("7.2", changed(DWEIGHT, "X.T @ dout.reshape(-1, OC)", "X.T @ dout.reshape(-1, OC) / len(X)"),
     "the number of windows, N * OH * OW"),
    ("7.2", changed(DWEIGHT, "X.T @ dout.reshape(-1, OC)", "dout.reshape(-1, OC).T @ X"),
     "X.T @ dout"),
    ("7.2", changed(DWEIGHT, "X.T @ dout.reshape(-1, OC)", "X.T.sum(axis=1, keepdims=True)"),
     "dout is not used"),
    ("7.3", changed(DX, "[...] += dout", "[...] = dout"), "add (+=)"),
    ("7.3", changed(DX, "dpadded[:, padding:padding + H, padding:padding + W]", "dpadded"),
     "cut the padding off"),
    ("7.3", changed(DX, "dpadded[:, padding:padding + H, padding:padding + W]",
                    "dpadded[:, :H, :W]"), "begins at [padding, padding]"),
    ("7.3", changed(DX, "np.zeros_like(pad(x, padding))", "pad(x, padding)"),
     "begin with x in place of zeros"),
    ("7.3", changed(DX, "weight[a, b].T", "weight[a, b]"), "weight[a, b].T"),
]
