"""CLIP with two sentences per object (Radford et al., 2021; AnomalyCLIP, appendix). Nothing is trained."""

from __future__ import annotations

import torch

from methods._clip_rows import ClipRow
from prompt_ensemble import clip_features

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "no_ln_post": False,
    "keep_underscores": False,
}
TRAINING = {}
TESTING = {"sigma": 4.0}


class Method(ClipRow):
    """`A photo of a normal [cls]` and `A photo of an anomalous [cls]`, without a full stop. See `ClipRow`."""

    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        return clip_features(self.model, self.spelled(class_names))
