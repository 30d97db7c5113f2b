"""AnomalyCLIP's two learned prompts (paper sections 3.2 and 3.3), and what prompts of several methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from AnomalyCLIP_lib.errors import InputError
from AnomalyCLIP_lib.text import encode_prompts

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


def default_depth(num_text_layers: int) -> int:
    """Text blocks with learned vectors if nothing else is said: 9, or all of a tower with fewer."""
    return min(9, num_text_layers)


class DeepPrompts(nn.Module):
    """What learners of prompts share that also have learned tokens deep in the text encoder (section 3.3, equation 3).

    Args:
        model: the frozen model; it is used, not owned: it is not among the learner's parameters.
        n_ctx: context vectors of the shortest prompt.
        depth: text blocks that see learned vectors, counting the prompt as the first; 1 adds none. Default 9, or all
            blocks of a text tower with fewer.
        t_n_ctx: learned tokens per deep block.
    """

    def __init__(self, model: AnomalyCLIP, n_ctx: int, depth: int | None, t_n_ctx: int) -> None:
        super().__init__()
        depth = default_depth(model.num_text_layers) if depth is None else depth
        if not 1 <= depth <= model.num_text_layers:
            raise InputError(f"depth {depth} is out of range; the text tower has {model.num_text_layers} blocks")
        if n_ctx < 1 or t_n_ctx < 1:
            raise InputError(f"n_ctx {n_ctx} and t_n_ctx {t_n_ctx} must be at least 1")
        if t_n_ctx > n_ctx + 1 and depth > 1:
            raise InputError(
                f"t_n_ctx {t_n_ctx} would overwrite the end of a prompt with n_ctx {n_ctx}; use fewer tokens"
            )
        self._model = (model,)  # a tuple hides the frozen model from parameters() and state_dict()
        self.n_ctx, self.depth, self.t_n_ctx = n_ctx, depth, t_n_ctx
        self.width = model.clip.ln_final.weight.shape[0]

    def context(self, length: int) -> nn.Parameter:
        """Context vectors (1, 1, length, width), not yet trained."""
        return nn.Parameter(torch.empty(1, 1, length, self.width).normal_(std=0.02))

    def add_deep_prompts(self) -> None:
        """Make the learned tokens of the deep blocks; behind the context, so that a seed gives the same numbers."""
        shape = (self.t_n_ctx, self.width)
        self.compound_prompts_text = nn.ParameterList(
            [nn.Parameter(torch.empty(shape).normal_(std=0.02)) for _ in range(self.depth - 1)]
        )
        # Nothing reads these projections; the released checkpoints hold them, so they keep files exchangeable.
        self.compound_prompt_projections = nn.ModuleList(
            [nn.Linear(self.width, UNUSED_PROJECTION_WIDTH) for _ in range(self.depth - 1)]
        ).requires_grad_(False)
        for parameter in self.compound_prompt_projections.parameters():
            nn.init.zeros_(parameter)

    def add_frozen_parts(self, name: str, tokens: torch.Tensor, embeddings: torch.Tensor, length: int) -> None:
        """Keep ids (77,) and embeddings (77, width) of a prompt with `length` context vectors, named as the authors do.

        name: what tells the prompts of a learner apart.
        """
        self.register_buffer(f"token_prefix_{name}", embeddings[None, None, :1])
        self.register_buffer(f"token_suffix_{name}", embeddings[None, None, 1 + length :])
        self.register_buffer(f"tokenized_prompts_{name}", tokens[None, None])

    def encode(self, embeddings: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Text features (P, D), unnormalised, of prompts given as embeddings (P, 77, width) and ids (P, 77)."""
        # The released code runs its deep tokens in half precision; its checkpoints need that rounding for its numbers.
        deep = [prompt.half().to(embeddings.dtype) for prompt in self.compound_prompts_text]
        return encode_prompts(self._model[0].clip, embeddings, tokens.argmax(dim=-1), deep)


