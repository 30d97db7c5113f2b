"""CLIP made to detect anomalies: backbones, the dual-stream vision encoder, deep text prompts, similarity maps."""

from .backbones import load
from .model import AnomalyCLIP

__all__ = ["AnomalyCLIP", "load"]
