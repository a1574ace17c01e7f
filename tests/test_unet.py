"""UNet: the names of Pytorch-UNet, odd sizes, one image, and every number against torch."""

import numpy as np
import pytest
from checks import assert_agrees, frozen

from minisegnet import summary
from minisegnet.errors import UserError, run_command
from minisegnet.losses import Criterion
from minisegnet.models import build_model, to_torch_state_dict
from minisegnet.models.torch_layout import to_torch_layout, torch_names
from minisegnet.models.unet import UNet
from minisegnet.summary import summarize
from minisegnet.training.evaluation import predict_batch

K = 3


def make(width=2, dtype="float64"):
    """Return a narrow UNet whose norms and biases are not at their neutral initial values."""
    model = UNet("unet_small", K, width=width, rng=np.random.default_rng(1), momentum=0.1)
    rng = np.random.default_rng(2)
    for _, array in model.named_parameters():
        if array.ndim == 1:
            array += 0.2 * rng.standard_normal(array.shape).astype(np.float32)
    return model.astype(dtype)


def draw_batch(rng, size, batch=2):
    return frozen(rng.standard_normal((batch, *size, 3)), rng.integers(0, K, (batch, *size)))


@pytest.fixture
def assert_matches_torch(torch):
    """Return a function that compares logits and all gradients of a UNet with torch's."""
    from minisegnet.verify.torch_models import UNetTwin

    def check(model, width, images, target):
        twin = UNetTwin(K, width, 0.1).double().train(model.training)
        twin.load_state_dict({name: torch.tensor(array)
                              for name, array in to_torch_state_dict(model).items()})
        logits = model.forward(images)
        expected = twin(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert logits.shape == (*images.shape[:3], K)
        assert_agrees(logits, expected.detach().numpy(), 1e-11)
        criterion = Criterion("combined")
        _, cache = criterion.forward(logits, target)
        dlogits = criterion.backward(1.0, cache)
        model.backward(dlogits)
        expected.backward(torch.tensor(dlogits))
        expected = {name: p.grad.numpy() for name, p in twin.named_parameters()}
        actual = {f"{torch_names(model)[name]}.{key}": to_torch_layout(layer, key, gradient)
                  for name, layer in model.named_layers()
                  for key, gradient in layer.grads.items()}
        assert actual.keys() == expected.keys()
        total = np.sqrt(sum(np.sum(gradient ** 2) for gradient in expected.values()))
        for name, gradient in expected.items():
            error = np.linalg.norm(actual[name] - gradient)
            assert error <= 1e-9 * max(np.linalg.norm(gradient), 1e-6 * total), name

    return check


def expected_shapes(width, num_classes):
    """Return {name: shape} of Pytorch-UNet's state, bilinear=False, written as a table."""
    shapes = {}

    def double_conv(prefix, inside, out):
        for conv, norm, channels in ((0, 1, inside), (3, 4, out)):
            shapes[f"{prefix}.double_conv.{conv}.weight"] = (out, channels, 3, 3)
            for key in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{prefix}.double_conv.{norm}.{key}"] = (out,)
            shapes[f"{prefix}.double_conv.{norm}.num_batches_tracked"] = ()

    double_conv("inc", 3, width)
    for i, inside in enumerate((width, 2 * width, 4 * width, 8 * width), start=1):
        double_conv(f"down{i}.maxpool_conv.1", inside, 2 * inside)
    for i, inside in enumerate((16 * width, 8 * width, 4 * width, 2 * width), start=1):
        shapes[f"up{i}.up.weight"] = (inside, inside // 2, 2, 2)
        shapes[f"up{i}.up.bias"] = (inside // 2,)
        double_conv(f"up{i}.conv", inside, inside // 2)
    shapes["outc.conv.weight"], shapes["outc.conv.bias"] = (num_classes, width, 1, 1), \
        (num_classes,)
    return shapes


@pytest.mark.parametrize("name, width", [("unet", 64), ("unet_small", 16)])
def test_names_and_shapes_are_those_of_pytorch_unet(name, width):
    model = build_model(name, 2)
    assert (model.name, model.num_classes) == (name, 2)
    assert not hasattr(model, "backbone")
    state = to_torch_state_dict(model)
    assert {key: array.shape for key, array in state.items()} == expected_shapes(width, 2)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (31, 16), (30, 43), (64, 18)], ids=str)
def test_odd_sizes_match_torch(assert_matches_torch, rng, size):
    assert_matches_torch(make(), 2, *draw_batch(rng, size))


@pytest.mark.parametrize("training, size", [(True, (32, 48)), (False, (16, 16))])
def test_one_image_is_enough_in_training_and_evaluation(assert_matches_torch, rng, training,
                                                        size):
    assert_matches_torch(make().train(training), 2, *draw_batch(rng, size, batch=1))


def test_one_image_of_the_least_size_leaves_no_variance_and_says_so(rng):
    images, _ = draw_batch(rng, (16, 16), batch=1)
    with pytest.raises(ValueError, match="more than one value per channel.*larger image"):
        make().forward(images)


@pytest.mark.slow
def test_the_wide_one_matches_torch(assert_matches_torch, rng):
    model = UNet("unet", K, width=64, rng=np.random.default_rng(1), momentum=0.1)
    assert_matches_torch(model.astype("float64"), 64, *draw_batch(rng, (37, 50)))


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (1, 1)])
def test_images_below_16_px_are_refused_with_the_size(size):
    with pytest.raises(UserError, match=rf"at least 16x16 pixels, not {size[0]}x{size[1]}; use a"):
        make().forward(np.zeros((2, *size, 3)))


