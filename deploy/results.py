"""Results of predictions on disk: rows that survive an interruption, then predictions.csv and regions.json.

While a run goes on, each process appends the row of each finished picture, a line of JSON, to a file of its own in
`unfinished/`, and its thumbnail to another. So a run can be killed at any moment: the same command reads them and goes
on. Needs nothing but Python.
"""

from __future__ import annotations

import heapq
import json
import os
import platform
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from utils import atomic_path, write_json, write_rows

COLUMNS = (
    "path",
    "score",
    "p_value",
    "threshold",
    "decision",
    "map_max",
    "tile_max",
    "anomalous_share",
    "regions",
    "width",
    "height",
    "error",
)
UNFINISHED = "unfinished"


class Journal:
    """Rows of finished pictures, by the number of the picture, on their way to the results.

    A row is a dict with "number", "stamp" (see `stamp`), the values of COLUMNS that it has, and perhaps "outlines" (see
    `pictures.find_regions`) and "thumbnail" (where it lies, see `thumbnail`). Each process appends its rows in rising
    order of their numbers.

    Args:
        folder: the folder of the run.
        key: all that the rows depend on; rows of another key are deleted.
        process: number of this process, to tell the processes' files apart.
    """

    def __init__(self, folder: Path, key: dict, process: int = 0) -> None:
        self.folder = folder / UNFINISHED
        self.key = json.loads(json.dumps(key, default=str))
        self.name = f"{platform.node()}.{process}.{uuid.uuid4().hex[:8]}"
        self.rows = self.thumbnails = None

    def take_over(self) -> bool:
        """Whether an interrupted run of the same key left rows; if not, the folder is made anew. Main process alone."""
        try:
            same = json.loads((self.folder / "key.json").read_text(encoding="utf-8")) == self.key
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(self.folder / "key.json", self.key)
        return same

    def finished(self) -> dict[int, list[int] | None]:
        """Numbers of finished pictures, each with the stamp that its file had then."""
        return {row["number"]: row["stamp"] for row in self.read()}

    def append(self, row: dict, thumbnail: bytes | None = None) -> None:
        """Add the row of a finished picture. Its files have to be in place by then."""
        if self.rows is None:
            self.rows = open(self.folder / f"{self.name}.rows", "ab")  # noqa: SIM115 (closed in `close`)
            self.thumbnails = open(self.folder / f"{self.name}.thumbnails", "ab")  # noqa: SIM115
        if thumbnail is not None:
            row = row | {"thumbnail": [self.name, self.thumbnails.tell(), len(thumbnail)]}
            self.thumbnails.write(thumbnail)
            self.thumbnails.flush()
        self.rows.write(json.dumps(row).encode() + b"\n")
        self.rows.flush()

    def read(self) -> Iterator[dict]:
        """All rows in the order of their numbers; of two with one number the later one."""
        files = sorted(self.folder.glob("*.rows"), key=lambda file: file.stat().st_mtime_ns)
        last = None
        for row in heapq.merge(*map(read_rows, files), key=lambda row: row["number"]):
            if last is not None and row["number"] != last["number"]:
                yield last
            last = row
        if last is not None:
            yield last

    def thumbnail(self, place: list) -> bytes:
        """The thumbnail that a row names as `place`."""
        name, start, length = place
        with open(self.folder / f"{name}.thumbnails", "rb") as file:
            file.seek(start)
            return file.read(length)

    def close(self) -> None:
        """Close this process's files."""
        for file in (self.rows, self.thumbnails):
            if file is not None:
                file.close()
        self.rows = self.thumbnails = None

    def remove(self) -> None:
        """Delete the folder, once the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read_rows(file: Path) -> Iterator[dict]:
    """Rows that one process has appended, in rising order; a line that a kill cut off is passed over."""
    with open(file, "rb") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def stamp(path: str) -> list[int] | None:
    """What tells that a picture's file has changed: size and time; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def csv_row(row: dict) -> list[str]:
    """The cells of a row: numbers with 6 significant digits, nothing for what is missing."""
    cells = []
    for name in COLUMNS:
        value = row.get(name)
        if isinstance(value, float):
            cells.append(f"{value:.6g}")
        else:
            text = "" if value is None else str(value)
            cells.append(text.encode("utf-8", "backslashreplace").decode())
    return cells


def write_csv(path: Path, rows: Iterable[dict]) -> int:
    """Write predictions.csv, one row a picture; how many rows have an error."""
    errors = 0

    def cells() -> Iterator[Iterable[str]]:
        nonlocal errors
        yield COLUMNS
        for row in rows:
            errors += bool(row.get("error"))
            yield csv_row(row)

    write_rows(path, cells())
    return errors


def write_regions(path: Path, read: Callable[[], Iterable[dict]]) -> None:
    """Write regions.json: COCO with one category; pictures that could not be read are left out.

    read: gives the rows, twice. Everything is written piece by piece, because many pictures may have many regions.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write('{\n"categories": [{"id": 1, "name": "anomaly"}],\n"images": [')
        readable = (row for row in read() if not row.get("error"))
        for number, row in enumerate(readable, start=1):
            name = row["path"].encode("utf-8", "backslashreplace").decode()
            entry = {"id": number, "file_name": name, "width": row["width"], "height": row["height"]}
            file.write((",\n" if number > 1 else "\n") + json.dumps(entry, ensure_ascii=False))
        file.write('\n],\n"annotations": [')
        readable = enumerate((row for row in read() if not row.get("error")), start=1)
        regions = ((number, region) for number, row in readable for region in row.get("outlines", ()))
        for count, (number, region) in enumerate(regions, start=1):
            entry = {"id": count, "image_id": number, "category_id": 1, "iscrowd": 0, **region}
            file.write((",\n" if count > 1 else "\n") + json.dumps(entry))
        file.write("\n]\n}\n")


def output_names(names: list[str]) -> dict[str, str]:
    """Names of what is drawn of pictures, mirrored: their own with .png for suffix.

    In a folder where two pictures differ in the suffix only, .png is added to the whole name of each.
    """
    stems = Counter(PurePosixPath(name).with_suffix("") for name in names)
    crowded = {stem.parent for stem, count in stems.items() if count > 1}
    return {
        name: f"{name}.png" if path.parent in crowded else str(path.with_suffix(".png"))
        for name, path in ((name, PurePosixPath(name)) for name in names)
    }
