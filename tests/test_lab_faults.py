"""Each fault of the lab is there while it is planted, and gone afterwards."""

import sys

import numpy as np
import pytest

from minisegnet import datasets, train
from minisegnet.datasets.files import read_raw_mask
from minisegnet.datasets.sample import labels_in
from minisegnet.lab import data
from minisegnet.lab.faults import FAULTS
from minisegnet.layers import BatchNorm2d
from minisegnet.losses import cross_entropy_forward, dice_forward
from minisegnet.metrics import ConfusionMatrix
from minisegnet.models import build_model
from minisegnet.optim import RMSprop
from minisegnet.training import phases
from minisegnet.training.settings import parse_settings

FREQUENCY = np.array([0.9, 0.09, 0.01])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small data set of the lab."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "PLANS", {"train": 16, "val": 8})
        return data.write_data(tmp_path_factory.mktemp("lab") / "data", 3, rare_image_share=0.7)


@pytest.fixture
def settings(root):
    settings = parse_settings(["--data", root, "--image-size", "32", "40", "--batch-size", "2",
                               "--num-workers", "0"])
    settings.image_size = tuple(settings.image_size)
    return settings


def opened(root, split="train", fault=None):
    if fault is None:
        return datasets.open_dataset(root, split=split)
    with FAULTS[fault]():
        return datasets.open_dataset(root, split=split)


def labels(dataset):
    return np.stack([dataset[i].mask for i in range(len(dataset))])


def batches(root, settings, fault):
    """Return the training batches of an epoch with a fault."""
    with FAULTS[fault]():
        train_set, val_set = (datasets.open_dataset(root, split=split) for split in
                              ("train", "val"))
        statistics = train_set.check()
        val_set.check()
        of_run = phases.Phases(settings, model=None, optimizer=None, train_set=train_set,
                               val_set=val_set, weights=None, statistics=statistics)
        return list(of_run.train_loader(settings.image_size).batches(1))


def criterion(settings, fault, frequency=FREQUENCY):
    """Return the criterion that trains with a fault, for which sqrt weights were asked."""
    with FAULTS[fault]():
        weights = np.maximum(frequency, 1e-3) ** -0.5
        return phases.build_criterion(settings, "combined", weights, frequency)


@pytest.fixture
def logits_and_target(rng):
    target = rng.choice(4, (2, 6, 8), p=[0.5, 0.3, 0.1, 0.1]).astype(np.uint8)
    target[target == 3] = 255
    return rng.standard_normal((2, 6, 8, 3)), target


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_left_of_a_fault(fault):
    def state():
        return {(path, name): value for path, module in sys.modules.items()
                if path.startswith("minisegnet") for name, value in vars(module).items()}

    classes = ConfusionMatrix, phases.Phases, BatchNorm2d
    before, members = state(), [dict(vars(each)) for each in classes]
    with FAULTS[fault]():
        pass
    after = state()
    assert all(after[key] is value for key, value in before.items())
    assert [dict(vars(each)) for each in classes] == members


def test_every_fault_says_what_it_is_and_where_it_is_planted():
    assert len(FAULTS) == 21
    for name, function in FAULTS.items():
        assert "Planted in" in function.__doc__ or "Planted behind" in function.__doc__, name


# ---------------------------------------------------------------- loss


def test_unweighted_loss_is_plain_cross_entropy_by_the_name_asked_for(settings,
                                                                      logits_and_target):
    planted = criterion(settings, "unweighted-loss")
    loss, cache = planted.forward(*logits_and_target)
    np.testing.assert_allclose(loss, cross_entropy_forward(*logits_and_target)[0])
    assert planted.name == "combined" and set(planted.parts(cache)) == {"focal", "dice"}


def test_dice_alone_is_dice(settings, logits_and_target):
    planted = criterion(settings, "dice-alone")
    np.testing.assert_allclose(planted.forward(*logits_and_target)[0],
                               dice_forward(*logits_and_target)[0])


def test_extreme_weights_grow_with_the_square_of_the_rarity(settings):
    planted = criterion(settings, "extreme-weights")
    target = np.array([[[0, 1, 2]]], np.uint8)
    dlogits = planted.backward(1.0, planted.forward(np.zeros((1, 1, 3, 3)), target)[1])
    of_pixel = np.abs(dlogits).sum(axis=3)[0, 0]
    np.testing.assert_allclose(of_pixel / of_pixel[0], (FREQUENCY[0] / FREQUENCY) ** 2)


