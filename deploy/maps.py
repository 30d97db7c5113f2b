"""Anomaly maps at other sizes, and maps, masks and pictures in files. NumPy and Pillow alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from utils import atomic_path


def resize_map(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """A map (H, W) as (height, width), bilinearly, with antialias where it gets smaller; float32."""
    values = np.asarray(values, dtype=np.float32)
    if values.shape == (height, width):
        return values
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def map_to_uint16(values: np.ndarray, highest: float) -> np.ndarray:
    """A map as 16-bit values, of which 65535 stands for `highest`, the highest value that maps can have."""
    return np.rint(np.clip(values / highest, 0, 1) * 65535).astype(np.uint16)


def map_from_uint16(pixels: np.ndarray, highest: float) -> np.ndarray:
    """The map that `map_to_uint16` made these values from, to 1e-5 of `highest`."""
    return pixels.astype(np.float32) / 65535 * highest


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write a picture, a mask (H, W) uint8 or a map (H, W) uint16 atomically as PNG, whatever the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", compress_level=3)
