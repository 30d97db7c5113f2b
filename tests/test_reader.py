"""deploy/reader.py: images and masks of every kind, as arrays."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from torchvision import transforms

from deploy import reader
from deploy.reader import ImageError, load_image, load_mask
from utils import IMAGE_SUFFIXES

# Images


def pixel(path):
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("L", 100, "a.png", (100, 100, 100)),
        ("1", 1, "a.png", (255, 255, 255)),
        ("RGB", (1, 2, 3), "a.png", (1, 2, 3)),
        ("RGBA", (200, 0, 100, 255), "a.png", (200, 0, 100)),
        ("RGBA", (200, 0, 100, 0), "a.png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), "a.png", (204, 204, 204)),
        ("LA", (0, 51), "a.png", (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        ("I;16", 65535, "a.png", (255, 255, 255)),
        ("I;16", 100 * 257, "a.png", (100, 100, 100)),
        ("I;16B", 100 * 257, "a.tif", (100, 100, 100)),
        ("I", 100 * 257, "a.tif", (100, 100, 100)),
        ("F", 0.2, "a.tif", (51, 51, 51)),
        ("F", 100.0, "a.tif", (100, 100, 100)),
        ("F", 25700.0, "a.tif", (100, 100, 100)),
    ],
)
def test_modes_become_rgb(tmp_path, mode, colour, name, expected):
    Image.new(mode, (4, 4), colour).save(tmp_path / name)
    assert pixel(tmp_path / name) == expected


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixel(tmp_path / "opaque.png") == (10, 20, 30)
    assert pixel(tmp_path / "clear.png") == (255, 255, 255)


def test_floats_that_are_no_numbers(tmp_path):
    Image.fromarray(np.array([[np.nan, np.inf, 1.0]], dtype=np.float32)).save(tmp_path / "b.tif")
    assert np.asarray(load_image(tmp_path / "b.tif"))[..., 0].tolist() == [[0, 0, 255]]


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the white left half becomes the top
    image.save(tmp_path / "a.jpg", exif=exif)
    shown = np.asarray(load_image(tmp_path / "a.jpg").convert("L"))
    assert shown.shape == (32, 16)
    assert shown[:15].min() > 200
    assert shown[17:].max() < 50


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_matter(tmp_path):
    Image.new("L", (4, 4), 100).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00garbage")
    Image.new("L", (4, 4), 100).save(tmp_path / "b.jpg", exif=b"Exif\x00\x00nothing")
    assert pixel(tmp_path / "a.jpg") == pixel(tmp_path / "b.jpg") == (100, 100, 100)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ((0, 0.5, 1), 0, 1),
        ((0, 0.5, 1.001), 0, 1),
        ((-0.01, 0.5, 1.04), 0, 1),
        ((-1, 0, 1), -1, 1),
        ((0, 100, 255), 0, 255),
        ((0, 100, 300), 0, 1023),
        ((0, 3000, 4095), 0, 4095),
        ((-1000, 0, 3000), -1024, 3071),
        ((0, 1, 25700), 0, 65535),
        ((-20000, 1, 25700), -32768, 32767),
        ((-200, 0, 1e6), -200, 1e6),
    ],
)
def test_floats_have_the_smallest_usual_range_that_holds_them(tmp_path, values, low, high):
    """One value a little above a range does not make all others black."""
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    expected = np.round(np.clip((np.array(values) - low) / (high - low), 0, 1) * 255)
    assert np.abs(np.asarray(load_image(tmp_path / "a.tif"))[0, :, 0] - expected).max() == 0


@pytest.mark.parametrize(
    ("values", "low", "high"), [((0, 4095), 0, 65535), ((-1000, 0), -32768, 32767), ((-1000, 99000), -(2**31), 2**31)]
)
def test_integers_have_the_range_of_their_type(tmp_path, values, low, high):
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "a.tif")
    expected = np.round((np.array(values) - low) / (high - low) * 255)
    assert np.asarray(load_image(tmp_path / "a.tif"))[0, :, 0].tolist() == expected.tolist()


@pytest.mark.parametrize(("kind", "name"), [("I;16", "a.png"), ("I", "a.tif"), ("F", "a.tif")])
def test_value_range_is_black_and_white(tmp_path, kind, name):
    values = np.array([[0, 1000, 2000, 3000, 4000]])
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]
    Image.fromarray(values.astype(dtype)).save(tmp_path / name)
    shown = np.asarray(load_image(tmp_path / name, (1000, 3000)))[0, :, 0]
    assert shown.tolist() == [0, 0, 128, 255, 255]
    Image.new("L", (2, 2), 77).save(tmp_path / "b.png")
    assert np.asarray(load_image(tmp_path / "b.png", (1000, 3000))).max() == 77  # 8 bits are left alone


def test_warnings_of_deep_images(tmp_path):
    deep, full, floats, plain = (str(tmp_path / name) for name in ("deep.png", "full.png", "a.tif", "plain.png"))
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(deep)
    Image.fromarray(np.array([[0, 65000]], dtype=np.uint16)).save(full)
    Image.fromarray(np.array([[0, 1]], dtype=np.float32)).save(floats)
    Image.new("L", (2, 2), 1).save(plain)
    (said,) = reader.deep_image_warnings([plain, deep], "do this")
    assert "65535" in said and "4095" in said and "deep.png" in said and said.endswith("; do this")
    assert reader.deep_image_warnings([full, plain, str(tmp_path / "missing.png")], "") == []
    (said,) = reader.deep_image_warnings([floats] * 100, "do this")
    assert "0 to 1" in said and "a.tif" in said


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "raw.tif", "lzw.tif", "a.webp"])
def test_every_orientation_in_every_format(tmp_path, orientation, name):
    """As numpy turns it; Pillow itself scrambles uncompressed TIFF files of orientation 5 to 8 that are not square."""
    values = np.kron(np.arange(8 * 12).reshape(8, 12) * 2, np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[reader.ORIENTATION] = orientation
    options = {"tiffinfo": {274: orientation}} if name.endswith("tif") else {"exif": exif}
    options |= {"lzw.tif": {"compression": "tiff_lzw"}, "a.webp": {"lossless": True}}.get(name, {})
    Image.fromarray(values).save(tmp_path / name, **options)
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: a[::-1, ::-1],
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].T,
        8: np.rot90,
    }[orientation]
    read = np.asarray(load_image(tmp_path / name)).astype(int)[..., 0]
    assert read.shape == turn(values).shape
    assert np.abs(read - turn(values)).mean() < 3  # JPEG is not exact
    stored, upright = values.shape[::-1], read.shape[::-1]
    assert reader.orientation_and_sizes(tmp_path / name) == (orientation, stored, upright)


@pytest.mark.parametrize("suffix", sorted(set(IMAGE_SUFFIXES) - {".heic", ".heif"}))
def test_every_suffix_is_read(tmp_path, suffix):
    Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / f"a{suffix}", quality=95)
    pixels = np.asarray(load_image(tmp_path / f"a{suffix}")).astype(int)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels - (200, 100, 50)).max() <= 12


def test_heic_is_read_or_says_what_to_install(tmp_path):
    if reader.knows_heic():
        Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / "a.heic", quality=95)
        assert np.abs(np.asarray(load_image(tmp_path / "a.heic")).astype(int) - (200, 100, 50)).max() <= 12
    else:
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(ImageError, match="pip install -r requirements/heic.txt"):
            load_image(tmp_path / "a.heic")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "of no format"),
        (b"nothing", "of no format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "HTML page"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.png: cannot be read as an image \([^\n]*{reason}[^\n]*\); [^\n]*$"):
        load_image(tmp_path / "a.png")


def test_messages_are_one_line_whatever_the_name(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"^'[^\n]*a\\nb\.png': cannot be read as an image [^\n]*$"):
        load_image(tmp_path / "a\nb.png")


def test_odd_files_print_nothing(tmp_path):
    """Neither Pillow's warnings nor its log reach the terminal; what matters is in the error."""
    Image.new("L", (64, 64)).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    Image.new("L", (4, 4), 100).save(tmp_path / "b.jpg", exif=b"Exif\x00\x00II*\x00garbage")
    code = f"""
import contextlib
from deploy.reader import ImageError, load_image
for name in ("a.tif", "b.jpg"):
    with contextlib.suppress(ImageError):
        load_image({str(tmp_path)!r} + "/" + name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_released_reading(tmp_path):
    """As the authors' code does: resize in the file's own mode, then to RGB (open_clip's transform)."""
    rng = np.random.default_rng(0)
    base = Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[reader.ORIENTATION] = 6
    alpha = base.copy()
    alpha.putalpha(Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)))
    base.save(tmp_path / "rgb.png", exif=exif)
    alpha.save(tmp_path / "rgba.png")
    base.convert("P").save(tmp_path / "palette.png")
    base.convert("1").save(tmp_path / "one.png")
    Image.fromarray(rng.integers(0, 4095, (40, 50), dtype=np.uint16)).save(tmp_path / "deep.png")
    resize = transforms.Resize((24, 24), interpolation=transforms.InterpolationMode.BICUBIC)
    for path in sorted(tmp_path.glob("*.png")):
        with Image.open(path) as image:
            expected = np.asarray(resize(image).convert("RGB"))
        assert np.array_equal(np.asarray(reader.load_released(path, 24)), expected), path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [150, 50])  # Pillow refuses above twice the limit
