"""Test zero-shot: find anomalies in data sets that the prompts were not learned on (paper sections 3.3 and 4)."""

from __future__ import annotations

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import parallel
from checkpoint import file_sha256, open_method
from evaluation import (
    METRICS,
    MORE_METRICS,
    evaluate,
    evaluate_kinds,
    format_table,
    mean,
    metric_names,
    predict_class,
    write_curves,
    write_scores,
)
from options import add_flags, add_reading_flags
from utils import (
    DRAWN,
    InputError,
    get_logger,
    nonempty_path,
    open_run,
    positive_int,
    processor,
    run_cli,
    shown,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import Subset

    from dataset import AnomalyDataset
    from deploy.results import Journal
    from evaluation import Predicted
    from methods._base import Base

MADE = ("metrics.json", "table.md", "scores.csv", "curves.csv", "curves.png", "report.html", "finished_classes.json")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Settings not given come from the checkpoint.")
    parser.add_argument("--data_path", type=nonempty_path, required=True, help="root of the data set; holds meta.json")
    parser.add_argument("--save_path", type=nonempty_path, default=Path("results"), help="run folder (results)")
    parser.add_argument("--checkpoint_path", type=nonempty_path, help="epoch_N.pth of train.py or of the authors")
    parser.add_argument("--dataset", default="mvtec", help="name of the data set, for the records (mvtec)")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="split of meta.json (test)")
    add_reading_flags(parser)
    parser.add_argument(
        "--metrics", choices=tuple(METRICS), default="image-pixel-level", help="columns (image-pixel-level)"
    )
    parser.add_argument("--batch_size", type=positive_int, default=8, help="images at a time, of all processes (8)")
    parser.add_argument(
        "--exact_aupro", action="store_true", help="also AUPRO as MVTec AD defines it, in its own column"
    )
    parser.add_argument(
        "--every_epoch", action="store_true", help="test all checkpoints of the folder --checkpoint_path, in one pass"
    )
    parser.add_argument(
        "--more_metrics",
        nargs="*",
        choices=MORE_METRICS,
        metavar="NAME",
        help=f"also {', '.join(MORE_METRICS)}, or those of them that are named",
    )
    parser.add_argument(
        "--pixel_kinds", action="store_true", help="pixel metrics of each kind of defect, too, in metrics.json"
    )
    parser.add_argument("--map_dtype", choices=("float32", "float16"), default="float32", help="type of the kept maps")
    parser.add_argument("--vis", action="store_true", help="write pictures: image, mask, heat map")
    parser.add_argument("--save_maps", action="store_true", help="write the maps as 16-bit PNG")
    parser.add_argument("--curves", action="store_true", help="write ROC and precision-recall curves, CSV and PNG")
    parser.add_argument("--overwrite", action="store_true", help="delete another checkpoint's results in --save_path")
    parser.add_argument(
        "--report", action="store_true", help="write report.html: worst misses and false alarms, curves"
    )
    add_flags(parser, "TESTING", cache="none")
    return parser.parse_args()


