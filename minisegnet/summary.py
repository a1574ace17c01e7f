"""`python -m minisegnet.summary MODEL`: layers, shapes, parameters, work and memory.

    python -m minisegnet.summary deeplab_light
    python -m minisegnet.summary mini --depth 4 --image-size 96 128 --batch-size 16

One forward is run, so that shapes and memory are what happens and not what a formula says.
"""

import sys
from typing import NamedTuple

import numpy as np

from minisegnet.blocks import ConvNormActivation
from minisegnet.cli import ArgumentParser, number, positive_int
from minisegnet.errors import run_command
from minisegnet.layers import Conv2d, ConvTranspose2d, DepthwiseConv2d, Layer
from minisegnet.models import MODEL_NAMES, build_model
from minisegnet.models.unet import DoubleConv
from minisegnet.tables import ruled

MIB = 2 ** 20
CONVOLUTIONS = (Conv2d, DepthwiseConv2d, ConvTranspose2d)
BLOCKS = (ConvNormActivation, DoubleConv)


class Row(NamedTuple):
    """One layer, with everything below it."""

    name: str  # relative to the row above it in the tree
    kind: str
    depth: int  # 0 is the model itself
    shape: tuple  # of the output, (N, H, W, C)
    parameters: int
    multiply_adds: int  # of the convolutions, for one image
    kept: int  # bytes that wait for the backward


def summarize(name, num_classes, image_size=(176, 240), batch_size=8):
    """Return the `Row`s of a new model, parents first, in the order in which the layers run.

    An array kept by several layers is counted where it is kept first. A batch of 1 is run in
    evaluation, for the ASPP refuses to train on it. Raises ValueError as `build_model` does.
    """
    model = build_model(name, num_classes).train(batch_size > 1)
    images = np.zeros((batch_size, *image_size, 3), np.float32)
    shapes = _output_shapes(model, images)
    kept = _kept_bytes(model, list(shapes))
    order = {layer: i for i, layer in enumerate(shapes)}
    rows = []

    def add(layer, name, depth):
        below = [each for _, each in layer.named_layers() if each in order]
        convs = [each for each in below if isinstance(each, CONVOLUTIONS)]
        rows.append(Row(name, _describe(layer), depth, shapes[layer], layer.num_parameters,
                        sum(_multiply_adds(conv, shapes[conv]) for conv in convs),
                        sum(kept[each] for each in below)))
        # What a block is made of is a detail, below the blocks wherever they stand.
        below_this = max(depth + 1, 3) if isinstance(layer, BLOCKS) else depth + 1
        for child_name, child in sorted(_steps(layer), key=lambda child: order[child[1]]):
            add(child, child_name, below_this)

    add(model, name, 0)
    return rows


def _output_shapes(model, images):
    """Run `model.forward(images)`; return {layer: output shape}, in the order of the calls."""
    shapes = {}

    def watched(layer, forward):
        def forward_and_note(*arguments):
            shapes[layer] = None  # takes its place in the order before its children do
            out = forward(*arguments)
            shapes[layer] = (out[-1] if isinstance(out, tuple) else out).shape
            return out

        return forward_and_note

    for _, layer in model.named_layers():
        layer.forward = watched(layer, layer.forward)
    model.forward(images)
    return shapes


def _kept_bytes(model, layers):
    """Return {layer: bytes its cache holds} without parameters, and without what others hold."""
    seen = {id(_owner(array)) for named in (model.named_parameters, model.named_buffers)
            for _, array in named()}
    kept = {}
    for layer in layers:
        kept[layer] = 0
        for array in _arrays(layer._cache):
            owner = _owner(array)
            if id(owner) not in seen:
                seen.add(id(owner))
                kept[layer] += owner.nbytes
    return kept


def _arrays(cache):
    if isinstance(cache, np.ndarray):
        yield cache
    elif isinstance(cache, (tuple, list)):
        for item in cache:
            yield from _arrays(item)


