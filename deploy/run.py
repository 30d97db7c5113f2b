"""Many pictures through a predictor: read and written in threads, in order, each a row that survives an interruption.

A predictor is a `deploy.detector.BaseDetector`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import parallel
from deploy.decisions import Calibration
from deploy.maps import map_to_uint16, write_image
from deploy.results import Journal, stamp
from deploy.sources import Picture
from utils import INTERRUPTION, InputError

if TYPE_CHECKING:
    from deploy.detector import Result

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass
class Seen:
    """A picture on its way: what was read, what the model said, or why it could not be read."""

    number: int
    picture: Picture
    stamp: list[int] | None
    pixels: np.ndarray | None = None
    image: Any = None
    error: str = ""
    result: Result | None = None

    def row(self) -> dict:
        """What every row has."""
        row = {"number": self.number, "stamp": self.stamp, "path": self.picture.name}
        if self.error:
            return row | {"error": self.error}
        height, width = self.pixels.shape[:2]
        scores = {"score": self.result.score, "map_max": self.result.map_max, "tile_max": self.result.tile_max}
        return row | scores | {"width": width, "height": height}


def look_at_all(
    predictor: Any,
    pictures: dict[int, Picture],
    journal: Journal,
    finish: Callable[[Seen], tuple[dict, bytes | None]],
    batch_size: int,
    num_workers: int,
    title: str,
) -> None:
    """Look at this process's share of numbered pictures and append a row of each to the journal, in their order.

    finish: makes the row (and thumbnail) of a picture and writes its files. Pictures that an interrupted run has
    finished are passed over, unless their file has changed since.
    """
    finished = journal.finished() if pictures else {}
    parallel.barrier()  # nobody appends before all have read
    share = list(pictures.items())[parallel.rank() :: parallel.world_size()]
    todo = [(number, picture) for number, picture in share if finished.get(number, ()) != stamp(picture.path)]
    with reading_pool(num_workers) as (pool, ahead):
        read = in_order(pool, lambda job: read_or_explain(predictor, *job), todo, ahead)
        rows = in_order(pool, finish, results_of(predictor, read, batch_size), ahead)
        for row, thumbnail in with_progress(rows, len(share), title, initial=len(share) - len(todo)):
            INTERRUPTION.check()
            journal.append(row, thumbnail)
    journal.close()
    parallel.barrier()


def read_or_explain(predictor: Any, number: int, picture: Picture) -> Seen:
    """A picture as it was read, or with the reason why it could not be."""
    seen = Seen(number, picture, stamp(picture.path))
    try:
        seen.pixels, seen.image = predictor.read(picture.path)
    except InputError as error:
        seen.error = str(error).removeprefix(f"{picture.path}: ")
    return seen


def results_of(predictor: Any, read: Iterable[Seen], batch_size: int) -> Iterator[Seen]:
    """The pictures with the results of those that could be read."""
    for batch in batches(read, batch_size):
        results = predictor.look_at([(seen.pixels, seen.image) for seen in batch if not seen.error])
        for seen in batch:
            if not seen.error:
                seen.result, seen.image = next(results), None
            yield seen


def in_digits(score: float) -> str:
    """A score with three decimals, or six where these are all zeros or nines."""
    return f"{score:.3f}" if 0.0005 <= score < 0.9995 else f"{score:.6f}"


def measure(seen: Seen) -> tuple[dict, None]:
    """The row of a picture that thresholds are made from."""
    row = seen.row()
    return row if seen.error else row | {"map_median": float(np.median(seen.result.map))}, None


def decided(seen: Seen, calibration: Calibration) -> dict:
    """The row of a picture with what a calibration says of its score and its map."""
    row = seen.row()
    if seen.error:
        return row
    score, threshold = seen.result.score, calibration.pixel_threshold
    row |= {"p_value": calibration.p_value(score), "threshold": calibration.threshold}
    row["decision"] = calibration.decide(score)
    if threshold is not None:
        row["anomalous_share"] = float((seen.result.map > threshold).mean())
    return row


@dataclass
class Output:
    """Makes the rows of pictures, and writes what is drawn of them.

    Attributes:
        calibration: what decides. highest: the highest value that maps can have.
        folder: the run folder. names: what is drawn of a picture is called so.
        overlays, maps, masks, thumbnails: what is drawn.
        drawn: whether OpenCV is here, without which there are no regions, overlays and thumbnails.
    """

    calibration: Calibration
    highest: float
    folder: Path
    names: dict[str, str]
    overlays: bool = False
    maps: bool = False
    masks: bool = False
    thumbnails: bool = False
    drawn: bool = True

    def __call__(self, seen: Seen) -> tuple[dict, bytes | None]:
        """Row and thumbnail of a picture, of which everything is on disk by then."""
        row = decided(seen, self.calibration)
        if seen.error:
            return row, None
        values, threshold = seen.result.map, self.calibration.pixel_threshold
        name = self.names[seen.picture.name]
        if self.maps:
            write_image(self.folder / "maps" / name, map_to_uint16(values, self.highest))
        if self.masks:
            write_image(self.folder / "masks" / name, (values > threshold).astype(np.uint8) * 255)
        if not self.drawn:
            return row, None

        from pictures import find_regions, overlay, scale_around, thumbnail

        if threshold is not None:
            row["outlines"] = find_regions(values, threshold)
            row["regions"] = len(row["outlines"])
        scale = scale_around(threshold, self.calibration.map_median, self.highest)
        if self.overlays:
            text = f"{in_digits(seen.result.score)} {row['decision']}".strip()
            write_image(self.folder / "overlays" / name, overlay(seen.pixels, values, scale, threshold, text))
        return row, thumbnail(seen.pixels, values, scale, threshold) if self.thumbnails else None


@contextlib.contextmanager
def reading_pool(num_workers: int) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads that read and write pictures, and how many pictures may be under way; an error leaves none behind."""
    pool = ThreadPoolExecutor(max(1, num_workers))
    try:
        yield pool, max(1, num_workers)
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Given], Made], items: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """function(item) for each item, computed in threads, `ahead` of them in advance, in the order of the items."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def batches(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    """The items in lists of `size`, the last one perhaps shorter."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def with_progress(items: Iterable[Given], total: int, title: str, initial: int = 0) -> Iterator[Given]:
    """The items, with a progress bar in the main process, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from items
        return
    silent = not parallel.is_main() or total == initial
    with tqdm(total=total, initial=initial, desc=title, unit="picture", smoothing=0.05, disable=silent) as progress:
        for item in items:
            yield item
            progress.update()
