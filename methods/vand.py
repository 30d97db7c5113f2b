"""VAND / APRIL-GAN, zero-shot: a hand-written prompt ensemble, and one linear layer per tapped block that is trained.

Chen, Han and Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND
Workshop Challenge Tracks 1&2: 1st Place on Zero-shot AD and 4th Place on Few-shot AD", 2023; details as in its released
code (ByChelsea/VAND-APRIL-GAN). That code trains 15 epochs on VisA. On MVTec AD it trains 3, and replaces an image with
probability 0.2 by a mosaic of four of its class: --epoch 3 --mosaics 0.2, see mosaics.py.
"""

from __future__ import annotations

import copy
import re

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import QuickGELU
from torch import nn

from AnomalyCLIP_lib.dpam import run_blocks
from AnomalyCLIP_lib.similarity import class_logits, to_grid
from AnomalyCLIP_lib.text import encode_prompts
from loss import BinaryDiceLoss, FocalLoss
from methods._base import Base
from prompt_ensemble import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES, ensemble_prompts
from utils import InputError

# At any image size but the weights' own, so at 518 px too, the released code builds both towers with exact GELU, though
# OpenAI's weights were made for QuickGELU. Its checkpoints presumably rest on that, so it is the default here.
SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "quick_gelu": False,
}
TRAINING = {"epoch": 15, "learning_rate": 0.001, "batch_size": 8, "mosaics": 0.0}
TESTING = {"sigma": 0.0}

TEMPERATURE = 0.01  # hard-coded in the released code, for scores and maps alike


class Method(Base):
    """See `Base`; features: image_features (B, D), patch_tokens (B, L, G*G, width), L tapped blocks."""

    STATE = "trainable_linearlayer"
    TRAINING_FEATURES = ("patch_tokens",)

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        self._clip = (released_towers(model.clip, model.grid, exact_gelu=settings["activation"] == "GELU"),)
        width, dimension = model.clip.visual.proj.shape
        self.learner = LinearLayers(width, dimension, len(settings["features_list"])).to(model.device)
        self.text_features: dict[str, torch.Tensor] = {}  # (2, D) of each class
        self.focal, self.dice = FocalLoss(), BinaryDiceLoss()

    @property
    def clip(self) -> CLIP:
        return self._clip[0]

    @classmethod
    def complete(cls, settings: dict, model) -> dict:
        """As in `Base`, but the activation is the one that the towers are run with."""
        native = model.image_size == model.clip.visual.image_size[0]
        keeps = settings["quick_gelu"] or native
        return super().complete(settings, model) | {"activation": model.activation if keeps else "GELU"}

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict:
        """Nothing: which blocks were tapped cannot be read from the tensors."""
        if not state or not all(re.fullmatch(r"fc\.\d+\.(weight|bias)", name) for name in state):
            raise InputError("the checkpoint does not hold VAND's linear layers (fc.0.weight, fc.0.bias, ...)")
        return {}

    def cache_key(self) -> dict:
        return super().cache_key() | {"quick_gelu": self.settings["quick_gelu"]}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The class token after ln_post and proj, and the tapped blocks' output as it is, without the class token."""
        visual = self.clip.visual
        run = run_blocks(visual, images, self.settings["features_list"])
        image_features = visual.ln_post(run.class_token) @ visual.proj
        return {"image_features": image_features, "patch_tokens": torch.stack(run.tokens, dim=1)[:, :, 1:]}

    @classmethod
    def check_training(cls, settings: dict, dataset) -> list[str]:
        if not dataset.has_masks:
            raise InputError(f"{dataset.root} has no masks, and VAND's linear layers are trained on masks alone")
        return []

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Focal + Dice of the abnormal channel, summed over the tapped blocks; each image has its own class's texts."""
        self.set_classes(class_names)
        text_features = torch.stack([self.text_features[name] for name in class_names])  # (B, 2, D)
        maps = self.probability_maps(features["patch_tokens"], text_features)
        return {"local_loss": sum(self.focal(both, masks) + self.dice(both[:, 1], masks) for both in maps)}

    def probability_maps(self, patch_tokens: torch.Tensor, text_features: torch.Tensor) -> list[torch.Tensor]:
        """P(normal), P(abnormal) of every pixel, (B, 2, S, S) for each tapped block.

        patch_tokens: (B, L, G*G, width); text_features: (2, D), or (B, 2, D), a pair per image. The logits, not the
        probabilities, are upsampled, and with align_corners, both unlike AnomalyCLIP.
        """
        maps = []
        for patch_features in self.learner(patch_tokens):
            logits = to_grid(class_logits(patch_features, text_features, TEMPERATURE))  # (B, 2, G, G)
            logits = F.interpolate(logits, size=self.model.image_size, mode="bilinear", align_corners=True)
            maps.append(logits.softmax(dim=1))
        return maps

    def set_classes(self, class_names: list[str]) -> None:
        """Frozen text features of classes, normal and abnormal, unit vectors; each class is encoded once."""
        for name in class_names:
            if name not in self.text_features:
                self.text_features[name] = torch.stack([self.mean_feature(texts) for texts in prompts(name)])

    def mean_feature(self, texts: list[str]) -> torch.Tensor:
        """Mean of the unit features of prompts, itself of unit length (D,)."""
        tokens = self.model.tokenizer(texts).to(self.model.device)  # (P, 77)
        features = encode_prompts(self.clip, self.clip.token_embedding(tokens), tokens.argmax(dim=-1))
        return F.normalize(F.normalize(features, dim=-1).mean(dim=0), dim=-1)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.sizes(state)
        blocks, layers = self.settings["features_list"], len({name.split(".")[1] for name in state})
        if layers != len(blocks):
            raise InputError(f"the checkpoint has {layers} linear layers, features_list {blocks} wants {len(blocks)}")
        super().load(state)

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """P(abnormal) of the images, in which the linear layers have no part; the tapped blocks' maps summed."""
        text_features = self.text_features[class_name]
        logits = class_logits(features["image_features"], text_features, TEMPERATURE)
        maps = self.probability_maps(features["patch_tokens"], text_features)
        return logits.softmax(dim=-1)[:, 1], sum(both[:, 1] for both in maps)


