"""What CLIP, CLIP-AC and CoOp share: the unmodified vision side of CLIP, its scores and maps, and the two states."""

from __future__ import annotations

from abc import abstractmethod

import torch

from AnomalyCLIP_lib.similarity import anomaly_map, class_probabilities
from methods._base import Base

STATES = ("normal {}", "anomalous {}")  # AnomalyCLIP, appendix A


class PlainClip(Base):
    """CLIP's own features, without DPAM; a method adds its text side in `text_features_of`.

    Features: image_features (B, D), patch_features (B, L, 1 + G*G, D), L tapped blocks. Scores and maps are computed
    from them as in AnomalyCLIP, at its temperature of 0.07. The paper only says that the vision side is not modified,
    so two things are chosen here: the map comes from the last block alone, which is where CLIP's `ln_post` and
    projection belong, and the image feature is CLIP's own, with `ln_post` (no_ln_post: without, as AnomalyCLIP's tower
    computes it).
    """

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        if model.dpam_layer != 1:
            raise ValueError(f"this method is CLIP without DPAM; load it with dpam_layer 1, not {model.dpam_layer}")
        self.text_features: dict[str, torch.Tensor] = {}  # (2, D) of each class

    @staticmethod
    def default_blocks(num_layers: int) -> list[int]:
        """The last block alone."""
        return [num_layers]

    def cache_key(self) -> dict:
        """The same for the three methods: they share their caches."""
        return {"encoder": "clip"} | {key: self.settings[key] for key in ("image_size", "features_list", "no_ln_post")}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        tapped, last = self.settings["features_list"], self.model.num_layers
        blocks = tapped if last in tapped else [*tapped, last]
        features = self.model.encode(images, blocks)
        patch_features = features["patch_features"]
        if not self.settings["no_ln_post"]:
            features["image_features"] = patch_features[:, blocks.index(last), 0]
        return features | {"patch_features": patch_features[:, : len(tapped)]}

    @abstractmethod
    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        """Text features (C, 2, D) of classes, normal and abnormal, any length of vector."""

    def spelled(self, class_names: list[str]) -> list[str]:
        """Class names as they stand in hand-written prompts: with spaces for underscores unless --keep_underscores."""
        return class_names if self.settings["keep_underscores"] else [name.replace("_", " ") for name in class_names]

    def set_classes(self, class_names: list[str]) -> None:
        self.text_features = dict(zip(class_names, self.text_features_of(class_names), strict=True))

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        text_features = self.text_features[class_name]
        scores = class_probabilities(features["image_features"], text_features)[:, 1]
        return scores, anomaly_map(features["patch_features"].unbind(1), text_features)
