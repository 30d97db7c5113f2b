"""CLIP with two sentences per object (Radford et al., 2021; AnomalyCLIP, appendix A). Nothing is trained."""

from __future__ import annotations

import torch

from methods._plain_clip import PlainClip

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "no_ln_post": False,
    "keep_underscores": False,
}
TESTING = {"sigma": 4.0}

PROMPTS = ("A photo of a normal {}", "A photo of an anomalous {}")  # without a full stop


class Method(PlainClip):
    """`A photo of a normal [cls]` against `A photo of an anomalous [cls]`. See `PlainClip`."""

    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        prompts = [prompt.format(name) for name in self.spelled(class_names) for prompt in PROMPTS]
        return self.model.encode_text(prompts).unflatten(0, (len(class_names), 2))
