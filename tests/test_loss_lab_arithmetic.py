"""The loss lab's arithmetic is the package's, and so is every number that its page shows.

The page's functions are called in a headless Chromium, with random cases and with what the page
itself shows after its sliders were moved. See `loss_lab_page` for what happens without a browser.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from loss_cases import probabilities, relative_error
from loss_lab_page import LOSSES, move, opened_page, state_of, text_of

from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.imbalance.label_smoothing import flipping_ratio, smoothed_optimum
from minisegnet.imbalance.weighting import SCHEMES, ClassStatistics, class_weights
from minisegnet.losses import (
    Criterion,
    combined_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    focal_backward,
    focal_forward,
)

TOLERANCE = 1e-9  # the page promises 1e-6; sums in another order cost far less


@pytest.fixture
def page():
    with opened_page() as window:
        yield window


def criteria(weight, alpha, gamma, smoothing):
    """Return the package's criterion of each loss on the page."""
    return {
        "ce": Criterion("ce", label_smoothing=smoothing),
        "weighted": Criterion("ce", weight, label_smoothing=smoothing),
        "focal": Criterion("focal", alpha, gamma),
        "dice": Criterion("dice"),
        "combined": Criterion("combined", alpha, gamma),
    }


CALLS = """
    const [logits, target, o] = arguments;
    const results = {
      ce: crossEntropy(logits, target, {labelSmoothing: o.smoothing}),
      weighted: crossEntropy(logits, target, {weight: o.weight, labelSmoothing: o.smoothing}),
      focal: focal(logits, target, {alpha: o.alpha || undefined, gamma: o.gamma}),
      dice: dice(logits, target),
      combined: combined(logits, target, {alpha: o.alpha || undefined, gamma: o.gamma}),
    };
    for (const result of Object.values(results)) result.ledger = ledger(result.dlogits, target);
    return results;"""


def assert_equals_package(results, logits, target, **options):
    """Compare the page's losses, gradients and shares with those of the package."""
    for name, criterion in criteria(**options).items():
        found = results[name]
        loss, cache = criterion.forward(logits, target)
        dlogits = criterion.backward(1.0, cache)
        assert found["loss"] == pytest.approx(float(loss), rel=TOLERANCE, abs=0), name
        books, expected = found["ledger"], gradient_ledger(criterion, logits, target)
        if expected.total < 1e-16:  # rounding errors of 0, the same here and there only by chance
            assert books["total"] < 1e-15
            continue
        mine = np.reshape(found["dlogits"], logits.shape)
        assert relative_error(mine, dlogits) < TOLERANCE, name
        assert relative_error(books["matrix"], expected.matrix) < TOLERANCE
        assert books["total"] == pytest.approx(expected.total, rel=TOLERANCE, abs=0)
        for mine, theirs in (("shareByTarget", expected.share_by_target),
                             ("shareByLogit", expected.share_by_logit)):
            np.testing.assert_allclose(books[mine], theirs, rtol=1e-6, atol=1e-15)


# ---- random cases ----

def send(page, logits, target, **options):
    """Return the page's results for logits (1, 1, P, K) and target (1, 1, P)."""
    lists = {key: value.tolist() if isinstance(value, np.ndarray) else value
             for key, value in options.items()}
    return page.run(CALLS, logits[0, 0].tolist(), target[0, 0].tolist(), lists)


def test_losses_gradients_and_shares_equal_the_package_on_random_cases(page, rng):
    for case in range(60):
        K, P = int(rng.integers(2, 7)), int(rng.integers(3, 50))
        logits = rng.choice([0.3, 2.0, 9.0]) * rng.standard_normal((1, 1, P, K))
        target = np.minimum(*rng.integers(0, K, (2, 1, 1, P)))  # rare classes, at times absent
        weight = 10 ** rng.uniform(-1.5, 2, K)
        if case % 3 == 0:
            weight[-1] = 0.0
        options = dict(weight=weight, alpha=weight if case % 2 else None,
                       gamma=float(rng.choice([0.0, 0.5, 1.0, 2.0, 5.0])),
                       smoothing=float(rng.choice([0.0, 0.1, 0.5, 1.0])))
        assert_equals_package(send(page, logits, target, **options), logits, target, **options)


def test_sure_predictions_right_or_wrong_stay_finite(page):
    logits = np.array([[[[800.0, 0, -800], [0, 800, 0], [40, 0, 0], [0, 0, 38]]]])
    for target in (np.array([[[0, 1, 0, 2]]]), np.array([[[2, 0, 1, 0]]])):
        for gamma in (0.0, 0.5, 2.0):
            options = dict(weight=np.array([1.0, 3.0, 0.2]), alpha=None, gamma=gamma,
                           smoothing=0.1)
            assert_equals_package(send(page, logits, target, **options), logits, target,
                                  **options)


