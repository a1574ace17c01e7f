"""Draw the README's picture from two runs on the floor plans, without and with class weights.

    python -m minisegnet.train --loss ce --class-weights none --output-dir runs/collapse
    python -m minisegnet.train --output-dir runs/cure
    python benchmarks/collapse_and_cure.py runs/collapse runs/cure docs/collapse_and_cure.png
"""

import argparse
from pathlib import Path

from minisegnet import plots
from minisegnet.compare import predictions_of, read_run
from minisegnet.datasets import FloorPlans
from minisegnet.datasets.floorplans import RAREST


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("collapse", type=Path)
    parser.add_argument("cure", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()

    plans = FloorPlans("val")
    samples = plots.pictures_with(plans, RAREST, len(RAREST))
    runs = {"plain cross-entropy": arguments.collapse, "focal + dice, weighted": arguments.cure}
    predicted = {title: predictions_of(folder / "last.npz", samples)
                 for title, folder in runs.items()}
    iou = {title: read_run(folder).validated[-1]["iou"] for title, folder in runs.items()}
    arguments.picture.parent.mkdir(exist_ok=True)
    figure = plots.side_by_side(samples, predicted, iou, plans.class_names, plans.palette)
    plots.save(figure, arguments.picture, dpi=90)


if __name__ == "__main__":
    main()
