"""Write ROOT/meta.json for your own images, wherever they lie below ROOT.

Each of --normal and --abnormal takes folders (all images in and below them), files, and globs of both in quotes,
relative to ROOT. Example, with masks called STEM.png beside the images STEM.jpg:

    custom.py --root data/tiles --normal "MT_Free/Imgs/*.jpg" --abnormal "MT_B*/Imgs/*.jpg" --mask_suffix .png

A set that is laid out like MVTec AD (CLASS/{train,test}/KIND/, CLASS/ground_truth/KIND/STEM.* or STEM_mask.*, or no
ground_truth at all) needs no more than:

    custom.py --root data/mine --mvtec_layout

Images without labels need no meta.json: python predict.py FOLDER.
"""

import argparse
import math
import os
import posixpath
from pathlib import Path

import builder

from generate_dataset_json.listing import (
    expand,
    images_among,
    images_below,
    left_out,
    list_images,
    names_of,
    real_places,
    same_letters,
    stem,
    without_detours,
)
from utils import IMAGE_SUFFIXES, InputError, nonnegative_float, shown


def main() -> None:
    """Read the options, find images and masks, look at them where that is asked for, write the file."""
    args = parse_args()
    root = builder.open_root(args.root)
    splits = builder.read_layout(lambda folder: find_entries(folder, args), root)
    check_masks(root, splits, args)
    builder.write_meta(splits, args.root, args.out, reading_rules(root, splits, args))


# The options


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = builder.parser(__doc__, "tiles")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--normal", nargs="+", metavar="WHERE", help="normal images")
    parser.add_argument("--abnormal", nargs="+", metavar="WHERE", help="abnormal images")
    parser.add_argument("--masks", metavar="WHERE", help="where the masks are; default beside the abnormal images")
    parser.add_argument(
        "--mask_suffix",
        help="what follows the image's stem in its mask's name: .png, _mask.png, or _mask for any image suffix; "
        "default nothing but the file suffix. Without --masks and --mask_suffix there are no masks",
    )
    name = parser.add_mutually_exclusive_group()
    name.add_argument("--class_name", help="class of all images, default object")
    name.add_argument(
        "--class_from_folder", action="store_true", default=None, help="class is the first folder of the image's path"
    )
    parser.add_argument("--split", choices=["train", "test"], help="split to fill, default test")
    parser.add_argument("--mvtec_layout", action="store_true", help="ROOT is laid out like MVTec AD")
    parser.add_argument(
        "--mask_threshold",
        type=nonnegative_float,
        metavar="T",
        help="values of a mask above T are anomalous, default 0; 127 for masks that were saved as JPEG",
    )
    parser.add_argument(
        "--value_range",
        nargs="+",
        metavar=("auto|LOW", "HIGH"),
        help="values that are black and white in images of more than 8 bits; auto looks for them in the images. "
        "Default: the ends of the range of each file's type",
    )
    args = builder.parse(parser)
    check_flags(args)
    return args


def check_flags(args: argparse.Namespace) -> None:
    """InputError for flags that do not go together; the defaults that depend on others are set."""
    layout_says = ("normal", "abnormal", "masks", "class_name", "class_from_folder", "split")
    if args.mvtec_layout:
        given = [f"--{name}" for name in layout_says if getattr(args, name) is not None]
        if given:
            raise InputError(f"{', '.join(given)}: the folders say that already; give --mvtec_layout alone")
    elif not args.normal and not args.abnormal:
        raise InputError(
            "give --normal, --abnormal or both, or --mvtec_layout; images without labels need no meta.json: "
            "python predict.py FOLDER"
        )
    args.value_range = args.value_range and parse_range(args.value_range)
    args.threshold = args.mask_threshold or 0
    args.split = args.split or "test"
    args.class_name = args.class_name or "object"


def parse_range(words: list[str]) -> str | list[int | float]:
    """The words of --value_range: auto, or two numbers."""
    if words == ["auto"]:
        return "auto"
    try:
        low, high = map(float, words)
    except ValueError:
        low = high = math.nan
    if not -1e30 < low < high < 1e30:
        given = " ".join(map(shown, words))
        raise InputError(f"--value_range {given}: neither auto nor LOW HIGH with LOW < HIGH; correct it")
    return [number(low), number(high)]


