"""test.py --every_epoch: all checkpoints of a training in one pass over the images, to see which epoch does best."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import parallel
from checkpoint import file_sha256, open_method, read_checkpoint
from evaluation import evaluate, format_table, mean, metric_names, predict_class
from utils import InputError, atomic_path, get_logger, open_run, shown, write_json, write_rows


def find_epochs(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run folder of train.py, by epoch, ascending; InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"--every_epoch takes a folder as --checkpoint_path, and {shown(folder)} is none")
    found = {path: re.fullmatch(r"epoch_(\d+)\.pth", path.name) for path in folder.iterdir()}
    epochs = {int(match[1]): path for path, match in found.items() if match}
    if not epochs:
        raise InputError(f"--checkpoint_path {shown(folder)}: no epoch_N.pth in it; give a run folder of train.py")
    return dict(sorted(epochs.items()))


def test_every_epoch(args: argparse.Namespace) -> None:
    """Test each checkpoint of a folder; the features of an image are computed once for all of them.

    Those of one class are kept at a time, and the maps of one epoch.
    """
    import torch
    from tqdm import tqdm

    from dataset import AnomalyDataset
    from features import open_store, set_classes

    for name in ("vis", "save_maps", "report", "curves", "pixel_kinds", "overwrite"):
        if getattr(args, name):
            raise InputError(f"--{name} goes with one checkpoint, not with --every_epoch; leave one out")
    paths = find_epochs(args.checkpoint_path)
    dataset = AnomalyDataset(args.data_path, split=args.split, read_as=args.read_as, meta=args.meta)
    folder, logger = args.save_path, open_run(args.save_path) if parallel.is_main() else get_logger()

    # One method, which takes the learned part of one epoch after the other
    *_, args.checkpoint_path = paths.values()
    stored = {epoch: read_checkpoint(path, args.method) for epoch, path in paths.items()}
    for epoch, each in stored.items():
        if each["settings"] != stored[max(stored)]["settings"]:
            raise InputError(
                f"{shown(paths[epoch])} has other settings than {shown(args.checkpoint_path)}; test it alone"
            )
    method, record = open_method(args, "TESTING")
    dataset.fit(method.model.resize, method.model.image_size)
    names = metric_names(args.metrics, args.exact_aupro, args.more_metrics)
    tested = {"dataset": args.dataset, "split": args.split, "data_checksum": dataset.checksum}
    tested |= {"read_as": args.read_as, "settings": record["settings"]}
    checksums = {epoch: file_sha256(path) for epoch, path in paths.items()}
    if parallel.is_main():
        arguments = vars(args) | record["settings"] | record["testing"]
        content = {"arguments": arguments, **tested, "checkpoints": checksums, "versions": record["versions"]}
        write_json(folder / "args.json", content)
    logger.info("testing %d epochs on %s: %d images, %s", len(paths), args.dataset, len(dataset), record["settings"])

    store = open_store(method, dataset, args.cache, args.cache_dir, args.cache_dtype, args.num_workers)
    keeps_maps = dataset.has_masks and any(not name.startswith("image") for name in names)
    results = {epoch: {} for epoch in paths}
    progress = tqdm(total=len(dataset) * len(paths), desc="testing", unit="map", disable=not parallel.is_main())
    for class_name in dataset.classes:
        rows = torch.tensor([i for i, entry in enumerate(dataset.entries) if entry.class_name == class_name])
        labels = [dataset.entries[row].label for row in rows]
        batches = list(store.batches(rows, args.batch_size))
        for epoch, each in stored.items():
            method.load(each["state"])
            set_classes(method, [class_name])
            options = (record["testing"]["sigma"], args.map_dtype if keeps_maps else None, progress)
            predicted = predict_class(method, batches, len(rows), class_name, *options)
            if parallel.is_main():
                masks = predicted.masks if dataset.has_masks else None
                results[epoch][class_name] = evaluate(names, labels, predicted.scores, masks, predicted.maps)
    progress.close()

    if parallel.is_main():
        means = {
            epoch: {name: mean([values[name] for values in classes.values()]) for name in names}
            for epoch, classes in results.items()
        }
        epochs = {epoch: {"classes": results[epoch], "mean": means[epoch]} for epoch in results}
        write_json(folder / "epochs.json", {**tested, "epochs": epochs})
        write_epochs(folder, names, means)
        logger.info("\n%s", format_table(names, {str(epoch): values for epoch, values in means.items()}, "epoch"))
        logger.info("in %s: epochs.json, epochs.csv, epochs.png", folder)
    parallel.stop()


def write_epochs(folder: Path, names: list[str], means: dict[int, dict[str, float | None]]) -> None:
    """Write epochs.csv and epochs.png: the means over the classes, epoch by epoch, percent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = ((epoch, *values.values()) for epoch, values in means.items())
    write_rows(folder / "epochs.csv", (("epoch", *names), *rows))
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name in names:
        points = [(epoch, values[name]) for epoch, values in means.items() if values[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="epoch", ylabel="percent, mean over classes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_path(folder / "epochs.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
