"""The loss scale of mixed precision: keeps small gradients from vanishing in float16.

float16 has nothing between 0 and 6e-8, and a gradient of the mean over a million pixels is
smaller. So the loss is multiplied by a large number, and with it every gradient, which is divided
by it again in float32, at the update. Too large a number makes a gradient infinite instead: that
step is skipped, and the number halved. After a long time without, it is doubled.

Source: Micikevicius et al., "Mixed precision training" (2018), section 3.2; the numbers are those
of torch.amp.GradScaler. bfloat16 has the exponents of float32, and needs none of this.
"""

import math

import numpy as np

from minisegnet.backend import asnumpy
from minisegnet.cuda.launch import KernelFile
from minisegnet.errors import UserError

START = 2.0 ** 16
GROWTH, BACKOFF = 2.0, 0.5
GROWTH_INTERVAL = 2000  # steps in a row without one skipped
LARGEST = float(np.finfo(np.float32).max)
LEAST = 1.0  # below it a loss scale makes small what it is there to make large
# Of a run: all of them may be skipped, while the scale comes down from its start.
FIRST_STEPS = round(math.log2(START / LEAST))
CURE = "use --amp bf16 or off, a lower --lr, or smaller --class-weights"

KERNELS = KernelFile(__file__)


def loss_scale_update(scale, good_steps, skipped, norm, *, growth=GROWTH, backoff=BACKOFF,
                      growth_interval=GROWTH_INTERVAL):
    """Return (scale, good_steps, skipped) after a step whose gradient has this `norm`.

    The definition, to read beside loss_scale.cu. `good_steps` are those in a row since the scale
    was changed; a scale that would be infinite stays as it is.
    """
    if not math.isfinite(norm):
        return scale * backoff, 0, skipped + 1
    if good_steps + 1 < growth_interval:
        return scale, good_steps + 1, skipped
    larger = scale * growth
    return larger if larger <= LARGEST else scale, 0, skipped


class LossScale:
    """A loss scale that lives on a device, as everything does that changes from step to step.

    `scale` (1,) float32 is what the loss's backward multiplies by and the optimizer divides by;
    `counts` (2,) int32 are the good steps in a row, and all steps skipped. `xp` is the device's
    array module.
    """

    def __init__(self, xp, *, start=START, growth=GROWTH, backoff=BACKOFF,
                 growth_interval=GROWTH_INTERVAL):
        self.growth, self.backoff, self.growth_interval = growth, backoff, growth_interval
        self.scale = xp.asarray(np.array([start], np.float32))
        self.counts = xp.zeros((2,), np.int32)

    def update(self, norm, norm_sum):
        """Go by the `norm` (1,) of the step's gradient; add it to `norm_sum` (1,) if finite."""
        KERNELS.launch("loss_scale_update_kernel", (1,), (1,), norm=norm, scale=self.scale,
                       counts=self.counts, norm_sum=norm_sum, growth=self.growth,
                       backoff=self.backoff, growth_interval=self.growth_interval)

    @property
    def value(self):
        """The scale as a number; waits for the device."""
        return asnumpy(self.scale).item()

    def check(self, step):
        """Raise UserError if the scale has fallen below 1 by `step` of the run; waits."""
        if self.value < LEAST:
            raise UserError(f"the loss scale fell to {self.value:g} by step {step}: the gradients "
                            f"do not fit into float16; {CURE}")

    def check_epoch(self, totals, step):
        """Raise UserError if an epoch that ends before `step` of the run did nothing.

        `totals` are its "steps" and "skipped_steps". In a run's first steps it may be chance.
        """
        if totals.get("skipped_steps", 0) == totals["steps"] and step > FIRST_STEPS:
            raise UserError(f"all steps of an epoch were skipped, {totals['steps']} before step "
                            f"{step}: their gradients did not fit into float16; {CURE}")

    def state_dict(self):
        """{"scale", "good_steps", "skipped"}, numbers; waits for the device."""
        good_steps, skipped = asnumpy(self.counts).tolist()
        return {"scale": self.value, "good_steps": good_steps, "skipped": skipped}

    def load_state_dict(self, state):
        """Go on from what `state_dict` told, in the same memory."""
        self.scale.fill(state["scale"])
        for i, name in enumerate(("good_steps", "skipped")):
            self.counts[i:i + 1] = state[name]


def check_statistics(model):
    """Raise UserError if an activation was beyond float16: batch norms remember it; waits.

    The gradient shows it too, but there it looks as if the loss scale were too large.
    """
    for name, buffer in model.named_buffers():
        if not np.isfinite(asnumpy(buffer)).all():
            raise UserError(f"{name} is not finite: what it is the average of went beyond "
                            f"float16, which ends at 65504; {CURE}")
