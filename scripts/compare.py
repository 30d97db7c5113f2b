"""Compare runs of test.py on the same images: by how much they differ, and whether that could be chance.

    python scripts/compare.py results/a results/b                              # b with a; further runs, too, with a
    python scripts/compare.py b1 b2 b3 --against a1 a2 a3 --names new old      # seeds of one training with another's
    python scripts/compare.py results/a results/b --output results/b_with_a.md # writes b_with_a.json, too

Read is scores.csv of each run, and its maps if all were made with --save_maps. Images are drawn with replacement within
each class and label, the same for all runs (paired bootstrap); the training stays as it was. See docs/compare.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import methods
from evaluation import metric_names
from scripts.paper.read_results import pipe_table, read_json
from utils import InputError, bounded, nonempty_path, nonnegative_int, run_cli, shown, write_json, write_text

if TYPE_CHECKING:
    import numpy as np

    from dataset import AnomalyDataset

IMAGE_LEVEL = metric_names("image-level", more=())
PIXEL_LEVEL = metric_names("pixel-level", exact_aupro=True, more=())
LEVELS = 65536  # values of a map's file
BINS = 2000  # that pixels are counted in
FEW = 10  # images of a class and label; with fewer the intervals are too short
AT_ONCE = 64  # draws
CHANCE, NO_CHANCE, SAME = "could be chance", "unlikely to be chance", "no difference"


@dataclass
class Run:
    """A finished run of test.py.

    Attributes:
        folder: as it was given. record: its metrics.json.
        paths, classes, labels, scores, map_maxima: of each image, in the order of meta.json; labels 0 and 1.
    """

    folder: Path
    record: dict
    paths: list[str]
    classes: list[str]
    labels: list[int]
    scores: list[float]
    map_maxima: list[float]


@dataclass
class Group:
    """Runs that are compared as one: a single run, or the seeds of one training.

    places: where the runs stand among all.
    """

    name: str
    runs: list[Run]
    places: list[int]


@dataclass
class Pixels:
    """The pixels of an image: levels (uint16) of the K normal and M anomalous ones, and the M ones' regions from 0."""

    normal: np.ndarray
    anomalous: np.ndarray
    regions: np.ndarray


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=nonempty_path, nargs="+", metavar="RUN", help="run folder of test.py")
    parser.add_argument(
        "--against",
        type=nonempty_path,
        nargs="+",
        metavar="RUN",
        help="the runs to compare with; then all RUN before it are seeds of one training, and these of another "
        "(without: each further RUN with the first)",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the runs, or of the two groups")
    parser.add_argument(
        "--metrics",
        choices=("image-level", "image-pixel-level"),
        default="image-pixel-level",
        help="image-level: pass over the maps (image-pixel-level)",
    )
    parser.add_argument("--draws", type=many, default=2000, help="times that the images are drawn (2000)")
    parser.add_argument("--seed", type=nonnegative_int, default=111, help="of the draws (111)")
    parser.add_argument("--output", type=nonempty_path, metavar="FILE.md", help="write it there, and FILE.json")
    return parser.parse_args()


def many(text: str) -> int:
    """argparse type: a number of draws, from 100, which an interval needs, to 10,000."""
    return bounded(int(text), 100, 10_000)


def main() -> None:
    args = parse_args()
    if args.output and args.output.suffix.lower() != ".md":
        raise InputError(f"--output {shown(args.output)} must end in .md")
    base, others = make_groups(args)
    runs = base.runs + [run for group in others for run in group.runs]
    for run in runs[1:]:
        check_same_images(runs[0], run)
    for group in (base, *others):
        check_seeds(group)

    weights = {
        name: draw(labels, args.draws, [args.seed, number])
        for number, (name, labels) in enumerate(labels_of(runs[0]).items())
    }
    values, notes = image_values(runs, weights), []
    if args.metrics == "image-pixel-level":
        reason, datasets = open_datasets(runs)
        if reason:
            notes.append(f"Pixel metrics are left out: {reason}.")
        else:
            values |= pixel_values(runs, datasets, weights)
    values = {name: array for name, array in values.items() if known(array).any()}
    if not values:
        raise InputError(f"{shown(runs[0].folder)}: no class has both normal and anomalous images; nothing to compare")
    notes += [*few_images(runs[0]), *missing_values(values, list(weights)), *limits(base, others)]

    results = {group.name: compare(values, list(weights), base, group) for group in others}
    text = markdown(args, base, others, results, notes)
    print(text, end="")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.output, text)
        write_json(args.output.with_suffix(".json"), as_json(args, base, others, results, notes))
        print(f"\nWritten: {args.output} {args.output.with_suffix('.json')}")


