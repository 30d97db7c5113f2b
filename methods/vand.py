"""VAND / APRIL-GAN, zero-shot: a hand-written prompt ensemble, and one linear layer per tapped block that is trained.

Chen, Han and Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND
Workshop Challenge Tracks 1&2: 1st Place on Zero-shot AD and 4th Place on Few-shot AD", 2023; details as in its released
code (ByChelsea/VAND-APRIL-GAN). That code trains 15 epochs on VisA. On MVTec AD it trains 3, and replaces an image with
probability 0.2 by a mosaic of four of its class; there are no mosaics here, where an image has one set of features.
"""

from __future__ import annotations

import copy
import re

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import QuickGELU
from torch import nn

from AnomalyCLIP_lib.dpam import embed, run_block
from AnomalyCLIP_lib.text import encode_prompts
from loss import BinaryDiceLoss, FocalLoss
from methods._base import Base
from prompt_ensemble import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES
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
TRAINING = {"epoch": 15, "learning_rate": 0.001, "batch_size": 8}
TESTING = {"sigma": 0.0}

LOGIT_SCALE = 100  # hard-coded in the released code, for scores and maps alike


class Method(Base):
    """See `Base`; features: image_features (B, D), patch_tokens (B, L, G*G, width), L tapped blocks."""

    STATE = "trainable_linearlayer"
    TRAINING_FEATURES = ("patch_tokens",)

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        native = model.image_size == model.clip.visual.image_size[0]
        self._clip = (released_towers(model.clip, model.grid, exact_gelu=not (settings["quick_gelu"] or native)),)
        width, dimension = model.clip.visual.proj.shape
        self.learner = LinearLayers(width, dimension, len(settings["features_list"])).to(model.device)
        self.text_features: dict[str, torch.Tensor] = {}
        self.focal, self.dice = FocalLoss(), BinaryDiceLoss()

    @property
    def clip(self) -> CLIP:
        return self._clip[0]

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict:
        """Nothing: which blocks were tapped cannot be read from the tensors."""
        if not state or not all(re.fullmatch(r"fc\.\d+\.(weight|bias)", name) for name in state):
            raise InputError("the checkpoint does not hold VAND's linear layers (fc.0.weight, fc.0.bias, ...)")
        return {}

    def encoding(self) -> dict:
        return super().encoding() | {"quick_gelu": self.settings["quick_gelu"]}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The class token after ln_post and proj, and the tapped blocks' output as it is, without the class token."""
        visual, layers, taps = self.clip.visual, self.settings["features_list"], {}
        x = embed(visual, images)
        for number, block in enumerate(visual.transformer.resblocks, start=1):
            x = run_block(block, x)
            if number in layers:
                taps[number] = x[:, 1:]
        image_features = visual.ln_post(x[:, 0]) @ visual.proj
        return {"image_features": image_features, "patch_tokens": torch.stack([taps[n] for n in layers], dim=1)}

    def check_training(self, dataset) -> list[str]:
        if not dataset.has_masks:
            raise InputError(f"{dataset.root} has no masks, and VAND's linear layers are trained on masks alone")
        return []

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Focal + Dice of the abnormal channel, summed over the tapped blocks; each image has its own class's texts."""
        text_features = torch.stack([self.text_features_of(name) for name in class_names])
        maps = self.probability_maps(features["patch_tokens"], text_features)
        return {"local_loss": sum(self.focal(layer, masks) + self.dice(layer[:, 1], masks) for layer in maps)}

    def probability_maps(self, patch_tokens: torch.Tensor, text_features: torch.Tensor) -> list[torch.Tensor]:
        """P(normal), P(abnormal) of every pixel, (B, 2, S, S) for each tapped block.

        patch_tokens: (B, L, G*G, width); text_features: (2, D), or (B, 2, D), a pair per image. The logits, not the
        probabilities, are upsampled, and with align_corners, both unlike AnomalyCLIP.
        """
        side, size, maps = round(patch_tokens.shape[2] ** 0.5), self.model.image_size, []
        for patch_features in self.learner(patch_tokens):
            logits = similarity(patch_features, text_features).transpose(1, 2).unflatten(2, (side, side))
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
            maps.append(logits.softmax(dim=1))
        return maps

    def text_features_of(self, class_name: str) -> torch.Tensor:
        """Frozen text features (2, D) of a class, normal and abnormal, unit vectors; computed once."""
        if class_name not in self.text_features:
            features = []
            for texts in prompts(class_name):
                tokens = self.model.tokenizer(texts).to(self.model.device)
                encoded = encode_prompts(self.clip, self.clip.token_embedding(tokens), tokens.argmax(dim=-1))
                features.append(F.normalize(F.normalize(encoded, dim=-1).mean(dim=0), dim=-1))
            self.text_features[class_name] = torch.stack(features)
        return self.text_features[class_name]

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.sizes(state)
        taps, layers = self.settings["features_list"], len({name.split(".")[1] for name in state})
        if layers != len(taps):
            raise InputError(f"the checkpoint has {layers} linear layers, features_list {taps} wants {len(taps)}")
        super().load(state)

    def set_classes(self, class_names: list[str]) -> None:
        for name in class_names:
            self.text_features_of(name)

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """P(abnormal) of the images, in which the linear layers have no part; the tapped blocks' maps summed."""
        text_features = self.text_features_of(class_name)
        scores = similarity(features["image_features"], text_features).softmax(dim=-1)[:, 1]
        maps = self.probability_maps(features["patch_tokens"], text_features)
        return scores, sum(layer[:, 1] for layer in maps)


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
    normal, abnormal = (
        [template.format(state.format(class_name)) for state in states for template in TEMPLATES]
        for states in (NORMAL_STATES, ABNORMAL_STATES)
    )
    return normal, abnormal


def similarity(features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """100 cos(feature, text): (B, 2) or (B, N, 2) from (B, D) or (B, N, D), and unit vectors (2, D) or (B, 2, D)."""
    return LOGIT_SCALE * F.normalize(features, dim=-1) @ text_features.transpose(-1, -2)


def released_towers(clip: CLIP, grid: int, exact_gelu: bool) -> CLIP:
    """`clip` as VAND builds it, sharing its weights: position embeddings for grid x grid patches, resized bicubically
    with antialias (which makes a difference also when enlarging), and with `exact_gelu` GELU for QuickGELU."""
    twin = copy.deepcopy(clip, {id(tensor): tensor for tensor in (*clip.parameters(), *clip.buffers())})
    for block in (*twin.visual.transformer.resblocks, *twin.transformer.resblocks):
        if exact_gelu and isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.gelu = nn.GELU()
    positions = clip.visual.positional_embedding
    side = round((len(positions) - 1) ** 0.5)
    if side != grid:
        patches = positions[1:].T.unflatten(1, (side, side)).unsqueeze(0)
        patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
        resized = torch.cat([positions[:1], patches[0].flatten(1).T])
        twin.visual.positional_embedding = nn.Parameter(resized, requires_grad=False)
    return twin
