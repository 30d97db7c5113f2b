"""Look for anomalies in your own pictures: a table of scores and decisions, heat maps, regions and a report.

Needs no labels, no masks and no training: without --checkpoint_path the prompts are hand-written ones.

    python predict.py pictures/ --normal known_good/           # which are bad, with at most 5 % false alarms
    python predict.py "shots/*.jpg" --checkpoint_path epoch_15.pth
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
import parallel
from checkpoint import file_sha256, open_method
from deploy.detector import BaseDetector
from deploy.sources import EXIT_CODES, Picture, add_source_flags, check_apart, count_shared, find_pictures
from options import add_flags
from utils import DRAWN, InputError, get_logger, nonempty_path, open_run, positive_int, processor, run_cli, write_json

if TYPE_CHECKING:
    import logging

    import numpy as np

    from deploy.decisions import Calibration
    from deploy.results import Journal

PROGRAM = "predict.py"
PIXEL_BINS = 1 << 16  # steps in which the threshold of pixels is looked for
MACHINE = {"precision": "fp32", "compile": False, "seed": 111}
MADE = ("predictions.csv", "regions.json", "report.html", "calibration.json")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Settings not given come from the checkpoint. {EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_flags(parser, "results/predict")
    parser.add_argument("--checkpoint_path", type=nonempty_path, help="epoch_N.pth (none: hand-written prompts)")
    decisions = parser.add_argument_group("decisions")
    one = decisions.add_mutually_exclusive_group()
    one.add_argument("--normal", nargs="+", metavar="SOURCE", help="normal pictures to make thresholds from")
    one.add_argument(
        "--labelled", type=nonempty_path, metavar="ROOT", help="data set with meta.json: thresholds of the best F1"
    )
    one.add_argument("--threshold", type=float, metavar="X", help="scores above are anomalous")
    one.add_argument("--calibration", type=nonempty_path, metavar="FILE", help="calibration.json of an earlier run")
    decisions.add_argument(
        "--false_alarms", type=float, metavar="A", help="share of normal pictures that may be called anomalous (0.05)"
    )
    decisions.add_argument("--pixel_threshold", type=float, metavar="Y", help="map values above are anomalous")
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument("--tile", type=positive_int, metavar="N", help="also look at windows of N x N pixels")
    pictures.add_argument("--overlap", type=float, default=0.25, help="share by which windows overlap (0.25)")
    pictures.add_argument(
        "--value_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="black and white in pictures over 8 bits"
    )
    pictures.add_argument("--class_name", default="object", help="for prompts that name the object (object)")
    pictures.add_argument("--batch_size", type=positive_int, default=8, help="pictures or windows at a time (8)")
    output = parser.add_argument_group("output")
    output.add_argument("--save_maps", action="store_true", help="maps as 16-bit PNG")
    output.add_argument("--save_masks", action="store_true", help="anomalous pixels as PNG")
    output.add_argument("--no_overlays", action="store_true", help="no pictures with heat maps")
    output.add_argument("--no_report", action="store_true", help="no report.html")
    add_flags(parser, "TESTING")
    return parser.parse_args()


# one picture


class Predictor(BaseDetector):
    """A method, ready to look at pictures; calling it gives a `deploy.detector.Result`.

    Args:
        checkpoint_path: epoch_N.pth of train.py or of the authors; None: a method that needs none, by default
            AnomalyCLIP with hand-written prompts.
        device: cuda, mps or cpu; None: the best there is.
        class_name: the object, for prompts that name it.
        tile: width in picture pixels of square windows that are looked at beside the whole picture, for small defects
            in large pictures; None: the whole picture alone.
        overlap: share by which neighbouring windows overlap, in [0, 0.9].
        value_range: what is black and white in pictures of more than 8 bits.
        batch_size: pictures or windows that go through the model together (on a CPU one by one all the same).
        threads: of the CPU; -1: as many as torch has now; None: chosen for the model, as the scripts do.
        options: settings of the method (model, pretrained, prompt, features_list, sigma, ...), and precision, compile
            and seed, by the names of test.py's flags; None: not given.

    Attributes:
        highest: the highest value that maps can have.
        made_with: all that scores depend on.

    Raises InputError for whatever is wrong with these.
    """

    def __init__(
        self,
        checkpoint_path: str | os.PathLike | None = None,
        device: str | None = None,
        *,
        class_name: str = "object",
        tile: int | None = None,
        overlap: float = 0.25,
        value_range: tuple[float, float] | None = None,
        batch_size: int = 8,
        threads: int | None = -1,
        **options: Any,
    ) -> None:
        import torch

        from features import set_classes

        flags = {flag for name in methods.names() for flag in method_flags(name)}
        unknown = [name for name in options if name not in flags | MACHINE.keys() | {"method", "feature_map_layer"}]
        if unknown:
            raise InputError(f"Predictor has no option {unknown[0]!r}; it has the flags of test.py that name a method")
        super().__init__(tile, overlap, value_range, batch_size)
        args = argparse.Namespace(**{"method": None, "feature_map_layer": [0]} | MACHINE | options)
        args.threads = torch.get_num_threads() if threads == -1 else threads
        args.device, args.checkpoint_path = device, None if checkpoint_path is None else Path(checkpoint_path)
        if checkpoint_path is None and args.method in (None, "anomalyclip") and options.get("prompt") is None:
            args.prompt = "hand-written"
        self.method, self.record = open_method(args, "TESTING")
        if self.method.num_references:
            raise InputError(
                "--k_shot takes normal pictures from a data set's train split; use test.py, or leave it out"
            )
        set_classes(self.method, [class_name])
        self.class_name, self.image_size = class_name, self.method.model.image_size
        self.sigma = self.record["testing"]["sigma"]
        self.highest = self.method.highest(self.record["settings"])
        pictures = {"class_name": class_name, "tile": tile, "overlap": overlap if tile else None}
        checksum = {"checkpoint_sha256": file_sha256(args.checkpoint_path) if checkpoint_path else None}
        self.made_with = self.record["settings"] | self.record["testing"] | pictures | checksum
        self.made_with |= {"value_range": value_range and list(value_range), "precision": self.method.model.precision}

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B,) and smoothed maps (B, S, S) of images (B, 3, S, S) uint8."""
        import torch

        from features import encode, predict

        features = encode(self.method, torch.from_numpy(images).to(self.method.model.device))
        scores, maps = predict(self.method, features, self.class_name, self.sigma)
        return scores.cpu().numpy(), maps.cpu().numpy()


