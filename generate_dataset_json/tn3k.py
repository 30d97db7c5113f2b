"""Write ROOT/meta.json for TN3K: test-image/* and masks of the same stem in test-mask/*."""

from pathlib import Path

import builder

from generate_dataset_json.listing import need_folder


def layout(root: Path) -> builder.Splits:
    """All images are abnormal."""
    return builder.image_mask_layout(root, "thyroid", [need_folder(root, "test-image")], need_folder(root, "test-mask"))


if __name__ == "__main__":
    builder.run("tn3k", layout, __doc__)
