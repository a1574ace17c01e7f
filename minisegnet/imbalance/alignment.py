"""Does a mask belong to its picture? Where labels change, the picture should show an edge.

Between every two neighbouring pixels of a picture lies a step: how far their colours differ. The
steps are replaced by their ranks within the picture, 0 to 1, so that one strong edge counts no
more than many weak ones. A mask's fit is the mean rank of the steps across its borders: 0.5 where
they lie anywhere, near 1 where they are the edges.

No number says by itself what fits: pictures differ in texture, masks in how finely they are drawn.
So every mask is compared, on the same picture, with itself mirrored, upside down and turned by 180
degrees (its poses), and with the masks of other pictures, which show what chance gives.

What lies beyond the picture after a crop, or is cut out of it, is an edge in the picture and in
every mask cropped alike; therefore steps count only where no pose of the mask is ignored.
"""

import math

import numpy as np

from minisegnet.parallel import parallel_map

POSES = ("as_is", "mirrored", "upside_down", "turned")

LEAST_PICTURES = 6  # fewer say nothing
LEAST_BORDER = 30  # steps across borders, below which a picture's fit is left out
STANDARD_ERRORS = 5  # that a mean must lie above chance
FEW = 0.15  # share of the pictures that may come out wrong without being a finding
RANKS = 4096
BLOCK = 64  # masks compared at a time
MOVED, REACH = 16, 10  # pictures whose masks are moved to and fro, and px each way
SHIFT_LEAST, SHIFT_GAIN = 2, 0.05  # px, rank


def measure(images, masks, ignore_index=255):
    """Return how images (N, H, W, C) fit their masks (N, H, W), a dictionary of plain numbers.

    pictures          those used: with borders enough, in sight
    as_is, mirrored, upside_down, turned          the mean fit of each pose of a picture's own mask
    other_mask        the same for the masks of other pictures, in any pose: chance
    spread            standard deviation of that
    z_as_is           by how many standard errors as_is lies above other_mask
    z_best            the same for the best pose of the own mask, against the best of another's
    prefer_<pose>     share of the pictures whose own mask fits best in this pose, and clearly: two
                      spreads above other masks, one above the next pose
    shift             [down, right]: how far to move the masks, all alike and at most `REACH` px
                      each way, to make them fit best
    shift_gain, z_shift          by how much better they fit there, and by how many standard errors

    Only "pictures" is not None where there are fewer than `LEAST_PICTURES`. The shift is measured
    on some of them.
    """
    table = fit_table(images, masks, ignore_index)  # (N, N, 4)
    own, chance, chance_of_best, spread = _against_chance(table, np.arange(len(table)))
    n = len(own)
    if n < LEAST_PICTURES:
        keys = (*POSES, "other_mask", "spread", "z_as_is", "z_best",
                *(f"prefer_{pose}" for pose in POSES), "shift", "shift_gain", "z_shift")
        return {"pictures": n, **dict.fromkeys(keys)}
    ordered = np.sort(own, axis=1)
    clear = (ordered[:, -1] - chance > 2 * spread) & (ordered[:, -1] - ordered[:, -2] > spread)
    best = np.where(clear, own.argmax(axis=1), -1)
    return {
        "pictures": n,
        **{pose: float(own[:, k].mean()) for k, pose in enumerate(POSES)},
        "other_mask": float(chance.mean()), "spread": spread,
        "z_as_is": standard_errors(own[:, 0] - chance),
        "z_best": standard_errors(ordered[:, -1] - chance_of_best),
        **{f"prefer_{pose}": float((best == k).mean()) for k, pose in enumerate(POSES)},
        **_measure_shift(images, masks, ignore_index),
    }


def find_partners(images, masks, ignore_index=255, every=1):
    """Look, for every `every`-th picture, for a mask of another one that fits it better.

    A partner fits better than the picture's own mask, and better than what the best of as many
    masks reaches by chance, which is what the best of them reaches mirrored, upside down or
    turned; both by two spreads. Returns {"partners": share of the pictures, "compared": pictures,
    "masks"}.
    """
    pictures = np.arange(0, len(masks), every)
    table = fit_table(images, masks, ignore_index, pictures).astype(np.float64)
    usable = _usable(table, pictures)
    rows, pictures, table = np.arange(np.count_nonzero(usable)), pictures[usable], table[usable]
    found = {"partners": 0.0, "compared": len(rows), "masks": len(masks)}
    if len(rows):
        _, _, _, spread = _against_chance(table, pictures)
        own = table[rows, pictures, 0]
        table[rows, pictures] = np.nan
        best = np.nanmax(table, axis=1)  # (n, 4)
        least = np.maximum(own, best[:, 1:].max(axis=1)) + 2 * spread
        found["partners"] = float((best[:, 0] > least).mean())
    return found