def method_flags(name: str) -> dict:
    """Flags of a method that have a meaning here, with their defaults."""
    flags = methods.flags(name)
    return flags["SETTINGS"] | flags["TESTING"]


# a run


def predict(args: argparse.Namespace) -> int:
    """Look at all pictures of the command line and write the results; the exit code."""
    from deploy.decisions import write_calibration
    from deploy.results import Journal, output_names
    from deploy.run import Output, look_at_all, measure

    # Pictures and run folder; what is wrong with them is said before weights are loaded
    check_flags(args)
    pictures = find_pictures(args.sources)
    normal = find_pictures(args.normal, "--normal") if args.normal else []
    check_apart(args.save_path, [*args.sources, *(args.normal or [])], [*pictures, *normal])
    check_normal(args, normal)
    folder, logger = args.save_path, open_run(args.save_path) if parallel.is_main() else get_logger()

    # Model, and the rows that an interrupted run of the same command has left
    predictor = open_predictor(args)
    journal = Journal(folder, run_key(args, predictor, pictures, normal), parallel.rank())
    if parallel.is_main() and not journal.take_over():
        remove_results(folder)
    if parallel.is_main():
        write_records(args, predictor, folder)
    logger.info("%d pictures, %s, %s", len(pictures), predictor.made_with["precision"], predictor.record["settings"])
    for warning in warnings_of(args, predictor, pictures, normal):
        logger.warning("%s", warning)

    # Thresholds; normal pictures are numbered below 0
    numbered = {number - len(normal): picture for number, picture in enumerate(normal)}
    sizes = (1 if args.tile else args.batch_size, args.num_workers)
    look_at_all(predictor, numbered, journal, measure, *sizes, "normal pictures")
    calibration = calibrate(args, predictor, journal)
    if parallel.is_main() and calibration.made:
        write_calibration(folder / "calibration.json", calibration)
        logger.info("%s", calibration.in_words())

    # Pictures
    output = Output(
        calibration,
        predictor.highest,
        folder,
        output_names([picture.name for picture in pictures]),
        overlays=not args.no_overlays,
        maps=args.save_maps,
        masks=args.save_masks,
        thumbnails=not args.no_report,
    )
    look_at_all(predictor, dict(enumerate(pictures)), journal, output, *sizes, "pictures")

    # Results
    unreadable = write_results(args, folder, journal, predictor, calibration, logger) if parallel.is_main() else 0
    unreadable = parallel.broadcast(unreadable)
    parallel.stop()
    return 1 if unreadable else 0


