"""Batches on their way to a GPU while it computes.

A copy runs beside the kernels only from pinned memory, which the system may not move, and on a
stream of its own. Two sets of buffers take turns: one is copied to while the other is in use.
"""

import numpy as np


class Uploader:
    """Copies lists of arrays of fixed shapes to a device, one list at a time.

    `arrays` are the device's, allocated once and overwritten by every `upload`; `xp` is the
    device's array module.
    """

    def __init__(self, xp, hosts):
        self.arrays = [xp.empty(host.shape, host.dtype) for host in hosts]
        self._turn = 0
        if not hasattr(xp, "cuda"):
            self._lanes = None
            return
        self._xp = xp
        self._stream = xp.cuda.Stream(non_blocking=True)
        self._lanes = [_Lane(xp, hosts) for _ in range(2)]

    def upload(self, hosts):
        """Put `hosts` where later work of the current stream finds them, in `arrays`."""
        if self._lanes is None:
            for array, host in zip(self.arrays, hosts):
                array.set(host)
            return
        lane, self._turn = self._lanes[self._turn], 1 - self._turn
        lane.used.synchronize()  # of the time before last: over long ago, unless the GPU is behind
        for pinned, host in zip(lane.pinned, hosts):
            pinned[...] = host
        for staged, pinned in zip(lane.staged, lane.pinned):
            staged.set(pinned, self._stream)
        self._stream.record(lane.arrived)
        current = self._xp.cuda.get_current_stream()
        current.wait_event(lane.arrived)
        for array, staged in zip(self.arrays, lane.staged):
            array[...] = staged
        lane.used.record(current)


class _Lane:
    """One set of buffers: pinned on the host, staged on the device."""

    def __init__(self, xp, hosts):
        self.pinned = [_pinned(xp, host) for host in hosts]
        self.staged = [xp.empty(host.shape, host.dtype) for host in hosts]
        self.arrived = xp.cuda.Event(disable_timing=True)  # when `staged` has been written
        self.used = xp.cuda.Event(disable_timing=True)  # when the staged copy has been read
        self.used.record(xp.cuda.get_current_stream())


def _pinned(xp, host):
    memory = xp.cuda.alloc_pinned_memory(host.nbytes)
    return np.frombuffer(memory, host.dtype, host.size).reshape(host.shape)
