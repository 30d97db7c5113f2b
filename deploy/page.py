"""What the page of deploy/app.py computes: pictures looked at, calibrated, drawn; no gradio in here."""

from __future__ import annotations

import copy
import csv
import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import InputError

if TYPE_CHECKING:
    import numpy as np

    from deploy.decisions import Calibration
    from deploy.detector import BaseDetector, Result
    from deploy.run import Seen

MAX_PICTURES = 64  # at once
MAX_PIXELS = 250_000_000  # of all pictures of a visitor: 7 bytes each stay in memory
MAX_WINDOWS = 2000  # of one picture
MAX_PROMPTS = 100  # of each kind
STEPS = 1000  # of a threshold's slider


def takes_words(detector: BaseDetector) -> bool:
    """Whether `with_words` works: there is a text encoder, and the method compares with two text features."""
    return isinstance(getattr(getattr(detector, "method", None), "text_features", None), dict)


def with_words(detector: BaseDetector, normal: str, abnormal: str) -> BaseDetector | None:
    """The detector with prompts of one's own, one a line, instead of its own; None if both texts are empty.

    As in `prompt_ensemble.hand_written_features`, unit vectors of several prompts are averaged. Raises InputError for a
    single text, too many prompts or one that the text encoder would cut off.
    """
    prompts = [[line.strip() for line in (text or "").splitlines() if line.strip()] for text in (normal, abnormal)]
    if not any(prompts):
        return None
    if not takes_words(detector):
        raise InputError("own words need a text encoder, which model.onnx does not have; start with a checkpoint")
    if not all(prompts):
        raise InputError("own words: fill in both, normal and abnormal")
    if max(map(len, prompts)) > MAX_PROMPTS:
        raise InputError(f"own words: more than {MAX_PROMPTS} prompts; leave some out")
    import torch

    from prompt_ensemble import mean_feature

    model = detector.method.model
    for prompt in sum(prompts, []):
        if len(model.tokenizer.encode(prompt)) + 2 > model.tokenizer([prompt]).shape[1]:
            raise InputError(f"own words: {prompt[:40]!r}... is longer than the text encoder takes; shorten it")
    with torch.no_grad():
        features = torch.stack([mean_feature(model, each) for each in prompts])
    other = copy.copy(detector)
    other.method = copy.copy(detector.method)
    other.method.text_features = {detector.class_name: features}
    return other


def with_windows(detector: BaseDetector, tile: float | None, overlap: float | None) -> BaseDetector:
    """The detector with other windows; tile None or 0: none. InputError for an overlap that is not in [0, 0.9]."""
    other = copy.copy(detector)
    other.tile, other.overlap = int(tile or 0) or None, 0.25 if overlap is None else overlap
    if not 0 <= other.overlap <= 0.9 or (tile or 0) < 0:
        raise InputError("windows: a width of 0 or more pixels, and an overlap in [0, 0.9]")
    other.made_with = detector.made_with | {"tile": other.tile, "overlap": other.overlap if other.tile else None}
    return other


# pictures


def look_at(detector: BaseDetector, paths: list[str], tell: Callable[[int, int], None] | None = None) -> list[Seen]:
    """What the detector says of files, with the reason for those that cannot be read.

    tell: called with the number of pictures done and of all. Raises InputError for too many pictures at once.
    """
    from deploy.run import read_or_explain, results_of
    from deploy.sources import Picture

    if len(paths) > MAX_PICTURES:
        raise InputError(f"{len(paths)} pictures at once; {MAX_PICTURES} is the limit")
    pixels = 0

    def read() -> Iterator[Seen]:
        nonlocal pixels
        names = distinct([Path(path).name for path in paths])
        for number, (name, path) in enumerate(zip(names, paths, strict=True)):
            seen = read_or_explain(detector, number, Picture(path, name))
            if not seen.error:
                height, width = seen.pixels.shape[:2]
                if pixels + height * width > MAX_PIXELS:
                    seen.error = f"left out: more than {MAX_PIXELS / 1e6:.0f} million pixels at once"
                elif detector.tile and count_windows(height, width, detector) > MAX_WINDOWS:
                    seen.error = f"left out: more than {MAX_WINDOWS} windows; choose larger ones"
                else:
                    pixels += height * width
            if seen.error:
                seen.pixels = seen.image = None
            yield seen

    done = []
    for seen in results_of(detector, read(), 1):
        done.append(seen)
        if tell:
            tell(len(done), len(paths))
    return done


