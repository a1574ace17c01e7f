"""Generated floor plans: labelled pictures in which almost everything is background.

Rooms differ by floor texture and fixtures by their symbol; colour, light and contrast are drawn
anew for every plan and every room, so that colour says next to nothing about the class.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.datasets import drawing
from minisegnet.datasets.class_map import class_map_for, plain_map
from minisegnet.datasets.palettes import FLOORPLAN_PALETTE
from minisegnet.datasets.sample import Sample
from minisegnet.imbalance.weighting import ClassStatistics

CLASS_NAMES = (
    "background", "wall", "door", "window", "living room", "kitchen", "bathroom", "bedroom",
    "toilet", "sink", "stove", "bed",
)
BACKGROUND, WALL, DOOR, WINDOW, LIVING, KITCHEN, BATHROOM, BEDROOM = range(8)
TOILET, SINK, STOVE, BED = RAREST = range(8, 12)

_TEXTURES = {
    LIVING: drawing.planks,
    KITCHEN: drawing.checkers,
    BATHROOM: drawing.dots,
    BEDROOM: drawing.hatching,
}
# Fixtures: their label and the rooms where they stand, in the order in which they are placed.
_FIXTURES = {
    "stove": (STOVE, (KITCHEN,)),
    "toilet": (TOILET, (BATHROOM,)),
    "bed": (BED, (BEDROOM,)),
    "sink": (SINK, (BATHROOM, KITCHEN)),
}
_FURNITURE = ("table", "wardrobe", "cupboard")  # as large as a fixture, but part of the room
_SPLITS = {"train": 0, "val": 1, "test": 2}
_SIZES = {"train": 640, "val": 256, "trainval": 640 + 256, "test": 256}  # plans
_MAX_COPIES = 4


class Rect(NamedTuple):
    """Pixels [top, bottom) x [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self):
        return self.bottom - self.top

    @property
    def width(self):
        return self.right - self.left

    @property
    def slices(self):
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Sheet(NamedTuple):
    """A plan while it is drawn."""

    mask: np.ndarray  # (H, W) uint8
    tone: np.ndarray  # (H, W) float64, 0 ink to 1 paper
    tint: np.ndarray  # (H, W, 3) float64, colour of the paper
    taken: np.ndarray  # (H, W) bool, where an opening, a fixture or furniture is


