"""Write ROOT/meta.json for SDD: CLASS/{train,test}/KIND/*, masks STEM, STEM_mask or STEM_label in ground_truth."""

from pathlib import Path

import builder


def layout(root: Path) -> builder.Splits:
    """As MVTec AD, with masks named in one of three ways."""
    return builder.mvtec_layout(root, tags=("", "_mask", "_label"))


if __name__ == "__main__":
    builder.run("sdd", layout, __doc__)
