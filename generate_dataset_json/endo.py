"""Write ROOT/meta.json for Endo: one folder of images of any name, and masks of the same stem in masks/*."""

from pathlib import Path

import builder

from generate_dataset_json.listing import list_folders, need_folder
from utils import InputError, shown


def layout(root: Path) -> builder.Splits:
    """Every folder but masks and good holds abnormal images."""
    masks = need_folder(root, "masks")
    folders = [name for name in list_folders(root) if name != masks]
    if not folders:
        raise InputError(f"{shown(root)}: no folder of images beside {masks}; give the folder of both as --root")
    return builder.image_mask_layout(root, "colon", folders, masks)


if __name__ == "__main__":
    builder.run("endo", layout, __doc__)
