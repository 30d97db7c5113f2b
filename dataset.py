"""Images, masks and labels of a data set that is described by ROOT/meta.json (see generate_dataset_json/)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from utils import InputError

if TYPE_CHECKING:
    import torch


class ImageError(InputError):
    """An image or mask that cannot be used; the message is one line that names the file.

    A DataLoader re-raises what happened in a worker as `type(error)(text of the traceback)`. The last line of that
    text is the original message, so keeping only the last line gives the same error with and without workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition("\n")[2].removeprefix(f"{__name__}.{type(self).__name__}: "))


@dataclass(frozen=True)
class Entry:
    """One image. Paths are relative to the root, with forward slashes; mask_path is "" where there is no mask."""

    image_path: str
    mask_path: str
    label: int
    class_name: str


class AnomalyDataset:
    """One split of a data set; a map-style dataset for torch's DataLoader.

    Args:
        root: folder that holds meta.json and the images.
        preprocess: PIL RGB image -> (3, S, S) tensor, for instance `model.preprocess`; None: set the attribute before
            the first item is read. So a data set can be checked before a model is loaded.
        image_size: S in pixels, if preprocess is to be checked against it; masks have the size that preprocess gives.
        split: "test" or "train".

    `dataset[i]` is a dict of image (3, S, S) as preprocess made it, mask (S, S) float32 of 0 and 1, label (1 is
    anomalous), class_name, and image_path (absolute). The mask is all zeros for a normal image and in a data set
    without masks.

    Attributes:
        entries: list of Entry in the order of meta.json, so class after class.
        classes: their class names, in the same order.
        has_masks: the anomalous images have masks (either all of them have one, or none).
        checksum: hex digest of the entries and the sizes of their files. It does not depend on where the root lies;
            a file rewritten with the same number of bytes does not change it.
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
    ) -> None:
        self.root = os.path.abspath(root)
        self.preprocess = preprocess
        self.image_size = image_size
        self.split = split
        self.entries = read_entries(root, split)
        self.classes = list(dict.fromkeys(entry.class_name for entry in self.entries))
        if not self.entries:
            raise InputError(f"{root}: no images to use in the {split} split; choose another split")
        anomalous = [entry for entry in self.entries if entry.label == 1]
        unmasked = [entry for entry in anomalous if not entry.mask_path]
        self.has_masks = len(unmasked) < len(anomalous)
        if self.has_masks and unmasked:
            raise InputError(
                f"{meta_path(root)}: {len(unmasked)} of {len(anomalous)} anomalous images have no mask (first: "
                f"{unmasked[0].image_path}); add their masks, or leave the masks of all images out"
            )
        self.checksum = self._checksum()
        self.warnings = self._mask_size_warnings()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        entry = self.entries[index]
        path = self.path(entry.image_path)
        image = self.preprocess(load_image(path))  # (3, S, S)
        if self.image_size and image.shape[-1] != self.image_size:
            raise ImageError(f"preprocess gives {tuple(image.shape)}; make AnomalyDataset with the same image_size")
        return {
            "image": image,
            "mask": torch.from_numpy(self.mask(index, image.shape[-1])),
            "label": entry.label,
            "class_name": entry.class_name,
            "image_path": path,
        }

    def mask(self, index: int, image_size: int) -> np.ndarray:
        """The mask of `dataset[index]` alone, (image_size, image_size) float32 of 0 and 1."""
        entry = self.entries[index]
        if entry.label == 1 and entry.mask_path:
            return load_mask(self.path(entry.mask_path), image_size)
        return np.zeros((image_size, image_size), dtype=np.float32)

    def path(self, relative: str) -> str:
        """Absolute path of a file named in an entry."""
        return os.path.join(self.root, *relative.split("/"))

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for entry in self.entries:
            sizes = [os.path.getsize(self.path(path)) for path in (entry.image_path, entry.mask_path) if path]
            row = [entry.class_name, entry.label, entry.image_path, entry.mask_path, *sizes]
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def _mask_size_warnings(self) -> list[str]:
        different = [
            entry.mask_path
            for entry in self.entries
            if entry.label == 1
            and entry.mask_path
            and _sizes_differ(self.path(entry.image_path), self.path(entry.mask_path))
        ]
        if not different:
            return []
        return [
            f"{len(different)} masks differ in size from their image and are stretched to it (first: {different[0]})"
        ]


def blank_masks_warning(paths: list[str], image_size: int) -> str:
    """What to say of anomalous images whose masks mark no pixel once they are resized."""
    return (
        f"the masks of {len(paths)} anomalous images mark no pixel at {image_size} x {image_size} (first: {paths[0]}); "
        "correct them, or give a larger --image_size"
    )


def load_image(path: str | os.PathLike, value_range: tuple[float, float] | None = None) -> Image.Image:
    """The image at `path` as 8-bit RGB, see `as_rgb`.

    Raises ImageError for a file that cannot be read as an image, or has more pixels than PIL's limit
    (PIL.Image.MAX_IMAGE_PIXELS, 89 million).
    """
    with _opened(path) as image:
        return as_rgb(image, value_range)


def as_rgb(image: Image.Image, value_range: tuple[float, float] | None = None) -> Image.Image:
    """An image as 8-bit RGB, the way a viewer shows it.

    The EXIF orientation is applied, transparency is put on white, and grey values of more than 8 bits are scaled to
    8 bits: black and white are the values of `value_range`, else the ends of their full range.
    """
    upright = ImageOps.exif_transpose(image)
    if _is_deep(upright):
        return Image.fromarray(_scale_to_8_bits(upright, value_range)).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")


def load_mask(path: str | os.PathLike, image_size: int | tuple[int, int]) -> np.ndarray:
    """The mask at `path` as float32 of 0 and 1; raises ImageError like load_image.

    image_size: S for (S, S), or width and height.

    Every pixel above 0 is anomalous; the binary mask is resized bilinearly (PIL, antialiased) and cut at 0.5, as in the
    released code. An EXIF orientation of the mask is ignored, as there.
    """
    with _opened(path) as image:
        values = np.asarray(image if _is_deep(image) else image.convert("L"))
        binary = Image.fromarray((values > 0).astype(np.uint8) * 255)
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    resized = np.asarray(binary.resize(size, Image.Resampling.BILINEAR))
    return (resized > 127).astype(np.float32)


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """The decoded image; whatever goes wrong with it, in here or in the with block, becomes an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise ImageError(f"{path}: has more than {limit} pixels; shrink it or cut it into tiles") from None
    except Exception as error:  # broken files make PIL raise nearly anything, from SyntaxError to struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read as an image ({reason}); replace the file or leave it out") from None