def number(value: float) -> int | float:
    """A number as JSON should have it."""
    return int(value) if float(value).is_integer() else float(value)


# Finding images and masks


def split_suffix(suffix: str) -> tuple[str, str]:
    """--mask_suffix as what follows the image's stem, and the suffix of the file; "" for any."""
    ending = next((end for end in IMAGE_SUFFIXES if suffix.lower().endswith(end)), "")
    return same_letters(suffix[: len(suffix) - len(ending)]), ending


def find_entries(root: Path, args: argparse.Namespace) -> builder.Splits:
    """The entries of all images, by MVTec AD's layout or by patterns."""
    if not args.mvtec_layout:
        return {"train": [], "test": []} | {args.split: given_entries(root, args)}
    if args.mask_suffix is None:
        return builder.mvtec_layout(root, tags=("_mask", ""), masks_needed=False)
    tag, ending = split_suffix(args.mask_suffix)
    return builder.mvtec_layout(root, tags=(tag,), ending=ending)


def given_entries(root: Path, args: argparse.Namespace) -> list[dict]:
    """An entry for every image that the patterns find."""
    normal = find_images(root, args.normal or [], "--normal")
    abnormal = find_images(root, args.abnormal or [], "--abnormal")
    masks: dict[str, str] = {}
    if args.masks or args.mask_suffix:
        fitting = fitting_masks(root, normal + abnormal, args)
        all_masks = {mask for found in fitting.values() for mask in found}
        normal = [image for image in normal if image not in all_masks]
        abnormal = [image for image in abnormal if image not in all_masks]
        masks = choose_masks(root, {image: fitting[image] for image in abnormal}, args)
    normal_places = set(real_places(root, normal).values())
    both = [image for image, place in real_places(root, abnormal).items() if place in normal_places]
    if both:
        where = shown(root / both[0])
        raise InputError(f"{where}: found by --normal and by --abnormal; make the patterns distinct")
    entries = [builder.entry(class_of(root, image, args), "normal", image, False) for image in normal]
    return entries + [
        builder.entry(class_of(root, image, args), "anomaly", image, True, masks.get(image, "")) for image in abnormal
    ]


def find_images(root: Path, patterns: list[str], option: str) -> list[str]:
    """Sorted relative paths of the images that folders, files and globs name; InputError if one finds nothing."""
    found: set[str] = set()
    for pattern in patterns:
        where = f"{option} {shown(pattern)}"
        if os.path.isabs(pattern) or ".." in Path(pattern).parts:
            raise InputError(f"{where}: has to lie inside --root {shown(root)}; give it relative to that")
        paths = [image for match in expand(root, pattern) for image in images_at(root, match)]
        if not paths:
            there = f" ({left_out()})" if left_out() else ""
            raise InputError(f"{where}: finds no images in {shown(root)}{there}; check the folder or pattern")
        found |= set(paths)
    return without_detours(root, found)


def images_at(root: Path, path: str) -> list[str]:
    """`path` itself if it is an image, and the images in and below it if it is a folder."""
    if (root / path).is_dir():
        return images_below(root, path)
    return images_among(root, [path]) if (root / path).is_file() else []


def fitting_masks(root: Path, images: list[str], args: argparse.Namespace) -> dict[str, list[str]]:
    """For each image the files that are its mask by name: in the same folder, or wherever --masks says."""
    tag, ending = split_suffix(args.mask_suffix or "")
    if args.masks:
        candidates = find_images(root, [args.masks], "--masks")
    else:
        folders = sorted({posixpath.dirname(image) for image in images})
        candidates = [path for folder in folders for path in list_images(root, folder)]
    by_stem: dict[str, list[str]] = {}
    for path in candidates:
        if path.lower().endswith(ending):
            by_stem.setdefault(stem(path), []).append(path)
    fitting = {}
    for image in images:
        found = [path for path in by_stem.get(stem(image) + tag, []) if path != image]
        if not args.masks:
            found = [path for path in found if posixpath.dirname(path) == posixpath.dirname(image)]
        fitting[image] = nearest(image, found)
    if args.masks:
        used = {*images, *(path for found in fitting.values() for path in found)}
        orphans = [path for path in candidates if path not in used]
        if orphans:
            where, first = shown(root / args.masks), shown(orphans[0])
            builder.warn(f"{len(orphans)} files in {where} are the mask of no image (first: {first})")
    return fitting


