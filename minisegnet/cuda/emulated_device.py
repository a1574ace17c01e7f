"""A device without a GPU: arrays that only kernels can work on, and kernels run by the emulator.

It stands in for CuPy in tests, `to_device(model, emulated_device)`, and is stricter: an array here
has no arithmetic, so that nothing of a training step can escape the launches that are counted,
recorded and compared; and whoever waits for a number is counted, `synchronisations`. Filling and
copying on the device are launches too.
"""

import numpy as np

from minisegnet.cuda.launch import Launch, perform

synchronisations = 0  # how often numbers were read back


class Flags:
    """What launches ask of an array."""

    def __init__(self, host):
        self.c_contiguous = host.flags.c_contiguous


class DeviceArray:
    """Memory of the emulated device, a view of `host`; shapes and slices as in NumPy."""

    def __init__(self, host):
        self.host = host

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    flags = property(lambda self: Flags(self.host))

    def __len__(self):
        return len(self.host)

    def __getitem__(self, key):
        return DeviceArray(self.host[_slice(key)])

    def __setitem__(self, key, value):
        key, value, host = _slice(key), _host(value), self.host

        def run():
            host[key] = value

        perform(Launch("copy", run, 2 * getattr(value, "nbytes", self.itemsize)))

    def reshape(self, *shape):
        """The same memory in another shape."""
        view = self.host.reshape(*shape)
        if view.size and not np.may_share_memory(view, self.host):
            raise ValueError(f"{self.shape} with gaps is {shape} only as a copy")
        return DeviceArray(view)

    def ravel(self):
        """The same memory as one axis."""
        return self.reshape(-1)

    def fill(self, value):
        """Set every element."""
        perform(Launch("fill", lambda: self.host.fill(value), self.nbytes))

    def copy(self):
        """A copy on the device."""
        return self.astype(self.dtype)

    def astype(self, dtype, copy=True):
        """A copy of another dtype."""
        if not copy and self.dtype == dtype:
            return self
        copy = empty(self.shape, dtype)
        copy[...] = self
        return copy

    def get(self):
        """A copy as a NumPy array: waits for the device."""
        global synchronisations
        synchronisations += 1
        return self.host.copy()

    def set(self, array):
        """Copy a NumPy array of the same shape and dtype to the device."""
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype:
            raise TypeError(f"set takes a NumPy array of {self.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"set takes shape {self.shape}, not {array.shape}")
        self.host[...] = array

    def __array__(self, *args, **kwargs):
        raise TypeError("no implicit conversion to a NumPy array; use asnumpy(...)")

    def __bool__(self):
        raise TypeError("the truth of a device array would wait for the device; use asnumpy(...)")

    __float__ = __int__ = __index__ = __iter__ = __bool__

    def __eq__(self, other):
        raise TypeError("a device array compares nothing; that is a kernel's work")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = object.__hash__


def _slice(key):
    """Return a key that gives a view, never a number; TypeError for one that would gather."""
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is ... or isinstance(k, (int, np.integer, slice)) for k in keys):
        raise TypeError(f"a device array takes whole numbers and slices, not {key!r}")
    return keys if ... in keys else (*keys, ...)


def _host(value):
    if isinstance(value, DeviceArray):
        return value.host
    if np.ndim(value):
        raise TypeError("a device array takes device arrays; use asarray(...)")
    return value


def _aligned(shape, dtype, content=None):
    """Return a host array whose memory starts at a multiple of 256 bytes, as cudaMalloc's."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.empty(count * dtype.itemsize + 256, np.uint8)
    start = -raw.ctypes.data % 256
    array = raw[start:start + count * dtype.itemsize].view(dtype).reshape(shape)
    if content is None:
        raw.fill(0xFF)  # NaN: what was never written shows
    else:
        array[...] = content
    return array


def empty(shape, dtype=np.float64):
    """An array full of NaN."""
    return DeviceArray(_aligned(shape, dtype))


def zeros(shape, dtype=np.float64):
    """An array full of 0."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def empty_like(array):
    """An array of the shape and dtype of `array`, full of NaN."""
    return empty(array.shape, array.dtype)


def zeros_like(array):
    """An array of the shape and dtype of `array`, full of 0."""
    return zeros(array.shape, array.dtype)


def asarray(array, dtype=None):
    """`array` itself if it is on the device already, or a copy of a NumPy array there."""
    if isinstance(array, DeviceArray):
        return array if dtype in (None, array.dtype) else array.astype(dtype)
    array = np.asarray(array)
    return DeviceArray(_aligned(array.shape, dtype or array.dtype, array))


def ascontiguousarray(array):
    """`array` itself, or a copy without gaps."""
    if not isinstance(array, DeviceArray):
        raise TypeError(f"{type(array).__name__} is not on the device; use asarray(...)")
    return array if array.flags.c_contiguous else array.copy()
