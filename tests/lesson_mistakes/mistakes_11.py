"""Wrong answers to the exercises of lesson 11, and a part of the hint that each must get."""

MATRIX = """
def resize_matrix(in_size, out_size):
    matrix = np.zeros((out_size, in_size))
    for dst in range(out_size):
        src = SOURCE
        left = min(int(src), in_size - 1)
        right = min(left + 1, in_size - 1)
        matrix[dst, left] += 1 - (src - left)
        matrix[dst, right] += src - left
    return matrix
"""

MISTAKES = [
    ("11.1", MATRIX.replace("SOURCE", "dst * (in_size - 1) / (out_size - 1)"),
     "align_corners=True"),
    ("11.1", MATRIX.replace("SOURCE", "dst * in_size / out_size"), "the halves are missing"),
    ("11.1", MATRIX.replace("SOURCE", "(dst + 0.5) * in_size / out_size - 0.5"),
     "max(0, src) is missing"),
    ("11.1", MATRIX.replace("SOURCE", "max(0.0, (dst + 0.5) * in_size / out_size - 0.5)")
     .replace("+=", "="), "overwrites the first"),
    ("11.1", MATRIX.replace("SOURCE", "max(0.0, (dst + 0.5) * in_size / out_size - 0.5)")
     .replace("return matrix", "return matrix.T"), "A row for every output"),
    ("11.2", """
def upsample_backward(dout, x, wy, wx):
    H, W = x.shape[1:3]
    rows = interpolation_matrix(dout.shape[1], H)
    columns = interpolation_matrix(dout.shape[2], W)
    return np.einsum("ia,nabc,jb->nijc", rows, dout, columns)
""", "this shrinks dout bilinearly"),
    ("11.2", """
def upsample_backward(dout, x, wy, wx):
    return np.einsum("ia,nabc,jb->nijc", np.linalg.pinv(wy), dout, np.linalg.pinv(wx))
""", "pseudo-inverse"),
    ("11.2", """
def upsample_backward(dout, x, wy, wx):
    dx = np.einsum("ai,nabc,bj->nijc", wy, dout, wx)
    return dx * x.size / dout.size
""", "the area's factor"),
    ("11.2", """
def upsample_backward(dout, x, wy, wx):
    return wy.T @ dout @ wx
""", "As in the forward einsum"),
    ("11.3", """
def resize_labels(mask, size):
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    return mask[rows][:, columns]
""", "the halves are missing"),
    ("11.3", """
def resize_labels(mask, size):
    wy = interpolation_matrix(mask.shape[0], size[0])
    wx = interpolation_matrix(mask.shape[1], size[1])
    return np.rint(wy @ mask @ wx.T).astype(mask.dtype)
""", "invents classes"),
    ("11.3", """
def resize_labels(mask, size):
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[rows][:, columns].astype(float)
""", "Labels stay integers"),
    ("11.1", MATRIX.replace("SOURCE", "max(0.0, (dst + 0.5) * in_size / out_size - 0.5)")
     .replace("matrix[dst, right] += src - left",
              "if left + 1 < in_size:\n            matrix[dst, left + 1] += src - left"),
     "takes both shares"),
    ("11.1", MATRIX.replace("SOURCE", "(dst + 0.5) * in_size / out_size - 0.5")
     .replace("min(int(src), in_size - 1)", "int(np.floor(src))"), "the floor is -1 there"),
    ("11.1", MATRIX.replace("SOURCE", "max(0.0, (dst + 0.5) * in_size / out_size - 0.5)")
     .replace("1 - (src - left)", "SHARE").replace("+= src - left", "+= 1 - (src - left)")
     .replace("SHARE", "src - left"), "the shares are swapped"),
    ("11.1", MATRIX.replace("SOURCE", "(dst + 0.5) * in_size / out_size"),
     "the last half is missing"),
    ("11.3", """
def resize_labels(mask, size):
    rows, columns = (np.maximum(0, (np.arange(m) + 0.5) * n / m - 0.5).astype(int)
                     for n, m in zip(mask.shape, size))
    return mask[rows][:, columns]
""", "with its - 1/2"),
    ("11.3", """
def resize_labels(mask, size):
    rows, columns = (np.minimum(n - 1, np.rint((np.arange(m) + 0.5) * n / m).astype(int))
                     for n, m in zip(mask.shape, size))
    return mask[rows][:, columns]
""", "that is rounded"),
]