# reading


def make_groups(args: argparse.Namespace) -> tuple[Group, list[Group]]:
    """What is compared with, and what is compared with it; InputError if the command line or a run does not fit."""
    folders = [args.against, args.runs] if args.against else [[run] for run in args.runs]
    if len(folders) < 2:
        raise InputError("one run is given; give another one, to compare with the first")
    given = [folder for group in folders for folder in group]
    for place, folder in enumerate(given):
        if folder.resolve() in [each.resolve() for each in given[:place]]:
            raise InputError(f"{shown(folder)} is given twice; give each run once")
    names = [str(group[0]) + (f" and {len(group) - 1} more" if len(group) > 1 else "") for group in folders]
    if args.names:
        if len(args.names) != len(folders):
            raise InputError(
                f"--names: {len(args.names)} given for {len(folders)} {'groups' if args.against else 'runs'}"
            )
        names = args.names[::-1] if args.against else args.names
    if len(set(names)) < len(names):
        raise InputError("two runs have one name; give --names, different ones")
    groups, count = [], 0
    for name, group in zip(names, folders, strict=True):
        groups.append(Group(name, [read_run(folder) for folder in group], list(range(count, count + len(group)))))
        count += len(group)
    return groups[0], groups[1:]


def read_run(folder: Path) -> Run:
    """A run; InputError if it is not finished, or its files are not as test.py writes them."""
    again = "run the test again"
    if not (folder / "metrics.json").is_file():
        raise InputError(f"{shown(folder)} is not a finished run of test.py (it has no metrics.json); {again}")
    if (folder / "finished_classes.json").exists():
        raise InputError(f"{shown(folder)}: its test was interrupted; {again}, it goes on where it was")
    if not (folder / "scores.csv").is_file():
        raise InputError(f"{shown(folder)} has no scores.csv, it is of an earlier test.py or of --every_epoch; {again}")
    record = read_json(folder / "metrics.json")
    kinds = {"dataset": str, "split": str, "data_checksum": str, "settings": dict}
    if not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise InputError(f"{shown(folder / 'metrics.json')} lacks {', '.join(kinds)} or one of them; {again}")
    columns = {"path": str, "class": str, "label": ("0", "1").index, "score": finite, "map_max": finite}
    try:
        with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
            rows = [[read(row[name]) for name, read in columns.items()] for row in csv.DictReader(file, strict=True)]
    except (ValueError, KeyError, TypeError, csv.Error):
        rows = []
    if not rows:
        raise InputError(f"{shown(folder / 'scores.csv')} is not as test.py writes it; {again}")
    return Run(folder, record, *map(list, zip(*rows, strict=True)))


def finite(text: str) -> float:
    """A number; ValueError if it is none."""
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def check_same_images(first: Run, other: Run) -> None:
    """InputError that names the difference, if two runs are not of the same images."""
    a, b = shown(first.folder), shown(other.folder)
    for one, two, name, name_of_two in ((first, other, a, b), (other, first, b, a)):
        only = next(iter(sorted(set(one.paths) - set(two.paths))), None)
        if only is not None:
            raise InputError(
                f"{name} has the image {shown(only)} and {name_of_two} has not; compare runs of one data set"
            )
    for what in ("paths", "classes", "labels"):
        pairs = zip(first.paths, getattr(first, what), getattr(other, what), strict=False)
        different = next(((path, one, two) for path, one, two in pairs if one != two), None)
        if different or len(first.paths) != len(other.paths):
            path, one, two = different or (first.paths[0], len(first.paths), len(other.paths))
            what = what if different else "number of images"
            raise InputError(
                f"{a} and {b} differ in the {what}, {one} and {two} ({shown(path)}); test one of them again"
            )
    for key in ("split", "data_checksum"):
        one, two = first.record[key], other.record[key]
        if one != two:
            raise InputError(
                f"{a} and {b} differ in the {key}, {one[:12]} and {two[:12]}: images or masks have changed in between, "
                "or their description; test one of them again"
            )