def test(args: argparse.Namespace) -> None:
    if args.every_epoch:
        from every_epoch import test_every_epoch

        test_every_epoch(args)
        return

    import torch
    from tqdm import tqdm

    from dataset import AnomalyDataset, mask_warnings
    from deploy.results import Journal
    from features import open_store, set_classes

    # Data and run folder; what is wrong with them is said before weights are loaded
    dataset = AnomalyDataset(args.data_path, split=args.split, read_as=args.read_as, meta=args.meta)
    folder, logger = args.save_path, open_run(args.save_path) if parallel.is_main() else get_logger()

    # Model and method
    method, record = open_method(args, "TESTING")
    dataset.fit(method.model.resize, method.model.image_size)
    sigma = record["testing"]["sigma"]
    references = draw_references(args, method, dataset.classes) if method.num_references else {}

    # Log and records
    names = metric_names(args.metrics, args.exact_aupro, args.more_metrics)
    of_kinds = names if args.pixel_kinds else [name for name in names if name.startswith("image")]
    tested = {"dataset": args.dataset, "split": args.split, "data_checksum": dataset.checksum}
    tested |= {"read_as": args.read_as, "settings": record["settings"]}
    checkpoint = {"checkpoint_sha256": file_sha256(args.checkpoint_path) if args.checkpoint_path else None}
    if parallel.is_main():
        make_way(folder, {**tested, **checkpoint}, args.overwrite)
        arguments = vars(args) | record["settings"] | record["testing"]
        machine = {"processor": processor(), "threads": torch.get_num_threads()}
        content = {"arguments": arguments, **tested, **checkpoint, "versions": record["versions"], **machine}
        write_json(folder / "args.json", content)
    what = (args.dataset, args.split, len(dataset), args.precision, record["settings"])
    logger.info("testing on %s (%s split): %d images, %s, %s", *what)
    for warning in dataset.warnings:
        logger.warning("%s", warning)

    # Classes that an interrupted run of the same test has finished
    finished = folder / "finished_classes.json"
    key = {**tested, **record["testing"], "metrics": names, "map_dtype": args.map_dtype, "precision": args.precision}
    key["seed"] = args.seed if references else None  # nothing else is random
    key |= checkpoint | {"kinds": of_kinds, "vis": args.vis, "save_maps": args.save_maps, "report": args.report}
    results = read_finished(finished, key) if parallel.is_main() else None
    journal = Journal(folder, key)  # of images, for the report
    if args.report and parallel.is_main() and not journal.take_over():
        results = {}
    results = parallel.broadcast(results)

    # Text features of all classes; features of the images are computed as they are needed, or kept
    set_classes(method, dataset.classes)
    store = None
    if results.keys() < set(dataset.classes):
        store = open_store(method, dataset, args.cache, args.cache_dir, args.cache_dtype, args.num_workers)

    drawn = args.vis or args.save_maps or args.report
    keeps_maps = drawn or (dataset.has_masks and any(not name.startswith("image") for name in names))
    progress = tqdm(total=len(dataset), desc="testing", unit="image", disable=not parallel.is_main())
    for class_name in dataset.classes:
        rows = torch.tensor([i for i, entry in enumerate(dataset.entries) if entry.class_name == class_name])
        if class_name in results:
            logger.info("%s: finished before the interruption, not computed again", class_name)
            progress.update(len(rows))
            continue
        if references:
            set_references(method, class_name, references[class_name])
        map_dtype = args.map_dtype if keeps_maps else None
        batches = store.batches(rows, args.batch_size)
        predicted = predict_class(method, batches, len(rows), class_name, sigma, map_dtype, progress)
        if parallel.is_main():
            entries = [dataset.entries[row] for row in rows]
            marked = {e.image_path: share for e, share in zip(entries, predicted.shares, strict=True) if e.label}
            for warning in mask_warnings(marked, method.model.image_size) if dataset.has_masks else ():
                logger.warning("%s: %s", class_name, warning)
            if not dataset.has_masks:
                predicted.masks = None
            labels = [entry.label for entry in entries]
            results[class_name] = {
                "metrics": evaluate(names, labels, predicted.scores, predicted.masks, predicted.maps),
                "kinds": evaluate_kinds(of_kinds, entries, predicted),
                "images": list(zip(predicted.scores.tolist(), predicted.map_maxima.tolist(), strict=True)),
            }
            if drawn:
                show_class(args, folder, dataset, rows.tolist(), predicted, journal, method)
            write_json(finished, {"key": key, "classes": results})
            del predicted  # before the next class takes its own
    progress.close()

    # Table, one row a class and their mean
    if parallel.is_main():
        classes = {class_name: results[class_name]["metrics"] for class_name in dataset.classes}
        kinds = {class_name: results[class_name]["kinds"] for class_name in dataset.classes}
        overall = {name: mean([values[name] for values in classes.values()]) for name in names}
        table = format_table(names, classes | {"mean": overall})
        kinds = {"kinds": {class_name: values for class_name, values in kinds.items() if values}}
        write_json(folder / "metrics.json", {**tested, "classes": classes, "mean": overall, **kinds})
        write_text(folder / "table.md", table + "\n")
        images = {class_name: iter(results[class_name]["images"]) for class_name in dataset.classes}
        images = [next(images[entry.class_name]) for entry in dataset.entries]
        write_scores(folder / "scores.csv", dataset.entries, images)
        if args.curves:
            write_curves(folder, curves_of(dataset, [score for score, _ in images]))
        if args.report:
            write_report(args, folder, dataset, journal, record)
            journal.remove()
        finished.unlink()
        logger.info("\n%s", table)
    parallel.stop()


def make_way(folder: Path, tested: dict, overwrite: bool) -> None:
    """InputError if a run folder holds results of another checkpoint, settings or data; `overwrite`: delete them."""
    try:
        before = json.loads((folder / "args.json").read_text(encoding="utf-8"))
        other = [name for name, value in json.loads(json.dumps(tested)).items() if before.get(name, value) != value]
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if other and not overwrite:
        raise InputError(
            f"--save_path {shown(folder)} holds results with another {other[0]}; give another folder, or --overwrite"
        )
    if other:
        for name in DRAWN:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in MADE:
            (folder / name).unlink(missing_ok=True)


def curves_of(dataset: AnomalyDataset, scores: list[float]) -> dict[str, dict[str, np.ndarray]]:
    """The curves of each class that has both normal and anomalous images."""
    import numpy as np

    from deploy.report import curves

    made = {}
    for class_name in dataset.classes:
        chosen = [i for i, entry in enumerate(dataset.entries) if entry.class_name == class_name]
        labels = np.array([dataset.entries[i].label for i in chosen])
        if 0 < labels.sum() < len(labels):
            made[class_name] = curves(labels, np.array([scores[i] for i in chosen]))
    return made


def set_references(method: Base, class_name: str, references: Subset) -> None:
    """Let the method remember the features of a class's reference images."""
    import torch

    from features import encode

    images = torch.stack([item["image"] for item in references])
    method.set_references(class_name, encode(method, images.to(method.model.device)))


