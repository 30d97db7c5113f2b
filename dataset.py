"""Images, masks and labels of a data set that is described by a meta.json (see generate_dataset_json/)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deploy.reader import (
    ImageError,
    deep_image_warnings,
    drawn_unturned,
    load_image,
    load_mask,
    load_released,
    orientation_and_sizes,
)
from utils import InputError, shown

if TYPE_CHECKING:
    import torch

READ_AS = ("viewer", "released")


@dataclass(frozen=True)
class Entry:
    """One image. Paths are relative to the root, with forward slashes; mask_path is "" where there is no mask.

    specie is the kind of defect, "" where meta.json names none.
    """

    image_path: str
    mask_path: str
    label: int
    class_name: str
    specie: str = ""


class AnomalyDataset:
    """One split of a data set; a map-style dataset for torch's DataLoader.

    Args:
        root: folder that holds the images, and meta.json.
        preprocess: PIL RGB image -> (3, S, S) tensor, for instance `model.preprocess`; None: see `fit`. So a data set
            can be checked before a model is loaded.
        image_size: S in pixels, if preprocess is to be checked against it; masks have the size that preprocess gives.
        split: "test" or "train".
        read_as: "viewer": images as a viewer shows them. "released": as the authors' code reads them, see
            `deploy.reader.load_released`; needs image_size.
        meta: the file that describes the data set, if it is not ROOT/meta.json; its paths are relative to the root.

    `dataset[i]` is a dict of image (3, S, S) as preprocess made it, mask (S, S) float32 of 0 and 1, label (1 is
    anomalous), class_name, and image_path (absolute). The mask is all zeros for a normal image and in a data set
    without masks.

    Attributes:
        entries: list of Entry in the order of meta.json, so class after class.
        classes: their class names, in the same order.
        has_masks: the anomalous images have masks (either all of them have one, or none).
        value_range: what black and white are in images of more than 8 bits; None: the range of their type.
        mask_threshold: mask values above it are anomalous.
        checksum: hex digest of the entries, the sizes of their files and how they are read. It does not depend on where
            the root lies; a file rewritten with the same number of bytes does not change it.
        warnings: one-line strings on what looks wrong but can be used.

    Raises InputError on construction if meta.json or a file that it names is missing or not as it should be (files are
    not decoded yet), and ImageError, an InputError, from `dataset[i]` if an image or mask cannot be read.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        preprocess: Callable[[Image.Image], torch.Tensor] | None = None,
        image_size: int | None = None,
        split: str = "test",
        read_as: str = "viewer",
        meta: str | os.PathLike | None = None,
    ) -> None:
        self.root = os.path.abspath(root)
        self.preprocess = preprocess
        self.image_size = image_size
        self.split = split
        self.released = read_as == "released"
        file, content = read_meta(root, meta)
        self.value_range, self.mask_threshold = reading_rules(content, file)
        self.entries = read_entries(self.root, content, split, file)
        self.classes = list(dict.fromkeys(entry.class_name for entry in self.entries))
        if not self.entries:
            raise InputError(f"{shown(file)}: no images to use in the {split} split; choose another split")
        anomalous = [entry for entry in self.entries if entry.label == 1]
        unmasked = [entry for entry in anomalous if not entry.mask_path]
        self.has_masks = len(unmasked) < len(anomalous)
        if self.has_masks and unmasked:
            raise InputError(
                f"{shown(file)}: {len(unmasked)} of {len(anomalous)} anomalous images have no mask (first: "
                f"{shown(unmasked[0].image_path)}); add their masks, or leave the masks of all images out"
            )
        self.checksum = self._checksum()
        self.warnings = [*self._deep_warnings(), *self._size_warnings()]

    def fit(self, preprocess: Callable[[Image.Image], torch.Tensor], image_size: int) -> None:
        """Give what `dataset[i]` needs of a model that was loaded later."""
        self.preprocess, self.image_size = preprocess, image_size

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        entry = self.entries[index]
        image = self.preprocess(self.image(index))  # (3, S, S)
        if self.image_size and image.shape[-1] != self.image_size:
            raise ImageError(f"preprocess gives {tuple(image.shape)}; make AnomalyDataset with the same image_size")
        return {
            "image": image,
            "mask": torch.from_numpy(self.mask(index, image.shape[-1])),
            "label": entry.label,
            "class_name": entry.class_name,
            "image_path": self.path(entry.image_path),
        }

    def image(self, index: int) -> Image.Image:
        """The image of `dataset[index]` as it goes into preprocess, RGB."""
        path = self.path(self.entries[index].image_path)
        return load_released(path, self.image_size) if self.released else load_image(path, self.value_range)

    def mask(self, index: int, size: int | tuple[int, int]) -> np.ndarray:
        """The mask of `dataset[index]` alone, float32 of 0 and 1; size: S for (S, S), or width and height."""
        entry = self.entries[index]
        if entry.label == 1 and entry.mask_path:
            image_path = self.path(entry.image_path)
            return load_mask(self.path(entry.mask_path), size, self.mask_threshold, image_path, self.released)
        width, height = size if isinstance(size, tuple) else (size, size)
        return np.zeros((height, width), dtype=np.float32)

    def path(self, relative: str) -> str:
        """Absolute path of a file named in an entry."""
        return os.path.join(self.root, *relative.split("/"))

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for entry in self.entries:
            sizes = [os.path.getsize(self.path(path)) for path in (entry.image_path, entry.mask_path) if path]
            row = [entry.class_name, entry.label, entry.image_path, entry.mask_path, *sizes]
            digest.update(json.dumps(row).encode() + b"\n")
        rules = {"value_range": self.value_range, "mask_threshold": self.mask_threshold}
        if any(rules.values()):
            digest.update(json.dumps(rules).encode())
        return digest.hexdigest()

    def _deep_warnings(self) -> list[str]:
        if self.value_range or self.released:
            return []
        return deep_image_warnings(
            [self.path(entry.image_path) for entry in self.entries],
            "write value_range into meta.json (generate_dataset_json/custom.py --value_range auto finds one)",
        )

    def _size_warnings(self) -> list[str]:
        along, unknown, different = [], [], []  # masks
        for entry in self.entries:
            if entry.label == 0 or not entry.mask_path:
                continue
            try:
                orientation, stored, upright = orientation_and_sizes(self.path(entry.image_path))
                _, size, _ = orientation_and_sizes(self.path(entry.mask_path))
            except Exception:  # what is wrong with a file is said when it is read
                continue
            turned = orientation != 1 and not self.released
            if turned and drawn_unturned(orientation, stored, size):
                along.append(entry.mask_path)
            elif turned and (orientation in (2, 3, 4) or stored == upright):
                unknown.append(entry.mask_path)
            elif size != (stored if self.released else upright):
                different.append(entry.mask_path)
        said = (
            (along, "masks were drawn before their images were turned (EXIF), and are turned along"),
            (unknown, "images are turned by EXIF and nothing tells whether their masks are, too; look at them (--vis)"),
            (different, "masks differ in size from their image and are stretched to it"),
        )
        return [f"{len(masks)} {words} (first: {shown(masks[0])})" for masks, words in said if masks]


