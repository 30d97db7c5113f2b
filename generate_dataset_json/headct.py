"""Write ROOT/meta.json for HeadCT: brain/test/{good,...}/*, or as it is downloaded; no masks.

The download is head_ct/head_ct/NNN.png with labels.csv (id, hemorrhage).
"""

from pathlib import Path

import builder

from generate_dataset_json.listing import find_folder, list_folders, need_folder, need_images, stem
from utils import InputError, shown


def layout(root: Path) -> builder.Splits:
    """Every folder but good is abnormal; in the download the csv file says which images are."""
    if (root / "labels.csv").is_file() and not find_folder(root, "brain", "test"):
        return downloaded(root)
    test = need_folder(root, "brain", "test")
    folders = [f"{test}/{name}" for name in list_folders(root, test)]
    return builder.folder_label_layout(root, "brain", {folder: not builder.is_good(folder) for folder in folders})


def downloaded(root: Path) -> builder.Splits:
    """An entry for each row of labels.csv."""
    folder = find_folder(root, "head_ct", "head_ct") or need_folder(root, "head_ct")
    file = root / "labels.csv"
    images = need_images(root, folder)
    by_number = {int(stem(image)): image for image in images if stem(image).isdecimal()}
    entries = []
    for line, row in builder.read_csv(file, ("id", "hemorrhage")):
        where = f"{shown(file)}:{line}"
        number, label = row["id"].strip(), row["hemorrhage"].strip()
        image = by_number.get(int(number)) if number.isdecimal() else None
        if image is None:
            raise InputError(f"{where}: no image for the id {number!r} in {folder}; complete the copy")
        if label not in ("0", "1"):
            raise InputError(f"{where}: hemorrhage is {label!r} instead of 0 or 1; download the file again")
        entries.append(builder.entry("brain", "hemorrhage" if label == "1" else "good", image, label == "1"))
    unlabelled = sorted(set(images) - {item["img_path"] for item in entries})
    if unlabelled:
        first = shown(unlabelled[0])
        builder.warn(f"{len(unlabelled)} images have no row in labels.csv (first: {first}); left out")
    return {"train": [], "test": entries}


if __name__ == "__main__":
    builder.run("headct", layout, __doc__)
