"""Write ROOT/meta.json for CVC-ClinicDB: images/* and masks of the same stem in masks/*, or as it is downloaded.

The download holds everything twice, in PNG/{Original,Ground Truth} and TIF/{Original,Ground Truth}; PNG is taken.
"""

from pathlib import Path

import builder

from generate_dataset_json.listing import find_folder, need_folder

DOWNLOADED = (
    (("PNG", "Original"), ("PNG", "Ground Truth")),
    (("TIF", "Original"), ("TIF", "Ground Truth")),
    (("Original",), ("Ground Truth",)),
)


def layout(root: Path) -> builder.Splits:
    """All images are abnormal."""
    places = [(("images",), ("masks",)), *DOWNLOADED]
    images, masks = next((pair for pair in places if all(find_folder(root, *names) for names in pair)), places[0])
    return builder.image_mask_layout(root, "colon", [need_folder(root, *images)], need_folder(root, *masks))


if __name__ == "__main__":
    builder.run("clinicdb", layout, __doc__)
