"""Data in files: layouts, label values, and one clear line for whatever is wrong."""

import numpy as np
import pytest
from checks import assert_refused
from PIL import Image, ImageOps

from minisegnet.datasets import CamVid, FloorPlans, Folder, open_dataset
from minisegnet.datasets.files import read_image, read_mask
from minisegnet.datasets.palettes import CAMVID_PALETTE, FLOORPLAN_PALETTE, colourise, palette_for
from minisegnet.errors import UserError

H, W = 12, 16


def write_image(path, size=(H, W)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(mask)).save(path)


def random_mask(seed, num_classes=3):
    mask = np.random.default_rng(seed).integers(0, num_classes, (H, W), dtype=np.uint8)
    mask[0, 0] = 255
    return mask


@pytest.fixture
def folder(tmp_path):
    """images/ and masks/ with five pairs, jpg and png, classes 0 to 2."""
    for k in range(5):
        write_image(tmp_path / "images" / f"p{k}.{'jpg' if k % 2 else 'png'}")
        write_mask(tmp_path / "masks" / f"p{k}.png", random_mask(k))
    return tmp_path


# ---------------------------------------------------------------- layouts


def test_folder_without_splits_draws_a_fixed_fifth_for_val(folder):
    train, val = Folder(folder, "train"), Folder(folder, "val")
    assert len(train) == 4 and len(val) == 1
    names = {train[i].name for i in range(4)} | {val[0].name}
    assert names == {f"p{k}" for k in range(5)}
    assert [p for p in Folder(folder, "val").pairs] == val.pairs
    assert {Folder(folder, "val", seed=s)[0].name for s in range(20)} > {val[0].name}


