"""What the scripts beside this file share: facts on the data sets, matching images to masks, writing meta.json.

A layout is a function of the root that returns {"train": [entry...], "test": [entry...]}. All paths in it are strings
relative to the root with forward slashes; an entry is made by `entry`.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for utils, whatever the working directory

from utils import IMAGE_SUFFIXES, InputError, is_image, run_cli, write_json

Splits = dict[str, list[dict]]


@dataclass(frozen=True)
class DatasetFacts:
    """Published facts on a data set.

    test_size: normal and anomalous images of the test split. levels: what it has metrics for; images where some are
    normal, pixels where there are masks.
    """

    classes: tuple[str, ...]
    test_size: tuple[int, int]
    levels: tuple[str, ...] = ("image", "pixel")


INDUSTRIAL = {
    "mvtec": DatasetFacts(
        (
            "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
            "toothbrush", "transistor", "wood", "zipper",
        ),
        (467, 1258),
    ),
    "visa": DatasetFacts(
        (
            "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3",
            "pcb4", "pipe_fryum",
        ),
        (962, 1200),
    ),
    "mpdd": DatasetFacts(
        ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"), (176, 282)
    ),
    "btad": DatasetFacts(("01", "02", "03"), (451, 290)),
    "sdd": DatasetFacts(("electrical commutators",), (181, 74)),
    "dagm": DatasetFacts(tuple(f"Class{n}" for n in range(1, 11)), (6996, 1054)),
    "dtd": DatasetFacts(
        (
            "Blotchy_099", "Fibrous_183", "Marbled_078", "Matted_069", "Mesh_114", "Perforated_037", "Stratified_154",
            "Woven_001", "Woven_068", "Woven_104", "Woven_125", "Woven_127",
        ),
        (357, 947),
    ),
}  # fmt: skip
MEDICAL = {
    "headct": DatasetFacts(("brain",), (100, 100), ("image",)),
    "brainmri": DatasetFacts(("brain",), (98, 155), ("image",)),
    "br35h": DatasetFacts(("brain",), (1500, 1500), ("image",)),
    "covid19": DatasetFacts(("chest",), (1341, 219), ("image",)),
    "isic": DatasetFacts(("skin",), (0, 379), ("pixel",)),
    "colondb": DatasetFacts(("colon",), (0, 380), ("pixel",)),
    "clinicdb": DatasetFacts(("colon",), (0, 612), ("pixel",)),
    "kvasir": DatasetFacts(("colon",), (0, 1000), ("pixel",)),
    "endo": DatasetFacts(("colon",), (0, 200), ("pixel",)),
    "tn3k": DatasetFacts(("thyroid",), (0, 614), ("pixel",)),
}
DATASETS = INDUSTRIAL | MEDICAL


def _letters(name: str) -> str:
    """A name without case and punctuation, to compare spellings: "electrical commutators", "Electrical_Commutators"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def warn(message: str) -> None:
    """One line on stderr about something that looks wrong but does not stop the script."""
    print(f"warning: {message}", file=sys.stderr)


def list_folders(root: Path, folder: str = ".") -> list[str]:
    """Sorted names of the visible folders in ROOT/folder."""
    return sorted(item.name for item in os.scandir(root / folder) if item.is_dir() and not item.name.startswith("."))


def list_images(root: Path, folder: str) -> list[str]:
    """Sorted paths of the images directly in ROOT/folder; files whose suffix is not of an image are passed over."""
    names = [item.name for item in os.scandir(root / folder) if item.is_file() and is_image(item.name)]
    return sorted(f"{folder}/{check_name(name)}" for name in names)


