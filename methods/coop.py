"""CoOp: learned context vectors before `normal [cls]` and `anomalous [cls]` (Zhou et al., IJCV 2022)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from AnomalyCLIP_lib.similarity import TEMPERATURE, class_logits
from methods._clip_rows import ClipRow
from prompt_ensemble import CoOpLearner, coop_sizes

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "no_ln_post": False,
    "n_ctx": 16,
    "csc": False,
}
TRAINING = {
    "epoch": 200,
    "learning_rate": 0.002,
    "batch_size": 32,
}
TESTING = {"sigma": 4.0}

WARMUP_LEARNING_RATE = 1e-5


class Method(ClipRow):
    """CoOp brought to anomaly detection as AnomalyCLIP's appendix says: its prompts, otherwise its own settings.

    From CoOp come the context (see `CoOpLearner`), the loss, the optimiser and its schedule, batch size and epochs
    (those of its 16-shot runs). Resolution and preprocessing are those of the other rows; images are not augmented,
    for their features are frozen. The prompts name the object, so a context learned on some objects is used for others.
    """

    STATE = "context"
    TRAINING_FEATURES = ("image_features",)
    SCHEDULED = True
    sizes = staticmethod(coop_sizes)

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        self.learner = CoOpLearner(model, settings["n_ctx"], settings["csc"])

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Cross-entropy of normal and anomalous; each image is compared with the two prompts of its own class."""
        return {"image_loss": F.cross_entropy(self.logits(features["image_features"], class_names), labels)}

    def logits(self, image_features: torch.Tensor, class_names: list[str]) -> torch.Tensor:
        """(B, 2): cosines of image features (B, D) with the prompts of their classes, at CLIP's own logit scale."""
        distinct = sorted(set(class_names))
        text_features = self.learner(distinct)[[distinct.index(name) for name in class_names]]
        return self.model.clip.logit_scale.exp() * TEMPERATURE * class_logits(image_features, text_features)

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum and weight decay, as CoOp's."""
        return torch.optim.SGD(
            self.learner.parameters(), lr=self.settings["learning_rate"], momentum=0.9, weight_decay=5e-4
        )

    def learning_rate(self, epoch: int) -> float:
        """The first epoch warms up at a constant rate; then a half cosine over --epoch epochs, which starts anew."""
        if epoch == 1:
            return WARMUP_LEARNING_RATE
        return self.settings["learning_rate"] * (1 + math.cos(math.pi * (epoch - 2) / self.settings["epoch"])) / 2

    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        return self.learner(class_names)
