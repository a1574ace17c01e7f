"""What happens to a sample between the file and the network: resizing, cropping, warping, colour.

Images are resampled bilinearly, masks by nearest neighbour only: a mask never gains a label, apart
from the ignore label where a window reaches past the picture. Pillow does the pixels; it releases
the GIL while it works, so that threads can prepare samples beside a training step.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from minisegnet.errors import UserError

# ImageNet's mean and standard deviation per channel, of values in 0 to 1.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
MEAN_COLOUR = tuple(round(255 * float(mean)) for mean in MEAN)

_FOR_IMAGES = Image.Resampling.BILINEAR
_FOR_MASKS = Image.Resampling.NEAREST
_ALL_VALUES = bytes(range(256))

# ---------------------------------------------------------------- size and scale


def resize_image(image, size):
    """Return `image` (H, W, 3) uint8 at `size` (height, width), bilinear."""
    return _resized(image, size, _FOR_IMAGES)


def resize_mask(mask, size):
    """Return `mask` (H, W) uint8 at `size` (height, width), nearest neighbour."""
    return _resized(mask, size, _FOR_MASKS)


def _resized(array, size, resampling):
    if array.shape[:2] == tuple(size):
        return array
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), resampling))


def normalize(image, out=None):
    """Return `image` (..., 3) uint8 as float32: (value / 255 - MEAN) / STD.

    It is written into `out`, if given: contiguous float32 of the image's shape.
    """
    out = np.empty(image.shape, np.float32) if out is None else out
    # Whole rows at a time: with the three channels as the inner loop it takes six times as long.
    W = math.prod(image.shape[-2:]) // 3
    values, rows = (array.reshape(*image.shape[:-2], 3 * W) for array in (image, out))
    np.multiply(values, np.tile(1 / (255 * STD), W), out=rows)
    rows -= np.tile(MEAN / STD, W)
    return out


def denormalize(image):
    """Return a normalised `image` (..., 3) float32 as uint8 again, to look at."""
    return np.clip(255 * (image * STD + MEAN) + 0.5, 0, 255).astype(np.uint8)


def check_labels(before, after, ignore_index=255):
    """Raise ValueError if mask `after` holds a label that `before` lacks, ignore aside."""
    # bytes.translate with values to delete keeps those that do not occur: a fifth of the time of
    # counting them, and this is done for every sample.
    lacking, unused = (_ALL_VALUES.translate(None, mask.tobytes()) for mask in (before, after))
    invented = set(lacking.translate(None, unused)) - {ignore_index}
    if invented:
        raise ValueError(
            f"a transform invented the labels {sorted(invented)}; "
            "masks may only be resized by nearest neighbour"
        )


class Resize:
    """Resize the image to `size` (H, W), and the mask too unless `resize_mask` is False.

    Called with (sample, rng, focus=None) like every transform; `rng` is not used. It shows the
    whole picture, so there is no crop that could have a class `focus` in its centre: UserError.
    """

    crops = False

    def __init__(self, size, *, resize_mask=True, ignore_index=255):
        self.size = tuple(size)
        self.resize_mask = resize_mask
        self.ignore_index = ignore_index

    def __call__(self, sample, rng, focus=None):
        if focus is not None:
            refuse_focus()
        image = resize_image(sample.image, self.size)
        if not self.resize_mask:
            return sample._replace(image=image)
        mask = resize_mask(sample.mask, self.size)
        check_labels(sample.mask, mask, self.ignore_index)
        return sample._replace(image=image, mask=mask)


def refuse_focus():
    """Raise the UserError for class-centred crops without an augmentation that crops."""
    raise UserError("--sampler class-crops needs an augmentation with crops; "
                    "choose --augment standard, enhanced or strong")


# ---------------------------------------------------------------- where pixels go


def flip(sample):
    """Return `sample` mirrored left to right."""
    return _transposed(sample, Image.Transpose.FLIP_LEFT_RIGHT)


def flip_vertical(sample):
    """Return `sample` upside down, mirrored top to bottom."""
    return _transposed(sample, Image.Transpose.FLIP_TOP_BOTTOM)


def _transposed(sample, method):
    image, mask = (np.asarray(Image.fromarray(array).transpose(method))
                   for array in (sample.image, sample.mask))
    return sample._replace(image=image, mask=mask)


def resized_crop(sample, scaled, top, left, size, ignore_index=255):
    """Return the window `size` (H, W) with its corner at (top, left) of `sample` at size `scaled`.

    The same as resizing all of it to `scaled` (h, w) and cutting the window out, but only what
    the window shows is resized. (top, left) may be negative: beyond the picture the image is
    ImageNet's mean colour and the mask `ignore_index`.
    """
    image = _window(sample.image, scaled, top, left, size, _FOR_IMAGES, MEAN_COLOUR)
    mask = _window(sample.mask, scaled, top, left, size, _FOR_MASKS, ignore_index)
    return sample._replace(image=image, mask=mask)


def _window(array, scaled, top, left, size, resampling, fill):
    shown, starts, box = [], [], []  # of rows, then of columns
    for length, resized, start, window in zip(array.shape, scaled, (top, left), size):
        first, end = max(0, start), min(resized, start + window)  # what there is of the picture
        ratio = length / resized  # source px per result px
        reach = math.ceil(max(1.0, ratio)) + 1  # source px that the filter sees past its centre
        low = max(0, math.floor(first * ratio) - reach)
        high = min(length, math.ceil(end * ratio) + reach)
        shown.append(slice(low, high))
        starts.append(first - start)
        box.append((end - first, first * ratio - low, min(end * ratio, high) - low))
    (rows, y0, y1), (columns, x0, x1) = box
    piece = Image.fromarray(array[tuple(shown)])
    piece = piece.resize((columns, rows), resampling, box=(x0, y0, x1, y1))
    if (rows, columns) != tuple(size):
        canvas = Image.new(piece.mode, (size[1], size[0]), fill)
        canvas.paste(piece, (starts[1], starts[0]))
        piece = canvas
    return np.asarray(piece)


def warp(sample, nodes, ignore_index=255):
    """Return `sample` seen through a bent grid.

    `nodes` (R + 1, C + 1, 2) are the places (y, x) in px that the corners of R x C equal cells of
    the result (`grid_nodes`) take their content from; between them it is interpolated. Beyond
    the picture the image is ImageNet's mean colour and the mask `ignore_index`.
    """
    ys, xs = _cell_edges(sample.mask.shape, np.shape(nodes)[0] - 1, np.shape(nodes)[1] - 1)
    corners = np.asarray(nodes, float)[..., ::-1].tolist()  # x before y
    mesh = []
    for r, (y0, y1) in enumerate(zip(ys, ys[1:])):
        for c, (x0, x1) in enumerate(zip(xs, xs[1:])):
            if y1 > y0 and x1 > x0:  # a picture of few pixels has empty cells
                quad = (*corners[r][c], *corners[r + 1][c], *corners[r + 1][c + 1],
                        *corners[r][c + 1])
                mesh.append(((x0, y0, x1, y1), quad))

    def bent(array, resampling, fill):
        picture = Image.fromarray(array)
        return np.asarray(picture.transform(picture.size, Image.Transform.MESH, mesh, resampling,
                                            fillcolor=fill))

    return sample._replace(image=bent(sample.image, _FOR_IMAGES, MEAN_COLOUR),
                           mask=bent(sample.mask, _FOR_MASKS, ignore_index))


def _cell_edges(size, rows, columns):
    """Return the pixel edges of `rows` and of `columns` cells, two lists of int."""
    return [[round(k * length / cells) for k in range(cells + 1)]
            for length, cells in zip(size, (rows, columns))]


def grid_nodes(size, rows, columns):
    """Return the corners (rows + 1, columns + 1, 2) of rows x columns cells over `size` (H, W)."""
    return np.stack(np.meshgrid(*_cell_edges(size, rows, columns), indexing="ij"), axis=-1)


def rotate(sample, degrees, ignore_index=255):
    """Return `sample` turned counterclockwise about its centre, at its own size.

    Where the corners came from beyond the picture, the mean colour and `ignore_index`.
    """
    centre = np.array(sample.mask.shape) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The result at (y, x) comes from where turning back, clockwise, leads to; y points down.
    back = np.array([[cos, sin], [-sin, cos]])
    nodes = (grid_nodes(sample.mask.shape, 1, 1) - centre) @ back.T + centre
    return warp(sample, nodes, ignore_index)


def distort(sample, offsets, ignore_index=255):
    """Return `sample` with the inner corners of a grid shifted, and all between them stretched.

    `offsets` (R, C, 2), (y, x) in px, say how far off the R x C inner corners of (R + 1) x (C + 1)
    cells find their content; the edge of the picture stays.
    """
    R, C = np.shape(offsets)[:2]
    nodes = grid_nodes(sample.mask.shape, R + 1, C + 1).astype(float)
    nodes[1:-1, 1:-1] += offsets
    return warp(sample, nodes, ignore_index)


def cut_out(sample, boxes, ignore_index=255):
    """Return `sample` with `boxes` (top, left, bottom, right), in px, filled with the mean colour.

    The mask becomes `ignore_index` there (DeVries and Taylor 2017, who classify, have no such
    choice). Segmentation libraries mostly keep the labels, and so ask the network to guess from
    the surroundings; but a small object hidden whole cannot be guessed, and a loss that asks for
    it teaches false alarms of just the rare classes. What cannot be seen is not asked.
    """
    image, mask = sample.image.copy(), sample.mask.copy()
    for top, left, bottom, right in boxes:
        image[top:bottom, left:right] = MEAN_COLOUR
        mask[top:bottom, left:right] = ignore_index
    return sample._replace(image=image, mask=mask)


# ---------------------------------------------------------------- colour; the mask stays

_LUMA = np.array([0.299, 0.587, 0.114])  # share of red, green, blue in grey (ITU-R BT.601)
# Grey and two colour differences, 0.493 (B - Y) and 0.877 (R - Y), from red, green and blue.
_TO_YUV = np.stack([_LUMA, 0.493 * (np.eye(3)[2] - _LUMA), 0.877 * (np.eye(3)[0] - _LUMA)])


def jitter_colour(sample, *, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    """Return `sample` with other colours, clipped to 0 to 255.

    `brightness` scales all values; `contrast` scales the distance from the picture's mean grey,
    `saturation` that from each pixel's own grey; `hue` turns the colours around grey, in turns.
    In this order, as one matrix, so that it costs one pass over the pixels.
    """
    picture = Image.fromarray(sample.image)
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    change = np.array([[1, 0, 0],
                       [0, saturation * cos, -saturation * sin],
                       [0, saturation * sin, saturation * cos]])
    matrix = brightness * contrast * np.linalg.inv(_TO_YUV) @ change @ _TO_YUV  # (3, 3)
    shift = 0.0
    if contrast != 1:
        greys = np.array(picture.convert("L").histogram())  # pixels of each of 256 greys
        shift = (1 - contrast) * brightness * (greys @ np.arange(256)) / greys.sum()
    rows = np.hstack([matrix, np.full((3, 1), shift)])
    image = np.asarray(picture.convert("RGB", tuple(rows.ravel().tolist())))
    return sample._replace(image=image)


def shade(sample, corners, factor):
    """Return `sample` with a polygon darkened: its values times `factor`, 0 to 1.

    `corners` are (y, x) in px, in order around it.
    """
    picture = Image.fromarray(sample.image)
    inside = Image.new("L", picture.size, 0)
    ImageDraw.Draw(inside).polygon([(float(x), float(y)) for y, x in corners], fill=255)
    dark = picture.point([round(factor * value) for value in range(256)] * 3)
    picture.paste(dark, mask=inside)
    return sample._replace(image=np.asarray(picture))
