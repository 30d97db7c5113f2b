"""UniADet: no text at all; a normal and an abnormal vector for each tapped block, for the image and for its patches.

Gao and Wang, arXiv 2601.05552, 2026. No code and no weights are published: built from descriptions of the paper, with
CLIP's tower and without the class-aware augmentation, for which each draw would have to be encoded anew. What no source
settles is chosen as in AnomalyCLIP and listed in docs/methods.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from AnomalyCLIP_lib.dpam import run_blocks
from AnomalyCLIP_lib.similarity import class_logits, to_grid, upsample
from loss import local_loss
from methods._base import Base
from utils import InputError

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "dpam_layer": 1,
    "dpam_mode": "vv",
}
TRAINING = {"epoch": 15, "learning_rate": 0.001, "batch_size": 8, "lambda_local": 1.0}
TESTING = {"sigma": 4.0, "score_share": 0.5}


class Method(Base):
    """See `Base`; features of L blocks after ln_post and proj: class_tokens (B, L, D), patch_tokens (B, L, G*G, D).

    With DPAM (--dpam_layer) patch tokens are those of its stream; class tokens stay those of the original one.
    """

    STATE = "uniadet"

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        self.learner = ClassVectors(len(settings["features_list"]), model.clip.visual.proj.shape[1]).to(model.device)

    @staticmethod
    def default_blocks(num_layers: int) -> list[int]:
        """Five blocks from the middle to the end: 12, 15, 18, 21, 24 of 24."""
        return sorted({math.ceil(num_layers / 2 + place * num_layers / 8) for place in range(5)})

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict:
        """Nothing: which blocks were tapped cannot be read from the tensors."""
        if state.keys() != {"w_cls", "w_seg"} or any(value.ndim != 3 for value in state.values()):
            raise InputError("the checkpoint does not hold UniADet's vectors (w_cls and w_seg of shape (blocks, 2, D))")
        return {}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        visual, settings = self.model.clip.visual, self.settings
        run = run_blocks(visual, images, settings["features_list"], settings["dpam_layer"], settings["dpam_mode"])
        class_tokens = torch.stack(run.class_tokens, dim=1)  # (B, L, width)
        patch_tokens = torch.stack(run.tokens, dim=1)[:, :, 1:]  # (B, L, G*G, width)
        tokens = {"class_tokens": class_tokens, "patch_tokens": patch_tokens}
        return {name: visual.ln_post(each) @ visual.proj for name, each in tokens.items()}

    @classmethod
    def check_training(cls, settings: dict, dataset) -> list[str]:
        if not dataset.has_masks:
            raise InputError(f"{dataset.root} has no masks, and UniADet's vectors of patches are trained on masks")
        return []

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Cross-entropy of the image, and AnomalyCLIP's local loss, each summed over the tapped blocks."""
        logits = self.logits(features["class_tokens"].unsqueeze(2), self.learner.w_cls).squeeze(2)  # (B, L, 2)
        maps = upsample(self.abnormal_maps(features["patch_tokens"]), self.model.image_size)  # (B, L, S, S)
        return {
            "image_loss": sum(F.cross_entropy(each, labels) for each in logits.unbind(1)),
            "local_loss": self.settings["lambda_local"] * sum(local_loss(each, masks) for each in maps.unbind(1)),
        }

    @staticmethod
    def logits(tokens: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Logits (B, L, N, 2) of tokens (B, L, N, D) with each block's normal and abnormal vector, (L, 2, D)."""
        blocks = zip(tokens.unbind(1), vectors, strict=True)
        return torch.stack([class_logits(each, pair) for each, pair in blocks], dim=1)

    def abnormal_maps(self, patch_tokens: torch.Tensor) -> torch.Tensor:
        """P(abnormal) of each patch after each block: (B, L, G*G, D) to (B, L, G, G)."""
        abnormal = self.logits(patch_tokens, self.learner.w_seg).softmax(dim=-1)[..., 1]  # (B, L, G*G)
        return to_grid(abnormal.transpose(1, 2))

    def set_classes(self, class_names: list[str]) -> None:
        """Nothing depends on the class."""

    def load(self, state: dict[str, torch.Tensor]) -> None:
        blocks, held = self.settings["features_list"], len(state["w_cls"])
        if held != len(blocks):
            raise InputError(f"the checkpoint has vectors of {held} blocks, features_list {blocks} wants {len(blocks)}")
        super().load(state)

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The blocks' mean: of the class token's probability mixed with the highest of the patches, and of the maps."""
        class_tokens = features["class_tokens"].unsqueeze(2)
        abnormal = self.logits(class_tokens, self.learner.w_cls).softmax(dim=-1)[:, :, 0, 1]  # (B, L)
        maps, own = self.abnormal_maps(features["patch_tokens"]), self.settings["score_share"]
        scores = own * abnormal + (1 - own) * maps.amax(dim=(2, 3))
        return scores.mean(dim=1), maps.mean(dim=1)

    @classmethod
    def highest(cls, settings: dict) -> float:
        return 1.0


class ClassVectors(nn.Module):
    """All that is learned: w_cls and w_seg (L, 2, D), normal and abnormal, of L blocks."""

    def __init__(self, layers: int, dimension: int) -> None:
        super().__init__()
        self.w_cls = nn.Parameter(torch.empty(layers, 2, dimension).normal_(std=0.02))
        self.w_seg = nn.Parameter(torch.empty(layers, 2, dimension).normal_(std=0.02))
