"""pictures.py: colours, overlays, regions and names of files."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import pictures


def test_one_scale_of_colours():
    scale = pictures.Scale(0, 1, middle=0.3)
    cold, middle, warm = scale.colours(np.array([[0.0, 0.3, 1.0]]))[0].astype(int)
    assert cold[2] > cold[0] and warm[0] > 2 * warm[2] and middle[1] > 200
    beyond = scale.colours(np.array([[-5.0, 7.0]]))[0]
    assert (beyond[0] == cold).all() and (beyond[1] == warm).all()
    flat = pictures.Scale(0.5, 0.5).colours(np.full((2, 2), 0.5))
    assert flat.shape == (2, 2, 3)


def test_what_lies_below_the_threshold_is_never_warm():
    """Pictures do not glow red when all is well: below the threshold there is no colour with more red than green."""
    scale = pictures.scale_around(0.6, 0.4, 1.0)
    colours = scale.colours(np.linspace(0, 0.59, 100)[None]).astype(int)[0]
    assert (colours[:, 0] < colours[:, 1:].max(axis=1)).all()
    warmest = scale.colours(np.array([[1.0]])).astype(int)[0, 0]
    assert warmest[0] > warmest[1]
    whole = pictures.scale_around(None, None, 4.0)
    assert (whole.low, whole.middle, whole.high) == (0, 2, 4)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (300, 40), (24, 24), (600, 800)])
def test_an_overlay_has_the_pictures_size_and_shows_text_bar_and_contour(height, width):
    picture = np.full((height, width, 3), 90, np.uint8)
    values = np.zeros((height, width), np.float32)
    values[height // 3 : height // 2, width // 4 : width // 2] = 0.9
    scale = pictures.Scale(0, 1, 0.5)
    plain = pictures.overlay(picture, values, scale, bar=False)
    contour = pictures.overlay(picture, values, scale, 0.5, bar=False)
    shown = pictures.overlay(picture, values, scale, 0.5, "0.912 anomalous")
    assert plain.shape == contour.shape == shown.shape == picture.shape and shown.dtype == np.uint8
    assert (contour[height // 3 : height // 2, width // 4 : width // 2] == 255).all(axis=-1).any()
    changed = (shown != contour).any(axis=-1)
    assert changed[: height // 4, : width // 2].any() and changed[height // 3 : 2 * height // 3, -width // 3 :].any()
    assert (picture == 90).all()


@pytest.mark.parametrize("seed", range(4))
def test_regions_are_those_of_scipy(seed):
    stream = np.random.RandomState(seed)
    values = ndimage.gaussian_filter(stream.randn(60, 80), 2.5).astype(np.float32)
    threshold = np.quantile(values, 0.9)
    labels, count = ndimage.label(values > threshold, np.ones((3, 3)))
    regions = pictures.find_regions(values, threshold)
    assert len(regions) == count > 3
    expected = set()
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        expected.add((*box, int((labels == number).sum()), float(values[labels == number].max())))
    assert {(*region["bbox"], region["area"], region["score"]) for region in regions} == expected
    for region in regions:
        left, top, width, height = region["bbox"]
        for polygon in region["segmentation"]:
            points = np.array(polygon).reshape(-1, 2)
            assert len(points) >= 3
            assert (points >= (left, top)).all() and (points <= (left + width, top + height)).all()


def test_regions_of_nothing_and_of_a_pixel():
    values = np.zeros((10, 10), np.float32)
    assert pictures.find_regions(values, 0.5) == []
    values[3, 4] = 1
    (region,) = pictures.find_regions(values, 0.5)
    assert region == {"bbox": [4, 3, 1, 1], "area": 1, "score": 1.0, "segmentation": [[4, 3, 5, 3, 5, 4, 4, 4]]}


def test_panels_stand_side_by_side():
    picture, mask = np.full((8, 6, 3), 50, np.uint8), np.eye(8, 6)
    values = np.zeros((8, 6), np.float32)
    assert pictures.panel(picture, None, values, pictures.Scale(0, 1)).shape == (8, 12, 3)
    three = pictures.panel(picture, mask, values, pictures.Scale(0, 1))
    assert three.shape == (8, 18, 3) and (three[:, 6:12, 0] == mask * 255).all() and (three[:, :6] == 50).all()


def test_thumbnails_are_small(tmp_path):
    picture = np.random.RandomState(0).randint(0, 256, (900, 1200, 3)).astype(np.uint8)
    content = pictures.thumbnail(picture, np.zeros((900, 1200), np.float32), pictures.Scale(0, 1), 0.5)
    (tmp_path / "t.jpg").write_bytes(content)
    with Image.open(tmp_path / "t.jpg") as image:
        assert image.size == (2 * pictures.THUMBNAIL, round(pictures.THUMBNAIL * 0.75))
