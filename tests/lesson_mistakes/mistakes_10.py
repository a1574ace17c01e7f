"""Wrong answers to the exercises of lesson 10, and a part of the hint that each must get."""

MISTAKES = [
    ("10.1", """
def seen_taps(size, rate):
    place = np.arange(size)
    return sum(((0 <= place + shift) & (place + shift <= size)).astype(int)
               for shift in (-rate, 0, rate))
""", "the last one is size - 1"),
    ("10.1", """
def seen_taps(size, rate):
    place = np.arange(size)
    return sum(((0 <= place + shift) & (place + shift < size)).astype(int)
               for shift in (-1, 0, 1))
""", "rate pixels apart"),
    ("10.1", """
def seen_taps(size, rate):
    place = np.arange(size)
    return (place - rate >= 0).astype(int) + (place + rate < size)
""", "the tap in the middle"),
    ("10.1", """
def seen_taps(size, rate):
    seen = np.zeros(size)
    for shift in (-rate, 0, rate):
        place = np.arange(size) + shift
        seen += (0 <= place) & (place < size)
    return seen
""", "Count in an array of ints"),
    ("10.2", """
def branches_backward(dout, x, weight1, weight2, weight3):
    start = 0
    for weight in (weight1, weight2, weight3):
        dx = dout[..., start:start + weight.shape[1]] @ weight.T
        start += weight.shape[1]
    return dx
""", "Write dx += , not dx ="),
    ("10.2", """
def branches_backward(dout, x, weight1, weight2, weight3):
    return dout @ np.concatenate([weight1, weight2, weight3], axis=1).T / 3
""", "added up, not averaged"),
    ("10.2", """
def branches_backward(dout, x, weight1, weight2, weight3):
    pieces = np.split(dout, 3, axis=-1)
    return sum(piece @ weight.T for piece, weight in zip(pieces, (weight1, weight2, weight3)))
""", "Cut dout after OC1"),
    ("10.3", """
def pooling_branch_backward(dout, x, weight):
    dpooled = dout.sum(axis=(1, 2), keepdims=True) @ weight.T
    return np.broadcast_to(dpooled, x.shape).copy()
""", "H * W, the number of pixels"),
    ("10.3", """
def pooling_branch_backward(dout, x, weight):
    N, H, W, C = x.shape
    dpooled = dout.mean(axis=(1, 2), keepdims=True) @ weight.T
    return np.broadcast_to(dpooled / (H * W), x.shape).copy()
""", "one of the two is missing"),
    ("10.3", """
def pooling_branch_backward(dout, x, weight):
    N, H, W, C = x.shape
    return dout @ weight.T / (H * W)
""", "every pixel is sent what stands at its own place"),
    ("10.3", """
def pooling_branch_backward(dout, x, weight):
    N, H, W, C = x.shape
    dpooled = dout.sum(axis=(0, 1, 2)) @ weight.T
    return np.broadcast_to(dpooled / (H * W), x.shape).copy()
""", "over the pixels, not over the batch"),
    ("10.3", """
def pooling_branch_backward(dout, x, weight):
    N, H, W, C = x.shape
    return dout.sum(axis=(1, 2)) @ weight.T / (H * W)
""", "Every pixel of a picture receives the same"),
    ("10.1", """
def seen_taps(size, rate):
    seen, inside = np.zeros(size, int), np.ones(size, int)
    for i in range(size):
        for place in (i - rate, i, i + rate):
            if place < size:
                seen[i] += inside[place]
    return seen
""", "counts it from the end"),
    ("10.1", """
def seen_taps(size, rate):
    inside = np.ones(size, int)
    return np.roll(inside, rate) + inside + np.roll(inside, -rate)
""", "comes back on the other"),
    ("10.2", """
def branches_backward(dout, x, weight1, weight2, weight3):
    return dout[..., :1] @ weight3.T + dout[..., 1:4] @ weight2.T + dout[..., 4:] @ weight1.T
""", "in the order of the branches"),
    ("10.2", """
def branches_backward(dout, x, weight1, weight2, weight3):
    first, second = weight1.shape[1], weight1.shape[1] + weight2.shape[1]
    return dout[..., :first] @ weight1.T + dout[..., first:second] @ weight2.T
""", "the last branch is missing"),
    ("10.3", """
def pooling_branch_backward(dout, x, weight):
    return np.broadcast_to(dout.mean(axis=(0, 1, 2)) @ weight.T, x.shape).copy()
""", "each has a mean of its own"),
    ("10.3", """
def pooling_branch_backward(dout, x, weight):
    return dout @ weight.T
""", "the gradient of a 1x1 convolution"),
]
