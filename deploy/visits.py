"""What visitors of deploy/app.py's page have, and what is written about it; no gradio in here."""

from __future__ import annotations

import html
import math
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.page import shrink
from utils import InputError

if TYPE_CHECKING:
    from deploy.decisions import Calibration
    from deploy.detector import Result
    from deploy.run import Seen

MAX_VISITORS = 4  # whose pictures are kept; the one who was away longest loses them
SHOWN = 1024  # pixels, the longer side of pictures


@dataclass
class Visit:
    """Pictures of one visitor, in memory, so that nothing but new pictures, words or windows runs the model again.

    Attributes:
        calibration: from good pictures, a file or by nothing; what the threshold fields hold comes on top.
        seen: in the order in which they were dropped. own: by their number, what own words say.
        small: by their number, picture, map and map of own words at the size they are shown.
        chosen: number of the picture that is shown large. folder: of downloads.
    """

    calibration: Calibration
    seen: list[Seen] = field(default_factory=list)
    own: dict[int, Result] = field(default_factory=dict)
    small: dict[int, tuple] = field(default_factory=dict)
    chosen: int | None = None
    windows: tuple = (None, 0.25)
    folder: Path | None = None

    def readable(self) -> list[Seen]:
        """Pictures that could be read, the highest score first."""
        return sorted((each for each in self.seen if not each.error), key=lambda each: -each.result.score)

    def keep(self, seen: list[Seen], own: dict[int, Result], windows: tuple) -> None:
        """Take these pictures for the earlier ones; the one with the highest score is chosen."""
        again = [each.picture for each in seen] == [each.picture for each in self.seen]
        small = {}
        for each in seen:
            if not each.error:
                maps = (each.result.map, own[each.number].map if each.number in own else None)
                small[each.number] = tuple(
                    None if array is None else shrink(array, SHOWN) for array in (each.pixels, *maps)
                )
        self.seen, self.own, self.small, self.windows = seen, own, small, windows
        if not again or self.chosen is None:
            self.chosen = next((each.number for each in self.readable()), None)

    def download(self, name: str) -> Path:
        """Where a file to be downloaded is written."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
        return self.folder / name

    def decides(self, text: str | None, map_text: str | None) -> Calibration:
        """The calibration with the thresholds that their fields show."""
        made = self.calibration
        thresholds = number_in(text, made.threshold), number_in(map_text, made.pixel_threshold)
        return replace(made, threshold=thresholds[0], pixel_threshold=thresholds[1])

    def values(self) -> list[float]:
        """Scores, which a threshold may have to tell apart."""
        return [each.result.score for each in self.readable()]

    def map_values(self) -> list[float]:
        """The lowest and the highest value of each map."""
        return [float(value) for _, values, _ in self.small.values() for value in (values.min(), values.max())]


class Visits:
    """The visitors' pictures, by the hash of their page; at most MAX_VISITORS of them."""

    def __init__(self, start: Calibration) -> None:
        self.start, self.lock, self.open = start, threading.Lock(), OrderedDict()

    def __getitem__(self, key: str) -> Visit:
        with self.lock:
            if key not in self.open:
                self.open[key] = Visit(self.start)
            self.open.move_to_end(key)
            stale = [self.open.popitem(last=False)[1] for _ in range(len(self.open) - MAX_VISITORS)]
        for visit in stale:
            forget(visit)
        return self.open[key]

    def end(self, key: str) -> None:
        """Forget a visitor who has closed the page."""
        with self.lock:
            visit = self.open.pop(key, None)
        forget(visit)


def forget(visit: Visit | None) -> None:
    """Delete a visitor's downloads."""
    if visit is not None and visit.folder is not None:
        shutil.rmtree(visit.folder, ignore_errors=True)


# what threshold fields hold


def digits(number: float | None) -> str:
    """A threshold as it is written in its field, empty for none."""
    return "" if number is None else f"{number:.9g}"


def number_in(text: str | None, kept: float | None) -> float | None:
    """The threshold in a field; `kept` with all its digits if the field shows it. InputError if it is no number."""
    text = (text or "").strip()
    if not text or text == digits(kept):
        return kept if text else None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"threshold {text!r} is no number; write one such as 0.5, or nothing")
    return number


# what is written about them, as HTML


def table(rows: list[dict]) -> str:
    """Names, scores, decisions, ... as HTML; columns without any value are left out."""
    from deploy.run import in_digits

    columns = {
        "picture": lambda row: html.escape(row["path"]),
        "score": lambda row: in_digits(row["score"]),
        "decision": lambda row: (
            f'<span class="{"app-bad" if row["decision"] == "anomalous" else ""}">{row["decision"]}</span>'
            if row["decision"]
            else ""
        ),
        "p-value": lambda row: "" if row["p_value"] is None else f"{row['p_value']:.3g}",
        "marked": lambda row: f"{row['anomalous_share']:.1%}" if "anomalous_share" in row else "",
        "own words": lambda row: in_digits(row["own_score"]) if "own_score" in row else "",
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    shown = [name for name, values in cells.items() if any(values)]
    head = "".join(f"<th>{name}</th>" for name in shown)
    body = "".join(
        "<tr>" + "".join(f"<td>{cells[name][index]}</td>" for name in shown) + "</tr>" for index in range(len(rows))
    )
    return f'<table class="app-table"><tr>{head}</tr>{body}</table>' if rows else ""


def summary(visit: Visit, calibration: Calibration) -> str:
    """How many pictures are anomalous, and what is wrong with those that could not be read, as HTML."""
    if not visit.seen:
        return note("Drop pictures on the left.")
    readable = visit.readable()
    text = f"{len(readable)} picture{'' if len(readable) == 1 else 's'}"
    if calibration.threshold is None:
        text += "; no decisions yet: calibrate with good pictures, or move the score threshold"
    else:
        text += f", {sum(calibration.decide(each.result.score) == 'anomalous' for each in readable)} anomalous"
    return note(text if readable else "") + notes_on_unread(visit.seen)


def note(text: str, wrong: bool = False) -> str:
    """A line of HTML."""
    return f'<div class="app-{"wrong" if wrong else "note"}">{html.escape(text)}</div>' if text else ""


def notes_on_unread(seen: list[Seen]) -> str:
    """Lines of HTML: which files could not be read, and why."""
    return "".join(note(f"{each.picture.name}: {each.error}", wrong=True) for each in seen if each.error)


def origin(calibration: Calibration) -> str:
    """Where thresholds come from."""
    if calibration.made == "normal":
        return f"From {calibration.n} good pictures: at most {calibration.false_alarms:.3g} false alarms on average."
    return {"labelled": f"From {calibration.n} labelled pictures.", "by hand": "Set by hand."}.get(calibration.made, "")
