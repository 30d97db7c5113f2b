"""One file per row of the paper's tables, behind one interface (`_base.Base`); train.py and test.py know nothing else.

methods/NAME.py is `--method NAME`. It holds a class `Method(Base)` and literal dicts of flags and their defaults:
SETTINGS (what features and scores depend on; kept in checkpoints), TRAINING (train.py's) and TESTING (test.py's).
"""

import ast
import importlib
from pathlib import Path

PARTS = ("SETTINGS", "TRAINING", "TESTING")


def names() -> list[str]:
    """The methods there are: the files of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def flags(name: str) -> dict[str, dict]:
    """{"SETTINGS": {flag: default}, "TRAINING": .., "TESTING": ..} of a method, read without importing torch."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    literals = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in PARTS
    }
    return {part: literals.get(part, {}) for part in PARTS}


def method_class(name: str):
    """The class `Method` of methods/NAME.py."""
    return importlib.import_module(f"methods.{name}").Method
