"""The models against their torch twins: logits, every gradient, and a training trajectory."""

import numpy as np
import pytest
from checks import assert_agrees, frozen

from minisegnet.layers import BackwardError, freeze_batch_norm, inference_mode
from minisegnet.losses import Criterion
from minisegnet.models import MODEL_NAMES, build_model, to_torch_state_dict
from minisegnet.models.torch_layout import to_torch_layout, torch_arrays, torch_names
from minisegnet.optim import AdamW
from minisegnet.verify.gradcheck import numeric_slope

NUM_CLASSES = 5
BATCH, SIZE = 4, (25, 35)
WEIGHT = np.array([0.5, 1.0, 2.0, 3.0, 0.7])
CRITERIA = {
    "ce": Criterion("ce", weight=WEIGHT, label_smoothing=0.1),
    "focal": Criterion("focal", weight=WEIGHT, gamma=1.5),
    "dice": Criterion("dice"),
    "combined": Criterion("combined", lambda_focal=0.7, lambda_dice=1.3),
}
# The wide UNet is the small one with more channels, and has its own tests in test_unet.py.
every_model = pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name != "unet"])
every_deeplab = pytest.mark.parametrize("name", ["mini", "deeplab_light", "deeplab_baseline"])
every_loss = pytest.mark.parametrize("loss", CRITERIA)


def make(name, dtype="float64", dropout=False):
    """Return a model whose norms and biases are not at their neutral initial values."""
    model = build_model(name, NUM_CLASSES, seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    for _, array in model.named_parameters():
        if array.ndim == 1:
            array += 0.2 * rng.standard_normal(array.shape)
    if not dropout and hasattr(model, "aspp"):
        model.aspp.dropout.p = 0
    return model


def draw_batch(rng, size=SIZE, dtype=np.float64):
    """Return images and a target with about a tenth of its pixels ignored."""
    images = rng.standard_normal((BATCH, *size, 3)).astype(dtype)
    target = rng.integers(0, NUM_CLASSES, (BATCH, *size)).astype(np.uint8)
    target[rng.random(target.shape) < 0.1] = 255
    return frozen(images, target)


def run(model, criterion, images, target):
    """Return the loss; the gradients are in the model."""
    loss, cache = criterion.forward(model.forward(images), target)
    model.backward(criterion.backward(1.0, cache))
    return loss


class Twin:
    """The torch module of a model, fed and read in this package's layouts."""

    def __init__(self, torch, model):
        from minisegnet.verify import torch_models, torch_oracle

        self.torch, self.oracle = torch, torch_oracle
        self.module = torch_models.torch_twin(model)

    def logits(self, images):
        tensor = self.torch.tensor(images).permute(0, 3, 1, 2)
        return self.module(tensor).permute(0, 2, 3, 1)

    def run(self, criterion, images, target):
        """Return the loss; the gradients are in the module."""
        options = {key: self.torch.tensor(value) if isinstance(value, np.ndarray) else value
                   for key, value in criterion.options().items()}
        loss = self.oracle.LOSSES[criterion.name](
            self.logits(images), target=self.torch.tensor(target), **options)
        loss.backward()
        return loss.item()

    def gradients(self):
        return {name: p.grad.numpy() for name, p in self.module.named_parameters()}


def in_torch_layout(model, kind):
    """Return {torch name: array} of the model's "params" or "grads"."""
    names = torch_names(model)
    return {f"{names[name]}.{key}": to_torch_layout(layer, key, array)
            for name, layer in model.named_layers() for key, array in getattr(layer, kind).items()}


def assert_all_gradients_agree(actual, expected, limit=1e-9):
    """Where a gradient is zero in exact arithmetic, both hold only noise, and are not compared."""
    assert actual.keys() == expected.keys()
    total = np.sqrt(sum(np.sum(gradient ** 2) for gradient in expected.values()))
    for name, gradient in expected.items():
        error = np.linalg.norm(actual[name] - gradient)
        scale = max(np.linalg.norm(gradient), 1e-6 * total)
        assert error <= limit * scale, f"{name}: {error / scale:.1e}"


# What they are

@pytest.mark.parametrize("name, num_classes, expected", [
    ("deeplab_baseline", 21, 6_831_509), ("deeplab_light", 21, 2_517_493), ("mini", 12, 111_852),
    ("unet", 2, 31_037_698), ("unet_small", 12, 1_942_764),
])
def test_number_of_parameters(name, num_classes, expected):
    model = build_model(name, num_classes)
    assert model.num_parameters == expected
    assert (model.name, model.num_classes) == (name, num_classes)


@every_model
def test_the_seed_decides_the_weights_in_either_dtype(name):
    first, again, other = (dict(build_model(name, 4, seed=seed, dtype=dtype).named_parameters())
                           for seed, dtype in ((3, "float32"), (3, "float64"), (4, "float32")))
    for parameter, array in first.items():
        np.testing.assert_array_equal(array, again[parameter])
    assert any((array != other[parameter]).any() for parameter, array in first.items())


def test_batch_norm_momentum_reaches_every_norm():
    model = build_model("mini", 3, batch_norm_momentum=0.03)
    assert {layer.momentum for _, layer in model.named_layers()
            if hasattr(layer, "momentum")} == {0.03}


@pytest.mark.parametrize("arguments, options, message", [
    (("resnet", 3), {}, "'resnet' is not one of mini, .*baseline, unet_small, unet"),
    (("mini", 1), {}, "at least 2 classes, not 1"),
    (("mini", 3), {"dtype": "int32"}, "float32 to train or float64 to check, not int32"),
])
def test_unknown_models_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(*arguments, **options)


@every_model
def test_weights_go_to_torch_layouts_and_back_bit_for_bit(rng, name):
    model, other = make(name), build_model(name, NUM_CLASSES, seed=7, dtype="float64")
    for _, array in (*model.named_parameters(), *model.named_buffers()):
        array[...] = rng.standard_normal(array.shape)
    state, targets = to_torch_state_dict(model), torch_arrays(other)
    assert set(state) - set(targets) == {key for key in state if "num_batches_tracked" in key}
    for key, target in targets.items():
        assert target.shape == state[key].shape
        target.load(state[key])
    for kind in ("named_parameters", "named_buffers"):
        for (key, array), (_, expected) in zip(getattr(other, kind)(), getattr(model, kind)()):
            np.testing.assert_array_equal(array, expected, err_msg=key)


def test_names_and_layouts_are_those_of_torchvision():
    model = make("deeplab_light")
    state = to_torch_state_dict(model)
    shapes = {name: state[f"backbone.features.{name}"].shape for name in (
        "0.0.weight",  # stem: convolution, norm
        "0.1.running_var",
        "1.block.0.0.weight",  # the first block expands nothing: depthwise, squeeze, project
        "1.block.1.fc1.weight",
        "1.block.2.0.weight",
        "2.block.0.0.weight",  # expand, depthwise, project
        "4.block.2.fc2.bias",
        "12.0.weight")}
    assert list(shapes.values()) == [
        (16, 3, 3, 3), (16,), (16, 1, 3, 3), (8, 16, 1, 1), (16, 16, 1, 1), (72, 16, 1, 1), (96,),
        (576, 96, 1, 1)]
    # The state is a copy: training goes on without changing it.
    before = {name: array.copy() for name, array in state.items()}
    for _, array in model.named_parameters():
        array += 1
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])