def check_flags(args: argparse.Namespace) -> None:
    """InputError for flags that do not go together."""
    decided = [name for name in ("normal", "labelled", "threshold", "calibration") if getattr(args, name) is not None]
    if args.false_alarms is not None:
        if not 0 < args.false_alarms < 1:
            raise InputError(f"--false_alarms {args.false_alarms} is not a share between 0 and 1")
        if not {"normal", "calibration"} & set(decided):
            raise InputError("--false_alarms goes with --normal or --calibration; name normal pictures")
    if args.pixel_threshold is not None and {"normal", "labelled", "calibration"} & set(decided):
        raise InputError(f"--pixel_threshold goes with --threshold; --{decided[0]} brings one of its own")
    if args.save_masks and args.pixel_threshold is None and decided in ([], ["threshold"]):
        raise InputError("--save_masks needs a threshold of pixels; give --normal, --calibration or --pixel_threshold")
    if not 0 <= args.overlap <= 0.9:
        raise InputError(f"--overlap {args.overlap} is not in [0, 0.9]")


def check_normal(args: argparse.Namespace, normal: list[Picture]) -> None:
    """InputError if there are too few normal pictures for the share of false alarms."""
    from deploy.decisions import FALSE_ALARMS, check_number

    if args.normal:
        check_number(len(normal), args.false_alarms or FALSE_ALARMS)


def open_predictor(args: argparse.Namespace) -> Predictor:
    """The predictor that the command line describes."""
    own = {name: getattr(args, name) for name in ("class_name", "tile", "overlap", "value_range", "batch_size")}
    return Predictor(args.checkpoint_path, args.device, threads=args.threads, **own, **method_options(args))


def method_options(args: argparse.Namespace) -> dict:
    """The options of a Predictor that name its method, from the flags of `options.add_flags`."""
    flags = {flag for name in methods.names() for flag in method_flags(name)}
    return {name: getattr(args, name) for name in (*flags, *MACHINE, "method", "feature_map_layer")}


def run_key(args: argparse.Namespace, predictor: Predictor, pictures: list[Picture], normal: list[Picture]) -> dict:
    """All that the rows of a run depend on, but for the content of its pictures."""
    from deploy.results import stamp

    named, calibrated = hashlib.sha256(), hashlib.sha256()
    for picture in pictures:
        named.update(os.fsencode(f"{picture.name}\n{picture.path}\n"))
    for picture in normal:
        calibrated.update(os.fsencode(f"{picture.path}\n{stamp(picture.path)}\n"))
    arguments = {name: value for name, value in vars(args).items() if name not in ("sources", "normal", "num_workers")}
    own = {"pictures": named.hexdigest(), "normal": calibrated.hexdigest()}
    files = [path for path in (args.calibration, args.labelled and args.labelled / "meta.json") if path]
    own["files"] = [stamp(path) for path in files]
    return {"arguments": arguments, "made_with": predictor.made_with, **own}


