"""What every op refuses at its door."""


def check_dtype(op, *arrays):
    """Raise TypeError unless all arrays are float32, or all float64: nothing is converted.

    One float64 array among float32 ones would silently double the memory of all that follows.
    """
    found = {str(array.dtype) for array in arrays}
    if found != {"float32"} and found != {"float64"}:
        raise TypeError(f"{op} takes arrays of one dtype, float32 or float64, not "
                        f"{' and '.join(str(array.dtype) for array in arrays)}; use x.astype(...)")


def check_upstream(op, dout, expected):
    """Raise ValueError unless `dout` has the shape of the forward's output."""
    if dout.shape != tuple(expected):
        raise ValueError(f"{op} backward takes dout of the output's shape {tuple(expected)}, "
                         f"not {dout.shape}")


def choose(implementation, **choices):
    """Return the choice of that name; ValueError names all there are."""
    if implementation not in choices:
        raise ValueError(f"implementation {implementation!r} is not one of {', '.join(choices)}")
    return choices[implementation]