@every_model
def test_the_state_loads_strictly_into_the_twin(torch, name):
    model = make(name, dtype="float32")
    module = Twin(torch, model).module
    state = {key: torch.tensor(array) for key, array in to_torch_state_dict(model).items()}
    assert set(state) == set(module.state_dict())
    module.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in module.parameters()) == model.num_parameters


# Against torch

@every_model
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_float32_logits_match_torch(torch, rng, name, training):
    model = make(name, dtype="float32")
    images, _ = draw_batch(rng, (64, 48), np.float32)
    for _ in range(3):
        model.forward(images)  # gives the running statistics something to hold
    twin = Twin(torch, model)
    model.train(training)
    twin.module.train(training)
    logits = model.forward(images)
    assert logits.dtype == np.float32
    with torch.no_grad():
        assert_agrees(logits, twin.logits(images).numpy(), 1e-5)


@every_model
@every_loss
def test_every_gradient_matches_torch(torch, rng, name, loss):
    model = make(name)
    twin = Twin(torch, model)
    images, target = draw_batch(rng)
    value = run(model, CRITERIA[loss], images, target)
    assert value == pytest.approx(twin.run(CRITERIA[loss], images, target), rel=1e-11)
    assert_all_gradients_agree(in_torch_layout(model, "grads"), twin.gradients())