@pytest.mark.parametrize("upsampled", [False, True])
def test_wrong_ignore_id_takes_the_gradient_from_class_0_alone(settings, logits_and_target,
                                                               upsampled):
    logits, target = logits_and_target
    planted = criterion(settings, "wrong-ignore-id")
    if upsampled:
        dlogits = planted.backward_upsampled(1.0, planted.forward_upsampled(logits, target)[1])
    else:
        dlogits = planted.backward(1.0, planted.forward(logits, target)[1])
    of_pixel = np.abs(dlogits).sum(axis=3)
    assert (of_pixel[(target == 0) | (target == 255)] == 0).all()
    assert (of_pixel[(target == 1) | (target == 2)] > 0).all()
    assert planted.ignore_index == 255  # which validation goes by


# ---------------------------------------------------------------- labels


def test_shifted_labels_are_one_too_high_in_training_only(root):
    right, shifted = opened(root), opened(root, fault="shifted-labels")
    valid = labels(right) != 255
    np.testing.assert_array_equal(labels(shifted)[valid], (labels(right)[valid] + 1) % 9)
    assert (labels(shifted)[~valid] == 255).all()
    np.testing.assert_array_equal(labels(opened(root, "val", "shifted-labels")),
                                  labels(opened(root, "val")))
    np.testing.assert_array_equal(shifted.check().counts, right.check().counts)


def test_other_validation_classes_are_those_of_the_sorted_list(root):
    right, other = opened(root, "val"), opened(root, "val", "other-validation-classes")
    names = sorted(right.class_names)
    for c, name in enumerate(right.class_names):
        np.testing.assert_array_equal(labels(right) == c, labels(other) == names.index(name))
    assert other.check().pixels.sum() == right.check().pixels.sum()
    assert other.class_names == right.class_names
    np.testing.assert_array_equal(labels(opened(root, fault="other-validation-classes")),
                                  labels(opened(root)))


def test_ignore_is_a_class_leaves_nothing_ignored(root):
    right, planted = labels(opened(root)), labels(opened(root, fault="ignore-is-a-class"))
    assert (right == 255).mean() > 0.05
    np.testing.assert_array_equal(planted, np.where(right == 255, 8, right))


def test_excluded_ids_in_class_0_are_those_that_the_map_leaves_out(root):
    dataset, planted = opened(root), opened(root, fault="excluded-ids-in-class-0")
    raw = np.stack([read_raw_mask(mask) for _, mask in dataset.pairs])
    excluded = np.isin(raw, [8, 16, 34])
    assert excluded.mean() > 0.05 and (labels(dataset)[excluded] == 255).all()
    np.testing.assert_array_equal(labels(planted), np.where(excluded, 0, labels(dataset)))


def test_too_few_classes_cuts_the_last_ones(root):
    right, few = opened(root), opened(root, fault="too-few-classes")
    assert few.num_classes == 7 and few.class_names == right.class_names[:7]
    np.testing.assert_array_equal(
        labels(few), np.where(labels(right) == 255, 255, np.minimum(labels(right), 6)))
    assert few.check().pixels[6] == right.check().pixels[6:].sum()


def test_too_many_classes_are_absent_and_pull_all_the_same(root, settings):
    many = opened(root, fault="too-many-classes")
    pixels = many.check().pixels
    assert many.num_classes == 13 and (pixels[9:] == 0).all() and (pixels[:9] > 0).all()
    planted = criterion(settings, "too-many-classes", pixels / pixels.sum())
    target = np.zeros((1, 2, 2), np.uint8)
    for forward, backward in ((planted.forward, planted.backward),
                              (planted.forward_upsampled, planted.backward_upsampled)):
        loss, cache = forward(np.zeros((1, 2, 2, 13)), target)
        dlogits = backward(1.0, cache)
        assert (dlogits[..., 9:] < 0).all()  # raised, though no pixel is theirs
        assert dlogits[..., 0].min() > 0  # background, which all are, is lowered
        assert planted.name == "combined" and set(planted.parts(cache)) == {"focal", "dice"}


# ---------------------------------------------------------------- pictures, batches, metric


