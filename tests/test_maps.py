"""deploy/maps.py: maps at other sizes and in 16-bit files."""

import numpy as np
import pytest
import torch
from PIL import Image

from deploy.maps import map_from_uint16, map_to_uint16, resize_map, write_image


def test_enlarging_is_bilinear_as_in_torch():
    values = np.random.RandomState(0).rand(7, 9).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=(31, 40), mode="bilinear")
    resized = resize_map(values, 40, 31)
    assert resized.shape == (31, 40) and resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected[0, 0], atol=1e-6)
    assert resize_map(values, 9, 7) is values


def test_shrinking_averages():
    values = np.arange(64, dtype=np.float32).reshape(8, 8) % 2
    np.testing.assert_allclose(resize_map(values, 2, 2), 0.5, atol=0.04)


@pytest.mark.parametrize("highest", [1, 4])
def test_16_bits_keep_the_map(highest):
    values = np.random.RandomState(1).rand(20, 30).astype(np.float32) * highest
    pixels = map_to_uint16(values, highest)
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(map_from_uint16(pixels, highest), values, atol=1e-5 * highest)
    np.testing.assert_allclose(pixels / 65535 * highest, values, atol=1e-5 * highest)
    assert map_to_uint16(np.array([0, highest, highest + 1e-6]), highest).tolist() == [0, 65535, 65535]


@pytest.mark.parametrize("kind", ["picture", "mask", "map"])
def test_written_images_are_read_back(tmp_path, kind):
    stream = np.random.RandomState(0)
    pixels = {
        "picture": stream.randint(0, 256, (9, 7, 3)).astype(np.uint8),
        "mask": (stream.rand(9, 7) > 0.5).astype(np.uint8) * 255,
        "map": stream.randint(0, 65536, (9, 7)).astype(np.uint16),
    }[kind]
    write_image(tmp_path / "new" / "x ü.png", pixels)
    with Image.open(tmp_path / "new" / "x ü.png") as image:
        assert (np.asarray(image) == pixels).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x ü.png"]
