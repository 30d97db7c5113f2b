"""Losses of a training, epoch by epoch: losses.csv, losses.png and, where it is wanted, events for TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
import math
from pathlib import Path

from AnomalyCLIP_lib.errors import one_line
from utils import InputError, atomic_path, write_rows

NAME = "losses"  # of the files
EVENTS = "tensorboard"  # folder of the events in the run folder
INSTALL = "pip install -r requirements/tensorboard.txt"


class LossCurves:
    """What the epochs of a run have cost so far, and its files; for the main process alone.

    losses.csv has a row an epoch: epoch, counted from 1, and the mean of each term of the loss over the batches,
    under the term's name, with all its digits. It is written anew after each epoch.

    Args:
        folder: the run folder.
        done: epochs that are behind it, if it was resumed: their rows are taken from losses.csv, later ones, which were
            trained but not saved, are trained and written again.
        tensorboard: write events, too; see `check_tensorboard`.

    Attributes:
        rows: by epoch, in their order, the mean of each term by its name.
        missing: how many of the `done` epochs losses.csv does not tell of: it was taken away or is damaged, or an
            older version trained them.
    """

    def __init__(self, folder: Path, done: int = 0, tensorboard: bool = False) -> None:
        self.folder = folder
        self.rows = {epoch: losses for epoch, losses in read_losses(folder).items() if epoch <= done}
        self.missing = done - len(self.rows)
        self.writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError(f"--tensorboard does not work here ({one_line(error)}); {INSTALL}") from None

            self.writer = SummaryWriter(folder / EVENTS, purge_step=done + 1)  # later events are those of lost epochs

    def add(self, epoch: int, losses: dict[str, float]) -> None:
        """Note an epoch: the mean of each term of its loss, by name."""
        self.rows[epoch] = losses
        names = list(dict.fromkeys(name for terms in self.rows.values() for name in terms))
        rows = ((epoch, *(terms.get(name, "") for name in names)) for epoch, terms in self.rows.items())
        write_rows(self.folder / f"{NAME}.csv", (("epoch", *names), *rows))
        if self.writer:
            for name, value in losses.items():
                self.writer.add_scalar(f"loss/{name}", value, epoch)
            self.writer.flush()

    def finish(self) -> None:
        """Draw losses.png: a panel for each term, and for their sum if there are several."""
        if self.writer:
            self.writer.close()
        draw(self.folder / f"{NAME}.png", self.rows)


def check_tensorboard() -> None:
    """InputError if the library is not there that --tensorboard needs; imports neither it nor torch."""
    found = importlib.util.find_spec("tensorboard")
    if found is None or found.origin is None:  # a mere folder of this name, such as that of the events, has no origin
        raise InputError(f"--tensorboard needs tensorboard; {INSTALL}")


def read_losses(folder: Path) -> dict[int, dict[str, float]]:
    """By epoch, the terms of a run folder's losses.csv; empty if there is no such file or something else is in it."""
    try:
        with open(folder / f"{NAME}.csv", encoding="utf-8", newline="") as file:
            content = list(csv.DictReader(file, strict=True))
        rows = {}
        for row in content:
            epoch = int(row.pop("epoch"))
            rows[epoch] = {name: float(text) for name, text in row.items() if text}
            if epoch < 1 or not all(map(math.isfinite, rows[epoch].values())):
                return {}
        return dict(sorted(rows.items()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error):
        return {}


def draw(path: Path, rows: dict[int, dict[str, float]]) -> None:
    """Write the picture of `rows`, as in LossCurves; one row at least."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for terms in rows.values() for name in terms))
    lines = {name: [terms.get(name, math.nan) for terms in rows.values()] for name in names}
    if len(names) > 1:
        lines["sum"] = [sum(terms.values()) for terms in rows.values()]
    figure = Figure(figsize=(4.2 * len(lines), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(lines), squeeze=False)[0]
    for panel, (name, values) in zip(panels, lines.items(), strict=True):
        panel.plot(list(rows), values, marker="o" if len(rows) <= 50 else None, markersize=4, linewidth=1.5)
        panel.set_title(name)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean over the batches")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
