"""Draw docs/augmentation.png: a floor plan, and what each augmentation preset makes of it.

    python benchmarks/augmentation_examples.py
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from minisegnet import plots
from minisegnet.datasets import PRESETS, FloorPlans, make_augmentation
from minisegnet.plots.augmentation import augmentations

EXAMPLES = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path,
                        default=Path(__file__).parent.parent / "docs" / "augmentation.png")
    arguments = parser.parse_args()
    plans = FloorPlans("val", rare_image_share=1.0, background_share=0.5)
    rows = {}
    for k, preset in enumerate(PRESETS):
        transform = make_augmentation(preset, plans.size)
        rows[preset] = [plans[k]] + [transform(plans[k], np.random.default_rng([0, k, n]))
                                     for n in range(EXAMPLES)]
    figure = augmentations(rows, plans.class_names, plans.palette)
    plots.save(figure, arguments.output)
    # 256 colours are a quarter of the bytes, for a picture that every clone of the project
    # carries; chosen for coverage, they include the few pixels of the legend.
    with Image.open(arguments.output) as picture:
        small = picture.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=3,
                                                dither=Image.Dither.NONE)
    small.save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
