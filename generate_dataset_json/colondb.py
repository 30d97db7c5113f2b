"""Write ROOT/meta.json for CVC-ColonDB: images/* and masks of the same stem in masks/*."""

from pathlib import Path

import builder

from generate_dataset_json.listing import need_folder


def layout(root: Path) -> builder.Splits:
    """All images are abnormal."""
    return builder.image_mask_layout(root, "colon", [need_folder(root, "images")], need_folder(root, "masks"))


if __name__ == "__main__":
    builder.run("colondb", layout, __doc__)