def _is_deep(image: Image.Image) -> bool:
    """Whether the grey values have more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _scale_to_8_bits(image: Image.Image, value_range: tuple[float, float] | None) -> np.ndarray:
    """Deep grey values as uint8, over a given range, else the smallest usual one that holds them."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if value_range:
        low, high = value_range
    else:
        usual = (1, 255, 65535) if image.mode == "F" else (65535,)
        low = min(0.0, values.min())
        high = next((top for top in usual if values.max() <= top), values.max())
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _sizes_differ(image_path: str, mask_path: str) -> bool:
    """Whether the sizes in the two file headers differ; False for what cannot be read, which dataset[i] reports."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(image_path) as image, Image.open(mask_path) as mask:
                if image.size == mask.size:
                    return False
                sideways = image.getexif().get(0x0112) in (5, 6, 7, 8)  # orientations that swap width and height
                return mask.size != (image.size[::-1] if sideways else image.size)
    except Exception:
        return False


def meta_path(root: str | os.PathLike) -> Path:
    """Where the description of the data set in `root` lies."""
    return Path(root) / "meta.json"


def read_entries(root: str | os.PathLike, split: str) -> list[Entry]:
    """Read and check one split of ROOT/meta.json: every file it names exists and lies inside the root.

    Files made by the released scripts are accepted: absolute paths (the part of them that exists inside the root
    is taken), backslashes, "Train" and "Test", no mask_path. Raises InputError.
    """
    file = meta_path(root)
    again = f"make it again: python generate_dataset_json/KEY.py --root {root}"
    splits = _read_json(root)
    found = [name for name in splits if name.lower() == split.lower()]
    if not found:
        raise InputError(f"{file}: has no {split!r} split (it has {list(splits)}); {again}")
    classes = splits[found[0]]
    if not isinstance(classes, dict) or not all(isinstance(rows, list) for rows in classes.values()):
        raise InputError(f"{file}: {found[0]!r} is not an object with a list of entries for each class; {again}")
    entries = []
    for class_key, rows in classes.items():
        for number, row in enumerate(rows):
            try:
                entries.append(_read_entry(os.path.abspath(root), row))
            except ValueError as error:
                raise InputError(f"{file}: entry {number} of {found[0]} / {class_key!r} {error}; {again}") from None
    return entries


def _read_json(root: str | os.PathLike) -> dict[str, Any]:
    """The object in ROOT/meta.json, or InputError."""
    file = meta_path(root)
    make = f"python generate_dataset_json/KEY.py --root {root} (KEY: mvtec, visa, ...; custom for your own images)"
    try:
        names = os.listdir(root)
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}; give the folder that holds the images and meta.json") from None
    if not names:
        raise InputError(f"{root}: the folder is empty; put the data set's images there, then run {make}")
    if not file.is_file():
        raise InputError(f"{file}: no such file; make it with {make}")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not valid JSON ({error}); make it again with {make}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__} instead of an object; make it again with {make}")
    return content


def _read_entry(root: str, row: Any) -> Entry:
    """One checked entry; ValueError says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("is not an object")
    for key, kinds in (("img_path", str), ("cls_name", str), ("anomaly", int), ("mask_path", (str, type(None)))):
        if key not in row and key != "mask_path":
            raise ValueError(f"lacks {key!r}")
        if not isinstance(row.get(key), kinds):
            raise ValueError(f"has {row[key]!r} as {key!r}")
    if row["anomaly"] not in (0, 1):
        raise ValueError(f"has {row['anomaly']!r} as 'anomaly' (0 or 1 is allowed)")
    mask = row.get("mask_path")
    return Entry(
        image_path=_find_inside(root, row["img_path"], "image"),
        mask_path=_find_inside(root, mask, "mask") if mask else "",
        label=int(row["anomaly"]),
        class_name=row["cls_name"],
    )


def _find_inside(root: str, written: str, what: str) -> str:
    """The file that meta.json means by `written`, relative to the root; ValueError if there is none inside the root.

    The check is on the written path: a link that the user put inside the root may lead elsewhere.
    """
    path = posixpath.normpath(re.sub(r"^[A-Za-z]:", "/", written.replace("\\", "/")))
    parts = [part for part in path.split("/") if part]
    absolute = path.startswith("/")
    if parts[:1] == [".."] or re.search(r"[\x00-\x1f]", path):
        raise ValueError(f"names the {what} {written!r}, which is outside the root")
    starts = range(len(parts)) if absolute else [0]
    if os.path.basename(root) in parts[:-1]:  # released files may hold ROOT/... with the root as it was given then
        starts = [*starts, parts.index(os.path.basename(root)) + 1]
    for start in starts:
        if os.path.isfile(os.path.join(root, *parts[start:])):
            return "/".join(parts[start:])
    problem = "which is outside the root" if absolute else "which does not exist"
    raise ValueError(f"names the {what} {written!r}, {problem}")
