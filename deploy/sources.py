"""Pictures from files, folders, globs and lists, in the order in which they are named. Needs nothing but Python."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils import IMAGE_SUFFIXES, InputError, is_image, nonempty_path

EXIT_CODES = (
    "Exit codes: 0 done; 1 done, but some pictures could not be read; 2 bad input; 130 interrupted, and the same "
    "command goes on."
)


def add_source_flags(parser: argparse.ArgumentParser, save_path: str) -> None:
    """The flags that say which pictures are looked at, and where the results go; save_path: if nothing is said."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="picture, folder, glob in quotes, or .txt list")
    parser.add_argument("--save_path", type=nonempty_path, default=Path(save_path), help="folder for all results")


@dataclass(frozen=True)
class Picture:
    """A picture to look at.

    Attributes:
        path: where it lies.
        name: how it is reached from its source, with forward slashes; the name under which results are kept.
    """

    path: str
    name: str


def find_pictures(sources: list[str], flag: str = "SOURCE") -> list[Picture]:
    """The pictures of all sources.

    A source is a picture, a folder (searched with the folders in it, sorted by name; hidden files are passed over), a
    glob, or a .txt file with a path a line. A picture that is named twice under one name is taken once.

    Raises InputError, which names `flag`: a source that does not exist or holds no picture, two pictures with one name.
    """
    found: dict[str, Picture] = {}
    for source in sources:
        if not source:
            raise InputError(f"{flag}: an empty name; give a picture, a folder, a glob in quotes or a .txt list")
        empty = True
        for picture in pictures_of(source, flag):
            empty = False
            other = found.setdefault(picture.name, picture)
            if other is not picture and not os.path.samefile(other.path, picture.path):
                raise InputError(
                    f"{flag}: {other.path!r} and {picture.path!r} would both be {picture.name!r} in the results; "
                    "look at them one after the other, or give a folder that holds both"
                )
        if empty:
            raise InputError(f"{flag} {source!r}: no pictures in it (suffixes {' '.join(IMAGE_SUFFIXES)})")
    return list(found.values())


def pictures_of(source: str, flag: str) -> Iterator[Picture]:
    """The pictures of one source."""
    if os.path.isdir(source):
        yield from pictures_below(source, "")
    elif os.path.isfile(source) and source.lower().endswith(".txt"):
        yield from pictures_of_list(source, flag)
    elif os.path.isfile(source):
        if not is_image(source):
            suffixes = " ".join(IMAGE_SUFFIXES)
            raise InputError(f"{flag} {source!r}: neither a picture (suffixes {suffixes}) nor a .txt list of pictures")
        yield Picture(source, os.path.basename(source))
    elif os.path.lexists(source):
        raise InputError(f"{flag} {source!r}: neither a file nor a folder; give pictures")
    elif glob.has_magic(source):
        yield from pictures_of_glob(source, flag)
    else:
        raise InputError(f"{flag} {source!r}: no such file or folder; check the path")


def pictures_below(folder: str, prefix: str, seen: set | None = None) -> Iterator[Picture]:
    """Pictures in and below a folder; their names begin with `prefix`.

    Each real folder is searched once, however many links lead to it, or back to it.
    """
    seen = set() if seen is None else seen
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder!r}: cannot be searched ({error.strerror}); check its permissions") from None
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            yield from pictures_below(path, f"{prefix}{name}/", seen)
        elif is_image(name) and os.path.isfile(path):
            yield Picture(path, prefix + name)


def pictures_of_list(file: str, flag: str) -> Iterator[Picture]:
    """Pictures that a list names, a path a line, relative to the working directory or to the list's folder."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {file!r}: cannot be read as a list of paths ({error}); save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        written = line.strip()
        if not written:
            continue
        places = (written, os.path.join(os.path.dirname(file), written))
        path = next((place for place in places if os.path.isfile(place)), None)
        if path is None:
            raise InputError(f"{flag} {file!r}, line {number}: no such picture {written!r}; the list has a path a line")
        yield Picture(path, relative_name(written))


def relative_name(written: str) -> str:
    """A path as a name inside a folder: without drive, root and steps upwards."""
    parts = PurePosixPath(os.path.normpath(written).replace("\\", "/") if os.sep == "\\" else os.path.normpath(written))
    kept = [part for part in parts.parts if part not in ("/", "//", "..") and not part.endswith(":")]
    return "/".join(kept)


def pictures_of_glob(pattern: str, flag: str) -> Iterator[Picture]:
    """Pictures that match a glob, and those below folders that do; names begin where the pattern's first * stands."""
    matches = sorted(matches_of(pattern))
    if not matches:
        raise InputError(f"{flag} {pattern!r}: nothing matches; check the pattern, and put it in quotes")
    fixed = pattern[: next(place for place, letter in enumerate(pattern) if letter in "*?[")]
    start = os.path.dirname(fixed)
    seen = set()
    for match in matches:
        name = os.path.relpath(match, start or ".").replace(os.sep, "/")
        found = pictures_below(match, f"{name}/") if os.path.isdir(match) else [Picture(match, name)]
        for picture in found:
            if is_image(picture.name) and picture.name not in seen:
                seen.add(picture.name)
                yield picture


def matches_of(pattern: str) -> set[str]:
    """What a glob names; ** stands for any number of folders, of which each real one is searched once."""
    drive, rest = os.path.splitdrive(pattern)
    paths = {drive + os.sep if rest.startswith(("/", os.sep)) else drive}
    for part in filter(None, rest.replace(os.sep, "/").split("/")):
        if part == "**":
            paths = {folder for path in paths for folder in folders_below(path)}
        else:
            paths = {match for path in paths for match in glob.glob(os.path.join(glob.escape(path), part))}
    return paths


def folders_below(folder: str, seen: set | None = None) -> Iterator[str]:
    """A folder and the visible ones below it, each real folder once."""
    seen = set() if seen is None else seen
    place = os.path.realpath(folder or ".")
    if place in seen or not os.path.isdir(place):
        return
    seen.add(place)
    yield folder
    for name in sorted(os.listdir(place)):
        if not name.startswith("."):
            yield from folders_below(os.path.join(folder, name), seen)


def check_apart(save_path: Path, sources: list[str], pictures: list[Picture]) -> None:
    """InputError if results would be written among the pictures: the next run would take them for pictures."""
    target = Path(os.path.realpath(save_path))
    for source in sources:
        if os.path.isdir(source) and target.is_relative_to(os.path.realpath(source)):
            raise InputError(f"--save_path {save_path} lies inside the source {source!r}; give a folder outside of it")
    for folder in {os.path.dirname(picture.path) for picture in pictures}:
        if Path(os.path.realpath(folder)).is_relative_to(target):
            raise InputError(f"pictures in {folder!r} lie inside --save_path {save_path}; give another folder for it")


def count_shared(pictures: list[Picture], others: list[Picture]) -> int:
    """How many of the pictures are among the others, too."""
    return len({os.path.realpath(p.path) for p in pictures} & {os.path.realpath(p.path) for p in others})
