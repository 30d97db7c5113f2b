"""Render the demonstration data sets in MVTec AD's folder layout.

    python synthetic/render.py --out data/synthetic               # auxiliary/ to train prompts, target/ to test them
    python synthetic/render.py --out data/synthetic --validation  # also validation/, to choose a pre-training recipe

Same seed, same bytes. Every image depends on (seed, set, category, part, number) alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import InputError, nonempty_path, run_cli

if TYPE_CHECKING:
    from numpy import ndarray

SIZE = 128  # pixels
TRAIN_GOOD, TEST_GOOD, PER_KIND = 4, 20, 3  # images per category, and per category and defect kind
SETS = ("auxiliary", "validation", "target")
COMPLETE = ".complete"  # a set's folder gets its name last, so this only says which settings it was made with


def categories(group: str) -> list[str]:
    """Names of a set's categories."""
    from synthetic.categories import CATEGORIES

    return list(CATEGORIES[group])


def draw(
    group: str, category: str, kind: str, number: int, seed: int, size: int = SIZE
) -> tuple[ndarray, ndarray, ndarray]:
    """One image of a set.

    Args:
        kind: "good", "train" (also good) or a defect kind of the set.

    Returns:
        The image and its clean twin (equal for a good one), (size, size, 3) uint8, and the mask (size, size) bool.
    """
    import numpy as np

    from synthetic.categories import CATEGORIES
    from synthetic.defects import KINDS, add_defect

    key = [
        seed,
        SETS.index(group),
        categories(group).index(category),
        [*KINDS[group], "good", "train"].index(kind),
        number,
    ]
    scene_seed, defect_seed = np.random.SeedSequence(key).spawn(2)
    scene = CATEGORIES[group][category](np.random.default_rng(scene_seed), size)
    image, mask = scene.image, np.zeros((size, size), bool)
    if kind in KINDS[group]:
        image, mask, _ = add_defect(np.random.default_rng(defect_seed), scene, *KINDS[group][kind], tries=200)
    return *((array * 255 + 0.5).astype(np.uint8) for array in (image, scene.image)), mask


def small_test_split(
    group: str, category: str, seed: int, per_kind: int, size: int = SIZE
) -> tuple[list[ndarray], list[ndarray]]:
    """Images and masks (see `draw`) of a small test split: as many good ones as defective ones."""
    from synthetic.defects import KINDS

    wanted = [(kind, number) for kind in KINDS[group] for number in range(per_kind)]
    wanted += [("good", number) for number in range(len(wanted))]
    drawn = [draw(group, category, kind, number, seed, size) for kind, number in wanted]
    return [image for image, _, _ in drawn], [mask for _, _, mask in drawn]


def image_list(group: str) -> list[tuple[str, str, int]]:
    """(category, kind, number) of every image of a set."""
    from synthetic.defects import KINDS

    counts = {"train": TRAIN_GOOD, "good": TEST_GOOD} | dict.fromkeys(KINDS[group], PER_KIND)
    return [
        (category, kind, i) for category in categories(group) for kind, count in counts.items() for i in range(count)
    ]


def write_image(folder: Path, group: str, category: str, kind: str, number: int, seed: int, size: int) -> None:
    """Render one image, and its mask if it has a defect, into a set's folder."""
    from PIL import Image

    image, _, mask = draw(group, category, kind, number, seed, size)
    part = Path("train/good") if kind == "train" else Path("test") / kind
    files = {folder / category / part / f"{number:03d}.png": image}
    if mask.any():
        files[folder / category / "ground_truth" / kind / f"{number:03d}_mask.png"] = (mask * 255).astype("uint8")
    for path, pixels in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def render_set(out: Path, group: str, seed: int, size: int) -> None:
    """Render one set into out/group; it appears when it is complete, and a complete one is left alone."""
    from tqdm import tqdm

    settings = f"seed {seed}, {size} px\n"
    folder, marker = out / group, out / group / COMPLETE
    if folder.exists():
        if not marker.is_file() or marker.read_bytes() != settings.encode():
            raise InputError(
                f"{folder} is there already, but not from --seed {seed} --size {size}: remove it or give another --out"
            )
        print(f"{folder}: complete")
        return
    temporary = out / f".{group}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        with tqdm(image_list(group), desc=group, unit="image") as progress:
            for category, kind, number in progress:
                write_image(temporary, group, category, kind, number, seed, size)
        (temporary / COMPLETE).write_text(settings)
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror or error}); give another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the auxiliary and the target data set (MVTec AD layout).")
    parser.add_argument(
        "--out", type=nonempty_path, default=Path("data/synthetic"), help="folder that gets auxiliary/ and target/"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=SIZE, help="side of the images in pixels")
    parser.add_argument("--validation", action="store_true", help="also render validation/")
    args = parser.parse_args()
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: give a number from 0 on")
    if not 32 <= args.size <= 1024:
        raise InputError(f"--size {args.size}: give 32 to 1024 pixels")
    for group in SETS if args.validation else ("auxiliary", "target"):
        render_set(args.out, group, args.seed, args.size)


if __name__ == "__main__":
    run_cli(main)