@every_model
def test_evaluation_gradients_and_running_statistics_match_torch(torch, rng, name):
    model = make(name)
    twin = Twin(torch, model)
    images, target = draw_batch(rng)
    model.forward(images)
    with torch.no_grad():
        twin.logits(images)
    state = to_torch_state_dict(model)
    for key, tensor in twin.module.state_dict().items():
        if "running" in key:
            assert_agrees(state[key], tensor.numpy())
    model.eval()
    twin.module.eval()
    run(model, CRITERIA["ce"], images, target)
    twin.run(CRITERIA["ce"], images, target)
    assert_all_gradients_agree(in_torch_layout(model, "grads"), twin.gradients())


@pytest.mark.parametrize("size", [(1, 1), (5, 33), (31, 16), (64, 17)], ids=str)
def test_odd_image_sizes_match_torch(torch, rng, size):
    model = make("mini")
    twin = Twin(torch, model)
    images, target = draw_batch(rng, size)
    logits = model.forward(images)
    assert logits.shape == (BATCH, *size, NUM_CLASSES)
    assert_agrees(logits, twin.logits(images).detach().numpy(), 1e-10)
    loss, cache = CRITERIA["ce"].forward(logits, target)
    model.backward(CRITERIA["ce"].backward(1.0, cache))
    twin.run(CRITERIA["ce"], images, target)
    assert_all_gradients_agree(in_torch_layout(model, "grads"), twin.gradients())


def assert_ten_steps_match_torch(torch, rng, name, loss, limit=1e-9):
    model, criterion = make(name), CRITERIA[loss]
    start = to_torch_state_dict(model)
    twin = Twin(torch, model)
    optimizer = AdamW(model, lr=1e-3)
    torch_optimizer = torch.optim.AdamW(twin.module.parameters(), lr=1e-3)
    batches = [draw_batch(rng) for _ in range(3)]
    for step in range(10):
        optimizer.zero_grad()
        run(model, criterion, *batches[step % 3])
        optimizer.step()
        torch_optimizer.zero_grad()
        twin.run(criterion, *batches[step % 3])
        torch_optimizer.step()
    state = twin.module.state_dict()
    difference = {key: np.abs(array - state[key].numpy()).max()
                  for key, array in in_torch_layout(model, "params").items()}
    worst = max(difference, key=difference.get)
    assert difference[worst] <= limit, f"{worst}: {difference[worst]:.1e}"
    moved = max(np.abs(array - start[key]).max()
                for key, array in in_torch_layout(model, "params").items())
    assert moved > 5e-3  # ten steps of 1e-3: it is training that agrees, not standing still


@pytest.mark.parametrize("name, loss", [("mini", "ce"), ("deeplab_light", "combined")])
def test_ten_adamw_steps_match_torch(torch, rng, name, loss):
    assert_ten_steps_match_torch(torch, rng, name, loss)


@pytest.mark.slow
@every_model
@every_loss
def test_ten_adamw_steps_match_torch_with_every_loss(torch, rng, name, loss):
    # Where a gradient is zero by mathematics, AdamW divides rounding noise by its eps: in the
    # baseline 1e-15 of noise over 1e-8 move such a bias by about 1e-10 a step, in torch too.
    limit = 1e-8 if name == "deeplab_baseline" else 1e-9
    assert_ten_steps_match_torch(torch, rng, name, loss, limit)


# Gradients, without torch

def test_eleven_gradients_of_the_light_network_are_zero_by_mathematics(rng):
    """A bias that only moves the mean of a channel, which the next batch norm takes out again.

    Each block's projection ends in a batch norm and no activation. What follows is linear: sums
    with other blocks, 1x1 convolutions; then comes the next batch norm. So the bias of these norms
    cannot change the loss, its gradient is zero, and what is computed is rounding noise.
    """
    model = make("deeplab_light")
    run(model, CRITERIA["ce"], *draw_batch(rng))
    gradients = {name: np.linalg.norm(gradient) for name, gradient in model.named_gradients()}
    total = np.linalg.norm(list(gradients.values()))
    assert len(gradients) == 173
    zero = [name for name, norm in gradients.items() if norm <= 1e-12 * total]
    assert zero == [
        "backbone.features.1.project.norm.bias",
        "backbone.features.2.project.norm.bias",
        "backbone.features.3.project.norm.bias",
        "backbone.features.4.project.norm.bias",
        "backbone.features.5.project.norm.bias",
        "backbone.features.6.project.norm.bias",
        "backbone.features.7.project.norm.bias",
        "backbone.features.8.project.norm.bias",
        "backbone.features.9.project.norm.bias",
        "backbone.features.10.project.norm.bias",
        "backbone.features.11.project.norm.bias",
    ]
    assert min(norm for name, norm in gradients.items() if name not in zero) > 1e-6 * total


