"""The losses' CUDA kernels, run by the emulator: numbers as of NumPy and torch, and no waiting."""

import numpy as np
import pytest
from checks import assert_agrees, assert_float32_accurate, non_contiguous
from loss_cases import assert_gradient_matches_differences, random_batch
from test_losses_upsampled import CASES, PLAIN, REQUIRED, coarse_batch

from minisegnet import losses
from minisegnet.cuda import emulated_device, emulator
from minisegnet.losses import (
    Criterion,
    WholeBatch,
    pixels_per_class,
    upsampled_loss_backward,
    upsampled_loss_forward,
    upsampled_prediction,
)
from minisegnet.losses.softmax_cuda import FullLogits, loss_backward_cuda, loss_forward_cuda
from minisegnet.losses.upsampled import ON_DEVICE
from minisegnet.losses.upsampled_cuda import STAGED, CoarseLogits
from minisegnet.ops.upsample import upsample_bilinear_forward

pytestmark = pytest.mark.usefixtures("compiler")

KERNEL_CASES = [case for case in CASES if case[0] not in ("lovasz", "ohem")]
ALL_CASES = pytest.mark.parametrize("loss, options", KERNEL_CASES, ids=str)
# One of every kind, each with what makes it different.
FEW = {
    "ce": {"weight": [0.5, 2.0, 0.0, 7.0], "label_smoothing": 0.1},
    "focal": {"alpha": [0.5, 2.0, 0.0, 7.0], "gamma": 0.5},
    "dice": {"log": True},
    "combined": {"lambda_focal": 0.3, "lambda_dice": 2.0},
    "tversky": {},
    "logit_adjusted": {"prior": [0.7, 0.1, 0.05, 0.15]},
}
NAMES = pytest.mark.parametrize("loss", FEW)
SIZES = [((5, 7), (20, 28)), ((4, 4), (4, 4)), ((6, 6), (3, 5)), ((1, 1), (9, 9)),
         ((5, 7), (13, 11)), ((3, 2), (7, 300))]


def options_of(loss, options):
    return {**REQUIRED.get(loss, {}), **options}


def fused(coarse, target, loss, dloss=1.0, *, implementation="cuda_cpu", **options):
    value, cache = upsampled_loss_forward(coarse, target, loss, implementation=implementation,
                                          **options)
    return value, upsampled_loss_backward(dloss, cache)


def plain(logits, target, loss, dloss=1.0, *, implementation="cuda_cpu", **options):
    forward, backward = PLAIN[loss]
    value, cache = forward(logits, target, implementation=implementation, **options)
    return value, backward(dloss, cache)


def on_device(*arrays):
    return [emulated_device.asarray(array) for array in arrays]


def device_batch(rng, coarse_size=(3, 4), size=(12, 16), **options):
    coarse, target = coarse_batch(rng, coarse_size, size, target_dtype=np.uint8, **options)
    return coarse, target, *on_device(coarse, target)


# The numbers

@ALL_CASES
@pytest.mark.parametrize("coarse_size, size", SIZES)
def test_fused_kernels_equal_numpy(rng, loss, options, coarse_size, size):
    options = options_of(loss, options)
    coarse, target = coarse_batch(rng, coarse_size, size)
    value, dcoarse = fused(coarse, target, loss, 1.7, **options)
    expected, dexpected = fused(coarse, target, loss, 1.7, implementation="numpy", **options)
    assert value == pytest.approx(expected, rel=1e-12)
    assert_agrees(dcoarse, dexpected, 1e-11)


@ALL_CASES
@pytest.mark.parametrize("ignore_index", [255, -1, 1])
def test_plain_kernels_equal_numpy(rng, loss, options, ignore_index):
    options = {**options_of(loss, options), "ignore_index": ignore_index}
    logits, target = random_batch(rng, shape=(2, 13, 17), ignore_index=ignore_index)
    value, dlogits = plain(logits, target, loss, 1.7, **options)
    expected, dexpected = plain(logits, target, loss, 1.7, implementation="numpy", **options)
    assert value == pytest.approx(expected, rel=1e-12)
    assert_agrees(dlogits, dexpected)


