"""Finding folders and files of a data set: spellings of names, what is passed over, links that lead back, patterns.

Paths are strings relative to a root, with forward slashes.
"""

import contextlib
import fnmatch
import glob
import heapq
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from utils import IMAGE_SUFFIXES, InputError, is_image, shown

JUNK_FOLDERS = ("__macosx",)
USUAL = r"(licen[cs]e|readme|labels?|copyright)\b.*|.*\.csv|thumbs\.db|desktop\.ini|meta\.json"  # beside pictures


class NoLayout(InputError):
    """A folder that does not look like the data set at all."""


# Names


def same_letters(name: str) -> str:
    """A name in the one spelling of letters that have two: u and dots, or the one sign for both."""
    return unicodedata.normalize("NFC", name)


def folder_key(name: str) -> str:
    """What the spellings of a folder's name share: lower case; one of ground_truth, GroundTruth, Ground Truth."""
    plain = same_letters(name).lower()
    return "groundtruth" if re.sub("[ _-]", "", plain) == "groundtruth" else plain


def stem(path: str) -> str:
    """The file name without its last suffix, to compare."""
    return same_letters(os.path.splitext(os.path.basename(path))[0])


def check_path(path: str) -> str:
    """`path`, or InputError if meta.json cannot hold it for every system."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"file name {path!r} is not valid UTF-8; rename the file or folder") from None
    if "\\" in path or re.search(r"[\x00-\x1f]", path):
        raise InputError(f"file name {path!r} holds a backslash or a control character; rename the file or folder")
    return path


def join(folder: str, name: str) -> str:
    """FOLDER/name; the root itself is "" or "."."""
    return f"{folder}/{name}" if folder not in ("", ".") else name


def names_of(paths: Iterable[str]) -> str:
    """Names or paths for a message, with commas."""
    return ", ".join(map(shown, paths))


# Folders


def is_visible(name: str) -> bool:
    """Whether a name is neither hidden nor that of a folder which a packing program left."""
    return not name.startswith(".") and name.lower() not in JUNK_FOLDERS


def visible_names(root: Path, folder: str, is_kind: Callable[[os.DirEntry], bool]) -> list[str]:
    """Sorted names of what is visible and of one kind in ROOT/folder."""
    names = []
    with os.scandir(root / folder) as items:
        for item in items:
            with contextlib.suppress(OSError):  # a link that leads to itself
                if is_visible(item.name) and is_kind(item):
                    names.append(item.name)
    return sorted(names)


def folder_names(root: Path, folder: str) -> list[str]:
    """Sorted names of all visible folders in ROOT/folder."""
    return visible_names(root, folder, os.DirEntry.is_dir)


def list_folders(root: Path, folder: str = ".") -> list[str]:
    """Like folder_names, but each real folder once: without links to one of them, to ROOT/folder and to those above."""
    here = os.path.realpath(root / folder)
    seen = {here, *map(str, Path(here).parents)}
    kept = []
    for name in sorted(folder_names(root, folder), key=lambda name: (os.path.islink(root / folder / name), name)):
        place = os.path.realpath(root / folder / name)
        if place not in seen:
            seen.add(place)
            kept.append(name)
    return sorted(kept)


def folders_below(root: Path, folder: str) -> list[str]:
    """Sorted paths of ROOT/folder and the visible folders below; each real folder once, with as few links as can be."""
    found, seen, waiting = [], set(), [(0, folder)]
    while waiting:
        links, path = heapq.heappop(waiting)
        status = os.stat(root / path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        found.append(path)
        for name in folder_names(root, path):
            heapq.heappush(waiting, (links + os.path.islink(root / path / name), join(path, name)))
    return sorted(found)


def find_folder(root: Path, *names: str) -> str | None:
    """The folder ROOT/names[0]/names[1]..., whatever the spelling (see folder_key); None if it is missing."""
    folder = ""
    for name in names:
        here = folder_names(root, folder)
        found = [name] if name in here else [other for other in here if folder_key(other) == folder_key(name)]
        if not found:
            return None
        folder = join(folder, found[0])
    return folder


def need_folder(root: Path, *names: str, option: str = "--root") -> str:
    """Like find_folder, but NoLayout if it is missing; `option` is the flag that named `root`."""
    folder = find_folder(root, *names)
    if folder is None:
        raise NoLayout(f"{shown(root)}: has no folder {shown('/'.join(names))}; give what holds it as {option}")
    return folder


# Files

_left_out: set[str] = set()  # what lay in the folders that were listed and has no image's suffix


def forget_left_out() -> None:
    """Begin to count anew what is left out."""
    _left_out.clear()


def left_out() -> str:
    """How many files were left out for their suffix, as in "3 files left out, not pictures: .txt (2), .xml (1)"."""
    if not _left_out:
        return ""
    kinds = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in _left_out)
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{shown(kind)} ({number})" for kind, number in ordered]
    files = "1 file" if len(_left_out) == 1 else f"{len(_left_out)} files"
    return f"{files} left out, not pictures: {', '.join(listed[:6])}{', ...' if len(listed) > 6 else ''}"


def images_among(root: Path, paths: Iterable[str]) -> list[str]:
    """Those of the files that are images by their suffix; others are counted, but for hidden and usual ones."""
    images, others = [], []
    for path in paths:
        name = os.path.basename(path)
        if is_image(name):
            images.append(path)
        elif is_visible(name) and not re.fullmatch(USUAL, name, re.IGNORECASE):
            others.append(path)
    _left_out.update(real_places(root, others).values())
    return images


def list_files(root: Path, folder: str) -> list[str]:
    """Sorted paths of the visible files directly in ROOT/folder."""
    return [join(folder, name) for name in visible_names(root, folder, os.DirEntry.is_file)]


def list_images(root: Path, folder: str) -> list[str]:
    """Sorted paths of the images directly in ROOT/folder."""
    return images_among(root, list_files(root, folder))


def need_images(root: Path, folder: str) -> list[str]:
    """Like list_images, but InputError if there are none."""
    images = list_images(root, folder)
    if not images:
        raise InputError(f"{shown(root / folder)}: no images here (suffixes {' '.join(IMAGE_SUFFIXES)}); add some")
    return images


def images_below(root: Path, folder: str = "") -> list[str]:
    """Sorted paths of the images in and below ROOT/folder."""
    return sorted(image for inside in folders_below(root, folder) for image in list_images(root, inside))


# Patterns


def expand(root: Path, pattern: str) -> list[str]:
    """Sorted paths of the files and folders that a glob names; ** stands for any number of folders."""
    paths = [""]
    for part in pattern.replace(os.sep, "/").split("/"):
        if part not in ("", "."):
            paths = sorted({found for path in paths for found in step(root, path, part)})
    return paths


def step(root: Path, path: str, part: str) -> list[str]:
    """What the next part of a glob names in ROOT/path; hidden files and folders have to be named with their dot."""
    if not os.path.isdir(root / path):
        return []
    if os.path.lexists(root / path / part):
        return [join(path, part)]
    if part == "**":
        return folders_below(root, path)
    name, pattern = same_letters, same_letters(part)
    if not glob.has_magic(part):
        return [join(path, other) for other in os.listdir(root / path) if name(other) == pattern]
    seen = [other for other in os.listdir(root / path) if is_visible(other) or part.startswith(".")]
    return [join(path, other) for other in seen if fnmatch.fnmatch(name(other), pattern)]


def real_places(root: Path, paths: Collection[str]) -> dict[str, str]:
    """Where each file really lies, links to folders followed."""
    folders = {folder: os.path.realpath(root / folder) for folder in {os.path.dirname(path) for path in paths}}
    return {path: os.path.join(folders[os.path.dirname(path)], os.path.basename(path)) for path in paths}


def without_detours(root: Path, paths: Collection[str]) -> list[str]:
    """The paths, sorted; of those that reach one file through links to folders only the straightest."""
    top = os.path.realpath(root)
    kept: dict[str, str] = {}
    for path, place in sorted(real_places(root, paths).items(), key=lambda item: (item[0].count("/"), item[0])):
        if place not in kept or place == os.path.join(top, *path.split("/")):
            kept[place] = path
    return sorted(kept.values())
