"""What a floor plan is drawn with: floor textures, openings and furniture, as tones.

A tone is the share of paper that shows through: 0 is pure ink, 1 is blank paper. Nothing here
knows colours, classes or random numbers.
"""

from functools import lru_cache

import numpy as np

# ---------------------------------------------------------------- floor textures


def planks(height, width, phase, turned):
    """Wood planks: long boards 5 px wide with staggered ends. Returns a tone (H, W)."""
    if turned:
        return planks(width, height, phase, False).T
    y, x = np.ogrid[phase:phase + height, phase:phase + width]
    row = y // 5
    seam = y % 5 == 0
    end = (x + 9 * row) % 23 == 0
    # Neighbouring boards differ a little, as sawn wood does.
    board = 0.12 * ((row * 7 + (x + 9 * row) // 23 * 3) % 4) / 3
    return np.where(seam | end, 0.25, 1.0 - board)


def checkers(height, width, phase, turned):
    """Kitchen tiles: a chessboard of 4 px squares. Returns a tone (H, W)."""
    y, x = np.ogrid[phase:phase + height, phase + 4 * turned:phase + 4 * turned + width]
    return np.where((y // 4 + x // 4) % 2 == 0, 0.45, 1.0)


def dots(height, width, phase, turned):
    """Bathroom floor: 2 px dots, 5 px apart, rows staggered. Returns a tone (H, W)."""
    if turned:
        return dots(width, height, phase, False).T
    y, x = np.ogrid[phase:phase + height, phase:phase + width]
    stagger = 2 * (y // 5 % 2)
    return np.where((y % 5 < 2) & ((x + stagger) % 5 < 2), 0.1, 1.0) + 0 * (x + y)


def hatching(height, width, phase, turned):
    """Bedroom carpet: diagonal strokes, 5 px apart. Returns a tone (H, W)."""
    y, x = np.ogrid[phase:phase + height, phase:phase + width]
    across = (x + y) if turned else (x - y)
    return np.array([0.2, 0.75, 1.0, 1.0, 0.75])[across % 5]


# ---------------------------------------------------------------- openings and trees


def window(length, wall):
    """A window in a wall `wall` px thick: frame, glass, frame. Returns a tone (wall, length)."""
    y = np.arange(wall)[:, None]
    x = np.arange(length)[None, :]
    frame = (y == 0) | (y == wall - 1) | (x == 0) | (x == length - 1)
    glass = abs(y - (wall - 1) / 2) < 0.75
    return np.where(frame, 0.05, np.where(glass, 0.3, 1.0))


def door(length, wall):
    """A door hinged at the top left that opens downwards, out of the wall.

    Returns tone (wall + length, length) and the pixels it covers, bool: the gap in the wall and
    the quarter disc that the leaf sweeps.
    """
    y = np.arange(wall + length)[:, None] - wall + 0.5
    x = np.arange(length)[None, :] + 0.5
    reach = np.hypot(x, np.maximum(y, 0))
    leaf = (x < 1.5) & (y > 0)
    arc = (abs(reach - length + 0.75) < 0.75) & (y > 0)
    return np.where(leaf | arc, 0.1, 1.0), (y < 0) | (reach < length)


def tree(size):
    """A tree seen from above: a ring with spokes. Returns a tone (size, size)."""
    centre = np.arange(size) - (size - 1) / 2
    y, x = centre[:, None], centre[None, :]
    radius = np.hypot(y, x)
    ring = abs(radius - size / 2 + 1) < 0.7
    spokes = (np.cos(7 * np.arctan2(y, x)) > 0.8) & (radius < size / 2 - 1)
    return np.where(ring, 0.45, np.where(spokes, 0.7, 1.0))


# ---------------------------------------------------------------- fixtures and furniture
# Coordinates run from -1 to 1 over the symbol's square; v = -1 is the side at the wall.
# `distance` is negative inside a shape. `cover` turns it into a share of the pixel.


def _disc(u, v, radius_u, radius_v):
    """Signed distance (roughly) to an ellipse at the origin."""
    return (np.hypot(u / radius_u, v / radius_v) - 1) * min(radius_u, radius_v)


def _box(u, v, half_u, half_v):
    """Signed distance to a rectangle at the origin."""
    return np.maximum(abs(u) - half_u, abs(v) - half_v)


def _toilet(u, v, ink):
    tank, bowl = _box(u, v + 0.7, 0.75, 0.28), _disc(u, v - 0.25, 0.66, 0.74)
    hole = _disc(u, v - 0.3, 0.36, 0.44)
    return np.minimum(tank, bowl), ink(tank) + ink(bowl) + ink(hole, fill=True)


def _sink(u, v, ink):
    rim, basin = _box(u, v, 0.98, 0.8), _disc(u, v - 0.12, 0.72, 0.5)
    drain, tap = _disc(u, v - 0.12, 0.14, 0.14), _box(u, v + 0.58, 0.1, 0.22)
    return rim, ink(rim) + ink(basin) + ink(drain, fill=True) + ink(tap, fill=True)


def _stove(u, v, ink):
    top = _box(u, v, 0.98, 0.98)
    plate = _disc(abs(u) - 0.45, abs(v) - 0.45, 0.3, 0.3)
    return top, ink(top) + ink(plate, fill=True)


def _bed(u, v, ink):
    frame = _box(u, v, 0.8, 0.98)
    pillow, blanket = _box(u, v + 0.66, 0.5, 0.18), _box(u, v - 0.4, 0.8, 0.58)
    return frame, ink(frame) + ink(pillow) + 0.6 * ink(blanket, fill=True)


def _table(u, v, ink):
    top = _disc(u, v, 0.95, 0.95)
    return top, ink(top) + ink(_disc(u, v, 0.6, 0.6))


def _wardrobe(u, v, ink):
    box = _box(u, v, 0.98, 0.7)
    cross = abs(abs(u) / 0.98 - abs(v) / 0.7) - 0.1
    return box, ink(box) + ink(cross, fill=True)


def _cupboard(u, v, ink):
    box, doors = _box(u, v, 0.9, 0.9), _box(u, v, 0.05, 0.9)
    return box, ink(box) + ink(doors, fill=True) + ink(_box(u, v + 0.5, 0.9, 0.04), fill=True)


_SYMBOLS = {
    "toilet": _toilet, "sink": _sink, "stove": _stove, "bed": _bed,
    "table": _table, "wardrobe": _wardrobe, "cupboard": _cupboard,
}


@lru_cache(maxsize=256)
def symbol(kind, size, turns):
    """Draw a fixture or piece of furniture in a square of `size` px, turned by quarter `turns`.

    Returns tone (size, size) float64 and the pixels it covers (size, size) bool, read-only.
    """
    centre = (np.arange(size) + 0.5) * 2 / size - 1
    u, v = centre[None, :], centre[:, None]
    pixel = 2 / size

    def ink(distance, fill=False):
        # An outline is one pixel wide and lies inside the shape.
        depth = -distance / pixel
        return np.clip(depth, 0, 1) if fill else np.clip(1 - abs(depth - 0.5), 0, 1)

    outline, strokes = _SYMBOLS[kind](u, v, ink)
    tone = np.rot90(1 - np.clip(strokes, 0, 1), turns).copy()
    inside = np.rot90(outline < 0, turns).copy()
    tone.setflags(write=False)
    inside.setflags(write=False)
    return tone, inside