class FloorPlans:
    """Floor plans drawn on demand and kept in memory: 12 classes, most pixels background.

    `size` is (H, W) in px; `length` the number of plans (default 640 to train, 256 otherwise).
    Split trainval is the 640 plans of train, then those of val.
    The imbalance dial:

    - `background_share`: share of the picture outside the house, 0.4 to 0.85.
    - `fixture_size`: side of a fixture in px, 6 to 24; each is drawn up to 1 px smaller or larger.
    - `rare_image_share`: share of the plans in which a kind of fixture occurs, above 0 up to 1.
    - `rare_share`: share of all pixels that each kind of fixture takes; None means one fixture
      of the kind in every plan that has it. A larger share puts up to four copies in a plan.
      (A room with no wall free for a fixture goes without, mostly above 14 px.)

    - `furniture`: pieces of furniture in a plan, on average; they look like fixtures at a glance
      but keep their room's label, so that an outline alone does not give a fixture away.

    `wall` is the thickness of walls in px. The same arguments and index give the same bytes;
    train, val and test never share a plan. `classes`, a `ClassMap` or the path of one, may leave
    classes out or reorder them. Raises ValueError if a dial cannot be met.
    """

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)
    palette = FLOORPLAN_PALETTE

    def __init__(self, split="train", *, length=None, size=(128, 160), seed=0,
                 background_share=0.72, fixture_size=12, rare_image_share=0.04, rare_share=None,
                 furniture=2.0, wall=6, ignore_index=None, classes=None):
        if split not in _SIZES:
            raise ValueError(f"split {split!r} is not one of {', '.join(_SIZES)}")
        if min(size) < 64:
            raise ValueError(f"size {size} is too small for four rooms; choose 64 x 64 px or more")
        if not 0.4 <= background_share <= 0.85:
            raise ValueError(f"background_share {background_share} is outside 0.4 to 0.85")
        if not 6 <= fixture_size <= 24:
            raise ValueError(f"fixture_size {fixture_size} px is outside 6 to 24")
        if not 0 < rare_image_share <= 1:
            raise ValueError(f"rare_image_share {rare_image_share} is outside 0 to 1")
        self.split, self.size, self.seed = split, tuple(size), seed
        self.background_share, self.fixture_size = background_share, fixture_size
        self.rare_image_share, self.furniture, self.wall = rare_image_share, furniture, wall
        self.class_map = class_map_for(None, classes, ignore_index=ignore_index) or plain_map(
            CLASS_NAMES, palette=FLOORPLAN_PALETTE, ignore_index=ignore_index)
        self.class_names, self.num_classes = self.class_map.names, self.class_map.num_classes
        self.palette, self.ignore_index = self.class_map.palette, self.class_map.ignore_index
        self.mask_values, self.void = self.class_map.values, self.class_map.void
        self._length = _SIZES[split] if length is None else length
        self._copies = {kind: self._copies_of(kind, rare_share) for kind in _FIXTURES}
        self._cache = {}

    def _copies_of(self, kind, rare_share):
        """Return how many fixtures of a kind a plan that has it shows, on average."""
        if rare_share is None:
            return 1.0
        area = drawing.symbol(kind, self.fixture_size, 0)[1].sum()
        per_copy = self.rare_image_share * area / (self.size[0] * self.size[1])
        copies = rare_share / per_copy
        if not 1 <= copies <= _MAX_COPIES:
            raise ValueError(
                f"rare_share {rare_share:g} would need {copies:.2f} copies of the {kind} in each "
                f"plan that has one; with fixture_size {self.fixture_size} px and "
                f"rare_image_share {self.rare_image_share:g} choose {per_copy:.5f} to "
                f"{_MAX_COPIES * per_copy:.5f}, or change one of those two"
            )
        return copies

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if not 0 <= index < self._length:
            raise IndexError(f"plan {index} of {self._length}")
        if index not in self._cache:
            split, k = self.split, index
            if split == "trainval":
                split, k = ("train", k) if k < _SIZES["train"] else ("val", k - _SIZES["train"])
            rng = np.random.default_rng([self.seed, _SPLITS[split], k])
            image, mask = self._draw(rng)
            mask = self.class_map.to_ids(mask, f"plan {index}")
            image.setflags(write=False)
            mask.setflags(write=False)
            self._cache[index] = Sample(image, mask, f"{split}_{k:04d}")
        return self._cache[index]

    def check(self, num_workers=0):
        """Return the `ClassStatistics` of all plans; only a class map can be wrong."""
        self.sizes = {self.size}
        masks = (self[i].mask for i in range(len(self)))
        return ClassStatistics.from_masks(masks, self.num_classes, self.ignore_index)

    def _draw(self, rng):
        """Return image (H, W, 3) uint8 and mask (H, W) uint8 of one plan."""
        H, W = self.size
        sheet = Sheet(
            mask=np.full((H, W), BACKGROUND, np.uint8),
            tone=np.ones((H, W)),
            tint=np.empty((H, W, 3)),
            taken=np.zeros((H, W), bool),
        )
        # Every region has its own tint of the paper, whatever its class.
        paper = rng.uniform(0.75, 0.95) * _pastel(rng, 0.08)
        sheet.tint[:] = paper * _pastel(rng, 0.12)
        house = _place_house(rng, H, W, 1 - self.background_share)
        _draw_site(rng, sheet.tone, house)

        sheet.mask[house.slices] = WALL
        sheet.tone[house.slices] = rng.uniform(0, 0.25)
        rooms = _split_into_rooms(rng, house, self.wall)
        kinds = rng.permutation(list(_TEXTURES))
        for room, kind in zip(rooms, kinds):
            sheet.mask[room.slices] = kind
            sheet.tint[room.slices] = paper * _pastel(rng, 0.15)
            floor = _TEXTURES[kind](room.height, room.width, *rng.integers(0, (40, 2)))
            sheet.tone[room.slices] = 1 - rng.uniform(0.6, 1.0) * (1 - floor)
        for fixture, (label, hosts) in _FIXTURES.items():
            if rng.random() < self.rare_image_share:
                floors = [room for room, kind in zip(rooms, kinds) if kind in hosts]
                for _ in range(int(self._copies[fixture] + rng.random())):
                    self._place_symbol(rng, sheet, floors, fixture, label)
        # After the fixtures, so that no door opens onto one.
        _draw_openings(rng, sheet, house, rooms, self.wall)
        for _ in range(rng.poisson(self.furniture)):
            k = rng.integers(len(rooms))
            kind = _FURNITURE[rng.integers(len(_FURNITURE))]
            # Furniture keeps the label of the floor it stands on.
            self._place_symbol(rng, sheet, [rooms[k]], kind, kinds[k])
        return _photograph(rng, sheet.tone, sheet.tint), sheet.mask

    def _place_symbol(self, rng, sheet, floors, kind, label):
        """Draw a symbol with its back to a wall of one of the `floors`, where one is free."""
        size = self.fixture_size + int(rng.integers(-1, 2))
        slots = []  # (top, left, turns)
        for room in floors:
            top, left = room.top + 1, room.left + 1
            bottom, right = room.bottom - size - 1, room.right - size - 1
            if bottom >= top and right >= left:
                slots += [(y, x, t) for x in range(left, right + 1) for y, t in
                          ((top, 0), (bottom, 2))]
                slots += [(y, x, t) for y in range(top, bottom + 1) for x, t in
                          ((left, 1), (right, 3))]
        for k in rng.permutation(len(slots)):
            top, left, turns = slots[k]
            where = slice(top, top + size), slice(left, left + size)
            if not sheet.taken[where].any():
                symbol, inside = drawing.symbol(kind, size, turns)
                sheet.mask[where][inside] = label
                sheet.tone[where][inside] = symbol[inside]
                sheet.tint[where][inside] *= _pastel(rng, 0.12)
                sheet.taken[where] = True
                return