def _owner(array):
    """Return the array that owns the memory of a view: that is what cannot be freed."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _steps(layer):
    """Yield (name, child) of the children that compute, looking through mere lists of layers."""
    for name, child in layer.children.items():
        if type(child) is Layer:
            yield from ((f"{name}.{below}", step) for below, step in _steps(child))
        else:
            yield name, child


def _multiply_adds(conv, out_shape):
    """Every output pixel meets every weight once; taps on padding are counted, as is usual."""
    if isinstance(conv, ConvTranspose2d):  # every input pixel meets every weight once
        stride, padding = conv.window["stride"], conv.window["padding"]
        H, W = ((size + 2 * padding - kernel) // stride + 1 for size, kernel in
                zip(out_shape[1:3], conv.params["weight"].shape))
        return H * W * conv.params["weight"].size
    return out_shape[1] * out_shape[2] * conv.params["weight"].size


def _describe(layer):
    """Return the kind of a layer, a convolution with its window."""
    conv = layer.conv if isinstance(layer, ConvNormActivation) else layer
    words = [type(layer).__name__]
    if isinstance(conv, CONVOLUTIONS):
        KH, KW = conv.params["weight"].shape[:2]
        depthwise = isinstance(conv, DepthwiseConv2d) and conv is not layer
        words.append(f"{'depthwise ' * depthwise}{KH}x{KW}")
        words += [f"{option} {conv.window[option]}" for option in ("stride", "dilation")
                  if conv.window.get(option, 1) > 1]
    return " ".join(words)


def format_table(rows, max_depth):
    """Return the table of `rows` down to `max_depth`, as text."""
    cells = [("layer", "kind", "output (N, H, W, C)", "parameters", "MFLOPs", "kept MiB")]
    for row in rows:
        if row.depth <= max_depth:
            shape = "(" + ", ".join(map(str, row.shape)) + ")"
            cells.append(("  " * row.depth + row.name, row.kind, shape, f"{row.parameters:,}",
                          f"{2 * row.multiply_adds / 1e6:,.1f}", f"{row.kept / MIB:,.2f}"))
    return "\n".join(ruled(cells, left=3))


def _footer(total):
    N = total.shape[0]
    weights = total.parameters * 4 / MIB
    return "\n".join([
        f"parameters  {total.parameters:,}, {weights:.2f} MiB in float32; with gradients and "
        f"AdamW's two averages {4 * weights:.2f} MiB",
        f"work        {2 * total.multiply_adds / 1e6:,.1f} MFLOPs for one image forward: 2 x "
        f"{total.multiply_adds / 1e6:,.1f} million multiply-adds,",
        "            of the convolutions alone; many papers call a multiply-add one FLOP",
        f"memory      {total.kept / MIB:,.1f} MiB kept from forward to backward by a batch of "
        f"{N}, the images included;",
        "            the loss and short-lived temporaries come on top",
    ])


def main(argv=None):
    """Print the table of one model."""
    parser = ArgumentParser(prog="python -m minisegnet.summary",
                            description="Layers, shapes, parameters, work and memory of a model.")
    parser.add_argument("model", metavar="MODEL", choices=MODEL_NAMES,
                        help=", ".join(MODEL_NAMES))
    parser.add_argument("--num-classes", type=number(int, least=2),
                        help="default: 12 for mini, 21 for the others")
    parser.add_argument("--image-size", type=positive_int, nargs=2, metavar=("H", "W"),
                        default=(176, 240), help="size of the images")
    parser.add_argument("--batch-size", type=positive_int, default=8,
                        help="images in a batch")
    parser.add_argument("--depth", type=positive_int, default=2,
                        help="levels of the tree to show; 2: blocks, 5: every layer")
    arguments = parser.parse_args(argv)
    num_classes = arguments.num_classes or (12 if arguments.model == "mini" else 21)
    rows = summarize(arguments.model, num_classes, arguments.image_size, arguments.batch_size)
    print(format_table(rows, arguments.depth))
    print()
    print(_footer(rows[0]))


if __name__ == "__main__":
    sys.exit(run_command(main))
