"""A training step and an inference, ours and torch's: same network, weights and pictures."""

import numpy as np

from minisegnet.layers import inference_mode
from minisegnet.losses import Criterion
from minisegnet.models import build_model
from minisegnet.optim import AdamW


def draw_batch(N, H, W, K):
    """Return random images (N, H, W, 3) float32 and a target (N, H, W) uint8, 5 % ignored."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((N, H, W, 3), dtype=np.float32)
    target = rng.integers(0, K, (N, H, W)).astype(np.uint8)
    target[rng.random((N, H, W)) < 0.05] = 255
    return images, target


class OurWorkload:
    """MiniSegNet on NumPy, with the loss fused into the last upsampling, as training does it."""

    def __init__(self, name, num_classes):
        self.model = build_model(name, num_classes)
        self.criterion, self.optimizer = Criterion("ce"), None

    def gradient_bytes(self):
        return sum(gradient.nbytes for _, gradient in self.model.named_gradients())

    def set_batch(self, N, H, W):
        self.images, self.target = draw_batch(N, H, W, self.model.num_classes)

    def train_step(self):
        if self.optimizer is None:
            self.optimizer = AdamW(self.model.train(), lr=1e-3)
        self.optimizer.zero_grad()
        loss, cache = self.criterion.forward_upsampled(self.model.forward_coarse(self.images),
                                                       self.target)
        self.model.backward_coarse(self.criterion.backward_upsampled(1.0, cache))
        self.optimizer.step()
        return float(loss)

    def infer(self):
        self.model.eval()
        with inference_mode():
            logits = self.model.forward(self.images)
        self.model.train()
        return logits


class TorchWorkload:
    """The twin in PyTorch, as one would write it: autograd, F.cross_entropy, torch.optim.AdamW."""

    def __init__(self, name, num_classes, *, channels_last=False):
        import torch

        from minisegnet.verify.torch_models import torch_twin

        self.torch, self.num_classes, self.optimizer = torch, num_classes, None
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.module = torch_twin(build_model(name, num_classes)).to(memory_format=self.format)

    def gradient_bytes(self):
        return 0  # before the first backward

    def set_batch(self, N, H, W):
        images, target = draw_batch(N, H, W, self.num_classes)
        self.images = self.torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(
            memory_format=self.format)
        self.target = self.torch.from_numpy(target.astype(np.int64))

    def train_step(self):
        if self.optimizer is None:
            self.optimizer = self.torch.optim.AdamW(self.module.train().parameters(), lr=1e-3)
        self.optimizer.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.module(self.images), self.target,
                                                      ignore_index=255)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def infer(self):
        self.module.eval()
        with self.torch.inference_mode():
            logits = self.module(self.images)
        self.module.train()
        return logits.permute(0, 2, 3, 1).numpy()