def check_name(name: str) -> str:
    """`name`, or InputError if meta.json cannot hold it for every system."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"file name {name!r} is not valid UTF-8; rename the file") from None
    if "\\" in name or re.search(r"[\x00-\x1f]", name):
        raise InputError(f"file name {name!r} holds a backslash or a control character; rename the file")
    return name


def find_folder(root: Path, *names: str) -> str | None:
    """The folder ROOT/names[0]/names[1]..., upper and lower case being the same; None if it is missing."""
    folder = ""
    for name in names:
        here = list_folders(root, folder)
        found = [name] if name in here else [other for other in here if other.lower() == name.lower()]
        if not found:
            return None
        folder = f"{folder}/{found[0]}".lstrip("/")
    return folder


def need_folder(root: Path, *names: str, option: str = "--root") -> str:
    """Like find_folder, but InputError if it is missing; `option` is the flag that named `root`."""
    folder = find_folder(root, *names)
    if folder is None:
        raise InputError(f"{root}: has no folder {'/'.join(names)}; give the folder that holds it as {option}")
    return folder


def need_images(root: Path, folder: str) -> list[str]:
    """Like list_images, but InputError if there are none."""
    images = list_images(root, folder)
    if not images:
        raise InputError(f"{root / folder}: no images here (suffixes {' '.join(IMAGE_SUFFIXES)}); add some")
    return images


def stem(path: str) -> str:
    """The file name without its last suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def match_masks(root: Path, images: list[str], masks: list[str], tags: tuple[str, ...], folder: str) -> dict[str, str]:
    """The mask of each image, by name: the mask's stem is the image's stem followed by one of `tags`.

    InputError for an image without a mask or with several, and for a mask that fits several images; a warning for
    masks that fit no image. `folder` is where the masks were listed, for the messages.
    """
    by_stem: dict[str, list[str]] = {}
    for mask in masks:
        by_stem.setdefault(stem(mask), []).append(mask)
    matched: dict[str, str] = {}
    owner: dict[str, str] = {}
    missing = []
    for image in images:
        fitting = [mask for tag in tags for mask in by_stem.get(stem(image) + tag, [])]
        if len(fitting) > 1:
            raise InputError(f"{root / image}: has several masks ({', '.join(fitting)}); keep one of them")
        if not fitting:
            missing.append(image)
        elif fitting[0] in owner:
            raise InputError(f"{root / fitting[0]}: fits {owner[fitting[0]]} and {image}; give them different names")
        else:
            matched[image] = fitting[0]
            owner[fitting[0]] = image
    if missing:
        names = " or ".join(f"{stem(missing[0])}{tag}.*" for tag in tags)
        raise InputError(
            f"{root / missing[0]}: this abnormal image has no mask (looked for {names} in {root / folder}; "
            f"{len(missing)} of {len(images)} have none); add the mask or remove the image"
        )
    orphans = [mask for mask in masks if mask not in owner]
    if orphans:
        warn(f"{len(orphans)} masks in {root / folder} belong to no abnormal image (first: {orphans[0]}); left out")
    return matched


def entry(class_name: str, specie: str, image: str, anomaly: bool, mask: str = "") -> dict:
    """One entry of meta.json."""
    return {
        "img_path": image,
        "mask_path": mask,
        "cls_name": class_name,
        "specie_name": specie,
        "anomaly": int(anomaly),
    }


def mvtec_layout(root: Path, normal: str = "good", tags: tuple[str, ...] = ("_mask",)) -> Splits:
    """CLASS/{train,test}/KIND/* with masks in CLASS/ground_truth/KIND/*; every folder with a test/ is a class."""
    classes = [name for name in list_folders(root) if find_folder(root, name, "test")]
    if not classes:
        raise InputError(f"{root}: no folder CLASS/test in it; give the folder that holds the classes as --root")
    splits: Splits = {"train": [], "test": []}
    for name in classes:
        abnormal: dict[str, list[tuple[str, str]]] = {}
        for split in splits:
            folder = find_folder(root, name, split)
            for specie in list_folders(root, folder) if folder else []:
                images = list_images(root, f"{folder}/{specie}")
                if specie.lower() == normal:
                    splits[split] += [entry(name, specie, image, False) for image in images]
                elif images:
                    abnormal.setdefault(specie, []).extend((split, image) for image in images)
        for specie, found in abnormal.items():
            folder = need_folder(root, name, "ground_truth", specie)
            masks = match_masks(root, [image for _, image in found], list_images(root, folder), tags, folder)
            for split, image in found:
                splits[split].append(entry(name, specie, image, True, masks[image]))
    return splits


def folder_label_layout(root: Path, class_name: str, folders: dict[str, bool]) -> Splits:
    """Images without masks; `folders` says of each folder (relative to the root) whether its images are abnormal."""
    test = [
        entry(class_name, os.path.basename(folder), image, abnormal)
        for folder, abnormal in folders.items()
        for image in need_images(root, folder)
    ]
    return {"train": [], "test": test}


