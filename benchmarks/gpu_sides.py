"""The two sides of benchmarks/step_gpu.py: one training step, ours and torch's, on one device.

A side has `step()`, which enqueues a step, `wait()`, `time(function)` in ms on the device, and
`peak_bytes()`. Both begin with the same weights and see the same batch.
"""

import time

import numpy as np
import torch
from workloads import draw_batch

from minisegnet.backend import asnumpy
from minisegnet.cuda import emulated_device
from minisegnet.cuda.launch import record_launches
from minisegnet.datasets.loader import Batch
from minisegnet.layers import Dropout
from minisegnet.losses import Criterion
from minisegnet.models import build_model
from minisegnet.models.torch_layout import to_torch_layout, torch_names
from minisegnet.optim import AdamW
from minisegnet.training.device_step import DeviceStep
from minisegnet.verify.torch_models import torch_twin

CLIP_NORM = 1.0


def build(name, num_classes):
    """Return a model of ours without dropout, whose random numbers would differ."""
    model = build_model(name, num_classes, seed=0)
    for _, layer in model.named_layers():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    return model


class OurSide:
    """MiniSegNet: the step as `--device cuda` does it, as a CUDA graph from the second step on."""

    def __init__(self, xp, name, sizes, *, replay=True):
        N, H, W, K = sizes
        self.xp = xp
        if xp is not emulated_device:
            self.wait()
            xp.get_default_memory_pool().free_all_blocks()
        self.model = build(name, K).to(xp).train()
        self.optimizer = AdamW(self.model, lr=1e-3)
        self.runner = DeviceStep(self.model, self.optimizer, clip_norm=CLIP_NORM, replay=replay)
        self.criterion = Criterion("ce")
        images, target = draw_batch(N, H, W, K)
        self.batches = [Batch(images, target, ())]

    def step(self):
        """Enqueue a step on a batch that is on the device already."""
        if not self.runner._prepared:
            self.runner(self.batches, self.criterion)
        else:
            (_, run), = self.runner._prepared.values()
            run()

    def wait(self):
        if self.xp is not emulated_device:
            self.xp.cuda.get_current_stream().synchronize()

    def time(self, function):
        if self.xp is emulated_device:
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        start.record()
        function()
        end.record()
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(start, end)

    def peak_bytes(self):
        """All the memory that the pools have ever taken from the device."""
        if self.xp is emulated_device:
            return None
        held = sum(run.bytes_held for _, run in self.runner._prepared.values()
                   if hasattr(run, "bytes_held"))
        return self.xp.get_default_memory_pool().total_bytes() + held

    def launches(self):
        """Return the launches of one step, each of which can be repeated alone."""
        (uploader, _), = self.runner._prepared.values()
        with record_launches() as found:
            self.runner._enqueue(uploader.arrays, self.criterion)
        return found

    def repeated(self, launch, times):
        """Return a function that repeats a launch: one graph, for Python would be too slow."""
        def several():
            for _ in range(times):
                launch()

        if self.xp is emulated_device:
            return several
        stream = self.xp.cuda.get_current_stream()
        launch()  # whatever is loaded at the first time
        stream.begin_capture()
        try:
            several()
        finally:
            graph = stream.end_capture()
        return graph.launch

    def gradients(self, dtype):
        """Return {torch's name: gradient in torch's layout} of one step in `dtype`."""
        model, names = self.model.astype(dtype), torch_names(self.model)
        images = self.xp.asarray(self.batches[0].images.astype(dtype))
        coarse = model.forward_coarse(images)
        _, cache = self.criterion.forward_upsampled(coarse, self.xp.asarray(
            self.batches[0].target))
        model.backward_coarse(self.criterion.backward_upsampled(1.0, cache))
        return {f"{names[name]}.{key}": to_torch_layout(layer, key, asnumpy(gradient))
                for name, layer in model.named_layers() for key, gradient in layer.grads.items()}


class TorchSide:
    """The twin in PyTorch, with everything on that makes eager training fast."""

    def __init__(self, device, name, sizes, *, channels_last=False, compiled=False,
                 dtype=torch.float32):
        N, H, W, K = sizes
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.device = device
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = build(name, K)
        self.module = torch_twin(self.model, dropout=0.0).to(device, dtype).to(
            memory_format=memory_format).train()
        self.parameters = list(self.module.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, fused=device == "cuda")
        self.run = torch.compile(self.module) if compiled else self.module
        images, target = draw_batch(N, H, W, K)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(
            device, dtype).to(memory_format=memory_format)
        self.target = torch.from_numpy(target.astype(np.int64)).to(device)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()

    def loss(self):
        return torch.nn.functional.cross_entropy(self.run(self.images), self.target,
                                                 ignore_index=255)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def time(self, function):
        if self.device == "cpu":
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def peak_bytes(self):
        """Peak of what tensors held: less than what torch's pool had taken."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def gradients(self):
        """Return {name: gradient} of one step."""
        self.loss().backward()
        return {name: parameter.grad.cpu().numpy()
                for name, parameter in self.module.named_parameters()}
