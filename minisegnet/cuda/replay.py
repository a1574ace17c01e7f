"""A sequence of launches, written once in Python and then repeated without it.

A training step on a GPU is some hundred small kernels, and Python needs longer to launch many of
them than they take. So the step is run as written once, which compiles the kernels and fills the
pool of memory; the second time its launches are captured as a CUDA graph, and from then on the
whole step is one call. The same launches then work on the same memory: whatever changes from step
to step, the batch, the learning rate, the random numbers, has to lie in device memory that is
written from outside, or by the launches themselves.

On the emulated device the launches are recorded and repeated one by one, to the same effect.
"""

import weakref

from minisegnet.cuda.launch import record_launches


class Replay:
    """Calls `function()` the first time, and afterwards repeats what it launched.

    `xp` is the device's array module. `function` may use what it likes of the host, which happens
    in the first two calls only. `reason` says why there is no graph, if capturing failed: then
    every call runs the function, correct and slower.
    """

    def __init__(self, xp, function):
        self.xp, self.function = xp, function
        self.reason = None
        self._repeat = None  # without arguments
        self._calls = 0
        if hasattr(xp, "cuda"):
            # Its blocks are handed out to this function alone: a graph goes on using their
            # addresses after Python has let go of the arrays.
            self._pool = xp.cuda.MemoryPool()
            weakref.finalize(self, _give_back, xp, self._pool).atexit = False

    def __call__(self):
        """Do it all once more."""
        self._calls += 1
        if self._repeat is not None:
            self._repeat()
        elif hasattr(self.xp, "cuda"):
            with self.xp.cuda.using_allocator(self._pool.malloc):
                if self._calls == 2 and self._capture():
                    self._repeat()
                else:
                    self.function()
        elif self._calls == 1:
            self.function()
        else:
            self._record()

    @property
    def bytes_held(self):
        """Memory that the function's temporaries take on a GPU."""
        return self._pool.total_bytes() if hasattr(self.xp, "cuda") else 0

    def _record(self):
        """Run the function on the emulated device, and keep its launches."""
        with record_launches() as launches:
            self.function()

        def repeat():
            for launch in launches:
                launch()

        self._repeat = repeat

    def _capture(self):
        """Capture the function's launches as a graph; return whether that worked."""
        stream = self.xp.cuda.get_current_stream()
        errors = []  # the first one says what was wrong; the next, that the capture is void
        try:
            # What the pool has no block for may be allocated meanwhile: CuPy captures in the
            # "relaxed" mode, which allows it.
            stream.begin_capture()
            try:
                self.function()
            except Exception as error:  # whatever the driver or a library does not allow
                errors.append(error)
            finally:
                graph = stream.end_capture()
        except Exception as error:
            errors.append(error)
        if errors:
            self.reason = f"{type(errors[0]).__name__}: {errors[0]}".splitlines()[0]
            return False
        self._repeat = graph.launch
        return True


_spent = []  # pools of graphs that are gone


def _give_back(xp, pool):
    """Free what a graph worked in: CuPy's pools keep their blocks when they go themselves."""
    _spent.append(pool)
    stream = xp.cuda.get_current_stream()
    # Python tidies up whenever it likes, also in the middle of another capture.
    if not stream.is_capturing():
        stream.synchronize()
        while _spent:
            _spent.pop().free_all_blocks()
