"""Wrong answers to the exercises of lesson 14, and a part of the hint that each must get."""

_FACTORS = """
def repeat_factors(contains, threshold):
    share = contains.mean(axis=0)
    class_factors = {factors}
    return {result}
"""
_RIGHT = "np.maximum(1, np.sqrt(threshold / share))"
_LARGEST = "np.where(contains, class_factors, 1).max(axis=1)"

_PAIR = """
def resize_and_mirror(image, mask, size, mirror):
    (H, W), (h, w) = mask.shape, size
    rows = ((np.arange(h) + {centre}) * H / h).astype(int)
    columns = ((np.arange(w) + {centre}) * W / w).astype(int)
    image, mask = bilinear(image, size), mask[rows][:, columns]
    if {when}:
        {turn}
    return image, mask
"""
_TURN = "image, mask = image[:, ::-1], mask[:, ::-1]"

MISTAKES = [
    ("14.1", _FACTORS.format(factors="np.maximum(1, threshold / share)", result=_LARGEST),
     "there is no root"),
    ("14.1", _FACTORS.format(factors="np.sqrt(threshold / share)",
                             result="np.where(contains, class_factors, 0).max(axis=1)"),
     "would leave images out"),
    ("14.1", _FACTORS.format(factors=_RIGHT,
                             result="np.where(contains, class_factors, np.inf).min(axis=1)"),
     "not the smallest"),
    ("14.1", _FACTORS.format(factors=_RIGHT,
                             result="(contains * class_factors).sum(1) / contains.sum(1)"),
     "not their mean"),
    ("14.1", _FACTORS.format(factors=_RIGHT, result="np.full(len(contains), class_factors.max())"),
     "that it contains"),
    ("14.1", _FACTORS.format(factors=_RIGHT,
                             result="np.where(contains, class_factors, 1).max(axis=0)"),
     "One factor per image"),
    ("14.2", _PAIR.format(centre="0", when="mirror", turn=_TURN), "the corner of each pixel"),
    ("14.2", _PAIR.format(centre="0.5", when="mirror", turn="image = image[:, ::-1]"),
     "its mask is not"),
    ("14.2", _PAIR.format(centre="0.5", when="True", turn=_TURN), "whether or not"),
    ("14.2", _PAIR.format(centre="0.5", when="mirror",
                          turn="image, mask = image[::-1], mask[::-1]"),
     "upside down"),
    ("14.2", """
def resize_and_mirror(image, mask, size, mirror):
    mask = bilinear(np.repeat(mask[..., None], 3, axis=-1).astype(float), size)[..., 0]
    image, mask = bilinear(image, size), np.round(mask).astype(np.int64)
    return (image[:, ::-1], mask[:, ::-1]) if mirror else (image, mask)
""", "invents classes"),
    ("14.1", _FACTORS.format(factors="np.maximum(1, np.sqrt(threshold / contains.sum(axis=0)))",
                             result=_LARGEST), "not a number of images"),
    ("14.1", _FACTORS.format(
        factors="np.maximum(1, np.sqrt(threshold / contains.sum(0) * contains.sum()))",
        result=_LARGEST), "divide by their number"),
    ("14.2", """
def resize_and_mirror(image, mask, size, mirror):
    rows, columns = (((np.arange(out) + 0.5) * length / out).astype(int)
                     for length, out in zip(mask.shape, size))
    image, mask = image[rows][:, columns], mask[rows][:, columns]
    return (image[:, ::-1], mask[:, ::-1]) if mirror else (image, mask)
""", "nearest neighbour is for the labels"),
    ("14.2", _PAIR.format(centre="0.5", when="mirror", turn=_TURN)
     .replace("* H / h)", "* H / h - 0.5).clip(0)").replace("* W / w)", "* W / w - 0.5).clip(0)"),
     "with nothing taken off"),
]
