"""Write ROOT/meta.json for DAGM: ClassN/{Train,Test}/*.PNG, masks of the defects in Label/*_label.PNG beside them."""

from pathlib import Path

import builder


def layout(root: Path) -> builder.Splits:
    """An image is abnormal if a mask exists for it."""
    classes = [name for name in builder.list_folders(root) if builder.find_folder(root, name, "Test")]
    if not classes:
        raise builder.InputError(f"{root}: no folder ClassN/Test in it; give the folder of the classes as --root")
    splits: builder.Splits = {"train": [], "test": []}
    for name in classes:
        for split in splits:
            folder = builder.find_folder(root, name, split)
            if folder:
                splits[split] += read_folder(root, name, folder)
    return splits


def read_folder(root: Path, class_name: str, folder: str) -> list[dict]:
    """The entries of one ClassN/{Train,Test}."""
    label_folder = builder.need_folder(root, *folder.split("/"), "Label")
    labels = builder.list_images(root, label_folder)
    label_stems = {builder.stem(label) for label in labels}
    images = builder.list_images(root, folder)
    abnormal = [image for image in images if builder.stem(image) + "_label" in label_stems]
    masks = builder.match_masks(root, abnormal, labels, ("_label",), label_folder)
    normal = [builder.entry(class_name, "normal", image, False) for image in images if image not in masks]
    return normal + [builder.entry(class_name, "anomaly", image, True, mask) for image, mask in masks.items()]


if __name__ == "__main__":
    builder.run("dagm", layout, __doc__)