class LinearLayers(nn.Module):
    """A linear layer per tapped block, from the vision tower's width to the joint one; state dict as the authors'."""

    def __init__(self, width: int, dimension: int, layers: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(width, dimension) for _ in range(layers)])

    def forward(self, patch_tokens: torch.Tensor) -> list[torch.Tensor]:
        """(B, L, G*G, width) to L times (B, G*G, D), unnormalised."""
        return [linear(tokens) for linear, tokens in zip(self.fc, patch_tokens.unbind(1), strict=True)]


def prompts(class_name: str) -> tuple[list[str], list[str]]:
    """The normal and the abnormal prompts of a class, whose name is taken as it is, with its underscores."""
    return (
        ensemble_prompts(NORMAL_STATES, TEMPLATES, class_name),
        ensemble_prompts(ABNORMAL_STATES, TEMPLATES, class_name),
    )


def released_towers(clip: CLIP, grid: int, exact_gelu: bool) -> CLIP:
    """`clip` as VAND builds it, sharing its weights.

    Its position embeddings are those for grid x grid patches, resized bicubically with antialias (which makes a
    difference even when enlarging), and with `exact_gelu` GELU stands for QuickGELU.
    """
    # What is in deepcopy's memo is not copied: the twin has modules of its own on the same tensors.
    shared = {id(tensor): tensor for tensor in (*clip.parameters(), *clip.buffers())}
    twin = copy.deepcopy(clip, shared)
    for block in (*twin.visual.transformer.resblocks, *twin.transformer.resblocks):
        if exact_gelu and isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.gelu = nn.GELU()
    positions = clip.visual.positional_embedding  # (1 + g*g, width)
    own_grid = round((len(positions) - 1) ** 0.5)
    if own_grid != grid:
        patches = positions[1:].T.unflatten(1, (own_grid, own_grid)).unsqueeze(0)  # (1, width, g, g)
        patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
        resized = torch.cat([positions[:1], patches[0].flatten(1).T])
        twin.visual.positional_embedding = nn.Parameter(resized, requires_grad=False)
    return twin
