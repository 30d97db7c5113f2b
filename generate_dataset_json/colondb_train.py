"""Make the medical set that the paper's table 3 trains on: CVC-ColonDB's polyps and normal images of the colon.

The anomalous images are those of --colondb (images/* and masks of the same stem in masks/*), the normal ones those in
and below --normal; the paper took those of the Endo classification set's test split (its appendix B). They are put into
ROOT/images, ROOT/masks and ROOT/normal, as hard links where that is possible and as copies elsewhere, and described in
ROOT/meta.json. Example:

    colondb_train.py --root data/colondb_train --colondb data/colondb --normal data/endo_classification/test/normal
"""

import argparse
import filecmp
import os
import shutil
from pathlib import Path

import builder

from utils import atomic_path


def main() -> None:
    """Read the options, find images and masks, put them into the root, write the file."""
    args = parse_args()
    colondb = builder.open_root(args.colondb, "--colondb")
    normal = builder.open_root(args.normal, "--normal")
    entries, sources = find_entries(colondb, normal)
    published = builder.DATASETS["colondb"].test_size[1]
    anomalous = builder.count(entries)[1]
    if anomalous != published:
        builder.warn(f"{colondb} has {anomalous} anomalous images; the published colondb has {published}")
    place(sources, Path(args.root))
    builder.write_meta({"train": [], "test": entries}, args.root, args.out)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = builder.parser(__doc__, "colondb_train")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--colondb", required=True, help="folder of CVC-ColonDB, with images/ and masks/")
    parser.add_argument("--normal", required=True, help="folder of normal images; folders in it are searched, too")
    return parser.parse_args()


def find_entries(colondb: Path, normal: Path) -> tuple[list[dict], dict[str, Path]]:
    """The entries of meta.json, and for each path in them (relative to the root) the file that belongs there."""
    images = builder.need_folder(colondb, "images", option="--colondb")
    masks = builder.need_folder(colondb, "masks", option="--colondb")
    found = builder.need_images(colondb, images)
    matched = builder.match_masks(colondb, found, builder.list_images(colondb, masks), ("",), masks)
    entries, sources = [], {}
    for image in found:
        image_path, mask_path = f"images/{os.path.basename(image)}", f"masks/{os.path.basename(matched[image])}"
        entries.append(builder.entry("colon", "images", image_path, True, mask_path))
        sources |= {image_path: colondb / image, mask_path: colondb / matched[image]}
    polyps = {file_id(source) for source in sources.values()}
    for image in images_below(normal):
        if file_id(normal / image) in polyps:
            raise builder.InputError(f"{normal / image}: is an image or mask of --colondb, too; give another --normal")
        path = f"normal/{image}"
        entries.append(builder.entry("colon", "normal", path, False))
        sources[path] = normal / image
    return entries, sources


def images_below(folder: Path) -> list[str]:
    """Sorted relative paths of the images in and below a folder; InputError if there are none."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and builder.is_image(path.name)]
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not visible:
        raise builder.InputError(f"--normal {folder}: holds no images; give the folder of the normal images")
    return sorted("/".join(map(builder.check_name, path.parts)) for path in visible)


def place(sources: dict[str, Path], root: Path) -> None:
    """Link or copy each source to its path in the root; what is there already stays, if it holds the same."""
    missing = {path: source for path, source in sources.items() if not os.path.lexists(root / path)}
    for path, source in sources.items():
        if path not in missing and not same_content(source, root / path):
            raise builder.InputError(f"{root / path}: is there but differs from {source}; remove it, or change --root")
    linked = 0
    for path, source in missing.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(root / path) as temporary:
            try:
                os.link(os.path.realpath(source), temporary)
                linked += 1
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, temporary)
    print(f"{root}: {linked} files linked, {len(missing) - linked} copied, {len(sources) - len(missing)} there before")


def file_id(path: Path) -> tuple[int, int]:
    """What a file and its hard links share."""
    status = path.stat()
    return status.st_dev, status.st_ino


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    return other.is_file() and (one.samefile(other) or filecmp.cmp(one, other, shallow=False))


if __name__ == "__main__":
    builder.run_cli(main)
