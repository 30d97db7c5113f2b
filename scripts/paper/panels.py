"""Figure 4 of the paper: image, mask and anomaly map of some images of each class, from runs of test.py --save_maps.

One row for each class, anomalous images first. A run is the --save_path of test.py; its data set has to be where the
test found it, because meta.json says which images are anomalous.

    python scripts/paper/panels.py results/mvtec results/brainmri --examples 4 --output results/figure4.png
    python scripts/paper/panels.py results/visa --images candle/Data/Images/Anomaly/000.JPG
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import InputError, atomic_path, nonempty_path, nonnegative_int, positive_int, run_cli

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dataset import AnomalyDataset, Entry

GAP = 4  # pixels between two panels, and three times as many between two examples
COLUMNS = ("image", "mask", "anomaly map")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=nonempty_path, nargs="+", metavar="RUN", help="run folder of test.py --save_maps")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--examples", type=positive_int, default=3, help="images per class, chosen by the seed (3)")
    choice.add_argument("--images", nargs="+", metavar="PATH", help="these images, as meta.json names them")
    parser.add_argument("--seed", type=nonnegative_int, default=111)
    parser.add_argument("--panel_size", type=positive_int, default=160, help="side of a panel in pixels (160)")
    parser.add_argument(
        "--output", type=nonempty_path, default=Path("results/figure4.png"), help="PNG (results/figure4.png)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.output.suffix.lower() != ".png":
        raise InputError(f"--output {args.output} must end in .png")
    from deploy.results import output_names

    rows, runs = [], {run: read_run(run) for run in args.runs}
    names = [name for name, _ in runs.values()]
    for run, (name, dataset) in runs.items():
        entries = dataset.entries
        files = output_names([entry.image_path for entry in entries])
        prefix = "" if len(runs) == 1 else f"{name if names.count(name) == 1 else run}\n"
        for class_name in dict.fromkeys(entry.class_name for entry in entries):
            of_class = [entry for entry in entries if entry.class_name == class_name]
            if args.images:
                chosen = sorted((entry for entry in of_class if entry.image_path in args.images), key=normal_last)
            else:
                chosen = choose(of_class, args.examples, f"{args.seed} {name} {class_name}")
            if chosen:
                maps = {entry.image_path: read_map(run, files[entry.image_path]) for entry in of_class}
                masked = any(entry.mask_path for entry in entries)
                rows.append((prefix + class_name, make_panels(dataset, maps, chosen, masked)))
    tested = {entry.image_path for _, dataset in runs.values() for entry in dataset.entries}
    unknown = [path for path in args.images or [] if path not in tested]
    if unknown:
        raise InputError(f"--images {unknown[0]}: not among the tested images; name them as meta.json does")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet = compose(rows, args.panel_size)
    with atomic_path(args.output) as temporary:
        sheet.save(temporary, format="png")
    print(f"wrote {args.output}: {len(rows)} classes, {sum(len(examples) for _, examples in rows)} images")


def read_run(run: Path) -> tuple[str, AnomalyDataset]:
    """Name of the tested data set, and the set; InputError if the run is not finished or has no maps."""
    from dataset import READ_AS, AnomalyDataset

    if not (run / "maps").is_dir():
        raise InputError(f"{run}: has no maps folder; make it with test.py --save_maps --save_path {run}")
    try:
        record = json.loads((run / "args.json").read_text(encoding="utf-8"))
        name, split, root = record["dataset"], record["split"], record["arguments"]["data_path"]
        meta, read_as = record["arguments"].get("meta"), record.get("read_as", READ_AS[0])
        size = record["settings"]["image_size"]
        sound = all(isinstance(each, str) for each in (name, split, root, meta or "")) and isinstance(size, int)
        finished = sound and read_as in READ_AS and (run / "metrics.json").is_file()
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        finished = False
    if not finished:
        raise InputError(f"{run}: is not a finished run of test.py (args.json, metrics.json); run the test again")
    return name, AnomalyDataset(root, image_size=size, split=split, read_as=read_as, meta=meta)


def choose(entries: list[Entry], number: int, seed: str) -> list[Entry]:
    """At most `number` entries of a class, chosen at random, anomalous ones first; the same for the same seed."""
    stream = random.Random(seed)
    return sorted(stream.sample(entries, len(entries)), key=normal_last)[:number]


def normal_last(entry: Entry) -> int:
    """Sorting key: anomalous entries first, otherwise in the given order."""
    return -entry.label


def read_map(run: Path, name: str) -> np.ndarray:
    """A map that test.py --save_maps wrote, (S, S) float32 in steps of its file."""
    import numpy as np
    from PIL import Image

    path = run / "maps" / name
    try:
        with Image.open(path) as image:
            return np.asarray(image).astype(np.float32)
    except Exception:  # damaged files make Pillow raise nearly anything
        raise InputError(f"{path}: is missing or damaged; run test.py --save_maps --save_path {run} again") from None


def make_panels(
    dataset: AnomalyDataset, maps: dict[str, np.ndarray], chosen: list[Entry], masked: bool
) -> list[list[Image.Image | None]]:
    """Image, mask (None if the data set is not `masked`) and anomaly map of each chosen entry.

    maps: those of all images of the class by their paths; they share one scale of colours.
    """
    import numpy as np
    from PIL import Image

    from pictures import Scale, blend

    scale = Scale(float(min(each.min() for each in maps.values())), float(max(each.max() for each in maps.values())))
    panels = []
    for entry in chosen:
        values = maps[entry.image_path]
        size = values.shape[::-1]
        index = dataset.entries.index(entry)
        image = dataset.image(index).resize(size)
        mask = Image.fromarray((dataset.mask(index, size) * 255).astype(np.uint8)) if masked else None
        panels.append([image, mask, Image.fromarray(blend(np.asarray(image), scale.colours(values)))])
    return panels


def compose(rows: list[tuple[str, list[list[Image.Image | None]]]], side: int) -> Image.Image:
    """One sheet of all rows; a row is a label and triples of panels (see `make_panels`).

    R rows of at most N triples, with panels of P pixels, take N (3 P + 5 GAP) x R (P + GAP) pixels right of the labels
    and below the line with the names of the columns. The column of masks is left out if no row has any.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = [i for i in range(3) if i != 1 or any(triple[1] for _, triples in rows for triple in triples)]
    font = ImageFont.load_default(max(10, side // 10))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    header = int(2 * font.size)
    left = max(int(measure.multiline_textbbox((0, 0), label, font)[2]) for label, _ in rows) + 4 * GAP
    step, pitch = side + GAP, len(columns) * (side + GAP) + 2 * GAP
    number = max(len(triples) for _, triples in rows)
    sheet = Image.new("RGB", (left + number * pitch, header + len(rows) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for example in range(number):
        for place, column in enumerate(columns):
            middle = left + example * pitch + place * step + side // 2
            draw.text((middle, header // 2), COLUMNS[column], "black", font, anchor="mm")
    for row, (label, triples) in enumerate(rows):
        top = header + row * step
        draw.multiline_text((2 * GAP, top + side // 2), label, "black", font, anchor="lm")
        for example, triple in enumerate(triples):
            for place, column in enumerate(columns):
                corner = (left + example * pitch + place * step, top)
                panel = triple[column]
                if panel is None:
                    draw.rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), "lightgrey")
                    draw.text((corner[0] + side // 2, top + side // 2), "no mask", "dimgrey", font, anchor="mm")
                else:
                    sheet.paste(panel.resize((side, side), Image.Resampling.LANCZOS), corner)
    return sheet


if __name__ == "__main__":
    run_cli(main)
