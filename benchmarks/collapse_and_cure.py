"""Draw the README's picture from two runs on the floor plans, without and with class weights.

    python -m minisegnet.train --loss ce --class-weights none --output-dir runs/collapse
    python -m minisegnet.train --output-dir runs/cure
    python benchmarks/collapse_and_cure.py runs/collapse runs/cure docs/collapse_and_cure.png
"""

import argparse
from pathlib import Path

from minisegnet import plots
from minisegnet.datasets import FloorPlans
from minisegnet.datasets.floorplans import RAREST
from minisegnet.datasets.sample import labels_in
from minisegnet.datasets.transforms import normalize
from minisegnet.models import build_model
from minisegnet.training.checkpoint import load_weights, read_checkpoint
from minisegnet.training.evaluation import predict_batch
from minisegnet.training.run_folder import read_log


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("collapse", type=Path)
    parser.add_argument("cure", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()

    plans = FloorPlans("val")
    # For each rare class the first unseen plan that has it, no plan twice.
    chosen = []
    for c in RAREST:
        chosen.append(next(i for i in range(len(plans))
                           if i not in chosen and c in labels_in(plans[i].mask)))
    samples = [plans[i] for i in chosen]
    predicted, iou = {}, {}
    for title, folder in (("plain cross-entropy", arguments.collapse),
                          ("focal + dice, weighted", arguments.cure)):
        model = build_model("mini", plans.num_classes)
        load_weights(model, read_checkpoint(folder / "last.npz"))
        predicted[title] = [predict_batch(model, normalize(s.image)[None], s.mask.shape)[0]
                            for s in samples]
        iou[title] = read_log(folder / "log.jsonl")[-1]["iou"]
    arguments.picture.parent.mkdir(exist_ok=True)
    figure = plots.side_by_side(samples, predicted, iou, plans.class_names, plans.palette)
    plots.save(figure, arguments.picture, dpi=90)


if __name__ == "__main__":
    main()
