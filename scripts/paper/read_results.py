"""Put the results of the table scripts beside the paper's, in the paper's layout.

    python scripts/paper/read_results.py table1     # prints it and writes results/tables/table1.md and table1.csv
    python scripts/paper/read_results.py figure5    # the same, and figure5.png

Read is RESULTS/VARIANT/seedN/DATASET/metrics.json, as written by test.py. In the tables '-' was not run or not
published, '!' marks a difference to the paper of more than 1 point; with several seeds it is mean ± standard deviation.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from generate_dataset_json.builder import DATASETS, MEDICAL
from scripts.paper.tables import LEVELS, NEWER, TABLES, Table, levels_of
from utils import InputError, nonempty_path, run_cli, write_text

PAPER, NEWER_PAPERS = (Path(__file__).with_name(name) for name in ("paper_results.json", "newer_results.json"))
TOLERANCE = 1.0  # points
NAMES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupro": "AUPRO",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupimo": "AUPIMO",
}


class Cell(NamedTuple):
    """One metric of a variant on a data set; everything is rounded as it is printed, to one decimal."""

    ours: float | None
    std: float | None  # None: fewer than two seeds
    seeds: int
    paper: float | None
    comparable: bool = True  # whether the paper's figure is of the same data and training

    @property
    def difference(self) -> float | None:
        known = self.ours is not None and self.paper is not None and self.comparable
        return round(self.ours - self.paper, 1) + 0.0 if known else None

    @property
    def mark(self) -> str:
        return "!" if self.difference is not None and abs(self.difference) > TOLERANCE else ""


Cells = dict[tuple[str, str, str], Cell]  # by variant, data set, metric


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument(
        "--results", type=nonempty_path, default=Path("results/tables"), help="folder of the variants' runs"
    )
    parser.add_argument("--out", type=nonempty_path, help="folder to write into (the one of --results)")
    parser.add_argument("--no_paper", action="store_true", help="leave out the published figures and the differences")
    parser.add_argument("--data_sets", nargs="+", metavar="KEY", help="data sets instead of the table's own")
    return parser.parse_args()


def read_results(args: argparse.Namespace) -> None:
    table, out = with_further(TABLES[args.table], args.results), args.out or args.results
    keys = args.data_sets or table.data_sets
    sets = {level: [key for key in keys if level in levels_of(key)] for level in LEVELS}
    if not args.results.is_dir():
        raise InputError(f"--results {args.results}: no such folder; run bash scripts/{args.table}.sh first")
    published = {} if args.no_paper else read_published(args.table)
    cells, others = read_cells(args.results, table, sets, published)
    text = markdown(table, sets, cells, bool(published), others)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{args.table}.md", text)
    write_text(out / f"{args.table}.csv", to_csv(args.table, table, cells))
    print(text, end="")
    written = [out / f"{args.table}.md", out / f"{args.table}.csv"]
    if args.table in FIGURES and any(cell.ours is not None for cell in cells.values()):
        FIGURES[args.table](table, sets, cells, out / f"{args.table}.png")
        written.append(out / f"{args.table}.png")
    print("\nWritten:", *written)


# reading


def with_further(table: Table, results: Path) -> Table:
    """A table with those of its further variants that have results."""
    run = {variant: name for variant, name in table.further.items() if any((results / variant).glob("seed*/*"))}
    return replace(table, variants=table.variants | run)


def read_published(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """The published figures for a table, {variant: {data set: {metric: value}}}, those of newer methods among them."""
    paper = read_json(PAPER)
    own = paper.get("table1" if name == "table_methods" else name, {})
    newer = read_json(NEWER_PAPERS) if name in ("table1", "table2", "table_methods") else {}
    return own | {variant: newer[variant] for variant in NEWER if variant in newer}


def read_cells(
    results: Path, table: Table, sets: dict[str, list[str]], published: dict
) -> tuple[Cells, dict[str, None]]:
    """Every cell of a table, with the means and standard deviations over the seeds that there are.

    And the reasons why some are not to be compared with the paper's, each once.
    """
    cells, others = {}, {}
    for variant in table.variants:
        for key in dict.fromkeys(sets["image"] + sets["pixel"]):
            paths = sorted((results / variant).glob(f"seed*/{key}/metrics.json"))
            runs = [read_run(path, key) for path in paths]
            reasons = [reason for path in paths for reason in why_not_comparable(path.parent, variant, key)]
            if variant in published and key in published[variant]:
                others |= dict.fromkeys(reasons)
            for level, (_, metrics) in table.levels.items():
                for metric in metrics if key in sets[level] else ():
                    values = [run[metric] for run in runs if run.get(metric) is not None]
                    cells[variant, key, metric] = Cell(
                        round(statistics.fmean(values), 1) if values else None,
                        round(statistics.stdev(values), 1) if len(values) > 1 else None,
                        len(values),
                        published.get(variant, {}).get(key, {}).get(metric),
                        not reasons,
                    )
    return cells, others


def why_not_comparable(run: Path, variant: str, key: str) -> list[str]:
    """Why the paper's figures of a data set are of something else than this run: other images, another training."""
    reasons = []
    if key in DATASETS and (run / "scores.csv").is_file():
        with open(run / "scores.csv", encoding="utf-8", newline="") as file:
            labels = [row.get("label") for row in csv.DictReader(file)]
        size, known = (labels.count("0"), labels.count("1")), DATASETS[key].test_size
        if size != known:
            reasons.append(
                f"{key}: {size[0]} normal and {size[1]} anomalous images here, {known[0]} and {known[1]} in the paper"
            )
    if (run / "flags.txt").is_file():
        _, _, trained = (run / "flags.txt").read_text(encoding="utf-8").strip().partition(", trained on ")
        usual = "colondb_train" if variant.endswith("_colon") else "visa" if key == "mvtec" else "mvtec"
        if variant == "glocalclip" and key in MEDICAL:
            usual = "colondb" if key == "clinicdb" else "clinicdb"
        if trained and trained != usual:
            whose = f"{NEWER[variant]} on {key}" if variant in NEWER else key
            reasons.append(f"{whose}: trained on {trained} here, on {usual} in the paper")
    return reasons