def test_folder_with_splits_reads_each(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for k in range(count):
            write_image(tmp_path / split / "images" / f"{k}.jpeg")
            write_mask(tmp_path / split / "masks" / f"{k}.png", random_mask(k))
    assert len(Folder(tmp_path, "train")) == 3 and len(Folder(tmp_path, "val")) == 2
    assert_refused(lambda: Folder(tmp_path, "test"), "test/images")


@pytest.mark.parametrize("with_splits", [False, True])
def test_trainval_is_train_and_val_together(tmp_path, folder, with_splits):
    root = folder
    if with_splits:
        root = tmp_path / "split"
        for split, count in (("train", 3), ("val", 2), ("test", 1)):
            for k in range(count):
                write_image(root / split / "images" / f"{split}{k}.png")
                write_mask(root / split / "masks" / f"{split}{k}.png", random_mask(k, k + 2))
    train, val, both = (Folder(root, split) for split in ("train", "val", "trainval"))
    assert sorted(both.pairs) == sorted(train.pairs + val.pairs) and len(both) == 5
    assert both.class_names == train.class_names == val.class_names
    assert len(open_dataset(root, split="trainval")) == 5


def test_trainval_needs_both_folders(tmp_path):
    write_image(tmp_path / "train" / "images" / "a.png")
    write_mask(tmp_path / "train" / "masks" / "a.png", random_mask(0))
    assert_refused(lambda: Folder(tmp_path, "trainval"), "val/images")


def test_folder_counts_classes_over_all_splits(tmp_path):
    for split, top in (("train", 2), ("val", 5)):
        write_image(tmp_path / split / "images" / "a.png")
        write_mask(tmp_path / split / "masks" / "a.png", random_mask(1, top))
    train = Folder(tmp_path, "train")
    assert train.num_classes == 5 and train.palette.shape == (5, 3)


def test_classes_txt_names_the_classes(folder):
    (folder / "classes.txt").write_text("ground\nroof\n\ntree\ncar\n")
    dataset = Folder(folder)
    assert dataset.class_names == ("ground", "roof", "tree", "car")
    assert dataset.check().pixels[3] == 0


def test_classes_txt_maps_mask_values(tmp_path):
    for k in range(3):
        write_image(tmp_path / "images" / f"{k}.png")
        write_mask(tmp_path / "masks" / f"{k}.png", (random_mask(k, 2) > 0).astype(np.uint8) * 255)
    (tmp_path / "classes.txt").write_text("0 background\n255 road\n")
    dataset = Folder(tmp_path)
    assert dataset.class_names == ("background", "road")
    assert dataset.mask_values == (0, 255) and dataset.void is None
    assert set(np.unique(dataset[0].mask)) == {0, 1}
    dataset.check()


def test_palette_png_gives_indices(tmp_path):
    mask = random_mask(0)
    picture = Image.fromarray(mask)
    picture.putpalette(list(range(255, -1, -1)) * 3)
    picture.save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "P"
    assert (read_mask(tmp_path / "m.png") == mask).all()


def test_16_bit_and_1_bit_masks_are_read(tmp_path):
    write_mask(tmp_path / "deep.png", random_mask(0).astype(np.uint16))
    assert (read_mask(tmp_path / "deep.png") == random_mask(0)).all()
    write_mask(tmp_path / "flat.png", random_mask(0, 2) == 1)
    assert (read_mask(tmp_path / "flat.png") == (random_mask(0, 2) == 1)).all()


def test_a_grey_or_transparent_image_becomes_rgb(folder):
    Image.fromarray(np.zeros((H, W), np.uint8)).save(folder / "images" / "p0.png")
    Image.fromarray(np.zeros((H, W, 4), np.uint8)).save(folder / "images" / "p2.png")
    for i in range(4):
        assert Folder(folder)[i].image.shape == (H, W, 3)


def test_check_counts_what_the_masks_hold(folder):
    dataset = Folder(folder)
    masks = np.stack([dataset[i].mask for i in range(len(dataset))])
    found = dataset.check()
    assert found.num_images == 4
    assert found.counts.tolist() == [[(mask == k).sum() for k in range(3)] for mask in masks]


def test_another_ignore_index_is_kept(folder):
    for k in range(5):
        mask = random_mask(k)
        mask[mask == 255] = 77
        write_mask(folder / "masks" / f"p{k}.png", mask)
    dataset = Folder(folder, ignore_index=77)
    assert dataset.mask_values == (0, 1, 2) and dataset.void == 77
    assert dataset.num_classes == 3 and dataset[0].mask[0, 0] == 77
    dataset.check()


def test_camvid_reads_void_as_ignore(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "a.jpg")
        write_mask(tmp_path / f"{split}annot" / "a.png", np.full((H, W), 11, np.uint8)
                   - np.eye(H, W, dtype=np.uint8))
    dataset = open_dataset(tmp_path, "auto", "val")
    assert isinstance(dataset, CamVid) and dataset.num_classes == 11
    assert set(np.unique(dataset[0].mask)) == {10, 255}
    assert dataset.mask_values == tuple(range(11)) and dataset.void == 11
    both = open_dataset(tmp_path, split="trainval")
    assert both.pairs == CamVid(tmp_path, "train").pairs + dataset.pairs
    assert_refused(lambda: CamVid(tmp_path, "test"), "testannot")


def test_the_real_camvid_is_sound(camvid_root):
    val = CamVid(camvid_root, "val")
    found = val.check()
    assert len(val) == 101 == found.num_images
    assert val[0].image.shape == (360, 480, 3)
    # Seen by eye: roads cover most of a street scene, and the sky lies in the upper half.
    assert val.class_names[int(found.pixels.argmax())] == "road"
    rows = np.nonzero(val[5].mask == val.class_names.index("sky"))[0]
    assert rows.mean() < 120


def test_open_dataset_finds_each_kind(folder):
    assert isinstance(open_dataset("floorplans", length=1), FloorPlans)
    assert isinstance(open_dataset(folder), Folder)
    assert_refused(lambda: open_dataset(folder, "voc"), "voc")
    assert_refused(lambda: open_dataset(folder / "none"), folder / "none")
    assert_refused(lambda: open_dataset(folder, "camvid"), "trainannot")


# ---------------------------------------------------------------- bad input


def test_missing_and_empty_folders(tmp_path):
    assert_refused(lambda: Folder(tmp_path / "nowhere"), tmp_path / "nowhere")
    assert_refused(lambda: Folder(tmp_path), "images/")
    (tmp_path / "images").mkdir()
    assert_refused(lambda: Folder(tmp_path), tmp_path / "images", "holds no")
    write_image(tmp_path / "images" / "a.png")
    assert_refused(lambda: Folder(tmp_path), tmp_path / "masks")


def test_an_image_without_mask_and_a_mask_without_image(folder):
    (folder / "masks" / "p3.png").unlink()
    assert_refused(lambda: Folder(folder), "p3.jpg", "has no mask")
    (folder / "images" / "p3.jpg").unlink()
    (folder / "images" / "p1.jpg").unlink()
    assert_refused(lambda: Folder(folder), "p1.png", "has no image")


def test_two_images_of_one_stem(folder):
    write_image(folder / "images" / "p0.jpg")
    assert_refused(lambda: Folder(folder), "p0.jpg", "p0.png", "stem")


def test_a_jpeg_mask(folder):
    (folder / "masks" / "p3.png").unlink()
    write_mask(folder / "masks" / "p3.jpg", random_mask(3))
    assert_refused(lambda: Folder(folder), "p3.jpg", "PNG")


def test_too_few_images_for_a_split(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png", random_mask(0))
    assert_refused(lambda: Folder(tmp_path, "val"), "1 images")


def first(dataset):
    return dataset.pairs[0]


def test_sizes_that_differ(folder):
    image_path, mask_path = first(Folder(folder))
    write_image(image_path, size=(H, W + 1))
    assert_refused(Folder(folder).check, image_path, mask_path, "17x12", "16x12")
    assert_refused(lambda: Folder(folder)[0], image_path, mask_path)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_corrupt_file(folder, which, damage):
    (folder / "classes.txt").write_text("a\nb\nc\n")
    for pair in Folder(folder).pairs:
        path = pair[which]
        data = path.read_bytes()
        kept = {"cut": data[: len(data) * 2 // 3], "garbage": b"not a picture", "empty": b""}
        path.write_bytes(kept[damage])
        assert_refused(Folder(folder).check, path, "replace or remove it")
        path.write_bytes(data)
    path.write_bytes(kept[damage])
    assert_refused(lambda: Folder(folder)[len(Folder(folder)) - 1], path, "replace or remove it")


def test_labels_out_of_range_are_named(folder):
    (folder / "classes.txt").write_text("a\nb\nc\n")
    mask_path = first(Folder(folder))[1]
    mask = random_mask(0)
    mask[3, 3:6] = 3, 9, 200
    write_mask(mask_path, mask)
    assert_refused(Folder(folder).check, mask_path, "3, 9, 200", "0 to 2, and 255 for ignored")


def test_a_mask_that_is_all_ignore(folder):
    mask_path = first(Folder(folder))[1]
    write_mask(mask_path, np.full((H, W), 255, np.uint8))
    assert_refused(Folder(folder).check, mask_path, "all ignore")


@pytest.mark.parametrize("named", [False, True])
def test_0_255_masks(folder, named):
    for k in range(5):
        write_mask(folder / "masks" / f"p{k}.png", (random_mask(k, 2) > 0).astype(np.uint8) * 255)
    if named:
        (folder / "classes.txt").write_text("background\nroad\n")
    assert_refused(lambda: Folder(folder).check(), "0 and 255", "map 255 to class 1")


def test_an_rgb_mask(folder):
    mask_path = first(Folder(folder))[1]
    write_mask(mask_path, np.zeros((H, W, 3), np.uint8))
    assert_refused(lambda: Folder(folder).check(), mask_path, "RGB", "palette PNG")


def test_a_16_bit_mask_with_large_values(folder):
    mask_path = first(Folder(folder))[1]
    write_mask(mask_path, np.full((H, W), 4096, np.uint16))
    assert_refused(lambda: Folder(folder).check(), mask_path, "4096")


def test_grey_values_are_not_taken_for_ids(folder):
    write_mask(folder / "masks" / "p0.png", np.full((H, W), 130, np.uint8))
    assert_refused(lambda: Folder(folder), "130", "classes.txt")


def test_an_ignore_index_no_mask_can_hold(folder):
    assert_refused(lambda: Folder(folder, ignore_index=-1), "-1", "255")


@pytest.mark.parametrize("text", ["only\n", "0 a\n0 b\n", "0 a\n300 b\n"])
def test_a_classes_file_that_makes_no_sense(folder, text):
    (folder / "classes.txt").write_text(text)
    assert_refused(lambda: Folder(folder), folder / "classes.txt")


# ---------------------------------------------------------------- palettes


def test_palettes_have_distinct_colours_and_void_is_black():
    for palette in (FLOORPLAN_PALETTE, CAMVID_PALETTE, palette_for(40)):
        assert (palette != 0).any(axis=1).all()
        assert len({tuple(colour) for colour in palette}) == len(palette)
    picture = colourise(np.array([[0, 11, 255]], np.uint8), FLOORPLAN_PALETTE)
    assert picture.tolist() == [[[220, 255, 255], [60, 120, 60], [0, 0, 0]]]


# ---------------------------------------------------------------- odd files


def test_hidden_files_are_no_pictures(folder):
    (folder / "images" / "._p0.png").write_bytes(b"what macOS leaves beside a file")
    assert len(Folder(folder, "train")) == 4


def test_transparency_is_dropped_without_a_warning(tmp_path):
    grey = Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W))
    grey.convert("P").save(tmp_path / "palette.png", transparency=b"\x00\x10")
    grey.convert("LA").save(tmp_path / "alpha.png")
    for name in ("palette.png", "alpha.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], np.asarray(grey))


def test_16_bit_pictures_are_refused_since_they_would_be_cut_off(folder):
    Image.fromarray(np.full((H, W), 1000, np.uint16)).save(folder / "images" / "p0.png")
    both = Folder(folder, "train"), Folder(folder, "val")
    assert_refused(lambda: [d.check() for d in both], "p0.png", "8 bits")
    assert_refused(lambda: read_image(folder / "images" / "p0.png"), "p0.png", "8 bits")


def test_a_picture_too_large_to_be_true_is_refused(tmp_path, monkeypatch):
    write_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert_refused(lambda: read_image(tmp_path / "bomb.png"), "bomb.png", "cannot be decoded")


def test_classes_txt_is_utf8_with_or_without_a_mark_and_names_each_class_once(folder):
    classes = folder / "classes.txt"
    classes.write_text("sol\nmaison\npré\n", encoding="utf-8-sig")
    assert Folder(folder).class_names == ("sol", "maison", "pré")
    classes.write_bytes("pré".encode("latin-1"))
    assert_refused(lambda: Folder(folder), classes, "UTF-8")
    classes.write_text("0 a\n1 b\nc\n")
    assert_refused(lambda: Folder(folder), classes, "some classes only")
    classes.write_text("a\nb\na\n")
    assert_refused(lambda: Folder(folder), classes, "twice")


# ---------------------------------------------------------------- photos that EXIF turns


def write_photo(path, upright, orientation, **options):
    """Save the file that shows `upright` (H, W, 3) where its EXIF orientation is obeyed."""
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 8: np.rot90(upright, -1),
              7: upright[::-1, ::-1].transpose(1, 0, 2)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)


def quarters():
    """A picture (H, W, 3) whose four corners differ, so that every turn of it does."""
    picture = np.zeros((H, W, 3), np.uint8)
    picture[: H // 2, : W // 2], picture[: H // 2, W // 2:] = 250, 170
    picture[H // 2:, W // 2:] = 90
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_photo_that_exif_turns_is_read_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"photo.{suffix}"
    options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    write_photo(path, quarters(), orientation, **options)
    image = read_image(path)
    assert image.shape == (H, W, 3)
    corners = image[[2, 2, -3, -3], [2, -3, 2, -3]].astype(int)  # away from the jpg's blurred edge
    assert abs(corners - [[250], [170], [0], [90]]).max() <= 12
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    np.testing.assert_array_equal(image, expected)


def test_a_mask_drawn_on_the_turned_photo_fits(folder):
    for image_path, _ in Folder(folder, "trainval").pairs:
        write_photo(image_path, quarters(), 6)
    dataset = Folder(folder)
    assert dataset.check().num_images == 4 and dataset.sizes == {(H, W)}
    assert dataset[0].image.shape[:2] == dataset[0].mask.shape == (H, W)


def test_a_mask_drawn_on_the_unturned_photo_is_told_of_exif(folder):
    image_path, mask_path = first(Folder(folder))
    write_photo(image_path, np.zeros((W, H, 3), np.uint8), 8)
    words = image_path, "12x16", mask_path, "16x12", "EXIF", "turn the mask"
    assert_refused(Folder(folder).check, *words)
    assert_refused(lambda: Folder(folder)[0], *words)
    write_image(image_path, size=(W, H))
    with pytest.raises(UserError) as caught:
        Folder(folder).check()
    assert "EXIF" not in str(caught.value)


@pytest.mark.parametrize("exif", [
    b"Exif\x00\x00II*\x00",  # cut short: struct.error
    b"Exif\x00\x00no tiff header at all",  # SyntaxError
    # one tag, the orientation, with the value 99
    b"Exif\x00\x00MM\x00*" + bytes.fromhex("00000008 0001 0112 0003 00000001 00630000 00000000")])
def test_an_exif_tag_that_says_nonsense_is_no_reason_to_refuse(folder, exif):
    (folder / "images" / "p1.jpg").unlink()
    for name in ("p0.png", "p1.jpeg"):
        Image.fromarray(quarters()).save(folder / "images" / name, exif=exif)
        assert read_image(folder / "images" / name).shape == (H, W, 3)
    assert Folder(folder, "trainval").check().num_images == 5