def test_its_coarse_logits_are_the_full_ones_and_the_fused_head_gives_the_same_gradients(rng):
    model, criterion = make(), Criterion("combined")
    images, target = draw_batch(rng, (21, 35))
    logits = model.forward(images)
    loss, cache = criterion.forward(logits, target)
    model.backward(criterion.backward(1.0, cache))
    expected = {name: gradient.copy() for name, gradient in model.named_gradients()}
    model.zero_grad()
    coarse = model.forward_coarse(images)
    np.testing.assert_array_equal(coarse, logits)
    fused, cache = criterion.forward_upsampled(coarse, target)
    model.backward_coarse(criterion.backward_upsampled(1.0, cache))
    assert fused == pytest.approx(loss, rel=1e-12)
    for name, gradient in model.named_gradients():
        assert_agrees(gradient, expected[name], 1e-10)


def test_an_untrained_one_finds_all_classes_about_equally_likely(rng):
    model = build_model("unet_small", 12)
    images = rng.standard_normal((2, 32, 32, 3), dtype=np.float32)
    loss, _ = Criterion("ce").forward(model.forward(images), rng.integers(0, 12, (2, 32, 32)))
    assert loss == pytest.approx(np.log(12), abs=0.05)


def test_it_predicts_at_another_size(rng):
    model = make(dtype="float32")
    images = rng.standard_normal((1, 16, 24, 3), dtype=np.float32)
    assert predict_batch(model, images, (40, 60)).shape == (1, 40, 60)


# Its summary

def test_the_summary_counts_transposed_convolutions_by_their_input():
    rows = {row.name: row for row in summarize("unet_small", 5, (32, 48), 2)}
    # up4's transposed convolution is the last to be met: 16x24 inputs, 32 -> 16 channels, 2x2
    assert rows["up"].multiply_adds == 16 * 24 * 32 * 16 * 4
    assert rows["up"].kind == "ConvTranspose2d 2x2 stride 2"
    assert rows["inc"].multiply_adds == 32 * 48 * 9 * (3 * 16 + 16 * 16)
    assert [row.name for row in rows.values() if row.depth == 1] == [
        "inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4", "outc.conv"]


def test_the_summary_command_shows_blocks_and_refuses_small_images(capsys):
    arguments = ["unet_small", "--num-classes", "2", "--batch-size", "1", "--image-size"]
    assert run_command(summary.main, [*arguments, "32", "32"]) == 0
    out = capsys.readouterr().out
    assert "DoubleConv" in out and "BatchNorm2d" not in out
    assert run_command(summary.main, [*arguments, "8", "32"]) == 2
    assert "at least 16x16 pixels, not 8x32" in capsys.readouterr().err
