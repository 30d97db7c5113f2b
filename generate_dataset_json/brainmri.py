"""Write ROOT/meta.json for BrainMRI: {no,yes}/*, at the root or in brain_tumor_dataset/, no masks."""

from pathlib import Path

import builder


def layout(root: Path) -> builder.Splits:
    """The download holds the images twice; those in brain_tumor_dataset/ are taken where it exists."""
    above = [name for name in [builder.find_folder(root, "brain_tumor_dataset")] if name]
    normal = builder.need_folder(root, *above, "no")
    abnormal = builder.need_folder(root, *above, "yes")
    return builder.folder_label_layout(root, "brain", {normal: False, abnormal: True})


if __name__ == "__main__":
    builder.run("brainmri", layout, __doc__)
