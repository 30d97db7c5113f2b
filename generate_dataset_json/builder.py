"""What the scripts beside this file share: facts on the data sets, matching images to masks, writing meta.json.

A layout is a function of the root that returns {"train": [entry...], "test": [entry...]}. All paths in it are strings
relative to the root with forward slashes; an entry is made by `entry`. A root that does not look like the data set at
all makes it raise `NoLayout`; it is then tried on the folders in the root.
"""

import argparse
import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for utils, whatever the working directory

from generate_dataset_json.listing import (
    NoLayout,
    check_path,
    find_folder,
    forget_left_out,
    join,
    left_out,
    list_folders,
    list_images,
    names_of,
    need_images,
    stem,
)
from utils import IMAGE_SUFFIXES, InputError, run_cli, shown, write_json

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


_warnings: list[str] = []


def warn(message: str) -> None:
    """Say, once the file is written, that something looks wrong; an error that stops the script stands alone."""
    _warnings.append(message)


# Entries and masks


def entry(class_name: str, specie: str, image: str, anomaly: bool, mask: str = "") -> dict:
    """One entry of meta.json; InputError for names that it cannot hold."""
    check_path(image)
    check_path(mask)
    if not class_name.isprintable():
        raise InputError(f"class name {class_name!r} holds a character that cannot be printed; rename the class")
    return {
        "img_path": image,
        "mask_path": mask,
        "cls_name": class_name,
        "specie_name": specie,
        "anomaly": int(anomaly),
    }


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
            raise InputError(f"{shown(root / image)}: has several masks ({names_of(fitting)}); keep one of them")
        if not fitting:
            missing.append(image)
        elif fitting[0] in owner:
            both = names_of([owner[fitting[0]]]) + " and " + shown(image)
            raise InputError(f"{shown(root / fitting[0])}: fits {both}; give them different names")
        else:
            matched[image] = fitting[0]
            owner[fitting[0]] = image
    if missing:
        names = " or ".join(shown(f"{stem(missing[0])}{tag}.*") for tag in tags)
        raise InputError(
            f"{shown(root / missing[0])}: this abnormal image has no mask (looked for {names} in "
            f"{shown(root / folder)}; {len(missing)} of {len(images)} have none); add the mask or remove the image"
        )
    orphans = [mask for mask in masks if mask not in owner]
    if orphans:
        where, first = shown(root / folder), shown(orphans[0])
        warn(f"{len(orphans)} masks in {where} belong to no abnormal image (first: {first}); left out")
    return matched


# Layouts that several data sets have


def mvtec_layout(
    root: Path, normal: str = "good", tags: tuple[str, ...] = ("_mask",), ending: str = "", masks_needed: bool = True
) -> Splits:
    """CLASS/{train,test}/KIND/* with masks in CLASS/ground_truth/KIND/*; every folder with a test/ is a class.

    Args:
        normal: the KIND that is normal.
        tags: what may follow an image's stem in its mask's, see `match_masks`.
        ending: what the masks' file names end with; "" for any image suffix.
        masks_needed: False: if no class has a ground_truth folder, there are no masks.
    """
    classes = [name for name in list_folders(root) if find_folder(root, name, "test")]
    if not classes:
        raise NoLayout(f"{shown(root)}: no folder CLASS/test in it; give the folder that holds the classes as --root")
    refuse_loco(root, classes)
    splits: Splits = {"train": [], "test": []}
    abnormal: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in classes:
        for split in splits:
            folder = find_folder(root, name, split)
            for specie in list_folders(root, folder) if folder else []:
                images = list_images(root, f"{folder}/{specie}")
                if specie.lower() == normal:
                    splits[split] += [entry(name, specie, image, False) for image in images]
                elif images:
                    abnormal.setdefault((name, specie), []).extend((split, image) for image in images)
    has_masks = masks_needed or some_have_masks(root, classes, [name for name, _ in abnormal])
    for (name, specie), found in abnormal.items():
        images = [image for _, image in found]
        masks = kind_masks(root, name, specie, images, tags, ending) if has_masks else {}
        for split, image in found:
            splits[split].append(entry(name, specie, image, True, masks.get(image, "")))
    return splits