def judge(measurement):
    """Return what the numbers say of the pairs, in a word or two.

    "fits", "mirrored" or "upside down" (all pictures, or some), "shifted", "shuffled", or "cannot
    tell". `measurement` is from `measure`: of the batches as they are delivered, and within it,
    where they were taken, "as_read" (`measure` and, where they are `in_doubt`, `find_partners` of
    the pairs before any augmentation) and "transform" (training/pair_inspection.py).

    Crops hide a picture that was mirrored before them, so that each stage is asked for itself: the
    transform, what was read, what was delivered. A word against the pairs needs evidence of its
    own: "shuffled" pictures have been seen to fit other masks, or to have fitted theirs before.
    """
    transform = measurement.get("transform") or {}
    if transform.get("draws"):
        flips = {"mirrored": transform["mirrored"], "upside down": transform["upside_down"]}
        flip = max(flips, key=flips.get)
        if flips[flip] >= FEW / 2:
            return flip
        if transform["kept"] < 1 - FEW:
            return "shifted"
    read = measurement.get("as_read") or {}
    as_read, delivered = _pose(read), _pose(measurement)
    for pose in (as_read, delivered):
        if pose in ("mirrored", "upside down"):
            return pose
    if read.get("partners", 0.0) >= FEW and read["partners"] * read["compared"] >= 3:
        return "shuffled"
    if as_read != "fits":
        return delivered
    if (delivered == "cannot tell" and read["prefer_as_is"] >= 1 - 2 * FEW
            and 2 * measurement.get("pictures", 0) >= max(read["pictures"], 2 * LEAST_PICTURES)
            and measurement["prefer_as_is"] <= FEW):
        return "shuffled"
    return "shifted" if _shifted(read) or _shifted(measurement) else "fits"


def in_doubt(as_read):
    """Return whether pairs, by `measure`, fit so seldom that a search for partners is worth it."""
    return (as_read["pictures"] >= LEAST_PICTURES and _pose(as_read) in ("fits", "cannot tell")
            and as_read["prefer_as_is"] < 1 - FEW)


def _pose(measurement):
    """Return "fits", "mirrored", "upside down" or "cannot tell" for one `measure`."""
    n = measurement.get("pictures", 0)
    if n < LEAST_PICTURES or measurement["z_best"] < STANDARD_ERRORS:
        return "cannot tell"
    flips = {"mirrored": measurement["prefer_mirrored"],
             "upside down": measurement["prefer_upside_down"] + measurement["prefer_turned"]}
    flip = max(flips, key=flips.get)
    if flips[flip] >= FEW and flips[flip] * n >= 3:
        return flip
    return "fits" if measurement["z_as_is"] >= STANDARD_ERRORS else "cannot tell"


def _shifted(measurement):
    """Return whether all masks fit clearly better elsewhere."""
    return (measurement.get("pictures", 0) >= LEAST_PICTURES
            and max(map(abs, measurement["shift"])) >= SHIFT_LEAST
            and measurement["shift_gain"] >= SHIFT_GAIN
            and measurement["z_shift"] >= STANDARD_ERRORS)


def standard_errors(differences):
    """Return the mean of `differences` (n,) over its standard error; 0 where all are 0."""
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return float(np.mean(differences)) / max(error, 1e-4)


# ---------------------------------------------------------------- fits


def fit_table(images, masks, ignore_index=255, pictures=None):
    """Return the fit (n, M, 4) of `pictures` (all, or n indices) with each mask in each pose.

    nan where fewer than `LEAST_BORDER` steps of a picture lie across the mask's borders.
    """
    pictures = np.arange(len(masks)) if pictures is None else pictures
    sight = _in_sight(masks[pictures], ignore_index)  # (n, S) bool
    rank = np.stack([_ranks(_steps(image), seen) for image, seen in zip(images[pictures], sight)])
    sight = sight.astype(np.float32)
    table = np.full((len(pictures), len(masks), len(POSES)), np.nan, np.float32)

    def compare(start, k):
        block = slice(start, start + BLOCK)
        posed = _poses(masks[block])[k]
        borders = _borders(posed, _labelled(posed, ignore_index)).astype(np.float32).T
        count = sight @ borders  # (n, BLOCK)
        np.divide(rank @ borders, count, out=table[:, block, k], where=count >= LEAST_BORDER)

    parallel_map(lambda place: compare(*place),
                 [(start, k) for start in range(0, len(masks), BLOCK) for k in range(len(POSES))])
    return table


def _poses(masks):
    """Return (N, H, W) as it is, mirrored, upside down and turned."""
    return masks, masks[:, :, ::-1], masks[:, ::-1], masks[:, ::-1, ::-1]


def _labelled(masks, ignore_index):
    return masks != ignore_index


def _in_sight(masks, ignore_index):
    """Return between which pixels (N, S) every pose of the mask has labels."""
    labelled = np.logical_and.reduce(_poses(_labelled(masks, ignore_index)))
    return _joined(labelled[:, :, 1:] & labelled[:, :, :-1], labelled[:, 1:] & labelled[:, :-1])


