"""Trainings with nothing wrong: of different losses, weights, optimizers, data and sizes.

In each of them every class is learned. What does not train is not here, though its flags are
allowed: dice from random weights where fixtures are rare, or lovasz with class weights.
"""

from typing import NamedTuple

from minisegnet.lab.data import EXCLUDED, FIXTURES


class Healthy(NamedTuple):
    """A training: flags of `minisegnet.train`, and in what its data differ."""

    name: str
    flags: str
    dials: dict = {}  # of `write_data`
    generated: bool = False  # floor plans with these dials, without files
    pretraining: str | None = None  # flags of a run whose best weights this one starts from


OFTEN = {"rare_image_share": 0.4}  # plans that have a kind of fixture
NEARLY_ALL = {"rare_image_share": 0.9}
BALANCED = {"excluded": {*EXCLUDED, *FIXTURES}}
LARGER = {"size": (128, 160), "fixture_size": 20, "wall": 5, "rare_image_share": 0.3}

HEALTHY = (
    Healthy("combined", "--loss combined"),
    Healthy("combined, larger", "--loss combined --image-size 80 100 --epochs 6", LARGER),
    Healthy("combined, augmented", "--loss combined --augment standard --epochs 10", OFTEN),
    Healthy("combined, frozen", "--loss combined --freeze backbone --epochs 4 --lr 0.02", {},
            pretraining="--loss ce --epochs 5"),
    Healthy("combined, generated", "--loss combined --sampler class-uniform --image-size 80 100 "
            "--epochs 6", {"rare_image_share": 0.6, "wall": 6}, generated=True),
    Healthy("ce", "--loss ce --ema 0.95"),
    Healthy("ce, enet", "--loss ce --class-weights enet --label-smoothing 0.1"),
    Healthy("ce, median", "--loss ce --class-weights median --optimizer sgd --lr 0.2", OFTEN),
    Healthy("ce, unweighted", "--loss ce --class-weights none", BALANCED),
    Healthy("focal", "--loss focal --clip-norm 1 --warmup-epochs 1 --schedule poly"),
    Healthy("dice", "--loss dice --class-weights none", NEARLY_ALL),
    Healthy("tversky", "--loss tversky --class-weights none", BALANCED),
    Healthy("lovasz", "--loss lovasz --class-weights none --epochs 6", OFTEN),
    Healthy("ohem", "--loss ohem --schedule cosine"),
    Healthy("logit adjusted", "--loss logit_adjusted --class-weights none", OFTEN),
)