def _pastel(rng, strength):
    """Return a random colour factor (3,) around 1."""
    return 1 + rng.uniform(-strength, strength, 3)


def _place_house(rng, H, W, share):
    """Return the house's outer rectangle: about `share` of the picture, anywhere in it."""
    area = share * rng.uniform(0.88, 1.12) * H * W
    aspect = rng.uniform(0.85, 1.2) * W / H
    height = min(H - 4, round((area / aspect) ** 0.5))
    width = min(W - 4, round(area / height))
    top, left = rng.integers(2, (H - height - 1, W - width - 1))
    return Rect(int(top), int(left), int(top) + height, int(left) + width)


def _split_into_rooms(rng, house, wall):
    """Split the house into four rooms with walls of `wall` px around and between them."""
    rooms = [Rect(house.top + wall, house.left + wall, house.bottom - wall, house.right - wall)]
    while len(rooms) < len(_TEXTURES):
        room = rooms.pop(int(np.argmax([r.height * r.width for r in rooms])))
        at = rng.uniform(0.42, 0.58)
        if room.width > room.height:
            cut = room.left + round((room.width - wall) * at)
            rooms += [room._replace(right=cut), room._replace(left=cut + wall)]
        else:
            cut = room.top + round((room.height - wall) * at)
            rooms += [room._replace(bottom=cut), room._replace(top=cut + wall)]
    return rooms


def _draw_site(rng, tone, house):
    """Draw what surrounds a house on paper, all of it background: grid, trees, dimensions."""
    H, W = tone.shape
    if rng.random() < 0.5:
        step, faint = rng.integers(9, 17), rng.uniform(0.8, 0.93)
        tone[rng.integers(step)::step] *= faint
        tone[:, rng.integers(step)::step] *= faint
    for _ in range(rng.integers(3, 9)):
        size = int(rng.integers(9, 18))
        top, left = rng.integers(0, (H - size, W - size))
        tone[top:top + size, left:left + size] *= drawing.tree(size)
    # Dimension lines with end ticks, above and left of the house.
    y, x = max(0, house.top - 6), max(0, house.left - 6)
    for line in (np.s_[y, house.left:house.right], np.s_[house.top:house.bottom, x]):
        tone[line] = 0.4
    tone[max(0, y - 2):y + 3, [house.left, house.right - 1]] = 0.4
    tone[[house.top, house.bottom - 1], max(0, x - 2):x + 3] = 0.4


# A stretch of wall is (Rect, turns): turns says into which room its door would open,
# 0 below, 1 right, 2 above, 3 left of the wall.


def _outer_walls(room, house, wall):
    """Return the stretches of outer wall that the room has."""
    stretches = [
        (Rect(room.top - wall, room.left, room.top, room.right), 0, room.top - wall == house.top),
        (Rect(room.top, room.left - wall, room.bottom, room.left), 1,
         room.left - wall == house.left),
        (Rect(room.bottom, room.left, room.bottom + wall, room.right), 2,
         room.bottom + wall == house.bottom),
        (Rect(room.top, room.right, room.bottom, room.right + wall), 3,
         room.right + wall == house.right),
    ]
    return [(stretch, turns) for stretch, turns, is_outer in stretches if is_outer]


