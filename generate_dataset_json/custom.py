"""Write ROOT/meta.json for your own images, wherever they lie below ROOT.

Each of --normal and --abnormal takes folders (all images in and below them), files, and globs of both in quotes,
relative to ROOT. Example, with masks called STEM.png beside the images STEM.jpg:

    custom.py --root data/tiles --normal "MT_Free/Imgs/*.jpg" --abnormal "MT_B*/Imgs/*.jpg" --mask_suffix .png

A set that is laid out like MVTec AD (CLASS/{train,test,ground_truth}/KIND/) needs no more than:

    custom.py --root data/mine --mvtec_layout
"""

import argparse
import glob
import os
import posixpath
from pathlib import Path

import builder


def main() -> None:
    """Read the options, find images and masks, write the file."""
    args = parse_args()
    layout = builder.mvtec_layout if args.mvtec_layout else lambda root: find_entries(root, args)
    splits = builder.read_layout(layout, builder.open_root(args.root))
    builder.write_meta(splits, args.root, args.out)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = builder.parser(__doc__, "tiles")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--normal", nargs="+", default=[], metavar="WHERE", help="normal images")
    parser.add_argument("--abnormal", nargs="+", default=[], metavar="WHERE", help="abnormal images")
    parser.add_argument("--masks", metavar="WHERE", help="where the masks are; default beside the abnormal images")
    parser.add_argument(
        "--mask_suffix",
        help="what follows the image's stem in its mask's name: .png, _mask.png, or _mask for any image suffix; "
        "default nothing but the file suffix. Without --masks and --mask_suffix there are no masks",
    )
    name = parser.add_mutually_exclusive_group()
    name.add_argument("--class_name", default="object", help="class of all images, default object")
    name.add_argument("--class_from_folder", action="store_true", help="class is the first folder of the image's path")
    parser.add_argument("--split", choices=["train", "test"], default="test", help="split to fill, default test")
    parser.add_argument("--mvtec_layout", action="store_true", help="ROOT is laid out like MVTec AD")
    args = parser.parse_args()
    if args.mvtec_layout == bool(args.normal + args.abnormal):
        parser.error("give --normal, --abnormal or both; or --mvtec_layout alone")
    return args


def find_entries(root: Path, args: argparse.Namespace) -> builder.Splits:
    """The chosen split with an entry for every image that the patterns find."""
    normal = find_images(root, args.normal, "--normal")
    abnormal = find_images(root, args.abnormal, "--abnormal")
    masks: dict[str, str] = {}
    if args.masks or args.mask_suffix:
        fitting = fitting_masks(root, normal + abnormal, args)
        all_masks = {mask for found in fitting.values() for mask in found}
        normal = [image for image in normal if image not in all_masks]
        abnormal = [image for image in abnormal if image not in all_masks]
        masks = choose_masks(root, {image: fitting[image] for image in abnormal}, args)
    both = sorted(set(normal) & set(abnormal))
    if both:
        raise builder.InputError(f"{root / both[0]}: found by --normal and by --abnormal; make the patterns distinct")
    entries = [builder.entry(class_of(root, image, args), "normal", image, False) for image in normal]
    entries += [
        builder.entry(class_of(root, image, args), "anomaly", image, True, masks.get(image, "")) for image in abnormal
    ]
    return {"train": [], "test": []} | {args.split: entries}


def find_images(root: Path, patterns: list[str], option: str) -> list[str]:
    """Sorted relative paths of the images that folders, files and globs name; InputError if one finds nothing."""
    found: set[str] = set()
    for pattern in patterns:
        if os.path.isabs(pattern) or ".." in Path(pattern).parts:
            raise builder.InputError(f"{option} {pattern}: has to lie inside --root {root}; give it relative to that")
        matches = [pattern] if (root / pattern).exists() else glob.glob(pattern, root_dir=root, recursive=True)
        paths = [path for match in matches for path in files_below(root, match) if builder.is_image(path)]
        if not paths:
            raise builder.InputError(f"{option} {pattern}: finds no images in {root}; check the folder or pattern")
        found |= {builder.check_name(posixpath.normpath(path.replace(os.sep, "/"))) for path in paths}
    return sorted(found)


def files_below(root: Path, path: str) -> list[str]:
    """`path` itself if it is a file, and all visible files in and below it if it is a folder."""
    if (root / path).is_file():
        return [path]
    inside = glob.glob(f"{glob.escape(path)}/**/*", root_dir=root, recursive=True)
    return [file for file in inside if (root / file).is_file()]


def fitting_masks(root: Path, images: list[str], args: argparse.Namespace) -> dict[str, list[str]]:
    """For each image the files that are its mask by name: in the same folder, or wherever --masks says."""
    suffix = args.mask_suffix or ""
    ending = next((end for end in builder.IMAGE_SUFFIXES if suffix.lower().endswith(end)), "")
    tag = suffix[: len(suffix) - len(ending)]
    if args.masks:
        candidates = find_images(root, [args.masks], "--masks")
    else:
        folders = sorted({posixpath.dirname(image) or "." for image in images})
        candidates = [posixpath.normpath(path) for folder in folders for path in builder.list_images(root, folder)]
    by_stem: dict[str, list[str]] = {}
    for path in candidates:
        if path.lower().endswith(ending):
            by_stem.setdefault(builder.stem(path), []).append(path)
    fitting = {}
    for image in images:
        found = [path for path in by_stem.get(builder.stem(image) + tag, []) if path != image]
        if not args.masks:
            found = [path for path in found if posixpath.dirname(path) == posixpath.dirname(image)]
        elif len(found) > 1:
            folder = posixpath.basename(posixpath.dirname(image))
            same = [path for path in found if posixpath.basename(posixpath.dirname(path)) == folder]
            found = same or found
        fitting[image] = found
    if args.masks:
        used = {*images, *(path for found in fitting.values() for path in found)}
        orphans = [path for path in candidates if path not in used]
        if orphans:
            builder.warn(f"{len(orphans)} files in {root / args.masks} are the mask of no image (first: {orphans[0]})")
    return fitting


def choose_masks(root: Path, fitting: dict[str, list[str]], args: argparse.Namespace) -> dict[str, str]:
    """The one mask of each abnormal image; InputError if one has none or several, or if two images share one."""
    owner: dict[str, str] = {}
    for image, found in fitting.items():
        if not found:
            place = args.masks or "the image's folder"
            name = f"{builder.stem(image)}{args.mask_suffix or '.*'}"
            number = sum(not masks for masks in fitting.values())
            raise builder.InputError(
                f"{root / image}: this abnormal image has no mask (looked for {name} in {place}; "
                f"{number} of {len(fitting)} have none); add the mask, or give neither --masks nor --mask_suffix"
            )
        if len(found) > 1:
            raise builder.InputError(f"{root / image}: has several masks ({', '.join(found)}); set --mask_suffix")
        if found[0] in owner:
            raise builder.InputError(f"{root / found[0]}: fits {owner[found[0]]} and {image}; rename one of them")
        owner[found[0]] = image
    return {image: mask for mask, image in owner.items()}


def class_of(root: Path, image: str, args: argparse.Namespace) -> str:
    """The class name of an image."""
    if not args.class_from_folder:
        return args.class_name
    folder, slash, _ = image.partition("/")
    if not slash:
        raise builder.InputError(f"{root / image}: lies in no folder to name its class; use --class_name")
    return folder


if __name__ == "__main__":
    builder.run_cli(main)
