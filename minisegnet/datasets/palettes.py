"""Class colours that colour-blind readers can tell apart too.

Distances are the smallest CIEDE2000 over all pairs, seen normally and under simulated
protanopia, deuteranopia and tritanopia (Machado et al. 2009, severity 1.0), black included.
"""

import colorsys

import numpy as np

VOID_COLOUR = (0, 0, 0)


def _colours(text):
    """Return the colours (K, 3) uint8 of blank-separated #rrggbb codes."""
    return np.array([list(bytes.fromhex(code[1:])) for code in text.split()], np.uint8)


# 12 colours and void: distance 18.9.
FLOORPLAN_PALETTE = _colours(
    "#dcffff #645064 #ffff00 #8c64ff #f0c8a0 #c8b4ff #a0a000 #c8788c"
    " #003c00 #0014dc #3c0050 #3c783c"
)
# What a larger set of classes continues with: 13 colours and void keep 12.9, all 21 keep 10.6.
# (The best 21 that a search found, with none of them given, kept 13.2.) Side by side such a pair
# can still be told apart; to find a colour in the legend takes a second look.
_FURTHER = _colours(
    "#9078a8 #303030 #d84860 #90a8c0 #d81800 #781878 #009078 #3060c0 #90d848"
)
# 11 colours and void: distance 16.2.
CAMVID_PALETTE = _colours(
    "#00d8fc #906c00 #fcfcfc #484848 #909090 #0048d8 #fcd8b4 #6c2400 #2490d8 #fc9024 #002448"
)


def palette_for(num_classes):
    """Return colours (num_classes, 3) uint8: the 21 above, then hues a golden angle apart.

    Beyond 21 no promise is made: some pairs look alike to anyone, and a reader needs the legend.
    """
    colours = [*FLOORPLAN_PALETTE.tolist(), *_FURTHER.tolist()][:num_classes]
    for k in range(len(colours), num_classes):
        value = (0.95, 0.7, 0.45)[k % 3]
        rgb = colorsys.hsv_to_rgb(0.618034 * k % 1, (0.9, 0.55)[k % 2], value)
        colours.append([round(255 * channel) for channel in rgb])
    return np.array(colours, np.uint8)


def colourise(mask, palette, ignore_index=255):
    """Return `mask` (..., H, W) of class ids as a picture (..., H, W, 3) uint8; ignored is black.

    Ids without a colour are black as well.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[ignore_index] = VOID_COLOUR
    return table[mask]
