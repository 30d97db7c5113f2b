"""CLIP-AC: CLIP with its ImageNet prompt ensemble over two states (Radford et al., 2021; AnomalyCLIP, appendix A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES

from methods._plain_clip import STATES, PlainClip

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "no_ln_post": False,
    "keep_underscores": False,
    "raw_mean": False,
}
TESTING = {"sigma": 4.0}


class Method(PlainClip):
    """`normal [cls]` and `anomalous [cls]` in CLIP's 80 ImageNet templates, averaged per state. See `PlainClip`.

    The mean is CLIP's own: of unit vectors, normalised again. With raw_mean it is that of the embeddings as they are.
    """

    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        features = []
        for name in self.spelled(class_names):
            embeddings = self.model.encode_text(prompts(name)).unflatten(0, (2, -1))  # (2, 80, D)
            if not self.settings["raw_mean"]:
                embeddings = F.normalize(embeddings, dim=-1)
            features.append(F.normalize(embeddings.mean(dim=1), dim=-1))
        return torch.stack(features)


def prompts(class_name: str) -> list[str]:
    """The 160 prompts of a class: both states in each of CLIP's ImageNet templates.

    The templates' articles stay as they are: `a bad photo of a anomalous bottle.`
    """
    return [template(state.format(class_name)) for state in STATES for template in OPENAI_IMAGENET_TEMPLATES]