def _borders(masks, labelled):
    """Return between which pixels (N, S) two labels meet."""
    return _joined(*(
        (a != b) & label_a & label_b for a, b, label_a, label_b in (
            (masks[:, :, 1:], masks[:, :, :-1], labelled[:, :, 1:], labelled[:, :, :-1]),
            (masks[:, 1:], masks[:, :-1], labelled[:, 1:], labelled[:, :-1]))))


def _steps(image):
    """Return the sums over the channels of |difference| between neighbours of (H, W, C), (S,)."""
    image = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
    channels = np.ones(image.shape[2], np.float32)  # a product is faster than a sum over three
    return _joined(*((np.abs(each) @ channels)[None] for each in (
        image[:, 1:] - image[:, :-1], image[1:] - image[:-1])))[0]


def _joined(across, down):
    """Return the H (W - 1) steps to the right and the (H - 1) W steps down in one row, (N, S)."""
    return np.concatenate([across.reshape(len(across), -1), down.reshape(len(down), -1)], axis=1)


def _ranks(steps, sight):
    """Return the ranks (S,) of `steps` among those in `sight`, 0 to 1, equals alike; else 0."""
    ranks = np.zeros(steps.shape, np.float32)
    seen = steps[sight]
    if seen.size:
        level = (seen * ((RANKS - 1) / max(float(seen.max()), 1e-30))).astype(np.intp)
        count = np.bincount(level, minlength=RANKS)
        ranks[sight] = ((count.cumsum() - count / 2) / seen.size)[level]
    return ranks


def _usable(table, own_column):
    """Return which pictures (n,) bool have a fit with their own mask, and with another one."""
    rows = np.arange(len(table))
    defined = ~np.isnan(table).any(axis=2)  # (n, M)
    return defined[rows, own_column] & (defined.sum(axis=1) > 1)


def _against_chance(table, own_column):
    """Return, of the usable pictures, own fits (n, 4), chance (n,), best by chance (n,), spread.

    Chance is the mean fit with other pictures' masks; best by chance the mean over other masks of
    the best pose's.
    """
    usable = _usable(table, own_column)
    table, own_column = table[usable].astype(np.float64), own_column[usable]
    rows = np.arange(len(table))
    own = table[rows, own_column]
    if not len(own):
        return own, own[:, 0], own[:, 0], 0.0
    table[rows, own_column] = np.nan
    chance = np.nanmean(table, axis=(1, 2))
    best = np.nanmean(table.max(axis=2), axis=1)  # nan where a pose is
    return own, chance, best, float(np.nanstd(table - chance[:, None, None]))


def _measure_shift(images, masks, ignore_index):
    """Return {"shift", "shift_gain", "z_shift"} as `measure` has them, [0, 0] if there is none."""
    few = slice(None, None, max(1, len(masks) // MOVED))
    images, masks = images[few], masks[few]
    fit = [_fit_of_shifts(*one) for one in zip(images, masks, _in_sight(masks, ignore_index),
                                               _labelled(masks, ignore_index))]
    fit = np.array([each for each in fit if not np.isnan(each).any()])  # (n, 2 R + 1, 2 R + 1)
    if len(fit) < LEAST_PICTURES:
        return {"shift": [0, 0], "shift_gain": 0.0, "z_shift": 0.0}
    mean = fit.mean(axis=0)
    down, right = np.unravel_index(mean.argmax(), mean.shape)
    gain = fit[:, down, right] - fit[:, REACH, REACH]
    return {"shift": [int(down) - REACH, int(right) - REACH],
            "shift_gain": float(gain.mean()), "z_shift": standard_errors(gain)}


def _fit_of_shifts(image, mask, sight, labelled):
    """Return the fit (2 REACH + 1, 2 REACH + 1) of the mask moved (down, right) over its picture.

    Sums of products of two maps under all shifts at once are a correlation, and so, by Fourier
    transform, one product. The edges of the maps are joined: what is moved out comes in opposite.
    """
    H, W = mask.shape
    ranks, borders = _ranks(_steps(image), sight), _borders(mask[None], labelled[None])[0]
    hits, count = 0.0, 0.0
    across = H * (W - 1)  # of them come first
    for part, shape in ((slice(across), (H, W - 1)), (slice(across, None), (H - 1, W))):
        moved = np.fft.rfft2(borders[part].reshape(shape), (H, W)).conj()
        hits, count = (
            total + np.fft.irfft2(np.fft.rfft2(still[part].reshape(shape), (H, W)) * moved, (H, W))
            for total, still in ((hits, ranks), (count, sight)))
    near = np.arange(-REACH, REACH + 1)
    hits, count = (total[np.ix_(near % H, near % W)] for total in (hits, count))
    return np.divide(hits, count, out=np.full(hits.shape, np.nan), where=count >= LEAST_BORDER)