@every_model
def test_slope_along_a_random_direction_matches_central_differences(rng, name):
    model, criterion = make(name), CRITERIA["combined"]
    images, target = draw_batch(rng)
    run(model, criterion, images, target)
    parameters = [array for _, array in model.named_parameters()]
    start = [array.copy() for array in parameters]
    directions = [rng.standard_normal(array.shape) for array in parameters]

    def loss_at(*values):
        for array, value in zip(parameters, values):
            array[...] = value
        # The loss of float64 logits is a float64: nothing is lost before the difference.
        return criterion.forward(model.forward(images), target)[0]

    # Every parameter moves at once: a larger step would carry some activation across its kink.
    slope = numeric_slope(loss_at, start, directions, 1.0, step=3e-9)
    gradients = [gradient for _, gradient in model.named_gradients()]
    ours = sum(np.sum(gradient * direction) for gradient, direction in zip(gradients, directions))
    # A random slope is about as large as the norm of the gradient, but may happen to be near 0.
    scale = np.sqrt(sum(np.sum(gradient ** 2) for gradient in gradients))
    assert abs(ours - slope) <= 1e-6 * scale


@pytest.mark.parametrize("name, loss", [*(("mini", loss) for loss in CRITERIA),
                                        ("deeplab_light", "ce"), ("deeplab_baseline", "ce")])
def test_the_fused_head_gives_the_gradients_of_the_plain_one(rng, name, loss):
    model, criterion = make(name), CRITERIA[loss]
    images, target = draw_batch(rng)
    plain = run(model, criterion, images, target)
    expected = {name: gradient.copy() for name, gradient in model.named_gradients()}
    model.zero_grad()
    coarse = model.forward_coarse(images)
    assert coarse.shape == (BATCH, 7, 9, NUM_CLASSES)
    fused, cache = criterion.forward_upsampled(coarse, target)
    model.backward_coarse(criterion.backward_upsampled(1.0, cache))
    assert fused == pytest.approx(plain, rel=1e-12)
    assert_all_gradients_agree(dict(model.named_gradients()), expected)


@every_model
def test_gradients_accumulate_and_a_second_backward_is_refused(rng, name):
    model = make(name)
    images, _ = draw_batch(rng)
    dlogits = rng.standard_normal(model.forward(images).shape)
    model.backward(dlogits)
    once = {name: gradient.copy() for name, gradient in model.named_gradients()}
    with pytest.raises(BackwardError):
        model.backward(dlogits)
    model.forward(images)
    model.backward(dlogits)
    twice = {name: gradient / 2 for name, gradient in model.named_gradients()}
    assert_all_gradients_agree(twice, once, 1e-11)


# What they refuse, and what they keep

@every_deeplab
def test_a_training_batch_of_one_is_refused_with_the_cure(name):
    model = make(name, dtype="float32")
    images = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(ValueError, match="image pooling.*batch of at least 2.*eval"):
        model.forward(images)
    assert freeze_batch_norm(model).forward(images).shape == (1, 32, 32, NUM_CLASSES)
    freeze_batch_norm(model, False)
    assert model.eval().forward(images).shape == (1, 32, 32, NUM_CLASSES)


def test_images_of_another_dtype_are_refused():
    model = make("mini", dtype="float32")
    with pytest.raises(TypeError, match="float64 and float32"):
        model.forward(np.zeros((2, 32, 32, 3)))
    with pytest.raises(TypeError, match="uint8"):
        model.forward(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\)"):
        model.forward(np.zeros((2, 3, 32, 32), np.float32))


def test_images_may_be_a_view_of_another_layout(rng):
    model = make("mini").eval()
    images, _ = draw_batch(rng)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    assert_agrees(model.forward(planes.transpose(0, 2, 3, 1)), model.forward(images))


@every_model
def test_prediction_keeps_nothing_and_everything_is_float32(rng, name):
    model = make(name, dtype="float32", dropout=True)
    images, target = draw_batch(rng, dtype=np.float32)
    with inference_mode():
        assert model.eval().forward(images).dtype == np.float32
    assert all(layer._cache is None for _, layer in model.named_layers())
    run(model.train(), CRITERIA["combined"], images, target)
    assert all(layer._cache is None for _, layer in model.named_layers())
    arrays = [array for kind in (model.named_parameters, model.named_gradients,
                                 model.named_buffers) for _, array in kind()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