def kind_masks(
    root: Path, class_name: str, specie: str, images: list[str], tags: tuple[str, ...], ending: str
) -> dict[str, str]:
    """The masks of one kind of anomaly in MVTec AD's layout."""
    folder = find_folder(root, class_name, "ground_truth", specie)
    if folder is None:
        missing = shown(f"{class_name}/ground_truth/{specie}")
        raise InputError(f"{shown(root)}: has no folder {missing} with masks for the {len(images)} images; add it")
    masks = [mask for mask in list_images(root, folder) if mask.lower().endswith(ending.lower())]
    return match_masks(root, images, masks, tags, folder)


def some_have_masks(root: Path, classes: list[str], abnormal: list[str]) -> bool:
    """Whether there are ground_truth folders; InputError if one of the classes with abnormal images has none."""
    having = [name for name in classes if find_folder(root, name, "ground_truth")]
    lacking = [name for name in abnormal if name not in having]
    if having and lacking:
        raise InputError(
            f"{shown(root)}: class {shown(lacking[0])} has no ground_truth folder, class {shown(having[0])} has one; "
            "add the masks, or take those of all classes away"
        )
    if lacking:
        print(f"{shown(root)}: no class has a ground_truth folder; taken without masks")
    return bool(having)


def refuse_loco(root: Path, classes: list[str]) -> None:
    """InputError for MVTec LOCO AD, which looks like MVTec AD."""
    for name in classes:
        for kind in ("logical_anomalies", "structural_anomalies"):
            masks = find_folder(root, name, "ground_truth", kind)
            if find_folder(root, name, "test", kind) and not (masks and list_images(root, masks)):
                raise InputError(
                    f"{shown(root)}: is MVTec LOCO AD ({shown(name)}/test/{kind}), which cannot be used here: its "
                    "ground_truth/KIND/NNN/ holds several masks an image, each with a saturation threshold of its own "
                    "metric; give MVTec AD"
                )


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


