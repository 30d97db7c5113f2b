"""Write ROOT/meta.json for ISIC: skin/test/*/*, skin/ISBI2016_ISIC_Part1_Test_GroundTruth/*_Segmentation.png."""

from pathlib import Path

import builder


def layout(root: Path) -> builder.Splits:
    """Every folder in skin/test but good is abnormal."""
    test = builder.need_folder(root, "skin", "test")
    masks = builder.need_folder(root, "skin", "ISBI2016_ISIC_Part1_Test_GroundTruth")
    folders = [f"{test}/{name}" for name in builder.list_folders(root, test)]
    return builder.image_mask_layout(root, "skin", folders, masks, tags=("_Segmentation",))


if __name__ == "__main__":
    builder.run("isic", layout, __doc__)
