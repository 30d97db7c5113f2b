"""AnomalyCLIP: two learned object-agnostic prompts, DPAM, global and local loss (paper sections 3.1 to 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from AnomalyCLIP_lib.similarity import abnormal_maps, anomaly_map, class_logits, class_probabilities
from loss import local_loss
from methods._base import Base
from prompt_ensemble import PromptLearner, hand_written_features, learner_sizes
from utils import InputError

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "dpam_layer": None,
    "dpam_mode": "vv",
    "prompt": "object-agnostic",
    "n_ctx": 12,
    "depth": None,
    "t_n_ctx": 4,
}
TRAINING = {
    "epoch": 15,
    "learning_rate": 0.001,
    "batch_size": 8,
    "lambda_local": 4.0,
    "no_global_loss": False,
    "no_local_loss": False,
}
TESTING = {"sigma": 4.0}


class Method(Base):
    """See `Base`; features: image_features (B, D), patch_features (B, L, 1 + G*G, D), L tapped blocks."""

    STATE = "prompt_learner"
    UNTRAINED = "--prompt hand-written"
    sizes = staticmethod(learner_sizes)

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        if self.learns(settings):
            self.learner = PromptLearner(model, settings["n_ctx"], settings["depth"], settings["t_n_ctx"])
        self.text_features: dict[str, torch.Tensor] = {}  # (2, D) of each class

    @classmethod
    def learns(cls, settings: dict) -> bool:
        return settings["prompt"] in ("object-agnostic", "object-aware")

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.model.encode(images, self.settings["features_list"])

    @classmethod
    def check_training(cls, settings: dict, dataset) -> list[str]:
        if settings["no_global_loss"] and settings["no_local_loss"]:
            raise InputError("--no_global_loss and --no_local_loss together leave nothing to train on; drop one")
        if settings["no_global_loss"] and not dataset.has_masks:
            raise InputError(f"{dataset.root} has no masks, so --no_global_loss leaves nothing to train on")
        blind = not dataset.has_masks and not settings["no_local_loss"]
        return ["the data set has no masks: training with the global loss alone"] if blind else []

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Equation 2: the global loss, a cross-entropy, plus lambda times the local loss of all tapped blocks."""
        text_features = self.prompted_features(class_names)
        losses = {}
        if not self.settings["no_global_loss"]:
            logits = class_logits(features["image_features"], text_features)  # (B, 2)
            losses["image_loss"] = F.cross_entropy(logits, labels)
        if masks is not None and not self.settings["no_local_loss"]:
            maps = abnormal_maps(features["patch_features"], text_features, self.model.image_size)
            losses["local_loss"] = self.settings["lambda_local"] * sum(local_loss(each, masks) for each in maps)
        return losses

    def prompted_features(self, class_names: list[str]) -> torch.Tensor:
        """Text features of a training batch: (2, D), shared by all images, or (B, 2, D) for object-aware prompts."""
        if self.settings["prompt"] == "object-agnostic":
            return self.learner()
        distinct = sorted(set(class_names))
        return self.learner(distinct)[[distinct.index(name) for name in class_names]]

    def load(self, state: dict[str, torch.Tensor]) -> None:
        width, own_width = state["ctx_pos"].shape[-1], self.learner.ctx_pos.shape[-1]
        if width != own_width:
            raise InputError(
                f"the checkpoint's prompts have width {width}, the model's text tower {own_width}; name its model"
            )
        super().load(state)

    def set_classes(self, class_names: list[str]) -> None:
        prompt = self.settings["prompt"]
        if prompt == "object-agnostic":
            features = [self.learner()] * len(class_names)
        elif prompt == "object-aware":
            features = self.learner(class_names)
        elif prompt == "hand-written":
            features = hand_written_features(self.model, class_names)
        else:
            features = [hand_written_features(self.model, ["object"])[0]] * len(class_names)
        self.text_features = dict(zip(class_names, features, strict=True))

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        text_features = self.text_features[class_name]
        scores = class_probabilities(features["image_features"], text_features)[:, 1]
        return scores, anomaly_map(features["patch_features"].unbind(1), text_features)