def read_run(path: Path, key: str) -> dict[str, float | None]:
    """The means over the classes in a metrics.json; InputError if it is not one of this data set."""
    run = read_json(path)
    mean, name = run.get("mean"), run.get("dataset")
    if not isinstance(mean, dict) or not isinstance(name, str):
        raise InputError(f'{path} has no "dataset" and "mean" as test.py writes them; remove it and run the test again')
    if name != key:
        raise InputError(f"{path} holds results of {name!r}, not of {key!r}; remove it and run the test again")
    for metric, value in mean.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise InputError(f"{path}: {metric} is {value!r}, not a number; remove it and run the test again")
    return mean


def read_json(path: Path) -> dict:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; remove it and make it again")
    return content


# text


def markdown(
    table: Table, sets: dict[str, list[str]], cells: Cells, with_paper: bool, others: Iterable[str] = ()
) -> str:
    """Title, tables and notes."""
    lines = {"ours": ours}
    if with_paper:
        lines |= {"paper": lambda cell: show(cell.paper), "difference": difference}
    if table.layout == "metrics":
        parts = metrics_layout(table, sets, cells, lines)
    elif table.layout == "variants":
        parts = variants_layout(table, sets, cells, lines)
    else:
        parts = data_sets_layout(table, sets, cells, lines)
    notes = [table.note] if table.note and (with_paper or table.layout in ("variants", "metrics")) else []
    if with_paper and set(table.variants) & set(NEWER):
        notes.append("The paper of a newer method is its own.")
    seeds = {cell.seeds for cell in cells.values() if cell.std is not None}
    if seeds:
        number = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{max(seeds)}"
        notes.append(f"Mean ± standard deviation over {number} seeds.")
    if with_paper:
        notes.append(f"! differs from the paper by more than {TOLERANCE:g} point.")
        notes += [f"Not compared: {reason}." for reason in others]
    notes.append("Percent; - was not run" + (" or not published." if with_paper else "."))
    return "\n".join([f"## {table.title}", "", *parts, *(f"{note}  " for note in notes[:-1]), notes[-1], ""])


def data_sets_layout(table: Table, sets: dict[str, list[str]], cells: Cells, lines: dict) -> list[str]:
    """A block per level; a row per data set (and line), a column per variant."""
    parts = []
    for level, (title, metrics) in LEVELS.items():
        rows = []
        for key in sets[level]:
            row = [[cells[variant, key, metric] for metric in metrics] for variant in table.variants]
            for line, write in lines.items():
                columns = [join(map(write, pair)) for pair in row]
                if table.layout == "gain":
                    columns.append(join(show(gain(*pair), sign="+") for pair in zip(*row, strict=True)))
                rows.append([key if line == "ours" else "", *([line] if len(lines) > 1 else []), *columns])
        headers = [title, *([""] if len(lines) > 1 else []), *table.variants.values()]
        parts += pipe_table(headers + ["gain"] * (table.layout == "gain"), rows)
    return parts


def variants_layout(table: Table, sets: dict[str, list[str]], cells: Cells, lines: dict) -> list[str]:
    """A row per variant (and line); a column per data set and level, the pixel level first, as in the paper."""
    columns = [(key, level) for key in dict.fromkeys(sets["pixel"] + sets["image"]) for level in ("pixel", "image")]
    columns = [(key, level) for key, level in columns if key in sets[level]]
    rows = []
    for variant, name in table.variants.items():
        for line, write in lines.items():
            pairs = [join(write(cells[variant, key, metric]) for metric in LEVELS[level][1]) for key, level in columns]
            rows.append([name if line == "ours" else "", *([line] if len(lines) > 1 else []), *pairs])
    headers = [f"{key}, {LEVELS[level][0]}" for key, level in columns]
    return pipe_table(["", *([""] if len(lines) > 1 else []), *headers], rows)


