"""CLIP made to detect anomalies: backbones, the dual-stream vision encoder, deep text prompts, similarity maps.

The package stands alone: it imports nothing of the repository around it, so it can be used from anywhere on sys.path.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .backbones import load
    from .model import AnomalyCLIP

__all__ = ["AnomalyCLIP", "InputError", "load"]

HOMES = {"AnomalyCLIP": "model", "load": "backbones"}
MODULES = ("backbones", "blocks", "dpam", "model", "similarity", "text")


def __getattr__(name: str) -> Any:
    """`load`, `AnomalyCLIP` and the modules are imported when they are first used: torch alone takes seconds."""
    if name in HOMES:
        return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
    if name in MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
