"""Write ROOT/meta.json for COVID-19: NORMAL/* and folders of abnormal images (COVID/*), no masks."""

from pathlib import Path

import builder


def layout(root: Path) -> builder.Splits:
    """Every folder but NORMAL is abnormal."""
    normal = builder.need_folder(root, "NORMAL")
    folders = {folder: folder != normal for folder in builder.list_folders(root)}
    if len(folders) < 2:
        raise builder.InputError(f"{root}: has no folder beside {normal}; put the abnormal images into COVID/")
    return builder.folder_label_layout(root, "chest", folders)


if __name__ == "__main__":
    builder.run("covid19", layout, __doc__)
