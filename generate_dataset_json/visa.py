"""Write ROOT/meta.json for VisA: split_csv/1cls.csv (or 1cls.csv) and the images and masks that it names.

Without a csv file ROOT is what VisA's own prepare_data.py makes: CLASS/{train,test}/{good,bad}/*, ground_truth/bad/*.
"""

from pathlib import Path, PurePosixPath

import builder

from generate_dataset_json.listing import NoLayout
from utils import InputError, shown

COLUMNS = ("object", "split", "label", "image", "mask")


def layout(root: Path) -> builder.Splits:
    """The rows of the csv file; every file that they name has to exist."""
    places = [root / "split_csv" / "1cls.csv", root / "1cls.csv"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return prepared(root)
    splits: builder.Splits = {"train": [], "test": []}
    for line, row in builder.read_csv(file, COLUMNS):
        where = f"{shown(file)}:{line}"
        split, label = row["split"], row["label"]
        if split not in splits or label not in ("normal", "anomaly"):
            raise InputError(f"{where}: unknown split {split!r} or label {label!r}; download the file again")
        image = existing_file(root, row["image"], f"{where}: image")
        mask = existing_file(root, row["mask"], f"{where}: mask") if label == "anomaly" else ""
        splits[split].append(builder.entry(row["object"], label, image, label == "anomaly", mask))
    return splits


def prepared(root: Path) -> builder.Splits:
    """MVTec AD's layout with masks called as their images; normal and anomaly are the species here, too."""
    try:
        splits = builder.mvtec_layout(root, tags=("", "_mask"))
    except NoLayout:
        raise NoLayout(
            f"{shown(root)}: no split_csv/1cls.csv, no 1cls.csv and no CLASS/test; give VisA's folder as --root"
        ) from None
    for item in [*splits["train"], *splits["test"]]:
        item["specie_name"] = "anomaly" if item["anomaly"] else "normal"
    return splits


def existing_file(root: Path, path: str, what: str) -> str:
    """`path` with forward slashes, if it is a file inside the root; InputError otherwise."""
    relative = PurePosixPath(path.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{what} {path!r} is outside {shown(root)}; download the file again")
    if not (root / relative).is_file():
        raise InputError(f"{what} {path!r} is not in {shown(root)}; complete the copy of VisA")
    return str(relative)


if __name__ == "__main__":
    builder.run("visa", layout, __doc__)
