"""What takes a look into the pictures and masks of a data set: usual ranges of values, and masks that look wrong.

Imported where it is needed only, for it needs NumPy, SciPy and Pillow, which the scripts do without otherwise.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from deploy.reader import USUAL_RANGES, ImageError, header, is_deep, marked, opened
from utils import shown

Result = TypeVar("Result")
Range = tuple[float, float]

OUTSIDE = 0.02  # the share of a picture's values that may lie outside

REGIONS, TINY = 20, 10  # more regions than that, most of fewer pixels: noise of JPEG
CURE = 127  # the threshold that removes it


def in_parallel(look: Callable[[str], Result], paths: list[str], what: str) -> list[Result]:
    """`look` at every file, by threads; a progress bar from the third second on."""
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(look, paths), desc=what, total=len(paths), delay=2, leave=False, disable=None))


# The range of values


@dataclass
class Values:
    """What deep pictures hold. outside: for each range the largest share of one picture's values outside of it."""

    lowest: float
    highest: float
    floats: bool
    outside: dict[Range, float] = field(default_factory=dict)


def find_range(root: Path, images: list[str]) -> tuple[Range, Values, int] | None:
    """The range for a data set, what its deep pictures hold, and their number; None if there are no deep pictures.

    Files that cannot be read are passed over; that is said when they are used.
    """
    looked = in_parallel(values_of, [os.path.join(root, image) for image in images], "values of the images")
    found = [values for values in looked if values]
    if not found:
        return None
    together = join_values(found)
    return choose_range(together), together, len(found)


def values_of(path: str) -> Values | None:
    """What a deep picture holds; None for any other file."""
    try:
        with header(path) as image:
            return values_in(np.asarray(image)) if is_deep(image) else None
    except Exception:  # what is wrong with a file is said when it is used
        return None


def values_in(values: np.ndarray) -> Values | None:
    """What one picture holds; values that are no numbers are passed over."""
    floats = values.dtype.kind == "f"
    if floats:
        values = values[np.isfinite(values)]
    if not values.size:
        return None
    found = Values(float(values.min()), float(values.max()), floats)
    for low, high in USUAL_RANGES:
        inside = low <= found.lowest and found.highest <= high
        share = 0.0 if inside else np.count_nonzero((values < low) | (values > high)) / values.size
        found.outside[low, high] = share
    return found


def join_values(found: Iterable[Values]) -> Values:
    """What several pictures hold."""
    found = list(found)
    outside = {each: max(values.outside[each] for values in found) for each in found[0].outside}
    lowest, highest = min(values.lowest for values in found), max(values.highest for values in found)
    return Values(lowest, highest, any(values.floats for values in found), outside)


def choose_range(values: Values) -> Range:
    """The smallest usual range that holds the values, else their minimum and maximum.

    It holds them if of no picture more than OUTSIDE lies outside. Ranges below zero are for pictures that use half of
    what is below zero; floating point numbers, which may have any scale, have to use an eighth of a range.
    """
    ranges = [(low, high) for low, high in USUAL_RANGES if values.floats or high > 1]
    for low, high in sorted(ranges, key=lambda each: each[0] < 0):
        if low < 0:
            used = values.lowest <= low / 2
        else:
            used = not values.floats or high == 1 or values.highest >= high / 8
        if used and values.outside[low, high] <= OUTSIDE:
            return low, high
    return values.lowest, values.highest if values.highest > values.lowest else values.lowest + 1


# Masks


@dataclass(frozen=True)
class MaskLook:
    """What a mask looks like. black: nothing in it; blank: no value above the threshold."""

    black: bool
    blank: bool
    covering: bool
    noisy: bool
    curable: bool
    transparent: bool


def all_black(mask: str | os.PathLike) -> bool:
    """Whether a mask marks nothing; ImageError if it cannot be read."""
    with opened(mask) as image:
        return not marked(image, 0).any()


def look_at_masks(root: Path, masks: list[str], threshold: float) -> dict[str, MaskLook]:
    """What each mask looks like; those that cannot be read are passed over, which is said when they are used."""

    def look(mask: str) -> MaskLook | None:
        try:
            return look_at_mask(root / mask, threshold)
        except ImageError:
            return None

    return {mask: seen for mask, seen in zip(masks, in_parallel(look, masks, "masks"), strict=True) if seen}


def look_at_mask(path: Path, threshold: float) -> MaskLook:
    """What a mask looks like; ImageError if it cannot be read."""
    with opened(path) as image:
        marks = marked(image, threshold)
        share = np.count_nonzero(marks) / marks.size
        noisy = is_noisy(marks)
        return MaskLook(
            black=share == 0 and not (threshold and marked(image, 0).any()),
            blank=share == 0,
            covering=share > 0.5,
            noisy=noisy,
            curable=noisy and not is_deep(image) and not is_noisy(marked(image, max(CURE, threshold))),
            transparent=image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255,
        )


def is_noisy(marks: np.ndarray) -> bool:
    """Whether there are many regions, most of them tiny."""
    rows, columns = np.flatnonzero(marks.any(axis=1)), np.flatnonzero(marks.any(axis=0))
    if not rows.size:
        return False
    marks = marks[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labels, number = ndimage.label(marks, np.ones((3, 3)))
    if number <= REGIONS:
        return False
    sizes = np.bincount(labels.ravel())[1:]
    return np.count_nonzero(sizes < TINY) > number / 2


def mask_warnings(looks: dict[str, MaskLook], threshold: float) -> list[str]:
    """What there is to say of masks that are not all black: a line for each kind of trouble."""
    blank = [mask for mask, look in looks.items() if look.blank and not look.black]
    covering = [mask for mask, look in looks.items() if look.covering]
    noisy = [mask for mask, look in looks.items() if look.noisy]
    transparent = [mask for mask, look in looks.items() if look.transparent]
    warnings = []
    if blank:
        advice = "give a lower --mask_threshold, or correct them"
        warnings.append(f"{tell(blank, looks)} mark nothing, no value is above {threshold:g}; {advice}")
    if len(covering) > len(looks) / 2:
        advice = "if they mark what is normal, invert them"
        warnings.append(f"{tell(covering, looks)} mark more than half of the picture; {advice}")
    if noisy:
        cure = f"give --mask_threshold {CURE}" if any(looks[mask].curable for mask in noisy) else "clean them"
        warnings.append(
            f"{tell(noisy, looks)} hold more than {REGIONS} regions, most of fewer than {TINY} pixels, like the noise "
            f"of JPEG; {cure}"
        )
    if transparent:
        warnings.append(
            f"{tell(transparent, looks)} hold transparency; what is transparent is taken as normal, save them without "
            "if that is wrong"
        )
    return warnings


def tell(masks: list[str], among: dict[str, MaskLook]) -> str:
    """How many masks, and which is the first."""
    return f"{len(masks)} of {len(among)} masks (first: {shown(masks[0])})"
