"""The paper's tables and figures: which variants and data sets they have. Read by runs.sh and read_results.py.

python scripts/paper/tables.py table1      # its data sets, one a line, with their value of test.py's --metrics
python scripts/paper/tables.py brainmri    # the same of one data set
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from generate_dataset_json.builder import DATASETS, INDUSTRIAL, MEDICAL
from utils import run_cli

LEVELS = {
    "image": ("image level (AUROC, AP)", ("image_auroc", "image_ap")),
    "pixel": ("pixel level (AUROC, AUPRO)", ("pixel_auroc", "pixel_aupro")),
}
ALL_LEVELS = {
    "image": ("image level", ("image_auroc", "image_ap", "image_f1_max")),
    "pixel": ("pixel level", ("pixel_auroc", "pixel_aupro", "pixel_ap", "pixel_f1_max", "aupimo")),
}
METHODS = {
    "clip": "CLIP",
    "clip_ac": "CLIP-AC",
    "winclip": "WinCLIP",
    "vand": "VAND",
    "coop": "CoOp",
    "anomalyclip": "AnomalyCLIP",
}
NEWER = {  # methods that the paper does not have
    "glocalclip": "GlocalCLIP",
    "af_clip": "AF-CLIP",
    "mrad_tf": "MRAD-TF",
    "mrad_ft": "MRAD-FT",
    "uniadet": "UniADet",
}


@dataclass(frozen=True)
class Table:
    """A table or figure: its variants (folders) with their names in print, and its data sets.

    layout: "data sets": a row per data set, a column per variant; "variants": a row per variant, a column per data set
    and level; "gain": as "data sets", with a last column, the second variant minus the first; "metrics": a table per
    data set, a row per variant, a column per metric.
    further: variants that stand in it only where there are results.
    """

    title: str
    variants: dict[str, str]
    data_sets: tuple[str, ...]
    layout: str = "data sets"
    note: str = ""
    further: dict[str, str] = field(default_factory=dict)
    levels: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=lambda: LEVELS)


TABLES = {
    "table1": Table(
        "Table 1: industrial data sets",
        METHODS,
        tuple(INDUSTRIAL),
        note="The paper's figures of WinCLIP and VAND on mvtec and visa are copied from those methods' own papers.",
        further=NEWER,
    ),
    "table2": Table("Table 2: medical data sets", METHODS, tuple(MEDICAL), further=NEWER),
    "table3": Table(
        "Table 3: medical data sets, trained on CVC-ColonDB",
        {"vand_colon": "VAND", "anomalyclip_colon": "AnomalyCLIP"},
        tuple(key for key in MEDICAL if key != "colondb"),
    ),
    "table4": Table(
        "Table 4: modules",
        {
            "hand_written_no_dpam": "base",
            "hand_written": "+ T1, DPAM",
            "no_deep_tokens": "+ T2, object-agnostic prompts",
            "anomalyclip": "+ T3, tokens in the text encoder",
        },
        ("mvtec", "visa"),
        "variants",
    ),
    "table5": Table(
        "Table 5: local and global loss",
        {
            "hand_written_object": "neither",
            "global_loss": "global",
            "local_loss": "local",
            "anomalyclip": "local and global",
        },
        ("mvtec", "visa"),
        "variants",
        "neither: nothing is learned, hand-written prompts with the word object.",
    ),
    "figure5": Table(
        "Figure 5: gain of object-agnostic over object-aware prompts",
        {"object_aware": "object-aware", "anomalyclip": "object-agnostic"},
        tuple(DATASETS),
        "gain",
    ),
    "figure6": Table(
        "Figure 6: attention inside DPAM",
        {"dpam_qq": "Q-Q", "dpam_kk": "K-K", "anomalyclip": "V-V"},
        ("mvtec", "visa"),
        "variants",
    ),
    "table_methods": Table(
        "All methods under one protocol",
        METHODS | NEWER,
        ("mvtec", "visa"),
        "metrics",
        "Each is trained on the same images, if at all, and tested on the same images and masks, at its authors' "
        "settings. WinCLIP has a backbone of its own; UniADet is built from its description, without augmentation.",
        levels=ALL_LEVELS,
    ),
}


def levels_of(key: str) -> tuple[str, ...]:
    """The levels that a data set has metrics for; both for a set that was never published."""
    return DATASETS[key].levels if key in DATASETS else tuple(LEVELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(TABLES)}, or the key of a data set")
    for name in parser.parse_args().names:
        for key in TABLES[name].data_sets if name in TABLES else (name,):
            print(key, "-".join([*levels_of(key), "level"]))


if __name__ == "__main__":
    run_cli(main)