def uploaded(files: Any) -> list[str]:
    """Paths of a request's files; InputError for what is no upload, so that nobody reads other files of the machine."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    paths = (
        [file.get("path") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else [None]
    )
    if not all(isinstance(path, str) and Path(path).resolve().is_relative_to(folder) for path in paths):
        raise InputError("files has to be a list of uploads; make them with gradio_client.handle_file")
    return paths


def look_again(detector: BaseDetector, seen: list[Seen], tell: Callable[[int, int], None]) -> list[Seen]:
    """The same pictures with what another detector says of them."""
    readable = [each for each in seen if not each.error]
    for each in readable:
        if detector.tile and count_windows(*each.pixels.shape[:2], detector) > MAX_WINDOWS:
            raise InputError(f"{each.picture.name} would have more than {MAX_WINDOWS} windows; choose larger ones")
    results = ask(detector, readable, tell)
    return [replace(each, result=results.get(each.number)) for each in seen]


def ask(detector: BaseDetector, seen: list[Seen], tell: Callable[[int, int], None] | None = None) -> dict[int, Result]:
    """What a detector says of pictures that were read, by their numbers."""
    results = {}
    for each in seen:
        [results[each.number]] = detector.look_at([detector.read(each.pixels)])
        if tell:
            tell(len(results), len(seen))
    return results


def count_windows(height: int, width: int, detector: BaseDetector) -> int:
    """How many windows a picture has."""
    from tiling import starts

    return math.prod(len(starts(length, detector.tile, detector.overlap)) for length in (height, width))


def distinct(names: list[str]) -> list[str]:
    """The names, a number added to those that were there before: a.png, a (2).png."""
    met, made = Counter(), []
    for name in names:
        met[name] += 1
        path = Path(name)
        made.append(name if met[name] == 1 else f"{path.stem} ({met[name]}){path.suffix}")
    return made


def calibrate(seen: list[Seen], false_alarms: float | None, made_with: dict) -> Calibration:
    """Thresholds from good pictures; InputError if those that could be read are too few for the share."""
    from deploy.decisions import from_rows
    from deploy.run import measure

    rows = [measure(each)[0] for each in seen]
    share = check_share(sum(not row.get("error") for row in rows), false_alarms)
    return from_rows(rows, share, made_with)


def same_windows(calibration: Calibration, detector: BaseDetector) -> bool:
    """Whether a calibration, if it is one, was made with the detector's windows."""
    before, now = calibration.made_with, detector.made_with
    return not calibration.made or all(before.get(key) == now.get(key) for key in ("tile", "overlap"))


def check_share(number: int, false_alarms: float | None) -> float:
    """The share of false alarms; InputError if so many good pictures cannot keep it."""
    from deploy.decisions import pictures_needed

    if false_alarms is None or not 0 < false_alarms < 1:
        raise InputError("false alarms: give a share between 0 and 1, such as 0.05")
    needed = pictures_needed(false_alarms)
    if number < needed:
        raise InputError(
            f"{false_alarms:.3g} false alarms need at least {needed} good pictures, and there are {number}; "
            "give more, or allow more false alarms"
        )
    return false_alarms


def full_row(seen: Seen, calibration: Calibration, own: Result | None = None, outlines: bool = False) -> dict:
    """What there is to say of a picture, by the names of `deploy.results.COLUMNS`; own_score is that of own words.

    outlines: also regions, their number, and outlines, see `pictures.find_regions`; slow for large pictures.
    """
    from deploy.run import decided
    from pictures import find_regions

    row = decided(seen, calibration)
    if outlines and "anomalous_share" in row:
        row["outlines"] = find_regions(seen.result.map, calibration.pixel_threshold)
        row["regions"] = len(row["outlines"])
    return row | ({"own_score": own.score} if own and not seen.error else {})


def shrink(array: np.ndarray, longest: int) -> np.ndarray:
    """A picture (H, W, 3) or map (H, W), its longer side at most so many pixels."""
    import cv2

    height, width = array.shape[:2]
    factor = min(1, longest / max(height, width))
    if factor == 1:
        return array
    return cv2.resize(
        array, (max(1, round(width * factor)), max(1, round(height * factor))), None, 0, 0, cv2.INTER_AREA
    )


# thresholds: a slider's position stands for log-odds, because scores crowd near 0 and 1


def log_odds(value: float, highest: float) -> float:
    """Of a score or map value in [0, highest]."""
    share = min(max(value / highest, 1e-7), 1 - 1e-7)
    return math.log(share / (1 - share))


def slider_range(values: list[float], highest: float) -> tuple[float, float]:
    """Log-odds at the ends of a slider, a little beyond the lowest and the highest value."""
    if not values:
        return log_odds(0.001, 1), log_odds(0.999, 1)
    low, high = log_odds(min(values), highest), log_odds(max(values), highest)
    margin = 0.02 * (high - low) + 0.01
    return low - margin, high + margin


def threshold_at(position: float, values: list[float], highest: float) -> float:
    """The threshold that a position in [0, STEPS] stands for, with 9 significant digits."""
    low, high = slider_range(values, highest)
    return float(f"{highest / (1 + math.exp(-(low + (high - low) * position / STEPS))):.9g}")


def position_of(threshold: float | None, values: list[float], highest: float) -> int:
    """The position in [0, STEPS] closest to a threshold; at the right end without one."""
    low, high = slider_range(values, highest)
    if threshold is None:
        return STEPS
    return round(min(max((log_odds(threshold, highest) - low) / (high - low), 0), 1) * STEPS)


# downloads


def csv_text(rows: list[dict]) -> str:
    """predictions.csv of predict.py; with own words one more column, own_score."""
    from deploy.results import COLUMNS, csv_row

    extra = any("own_score" in row for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(["own_score"] if extra else [])])
    for row in rows:
        own = row.get("own_score")
        writer.writerow([*csv_row(row), *(["" if own is None else f"{own:.6g}"] if extra else [])])
    return text.getvalue()


def write_masks(path: Path, seen: list[Seen], threshold: float) -> None:
    """A zip of masks, PNG of 0 and 255 at the pictures' own sizes; the pictures that could be read."""
    import cv2
    import numpy as np

    names = distinct([f"{Path(each.picture.name).stem}.png" for each in seen])
    with zipfile.ZipFile(path, "w") as archive:
        for name, each in zip(names, seen, strict=True):
            if not each.error:
                mask = (each.result.map > threshold).astype(np.uint8) * 255
                archive.writestr(name, cv2.imencode(".png", mask)[1].tobytes())