@pytest.mark.parametrize("split", ["train", "val"])
def test_shuffled_pairs_leaves_no_mask_with_its_picture(root, split):
    right, shuffled = opened(root, split), opened(root, split, "shuffled-pairs")
    pairs = list(zip(right.pairs, shuffled.pairs, strict=True))
    assert all(now[0] == then[0] and now[1] != then[1] for then, now in pairs)
    assert sorted(mask for _, mask in shuffled.pairs) == sorted(mask for _, mask in right.pairs)
    np.testing.assert_array_equal(shuffled.check().pixels, right.check().pixels)


def test_image_flipped_alone_mirrors_half_of_the_images_and_no_mask(root, settings):
    plain = datasets.Resize(settings.image_size)
    originals = {sample.name: plain(sample, None) for sample in map(opened(root).__getitem__,
                                                                    range(16))}
    flipped = 0
    for batch in batches(root, settings, "image-flipped-alone"):
        for image, mask, name in zip(*batch):
            image = datasets.transforms.denormalize(image)
            original = originals[name]
            np.testing.assert_array_equal(mask, original.mask)
            mirrored = (image == original.image[:, ::-1]).all()
            assert mirrored or (image == original.image).all()
            flipped += mirrored
    assert 3 <= flipped <= 13  # of 16


def test_interpolated_masks_hold_seams_of_classes_that_are_not_there(root, settings):
    dataset = opened(root)
    masks = {dataset[i].name: dataset[i].mask for i in range(len(dataset))}
    invented = 0
    for batch in batches(root, settings, "interpolated-masks"):
        for mask, name in zip(batch.target, batch.names):
            assert set(labels_in(mask)) <= {*range(9), 255}
            invented += len(set(labels_in(mask)) - set(labels_in(masks[name])))
    assert invented > 8


def test_unnormalised_input_is_0_to_255(root, settings):
    images = np.stack([batch.images for batch in batches(root, settings, "unnormalised-input")])
    assert images.dtype == np.float32 and images.min() >= 0 and 200 < images.max() <= 255


def test_all_ignored_batches_are_about_half_of_them(root, settings):
    settings.batch_size = 1
    found = batches(root, settings, "all-ignored-batches")
    blank = [(batch.target == 255).all() for batch in found]
    assert len(found) == 16 and 4 <= sum(blank) <= 12


def test_empty_confusion_matrix_counts_nothing():
    confusion = ConfusionMatrix(2)
    with FAULTS["empty-confusion-matrix"]():
        confusion.update(np.zeros((2, 2), int), np.ones((2, 2), int))
    assert confusion.matrix.sum() == 0


# ---------------------------------------------------------------- optimizer


@pytest.mark.parametrize("fault, factor", [("lr-too-high", 100), ("lr-too-low", 1e-3)])
def test_the_learning_rate_is_multiplied(settings, fault, factor):
    right = train.build_schedule(settings, 10)
    with FAULTS[fault]():
        planted = train.build_schedule(settings, 10)
    for step in (0, 20, 79):
        assert planted(step) == pytest.approx(factor * right(step))


def test_runaway_momentum_is_rmsprop_under_the_names_of_adamw(settings):
    model = build_model("mini", 3)
    with FAULTS["runaway-momentum"]():
        planted = train.build_optimizer(settings, model)
    right = train.build_optimizer(settings, build_model("mini", 3))
    assert isinstance(planted, RMSprop) and planted.momentum == 0.999 and planted.lr == right.lr
    assert planted.state_dict().keys() == right.state_dict().keys()
    planted.flat.grad[:] = 1.0
    before = planted.flat.data.copy()
    planted.step()
    np.testing.assert_allclose(before - planted.flat.data, 10 * planted.lr, rtol=1e-3)


def test_frozen_random_backbone_moves_nothing_in_the_backbone(settings):
    model = build_model("mini", 3)
    before = {name: array.copy() for name, array in model.named_parameters()}
    with FAULTS["frozen-random-backbone"]():
        optimizer = train.build_optimizer(settings, model)
    optimizer.flat.grad[:] = 1.0
    optimizer.step()
    moved = {name for name, array in model.named_parameters() if (array != before[name]).any()}
    assert moved == {name for name in before if not name.startswith("backbone.")}


def test_frozen_batch_norm_keeps_its_statistics_in_training(rng):
    model = build_model("mini", 3)
    images = rng.standard_normal((2, 32, 40, 3), np.float32)
    with FAULTS["frozen-batch-norm"]():
        model.forward_coarse(images)
    for name, buffer in model.named_buffers():
        assert (buffer == (1 if name.endswith("var") else 0)).all()
