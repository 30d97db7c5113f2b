"""Write ROOT/meta.json for HeadCT: brain/test/{good,...}/*, no masks."""

from pathlib import Path

import builder


def layout(root: Path) -> builder.Splits:
    """Every folder but good is abnormal."""
    test = builder.need_folder(root, "brain", "test")
    folders = [f"{test}/{name}" for name in builder.list_folders(root, test)]
    return builder.folder_label_layout(root, "brain", {folder: not builder.is_good(folder) for folder in folders})


if __name__ == "__main__":
    builder.run("headct", layout, __doc__)