class PromptLearner(DeepPrompts):
    """The only trained part: context vectors of both prompts and the learned tokens deep in the text encoder.

    Normal: [V1]..[VE] object. Abnormal: [W1]..[WE] damaged object. (Paper section 3.2; the tokens: section 3.3,
    equation 3.) The state dict has the names and shapes of the authors' released checkpoints.

    Args:
        n_ctx: E, context vectors per prompt.
        model, depth, t_n_ctx: see `DeepPrompts`.
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
        super().__init__(model, n_ctx, depth, t_n_ctx)
        self.class_name = class_name
        self.ctx_pos, self.ctx_neg = self.context(n_ctx), self.context(n_ctx)
        self.add_deep_prompts()
        tokens, embeddings = self._tokenize([class_name])
        for which, name in enumerate(("pos", "neg")):
            self.add_frozen_parts(name, tokens[which], embeddings[which], n_ctx)
        self.to(model.device)

    def _tokenize(self, class_names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (2 C, 77) and frozen embeddings of the prompts of C classes, normal and abnormal alternating."""
        texts = [f"{state}{name}." for name in class_names for state in ("", "damaged ")]
        return tokenize_behind_context(self._model[0], self.n_ctx, texts)

    def prompts(self, class_names: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings (2 C, 77, width), normal and abnormal alternating, and their token ids (2 C, 77)."""
        if class_names is None:
            normal = torch.cat([self.token_prefix_pos, self.ctx_pos, self.token_suffix_pos], dim=2)[0]  # (1, 77, width)
            abnormal = torch.cat([self.token_prefix_neg, self.ctx_neg, self.token_suffix_neg], dim=2)[0]
            tokens = torch.cat([self.tokenized_prompts_pos[0], self.tokenized_prompts_neg[0]])
            return torch.cat([normal, abnormal]), tokens
        tokens, embeddings = self._tokenize(class_names)
        context = torch.cat([self.ctx_pos[0], self.ctx_neg[0]]).repeat(len(class_names), 1, 1)  # (2 C, E, width)
        return torch.cat([embeddings[:, :1], context, embeddings[:, 1 + self.n_ctx :]], dim=1), tokens

    def forward(self, class_names: list[str] | None = None) -> torch.Tensor:
        """Text features (2, D), normal and abnormal, unnormalised; (C, 2, D) with `class_names` (object-aware)."""
        embeddings, tokens = self.prompts(class_names)
        features = self.encode(embeddings, tokens)
        return features if class_names is None else features.unflatten(0, (len(class_names), 2))


def learner_sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
    """n_ctx, depth and t_n_ctx of a PromptLearner's state dict; InputError if it is not one."""
    return {"n_ctx": context_length(state, "ctx_pos")} | deep_sizes(state)


def context_length(state: dict[str, torch.Tensor], name: str) -> int:
    """How many context vectors a learner's state dict has under this name; InputError if it has none."""
    if name not in state or state[name].ndim != 4 or not state[name].numel():
        raise InputError(f"the checkpoint holds no prompt learner (no {name} of shape (1, 1, n_ctx, width))")
    return state[name].shape[2]


def deep_sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
    """depth and t_n_ctx of the state dict of a `DeepPrompts`; without deep tokens depth alone."""
    deep = [value for key, value in state.items() if key.startswith("compound_prompts_text.")]
    if any(value.ndim != 2 for value in deep):
        raise InputError("the checkpoint holds no prompt learner (compound_prompts_text is not (t_n_ctx, width))")
    return {"depth": len(deep) + 1} | ({"t_n_ctx": deep[0].shape[0]} if deep else {})


def tokenize_behind_context(
    model: AnomalyCLIP, n_ctx: int, texts: list[str], placeholder: str = "X"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (P, 77) and frozen embeddings (P, 77, width) of `texts` behind n_ctx placeholders.

    The embeddings of the placeholders, at 1..n_ctx, are there to be replaced by learned context vectors. InputError if
    a prompt is longer than the text tower takes.
    """
    texts = [" ".join([placeholder] * n_ctx + [text]) for text in texts]
    tokens = model.tokenizer(texts).to(model.device)
    longest = max(texts, key=lambda text: len(model.tokenizer.encode(text)))
    length = len(model.tokenizer.encode(longest)) + 2
    if length > tokens.shape[1]:
        raise InputError(
            f"n_ctx {n_ctx} and {longest[2 * n_ctx :]!r} make a prompt of {length} tokens, but the text tower takes "
            f"{tokens.shape[1]}; lower n_ctx or shorten the class name"
        )
    return tokens, model.clip.token_embedding(tokens).detach()


def hand_written_features(model: AnomalyCLIP, class_names: list[str]) -> torch.Tensor:
    """Text features (C, 2, D) of the hand-written ensemble: unit vectors averaged over states and templates.

    Underscores in class names become spaces.
    """
    features = []
    for name in class_names:
        for states in (NORMAL_STATES, ABNORMAL_STATES):
            prompts = ensemble_prompts(states, TEMPLATES, name.replace("_", " "))
            features.append(mean_feature(model, prompts))
    return torch.stack(features).unflatten(0, (len(class_names), 2))


def mean_feature(model: AnomalyCLIP, prompts: list[str]) -> torch.Tensor:
    """The mean (D,) of the unit text features of prompts, itself not of unit length."""
    return F.normalize(model.encode_text(prompts), dim=-1).mean(dim=0)


def ensemble_prompts(states: tuple[str, ...], templates: tuple[str, ...], class_name: str) -> list[str]:
    """Every state of an object in every template, states outer, templates inner."""
    return [template.format(state.format(class_name)) for state in states for template in templates]
