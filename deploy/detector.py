"""What a model says of one picture: looked at as a whole, and window by window. NumPy and Pillow alone, imported late.

`predict.Predictor` and `deploy.runtime.Detector` are the two kinds of detectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils import InputError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Result:
    """What a model says of one picture.

    Attributes:
        score: P(abnormal) of the whole picture, as test.py computes it; with tiles see `tiling.combine`.
        map: (H, W) float32 at the picture's own size, smoothed, in [0, `BaseDetector.highest`].
        tile_max: the largest score of a window; None without tiles.
    """

    score: float
    map: np.ndarray
    tile_max: float | None = None

    @property
    def map_max(self) -> float:
        """The highest value of the map."""
        return float(self.map.max())


class BaseDetector(ABC):
    """Pictures to results.

    Args:
        tile: width in picture pixels of square windows that are looked at beside the whole picture, for small defects
            in large pictures; None: the whole picture alone.
        overlap: share by which neighbouring windows overlap, in [0, 0.9].
        value_range: what is black and white in pictures of more than 8 bits.
        batch_size: pictures or windows that go through the model together.

    Attributes:
        image_size: S in pixels, what the model takes.
        highest: the highest value that maps can have.
        made_with: all that scores depend on.
    """

    image_size: int
    highest: float
    made_with: dict

    def __init__(
        self, tile: int | None, overlap: float, value_range: tuple[float, float] | None, batch_size: int
    ) -> None:
        if not 0 <= overlap <= 0.9:
            raise InputError(f"overlap {overlap} is not in [0, 0.9]")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise InputError(
                f"value_range {value_range[0]} {value_range[1]}: the first value has to be the smaller one"
            )
        self.tile, self.overlap, self.batch_size = tile, overlap, batch_size
        self.value_range = None if value_range is None else tuple(value_range)

    def __call__(self, picture: Any) -> Result | list[Result]:
        """The result for a path, a PIL image or an (H, W, 3) uint8 array; for a list of them a list of results.

        Raises ImageError, an InputError, for a file that cannot be read as a picture.
        """
        if isinstance(picture, list | tuple):
            return list(self.look_at(map(self.read, picture)))
        return next(self.look_at([self.read(picture)]))

    def read(self, picture: Any) -> tuple[np.ndarray, np.ndarray]:
        """A picture, (H, W, 3) uint8 RGB, and the same at the model's input size, (3, S, S) uint8."""
        import numpy as np
        from PIL import Image

        from deploy.reader import as_rgb, load_image

        if isinstance(picture, Image.Image):
            pixels = np.asarray(as_rgb(picture, self.value_range))
        elif isinstance(picture, np.ndarray):
            pixels = picture
        else:
            pixels = np.asarray(load_image(picture, self.value_range))
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise InputError(f"a picture has to be (H, W, 3) uint8, this one is {pixels.shape} {pixels.dtype}")
        return pixels, self.resize(pixels)

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """A picture or a part of it (H, W, 3) at the model's input size, (3, S, S) uint8; as `AnomalyCLIP.resize`."""
        import numpy as np
        from PIL import Image

        image = Image.fromarray(pixels).resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)

    def look_at(self, pictures: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Result]:
        """Results of pictures as `read` gives them, in their order; no more than a batch of them is held at a time."""
        import numpy as np

        from deploy.maps import resize_map
        from deploy.run import batches
        from tiling import combine, look_closer

        for batch in batches(pictures, 1 if self.tile else self.batch_size):
            scores, maps = self.predict(np.stack([image for _, image in batch]))
            for (pixels, _), score, values in zip(batch, scores, maps, strict=True):
                whole = resize_map(values, *pixels.shape[1::-1])
                if not self.tile:
                    yield Result(float(score), whole)
                    continue
                closer, tile_max = look_closer(pixels, self.tile, self.overlap, self.batch_size, self.look_at_parts)
                yield Result(*combine(float(score), whole, tile_max, closer), tile_max)

    def look_at_parts(self, parts: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Scores (B,) and maps (H, W) of parts of a picture, (H, W, 3) each."""
        import numpy as np

        from deploy.maps import resize_map

        scores, maps = self.predict(np.stack([self.resize(part) for part in parts]))
        return scores, [resize_map(values, *part.shape[1::-1]) for part, values in zip(parts, maps, strict=True)]

    @abstractmethod
    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B,) and smoothed maps (B, S, S) of images (B, 3, S, S) uint8."""
