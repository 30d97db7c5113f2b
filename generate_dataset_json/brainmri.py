"""Write ROOT/meta.json for BrainMRI: {no,yes}/*, at the root or in brain_tumor_dataset/, no masks."""

from pathlib import Path

import builder

from generate_dataset_json.listing import find_folder, need_folder


def layout(root: Path) -> builder.Splits:
    """The download holds the images twice; those in brain_tumor_dataset/ are taken where it exists."""
    above = [name for name in [find_folder(root, "brain_tumor_dataset")] if name]
    normal = need_folder(root, *above, "no")
    abnormal = need_folder(root, *above, "yes")
    return builder.folder_label_layout(root, "brain", {normal: False, abnormal: True})


if __name__ == "__main__":
    builder.run("brainmri", layout, __doc__)
