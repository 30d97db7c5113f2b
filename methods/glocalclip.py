"""GlocalCLIP: learned prompts of their own for the image and for its patches, pulled together by a contrastive loss.

Ham, Jung and Baek, "GlocalCLIP: Object-agnostic Global-Local Prompt Learning for Zero-shot Anomaly Detection",
arXiv 2411.06071, 2024; details as in its released code. That code taps four blocks, but all four taps are one tensor,
that of the last block: so its loss holds four times the last block's local loss, and its map four times that block's.
Here the last block is tapped and the local loss weighs 4, which is the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from AnomalyCLIP_lib import AnomalyCLIP
from AnomalyCLIP_lib.similarity import abnormal_maps, anomaly_map, class_logits, class_probabilities
from loss import local_loss
from methods._base import Base
from prompt_ensemble import DeepPrompts, context_length, deep_sizes, tokenize_behind_context
from utils import InputError

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "dpam_layer": None,
    "dpam_mode": "vv",
    "n_ctx": 12,
    "ab_ctx": 12,
    "depth": None,
    "t_n_ctx": 4,
}
TRAINING = {
    "epoch": 15,
    "learning_rate": 0.001,
    "batch_size": 8,
    "lambda_local": 4.0,
    "lambda_glocal": 1.0,
    "margin": 0.0,
}
TESTING = {"sigma": 8.0}

PLACEHOLDERS = {"global": "g", "local": "l"}


class Method(Base):
    """See `Base`; features, AnomalyCLIP's: image_features (B, D), patch_features (B, L, 1 + G*G, D)."""

    STATE = "prompt_learner"

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        sizes = (settings[name] for name in ("n_ctx", "ab_ctx", "depth", "t_n_ctx"))
        self.learner = GlocalLearner(model, *sizes)
        self.text_features: dict[str, torch.Tensor] = {}  # (2, 2, D) of each class, all the same

    @staticmethod
    def default_blocks(num_layers: int) -> list[int]:
        """The last block alone."""
        return [num_layers]

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
        """n_ctx, ab_ctx, depth and t_n_ctx of a GlocalLearner's state dict; InputError if it is not one."""
        lengths = {"n_ctx": context_length(state, "ctx_global_pos"), "ab_ctx": context_length(state, "ctx_global_neg")}
        return lengths | deep_sizes(state)

    def cache_key(self) -> dict:
        """AnomalyCLIP's: the two share their caches."""
        return super().cache_key() | {"encoder": "methods.anomalyclip"}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.model.encode(images, self.settings["features_list"])

    @classmethod
    def check_training(cls, settings: dict, dataset) -> list[str]:
        return [] if dataset.has_masks else ["the data set has no masks: training without the local loss"]

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Cross-entropy with the global pair, local loss with the local pair, and what pulls the two together."""
        global_pair, local_pair = self.learner()
        losses = {"image_loss": F.cross_entropy(class_logits(features["image_features"], global_pair), labels)}
        if masks is not None:
            maps = abnormal_maps(features["patch_features"], local_pair, self.model.image_size)
            losses["local_loss"] = self.settings["lambda_local"] * sum(local_loss(each, masks) for each in maps)
        glocal_loss = contrastive_loss(global_pair, local_pair, self.settings["margin"])
        return losses | {"glocal_loss": self.settings["lambda_glocal"] * glocal_loss}

    def set_classes(self, class_names: list[str]) -> None:
        self.text_features = dict.fromkeys(class_names, self.learner())

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        global_pair, local_pair = self.text_features[class_name]
        scores = class_probabilities(features["image_features"], global_pair)[:, 1]
        return scores, anomaly_map(features["patch_features"].unbind(1), local_pair)


class GlocalLearner(DeepPrompts):
    """Four prompts, a normal and an abnormal one for the image (global) and for its patches (local).

    Normal: [V1]..[VE] object. Abnormal: [V1]..[VE] [W1]..[WA] damaged object. So the abnormal prompt holds the normal
    context, too. The deep tokens are those of all four. The state dict has the names and shapes of the authors'.

    Args:
        n_ctx, ab_ctx: E and A, context vectors of a normal prompt, and those that an abnormal one has besides.
        model, depth, t_n_ctx: see `DeepPrompts`.
    """

    def __init__(
        self, model: AnomalyCLIP, n_ctx: int = 12, ab_ctx: int = 12, depth: int | None = None, t_n_ctx: int = 4
    ) -> None:
        super().__init__(model, n_ctx, depth, t_n_ctx)
        if ab_ctx < 1:
            raise InputError(f"ab_ctx {ab_ctx} must be at least 1")
        for kind in PLACEHOLDERS:
            setattr(self, f"ctx_{kind}_pos", self.context(n_ctx))
            setattr(self, f"ctx_{kind}_neg", self.context(ab_ctx))
        self.add_deep_prompts()
        for kind, placeholder in PLACEHOLDERS.items():
            for state, length, text in (("pos", n_ctx, "object."), ("neg", n_ctx + ab_ctx, "damaged object.")):
                tokens, embeddings = tokenize_behind_context(model, length, [text], placeholder)
                self.add_frozen_parts(f"{kind}_{state}", tokens[0], embeddings[0], length)
        self.to(model.device)

    def prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (4, 77, width) and ids (4, 77): global normal, global abnormal, local normal, local abnormal."""
        embeddings, tokens = [], []
        for kind in PLACEHOLDERS:
            normal, abnormal = (getattr(self, f"ctx_{kind}_{state}") for state in ("pos", "neg"))
            for state, context in (("pos", [normal]), ("neg", [normal, abnormal])):
                name = f"{kind}_{state}"
                parts = [getattr(self, f"token_prefix_{name}"), *context, getattr(self, f"token_suffix_{name}")]
                embeddings.append(torch.cat(parts, dim=2)[0])  # (1, 77, width)
                tokens.append(getattr(self, f"tokenized_prompts_{name}")[0])
        return torch.cat(embeddings), torch.cat(tokens)

    def forward(self) -> torch.Tensor:
        """Text features (2, 2, D), the global and the local pair, each normal and abnormal; unnormalised."""
        return self.encode(*self.prompts()).unflatten(0, (2, 2))


def contrastive_loss(global_pair: torch.Tensor, local_pair: torch.Tensor, margin: float = 0) -> torch.Tensor:
    """What pulls each global feature to the local one of its state, and from that of the other; a scalar.

    Both pairs (2, D), any length of vector. With the released margin of 0 nothing is pushed away: the loss is the sum
    of the two squared distances.
    """
    global_pair, local_pair = F.normalize(global_pair, dim=-1), F.normalize(local_pair, dim=-1)
    near = F.pairwise_distance(global_pair, local_pair)
    far = F.pairwise_distance(global_pair, local_pair.flip(0))
    return (near**2 + (margin - far).clamp(min=0) ** 2).sum()