def remove_results(folder: Path) -> None:
    """Delete what an earlier run of predict.py left in its folder: nothing of it may be taken for results of this one.

    Only what such a run makes is deleted, and only where its args.json says that there was one.
    """
    try:
        earlier = json.loads((folder / "args.json").read_text(encoding="utf-8")).get("program") == PROGRAM
    except (OSError, ValueError, AttributeError):
        earlier = False
    if earlier:
        for name in DRAWN:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in MADE:
            (folder / name).unlink(missing_ok=True)


def write_records(args: argparse.Namespace, predictor: Predictor, folder: Path) -> None:
    """Write args.json."""
    import torch

    arguments = vars(args) | predictor.record["settings"] | predictor.record["testing"]
    machine = {"processor": processor(), "threads": torch.get_num_threads()}
    content = {"program": PROGRAM, "arguments": arguments, "made_with": predictor.made_with}
    write_json(folder / "args.json", {**content, "versions": predictor.record["versions"], **machine})


def warnings_of(
    args: argparse.Namespace, predictor: Predictor, pictures: list[Picture], normal: list[Picture]
) -> list[str]:
    """What may surprise, but does not keep the run from going on."""
    from deploy.reader import deep_image_warnings

    warnings = []
    shared, own_size = count_shared(pictures, normal), predictor.image_size
    if shared:
        warnings.append(f"{shared} pictures are also among those of --normal; the promise does not hold for them")
    if args.tile and args.tile < own_size:
        warnings.append(f"windows of {args.tile} pixels are enlarged to the model's {own_size}; larger ones are faster")
    if args.value_range is None:
        paths = [picture.path for picture in [*normal, *pictures]]
        warnings += deep_image_warnings(paths, "say what is black and white with --value_range LOW HIGH")
    return warnings


# thresholds


def calibrate(args: argparse.Namespace, predictor: Predictor, journal: Journal) -> Calibration:
    """The thresholds that the command line asks for."""
    from deploy.decisions import FALSE_ALARMS, Calibration, check_made_with, from_normals, from_rows, read_calibration

    if args.calibration:
        calibration = read_calibration(args.calibration)
        check_made_with(calibration, predictor.made_with, f"--calibration {args.calibration}")
        if args.false_alarms is None:
            return calibration
        if not calibration.normal_scores:
            raise InputError(
                f"--calibration {args.calibration} holds no normal pictures for --false_alarms; leave it out"
            )
        kept = (calibration.normal_scores, calibration.normal_map_maxima, calibration.map_median)
        return from_normals(*kept, args.false_alarms, predictor.made_with)
    if args.normal:
        rows = (row for row in journal.read() if row["number"] < 0)
        return from_rows(rows, args.false_alarms or FALSE_ALARMS, predictor.made_with)
    if args.labelled:
        return from_labels(args, predictor)
    if args.threshold is None and args.pixel_threshold is None:
        return Calibration()
    thresholds = {"threshold": args.threshold, "pixel_threshold": args.pixel_threshold}
    return Calibration(made="by hand", **thresholds, made_with=predictor.made_with)


