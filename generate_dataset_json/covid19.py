"""Write ROOT/meta.json for COVID-19: NORMAL/* and folders of abnormal images (COVID/*), or as it is downloaded.

The download since 2021 is CLASS/images/*; of it Normal and COVID are taken. The masks beside are of lungs and not used.
"""

from pathlib import Path

import builder

from generate_dataset_json.listing import find_folder, list_folders, names_of, need_folder, need_images
from utils import InputError, shown


def layout(root: Path) -> builder.Splits:
    """Every folder but NORMAL is abnormal; in the download COVID alone."""
    normal = need_folder(root, "NORMAL")
    if find_folder(root, normal, "images"):
        return downloaded(root, normal)
    folders = {folder: folder != normal for folder in list_folders(root)}
    if len(folders) < 2:
        raise InputError(f"{shown(root)}: has no folder beside {normal}; put the abnormal images into COVID/")
    return builder.folder_label_layout(root, "chest", folders)


def downloaded(root: Path, normal: str) -> builder.Splits:
    """The entries of Normal/images and COVID/images."""
    covid = need_folder(root, "COVID")
    other = [folder for folder in list_folders(root) if folder not in (normal, covid)]
    if other:
        builder.warn(f"{names_of(other)}: neither normal nor COVID, left out")
    test = [
        builder.entry("chest", folder, image, folder == covid)
        for folder in (normal, covid)
        for image in need_images(root, need_folder(root, folder, "images"))
    ]
    return {"train": [], "test": test}


if __name__ == "__main__":
    builder.run("covid19", layout, __doc__)
