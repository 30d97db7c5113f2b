"""From what a method predicts of a class to metrics, tables, scores and curves on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import parallel
from utils import atomic_path, write_rows

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    from dataset import Entry
    from methods._base import Base

METRICS = {
    "image-level": ("image_auroc", "image_ap"),
    "pixel-level": ("pixel_auroc", "pixel_aupro"),
    "image-pixel-level": ("pixel_auroc", "pixel_aupro", "image_auroc", "image_ap"),
}
MORE_METRICS = ("pixel_ap", "pixel_f1_max", "aupimo", "image_f1_max")
SCORES = ("path", "class", "specie", "label", "score", "map_max")


@dataclass
class Predicted:
    """What is predicted of a class's N images.

    Attributes:
        scores, map_maxima: (N,). shares: (N,), how much of each image its mask marks.
        maps: (N, S, S), smoothed. masks: (N, S, S) bool. None: not kept.
    """

    scores: np.ndarray
    map_maxima: np.ndarray
    shares: np.ndarray
    maps: np.ndarray | None = None
    masks: np.ndarray | None = None


def metric_names(level: str, exact_aupro: bool = False, more: Iterable[str] | None = None) -> list[str]:
    """The columns of a table: those of --metrics, with --exact_aupro and --more_metrics.

    more: names of MORE_METRICS; empty: all of them that belong to the level; None: none.
    """
    names = list(METRICS[level])
    if exact_aupro and "pixel_aupro" in names:
        names.insert(names.index("pixel_aupro") + 1, "pixel_aupro_exact")
    if more is not None:
        image, pixel = "image" in level, "pixel" in level
        wanted = more or [name for name in MORE_METRICS if (image if name.startswith("image") else pixel)]
        names += [name for name in MORE_METRICS if name in wanted]
    return names


def predict_class(
    method: Base,
    batches: Iterable[dict],
    count: int,
    class_name: str,
    sigma: float,
    map_dtype: str | None,
    progress: tqdm,
) -> Predicted | None:
    """What is predicted of a class; None but in the main process.

    Args:
        batches: of its N images, as `FeatureStore.batches` gives them.
        count: N.
        map_dtype: type of the maps; None: maps and masks are not kept.
    """
    import numpy as np

    from features import predict

    image_size = method.model.image_size
    if parallel.is_main():
        arrays = [np.empty(count, np.float32) for _ in range(3)]
        if map_dtype:
            arrays += [np.empty((count, image_size, image_size), dtype) for dtype in (map_dtype, bool)]
    for batch in batches:
        batch_scores, batch_maps = predict(method, batch["features"], class_name, sigma)
        share = [batch["rows"], batch_scores, batch_maps.amax(dim=(1, 2)), batch["mask"].mean(dim=(1, 2))]
        if map_dtype:
            share += [batch_maps, batch["mask"] > 0]
        for places, *values in parallel.gather_to_main([value.cpu().numpy() for value in share]):
            for array, value in zip(arrays, values, strict=True):
                array[places] = value[: len(places)]
            progress.update(len(places))
    if not parallel.is_main():
        return None
    return Predicted(*arrays)


def evaluate(
    names: list[str], labels: list[int], scores: np.ndarray, masks: np.ndarray | None, maps: np.ndarray | None
) -> dict[str, float | None]:
    """The metrics of one class in percent; None where the class has no normal images or no masks."""
    import metrics

    values = {}
    for name in names:
        metric = getattr(metrics, name)
        if name.startswith("image"):
            value = metric(labels, scores)
        else:
            value = None if masks is None else metric(masks, maps)
        values[name] = None if value is None else 100 * value
    return values


def evaluate_kinds(names: list[str], entries: list[Entry], predicted: Predicted) -> dict[str, dict[str, float | None]]:
    """The metrics of each kind of defect of a class: its images against the class's normal ones.

    Kinds are the specie_name of meta.json; a class with one kind or none gives nothing new, and nothing is returned.
    """
    import numpy as np

    kinds = np.array([entry.specie if entry.label else "" for entry in entries])
    labels = np.array([entry.label for entry in entries])
    found = [kind for kind in dict.fromkeys(kinds.tolist()) if kind]
    values = {}
    for kind in found if len(found) > 1 else ():
        chosen = (labels == 0) | (kinds == kind)
        masks, maps = (None if predicted.masks is None else each[chosen] for each in (predicted.masks, predicted.maps))
        values[kind] = evaluate(names, labels[chosen].tolist(), predicted.scores[chosen], masks, maps)
    return values


def mean(values: list[float | None]) -> float | None:
    """Plain mean over the classes that have a value."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def format_table(names: list[str], rows: dict[str, dict[str, float | None]], first: str = "objects") -> str:
    """The released table: a row per class and a column per metric, percent with one decimal, `-` for None."""
    from tabulate import tabulate

    cells = [
        [label.replace("|", "\\|"), *("-" if values[name] is None else f"{values[name]:.1f}" for name in names)]
        for label, values in rows.items()
    ]
    return tabulate(cells, headers=[first, *names], tablefmt="pipe", disable_numparse=True)


def write_scores(path: Path, entries: list[Entry], images: Iterable[tuple[float, float]]) -> None:
    """Write scores.csv: a row an image, in the order of meta.json; `images`: score and maximum of the map of each."""
    rows = (
        (entry.image_path, entry.class_name, entry.specie, entry.label, *values)
        for entry, values in zip(entries, images, strict=True)
    )
    write_rows(path, (SCORES, *rows))


def write_curves(folder: Path, curves: dict[str, dict[str, np.ndarray]]) -> None:
    """Write curves.csv and curves.png: the ROC and the precision-recall curve of each class.

    curves: by class, "roc" (P, 2), false alarms and hits, and "precision_recall" (P, 2), recall and precision.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = (
        (class_name, kind, *map(float, point))
        for class_name, kinds in curves.items()
        for kind, points in kinds.items()
        for point in points
    )
    write_rows(folder / "curves.csv", (("class", "curve", "x", "y"), *rows))
    axes_of = {"roc": ("false alarms", "hits"), "precision_recall": ("recall", "precision")}
    figure, both = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for axes, (kind, (x, y)) in zip(both, axes_of.items(), strict=True):
        for class_name, kinds in curves.items():
            style = {"drawstyle": "steps-post"} if kind == "roc" else {}
            axes.plot(*kinds[kind].T, label=class_name, linewidth=1.2, **style)
        axes.set(xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.grid(alpha=0.3)
    if curves:
        both[1].legend(fontsize="small", ncols=1 + len(curves) // 16)
    with atomic_path(folder / "curves.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