class JoinedDataset(AnomalyDataset):
    """Several data sets as one, the images of the first before those of the second; each is read by its own rules.

    Args:
        sets: two data sets or more, of the same split and read_as.

    Attributes are those of AnomalyDataset, but for value_range and mask_threshold, which are each set's own:
        sets: what was joined.
        root: the folder that holds all their roots; the paths of `entries` are relative to it.
        classes: a class name that occurs in several sets is one class.
        has_masks: normal images alone need no masks, so a set of these joins any other.
        checksum: hex digest of the checksums of the sets, in their order.
        listing: the names of the sets' folders, each with its checksum, for the records.

    Raises InputError if a set or an image is there twice, or if some sets have masks and others lack them.
    """

    def __init__(self, sets: Sequence[AnomalyDataset]) -> None:
        first = sets[0]
        self.sets, self.split, self.released = list(sets), first.split, first.released
        self.preprocess, self.image_size = first.preprocess, first.image_size
        check_apart(self.sets)
        masked = [each for each in self.sets if each.has_masks]
        lacking = [each for each in self.sets if not each.has_masks and any(entry.label for entry in each.entries)]
        if masked and lacking:
            raise InputError(
                f"{shown(lacking[0].root)} has no masks and {shown(masked[0].root)} has; add them, or leave the masks "
                "of all data sets out"
            )
        self.has_masks = bool(masked)
        try:
            self.root = os.path.commonpath([each.root for each in self.sets])
        except ValueError:  # Windows
            raise InputError("--train_data_path: the data sets lie on different drives; put them on one") from None
        self.entries = [moved(entry, each.root, self.root) for each in self.sets for entry in each.entries]
        self.classes = list(dict.fromkeys(entry.class_name for entry in self.entries))
        self.checksum = hashlib.sha256("\n".join(each.checksum for each in self.sets).encode()).hexdigest()
        self.listing = ", ".join(f"{shown(os.path.basename(each.root))} {each.checksum}" for each in self.sets)
        self.warnings = [f"{shown(each.root)}: {warning}" for each in self.sets for warning in each.warnings]
        self._places = [(each, index) for each in self.sets for index in range(len(each))]

    def fit(self, preprocess: Callable[[Image.Image], torch.Tensor], image_size: int) -> None:
        super().fit(preprocess, image_size)
        for each in self.sets:
            each.fit(preprocess, image_size)

    def image(self, index: int) -> Image.Image:
        each, place = self._places[index]
        return each.image(place)

    def mask(self, index: int, size: int | tuple[int, int]) -> np.ndarray:
        each, place = self._places[index]
        return each.mask(place, size)