def nearest(image: str, masks: list[str]) -> list[str]:
    """Of several masks those in a folder called as the image's; of these those with most folders above in common."""
    same = [mask for mask in masks if folder_of(mask) == folder_of(image)] or masks
    shared = {mask: len(posixpath.commonpath([mask, image])) for mask in same}
    return [mask for mask in same if shared[mask] == max(shared.values())]


def folder_of(path: str) -> str:
    """The name of the folder that a file lies in, to compare."""
    return same_letters(posixpath.basename(posixpath.dirname(path)))


def choose_masks(root: Path, fitting: dict[str, list[str]], args: argparse.Namespace) -> dict[str, str]:
    """The one mask of each abnormal image; InputError if one has none or several, or if two images share one."""
    owner: dict[str, str] = {}
    for image, found in fitting.items():
        where = shown(root / image)
        if not found:
            place = shown(args.masks or "the image's folder")
            name = shown(f"{stem(image)}{args.mask_suffix or '.*'}")
            missing = sum(not masks for masks in fitting.values())
            raise InputError(
                f"{where}: this abnormal image has no mask (looked for {name} in {place}; "
                f"{missing} of {len(fitting)} have none); add the mask, or give neither --masks nor --mask_suffix"
            )
        if len(found) > 1:
            raise InputError(f"{where}: has several masks ({names_of(found)}); set --mask_suffix")
        if found[0] in owner:
            both = f"{shown(owner[found[0]])} and {shown(image)}"
            raise InputError(f"{shown(root / found[0])}: fits {both}; rename one of them")
        owner[found[0]] = image
    return {image: mask for mask, image in owner.items()}


def class_of(root: Path, image: str, args: argparse.Namespace) -> str:
    """The class name of an image."""
    if not args.class_from_folder:
        return args.class_name
    folder, slash, _ = image.partition("/")
    if not slash:
        raise InputError(f"{shown(root / image)}: lies in no folder to name its class; use --class_name")
    return folder


# Looking into images and masks


def check_masks(root: Path, splits: builder.Splits, args: argparse.Namespace) -> None:
    """Warn of masks that look wrong. Images whose mask is all black become normal, but not where folders are labels."""
    masked = [item for entries in splits.values() for item in entries if item["mask_path"]]
    if not masked:
        if args.mask_threshold is not None:
            raise InputError("--mask_threshold: there are no masks to apply it to; leave it out")
        return
    from generate_dataset_json.pixels import look_at_masks, mask_warnings

    masked.sort(key=lambda item: item["mask_path"])
    looks = look_at_masks(root, [item["mask_path"] for item in masked], args.threshold)
    black = [item for item in masked if item["mask_path"] in looks and looks[item["mask_path"]].black]
    if black:
        first = shown(black[0]["mask_path"])
        end = "correct them, or move their images to good/" if args.mvtec_layout else "their images are taken as normal"
        builder.warn(f"{len(black)} of {len(looks)} masks are all black (first: {first}); {end}")
    for warning in mask_warnings(looks, args.threshold):
        builder.warn(warning)
    if not args.mvtec_layout:
        for item in black:
            item |= {"specie_name": "normal", "anomaly": 0, "mask_path": ""}


def reading_rules(root: Path, splits: builder.Splits, args: argparse.Namespace) -> dict[str, object]:
    """What stands beside the splits: how images of more than 8 bits and masks are to be read."""
    rules: dict[str, object] = {}
    if args.value_range == "auto":
        rules |= found_range(root, [item["img_path"] for entries in splits.values() for item in entries])
    elif args.value_range:
        rules["value_range"] = args.value_range
    if args.threshold:
        rules["mask_threshold"] = number(args.threshold)
    return rules


def found_range(root: Path, images: list[str]) -> dict[str, object]:
    """The value_range of the images; nothing if none has more than 8 bits."""
    from generate_dataset_json.pixels import find_range

    found = find_range(root, images)
    if found is None:
        print("--value_range auto: no image has more than 8 bits; no value_range was written")
        return {}
    (low, high), values, deep = found
    held = f"the values of {deep} images of more than 8 bits, from {values.lowest:g} to {values.highest:g}"
    print(f"value_range: {low:g} to {high:g} for {held}")
    return {"value_range": [number(low), number(high)]}


if __name__ == "__main__":
    builder.run_cli(main)
