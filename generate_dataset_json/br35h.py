"""Write ROOT/meta.json for Br35H: {no,yes}/*, no masks."""

from pathlib import Path

import builder

from generate_dataset_json.listing import need_folder


def layout(root: Path) -> builder.Splits:
    """Other folders of the download (pred/ and the detection part) are not used."""
    normal = need_folder(root, "no")
    abnormal = need_folder(root, "yes")
    return builder.folder_label_layout(root, "brain", {normal: False, abnormal: True})


if __name__ == "__main__":
    builder.run("br35h", layout, __doc__)