def test_enormous_image(tmp_path, limit, monkeypatch):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=rf"a\.png: has more than {limit} pixels; [^\n]*$"):
        load_image(tmp_path / "a.png")


# Masks


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("L", (700, 900)), ("L", (1100, 30)), ("RGB", (512, 512)), ("1", (518, 518)), ("P", (100, 37))],
)
def test_mask_transform_is_the_released_one(tmp_path, mode, shape):
    rng = np.random.default_rng(shape[0])
    blocks = rng.integers(0, 3, (13, 11)).astype(np.uint8) * 100
    image = Image.fromarray(blocks).resize(shape[::-1], Image.Resampling.BICUBIC)
    image.convert(mode).save(tmp_path / "mask.png")
    binary = np.array(Image.open(tmp_path / "mask.png").convert("L")) > 0
    binary = Image.fromarray(binary.astype(np.uint8) * 255)
    resize = transforms.Compose([transforms.Resize((518, 518)), transforms.CenterCrop(518), transforms.ToTensor()])
    expected = resize(binary)
    expected[expected > 0.5], expected[expected <= 0.5] = 1, 0
    mask = load_mask(tmp_path / "mask.png", 518)
    assert mask.dtype == np.float32
    assert 0 < mask.mean() < 1
    assert np.array_equal(mask, expected[0].numpy())


