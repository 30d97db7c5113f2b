"""CoOp: learned context vectors before `normal [cls]` and `anomalous [cls]` (Zhou et al., IJCV 2022)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from AnomalyCLIP_lib import AnomalyCLIP
from AnomalyCLIP_lib.similarity import class_logits
from AnomalyCLIP_lib.text import encode_prompts
from methods._plain_clip import STATES, PlainClip
from prompt_ensemble import tokenize_behind_context
from utils import InputError

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


class Method(PlainClip):
    """CoOp brought to anomaly detection as AnomalyCLIP's appendix A says: its prompts, otherwise its own settings.

    From CoOp come the context (see `CoOpLearner`), the loss, the optimiser and its schedule, batch size and epochs
    (those of its 16-shot runs). Resolution and preprocessing are those of the other methods; images are not augmented,
    for their features are frozen. The prompts name the object, so a context learned on some objects is used for others.
    """

    STATE = "context"
    TRAINING_FEATURES = ("image_features",)
    SCHEDULED = True

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        self.learner = CoOpLearner(model, settings["n_ctx"], settings["csc"])

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict[str, int | bool]:
        """n_ctx and csc of a CoOpLearner's state dict."""
        shape = tuple(getattr(state.get("ctx"), "shape", ()))
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 2):
            raise InputError(
                "the checkpoint holds no CoOp context (no ctx of shape (n_ctx, width) or (2, n_ctx, width))"
            )
        return {"n_ctx": shape[-2], "csc": len(shape) == 3}

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Cross-entropy of normal and anomalous; each image is compared with the two prompts of its own class."""
        return {"image_loss": F.cross_entropy(self.logits(features["image_features"], class_names), labels)}

    def logits(self, image_features: torch.Tensor, class_names: list[str]) -> torch.Tensor:
        """(B, 2): cosines of image features (B, D) with the prompts of their classes, at CLIP's own logit scale."""
        distinct = sorted(set(class_names))
        text_features = self.learner(distinct)[[distinct.index(name) for name in class_names]]  # (B, 2, D)
        return class_logits(image_features, text_features, temperature=1 / self.model.clip.logit_scale.exp())

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum and weight decay, as CoOp's."""
        return torch.optim.SGD(
            self.learner.parameters(), lr=self.settings["learning_rate"], momentum=0.9, weight_decay=5e-4
        )

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The first epoch warms up at a constant rate; the second begins a half cosine over --epoch epochs, at its top.

        So the last epoch stops one step short of the cosine's end, as in CoOp's code.
        """
        if epoch == 1:
            return WARMUP_LEARNING_RATE
        return self.settings["learning_rate"] * (1 + math.cos(math.pi * (epoch - 2) / self.settings["epoch"])) / 2

    def text_features_of(self, class_names: list[str]) -> torch.Tensor:
        return self.learner(class_names)


class CoOpLearner(nn.Module):
    """CoOp's context vectors before the two states of an object (AnomalyCLIP, appendix A).

    Normal: [V1]..[VN] normal bottle. Abnormal: [V1]..[VN] anomalous bottle. Underscores in class names become spaces
    and a full stop ends the prompt, as in CoOp's code.

    Args:
        model: the frozen model; it is used, not owned: it is not among the learner's parameters.
        n_ctx: N, context vectors per prompt.
        csc: a context of its own for each state; otherwise both share one. CoOp's class-specific contexts belong to
            the classes of its classifier, which here are normal and anomalous: only these exist for other objects too.
    """

    def __init__(self, model: AnomalyCLIP, n_ctx: int = 16, csc: bool = False) -> None:
        super().__init__()
        if n_ctx < 1:
            raise InputError(f"n_ctx {n_ctx} must be at least 1")
        self._model = (model,)  # a tuple hides the frozen model from parameters() and state_dict()
        self.n_ctx = n_ctx
        shape = (n_ctx, model.clip.ln_final.weight.shape[0])
        self.ctx = nn.Parameter(torch.empty((2, *shape) if csc else shape).normal_(std=0.02))
        self.to(model.device)

    def prompts(self, class_names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings (2 C, 77, width), normal and abnormal alternating, and their token ids (2 C, 77)."""
        names = [name.replace("_", " ") for name in class_names]
        texts = [f"{state.format(name)}." for name in names for state in STATES]
        tokens, embeddings = tokenize_behind_context(self._model[0], self.n_ctx, texts)
        context = self.ctx.expand(2, -1, -1).repeat(len(names), 1, 1)  # (2 C, N, width)
        return torch.cat([embeddings[:, :1], context, embeddings[:, 1 + self.n_ctx :]], dim=1), tokens

    def forward(self, class_names: list[str]) -> torch.Tensor:
        """Text features (C, 2, D), normal and abnormal, unnormalised."""
        embeddings, tokens = self.prompts(class_names)
        features = encode_prompts(self._model[0].clip, embeddings, tokens.argmax(dim=-1))
        return features.unflatten(0, (len(class_names), 2))
