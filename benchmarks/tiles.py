"""Do windows find small defects in large pictures? Rendered scenes at 4 to 8 times the size that `tiny` sees.

Each picture is a scene of a rendered data set, drawn at --size pixels; a defective one has one defect of 0.05 to 0.5 %
of its area. Compared are the map of the whole picture, the blended map of its windows, and combinations of both; and as
image score the whole's, the windows' largest, and combinations. AUROC and AUPRO in percent, means over the categories.

python benchmarks/tiles.py --checkpoint_path results/quickstart/training/epoch_15.pth              # validation, 768 px
python benchmarks/tiles.py --checkpoint_path results/quickstart/training/epoch_15.pth --set target
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from common import finish

if TYPE_CHECKING:
    import numpy as np

SMALLEST, LARGEST = 0.0005, 0.005  # share of the picture that a defect covers


def large_picture(
    group: str, category: str, kind: str | None, number: int, size: int, usual: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A picture (size, size, 3) uint8 and the mask of its defect; kind None: no defect.

    The defect is one of the set's kinds, drawn in a small part of the scene as it is otherwise drawn in the whole.
    """
    import numpy as np

    from synthetic.categories import CATEGORIES
    from synthetic.defects import KINDS, add_defect
    from synthetic.world import Scene

    numbers = [list(CATEGORIES[group]).index(category), list(KINDS[group]).index(kind) if kind else 99, number, size]
    rng = np.random.default_rng(numbers)
    scene = CATEGORIES[group][category](rng, size)
    image, mask = scene.image.copy(), np.zeros((size, size), bool)
    while kind and not mask.any():
        part = size if usual else round(size * rng.uniform(0.12, 0.2))
        spots = np.argwhere(scene.region)
        top, left = np.clip(spots[rng.integers(len(spots))] - part // 2, 0, size - part)
        place = np.s_[top : top + part, left : left + part]
        piece = Scene(scene.image[place], scene.region[place], scene.behind[place], scene.noun, scene.colour)
        changed, where, visible = add_defect(rng, piece, *KINDS[group][kind])
        rim = where[0].any() or where[-1].any() or where[:, 0].any() or where[:, -1].any()
        if visible and (usual or (not rim and SMALLEST <= where.sum() / size**2 <= LARGEST)):
            image[place], mask[place] = changed, where
    return (image * 255 + 0.5).astype(np.uint8), mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_path", type=Path, help="epoch_N.pth of tiny (none: hand-written prompts)")
    parser.add_argument("--set", choices=("validation", "target"), default="validation", help="rendered set")
    parser.add_argument("--size", type=int, default=768, help="pixels")
    parser.add_argument("--tile", type=int, default=192, help="width of the windows")
    parser.add_argument("--usual_defects", action="store_true", help="2 to 16 % of the picture, drawn in all of it")
    parser.add_argument("--per_kind", type=int, default=3, help="defective pictures per category and kind")
    args = parser.parse_args()

    import numpy as np
    from tqdm import tqdm

    from metrics import image_auroc, pixel_aupro, pixel_auroc
    from predict import Predictor
    from synthetic.categories import CATEGORIES
    from synthetic.defects import KINDS
    from tiling import look_closer

    options = {"model": "tiny"} if args.checkpoint_path is None else {}
    whole_picture = Predictor(args.checkpoint_path, threads=None, **options)
    # Kinds that cut through everything have no small form.
    kinds = [kind for kind, (where, _) in KINDS[args.set].items() if where not in ("end", "band")]
    tables: dict[str, dict[str, list]] = {"maps": {}, "scores": {}}
    for category in tqdm(CATEGORIES[args.set], unit="category"):
        drawn = [(kind, number) for kind in kinds for number in range(args.per_kind)]
        drawn += [(None, number) for number in range(len(drawn))]
        maps, scores, masks = {}, {}, []
        for kind, number in drawn:
            pixels, mask = large_picture(args.set, category, kind, number, args.size, args.usual_defects)
            masks.append(mask)
            result = whole_picture(pixels)
            whole_score, whole = result.score, result.map
            windows, tile_max = look_closer(pixels, args.tile, 0.25, 8, whole_picture.look_at_parts)
            for name, values in {
                "whole": whole,
                "windows": windows,
                "mean": (whole + windows) / 2,
                "geometric mean": np.sqrt(whole * windows),
                "larger": np.maximum(whole, windows),
                "smaller": np.minimum(whole, windows),
            }.items():
                maps.setdefault(name, []).append(values.astype(np.float16))
            top = (whole + windows).max() / 2 / whole_picture.highest
            for name, value in {
                "whole": whole_score,
                "largest window": tile_max,
                "map maximum": top,
                "windows' map maximum": windows.max(),
                "mean of whole and largest window": (whole_score + tile_max) / 2,
                "mean of whole and map maximum": (whole_score + top) / 2,
                "larger of whole and map maximum": max(whole_score, top),
            }.items():
                scores.setdefault(name, []).append(value)
        masks, labels = np.stack(masks), np.array([kind is not None for kind, _ in drawn])
        for name, values in maps.items():
            values = np.stack(values)
            row = [pixel_auroc(masks, values), pixel_aupro(masks, values)]
            row.append(image_auroc(labels, values.max(axis=(1, 2)).astype(np.float32)))
            tables["maps"].setdefault(name, []).append(row)
        for name, values in scores.items():
            tables["scores"].setdefault(name, []).append([image_auroc(labels, np.array(values, np.float64))])

    means = {
        kind: {name: np.mean(rows, axis=0) * 100 for name, rows in table.items()} for kind, table in tables.items()
    }
    print(f"{args.set}, {args.size} px, windows of {args.tile} px")
    print("map: pixel AUROC, AUPRO, image AUROC of its maximum")
    for name, row in means["maps"].items():
        print(f"  {name:36s}" + " ".join(f"{value:5.1f}" for value in row))
    print("score: image AUROC")
    for name, row in means["scores"].items():
        print(f"  {name:36s}{row[0]:5.1f}")
    finish({kind: {name: row.tolist() for name, row in table.items()} for kind, table in means.items()})


if __name__ == "__main__":
    main()
