"""tiling.py: windows that cover everything, and maps without seams."""

import numpy as np
import pytest

import tiling


@pytest.mark.parametrize(("height", "width"), [(100, 100), (101, 257), (40, 300), (30, 20), (1, 1)])
@pytest.mark.parametrize(("tile", "overlap"), [(40, 0.25), (64, 0), (50, 0.9), (1000, 0.5)])
def test_windows_cover_the_picture_and_stay_inside(height, width, tile, overlap):
    covered = np.zeros((height, width), int)
    found = tiling.windows(height, width, tile, overlap)
    assert len(set(found)) == len(found)
    for window in found:
        assert 0 <= window.top < window.bottom <= height and 0 <= window.left < window.right <= width
        assert window.bottom - window.top == min(tile, height) and window.right - window.left == min(tile, width)
        covered[window.top : window.bottom, window.left : window.right] += 1
    assert covered.all()
    for axis in (0, 1):
        places = sorted({window[axis] for window in found})
        assert all(
            after - before <= max(1, round(tile * (1 - overlap)))
            for before, after in zip(places, places[1:], strict=False)
        )


def test_the_last_window_is_moved_inwards():
    assert tiling.starts(100, 40, 0.25) == [0, 30, 60]
    assert tiling.starts(110, 40, 0.25) == [0, 30, 60, 70]
    assert tiling.starts(40, 40, 0.25) == tiling.starts(39, 40, 0.25) == [0]


def blended(picture: np.ndarray, tile: int, overlap: float, value) -> np.ndarray:
    """The map of a picture (H, W) whose windows each have the map value(window of the picture)."""
    blend = tiling.Blend(*picture.shape)
    for window in tiling.windows(*picture.shape, tile, overlap):
        blend.add(window, value(picture[window.top : window.bottom, window.left : window.right]))
    return blend.map()


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_what_all_windows_agree_on_is_kept_exactly(overlap):
    """A constant, and any map that depends on the pixel alone: so there is no seam."""
    stream = np.random.RandomState(0)
    picture = stream.rand(90, 130).astype(np.float32)
    np.testing.assert_allclose(blended(picture, 32, overlap, lambda part: part * 0 + 0.7), 0.7, rtol=1e-5)
    np.testing.assert_allclose(blended(picture, 32, overlap, lambda part: part**2), picture**2, rtol=1e-5)


def test_windows_that_disagree_fade_into_each_other():
    """Each window has another level; neighbouring pixels differ by little, and nothing lies outside of the levels."""
    levels = iter(np.linspace(0, 1, 200))
    values = blended(np.zeros((200, 200), np.float32), 64, 0.5, lambda part: part + next(levels))
    assert 0 <= values.min() and values.max() <= 1
    assert max(np.abs(np.diff(values, axis=axis)).max() for axis in (0, 1)) < 0.06 * (values.max() - values.min())


def test_a_shifted_picture_has_the_shifted_map():
    """A defect is found alike wherever it lies between the windows."""
    defect = np.add.outer((np.arange(21) - 10) ** 2, (np.arange(21) - 10) ** 2)
    defect = np.exp(-defect / 30).astype(np.float32)

    def map_of(part: np.ndarray) -> np.ndarray:
        """A model that sees a defect worse towards the rim of a window."""
        weight = np.outer(tiling.fade(part.shape[0]), tiling.fade(part.shape[1])) ** 0.1
        return part * weight

    peaks = []
    for shift in range(40, 80, 3):
        picture = np.zeros((160, 160), np.float32)
        picture[shift : shift + 21, shift : shift + 21] = defect
        values = blended(picture, 64, 0.5, map_of)
        assert np.unravel_index(values.argmax(), values.shape) == (shift + 10, shift + 10)
        peaks.append(values.max())
    assert min(peaks) > 0.85 * max(peaks)


def test_look_closer_takes_windows_in_batches():
    pixels = np.random.RandomState(1).randint(0, 256, (70, 90, 3)).astype(np.uint8)
    sizes = []

    def look(parts):
        sizes.append(len(parts))
        return np.array([part.mean() / 255 for part in parts]), [part.mean(axis=2) / 255 for part in parts]

    values, tile_max = tiling.look_closer(pixels, 32, 0.25, 5, look)
    count = len(tiling.windows(70, 90, 32, 0.25))
    assert sizes == [5] * (count // 5) + ([count % 5] if count % 5 else [])
    np.testing.assert_allclose(values, pixels.mean(axis=2) / 255, atol=1e-6)
    means = [pixels[w.top : w.bottom, w.left : w.right].mean() / 255 for w in tiling.windows(70, 90, 32, 0.25)]
    assert tile_max == pytest.approx(max(means))