def image_mask_layout(
    root: Path, class_name: str, folders: list[str], mask_folder: str, tags: tuple[str, ...] = ("",)
) -> Splits:
    """Image folders whose images are all abnormal, except in a folder called good, and one folder with their masks."""
    images = {folder: need_images(root, folder) for folder in folders}
    abnormal = [image for folder in folders if not is_good(folder) for image in images[folder]]
    masks = match_masks(root, abnormal, list_images(root, mask_folder), tags, mask_folder)
    test = [
        entry(class_name, os.path.basename(folder), image, not is_good(folder), masks.get(image, ""))
        for folder in folders
        for image in images[folder]
    ]
    return {"train": [], "test": test}


def is_good(folder: str) -> bool:
    """Whether a folder's name says that its images are normal."""
    return os.path.basename(folder).lower() == "good"


def run(key: str, layout: Callable[[Path], Splits], description: str) -> None:
    """The command line of one script: read ROOT by `layout`, compare with DATASETS[key], write meta.json."""

    def main() -> None:
        args = parser(description, key).parse_args()
        splits = read_layout(layout, open_root(args.root))
        compare_with_published(key, splits)
        write_meta(splits, args.root, args.out)

    run_cli(main)


def parser(description: str, key: str) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--root", required=True, help=f"folder of the data set, for instance data/{key}")
    options.add_argument(
        "--out", help="file to write, default ROOT/meta.json; the paths in it are relative to ROOT all the same"
    )
    return options


def open_root(root: str, option: str = "--root") -> Path:
    """The root, named by the flag `option`, as a path; InputError if it is not a folder with something in it."""
    try:
        if not os.listdir(root):
            raise InputError(f"{option} {root}: the folder is empty; put the data set there first")
    except OSError as error:
        raise InputError(f"{option} {root}: {error.strerror}; give the folder that holds the data set") from None
    return Path(root)


def read_layout(layout: Callable[[Path], Splits], root: Path) -> Splits:
    """What `layout` finds in `root`; InputError for a folder that cannot be read and if there are no test images."""
    try:
        splits = layout(root)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; check the copy of the data set") from None
    if not any(splits.values()):
        raise InputError(f"{root}: the folders hold no images (looked for {' '.join(IMAGE_SUFFIXES)}); check the copy")
    return splits


def compare_with_published(key: str, splits: Splits) -> None:
    """Warn where the classes or the number of test images differ from the published data set."""
    facts = DATASETS[key]
    found = {_letters(item["cls_name"]): item["cls_name"] for item in splits["test"]}
    missing = [name for name in facts.classes if _letters(name) not in found]
    extra = sorted(name for letters, name in found.items() if letters not in map(_letters, facts.classes))
    if missing:
        warn(f"{key} without its class {', '.join(missing)}: no test images found")
    if extra:
        warn(f"{', '.join(extra)}: not a class of the published {key}, but taken in")
    size = count(splits["test"])
    if size != facts.test_size:
        warn(
            f"the test split has {size[0]} normal and {size[1]} anomalous images; "
            f"the published {key} has {facts.test_size[0]} and {facts.test_size[1]}"
        )


def count(entries: list[dict]) -> tuple[int, int]:
    """How many entries are normal and how many anomalous."""
    anomalous = sum(item["anomaly"] for item in entries)
    return len(entries) - anomalous, anomalous


def write_meta(splits: Splits, root: str, out: str | None) -> None:
    """Write the entries as {split: {class: [entry...]}}, sorted by class and image path, and print what was written."""
    meta: dict[str, dict[str, list[dict]]] = {}
    for split, entries in splits.items():
        twice = [path for path, number in Counter(item["img_path"] for item in entries).items() if number > 1]
        if twice:
            raise InputError(f"{Path(root) / twice[0]}: listed twice in the {split} split; list every image once")
        meta[split] = {}
        for item in sorted(entries, key=lambda item: (item["cls_name"], item["img_path"])):
            meta[split].setdefault(item["cls_name"], []).append(item)
    file = Path(out) if out else Path(root) / "meta.json"
    try:
        write_json(file, meta)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); give another file with --out") from None
    print(f"wrote {file}")
    for split, entries in splits.items():
        if entries:
            normal, anomalous = count(entries)
            masks = sum(bool(item["mask_path"]) for item in entries)
            print(f"{split}: {len(meta[split])} classes, {normal} normal, {anomalous} anomalous, {masks} masks")
