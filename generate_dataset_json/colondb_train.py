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

from generate_dataset_json.listing import images_below, need_folder
from utils import InputError, atomic_path, shown


def main() -> None:
    """Read the options, find images and masks, put them into the root, write the file."""
    args = parse_args()
    colondb = builder.open_root(args.colondb, "--colondb")
    normal = builder.open_root(args.normal, "--normal")
    entries, sources = find_entries(colondb, normal)
    published = builder.DATASETS["colondb"].test_size[1]
    anomalous = builder.count(entries)[1]
    if anomalous != published:
        builder.warn(f"{shown(colondb)} has {anomalous} anomalous images; the published colondb has {published}")
    place(sources, Path(args.root))
    builder.write_meta({"train": [], "test": entries}, args.root, args.out)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = builder.parser(__doc__, "colondb_train")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--colondb", required=True, help="folder of CVC-ColonDB, with images/ and masks/")
    parser.add_argument("--normal", required=True, help="folder of normal images; folders in it are searched, too")
    return builder.parse(parser)


def find_entries(colondb: Path, normal: Path) -> tuple[list[dict], dict[str, Path]]:
    """The entries of meta.json, and for each path in them (relative to the root) the file that belongs there."""
    entries, sources = [], {}
    for item in builder.read_layout(colondb_layout, colondb)["test"]:
        image, mask = item["img_path"], item["mask_path"]
        image_path, mask_path = f"images/{os.path.basename(image)}", f"masks/{os.path.basename(mask)}"
        entries.append(builder.entry("colon", "images", image_path, True, mask_path))
        sources |= {image_path: colondb / image, mask_path: colondb / mask}
    polyps = {file_id(source) for source in sources.values()}
    healthy = images_below(normal)
    builder.warn_of_left_out()
    if not healthy:
        raise InputError(f"--normal {shown(normal)}: holds no images; give the folder of the normal images")
    for image in healthy:
        if file_id(normal / image) in polyps:
            where = shown(normal / image)
            raise InputError(f"{where}: is an image or mask of --colondb, too; give another --normal")
        path = f"normal/{image}"
        entries.append(builder.entry("colon", "normal", path, False))
        sources[path] = normal / image
    return entries, sources


def colondb_layout(root: Path) -> builder.Splits:
    """CVC-ColonDB as colondb.py reads it."""
    images = need_folder(root, "images", option="--colondb")
    masks = need_folder(root, "masks", option="--colondb")
    return builder.image_mask_layout(root, "colon", [images], masks)


def place(sources: dict[str, Path], root: Path) -> None:
    """Link or copy each source to its path in the root; what is there already stays, if it holds the same."""
    missing = {path: source for path, source in sources.items() if not os.path.lexists(root / path)}
    for path, source in sources.items():
        if path not in missing and not same_content(source, root / path):
            where = shown(root / path)
            raise InputError(f"{where}: is there but differs from {shown(source)}; remove it, or change --root")
    linked = 0
    for path, source in missing.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(root / path) as temporary:
            try:
                os.link(os.path.realpath(source), temporary)
                linked += 1
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, temporary)
    copied, before = len(missing) - linked, len(sources) - len(missing)
    print(f"{shown(root)}: {linked} files linked, {copied} copied, {before} there before")


def file_id(path: Path) -> tuple[int, int]:
    """What a file and its hard links share."""
    status = path.stat()
    return status.st_dev, status.st_ino


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    return other.is_file() and (one.samefile(other) or filecmp.cmp(one, other, shallow=False))


if __name__ == "__main__":
    builder.run_cli(main)