def check_seeds(group: Group) -> None:
    """InputError if the runs of a group differ in more than training and seed."""
    first = group.runs[0]
    for run in group.runs[1:]:
        differing = differences(first, run)
        if differing:
            raise InputError(
                f"{shown(run.folder)} and {shown(first.folder)} are no seeds of one training, they differ in "
                f"{differing[0]}; compare them without --against"
            )


def differences(first: Run, other: Run) -> list[str]:
    """The settings that two runs differ in, each in words."""
    one, two = ({"read_as": run.record.get("read_as", "viewer")} | run.record["settings"] for run in (first, other))
    keys = [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]
    return [f"{key} ({short(one.get(key))} and {short(two.get(key))})" for key in keys]


def short(value: object) -> str:
    """A setting, in at most 30 letters."""
    return text if len(text := str(value)) <= 30 else f"{text[:27]}..."


def labels_of(run: Run) -> dict[str, np.ndarray]:
    """Labels (N,) of the images of each class."""
    import numpy as np

    return {name: np.array(run.labels)[rows] for name, rows in rows_of(run).items()}


def rows_of(run: Run) -> dict[str, list[int]]:
    """Where the images of each class stand."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(run.classes):
        rows.setdefault(name, []).append(row)
    return rows


# drawing and measuring


def draw(labels: np.ndarray, draws: int, seed: list[int]) -> np.ndarray:
    """How often each image is drawn, (1 + draws, N): once in the first row, which is observed, then at random.

    labels: (N,), of the images of a class; as many of each label are drawn as there are. seed: of this class's draws.
    """
    import numpy as np

    stream = np.random.default_rng(seed)
    counts = np.ones((1 + draws, len(labels)))
    for label in np.unique(labels):
        chosen = np.flatnonzero(labels == label)
        counts[1:, chosen] = stream.multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), size=draws)
    return counts


def image_values(runs: list[Run], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each image metric in percent, (runs, classes, 1 + draws); NaN where there is none."""
    import numpy as np
    from tqdm import tqdm

    values = empty_values(IMAGE_LEVEL, runs, weights)
    rows = rows_of(runs[0])
    progress = tqdm(total=len(runs) * len(weights), desc="drawing images", unit="class", delay=2)
    for place, run in enumerate(runs):
        labels, scores = np.array(run.labels), np.array(run.scores)
        for number, (name, drawn) in enumerate(weights.items()):
            chosen = rows[name]
            for part in parts(len(drawn)):
                curve = curve_metrics(*counted(drawn[part], labels[chosen], scores[chosen]))
                for metric, value in curve.items():
                    values[f"image_{metric}"][place, number, part] = 100 * value
            progress.update()
    progress.close()
    return values


