"""The classes that there are: of those that are declared, the ones that occur in the masks."""

from minisegnet.datasets.class_map import ClassMap
from minisegnet.datasets.palettes import palette_for

MOST_CLASSES = 255  # ids of one byte, one of which means ignored


def speaks_of(declared, values):
    """Whether a `ClassMap` of ids, or of colours, meets any values of its kind."""
    return any(isinstance(value, tuple) == declared.is_rgb for value in values)


def occurring_classes(declared, values):
    """Return the `ClassMap` of what occurs, and why there is none (None, and why).

    `values` are those in the masks, ids or colours; `declared` is the `ClassMap` they should
    follow, or None. Classes are the declared ones that occur; the rest is excluded, each with its
    reason. Where nothing is declared, or ids for masks of colours, ids become "class 7" (or
    colours "#00d8fc", where there are no ids); 255 is ignored then, unless 0 is the only other.
    """
    values = set(values)
    if declared is not None and speaks_of(declared, values):
        there = [k for k, value in enumerate(declared.values) if value in values]
        names = [declared.names[k] for k in there]
        kept = [declared.values[k] for k in there]
        palette = declared.palette[there]
        excluded = dict(declared.excluded)
        for name, value in zip(declared.names, declared.values):
            if value not in values:
                excluded[value] = f"absent: {name}"
        excluded |= {value: "undefined" for value in sorted(
            value for value in values - set(kept) - set(excluded)
            if isinstance(value, tuple) == declared.is_rgb)}
    elif values == {0, 255}:
        names, kept, excluded = ["background", "object"], [0, 255], {}
        palette = palette_for(2)
    elif all(isinstance(value, tuple) for value in values):
        kept, excluded = sorted(values), {}
        names = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in kept]
        palette = kept
    else:
        ids = {value for value in values if not isinstance(value, tuple)}
        kept, excluded = sorted(ids - {255}), {255: "ignored"}
        names, palette = [f"class {value}" for value in kept], palette_for(len(kept))
    if len(names) < 2:
        return None, "only one class occurs" if names else "no class occurs"
    if len(names) > MOST_CLASSES:
        return None, f"{len(names)} values are too many to be classes"
    return ClassMap(names=tuple(names), values=tuple(kept), palette=palette,
                    excluded=excluded), None
