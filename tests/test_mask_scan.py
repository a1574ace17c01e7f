"""Counting masks: the sums, what is noted of odd files, and that memory stays where it is."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checks import benchmark_module
from PIL import Image, ImageFile

from minisegnet.datasets import list_pairs
from minisegnet.imbalance import SCHEMES, ClassStatistics, class_weights, mask_scan
from minisegnet.imbalance.mask_scan import Scan, facts_of, look_at_files, scan

ONE = np.array([[0, 0, 1, 1, 7],
                [0, 2, 2, 1, 7],
                [0, 0, 0, 2, 255],
                [1, 0, 0, 0, 255]], np.uint8)
TWO = np.array([[0, 0, 0, 0, 0],
                [0, 7, 0, 7, 0],
                [0, 0, 7, 0, 0],
                [0, 0, 0, 0, 0]], np.uint8)


def scanned(masks, valid=None):
    """Return the `Scan` of masks in memory."""
    return scan(list(enumerate(masks)), lambda item: (facts_of(item[1]), [], f"{item[0]}.png"),
                valid)


def write_pair(folder, mask, *, image_size=None, name="a", suffix=".jpg", **options):
    """Write a mask, an array or a Pillow picture, and an image; return their paths."""
    picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    image_path, mask_path = folder / f"{name}{suffix}", folder / f"{name}_mask.png"
    Image.new("RGB", image_size or picture.size, (9, 99, 9)).save(image_path, **options)
    picture.save(mask_path)
    return image_path, mask_path


def oddities_of(pair, **options):
    return [kind for kind, _ in look_at_files(pair, **options)[1]]


# ---------------------------------------------------------------- counting


def test_one_mask_by_hand():
    facts = facts_of(ONE)
    assert facts.values == [0, 1, 2, 7, 255] and facts.shape == (4, 5)
    assert facts.pixels.tolist() == [9, 4, 3, 2, 2]
    assert facts.objects.tolist() == [1, 2, 1, 1, 1]  # the three 2s touch at a corner
    assert facts.small.tolist() == [1, 2, 1, 1, 1]


def test_objects_are_small_below_a_cell_of_16_by_16():
    mask = np.zeros((40, 60), np.uint8)
    mask[:16, :16] = 1
    mask[20:35, 30:47] = 1  # 255 px
    facts = facts_of(mask)
    assert facts.objects.tolist() == [1, 2] and facts.small.tolist() == [0, 1]


def test_sums_over_two_masks_by_hand():
    found = scanned([ONE, TWO])
    assert found.values == [0, 1, 2, 7, 255] and found.num_masks == 2
    assert found.shapes == {(4, 5): 2} and found.all_pixels == 40
    totals = found.totals([0, 1, 3, 7])
    assert totals.pixels.tolist() == [26, 4, 0, 5]
    assert totals.images.tolist() == [2, 1, 0, 2]
    assert totals.objects.tolist() == [2, 2, 0, 2]
    assert totals.squares.tolist() == [9 ** 2 + 17 ** 2, 16, 0, 2 ** 2 + 3 ** 2]
    assert totals.fullest.tolist() == [1, 0, -1, 1]
    assert totals.frequency.tolist() == [26 / 35, 4 / 35, 0, 5 / 35]
    # Of the classes asked for, the first mask has 15 pixels and the second 20.
    assert totals.image_pixels.tolist() == [35, 15, 0, 35]
    assert scanned([TWO, ONE]).totals([0, 7]).fullest.tolist() == [0, 0]
    assert found.fullest == {0: "1.png", 1: "0.png", 2: "0.png", 7: "1.png", 255: "0.png"}


def test_totals_give_the_weights_that_class_statistics_give(rng):
    values = [0, 3, 4, 9, 200]
    masks = [np.array(values, np.uint8)[np.minimum(rng.geometric(0.5, (30, 40)) - 1, 4)]
             for _ in range(9)]
    masks[2][:] = 4
    to_ids = np.full(256, 255, np.uint8)
    to_ids[[0, 3, 200, 11]] = range(4)  # 4 and 9 are no classes, 11 never occurs
    expected = ClassStatistics.from_masks([to_ids[mask] for mask in masks], 4)
    totals = scanned(masks).totals([0, 3, 200, 11])
    for name in ("pixels", "images", "image_pixels", "frequency"):
        assert getattr(totals, name).tolist() == getattr(expected, name).tolist()
    for scheme in SCHEMES:
        assert class_weights(totals, scheme).tolist() == class_weights(expected, scheme).tolist()


def test_colours_are_values_of_their_own():
    palette = np.array([[0, 0, 0], [255, 0, 0], [1, 2, 3]], np.uint8)
    mask = np.minimum(ONE, 2)
    found = scanned([palette[mask]])
    assert found.values == [(0, 0, 0), (1, 2, 3), (255, 0, 0)]
    assert found.totals([(255, 0, 0), (1, 2, 3)]).pixels.tolist() == [4, 7]
    assert scanned([mask, palette[mask]]).values == [0, 1, 2, (0, 0, 0), (1, 2, 3), (255, 0, 0)]


def test_masks_without_a_class_and_masks_of_one_value_are_counted():
    void = np.full((2, 2), 255, np.uint8)
    found = scanned([ONE, void, np.zeros((2, 2), np.uint8)])
    assert found.oddities == {"all ignored": [1, ["1.png"]]} and found.one_valued == 2
    found = scanned([ONE, TWO, void], valid=[1, 2])
    assert found.oddities == {"all ignored": [2, ["1.png", "2.png"]]}


def test_no_more_values_are_told_apart_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(mask_scan, "MOST_VALUES", 5)
    found = scanned([np.arange(4, dtype=np.uint8)[None], np.arange(12, dtype=np.uint8)[None]])
    assert found.values == [0, 1, 2, 3, 4] and found.further_pixels == 7
    assert found.all_pixels == 16
    assert found.totals([3, 4, 5]).pixels.tolist() == [2, 1, 0]


def test_nothing_valid_has_no_frequency():
    with pytest.raises(ValueError, match="no valid pixel"):
        scanned([ONE]).totals([77]).frequency


# ---------------------------------------------------------------- files


def test_a_plain_pair_is_not_odd(tmp_path):
    facts, oddities, path = look_at_files(write_pair(tmp_path, ONE))
    assert facts.values == [0, 1, 2, 7, 255] and oddities == []
    assert path == tmp_path / "a_mask.png"


def test_palette_rgb_and_grey_as_rgb_are_noted(tmp_path):
    palette = Image.fromarray(ONE)
    palette.putpalette(bytes(range(256)) * 3)
    assert oddities_of(write_pair(tmp_path, palette)) == ["palette"]
    colours = np.stack([ONE, ONE, 0 * ONE], axis=-1)
    assert oddities_of(write_pair(tmp_path, colours)) == ["rgb"]


def test_grey_rgb_masks_are_noted_and_may_be_counted_as_ids(tmp_path):
    pair = write_pair(tmp_path, np.stack([ONE] * 3, axis=-1))
    assert oddities_of(pair) == oddities_of(pair, grey_as_ids=True) == ["grey as rgb"]
    assert look_at_files(pair)[0].values[1] == (1, 1, 1)
    assert look_at_files(pair, grey_as_ids=True)[0].values == [0, 1, 2, 7, 255]
    coloured = write_pair(tmp_path, np.stack([ONE, ONE, 0 * ONE], axis=-1))
    assert look_at_files(coloured, grey_as_ids=True)[0].values[1] == (1, 1, 0)


def test_declared_colours_are_not_odd(tmp_path):
    pair = write_pair(tmp_path, np.stack([ONE, ONE, 0 * ONE], axis=-1))
    assert oddities_of(pair, colours=True) == []
    assert look_at_files(pair, colours=True)[0].values[1] == (1, 1, 0)


def test_sizes_that_differ_are_noted(tmp_path):
    (kind, text), = look_at_files(write_pair(tmp_path, ONE, image_size=(10, 8)))[1]
    assert kind == "size" and "a.jpg is 10x8" in text and "a_mask.png is 5x4" in text


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_decides_which_size_is_right(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = write_pair(tmp_path, ONE, image_size=(4, 5), suffix=suffix, exif=exif)
    assert oddities_of(turned) == []
    lying = write_pair(tmp_path, ONE, image_size=(5, 4), suffix=suffix, exif=exif)
    assert oddities_of(lying) == ["turned by exif"]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_of_an_image_only_the_header_is_read(tmp_path, monkeypatch, suffix):
    pair = write_pair(tmp_path, ONE, suffix=suffix)
    read, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load",
                        lambda self: (read.append(Path(self.filename)), load(self))[1])
    assert oddities_of(pair) == []
    assert pair[1] in read and pair[0] not in read


def test_what_cannot_be_read_is_noted_and_the_rest_counted(tmp_path):
    pairs = [write_pair(tmp_path, mask, name=name) for name, mask in
             (("a", ONE), ("b", ONE), ("c", TWO), ("d", ONE))]
    pairs[1][1].write_bytes(b"no picture")
    pairs[2][0].write_bytes(b"no picture")
    Image.fromarray(ONE.astype(np.uint16) * 256).save(pairs[3][1])
    found = scan(pairs, look_at_files)
    assert found.num_masks == 2 and found.all_pixels == 40
    assert found.oddities["unreadable"][0] == 2
    assert "b_mask.png cannot be decoded" in found.oddities["unreadable"][1][0]
    assert "values from 0 to 65280" in found.oddities["unreadable"][1][1]
    assert "c.jpg cannot be decoded" in found.oddities["image unreadable"][1][0]
    assert found.totals([7]).fullest.tolist() == [2]  # the index among all pairs


# ---------------------------------------------------------------- many masks


def test_threads_count_the_same_in_the_same_order(rng, monkeypatch):
    masks = [rng.integers(0, 6, (20, 30)).astype(np.uint8) for _ in range(60)]
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(mask_scan, "num_threads", lambda threads=threads: threads)
        found.append(scanned(masks))
    for one, other in zip(*(each.totals(each.values) for each in found)):
        assert one.tolist() == other.tolist()
    assert found[0].fullest == found[1].fullest


@pytest.mark.parametrize("threads", [1, 2])
def test_few_masks_are_in_memory_at_a_time(monkeypatch, threads):
    monkeypatch.setattr(mask_scan, "num_threads", lambda: threads)
    facts, taken, counted, most = facts_of(ONE), [], [], []

    def items():
        for i in range(300):
            taken.append(i)
            yield i

    class Counting(Scan):
        def add(self, *arguments):
            most.append(len(taken) - len(counted))
            counted.append(1)
            super().add(*arguments)

    monkeypatch.setattr(mask_scan, "Scan", Counting)
    scan(items(), lambda i: (facts, [], "x"))
    assert len(counted) == 300 and max(most) <= 4 * threads


def test_memory_does_not_grow_with_the_number_of_masks(rng, monkeypatch):
    monkeypatch.setattr(mask_scan, "num_threads", lambda: 1)  # else chance has a share in it
    masks = [rng.integers(0, 12, (32, 32)).astype(np.uint8) for _ in range(8)]

    def peak(count):
        tracemalloc.start()
        found = scan(range(count), lambda i: (facts_of(masks[i % 8]), [("rgb", "x")], f"{i}.png"))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.num_masks == count
        return highest

    peak(50)  # what is made once
    few, many = peak(150), peak(600)
    assert (many - few) / 450 < 20  # bytes per mask


def test_an_error_in_a_thread_ends_the_scan(monkeypatch):
    monkeypatch.setattr(mask_scan, "num_threads", lambda: 2)

    def look(i):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        scan(range(100), look)


@pytest.mark.slow
def test_a_scan_takes_at_most_three_times_a_bare_loop(camvid_root):
    analyze = benchmark_module("analyze")
    pairs = list_pairs(camvid_root)
    ours, bare = analyze.compare(pairs, rounds=5)
    assert np.median([a[0] / b[0] for a, b in zip(ours, bare)]) < 3
    assert analyze.bare_loop(pairs)[:12].tolist() == \
        scan(pairs, look_at_files).totals(range(12)).pixels.tolist()