def from_labels(args: argparse.Namespace, predictor: Predictor) -> Calibration:
    """Thresholds with the best F1 on a data set with labels: of images, and of pixels at the images' own size."""
    import numpy as np

    from dataset import AnomalyDataset
    from deploy.decisions import Calibration, best_f1
    from deploy.run import in_order, reading_pool, with_progress

    dataset = AnomalyDataset(args.labelled)
    if dataset.value_range and dataset.value_range != predictor.value_range:
        low, high = dataset.value_range
        raise InputError(
            f"--labelled {args.labelled}: its meta.json has another value_range; give --value_range {low:g} {high:g}"
        )
    own = range(parallel.rank(), len(dataset), parallel.world_size())
    scored, pixels = [], np.zeros((2, PIXEL_BINS), np.int64)  # normal and anomalous pixels by their map value
    with reading_pool(args.num_workers) as (pool, ahead):
        paths = (dataset.path(dataset.entries[index].image_path) for index in own)
        results = predictor.look_at(in_order(pool, predictor.read, paths, ahead))
        for index, result in zip(own, with_progress(results, len(own), "labelled pictures"), strict=True):
            mask = dataset.mask(index, result.map.shape[::-1]) > 0
            places = np.minimum(result.map / predictor.highest * PIXEL_BINS, PIXEL_BINS - 1).astype(np.int64)
            for kind in (0, 1):
                pixels[kind] += np.bincount(places[mask == kind], minlength=PIXEL_BINS)
            scored.append((result.score, dataset.entries[index].label))
    scores, labels = np.array(sum(parallel.gather(scored), [])).T
    pixels = sum(parallel.gather(pixels))
    if not labels.any():
        raise InputError(
            f"--labelled {args.labelled}: no anomalous image in its test split; there is no threshold to find"
        )
    values = np.unique(scores)
    counts = [np.bincount(np.searchsorted(values, scores[labels == kind]), minlength=len(values)) for kind in (1, 0)]
    threshold, f1 = best_f1(values, *counts)
    calibration = Calibration("labelled", threshold, n=len(scores), f1={"image": f1}, made_with=predictor.made_with)
    if not dataset.has_masks:
        return calibration
    edges = (np.arange(PIXEL_BINS) + 0.5) / PIXEL_BINS * predictor.highest
    pixel_threshold, pixel_f1 = best_f1(edges, pixels[1], pixels[0])
    usual = float(edges[np.searchsorted(pixels[0].cumsum(), pixels[0].sum() / 2)])
    found = {"pixel_threshold": pixel_threshold, "map_median": usual, "f1": {"image": f1, "pixel": pixel_f1}}
    return replace(calibration, **found)


# results


def write_results(
    args: argparse.Namespace,
    folder: Path,
    journal: Journal,
    predictor: Predictor,
    calibration: Calibration,
    logger: logging.Logger,
) -> int:
    """Write table, regions and report from the rows, then delete these; how many pictures could not be read."""
    from deploy.results import write_csv, write_regions

    def rows() -> Iterator[dict]:
        return (row for row in journal.read() if row["number"] >= 0)

    unreadable = write_csv(folder / "predictions.csv", rows())
    write_regions(folder / "regions.json", rows)
    if not args.no_report:
        write_report(args, folder, rows(), journal, predictor, calibration)
    bad = sum(row.get("decision") == "anomalous" for row in rows())
    if calibration.threshold is not None:
        logger.info("%d of %d pictures are anomalous", bad, sum(1 for _ in rows()))
    if unreadable:
        logger.warning("%d pictures could not be read; the column error of predictions.csv says why", unreadable)
    journal.remove()
    made = [name for name in (*MADE, *DRAWN) if (folder / name).exists()]
    logger.info("in %s: %s", folder, ", ".join(made))
    return unreadable


def write_report(
    args: argparse.Namespace,
    folder: Path,
    rows: Iterable[dict],
    journal: Journal,
    predictor: Predictor,
    calibration: Calibration,
) -> None:
    """Write report.html."""
    from deploy.report import Report
    from deploy.results import output_names

    settings = predictor.record["settings"]
    facts = {
        "method": settings["method"],
        "backbone": settings["pretrained"] or settings["model"],
        "prompts": str(args.checkpoint_path or settings.get("prompt", "its own")),
        "decisions": calibration.in_words() if calibration.made else "none; give --normal for a threshold",
    }
    rows = list(rows)
    report = Report(f"{len(rows)} pictures", facts, calibration.threshold, calibration.normal_scores)
    names = output_names([row["path"] for row in rows])
    for row in rows:
        place, size = row.get("thumbnail"), (row.get("thumbnail") or [0, 0, 0])[2]
        report.add(
            row["path"],
            row["path"].rpartition("/")[0],
            row.get("score"),
            thumbnail=place and partial(journal.thumbnail, place),
            size=size,
            p_value=row.get("p_value"),
            regions=row.get("regions"),
            error=row.get("error"),
            file=None if args.no_overlays or row.get("error") else f"overlays/{names[row['path']]}",
        )
    report.write(folder / "report.html")


if __name__ == "__main__":
    run_cli(lambda: sys.exit(predict(parse_args())))
