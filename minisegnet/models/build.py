"""Models by name."""

import numpy as np

from minisegnet.models.deeplab import DeepLabBaseline, DeepLabLight
from minisegnet.models.mobilenet_v3 import MINI, SMALL, MobileNetV3
from minisegnet.models.unet import UNet

MODEL_NAMES = ("mini", "deeplab_light", "deeplab_baseline", "unet_small", "unet")


def build_model(name, num_classes, *, seed=0, dtype="float32", batch_norm_momentum=0.1):
    """Return a new model in training mode: images (N, H, W, 3) to logits (N, H, W, num_classes).

    `name` is "mini" (floor plans on a laptop CPU), "deeplab_light", "deeplab_baseline",
    "unet_small" (16 channels wide, for CPUs) or "unet" (64). The same `seed` gives the same
    weights in float32 and float64. `batch_norm_momentum` is the share
    of the new batch in every running statistic: 0.1 suits training from scratch; MobileNetV3's
    own 0.01 suits fine-tuning. Raises ValueError for an unknown name, fewer than 2 classes, or
    another dtype.
    """
    if num_classes < 2:
        raise ValueError(f"a segmentation model needs at least 2 classes, not {num_classes}")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype is float32 to train or float64 to check, not {dtype}")
    common = {"rng": np.random.default_rng(seed), "momentum": batch_norm_momentum}
    if name == "mini":
        backbone = MobileNetV3(MINI, **common)
        model = DeepLabLight(name, backbone, num_classes, width=48, skip_width=16, rates=(2, 4),
                             **common)
    elif name == "deeplab_light":
        backbone = MobileNetV3(SMALL, last_channels=576, **common)
        model = DeepLabLight(name, backbone, num_classes, **common)
    elif name == "deeplab_baseline":
        backbone = MobileNetV3(SMALL, last_channels=576, **common)
        model = DeepLabBaseline(name, backbone, num_classes, **common)
    elif name in ("unet_small", "unet"):
        model = UNet(name, num_classes, width=16 if name == "unet_small" else 64, **common)
    else:
        raise ValueError(f"model {name!r} is not one of {', '.join(MODEL_NAMES)}")
    return model.astype(dtype)
