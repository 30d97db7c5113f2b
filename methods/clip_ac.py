"""CLIP-AC: CLIP with its ImageNet prompt ensemble over two states (Radford et al., 2021; AnomalyCLIP, appendix)."""

from __future__ import annotations

import torch

from methods._clip_rows import ClipRow
from prompt_ensemble import clip_ac_features

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "no_ln_post": False,
    "keep_underscores": False,
    "raw_mean": False,
}
TRAINING = {}
TESTING = {"sigma": 4.0}


class Method(ClipRow):
    """`normal [cls]` and `anomalous [cls]` in CLIP's 80 ImageNet templates, averaged per state. See `ClipRow`.

    The mean is CLIP's own: of unit vectors, normalised again. With raw_mean it is that of the embeddings as they are.
    """

    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        return clip_ac_features(self.model, self.spelled(class_names), self.settings["raw_mean"])
