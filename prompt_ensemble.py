"""Every text prompt there is: the two learned, object-agnostic ones (paper section 3.2) and hand-written ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import nn

from AnomalyCLIP_lib.text import encode_prompts
from utils import InputError

if TYPE_CHECKING:
    from AnomalyCLIP_lib import AnomalyCLIP

UNUSED_PROJECTION_WIDTH = 896

# The hand-written ensemble of VAND / APRIL-GAN, which the released code carries too.
NORMAL_STATES = (
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage",
)  # fmt: skip
ABNORMAL_STATES = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    "a bad photo of a {}.", "a low resolution photo of the {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
    "a bright photo of a {}.", "a dark photo of the {}.", "a photo of my {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a bright photo of the {}.",
    "a cropped photo of a {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.", "a photo of the {}.",
    "a good photo of the {}.", "a photo of one {}.", "a close-up photo of the {}.", "a photo of a {}.",
    "a low resolution photo of a {}.", "a photo of a large {}.", "a blurry photo of a {}.",
    "a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a photo of the small {}.",
    "a photo of the large {}.", "a black and white photo of a {}.", "a dark photo of a {}.", "a photo of a cool {}.",
    "a photo of a small {}.", "there is a {} in the scene.", "there is the {} in the scene.",
    "this is a {} in the scene.", "this is the {} in the scene.", "this is one {} in the scene.",
)  # fmt: skip

# WinCLIP's ensemble; its normal states are NORMAL_STATES. Of 21 templates one stands there twice, as in anomalib and in
# the code of the AnomalyCLIP authors; the paper lists 22.
WINCLIP_ABNORMAL_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
WINCLIP_TEMPLATES = (
    "a cropped photo of the {}.", "a close-up photo of a {}.", "a close-up photo of the {}.",
    "a bright photo of a {}.", "a bright photo of the {}.", "a dark photo of the {}.", "a dark photo of a {}.",
    "a jpeg corrupted photo of the {}.", "a jpeg corrupted photo of the {}.", "a blurry photo of the {}.",
    "a blurry photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a photo of a small {}.",
    "a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}.",
    "a photo of the {} for visual inspection.", "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.", "a photo of a {} for anomaly detection.",
)  # fmt: skip

# The rows CLIP and CLIP-AC (AnomalyCLIP, appendix): two sentences, and two states for CLIP's 80 ImageNet templates.
# CoOp learns what stands before the same two states.
CLIP_PROMPTS = ("A photo of a normal {}", "A photo of an anomalous {}")
CLIP_STATES = ("normal {}", "anomalous {}")


class PromptLearner(nn.Module):
    """The only trained part: context vectors of both prompts and the learned tokens deep in the text encoder.

    Normal: [V1]..[VE] object. Abnormal: [W1]..[WE] damaged object. (Paper section 3.2, equation 1.) The state dict has
    the names and shapes of the authors' released checkpoints.

    Args:
        model: the frozen model; it is used, not owned: it is not among the learner's parameters.
        n_ctx: E, context vectors per prompt.
        depth: text blocks that see learned tokens, the first counting the prompt itself; 1: none deep. Default 9, or
            all blocks of a text tower with fewer.
        t_n_ctx: learned tokens per deep block.
        class_name: the word after the context; object-aware prompts pass class names to `forward`.
    """

    def __init__(
        self,
        model: AnomalyCLIP,
        n_ctx: int = 12,
        depth: int | None = None,
        t_n_ctx: int = 4,
        class_name: str = "object",
    ) -> None:
        super().__init__()
        depth = min(9, model.num_text_layers) if depth is None else depth
        if not 1 <= depth <= model.num_text_layers:
            raise InputError(f"depth {depth} is out of range; the text tower has {model.num_text_layers} blocks")
        if n_ctx < 1 or t_n_ctx < 1:
            raise InputError(f"n_ctx {n_ctx} and t_n_ctx {t_n_ctx} must be at least 1")
        if t_n_ctx > n_ctx + 1 and depth > 1:
            raise InputError(
                f"t_n_ctx {t_n_ctx} would overwrite the end of a prompt with n_ctx {n_ctx}; use fewer tokens"
            )
        self._model = (model,)  # a tuple hides the frozen model from parameters() and state_dict()
        self.n_ctx, self.depth, self.t_n_ctx, self.class_name = n_ctx, depth, t_n_ctx, class_name
        width = model.clip.ln_final.weight.shape[0]

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).normal_(std=0.02))

        self.ctx_pos, self.ctx_neg = normal(1, 1, n_ctx, width), normal(1, 1, n_ctx, width)
        self.compound_prompts_text = nn.ParameterList([normal(t_n_ctx, width) for _ in range(depth - 1)])
        # Nothing reads these projections; the released checkpoints hold them, so they keep files exchangeable.
        self.compound_prompt_projections = nn.ModuleList(
            [nn.Linear(width, UNUSED_PROJECTION_WIDTH) for _ in range(depth - 1)]
        ).requires_grad_(False)
        for parameter in self.compound_prompt_projections.parameters():
            nn.init.zeros_(parameter)

        tokens, embeddings = self._tokenize([class_name])
        for which, name in enumerate(("pos", "neg")):
            self.register_buffer(f"token_prefix_{name}", embeddings[which, None, None, :1])
            self.register_buffer(f"token_suffix_{name}", embeddings[which, None, None, 1 + n_ctx :])
            self.register_buffer(f"tokenized_prompts_{name}", tokens[which, None, None])
        self.to(model.device)

    def _tokenize(self, class_names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (2 C, 77) and frozen embeddings of the prompts of C classes, normal and abnormal alternating."""
        model = self._model[0]
        context = " ".join(["X"] * self.n_ctx)
        texts = [f"{context} {state}{name}." for name in class_names for state in ("", "damaged ")]
        tokens = model.tokenizer(texts).to(model.device)
        longest = len(model.tokenizer.encode(max(texts, key=len))) + 2
        if longest > tokens.shape[1]:
            raise InputError(
                f"n_ctx {self.n_ctx} makes a prompt of {longest} tokens; the text tower takes {tokens.shape[1]}"
            )
        return tokens, model.clip.token_embedding(tokens).detach()

    def prompts(self, class_names: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings (2 C, 77, width), normal and abnormal alternating, and their token ids (2 C, 77)."""
        if class_names is None:
            halves = [(self.token_prefix_pos, self.ctx_pos, self.token_suffix_pos)]
            halves += [(self.token_prefix_neg, self.ctx_neg, self.token_suffix_neg)]
            embeddings = torch.cat([torch.cat(half, dim=2)[0] for half in halves])
            return embeddings, torch.cat([self.tokenized_prompts_pos[0], self.tokenized_prompts_neg[0]])
        tokens, embeddings = self._tokenize(class_names)
        context = torch.cat([self.ctx_pos[0], self.ctx_neg[0]]).repeat(len(class_names), 1, 1)
        return torch.cat([embeddings[:, :1], context, embeddings[:, 1 + self.n_ctx :]], dim=1), tokens

    def forward(self, class_names: list[str] | None = None) -> torch.Tensor:
        """Text features (2, D), normal and abnormal, unnormalised; (C, 2, D) with `class_names` (object-aware)."""
        embeddings, tokens = self.prompts(class_names)
        # The released code runs its deep tokens in half precision: only rounded do its checkpoints give its numbers.
        deep = [prompt.half().to(embeddings.dtype) for prompt in self.compound_prompts_text]
        features = encode_prompts(self._model[0].clip, embeddings, tokens.argmax(dim=-1), deep)
        return features if class_names is None else features.unflatten(0, (len(class_names), 2))


def hand_written_features(model: AnomalyCLIP, class_names: list[str]) -> torch.Tensor:
    """Text features (C, 2, D) of the hand-written ensemble: unit vectors averaged over states and templates.

    Underscores in class names become spaces.
    """
    features = []
    for name in class_names:
        for states in (NORMAL_STATES, ABNORMAL_STATES):
            filled = [state.format(name.replace("_", " ")) for state in states]
            prompts = [template.format(state) for state in filled for template in TEMPLATES]
            features.append(F.normalize(model.encode_text(prompts), dim=-1).mean(dim=0))
    return torch.stack(features).unflatten(0, (len(class_names), 2))


def clip_features(model: AnomalyCLIP, class_names: list[str]) -> torch.Tensor:
    """Text features (C, 2, D), unnormalised, of the two sentences of row CLIP; class names as they are given."""
    prompts = [prompt.format(name) for name in class_names for prompt in CLIP_PROMPTS]
    return model.encode_text(prompts).unflatten(0, (len(class_names), 2))


def clip_ac_prompts(class_name: str) -> list[str]:
    """The 160 prompts of row CLIP-AC: both states in each of CLIP's ImageNet templates (Radford et al., 2021).

    The templates' articles stay as they are: `a bad photo of a anomalous bottle.`
    """
    return [template(state.format(class_name)) for state in CLIP_STATES for template in OPENAI_IMAGENET_TEMPLATES]


def clip_ac_features(model: AnomalyCLIP, class_names: list[str], raw_mean: bool = False) -> torch.Tensor:
    """Text features (C, 2, D), unit vectors, of row CLIP-AC: the mean over the 80 prompts of each state.

    raw_mean: average the embeddings as they are rather than, as CLIP does, as unit vectors.
    """
    features = []
    for name in class_names:
        embeddings = model.encode_text(clip_ac_prompts(name)).unflatten(0, (2, -1))
        embeddings = embeddings if raw_mean else F.normalize(embeddings, dim=-1)
        features.append(F.normalize(embeddings.mean(dim=1), dim=-1))
    return torch.stack(features)


def load_prompt_learner(
    model: AnomalyCLIP, state: dict[str, torch.Tensor], class_name: str = "object"
) -> PromptLearner:
    """PromptLearner from a checkpoint's state dict (ours or the authors'); its sizes are read from the tensors.

    Raises InputError if the tensors are not those of a prompt learner for this model's text tower.
    """
    sizes = learner_sizes(state)
    width, own_width = state["ctx_pos"].shape[-1], model.clip.ln_final.weight.shape[0]
    if width != own_width:
        raise InputError(
            f"the checkpoint's prompts have width {width}, the model's text tower {own_width}; name its model"
        )
    learner = PromptLearner(model, **sizes, class_name=class_name)
    own = learner.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        raise InputError(
            f"the checkpoint is not one of AnomalyCLIP's prompt learner: {wrong[0]} is missing or does not fit"
        )
    learner.load_state_dict(state)
    return learner


def learner_sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
    """n_ctx, depth and t_n_ctx of a prompt learner's state dict; InputError if it is none."""
    if "ctx_pos" not in state or state["ctx_pos"].ndim != 4:
        raise InputError("the checkpoint holds no prompt learner (no ctx_pos of shape (1, 1, n_ctx, width))")
    deep = [value for key, value in state.items() if key.startswith("compound_prompts_text.")]
    sizes = {"n_ctx": state["ctx_pos"].shape[2], "depth": len(deep) + 1}
    return sizes | ({"t_n_ctx": deep[0].shape[0]} if deep else {})


