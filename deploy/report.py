"""report.html: one file that shows the results of many pictures in any browser, without network. NumPy alone.

The page is `report_page.html`, in which this file puts the data: columns of values, a thumbnail (picture and map side
by side) of as many pictures as LARGEST_REPORT allows, and the curves of labelled data.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils import atomic_path

PAGE = Path(__file__).with_name("report_page.html")
PLACE = "/*DATA*/null"  # where the page expects its data
LARGEST_REPORT = 48_000_000  # bytes of thumbnails
CURVE_POINTS = 200


class Report:
    """The pictures of a report, one after the other, and the file that is made of them.

    Args:
        title: heading of the page.
        facts: name and value of what else the page tells, such as the method.
        threshold: where the slider stands first; None: halfway.
        normal_scores: scores of the normal pictures that the threshold was made from.
    """

    def __init__(
        self,
        title: str,
        facts: dict[str, str],
        threshold: float | None = None,
        normal_scores: list[float] | None = None,
    ) -> None:
        self.data = {"title": title, "facts": facts, "threshold": threshold, "normal_scores": normal_scores or []}
        self.columns = {name: [] for name in ("name", "group", "score", "label", "p_value", "regions", "error", "file")}
        self.thumbnails: list[Callable[[], bytes | None] | None] = []
        self.sizes: list[int] = []
        self.curves: dict[str, dict] = {}

    def add(
        self,
        name: str,
        group: str,
        score: float | None,
        thumbnail: Callable[[], bytes | None] | None = None,
        size: int = 0,
        **values: object,
    ) -> None:
        """Add a picture.

        Args:
            name: its path; group: its folder or class.
            score: None if it could not be read.
            thumbnail: gives the JPEG of picture and map side by side, `size` bytes.
            values: label (0 or 1), p_value, regions, error, file (where its overlay lies, seen from the report).
        """
        values |= {"name": name.encode("utf-8", "backslashreplace").decode(), "group": group}
        values["score"] = None if score is None else float(f"{score:.9g}")
        for column, held in self.columns.items():
            held.append(values.get(column))
        self.thumbnails.append(thumbnail)
        self.sizes.append(size)

    def add_curves(self, name: str, labels: np.ndarray, scores: np.ndarray) -> None:
        """Add the ROC and the precision-recall curve of a class; none where only one label occurs."""
        if 0 < labels.sum() < len(labels):
            self.curves[name] = {kind: thinned(points) for kind, points in curves(labels, scores).items()}

    def write(self, path: Path) -> None:
        """Write the file. Where not all thumbnails fit, those of the most telling pictures are taken."""
        columns = {name: held for name, held in self.columns.items() if any(value is not None for value in held)}
        order, taken = self.most_telling(), 0
        thumbnails = []
        for index in order:
            if self.thumbnails[index] is None or taken + self.sizes[index] > LARGEST_REPORT:
                continue
            taken += self.sizes[index]
            thumbnails.append(index)
        before, after = PAGE.read_text(encoding="utf-8").split(PLACE)
        content = {**self.data, "columns": columns, "curves": self.curves}
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(before)
            file.write(script_json(content)[:-1] + ',"thumbnails":{')
            for number, index in enumerate(sorted(thumbnails)):
                image = base64.b64encode(self.thumbnails[index]()).decode()
                file.write(f'{"," if number else ""}"{index}":"{image}"')
            file.write("}}" + after)

    def most_telling(self) -> list[int]:
        """The pictures in the order in which they deserve a thumbnail: high scores, or scores that belie the label."""

        def surprise(index: int) -> float:
            score, label = self.columns["score"][index], self.columns["label"][index]
            if score is None:
                return -np.inf
            return -score if label == 1 else score

        return sorted(range(len(self.thumbnails)), key=surprise, reverse=True)


def script_json(value: object) -> str:
    """JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def curves(labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Points (P, 2) of scores' ROC curve (false alarms, hits) and precision-recall curve (recall, precision)."""
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order].astype(bool), scores[order]
    last = np.r_[np.flatnonzero(np.diff(scores)), len(scores) - 1]  # of each run of equal scores
    hits, false = labels.cumsum()[last], (~labels).cumsum()[last]
    recall, precision = hits / labels.sum(), hits / (hits + false)
    roc = np.c_[np.r_[0, false / (~labels).sum()], np.r_[0, recall]]
    precision_recall = np.c_[np.r_[0, recall], np.r_[precision[0], precision]]
    return {"roc": roc, "precision_recall": precision_recall}


def thinned(points: np.ndarray) -> list[list[float]]:
    """At most CURVE_POINTS of the points, with three decimals."""
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), CURVE_POINTS)).astype(int))
    return np.round(points[kept], 3).tolist()