def draw_references(args: argparse.Namespace, method: Base, class_names: list[str]) -> dict[str, Subset]:
    """For each class a data set of `num_references` normal images of its train split, drawn by --seed (few-shot)."""
    import torch
    from torch.utils.data import Subset

    from dataset import AnomalyDataset

    count = method.num_references
    if args.split == "train":
        raise InputError(
            f"--k_shot {count} takes its normal images from the train split, which --split train tests; leave one out"
        )
    try:
        size = method.model.image_size
        train = AnomalyDataset(args.data_path, method.model.resize, size, "train", args.read_as, args.meta)
    except InputError as error:
        raise InputError(f"--k_shot {count} takes normal images of the train split, but {error}") from None
    drawn = {}
    for class_name in class_names:
        normal = [i for i, entry in enumerate(train.entries) if entry.class_name == class_name and entry.label == 0]
        if len(normal) < count:
            raise InputError(
                f"--k_shot {count} is more than the {len(normal)} normal images in the train split of "
                f"{class_name} ({args.data_path}); lower it"
            )
        order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(args.seed))[:count]
        drawn[class_name] = Subset(train, [normal[i] for i in order])
    return drawn


def read_finished(path: Path, key: dict) -> dict[str, dict]:
    """What is known of the classes that an interrupted run finished, if it ran the test that `key` describes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != json.loads(json.dumps(key)):
            return {}
        sound = all(
            each["metrics"].keys() == set(key["metrics"])
            and all(isinstance(value, float | None) for value in each["metrics"].values())
            and all(isinstance(score, float) and isinstance(map_max, float) for score, map_max in each["images"])
            and isinstance(each["kinds"], dict)
            for each in content["classes"].values()
        )
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return {}
    return content["classes"] if sound else {}


def show_class(
    args: argparse.Namespace,
    folder: Path,
    dataset: AnomalyDataset,
    rows: list[int],
    predicted: Predicted,
    journal: Journal,
    method: Base,
) -> None:
    """Write the pictures and maps of a class, and what the report needs of its images; `rows` are their numbers.

    The colours of all pictures of a class share one scale, so a normal image stays cool beside an anomalous one.
    """
    import numpy as np

    from deploy.maps import map_to_uint16, write_image
    from deploy.results import output_names, stamp
    from pictures import Scale, panel, thumbnail

    names = output_names([entry.image_path for entry in dataset.entries])
    scores, maps, masks = predicted.scores, predicted.maps, predicted.masks
    scale = Scale(float(maps.min()), float(maps.max()))
    highest = method.highest(method.settings)
    for place, row in enumerate(rows):
        entry, values = dataset.entries[row], maps[place].astype(np.float32)
        if args.save_maps:
            write_image(folder / "maps" / names[entry.image_path], map_to_uint16(values, highest))
        if not (args.vis or args.report):
            continue
        image = np.asarray(dataset.image(row).resize(values.shape))
        if args.vis:
            mask = None if masks is None else masks[place]
            write_image(folder / "vis" / names[entry.image_path], panel(image, mask, values, scale))
        if args.report:
            path = dataset.path(entry.image_path)
            seen = {"number": row, "stamp": stamp(path), "path": entry.image_path, "score": float(scores[place])}
            seen |= {"label": entry.label, "class_name": entry.class_name}
            journal.append(seen, thumbnail(image, values, scale))
    journal.close()


def write_report(
    args: argparse.Namespace, folder: Path, dataset: AnomalyDataset, journal: Journal, record: dict
) -> None:
    """Write report.html: the images by score, the worst misses and false alarms first, and the curves of each class."""
    import numpy as np

    from deploy.decisions import best_f1
    from deploy.report import Report
    from deploy.results import output_names

    rows = list(journal.read())
    labels, scores = (np.array([row[name] for row in rows]) for name in ("label", "score"))
    threshold = None
    if 0 < labels.sum() < len(labels):
        values, places = np.unique(scores, return_inverse=True)
        counts = [np.bincount(places[labels == kind], minlength=len(values)) for kind in (1, 0)]
        threshold, _ = best_f1(values, *counts)
    facts = {"method": record["settings"]["method"], "checkpoint": str(args.checkpoint_path or "none")}
    facts["threshold"] = "the best F1 of all classes together; scores of classes need not be comparable"
    report = Report(f"{args.dataset}: {len(rows)} images", facts, threshold)
    names = output_names([row["path"] for row in rows])
    for row in rows:
        place = row["thumbnail"]
        file = f"vis/{names[row['path']]}" if args.vis else None
        shown = {"thumbnail": partial(journal.thumbnail, place), "size": place[2], "label": row["label"], "file": file}
        report.add(row["path"], row["class_name"], row["score"], **shown)
    classes = np.array([row["class_name"] for row in rows])
    for class_name in dataset.classes:
        report.add_curves(class_name, labels[classes == class_name], scores[classes == class_name])
    report.write(folder / "report.html")


if __name__ == "__main__":
    run_cli(lambda: test(parse_args()))
