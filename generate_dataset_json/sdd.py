"""Write ROOT/meta.json for SDD: CLASS/{train,test}/KIND/* with masks in ground_truth, or kosNN/* as it is downloaded.

Masks are called STEM, STEM_mask or STEM_label. The download is kosNN/PartN.jpg with PartN_label.bmp; a part whose label
is all black is normal. Its pictures are whole, those of the prepared set were cut.
"""

import re
from pathlib import Path

import builder

from generate_dataset_json.listing import find_folder, list_folders, list_images, stem
from utils import shown


def layout(root: Path) -> builder.Splits:
    """As MVTec AD, with masks named in one of three ways; or the download."""
    parts = [folder for folder in list_folders(root) if re.fullmatch(r"kos\d+", folder, re.IGNORECASE)]
    if parts and not any(find_folder(root, folder, "test") for folder in list_folders(root)):
        print(f"{shown(root)}: whole pictures, as vicos.si serves them; the published numbers are of a cut copy")
        return {"train": [], "test": [item for folder in parts for item in read_part(root, folder)]}
    return builder.mvtec_layout(root, tags=("", "_mask", "_label"))


def read_part(root: Path, folder: str) -> list[dict]:
    """The entries of one kosNN."""
    from generate_dataset_json.pixels import all_black

    files = list_images(root, folder)
    labels = [file for file in files if stem(file).endswith("_label")]
    images = [file for file in files if file not in labels]
    masks = builder.match_masks(root, images, labels, ("_label",), folder)
    name = builder.DATASETS["sdd"].classes[0]
    return [
        builder.entry(name, "good", image, False)
        if all_black(root / mask)
        else builder.entry(name, "defect", image, True, mask)
        for image, mask in masks.items()
    ]


if __name__ == "__main__":
    builder.run("sdd", layout, __doc__)