def test_small_losses_of_good_predictions_keep_their_digits(page):
    logits, target = np.array([[[[20.0, 0, 0], [0, 22, 1], [0, 0, 19]]]]), np.array([[[0, 1, 2]]])
    for gamma in (0.0, 0.5, 2.0):
        options = dict(weight=np.array([1.0, 3.0, 0.2]), alpha=None, gamma=gamma, smoothing=0.0)
        results = send(page, logits, target, **options)
        for name in ("ce", "weighted", "focal"):
            loss, _ = criteria(**options)[name].forward(logits, target)
            assert results[name]["loss"] == pytest.approx(float(loss), rel=TOLERANCE, abs=0), name


def test_parts_of_combined_have_their_factors(page, rng):
    logits, target = rng.standard_normal((1, 1, 20, 3)), rng.integers(0, 3, (1, 1, 20))
    found = page.run("return combined(arguments[0], arguments[1], {lambdaFocal: 0.3,"
                     " lambdaDice: 1.7, smooth: 0.2}).loss",
                     logits[0, 0].tolist(), target[0, 0].tolist())
    loss, _ = combined_forward(logits, target, lambda_focal=0.3, lambda_dice=1.7, smooth=0.2)
    assert found == pytest.approx(float(loss), rel=TOLERANCE)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the package says that nothing is learnt
def test_weights_of_0_give_neither_loss_nor_gradient(page):
    logits, target = np.array([[[[1.0, 2], [0, 3]]]]), np.array([[[0, 1]]])
    options = dict(weight=np.zeros(2), alpha=np.zeros(2), gamma=2.0, smoothing=0.1)
    results = send(page, logits, target, **options)
    assert results["weighted"]["loss"] == results["weighted"]["ledger"]["total"] == 0
    assert_equals_package(results, logits, target, **options)


def test_class_weights_equal_the_package(page, rng):
    for scheme in 8 * SCHEMES:
        K = int(rng.integers(2, 8))
        counts = rng.integers(1, 5000, (40, K)) // 10 ** rng.integers(0, 4, K)
        counts *= rng.random((40, K)) < rng.uniform(0.1, 1, K)
        counts[:, 0] += 7
        counts[:, -1] *= rng.integers(0, 2)  # at times absent
        statistics = ClassStatistics(counts)
        sent = {"pixels": statistics.pixels.tolist(), "images": statistics.images.tolist(),
                "imagePixels": statistics.image_pixels.tolist()}
        found = page.run("return classWeights(...arguments)", scheme, sent)
        np.testing.assert_allclose(found, class_weights(statistics, scheme), rtol=TOLERANCE)
        found = page.run("return classWeights(...arguments)", scheme, sent,
                         {"cap": 3, "beta": 0.9})
        np.testing.assert_allclose(found, class_weights(statistics, scheme, cap=3.0, beta=0.9),
                                   rtol=TOLERANCE)


def test_smoothed_optimum_and_softmax_equal_the_package(page, rng):
    for _ in range(10):
        K = int(rng.integers(2, 9))
        weights, e, y = 10 ** rng.uniform(-2, 2, K), rng.uniform(0, 1), int(rng.integers(K))
        found, ratio = page.run("return [smoothedOptimum(...arguments),"
                                " flippingRatio(arguments[0].length, arguments[2])]",
                                weights.tolist(), y, e)
        np.testing.assert_allclose(found, smoothed_optimum(weights, y, e), rtol=TOLERANCE)
        assert ratio == pytest.approx(flipping_ratio(K, e), rel=TOLERANCE)
        z = 30 * rng.standard_normal(K)
        np.testing.assert_allclose(page.run("return softmax(arguments[0])", z.tolist()),
                                   probabilities(z), rtol=TOLERANCE)
    assert page.run("return [smoothedOptimum([0, 0], 1, 0.1), flippingRatio(4, 0) === Infinity]"
                    ) == [None, True]


def test_curves_are_the_package_s_loss_of_one_pixel_of_the_batch(page):
    move(page, scheme="sqrt", smoothing=0.1, gamma=1.5, alpha=True, scale=0.3)
    lab = state_of(page)
    counts, P = np.array(lab.counts), 384
    for y in range(4):
        for pt in (0.03, 0.5, 0.97):
            p = np.full((1, 1, 1, 4), (1 - pt) / 3)
            p[..., y] = pt
            ce, focal = ((cross_entropy_forward, cross_entropy_backward),
                         (focal_forward, focal_backward))
            for name, (forward, backward), options in (
                    ("ce", ce, {"label_smoothing": 0.1}),
                    ("weighted", ce, {"label_smoothing": 0.1, "weight": lab.weight}),
                    ("focal", focal, {"alpha": lab.weight, "gamma": 1.5})):
                loss, cache = forward(np.log(p), np.array([[[y]]]), counts=counts, **options)
                expected = P * loss, P * np.abs(backward(1.0, cache)).sum()
                assert page.run("return onePixel(...arguments)", name, y, pt) == pytest.approx(
                    expected, rel=TOLERANCE)


# ---- the page's own batch, after its controls were moved ----

