"""AnomalyCLIP: two learned object-agnostic prompts, DPAM, global and local loss (paper section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from AnomalyCLIP_lib.similarity import anomaly_map, class_logits, class_probabilities, patch_probabilities, upsample
from loss import local_loss
from methods._base import Base
from prompt_ensemble import PromptLearner, hand_written_features, learner_sizes, load_prompt_learner
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
    sizes = staticmethod(learner_sizes)

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        if settings["depth"] is None:
            settings["depth"] = min(9, model.num_text_layers)
        if not settings["prompt"].startswith("hand-written"):
            self.learner = PromptLearner(model, settings["n_ctx"], settings["depth"], settings["t_n_ctx"])

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        image_features, patch_features = self.model.encode_image(images, self.settings["features_list"])
        return {"image_features": image_features, "patch_features": torch.stack(patch_features, dim=1)}

    def check_training(self, dataset) -> list[str]:
        if self.settings["no_global_loss"] and self.settings["no_local_loss"]:
            raise InputError("--no_global_loss and --no_local_loss together leave nothing to train on; drop one")
        if self.settings["no_global_loss"] and not dataset.has_masks:
            raise InputError(f"{dataset.root} has no masks, so --no_global_loss leaves nothing to train on")
        blind = not dataset.has_masks and not self.settings["no_local_loss"]
        return ["the data set has no masks: training with the global loss alone"] if blind else []

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Equation 3 of the paper: cross-entropy + lambda * (focal + Dice), summed over the tapped blocks."""
        text_features = self.text_features_of(class_names)
        losses = {}
        if not self.settings["no_global_loss"]:
            logits = class_logits(features["image_features"], text_features)
            losses["image_loss"] = F.cross_entropy(logits, labels)
        if masks is not None and not self.settings["no_local_loss"]:
            losses["local_loss"] = self.settings["lambda_local"] * sum(
                local_loss(self.abnormal_map(patch_features, text_features), masks)
                for patch_features in features["patch_features"].unbind(1)
            )
        return losses

    def abnormal_map(self, patch_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """P(abnormal) of every pixel (B, S, S) from patch tokens (B, 1 + G*G, D)."""
        abnormal = patch_probabilities(patch_features, text_features)[:, 1:]
        return upsample(abnormal, self.model.image_size).squeeze(1)

    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        """(2, D), shared by all images, or (B, 2, D), each image's own, for object-aware prompts."""
        if self.settings["prompt"] == "object-agnostic":
            return self.learner()
        distinct = sorted(set(class_names))
        return self.learner(distinct)[[distinct.index(name) for name in class_names]]

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.learner = load_prompt_learner(self.model, state)

    def set_classes(self, class_names: list[str]) -> None:
        prompt = self.settings["prompt"]
        if prompt == "object-agnostic":
            self.text_features = dict.fromkeys(class_names, self.learner())
        elif prompt == "object-aware":
            self.text_features = dict(zip(class_names, self.learner(class_names), strict=True))
        elif prompt == "hand-written":
            self.text_features = dict(zip(class_names, hand_written_features(self.model, class_names), strict=True))
        else:
            self.text_features = dict.fromkeys(class_names, hand_written_features(self.model, ["object"])[0])

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        text_features = self.text_features[class_name]
        scores = class_probabilities(features["image_features"], text_features)[:, 1]
        return scores, anomaly_map(features["patch_features"].unbind(1), text_features, self.model.image_size)