def open_data(
    roots: Sequence[str | os.PathLike], metas: Sequence[str | os.PathLike] | None = None, **options: Any
) -> AnomalyDataset:
    """The data set of a folder, or those of several folders as one.

    Args:
        roots: the folders, in the order of their images.
        metas: as many files that describe them, in the same order; None: each folder's meta.json.
        options: further arguments of AnomalyDataset, the same for all.

    Raises InputError as AnomalyDataset and JoinedDataset do, and if the number of `metas` is another.
    """
    metas = [None] * len(roots) if metas is None else metas
    if len(metas) != len(roots):
        raise InputError(
            f"--meta: {len(metas)} given for {len(roots)} data sets; give one for each, in the order of the data sets"
        )
    sets = [AnomalyDataset(root, meta=meta, **options) for root, meta in zip(roots, metas, strict=True)]
    return sets[0] if len(sets) == 1 else JoinedDataset(sets)


def check_apart(sets: Sequence[AnomalyDataset]) -> None:
    """InputError if two of these data sets are the same, be it in a copy, or have an image in common."""
    known: dict[str, AnomalyDataset] = {}  # by checksum
    owners: dict[str, AnomalyDataset] = {}  # by path of an image
    for each in sets:
        if each.checksum in known:
            earlier = known[each.checksum].root
            raise InputError(f"{shown(each.root)} is the same data set as {shown(earlier)}; give it once")
        known[each.checksum] = each
        root = os.path.realpath(each.root)
        for entry in each.entries:
            path = posixpath.join(root, entry.image_path)
            if owners.setdefault(path, each) is not each:
                raise InputError(f"{shown(path)} belongs to two of the data sets; leave it out of one meta.json")


def moved(entry: Entry, root: str, parent: str) -> Entry:
    """An entry of a data set in the folder `root` with its paths relative to `parent`, which holds `root`."""
    prefix = "" if root == parent else os.path.relpath(root, parent).replace(os.sep, "/")
    image_path, mask_path = (path and posixpath.join(prefix, path) for path in (entry.image_path, entry.mask_path))
    return replace(entry, image_path=image_path, mask_path=mask_path)


def mask_warnings(shares: dict[str, float], image_size: int) -> list[str]:
    """What there is to say of the masks of anomalous images.

    Args:
        shares: of each image, by its path, how much of it its mask marks at the model's input size, in [0, 1].
        image_size: this input size.
    """
    blank = [path for path, share in shares.items() if share == 0]
    covered = [path for path, share in shares.items() if share > 0.5]
    warnings = []
    if blank:
        warnings.append(
            f"the masks of {len(blank)} anomalous images mark no pixel at {image_size} x {image_size} (first: "
            f"{shown(blank[0])}); correct them, or give a larger --image_size"
        )
    if len(covered) > len(shares) / 2:
        warnings.append(
            f"the masks of {len(covered)} of {len(shares)} anomalous images mark more than half of the image (first: "
            f"{shown(covered[0])}); if they mark what is normal, invert them"
        )
    return warnings


def read_meta(root: str | os.PathLike, meta: str | os.PathLike | None = None) -> tuple[Path, dict[str, Any]]:
    """The file that describes a data set, and the object in it; InputError if there is none."""
    file = Path(root) / "meta.json" if meta is None else Path(meta)
    where = shown(root)
    make = f"python generate_dataset_json/KEY.py --root {where} (KEY: mvtec, visa, ...; custom for your own images)"
    try:
        names = os.listdir(root)
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}; give the folder that holds the images and meta.json") from None
    if not names:
        raise InputError(f"{where}: the folder is empty; put the data set's images there, then run {make}")
    if not file.is_file():
        problem = "is not a file" if os.path.lexists(file) else "no such file"
        raise InputError(f"{shown(file)}: {problem}; make it with {make}, or name another with --meta")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{shown(file)}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown(file)}: is not valid JSON ({error}); make it again with {make}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{shown(file)}: holds a {kind} instead of an object; make it again with {make}")
    return file, content


def reading_rules(content: dict[str, Any], file: Path) -> tuple[tuple[float, float] | None, float]:
    """What meta.json says beside its splits: value_range, and mask_threshold; InputError if they are no such things."""
    value_range, threshold = content.get("value_range"), content.get("mask_threshold", 0)
    if value_range is not None:
        pair = isinstance(value_range, list) and len(value_range) == 2 and all(map(is_number, value_range))
        if not pair or value_range[0] >= value_range[1]:
            raise InputError(
                f"{shown(file)}: value_range {one_line_of(value_range)} is not [low, high]; correct it, or leave it out"
            )
        value_range = tuple(value_range)
    if not is_number(threshold) or threshold < 0:
        raise InputError(
            f"{shown(file)}: mask_threshold {one_line_of(threshold)} is not a number of at least 0; correct it, or "
            "leave it out"
        )
    return value_range, threshold