SETTINGS = {
    "as it opens": {},
    "weighted": {"scheme": "inverse", "alpha": True, "scale": 0.7, "gamma": 3.1, "noise": 2.5},
    "median": {"scheme": "median", "pixels_1": 120, "pixels_2": 96, "pixels_3": 31},
    "enet, smoothed": {"scheme": "enet", "smoothing": 0.23, "confidence": 5.5, "bias": 0},
    "effective, two classes": {"scheme": "effective", "pixels_1": 0, "pixels_2": 0, "bias": 8},
    "by hand": {"weight_3": 1.5, "weight_0": -1, "weight_1": -1.55, "smoothing": 0.4},
    "uniform": {"confidence": 0, "bias": 0, "noise": 0, "scheme": "sqrt", "gamma": 0},
    "balanced": {"pixels_1": 96, "pixels_2": 96, "pixels_3": 96, "scheme": "inverse"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_the_page_shows_is_what_the_package_says(page, settings):
    move(page, **settings)
    lab = state_of(page)
    s = lab.settings
    assert_equals_package(lab.losses, lab.logits, lab.target, weight=lab.weight,
                          alpha=lab.weight if settings.get("alpha") else None, gamma=s["gamma"],
                          smoothing=s["smoothing"])

    counts = np.bincount(lab.target.ravel(), minlength=4)
    assert lab.counts == counts.tolist()
    for c in (1, 2, 3):
        assert counts[c] == settings.get(f"pixels_{c}", (292, 76, 12, 4)[c])
    pixels, images, image_pixels = (
        np.array(lab.statistics[key]) for key in ("pixels", "images", "imagePixels"))
    assert (pixels == 1000 * counts).all() and (pixels <= image_pixels).all()
    statistics = SimpleNamespace(pixels=pixels, frequency=pixels / pixels.sum(), images=images,
                                 image_pixels=image_pixels)
    if s["scheme"] != "hand":
        unscaled = class_weights(statistics, s["scheme"])
    else:
        unscaled = np.array([0.1, 0, 1, 10**1.5])
    np.testing.assert_allclose(lab.weight, unscaled * 10 ** s["scale"], rtol=TOLERANCE)
    assert lab.prediction == lab.logits.argmax(axis=-1).ravel().tolist()

    for name, criterion in criteria(lab.weight, lab.weight if s["alpha"] else None, s["gamma"],
                                    s["smoothing"]).items():
        books = gradient_ledger(criterion, lab.logits, lab.target)
        loss, total, *shares = text_of(page, f"loss-{name}", f"total-{name}",
                                       *(f"share-{name}-{c}" for c in range(4)))
        assert float(loss) == pytest.approx(books.loss, rel=1e-3)
        assert float(total) == pytest.approx(books.total, rel=1e-3)
        for text, share in zip(shares, books.share_by_target):
            assert float(text.removesuffix(" %")) == pytest.approx(100 * share, abs=0.0501)
    for text, weight in zip(text_of(page, *(f"weight-{c}-readout" for c in range(4))), lab.weight):
        assert float(text) == pytest.approx(weight, rel=1e-3)
    widths = page.run("return [...document.querySelectorAll('#bar-dice .segment')]"
                      ".map((segment) => parseFloat(segment.style.width))")
    shares = np.array(lab.losses["dice"]["ledger"]["shareByTarget"])
    np.testing.assert_allclose(widths, 100 * shares, atol=0.01)


def colours_of_map(page, name):
    """Return the colour (16, 24, 3) of each pixel of a map: the corner of its square."""
    found = page.run("""
        const canvas = document.getElementById(arguments[0]), size = canvas.width / 24;
        const copy = document.createElement("canvas");
        copy.width = canvas.width;
        copy.height = canvas.height;
        const context = copy.getContext("2d", {willReadFrequently: true});
        context.drawImage(canvas, 0, 0);
        const data = context.getImageData(0, 0, copy.width, copy.height).data;
        return Array.from({length: 384}, (_, i) => {
          const at = 4 * (Math.floor(i / 24) * size * canvas.width + (i % 24) * size);
          return [data[at], data[at + 1], data[at + 2]];
        });""", name)
    return np.array(found).reshape(16, 24, 3)


def test_maps_show_labels_prediction_gradient_and_optimum(page):
    move(page, scheme="inverse", smoothing=0.1, noise=2, confidence=3)
    lab = state_of(page)
    classes = np.array([[int(code[i:i + 2], 16) for i in (1, 3, 5)] for code in
                        page.run("return CLASSES.map((k) => k.colour)")])
    asked = np.array([smoothed_optimum(lab.weight, y, 0.1).argmax() for y in range(4)])
    assert asked.tolist() == [3, 1, 2, 3]  # the trap
    for name, labels in (("truth", lab.target[0]), ("prediction", lab.logits[0].argmax(axis=-1)),
                         ("optimum", asked[lab.target[0]])):
        np.testing.assert_array_equal(colours_of_map(page, f"map-{name}"), classes[labels])
    for name in LOSSES:
        page.click(f"#gradient-of-{name}")
        sizes = np.abs(lab.losses[name]["dlogits"]).sum(axis=1).reshape(16, 24)
        darkness = 252 - colours_of_map(page, "map-gradient")[..., 0]
        np.testing.assert_allclose(darkness, 252 * sizes / sizes.max(), atol=0.6)
        assert float(text_of(page, "gradient-note")[0].rstrip(".")) == pytest.approx(
            sizes.max(), rel=1e-3)