def read_csv(file: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Line number and columns of each row of a csv file; spaces after commas do not count."""
    where = shown(file)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows = [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error) as error:
        raise InputError(f"{where}: is not a csv file ({error}); download the file again") from None
    if not set(columns) <= set(names):
        problem = f"its columns are not {','.join(columns)}" if names else "the file is empty"
        raise InputError(f"{where}: {problem}; download the file again")
    if not rows:
        raise InputError(f"{where}: has no rows below its header; download the file again")
    short = [line for line, row in rows if any(row[column] is None for column in columns)]
    if short:
        raise InputError(f"{where}:{short[0]}: has fewer columns than the header; download the file again")
    return rows


# The command line


def run(key: str, layout: Callable[[Path], Splits], description: str) -> None:
    """The command line of one script: read ROOT by `layout`, compare with DATASETS[key], write meta.json."""

    def main() -> None:
        args = parse(parser(description, key))
        splits = read_layout(layout, open_root(args.root))
        compare_with_published(key, splits)
        write_meta(splits, args.root, args.out)

    run_cli(main)


def parser(description: str, key: str) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--root", required=True, help=f"folder of the data set, for instance data/{key}")
    options.add_argument(
        "--out",
        help="file to write, default ROOT/meta.json; the paths in it are relative to ROOT all the same, and train.py "
        "and test.py read it with --meta",
    )
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; InputError for a flag whose value is empty, as a shell variable that is not set leaves it."""
    _warnings.clear()
    args = options.parse_args()
    for name, value in vars(args).items():
        if "" in (value if isinstance(value, list) else [value]):
            raise InputError(f"--{name}: an empty value, as of a shell variable that is not set; give one")
    return args


def open_root(root: str, option: str = "--root") -> Path:
    """The root, named by the flag `option`, as a path; InputError if it is not a folder with something in it."""
    try:
        if not os.listdir(root):
            raise InputError(f"{option} {shown(root)}: the folder is empty; put the data set there first")
    except OSError as error:
        raise InputError(f"{option} {shown(root)}: {error.strerror}; give the folder that holds the data set") from None
    return Path(root)


def read_layout(layout: Callable[[Path], Splits], root: Path) -> Splits:
    """What `layout` finds in `root`, or else in the one folder in it that has this layout.

    InputError for a folder that cannot be read and if there are no images. What is left out is said.
    """
    forget_left_out()
    try:
        try:
            splits = layout(root)
        except NoLayout as error:
            splits = read_wrapped(layout, root, error)
    except OSError as error:
        raise InputError(f"{shown(error.filename or root)}: {error.strerror}; check the copy of the data set") from None
    if not any(splits.values()):
        there = left_out() or f"looked for {' '.join(IMAGE_SUFFIXES)}"
        raise InputError(f"{shown(root)}: the folders hold no images ({there}); check the copy")
    warn_of_left_out()
    return splits


def warn_of_left_out() -> None:
    """One line on files in the folders that were listed which are no pictures."""
    if left_out():
        warn(left_out())
    forget_left_out()


def read_wrapped(layout: Callable[[Path], Splits], root: Path, not_here: NoLayout) -> Splits:
    """What `layout` finds in the one folder of `root` that has it, its paths relative to `root`; else `not_here`."""
    results: dict[str, Splits | InputError] = {}
    for folder in list_folders(root):
        forget_left_out()
        try:
            results[folder] = layout(root / folder)
        except NoLayout:
            continue
        except InputError as error:
            results[folder] = error
    if not results:
        raise not_here
    if len(results) > 1:
        raise InputError(f"{not_here} (it is in several folders here: {names_of(results)})")
    folder, result = results.popitem()
    if isinstance(result, InputError):
        raise result
    print(f"{shown(root)}: the data set lies in the folder {shown(folder)} in it")
    return {split: [moved(item, folder) for item in entries] for split, entries in result.items()}


def moved(item: dict, folder: str) -> dict:
    """An entry whose paths were relative to a folder of the root."""
    mask = item["mask_path"]
    return entry(
        item["cls_name"],
        item["specie_name"],
        join(folder, item["img_path"]),
        bool(item["anomaly"]),
        join(folder, mask) if mask else "",
    )


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


def write_meta(splits: Splits, root: str, out: str | None, rules: dict[str, object] | None = None) -> None:
    """Write the entries as {split: {class: [entry...]}}, sorted by class and image path, and print what was written.

    `rules` are written beside the splits: how the files are to be read.
    """
    meta: dict[str, object] = {}
    for split, entries in splits.items():
        twice = [path for path, number in Counter(item["img_path"] for item in entries).items() if number > 1]
        if twice:
            raise InputError(f"{shown(Path(root) / twice[0])}: listed twice in the {split} split; list it once")
        classes: dict[str, list[dict]] = {}
        for item in sorted(entries, key=lambda item: (item["cls_name"], item["img_path"])):
            classes.setdefault(item["cls_name"], []).append(item)
        meta[split] = classes
    file = Path(out) if out else Path(root) / "meta.json"
    advice = "give another file with --out"
    if not out:
        advice = "write elsewhere with --out FILE, and give train.py and test.py this as --meta FILE"
    try:
        write_json(replaceable(file, advice), meta | (rules or {}))
    except OSError as error:
        raise InputError(f"{shown(file)}: cannot be written ({error.strerror}); {advice}") from None
    print(f"wrote {shown(file)}{' (give it to train.py and test.py as --meta)' if out else ''}")
    for split, entries in splits.items():
        if entries:
            normal, anomalous = count(entries)
            masks = sum(bool(item["mask_path"]) for item in entries)
            print(f"{split}: {len(meta[split])} classes, {normal} normal, {anomalous} anomalous, {masks} masks")
    for message in _warnings:
        print(f"warning: {message}", file=sys.stderr)


def replaceable(file: Path, advice: str) -> Path:
    """The file itself, links followed; InputError if it is there and no regular file, like a folder or a device."""
    if file.exists() and not file.is_file():
        raise InputError(f"{shown(file)}: cannot be written, for it is no regular file; {advice}")
    return Path(os.path.realpath(file))
