"""Write ROOT/meta.json for DAGM: ClassN/{Train,Test}/*.PNG, masks of the defects in Label/*_label.PNG beside them."""

from pathlib import Path

import builder

from generate_dataset_json.listing import NoLayout, find_folder, list_folders, list_images, stem
from utils import InputError, shown


def layout(root: Path) -> builder.Splits:
    """An image is abnormal if a mask exists for it."""
    classes = [name for name in list_folders(root) if find_folder(root, name, "Test")]
    if not classes:
        raise NoLayout(f"{shown(root)}: no folder ClassN/Test in it; give the folder of the classes as --root")
    splits: builder.Splits = {"train": [], "test": []}
    for name in classes:
        for split in splits:
            folder = find_folder(root, name, split)
            if folder:
                splits[split] += read_folder(root, name, folder)
    return splits


def read_folder(root: Path, class_name: str, folder: str) -> list[dict]:
    """The entries of one ClassN/{Train,Test}."""
    label_folder = find_folder(root, *folder.split("/"), "Label")
    if label_folder is None:
        raise InputError(f"{shown(root)}: has no folder {shown(folder)}/Label; complete the copy")
    labels = list_images(root, label_folder)
    label_stems = {stem(label) for label in labels}
    images = list_images(root, folder)
    abnormal = [image for image in images if stem(image) + "_label" in label_stems]
    masks = builder.match_masks(root, abnormal, labels, ("_label",), label_folder)
    normal = [builder.entry(class_name, "normal", image, False) for image in images if image not in masks]
    return normal + [builder.entry(class_name, "anomaly", image, True, mask) for image, mask in masks.items()]


if __name__ == "__main__":
    builder.run("dagm", layout, __doc__)