class CoOpLearner(nn.Module):
    """CoOp's context vectors (Zhou et al., IJCV 2022) before the two states of an object (AnomalyCLIP, appendix).

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
        model = self._model[0]
        context = " ".join(["X"] * self.n_ctx)  # as many tokens, whose embeddings are then replaced
        names = [name.replace("_", " ") for name in class_names]
        texts = [f"{context} {state.format(name)}." for name in names for state in CLIP_STATES]
        tokens = model.tokenizer(texts).to(model.device)
        longest = 2 + max(len(model.tokenizer.encode(text)) for text in texts)
        if longest > tokens.shape[1]:
            raise InputError(
                f"n_ctx {self.n_ctx} makes a prompt of {longest} tokens; the text tower takes {tokens.shape[1]}"
            )
        embeddings = model.clip.token_embedding(tokens)
        learned = self.ctx.expand(2, -1, -1).repeat(len(names), 1, 1)
        return torch.cat([embeddings[:, :1], learned, embeddings[:, 1 + self.n_ctx :]], dim=1), tokens

    def forward(self, class_names: list[str]) -> torch.Tensor:
        """Text features (C, 2, D), normal and abnormal, unnormalised."""
        embeddings, tokens = self.prompts(class_names)
        features = encode_prompts(self._model[0].clip, embeddings, tokens.argmax(dim=-1))
        return features.unflatten(0, (len(class_names), 2))


def coop_sizes(state: dict[str, torch.Tensor]) -> dict[str, int | bool]:
    """n_ctx and csc of a CoOp learner's state dict; InputError if it is none."""
    shape = tuple(getattr(state.get("ctx"), "shape", ()))
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 2):
        raise InputError("the checkpoint holds no CoOp context (no ctx of shape (n_ctx, width) or (2, n_ctx, width))")
    return {"n_ctx": shape[-2], "csc": len(shape) == 3}