@NAMES
@pytest.mark.parametrize("num_classes", [2, 3, 12, 21, 33, 255])
def test_any_number_of_classes(rng, loss, num_classes):
    options = options_of(loss, {})
    if loss == "logit_adjusted":
        options["prior"] = rng.uniform(0.1, 1.0, num_classes)
    for run, shape in ((plain, (2, 5, 9)), (fused, (2, 11, 13))):
        coarse, _ = random_batch(rng, shape=(2, 5, 9), num_classes=num_classes)
        _, target = random_batch(rng, shape=shape, num_classes=num_classes, ignore_index=255)
        value, gradient = run(coarse, target, loss, **options)
        expected, dexpected = run(coarse, target, loss, implementation="numpy", **options)
        assert value == pytest.approx(expected, rel=1e-12)
        assert_agrees(gradient, dexpected, 1e-11)


@NAMES
def test_fused_losses_match_torch(rng, torch, loss):
    from minisegnet.verify import torch_oracle

    coarse, target = coarse_batch(rng, (33, 45), (129, 177))
    value, dcoarse = fused(coarse, target, loss, 1.7, **FEW[loss])
    arrays = {name: np.array(option) if isinstance(option, list) else option
              for name, option in FEW[loss].items()}
    [expected], gradients = torch_oracle.gradients(
        torch_oracle.upsampled_loss, {"coarse": coarse},
        {"target": target, "loss": loss, **arrays}, 1.7)
    assert value == pytest.approx(expected, rel=1e-12)
    assert_agrees(dcoarse, gradients["coarse"])


@NAMES
@pytest.mark.parametrize("path", [plain, fused])
def test_float32_is_as_good_as_torchs(rng, torch, path, loss):
    from minisegnet.verify import torch_oracle

    size = (21, 30) if path is plain else (84, 120)
    coarse, target = coarse_batch(rng, (21, 30), size, dtype=np.float32)
    value, gradient = path(coarse, target, loss, **FEW[loss])
    found = []
    for dtype in (np.float64, np.float32):
        arrays = {name: np.array(option, dtype) if isinstance(option, list) else option
                  for name, option in FEW[loss].items()}
        function, name = {plain: (torch_oracle.LOSSES[loss], "logits"),
                          fused: (torch_oracle.upsampled_loss, "coarse")}[path]
        more = {} if path is plain else {"loss": loss}
        [expected], gradients = torch_oracle.gradients(
            function, {name: coarse.astype(dtype)}, {"target": target, **more, **arrays}, 1.0)
        found.append((expected, gradients[name]))
    assert_float32_accurate(value, found[0][0], found[1][0])
    assert_float32_accurate(gradient, found[0][1], found[1][1])


@NAMES
def test_gradients_match_central_differences(rng, loss):
    coarse, target = coarse_batch(rng, (2, 2), (5, 3))
    for path in (plain, fused):
        target = target if path is fused else target[:, :2, :2]
        _, gradient = path(coarse, target, loss, 1.7, **FEW[loss])
        # The kernels' gradient against the loss that NumPy computes: quicker, and equal (above).
        assert_gradient_matches_differences(
            lambda z: 1.7 * path(z, target, loss, implementation="numpy", **FEW[loss])[0],
            coarse, gradient, rng)


@NAMES
@pytest.mark.parametrize("path", [plain, fused])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_stay_finite_and_right(rng, path, loss, dtype):
    coarse, target = coarse_batch(rng, (3, 4), (3, 4) if path is plain else (12, 16), scale=1e4,
                                  dtype=dtype)
    value, gradient = path(coarse, target, loss, **FEW[loss])
    expected, dexpected = path(coarse.astype(np.float64), target, loss, implementation="numpy",
                               **FEW[loss])
    assert np.isfinite(gradient).all()
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, dexpected, atol=1e-3 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 20.0])
def test_focal_is_finite_where_a_class_is_certain_or_hopeless(gamma):
    logits = np.array([[1e4, -1e4], [40.0, 0.0], [0.0, 1e4], [0.0, 0.0]], np.float32)
    logits, target = logits.reshape(1, 2, 2, 2), np.zeros((1, 2, 2), np.uint8)
    value, dlogits = plain(logits, target, "focal", gamma=gamma)
    expected, dexpected = plain(logits.astype(np.float64), target, "focal",
                                implementation="numpy", gamma=gamma)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(dlogits, dexpected, rtol=1e-5, atol=1e-8)