def counted(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Anomalous and normal images at each of the G different scores, rising, in each draw: (D, G) twice.

    weights: (D, N), how often each image is drawn; labels, scores: (N,).
    """
    import numpy as np

    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    anomalous, normal = (np.add.reduceat((weights * kind)[:, order], starts, axis=1) for kind in (labels, 1 - labels))
    return anomalous, normal


def curve_metrics(anomalous: np.ndarray, normal: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC, average precision and best F1 of each draw (D,) as scikit-learn defines them, NaN where there is none.

    anomalous, normal: (D, G), how many there are at each score, rising.
    """
    import numpy as np

    hits, alarms = from_top(anomalous), from_top(normal)
    all_anomalous, all_normal = hits[:, :1], alarms[:, :1]
    in_order = (anomalous * (all_normal - alarms + normal / 2)).sum(1)
    precision = hits / np.maximum(hits + alarms, 1)
    best = (2 * hits / np.maximum(hits + alarms + all_anomalous, 1)).max(1)
    with np.errstate(invalid="ignore"):
        auroc = in_order / (all_anomalous * all_normal)[:, 0]
        ap = (anomalous * precision).sum(1) / all_anomalous[:, 0]
    none = np.isnan(auroc)
    return {"auroc": auroc, "ap": np.where(none, np.nan, ap), "f1_max": np.where(none, np.nan, best)}


def from_top(counts: np.ndarray) -> np.ndarray:
    """How many there are at each place or a later one, along the last axis."""
    return counts[..., ::-1].cumsum(-1)[..., ::-1]


def empty_values(metrics: tuple[str, ...], runs: list[Run], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Room for the metrics, (runs, classes, 1 + draws) each, all NaN."""
    import numpy as np

    draws = len(next(iter(weights.values())))
    return {name: np.full((len(runs), len(weights), draws), np.nan) for name in metrics}


def parts(draws: int) -> list[slice]:
    """The draws, AT_ONCE at a time: so few that what is computed of them stays in the processor's cache."""
    return [slice(start, start + AT_ONCE) for start in range(0, draws, AT_ONCE)]


# pixels


def open_datasets(runs: list[Run]) -> tuple[str, list[AnomalyDataset]]:
    """The data set of each run, which has the masks; or why pixels cannot be compared."""
    from scripts.paper.panels import read_run as open_run

    datasets = []
    for run in runs:
        folder = shown(run.folder)
        try:
            kept = read_json(run.folder / "args.json").get("arguments", {}).get("save_maps")
            if not kept or not (run.folder / "maps").is_dir():
                return f"{folder} was made without --save_maps", []
            dataset = open_run(run.folder)[1]
        except InputError as error:
            return str(error), []
        except OSError as error:
            return f"{shown(error.filename)}: {error.strerror}", []
        except AttributeError:
            return f"{folder}/args.json is not as test.py writes it", []
        if dataset.checksum != run.record["data_checksum"]:
            return f"the data set in {shown(dataset.root)} has changed since {folder} was made", []
        if not dataset.has_masks:
            return f"the data set in {shown(dataset.root)} has no masks", []
        datasets.append(dataset)
    return "", datasets


def pixel_values(
    runs: list[Run], datasets: list[AnomalyDataset], weights: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Each pixel metric in percent, (runs, classes, 1 + draws); NaN where there is none."""
    from tqdm import tqdm

    from deploy.results import output_names

    values = empty_values(PIXEL_LEVEL, runs, weights)
    files, rows = output_names(runs[0].paths), rows_of(runs[0])
    progress = tqdm(total=len(runs) * len(runs[0].paths), desc="reading maps", unit="map", delay=2)
    for number, (name, drawn) in enumerate(weights.items()):
        for place, (run, dataset) in enumerate(zip(runs, datasets, strict=True)):
            pixels = []
            for row in rows[name]:
                pixels.append(read_pixels(run, dataset, row, files[run.paths[row]]))
                progress.update()
            for metric, value in pixel_metrics(pixels, drawn).items():
                values[metric][place, number] = 100 * value
    progress.close()
    return values


def highest(run: Run) -> float:
    """The map's value that the highest level of its file stands for."""
    settings = run.record["settings"]
    method = settings.get("method", "anomalyclip")
    if method not in methods.names():
        raise InputError(f"{shown(run.folder)}: made with --method {method}, which this version does not have")
    return methods.method_class(method).highest(settings)


def read_pixels(run: Run, dataset: AnomalyDataset, row: int, name: str) -> Pixels:
    """The pixels of an image, from its map and its mask; InputError if the map is not the one of scores.csv."""
    import numpy as np
    from scipy import ndimage

    from scripts.paper.panels import read_map

    levels = read_map(run.folder, name).astype(np.uint16)
    expected = min(run.map_maxima[row], highest(run))
    if levels.ndim != 2 or abs(levels.max() / (LEVELS - 1) * highest(run) - expected) > 1e-3 * max(1, expected):
        raise InputError(
            f"{shown(run.folder / 'maps' / name)} is not the map of which scores.csv tells the maximum; run test.py "
            f"--save_maps --save_path {shown(run.folder)} again, or compare with --metrics image-level"
        )
    mask = dataset.mask(row, levels.shape[::-1]) > 0
    regions = ndimage.label(mask, np.ones((3, 3)))[0] if mask.any() else mask
    return Pixels(levels[~mask], levels[mask], regions[mask].astype(np.int32) - 1)


def pixel_metrics(pixels: list[Pixels], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of PIXEL_LEVEL in each draw (D,), of one class, as fractions; NaN where there is none.

    pixels: of the N images; weights: (D, N), how often each image is drawn.

    From BINS bins, each of as much of the mixture of normal and anomalous pixels, half and half; but aupimo from bins
    that are as wide as each other on a logarithmic axis of FPR.
    """
    import numpy as np

    normal, anomalous = (
        sum(np.bincount(each, minlength=LEVELS) for each in kind)
        for kind in ([image.normal for image in pixels], [image.anomalous for image in pixels])
    )
    values = {name: np.full(len(weights), np.nan) for name in PIXEL_LEVEL}
    if not normal.any() or not anomalous.any():
        return values
    share = (normal / normal.sum() + anomalous / anomalous.sum()) / 2
    bins = np.minimum((share.cumsum() - share / 2) * BINS, BINS - 1).astype(np.int64)  # of each level
    in_bins = [weights @ each for each in histograms(pixels, bins)]
    both = [np.concatenate([image.normal, image.anomalous]) for image in pixels]
    lowest = np.where(weights > 0, [each.min() for each in both], LEVELS - 1).min(1).astype(np.int64)
    largest = np.where(weights > 0, [each.max() for each in both], 0).max(1).astype(np.int64)
    normal_images, _, recalls = (weights @ each for each in aupimo_histograms(pixels))
    for part in parts(len(weights)):
        normal, anomalous, regions = (each[part] for each in in_bins)
        for metric, value in curve_metrics(anomalous, normal).items():
            values[f"pixel_{metric}"][part] = value
        values["pixel_aupro_exact"][part] = aupro_exact(normal, regions)
        values["aupimo"][part] = aupimo(normal_images[part], recalls[part])
        values["pixel_aupro"][part] = aupro(normal, regions, bins, lowest[part], largest[part])
    return values


def histograms(pixels: list[Pixels], bins: np.ndarray) -> list[np.ndarray]:
    """Normal pixels, anomalous pixels and shares of regions in each bin, of each image: (N, B) three times.

    bins: the bin of each level (LEVELS,). A region, whatever its size, adds 1 to the third.
    """
    import numpy as np

    count = bins.max() + 1
    made = [np.zeros((len(pixels), count)) for _ in range(3)]
    for row, image in enumerate(pixels):
        places, sizes = bins[image.anomalous], np.bincount(image.regions)
        made[0][row] = np.bincount(bins[image.normal], minlength=count)
        made[1][row] = np.bincount(places, minlength=count)
        made[2][row] = np.bincount(places, 1 / sizes[image.regions], minlength=count)
    return made


def aupimo_histograms(pixels: list[Pixels]) -> list[np.ndarray]:
    """As `histograms`, but pixels of normal images alone, and all anomalous pixels of an image as one region."""
    import numpy as np

    images = [
        Pixels(each.normal[: 0 if each.anomalous.size else None], each.anomalous, np.zeros_like(each.regions))
        for each in pixels
    ]
    alarms = from_top(sum(np.bincount(image.normal, minlength=LEVELS) for image in images))  # at each level
    depth = np.log1p(alarms) / max(np.log1p(alarms[0]), 1)
    return histograms(images, ((1 - depth) * (BINS - 1)).astype(np.int64))


def aupimo(normal: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """metrics.aupimo of each draw (D,); NaN where there is none. Arguments (D, B): see `aupimo_histograms`.

    As there, the pixels of a bin are a ramp over the logarithm of FPR, or a step where nothing is above them.
    """
    import numpy as np

    from metrics import AUPIMO_LIMITS

    alarms, (lowest, highest) = from_top(normal), np.log(AUPIMO_LIMITS)
    above = alarms - normal
    with np.errstate(invalid="ignore", divide="ignore"):
        counts = (np.where(above == 0, alarms, above), alarms)
        start, end = (np.where(each == 0, lowest, np.log(each / alarms[:, :1])) for each in counts)
        width = np.where(end > start, end - start, 1)
        areas = [
            (np.clip(limit, start, end) - start) ** 2 / (2 * width) + np.maximum(limit - end, 0)
            for limit in (lowest, highest)
        ]
        values = (recalls * np.minimum((areas[1] - areas[0]) / (highest - lowest), 1)).sum(1) / recalls.sum(1)
    return np.where(alarms[:, 0] > 0, values, np.nan)


def aupro(
    normal: np.ndarray, regions: np.ndarray, bins: np.ndarray, lowest: np.ndarray, largest: np.ndarray
) -> np.ndarray:
    """metrics.pixel_aupro of each draw (D,); NaN where there is none.

    normal, regions: (D, B), as `histograms` gives. bins: the bin of each level (LEVELS,). lowest, largest: level of the
    maps that are drawn (D,), which the thresholds span. A threshold within a bin parts it as it parts its levels.
    """
    import numpy as np

    from metrics import AUPRO_STEPS, FPR_LIMIT

    lowest, largest = lowest[:, None], largest[:, None]
    above = np.minimum(lowest + np.arange(AUPRO_STEPS) * (largest - lowest) // AUPRO_STEPS + 1, LEVELS - 1)
    places = bins[above]  # (D, T), as everything below
    first, behind = (np.searchsorted(bins, places, side) for side in ("left", "right"))
    below = (above - first) / (behind - first)  # share of the bin
    with np.errstate(invalid="ignore"):
        fpr, pro = (
            (np.take_along_axis(from_top(each), places, 1) - below * np.take_along_axis(each, places, 1))
            / each.sum(1, keepdims=True)
            for each in (normal, regions)
        )
        kept = fpr < FPR_LIMIT  # from some threshold on
        widest = np.where(kept, fpr, 0).max(1)
        steps = np.where(kept[:, :-1], fpr[:, :-1] - fpr[:, 1:], 0)
        return (steps * (pro[:, :-1] + pro[:, 1:]) / 2).sum(1) / np.maximum(widest - fpr[:, -1], 0)


def aupro_exact(normal: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """metrics.pixel_aupro_exact of each draw (D,); NaN where there is none. Arguments (D, B): as `histograms` gives."""
    import numpy as np

    from metrics import FPR_LIMIT

    alarms, found = from_top(normal), from_top(regions)
    limit = FPR_LIMIT * alarms[:, :1]
    width = np.clip(limit - (alarms - normal), 0, normal)  # of each bin, what lies below the limit
    ramp = found - regions + regions * width / np.maximum(normal, 1) / 2
    with np.errstate(invalid="ignore"):
        return (width * ramp).sum(1) / (limit * found[:, :1])[:, 0]


# comparing


def known(values: np.ndarray) -> np.ndarray:
    """Of which classes (C,) all runs have a value; values: (runs, C, 1 + draws)."""
    import numpy as np

    return np.isfinite(values[:, :, 0]).all(0)


def with_mean(values: np.ndarray) -> np.ndarray:
    """Values (runs, C, 1 + draws), and as a last row their mean over the classes that all runs have."""
    import numpy as np

    of_known = values[:, known(values)]
    there = np.isfinite(of_known).all(0)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, of_known, 0).sum(1, keepdims=True) / there.sum(0)
    return np.concatenate([values, mean], axis=1)


def compare(values: dict[str, np.ndarray], classes: list[str], base: Group, other: Group) -> dict[str, dict]:
    """Of each metric, {"mean": facts, "classes": {class: facts}}: how `other` differs from `base`; see `facts`.

    values: (runs, classes, 1 + draws) of each metric.
    """
    made = {}
    for metric, array in values.items():
        rows = with_mean(array)
        found = [facts(rows[base.places, row], rows[other.places, row]) for row in range(len(classes) + 1)]
        made[metric] = {"mean": found[-1], "classes": dict(zip(classes, found, strict=False))}
    return made


def facts(base: np.ndarray, other: np.ndarray) -> dict | None:
    """How two groups differ in one metric of one class, in points; None where a run has no value.

    base, other: (runs, 1 + draws), observed first.

    Given are the means over the runs, their sample standard deviations (None for a single run), the difference, its
    interval of 95 % with the p-value, both over the draws; seeds_p, the p-value of Welch's t-test on the runs (None
    where a group is a single run); and the verdict.
    """
    import numpy as np

    if not np.isfinite(base[:, 0]).all() or not np.isfinite(other[:, 0]).all():
        return None
    difference = np.round(other.mean(0) - base.mean(0), 9) + 0.0  # what differs by rounding is the same
    draws = difference[1:][np.isfinite(difference[1:])]
    low, high = np.quantile(draws, (0.025, 0.975))
    fewer = min((draws <= 0).sum(), (draws >= 0).sum())
    seeds_p = welch(base[:, 0], other[:, 0])
    if low == high == difference[0] == 0:
        verdict = SAME
    elif low <= 0 <= high:
        verdict = CHANCE
    else:
        verdict = NO_CHANCE if seeds_p is None or seeds_p < 0.05 else f"{CHANCE} of the seeds"
    return {
        "baseline": float(base[:, 0].mean()),
        "baseline_std": float(base[:, 0].std(ddof=1)) if len(base) > 1 else None,
        "value": float(other[:, 0].mean()),
        "value_std": float(other[:, 0].std(ddof=1)) if len(other) > 1 else None,
        "difference": float(difference[0]),
        "low": float(low),
        "high": float(high),
        "p": float(min(1, 2 * (fewer + 1) / (len(draws) + 1))),
        "seeds_p": seeds_p,
        "verdict": verdict,
    }


def welch(one: np.ndarray, two: np.ndarray) -> float | None:
    """Two-sided p-value of Welch's t-test; None if there are fewer than two values of either."""
    from scipy.special import stdtr

    if min(len(one), len(two)) < 2:
        return None
    parts = [each.var(ddof=1) / len(each) for each in (one, two)]
    difference, error = abs(one.mean() - two.mean()), math.sqrt(sum(parts))
    if error < 1e-9:
        return 1.0 if difference < 1e-9 else 0.0
    freedom = error**4 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (one, two), strict=True))
    return float(2 * stdtr(freedom, -difference / error))


def few_images(run: Run) -> list[str]:
    """A note on classes with so few images that the bootstrap cannot tell how much they vary."""
    counts = {(name, label): 0 for name in dict.fromkeys(run.classes) for label in (0, 1)}
    for name, label in zip(run.classes, run.labels, strict=True):
        counts[name, label] += 1
    few = [key for key, count in counts.items() if 0 < count < FEW]
    if not few:
        return []
    name, label = min(few, key=counts.get)
    least = f"{name}: {counts[name, label]} {('normal', 'anomalous')[label]}"
    number, all_classes = (len({name for name, _ in keys}) for keys in (few, counts))
    return [f"Fewer than {FEW} images of a kind in {number} of {all_classes} classes ({least}): intervals too short."]


def missing_values(values: dict[str, np.ndarray], classes: list[str]) -> list[str]:
    """Notes on the metrics that some classes lack."""
    lacking: dict[str, list[str]] = {}
    for metric, array in values.items():
        names = [name for name, there in zip(classes, known(array), strict=True) if not there]
        if names:
            lacking.setdefault(", ".join(names), []).append(metric)
    return [f"Left out of the mean of {', '.join(metrics)}: {names}." for names, metrics in lacking.items()]


def limits(base: Group, others: list[Group]) -> list[str]:
    """Notes on what the intervals do not tell."""
    single = any(len(group.runs) == 1 for group in (base, *others))
    return [
        "Drawn are images, not trainings"
        + (": another seed of the same training may differ by as much (--against compares seeds)." if single else "."),
        "Each class is looked at for itself: of 20 comparisons without any difference one has a star.",
    ]


# text


def markdown(
    args: argparse.Namespace, base: Group, others: list[Group], results: dict[str, dict], notes: list[str]
) -> str:
    """Title, and for each that is compared sentences on the mean and tables of the classes; notes."""
    first = base.runs[0]
    tested = f"{first.record['dataset']} ({first.record['split']} split, {len(first.paths)} images)"
    lines = [f"# Difference from {base.name} on {tested}", ""]
    for group in others:
        result = results[group.name]
        lines += [f"## {group.name}", ""]
        differing = differences(first, group.runs[0])
        if differing:
            lines += [f"Differs in {', '.join(differing)}.", ""]
        number = max(sum(each is not None for each in found["classes"].values()) for found in result.values())
        lines += [f"Mean over {number} classes:" if number > 1 else "One class:", ""]
        lines += [f"- {metric}: {sentence(found['mean'])}" for metric, found in result.items()]
        lines.append("")
        for level, names in (("image level", IMAGE_LEVEL), ("pixel level", PIXEL_LEVEL)):
            found = {name: result[name] for name in names if name in result}
            if found:
                lines += table(level, found, difference_cell)
        if len(base.runs) > 1 or len(group.runs) > 1:
            for name, key in ((base.name, "baseline"), (group.name, "value")):
                lines += table(name, result, lambda cell, key=key: value_cell(cell, key))
    legend = [
        f"Percent and points; in brackets the interval of 95 % over {args.draws} draws of the images.",
        f"`*` {NO_CHANCE}: the interval excludes 0"
        + (", and so do the seeds (Welch's t-test, p < 0.05)" if seeds_tell(results) else "")
        + f". Without it: {CHANCE}.",
    ]
    if len(base.runs) > 1 or any(len(group.runs) > 1 for group in others):
        legend.append("± standard deviation over the seeds.")
    return "\n".join([*lines, *(f"{note}  " for note in (legend + notes)[:-1]), (legend + notes)[-1], ""])


def seeds_tell(results: dict[str, dict]) -> bool:
    """Whether both groups have several runs."""
    return any(found["mean"]["seeds_p"] is not None for result in results.values() for found in result.values())


def sentence(cell: dict) -> str:
    """The difference of the means in words."""
    p = "p < 0.001" if cell["p"] < 0.001 else f"p = {cell['p']:.3f}"
    seeds = "" if cell["seeds_p"] is None else f", over seeds p = {cell['seeds_p']:.3f}"
    interval = f"{signed(cell['low'])} to {signed(cell['high'])}"
    before, after = value_cell(cell, "baseline"), value_cell(cell, "value")
    return (
        f"{before} -> {after}, {signed(cell['difference'])} (95 % interval {interval}, {p}{seeds}): {cell['verdict']}"
    )


def table(title: str, found: dict[str, dict], write) -> list[str]:
    """A row a class and their mean, a column a metric."""
    classes = list(next(iter(found.values()))["classes"])
    rows = [[name.replace("|", "\\|"), *(write(each["classes"][name]) for each in found.values())] for name in classes]
    rows.append(["mean", *(write(each["mean"]) for each in found.values())])
    return pipe_table([title.replace("|", "\\|"), *found], rows)


def difference_cell(cell: dict | None) -> str:
    if cell is None or cell["verdict"] == SAME:
        return "-" if cell is None else "0.00"
    star = " *" if cell["verdict"] == NO_CHANCE else ""
    return f"{signed(cell['difference'])} ({signed(cell['low'])} to {signed(cell['high'])}){star}"


def value_cell(cell: dict | None, key: str) -> str:
    if cell is None:
        return "-"
    spread = cell[f"{key}_std"]
    return f"{cell[key]:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def signed(value: float) -> str:
    """Two decimals with a sign, which what rounds to 0 keeps."""
    return f"{value:+.2f}" if value else "0.00"


def as_json(
    args: argparse.Namespace, base: Group, others: list[Group], results: dict[str, dict], notes: list[str]
) -> dict:
    """All of it, with all decimals."""
    record = base.runs[0].record
    return {
        **{key: record[key] for key in ("dataset", "split", "data_checksum")},
        "images": len(base.runs[0].paths),
        "draws": args.draws,
        "seed": args.seed,
        "baseline": {"name": base.name, "runs": [str(run.folder) for run in base.runs]},
        "compared": [
            {"name": group.name, "runs": [str(run.folder) for run in group.runs], "metrics": results[group.name]}
            for group in others
        ],
        "notes": notes,
    }


if __name__ == "__main__":
    run_cli(main)
