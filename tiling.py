"""Windows of a large picture, and one map from the maps of the windows. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LOWEST_WEIGHT = 1e-3  # at the rim of a window, where another one usually takes over


class Window(NamedTuple):
    """Rows top to bottom and columns left to right of a picture, the last ones excluded."""

    top: int
    left: int
    bottom: int
    right: int


def windows(height: int, width: int, tile: int, overlap: float = 0.25) -> list[Window]:
    """Windows of `tile` pixels that cover a picture, row by row, neighbours overlapping by at least this share.

    Nothing is padded: the last window of a row or column is moved inwards, and where the picture is smaller than a
    window, the window is as small as the picture.
    """
    return [
        Window(top, left, min(top + tile, height), min(left + tile, width))
        for top in starts(height, tile, overlap)
        for left in starts(width, tile, overlap)
    ]


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where the windows of `tile` pixels begin that cover `length` pixels."""
    step = max(1, round(tile * (1 - overlap)))
    return [*range(0, max(0, length - tile), step), max(0, length - tile)]


class Blend:
    """One map of a picture from the maps of its windows, which overlap and are faded into each other.

    It takes the memory of two maps of the picture, however many windows there are.
    """

    def __init__(self, height: int, width: int) -> None:
        self.sum = np.zeros((height, width), np.float32)
        self.weight = np.zeros((height, width), np.float32)

    def add(self, window: Window, values: np.ndarray) -> None:
        """Add the map of a window, which has the window's height and width."""
        weight = np.outer(fade(values.shape[0]), fade(values.shape[1]))
        place = np.s_[window.top : window.bottom, window.left : window.right]
        self.sum[place] += weight * values
        self.weight[place] += weight

    def map(self) -> np.ndarray:
        """The mean of the windows' maps, each counting less towards its rim: (height, width) float32."""
        return self.sum / self.weight


def fade(length: int) -> np.ndarray:
    """Weights (length,) that rise smoothly from the ends of a window to its middle, float32."""
    places = (np.arange(length, dtype=np.float64) + 0.5) / length
    return np.maximum(np.sin(np.pi * places) ** 2, LOWEST_WEIGHT).astype(np.float32)


def look_closer(
    pixels: np.ndarray,
    tile: int,
    overlap: float,
    batch_size: int,
    look: Callable[[list[np.ndarray]], tuple[np.ndarray, list[np.ndarray]]],
) -> tuple[np.ndarray, float]:
    """The blended map (H, W) of a picture's windows, and the largest of their scores.

    Args:
        pixels: (H, W, 3) uint8.
        tile, overlap: see `windows`. batch_size: windows that are looked at together.
        look: scores (B,) of B parts of the picture, and their maps at the parts' own sizes.
    """
    blend, tile_max = Blend(*pixels.shape[:2]), -np.inf
    places = windows(*pixels.shape[:2], tile, overlap)
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        scores, maps = look([pixels[place.top : place.bottom, place.left : place.right] for place in batch])
        tile_max = max(tile_max, float(scores.max()))
        for place, values in zip(batch, maps, strict=True):
            blend.add(place, values)
    return blend.map(), tile_max


def combine(
    whole_score: float, whole_map: np.ndarray, tile_max: float, windows_map: np.ndarray
) -> tuple[float, np.ndarray]:
    """Score and map of a picture from those of the whole and of its windows: their means.

    Chosen by benchmarks/tiles.py on rendered scenes: windows alone find small defects best, but lose large ones, of
    which a window shows a part; the mean is close to the better of both for either.
    """
    return (whole_score + tile_max) / 2, (whole_map + windows_map) / 2