def metrics_layout(table: Table, sets: dict[str, list[str]], cells: Cells, lines: dict) -> list[str]:
    """A block per data set, and one with their mean if there are several; a row per variant (and line)."""
    parts, keys = [], list(dict.fromkeys(sets["image"] + sets["pixel"]))
    metrics = {key: [] for key in keys}
    for level, (_, names) in table.levels.items():
        for key in sets[level]:
            metrics[key] += names
    for key in keys:
        rows = []
        for variant, name in table.variants.items():
            for line, write in lines.items():
                own = [write(cells[variant, key, metric]) for metric in metrics[key]]
                rows.append([name if line == "ours" else "", *([line] if len(lines) > 1 else []), *own])
        headers = [key, *([""] if len(lines) > 1 else []), *(NAMES[metric] for metric in metrics[key])]
        parts += pipe_table(headers, rows)
    shared = [metric for metric in NAMES if all(metric in metrics[key] for key in keys)]
    if len(keys) > 1 and shared:
        rows = []
        for variant, name in table.variants.items():
            values = [[cells[variant, key, metric].ours for key in keys] for metric in shared]
            rows.append([name, *(show(None if None in each else statistics.fmean(each)) for each in values)])
        parts += pipe_table([f"mean of {len(keys)} data sets", *(NAMES[metric] for metric in shared)], rows)
    return parts


def pipe_table(headers: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table and the empty line behind it."""
    from tabulate import tabulate

    return [tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True), ""]


def join(values) -> str:
    """A pair of values, or one '-' where there is none."""
    values = list(values)
    return "-" if set(values) == {"-"} else ", ".join(values)


def show(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1f}"


def ours(cell: Cell) -> str:
    return show(cell.ours) + ("" if cell.std is None else f" ± {cell.std:.1f}")


def difference(cell: Cell) -> str:
    return show(cell.difference, sign="+") + cell.mark


def gain(before: Cell, after: Cell) -> float | None:
    """What the second variant has more than the first, in points."""
    return None if before.ours is None or after.ours is None else round(after.ours - before.ours, 1) + 0.0


def to_csv(name: str, table: Table, cells: Cells) -> str:
    """One line per variant, data set and metric; what is missing is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow("table,data_set,variant,name,metric,ours,std,seeds,paper,difference,mark".split(","))
    for (variant, key, metric), cell in cells.items():
        numbers = ["" if n is None else f"{n:.1f}" for n in (cell.ours, cell.std, cell.paper, cell.difference)]
        numbers.insert(2, str(cell.seeds))
        writer.writerow([name, key, variant, table.variants[variant], metric, *numbers, cell.mark])
    return file.getvalue()


# figures


def draw_gain(table: Table, sets: dict[str, list[str]], cells: Cells, path: Path) -> None:
    """Bars of the second variant minus the first, a panel per level, a pair of bars per data set."""
    figure, axes = new_figure(table.title, len(LEVELS))
    first, second = table.variants
    for axis, (level, (title, metrics)) in zip(axes, LEVELS.items(), strict=True):
        keys = [key for key in sets[level] if gain(*(cells[v, key, metrics[0]] for v in (first, second))) is not None]
        bars = {
            NAMES[metric]: [gain(cells[first, key, metric], cells[second, key, metric]) or 0.0 for key in keys]
            for metric in metrics
        }
        draw_bars(axis, keys, bars, {})
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(title, pad=28)
        axis.set(xlabel="data set", ylabel="gain in percentage points")
    figure.savefig(path, dpi=150)


def draw_variants(table: Table, sets: dict[str, list[str]], cells: Cells, path: Path) -> None:
    """A panel per data set, a group of bars per metric, a bar per variant."""
    keys = [key for key in sets["pixel"] if any(cell.ours is not None for (_, k, _), cell in cells.items() if k == key)]
    figure, axes = new_figure(table.title, len(keys))
    metrics = [*LEVELS["pixel"][1], *LEVELS["image"][1]]
    for axis, key in zip(axes, keys, strict=True):
        bars, errors = (
            {
                name: [getattr(cells[variant, key, metric], part) or 0.0 for metric in metrics]
                for variant, name in table.variants.items()
            }
            for part in ("ours", "std")
        )
        draw_bars(axis, [NAMES[metric] for metric in metrics], bars, errors)
        axis.set_title(key, pad=28)
        axis.set(xlabel="metric", ylabel="percent", ylim=(0, 108))
        for container in axis.containers:
            if hasattr(container, "patches"):
                axis.bar_label(container, fmt=lambda value: f"{value:.1f}" if value else "-", fontsize=7, padding=2)
    figure.savefig(path, dpi=150)


def new_figure(title: str, panels: int):
    """A figure without a display, and its panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * panels, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def draw_bars(axis, groups: list[str], bars: dict[str, list[float]], errors: dict[str, list[float]]) -> None:
    """Groups of bars side by side, with a legend above."""
    width = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        places = [group + (number - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        axis.bar(places, values, width, label=name, yerr=errors.get(name) if any(errors.get(name, ())) else None)
    axis.set_xticks(range(len(groups)), groups, rotation=30 if len(groups) > 4 else 0)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(bars), frameon=False)


FIGURES = {"figure5": draw_gain, "figure6": draw_variants}


if __name__ == "__main__":
    run_cli(lambda: read_results(parse_args()))
