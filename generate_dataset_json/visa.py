"""Write ROOT/meta.json for VisA: split_csv/1cls.csv (or 1cls.csv) and the images and masks that it names."""

import csv
from pathlib import Path, PurePosixPath

import builder

COLUMNS = ("object", "split", "label", "image", "mask")


def layout(root: Path) -> builder.Splits:
    """The rows of the csv file; every file that they name has to exist."""
    places = [root / "split_csv" / "1cls.csv", root / "1cls.csv"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise builder.InputError(f"{root}: no split_csv/1cls.csv and no 1cls.csv; give the folder of VisA as --root")
    splits: builder.Splits = {"train": [], "test": []}
    for line, row in read_rows(file):
        split, label = row["split"], row["label"]
        if split not in splits or label not in ("normal", "anomaly"):
            raise builder.InputError(
                f"{file}:{line}: unknown split {split!r} or label {label!r}; download the file again"
            )
        image = existing_file(root, row["image"], f"{file}:{line}: image")
        mask = existing_file(root, row["mask"], f"{file}:{line}: mask") if label == "anomaly" else ""
        splits[split].append(builder.entry(row["object"], label, image, label == "anomaly", mask))
    return splits


def read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and columns of each row of the csv file."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error) as error:
        raise builder.InputError(f"{file}: is not a csv file ({error}); download the file again") from None
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise builder.InputError(f"{file}: its columns are not {','.join(COLUMNS)}; download the file again")
    short = [line for line, row in rows if any(row[column] is None for column in COLUMNS)]
    if short:
        raise builder.InputError(f"{file}:{short[0]}: has fewer columns than the header; download the file again")
    return rows


def existing_file(root: Path, path: str, what: str) -> str:
    """`path` with forward slashes, if it is a file inside the root; InputError otherwise."""
    relative = PurePosixPath(path.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise builder.InputError(f"{what} {path!r} is outside {root}; download the file again")
    if not (root / relative).is_file():
        raise builder.InputError(f"{what} {path!r} is not in {root}; complete the copy of VisA")
    return str(relative)


if __name__ == "__main__":
    builder.run("visa", layout, __doc__)