def _shared_wall(room, other, wall):
    """Return the stretch of wall between two rooms, its door opening into `room`, or None."""
    top, bottom = max(room.top, other.top), min(room.bottom, other.bottom)
    left, right = max(room.left, other.left), min(room.right, other.right)
    if right > left and room.top - other.bottom == wall:
        return Rect(other.bottom, left, room.top, right), 0
    if bottom > top and room.left - other.right == wall:
        return Rect(top, other.right, bottom, room.left), 1
    if right > left and other.top - room.bottom == wall:
        return Rect(room.bottom, left, other.top, right), 2
    if bottom > top and other.left - room.right == wall:
        return Rect(top, room.right, bottom, other.left), 3
    return None


def _draw_openings(rng, sheet, house, rooms, wall):
    """Draw doors between rooms along a spanning tree, an entrance, and windows."""
    length = 2 * wall
    group = list(range(len(rooms)))  # rooms that doors connect share a number
    pairs = rng.permutation([(i, j) for i in group for j in group if i != j])
    # A room that no door fits into, for want of free floor, gets an open passage.
    for depth, (i, j) in [(d, pair) for d in (wall + length, wall) for pair in pairs]:
        stretch = _shared_wall(rooms[i], rooms[j], wall)
        if group[i] != group[j] and stretch is not None:
            opening = [part[:depth] for part in _any_door(rng, length, wall)]
            if _cut_opening(rng, sheet, *stretch, *opening, DOOR):
                group = [group[i] if g == group[j] else g for g in group]
    outer = [stretch for room in rooms for stretch in _outer_walls(room, house, wall)]
    pane = drawing.window(length + 2, wall)
    glass = np.ones(pane.shape, bool)
    entered = False
    for stretch in (outer[k] for k in rng.permutation(len(outer))):
        if not entered:
            door = _any_door(rng, length, wall)
            entered = _cut_opening(rng, sheet, *stretch, *door, DOOR)
        elif rng.random() < 0.7:
            _cut_opening(rng, sheet, *stretch, pane, glass, WINDOW)


def _any_door(rng, length, wall):
    """Return tone and pixels of a door, hinged left or right."""
    side = 1 if rng.random() < 0.5 else -1
    return tuple(part[:, ::side] for part in drawing.door(length, wall))


def _cut_opening(rng, sheet, stretch, turns, piece, inside, label):
    """Draw `piece` somewhere along a stretch of wall; return whether there was room for it."""
    gap = piece.shape[1] * min(stretch.height, stretch.width)
    piece, inside = np.rot90(piece, turns), np.rot90(inside, turns)
    h, w = piece.shape
    steps = stretch.width - w if turns % 2 == 0 else stretch.height - h
    for step in rng.permutation(max(0, steps + 1)):
        top = stretch.bottom - h if turns == 2 else stretch.top + (turns % 2) * step
        left = stretch.right - w if turns == 3 else stretch.left + (turns % 2 == 0) * step
        where = slice(top, top + h), slice(left, left + w)
        # Wall under the gap only, and bare floor under the leaf.
        is_wall = sheet.mask[where][inside] == WALL
        if is_wall.sum() == gap and not sheet.taken[where][inside].any():
            sheet.mask[where][inside] = label
            sheet.tone[where][inside] = piece[inside]
            sheet.taken[where][inside] = True
            return True
    return False


def _photograph(rng, tone, tint):
    """Return the picture (H, W, 3) uint8: ink on tinted paper under uneven light, with noise."""
    H, W = tone.shape
    ink = rng.uniform(0.08, 0.3) * _pastel(rng, 0.4)
    picture = ink + (tint - ink) * tone[..., None]
    # Light falls off across the sheet; the camera has its own exposure, gamma and colour cast.
    y, x = np.linspace(-1, 1, H)[:, None], np.linspace(-1, 1, W)[None, :]
    slope_y, slope_x = rng.uniform(-0.12, 0.12, 2)
    light = 1 + slope_y * y + slope_x * x
    picture *= light[..., None] * rng.uniform(0.85, 1.1) * _pastel(rng, 0.08)
    picture = np.maximum(picture, 0) ** rng.uniform(0.75, 1.35)
    grain = rng.standard_normal((H, W, 1), np.float32)
    colour_grain = rng.standard_normal((H, W, 3), np.float32)
    strength = rng.uniform(0.01, 0.04)
    picture += strength * (grain + 0.5 * colour_grain)
    return (255 * np.clip(picture, 0, 1) + 0.5).astype(np.uint8)