def test_deep_mask_counts_every_value_above_zero(tmp_path):
    values = np.zeros((8, 8), dtype=np.uint16)
    values[:4] = 1
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert np.array_equal(load_mask(tmp_path / "mask.png", 8), (values > 0).astype(np.float32))


def whole(path, **options):
    return load_mask(path, Image.open(path).size, **options) > 0


DISC = np.hypot(*np.indices((40, 60)) - np.array([20, 30])[:, None, None]) < 9


def test_transparency_and_palettes_of_masks(tmp_path):
    """What is marked is the disc, however a program saves it."""
    disc, shape = DISC.astype(np.uint8), DISC.shape
    white = np.full(shape, 255, np.uint8)
    masks = {
        "grey": Image.fromarray(disc * 255),
        "index": Image.fromarray(disc).convert("L"),
        "white under transparency": Image.fromarray(np.dstack([white, white, white, disc * 255])),
        "defect in alpha, black": Image.fromarray(np.dstack([0 * white, 0 * white, 0 * white, disc * 255])),
        "grey and alpha": Image.fromarray(np.dstack([white, disc * 255])),
        "opaque": Image.fromarray(np.dstack([disc * 255] * 3 + [white])),
    }
    for number, (first, second) in enumerate([((255, 255, 255), (200, 0, 0)), ((0, 0, 0), (0, 0, 255))]):
        palette = Image.new("P", shape[::-1])
        palette.putdata(disc.ravel().tolist())
        palette.putpalette([*first, *second])
        masks[f"palette {number}"] = palette
    for name, mask in masks.items():
        mask.save(tmp_path / f"{name}.png")
        assert np.array_equal(whole(tmp_path / f"{name}.png"), DISC), name
    palette.save(tmp_path / "clear.png", transparency=1)  # what is marked cannot be seen
    assert not whole(tmp_path / "clear.png").any()
    assert whole(tmp_path / "white under transparency.png", released=True).all()


def test_threshold_takes_the_noise_of_jpeg(tmp_path):
    mask = Image.new("L", (622, 529))
    ImageDraw.Draw(mask).line((60, 80, 400, 430), fill=255, width=6)
    mask.save(tmp_path / "mask.png")
    mask.save(tmp_path / "mask.jpg", quality=95)
    counts = {
        (name, threshold): ndimage.label(load_mask(tmp_path / name, 518, threshold), np.ones((3, 3)))[1]
        for name in ("mask.png", "mask.jpg")
        for threshold in (0, 127)
    }
    assert counts[("mask.png", 0)] == counts[("mask.jpg", 127)] == 1 < counts[("mask.jpg", 0)]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_mask_is_turned_with_its_image(tmp_path, orientation):
    values = np.full((48, 96, 3), 90, np.uint8)
    values[10:30, :12] = 255
    exif = Image.Exif()
    exif[reader.ORIENTATION] = orientation
    Image.fromarray(values).save(tmp_path / "a.jpg", exif=exif, quality=95)
    drawn = Image.fromarray((values[:, :, 0] == 255).astype(np.uint8) * 255)
    drawn.save(tmp_path / "unturned.png")
    drawn.resize((48, 24), Image.Resampling.NEAREST).save(tmp_path / "half.png")
    bright = np.asarray(load_image(tmp_path / "a.jpg"))[..., 0] > 150
    Image.fromarray(bright.astype(np.uint8) * 255).save(tmp_path / "upright.png")
    for name in ("unturned.png", "half.png", "upright.png"):
        mask = load_mask(tmp_path / name, bright.shape[::-1], image_path=tmp_path / "a.jpg") > 0
        assert mask.shape == bright.shape
        assert (mask & bright).sum() / (mask | bright).sum() > 0.93, name
    square = load_mask(tmp_path / "unturned.png", 96, image_path=tmp_path / "a.jpg", released=True)
    assert np.array_equal(square, load_mask(tmp_path / "unturned.png", 96))