def is_number(value: object) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e30


def one_line_of(value: object) -> str:
    """A value from JSON for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_entries(root: str, content: dict[str, Any], split: str, file: Path) -> list[Entry]:
    """One checked split of what a meta.json holds: every file it names exists and lies inside the root.

    Files made by the released scripts are accepted: absolute paths (the part of them that exists inside the root
    is taken), backslashes, "Train" and "Test", no mask_path. Raises InputError.
    """
    again = f"make it again: python generate_dataset_json/KEY.py --root {shown(root)}"
    splits = {name: classes for name, classes in content.items() if name not in ("value_range", "mask_threshold")}
    found = [name for name in splits if name.lower() == split.lower()]
    if not found:
        raise InputError(f"{shown(file)}: has no {split!r} split (it has {one_line_of(list(splits))}); {again}")
    classes = splits[found[0]]
    if not isinstance(classes, dict) or not all(isinstance(rows, list) for rows in classes.values()):
        raise InputError(f"{shown(file)}: {found[0]!r} is not an object with a list of entries a class; {again}")
    entries, labels = [], {}
    for class_key, rows in classes.items():
        for number, row in enumerate(rows):
            try:
                entry = _read_entry(root, row)
                if labels.setdefault(entry.image_path, entry.label) != entry.label:
                    raise ValueError(f"names the image {entry.image_path!r}, which has both 0 and 1 as 'anomaly'")
            except ValueError as error:
                where = f"entry {number} of {found[0]} / {class_key!r}"
                raise InputError(f"{shown(file)}: {where} {error}; {again}") from None
            entries.append(entry)
    return entries


def _read_entry(root: str, row: Any) -> Entry:
    """One checked entry; ValueError says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("is not an object")
    for key, kinds in (("img_path", str), ("cls_name", str), ("anomaly", int), ("mask_path", (str, type(None)))):
        if key not in row and key != "mask_path":
            raise ValueError(f"lacks {key!r}")
        if not isinstance(row.get(key), kinds):
            raise ValueError(f"has {one_line_of(row[key])} as {key!r}")
    if row["anomaly"] not in (0, 1):
        raise ValueError(f"has {row['anomaly']!r} as 'anomaly' (0 or 1 is allowed)")
    if not row["cls_name"].isprintable():
        raise ValueError(f"has {row['cls_name']!r} as 'cls_name', which cannot be printed")
    mask, specie = row.get("mask_path"), row.get("specie_name")
    return Entry(
        image_path=_find_inside(root, row["img_path"], "image"),
        mask_path=_find_inside(root, mask, "mask") if mask else "",
        label=int(row["anomaly"]),
        class_name=row["cls_name"],
        specie=specie if isinstance(specie, str) and specie.isprintable() else "",
    )


def _find_inside(root: str, written: str, what: str) -> str:
    """The file that meta.json means by `written`, relative to the root; ValueError if there is none inside the root.

    The check is on the written path: a link that the user put inside the root may lead elsewhere. Letters with accents
    may be written as one sign or as two, whichever the file's name has.
    """
    if re.search("[\x00-\x1f\ud800-\udfff]", written):
        raise ValueError(f"names the {what} {written!r}, with characters that no path should hold")
    path = posixpath.normpath(re.sub(r"^[A-Za-z]:", "/", written.replace("\\", "/")))
    parts = [part for part in path.split("/") if part]
    absolute = path.startswith("/")
    if parts[:1] == [".."]:
        raise ValueError(f"names the {what} {written!r}, which is outside the root")
    starts = range(len(parts)) if absolute else [0]
    if os.path.basename(root) in parts[:-1]:  # released files may hold ROOT/... with the root as it was given then
        starts = [*starts, parts.index(os.path.basename(root)) + 1]
    spellings = dict.fromkeys([tuple(parts), *(tuple(_normalised(parts, form)) for form in ("NFC", "NFD"))])
    for start in starts:
        for spelling in spellings:
            if os.path.isfile(os.path.join(root, *spelling[start:])):
                return "/".join(spelling[start:])
    problem = "which is outside the root" if absolute else "which does not exist"
    if os.path.lexists(os.path.join(root, *parts)) and not absolute:
        problem = "which is not a file"
    raise ValueError(f"names the {what} {written!r}, {problem}")


def _normalised(parts: Iterable[str], form: str) -> Iterable[str]:
    return (unicodedata.normalize(form, part) for part in parts)