# Shapes of the work

@NAMES
def test_coarse_kernels_at_ratio_one_are_the_plain_ones(rng, loss):
    logits, target = random_batch(rng, shape=(1, 9, 11))
    terms = ON_DEVICE[loss](4, **FEW[loss])
    results = []
    for source in (FullLogits(logits), CoarseLogits(logits, (9, 11))):
        value, cache = loss_forward_cuda(source, target, terms)
        results.append((value, loss_backward_cuda(1.3, cache)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-13)
    assert_agrees(results[0][1], results[1][1], 1e-12)


@pytest.mark.parametrize("coarse_size, size, num_classes", [
    ((2, 70), (3, 280), 255),  # classes in chunks
    ((2, 6000), (2, 8), 3),    # more coarse columns than fit under a block
    ((3, 2), (2, 700), 5),     # a row in pieces
    ((40, 35), (41, 37), 70),  # many tiles, classes on several blocks
], ids=str)
def test_wide_rows_and_many_classes_in_pieces(rng, coarse_size, size, num_classes):
    coarse, _ = random_batch(rng, shape=(1, *coarse_size), num_classes=num_classes)
    _, target = random_batch(rng, shape=(1, *size), num_classes=num_classes)
    weight = rng.uniform(0.1, 3.0, num_classes)
    for loss, options in (("ce", {"weight": weight, "label_smoothing": 0.2}),
                          ("combined", {"alpha": weight})):
        value, dcoarse = fused(coarse, target, loss, **options)
        expected, dexpected = fused(coarse, target, loss, implementation="numpy", **options)
        assert value == pytest.approx(expected, rel=1e-12)
        assert_agrees(dcoarse, dexpected, 1e-11)


@pytest.mark.parametrize("num_classes", [2, 21, 64, 255])
@pytest.mark.parametrize("w, W", [(1, 1), (1, 700), (128, 512), (512, 128), (5000, 7), (45, 177)])
def test_what_a_block_stages_fits(w, W, num_classes):
    logits = CoarseLogits(np.empty((1, 2, w, num_classes), np.float32), (4, W))
    _, launch = logits.pieces()
    assert launch["pieces"] * launch["length"] >= W
    assert launch["shared_bytes"] <= 4 * STAGED and launch["chunk"] >= 1
    chunks, columns, rows = logits._cells()
    assert chunks * columns * 4 >= num_classes and columns * rows <= 256
    tile, _ = logits._tile(16 * columns * 8, chunks)
    assert (tile + 1) ** 2 * 16 * columns * 8 <= 48 * 1024


@NAMES
@pytest.mark.parametrize("path", [plain, fused])
def test_the_order_of_threads_changes_no_bit(rng, path, loss):
    coarse, target = coarse_batch(rng, (7, 9), (7, 9) if path is plain else (29, 33),
                                  dtype=np.float32)
    expected = path(coarse, target, loss, **FEW[loss])
    for order in ("reverse", "random"):
        with emulator.fiber_order(order):
            value, gradient = path(coarse, target, loss, **FEW[loss])
        assert value == expected[0] and (gradient == expected[1]).all()


def test_the_order_of_threads_changes_no_bit_where_classes_fill_several_warps(rng):
    logits, target = random_batch(rng, shape=(1, 9, 13), num_classes=70)
    expected, dexpected = plain(logits, target, "dice")
    with emulator.fiber_order("reverse"):
        value, dlogits = plain(logits, target, "dice")
    assert value == expected and (dlogits == dexpected).all()


@NAMES
@pytest.mark.parametrize("path", [plain, fused])
def test_inputs_may_have_gaps_and_are_left_alone(rng, path, loss):
    coarse, target = coarse_batch(rng, (4, 5), (4, 5) if path is plain else (9, 11))
    expected = path(coarse, target, loss, **FEW[loss])
    spread = np.zeros((2, 2, *target.shape[1:]), target.dtype)
    spread[:, 0] = target
    value, gradient = path(non_contiguous(coarse), spread[:, 0], loss, **FEW[loss])
    assert value == expected[0] and (gradient == expected[1]).all()


@NAMES
def test_backward_can_be_asked_twice_and_scales_with_dloss(rng, loss):
    coarse, target = coarse_batch(rng)
    _, cache = upsampled_loss_forward(coarse, target, loss, implementation="cuda_cpu", **FEW[loss])
    once = upsampled_loss_backward(1.0, cache)
    assert (upsampled_loss_backward(1.0, cache) == once).all()
    assert_agrees(upsampled_loss_backward(np.float32(65536.0), cache), 65536.0 * once)


# Predictions

@pytest.mark.parametrize("size", [(13, 15), (3, 4), (2, 3), (5, 700)])
@pytest.mark.parametrize("num_classes", [2, 21, 256])
def test_predictions_equal_numpys(rng, size, num_classes):
    coarse, _ = random_batch(rng, shape=(2, 3, 4), num_classes=num_classes, ignore_index=-1)
    prediction = upsampled_prediction(coarse, size, implementation="cuda_cpu")
    assert prediction.dtype == np.uint8
    assert (prediction == upsample_bilinear_forward(coarse, size)[0].argmax(axis=3)).all()


def test_the_lowest_of_equal_classes_wins(rng):
    coarse = rng.standard_normal((1, 3, 4, 1)).astype(np.float32) + np.zeros(6, np.float32)
    assert not upsampled_prediction(coarse, (9, 10), implementation="cuda_cpu").any()
    coarse[..., 0] -= 1.0
    assert (upsampled_prediction(coarse, (9, 10), implementation="cuda_cpu") == 1).all()


# On a device

@NAMES
@pytest.mark.parametrize("path", [plain, fused])
def test_a_device_gives_the_same_bits_and_waits_for_nothing(rng, path, loss):
    size = (3, 4) if path is plain else (12, 16)
    coarse, target, coarse_there, target_there = device_batch(rng, size=size)
    expected, dexpected = path(coarse, target, loss, 1.3, **FEW[loss])
    waits = emulated_device.synchronisations
    value, gradient = path(coarse_there, target_there, loss, 1.3, implementation=None, **FEW[loss])
    assert emulated_device.synchronisations == waits
    assert value.shape == (1,) and value.dtype == np.float64
    assert value.get()[0] == expected and (gradient.get() == dexpected).all()


def test_labels_that_are_no_class_are_ignored(rng):
    coarse, target, coarse_there, _ = device_batch(rng)
    clean, wrong = target.copy(), target.copy()
    wrong[0, 1, :3], clean[0, 1, :3] = (4, 99, 254), 255
    for run, shape in ((upsampled_loss_forward, slice(None)),
                       (losses.cross_entropy_forward, np.s_[:, :3, :4])):
        expected, _ = run(coarse_there, emulated_device.asarray(clean[shape]))
        value, _ = run(coarse_there, emulated_device.asarray(wrong[shape]))
        assert value.get() == expected.get()


@NAMES
@pytest.mark.parametrize("path", [plain, fused])
def test_nothing_to_learn_from_is_loss_zero_without_a_word(rng, path, loss):
    size = (3, 4) if path is plain else (12, 16)
    _, target, coarse_there, _ = device_batch(rng, size=size)
    for label, options in ((255, FEW[loss]), (2, {"ce": FEW["ce"]}.get(loss))):
        if options is None:
            continue  # a class of weight 0 is all there is
        empty = emulated_device.asarray(np.full_like(target, label))
        value, gradient = path(coarse_there, empty, loss, implementation=None, **options)
        assert value.get() == [0.0] and not gradient.get().any()


def test_pixels_per_class_add_up_on_a_device(rng):
    targets = [random_batch(rng, shape=(1, 70, 80), num_classes=9, target_dtype=np.uint8)[1]
               for _ in range(2)]
    expected = sum(np.bincount(target.ravel(), minlength=9)[:9] for target in targets)
    waits, counts, here = emulated_device.synchronisations, None, None
    for target in targets:
        counts = pixels_per_class(*on_device(target), 9, into=counts)
        here = pixels_per_class(target, 9, into=here)
    assert emulated_device.synchronisations == waits
    assert counts.dtype == np.int32 and (counts.get() == expected).all()
    assert (here == expected).all()


@pytest.mark.parametrize("place", ["host", "device"])
@NAMES
def test_parts_of_a_batch_add_up_as_on_the_host(rng, loss, place):
    options = {"weight": np.array([0.5, 2.0, 1.0, 7.0])}
    if loss == "logit_adjusted":
        options["prior"] = np.array([0.7, 0.1, 0.05, 0.15])
    criterion = Criterion(loss, **options)
    coarse, target, coarse_there, target_there = device_batch(rng, ignored=0.4)
    counts = pixels_per_class(target, 4)
    there = counts if place == "host" else pixels_per_class(target_there, 4)
    for forward, backward, size in (
            (criterion.forward, criterion.backward, np.s_[:1, :3, :4]),
            (criterion.forward_upsampled, criterion.backward_upsampled, np.s_[:1])):
        expected, cache = forward(coarse[:1], target[size], whole=WholeBatch(counts, 2))
        dexpected, parts = backward(1.3, cache), criterion.parts(cache)
        waits = emulated_device.synchronisations
        value, cache = forward(*on_device(coarse[:1], target[size]),
                               whole=WholeBatch(there, 2))
        gradient = backward(1.3, cache)
        assert emulated_device.synchronisations == waits
        assert value.get()[0] == pytest.approx(expected, rel=1e-12)
        assert_agrees(gradient.get(), dexpected)
        found = {name: part.get()[0] for name, part in criterion.parts(cache).items()}
        assert found == pytest.approx(parts, rel=1e-12)


@NAMES
def test_logits_of_16_bits_are_computed_with_in_float32(rng, loss):
    coarse, target, _, target_there = device_batch(rng, dtype=np.float32)
    coarse = coarse.astype(np.float16)
    expected, dexpected = fused(coarse.astype(np.float32), target, loss, 1024.0, **FEW[loss])
    value, gradient = fused(*on_device(coarse), target_there, loss, 1024.0, implementation=None,
                            **FEW[loss])
    assert value.dtype == np.float32 and value.get()[0] == pytest.approx(expected, rel=1e-6)
    assert gradient.dtype == np.float16
    np.testing.assert_allclose(gradient.get().astype(np.float32), dexpected, rtol=1e-3, atol=1e-5)
    assert (upsampled_prediction(*on_device(coarse), (12, 16)).get()
            == upsampled_prediction(coarse.astype(np.float32), (12, 16))).all()


@NAMES
@pytest.mark.parametrize("path", [plain, fused])
def test_logits_that_are_no_numbers_show_in_loss_and_gradient(rng, path, loss):
    for number, classes in ((np.nan, slice(None)), (np.inf, slice(None)), (-np.inf, slice(None)),
                            (np.nan, 1), (np.inf, 1)):
        coarse, target = coarse_batch(rng, (3, 4), (3, 4) if path is plain else (6, 8),
                                      ignored=0.0)
        coarse[0, 1, 2, classes] = number
        value, gradient = path(coarse, target, loss, **FEW[loss])
        assert np.isnan(value) and np.isnan(gradient).any()


@pytest.mark.parametrize("loss", ["ce", "focal", "combined"])
@pytest.mark.parametrize("path", [plain, fused])
def test_an_infinite_loss_has_no_gradient(rng, path, loss):
    coarse, target = coarse_batch(rng, (3, 4), (3, 4) if path is plain else (6, 8), ignored=0.0)
    coarse[..., 1] = -np.inf  # softmax is 0, without any NaN
    target[:] = np.where(target == 1, 0, target)
    assert np.isfinite(plain(coarse, target[:, :3, :4], loss)[1]).all()
    target[0, 0, 0] = 1
    value, gradient = path(coarse, target, loss)
    assert not np.isfinite(value) and np.isnan(gradient).any()


@NAMES
def test_a_target_may_have_any_order_of_its_axes(rng, loss):
    logits, target = random_batch(rng, shape=(2, 5, 7))
    expected, dexpected = plain(logits, target, loss, **FEW[loss])
    value, gradient = plain(logits, np.asfortranarray(target), loss, **FEW[loss])
    assert value == expected and (gradient == dexpected).all()
    one = np.broadcast_to(target[:, :1, :1], target.shape)
    assert plain(logits, one, loss, **FEW[loss])[0] == plain(logits, one.copy(), loss,
                                                             **FEW[loss])[0]


# What is refused

def test_what_has_no_kernels_says_so(rng):
    _, _, coarse, target = device_batch(rng)
    for loss in ("lovasz", "ohem"):
        with pytest.raises(ValueError, match=f"{loss} sorts all pixels.*use --device cpu"):
            upsampled_loss_forward(coarse, target, loss)
        with pytest.raises(ValueError, match=f"{loss} sorts all pixels"):
            Criterion(loss).forward(coarse, target)
        with pytest.raises(ValueError, match="'cuda_cpu' is not one of numpy"):
            upsampled_loss_forward(coarse.get(), target.get(), loss, implementation="cuda_cpu")


def test_unusable_input_is_refused(rng):
    coarse, target, coarse_there, target_there = device_batch(rng)
    with pytest.raises(ValueError, match="'slow' is not one of numpy, cuda"):
        fused(coarse, target, "ce", implementation="slow")
    with pytest.raises(TypeError, match="int64; on a device, expected uint8"):
        upsampled_loss_forward(coarse_there, emulated_device.asarray(target.astype(np.int64)))
    with pytest.raises(ValueError, match="N = 2"):
        upsampled_loss_forward(coarse_there, target_there[:1])
    with pytest.raises(ValueError, match=r"expected a target \(2, 3, 4\)"):
        losses.cross_entropy_forward(coarse_there, target_there)
    with pytest.raises(ValueError, match=r"counts are int64 \(4,\) on the device; expected int32"):
        upsampled_loss_forward(coarse_there, target_there,
                               counts=emulated_device.zeros((4,), np.int64))
    with pytest.raises(ValueError, match=r"counts has shape \(3,\)"):
        upsampled_loss_forward(coarse_there, target_there, counts=np.ones(3, np.int64))
    with pytest.raises(ValueError, match=r"counts has 2147483648 pixels of a class; on a GPU"):
        upsampled_loss_forward(coarse_there, target_there, counts=np.full(4, 2 ** 31))
    for counts in (np.full(4, 1e3 + 0.5), np.full(4, np.nan), np.full(4, np.inf)):
        for implementation in ("numpy", "cuda_cpu"):
            with pytest.raises(ValueError, match="counts has .*expected whole numbers of pixels"):
                upsampled_loss_forward(coarse, target, counts=counts,
                                       implementation=implementation)
    with pytest.raises(TypeError, match="counts"):
        upsampled_loss_forward(coarse_there, target_there, "dice", counts=np.ones(4, np.int64))
    with pytest.raises(ValueError, match="300 classes; on a GPU, at most 255"):
        plain(np.zeros((1, 2, 2, 300)), np.zeros((1, 2, 2), int), "ce")
    with pytest.raises(ValueError, match="300 classes; on a GPU, at most 256"):
        upsampled_prediction(np.zeros((1, 2, 2, 300)), (4, 4), implementation="cuda_cpu")
    target = target.astype(int)
    target[0, 0, 0] = 9
    with pytest.raises(ValueError, match="labels 9, neither"):
        fused(coarse, target, "ce")
    for loss, options, message in (
            ("ce", {"label_smoothing": 2.0}, "label_smoothing is 2.0"),
            ("focal", {"gamma": -1.0}, "gamma is -1.0"),
            ("dice", {"mode": "smp", "classes": "all"}, "mode='smp'"),
            ("combined", {"lambda_dice": -1.0}, "lambda_dice -1"),
            ("tversky", {"beta": -0.1}, "beta -0.1"),
            ("logit_adjusted", {"prior": [1, 1]}, r"prior has shape \(2,\)")):
        with pytest.raises(ValueError, match=message):
            upsampled_loss_forward(coarse_there, target_there, loss, **options)
