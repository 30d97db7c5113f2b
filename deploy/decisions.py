"""From scores to decisions: thresholds with a promise, p-values, and the file they are kept in. NumPy alone.

n pictures that are known to be normal give a threshold with a promise that holds whatever the model is (split
conformal prediction; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005): a further normal
picture from the same source is called anomalous with a probability of at most `false_alarms`, on average over the
pictures used for calibration.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from utils import InputError, write_json

NORMAL, ANOMALOUS = "normal", "anomalous"
FALSE_ALARMS = 0.05  # the share that is allowed if nothing is said


@dataclass(frozen=True)
class Calibration:
    """How scores become decisions.

    Attributes:
        made: "normal" (from normal pictures), "labelled" (from a data set with labels), "by hand" or "" (not at all).
        threshold: a picture is anomalous if its score is above; None: no decisions.
        pixel_threshold: a pixel is anomalous if the map is above; None: no regions.
        n: pictures that the thresholds come from.
        false_alarms: the share of normal pictures that may be called anomalous, if made from normal pictures.
        normal_scores, normal_map_maxima: of these pictures, ascending.
        map_median: the median of normal pictures' maps, for the colours of heat maps.
        f1: the best F1 of pictures and of pixels, if made from labels.
        made_with: what scores depend on; a calibration is refused for anything else.
    """

    made: str = ""
    threshold: float | None = None
    pixel_threshold: float | None = None
    n: int = 0
    false_alarms: float | None = None
    normal_scores: list[float] = field(default_factory=list)
    normal_map_maxima: list[float] = field(default_factory=list)
    map_median: float | None = None
    f1: dict[str, float] = field(default_factory=dict)
    made_with: dict = field(default_factory=dict)

    def p_value(self, score: float) -> float | None:
        """(1 + number of normal scores at least as high) / (n + 1); None without normal pictures."""
        if not self.normal_scores:
            return None
        at_least = len(self.normal_scores) - int(np.searchsorted(self.normal_scores, score, side="left"))
        return (1 + at_least) / (len(self.normal_scores) + 1)

    def decide(self, score: float) -> str:
        """ANOMALOUS, NORMAL, or "" without a threshold."""
        if self.threshold is None:
            return ""
        return ANOMALOUS if score > self.threshold else NORMAL

    def in_words(self) -> str:
        """A line for logs and reports."""
        made = {
            "normal": f"from {self.n} normal pictures, at most {self.false_alarms} false alarms on average",
            "labelled": f"best F1 of {self.n} labelled pictures",
            "by hand": "by hand",
        }
        pixels = "" if self.pixel_threshold is None else f", of pixels {self.pixel_threshold:.6g}"
        score = "none" if self.threshold is None else f"{self.threshold:.6g}"
        return f"threshold of scores {score}{pixels} ({made[self.made]})"


def pictures_needed(false_alarms: float) -> int:
    """The smallest number of normal pictures that can keep the promise: 1 / a - 1."""
    return math.ceil(1 / Fraction(str(false_alarms)) - 1)


def check_number(normal: int, false_alarms: float) -> None:
    """InputError if so few normal pictures cannot keep the promise."""
    if normal < pictures_needed(false_alarms):
        raise InputError(
            f"--false_alarms {false_alarms} needs at least {pictures_needed(false_alarms)} normal pictures, and there "
            f"are {normal}; give more, or allow more false alarms"
        )


def threshold_of_normals(values: list[float], false_alarms: float) -> float:
    """The k-th largest of n values, k = floor(a (n + 1)): at most a share a of further ones is above it, on average.

    So a score is above the threshold exactly if its p-value is at most a. InputError if n is too small.
    """
    check_number(len(values), false_alarms)
    rank = math.floor(Fraction(str(false_alarms)) * (len(values) + 1))
    return sorted(values, reverse=True)[rank - 1]


def from_normals(
    scores: list[float],
    map_maxima: list[float],
    map_median: float | None,
    false_alarms: float,
    made_with: dict | None = None,
) -> Calibration:
    """Thresholds from pictures that are known to be normal: of scores, and of pixels by the maxima of the maps.

    At most a share `false_alarms` of further normal pictures is called anomalous, and at most as many have an anomalous
    pixel, each on average.
    """
    return Calibration(
        made="normal",
        threshold=threshold_of_normals(scores, false_alarms),
        pixel_threshold=threshold_of_normals(map_maxima, false_alarms),
        n=len(scores),
        false_alarms=false_alarms,
        normal_scores=sorted(scores),
        normal_map_maxima=sorted(map_maxima),
        map_median=map_median,
        made_with=made_with or {},
    )


def from_rows(rows: Iterable[dict], false_alarms: float, made_with: dict) -> Calibration:
    """`from_normals` of the rows of normal pictures that `run.measure` makes; unreadable ones are passed over."""
    rows = [row for row in rows if not row.get("error")]
    scores, maxima, medians = ([row[name] for row in rows] for name in ("score", "map_max", "map_median"))
    return from_normals(scores, maxima, statistics.median(medians) if medians else None, false_alarms, made_with)


def best_f1(values: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """The threshold with the best F1, and this F1.

    Args:
        values: (V,) distinct values, ascending.
        positives, negatives: (V,) how many anomalous and normal ones have each value.

    Returns:
        A threshold halfway between two values, so that what is above it is called anomalous; of several equally good
        ones the highest. Below the lowest value it is that value's next smaller float32.
    """
    hits, false = positives[::-1].cumsum()[::-1], negatives[::-1].cumsum()[::-1]
    f1 = 2 * hits / np.maximum(hits + false + positives.sum(), 1)
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    below = values[best - 1] if best else np.nextafter(np.float32(values[0]), np.float32(-np.inf))
    threshold = (float(below) + float(values[best])) / 2
    return (threshold if threshold < values[best] else float(below)), float(f1[best])


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write calibration.json."""
    write_json(path, asdict(calibration))


def read_calibration(path: Path) -> Calibration:
    """Read calibration.json; InputError if it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--calibration {path}: {error.strerror}; check the path") from None
    except (ValueError, RecursionError):
        raise InputError(f"--calibration {path}: is not JSON; give a calibration.json of predict.py") from None
    return calibration_from(content, f"--calibration {path}")


def calibration_from(content: object, where: str) -> Calibration:
    """A calibration from the content of its file; InputError that begins with `where` if it is not one."""

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    numbers = ("threshold", "pixel_threshold", "false_alarms", "map_median")
    lists = ("normal_scores", "normal_map_maxima")
    known = Calibration.__dataclass_fields__.keys()
    sound = (
        isinstance(content, dict)
        and content.keys() == known
        and content["made"] in ("normal", "labelled", "by hand")
        and all(content[name] is None or number(content[name]) for name in numbers)
        and all(isinstance(content[name], list) and all(map(number, content[name])) for name in lists)
        and isinstance(content["made_with"], dict)
        and isinstance(content["f1"], dict)
        and number(content["n"])
    )
    if not sound:
        raise InputError(f"{where}: is not a calibration of predict.py; make one with --normal or --labelled")
    return Calibration(**content | {name: sorted(content[name]) for name in lists})


def check_made_with(calibration: Calibration, made_with: dict, where: str) -> None:
    """InputError if a calibration was made with anything else than scores are made with now."""
    before, now = (json.loads(json.dumps(each, default=str)) for each in (calibration.made_with, made_with))
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key):
            raise InputError(
                f"{where} was made with {key} {before.get(key)}, and now it is {now.get(key)}; repeat the flags of its "
                "run, or calibrate again"
            )
