"""Write ROOT/meta.json for ISIC: skin/test/*/*, skin/ISBI2016_ISIC_Part1_Test_GroundTruth/*, or as it is downloaded.

The download is ISBI2016_ISIC_Part1_Test_Data/* and ISBI2016_ISIC_Part1_Test_GroundTruth/*. A mask is called
STEM_Segmentation.
"""

from pathlib import Path

import builder

from generate_dataset_json.listing import find_folder, list_folders, need_folder

IMAGES, MASKS = "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"


def layout(root: Path) -> builder.Splits:
    """Every folder in skin/test but good is abnormal; in the download all images are."""
    images = find_folder(root, IMAGES)
    if images and not find_folder(root, "skin", "test"):
        return builder.image_mask_layout(root, "skin", [images], need_folder(root, MASKS), tags=("_Segmentation",))
    test = need_folder(root, "skin", "test")
    masks = need_folder(root, "skin", MASKS)
    folders = [f"{test}/{name}" for name in list_folders(root, test)]
    return builder.image_mask_layout(root, "skin", folders, masks, tags=("_Segmentation",))


if __name__ == "__main__":
    builder.run("isic", layout, __doc__)
