"""One file per method, all behind one interface (`_base.Base`), which is all that train.py and test.py know.

methods/NAME.py is `--method NAME`. It holds a class `Method(Base)` and literal dicts of flags and their defaults:
SETTINGS (what features and scores depend on; kept in checkpoints), TRAINING (train.py's) and TESTING (test.py's).
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from utils import InputError

if TYPE_CHECKING:
    from methods._base import Base

PARTS = ("SETTINGS", "TRAINING", "TESTING")


def names() -> list[str]:
    """The methods there are: the files of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def flags(name: str) -> dict[str, dict]:
    """{"SETTINGS": {flag: default}, "TRAINING": ..., "TESTING": ...} of a method, read without importing torch.

    A part that the file does not name is empty, but SETTINGS has to be there. InputError for a dict that is annotated
    or computed, which could not be read this way and must not be taken for "no flags".
    """
    path = Path(__file__).parent / f"{name}.py"
    parts = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in PARTS:
                try:
                    if not isinstance(node, ast.Assign):
                        raise ValueError
                    parts[target.id] = dict(ast.literal_eval(node.value))
                except (ValueError, TypeError):
                    raise InputError(f"{path}: {target.id} has to be a plain dict of literals, not annotated") from None
    if "SETTINGS" not in parts:
        raise InputError(f"{path}: has no SETTINGS, the dict of its flags and their defaults; add it")
    return {part: parts.get(part, {}) for part in PARTS}


def method_class(name: str) -> type[Base]:
    """The class `Method` of methods/NAME.py."""
    return importlib.import_module(f"methods.{name}").Method


def tapped_blocks(features_list: list[int], feature_map_layer: int) -> list[int]:
    """Blocks whose maps are used: the released scripts leave out those before index feature_map_layer (0-based)."""
    if not 0 <= feature_map_layer < len(features_list):
        listed = " ".join(map(str, features_list))
        raise InputError(f"--feature_map_layer {feature_map_layer} leaves nothing of --features_list {listed}")
    return features_list[feature_map_layer:]
