"""MRAD: no text; images and patches are compared with a memory of labelled ones, as they are or by learned layers.

Xu, Lv, Chen, Zhang and Zhang, "MRAD: Zero-Shot Anomaly Detection with Memory-Driven Retrieval", ICLR 2026, arXiv
2602.00522; details as in its released code. Here are MRAD-FT, which trains two pairs of linear layers, and MRAD-TF
(--training_free), which is the memory alone; MRAD-CLIP, which adds prompts, is not. The released code remembers and
trains on the test split of VisA, or of MVTec AD to be tested on VisA; a comment in it has --hide_patches 0.85 for that.
"""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from torch import nn

from AnomalyCLIP_lib.dpam import run_blocks
from AnomalyCLIP_lib.similarity import TEMPERATURE, to_grid, upsample
from loss import BinaryDiceLoss, FocalLoss
from methods._base import Base
from utils import LOGGER, InputError, shown

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "dpam_layer": None,
    "dpam_mode": "vv",
    "training_free": False,
}
TRAINING = {"epoch": 1, "learning_rate": 0.0004, "batch_size": 8, "hide_patches": 0.8, "hide_images": 0.95}
TESTING = {"sigma": 4.0, "score_share": 0.7}

LOWEST_LEARNING_RATE = 1e-6
TOP = 100  # the image score reads one pixel in so many, the highest
WINDOWS = (1, 3, 5)  # sides of the neighbourhoods that are averaged, in patches

PARTS = ("image", "patch")
STATES = ("normal", "anomalous")  # columns of the memory's values
MEMORY_NAMES = {f"{part}_{kind}" for part in PARTS for kind in ("keys", "values")}
LINEARS = ("image_proj.mlp1", "image_proj.mlp2", "patch_proj.fc.0", "patch_proj.fc.1")
LAYER_NAMES = {f"{linear}.{kind}" for linear in LINEARS for kind in ("weight", "bias")}


class Method(Base):
    """See `Base`; features: image_features (B, D), patch_tokens (B, G*G, width), see `encode`."""

    STATE = "mrad"
    SCHEDULED = True
    MEMORY = True

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        self.learner = Learner(*model.clip.visual.proj.shape, settings["training_free"]).to(model.device)
        self.keys: dict[str, torch.Tensor] = {}  # of `Learner.keys`
        self.focal, self.dice = FocalLoss(), BinaryDiceLoss()

    @classmethod
    def complete(cls, settings: dict, model) -> dict:
        """As in `Base`, but the DPAM stream begins after the first block (--dpam_layer 24 of 24)."""
        if settings["dpam_layer"] is None:
            settings = settings | {"dpam_layer": model.num_layers}
        return super().complete(settings, model)

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict[str, bool]:
        """training_free of a Learner's state dict; InputError if it is not one."""
        if not MEMORY_NAMES <= state.keys() <= MEMORY_NAMES | LAYER_NAMES:
            raise InputError("the checkpoint does not hold MRAD's memory (image_keys, image_values, patch_keys, ...)")
        return {"training_free": state.keys() == MEMORY_NAMES}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The class token times proj, without ln_post; the last block's patch tokens after ln_post, averaged."""
        visual, settings = self.model.clip.visual, self.settings
        run = run_blocks(visual, images, [self.model.num_layers], settings["dpam_layer"], settings["dpam_mode"])
        patch_tokens = neighbour_average(visual.ln_post(run.tokens[0])[:, 1:])
        return {"image_features": run.class_token @ visual.proj, "patch_tokens": patch_tokens}

    # the memory

    @classmethod
    def check_training(cls, settings: dict, dataset) -> list[str]:
        if settings["training_free"]:
            unused = [name for name in TRAINING if name != "batch_size" and settings[name] != TRAINING[name]]
            if unused:
                raise InputError(f"--{unused[0]} says how to train, and --training_free not to; leave one of them out")
        labels = {entry.label for entry in dataset.entries}
        for label, state in enumerate(STATES):
            if label not in labels:
                raise InputError(
                    f"{shown(dataset.root)} has no {state} images in its {dataset.split} split, and MRAD's memory "
                    "needs both kinds; choose another split or data set"
                )
        if not dataset.has_masks:
            raise InputError(
                f"{shown(dataset.root)} has no masks, and MRAD's memory of patches needs them; choose another data set"
            )
        return []

    def summarise(self, features, labels, masks) -> dict[str, torch.Tensor]:
        """Of each image its key (B, D) and label (B,); the keys of its two regions (B, 2, width), and which it has."""
        regions = patch_regions(masks, self.model.grid)
        return {
            "image_keys": F.normalize(features["image_features"], dim=-1),
            "labels": labels,
            "region_keys": F.normalize(regions.float() @ features["patch_tokens"], dim=-1),
            "has_region": regions.any(dim=-1),
        }

    def set_memory(self, summaries: dict[str, torch.Tensor]) -> None:
        """Keep a key of each image and of each region that any patch lies in, with their labels as values."""
        labels, has_region = summaries["labels"], summaries["has_region"]
        region_labels = torch.tensor([1, 0]).expand(len(labels), 2)  # as `patch_regions` orders them
        memory = {
            "image_keys": summaries["image_keys"],
            "image_values": F.one_hot(labels, 2).float(),
            "patch_keys": summaries["region_keys"][has_region],
            "patch_values": F.one_hot(region_labels[has_region], 2).float(),
        }
        self.learner.remember(memory)
        missing = missing_kind(memory)
        if missing:
            raise InputError(
                f"no {missing} is left for MRAD's memory, for a region counts only where it covers the middle of a "
                "patch; give a larger --image_size, or other images"
            )
        logging.getLogger(LOGGER).info(
            "memory: %d images, %d of them anomalous; %d regions, %d of them anomalous; too small defects: %d",
            *(len(labels), labels.sum(), has_region.sum(), has_region[:, 0].sum()),
            (labels > has_region[:, 0]).sum(),
        )

    # training

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Focal + Dice of the maps' abnormal channel; cross-entropy of the image's probabilities, taken for logits.

        From each query those entries of the memory are hidden that are most alike, the image's own among them.
        """
        queries, keys = self.queries(features), self.learner.keys()
        shares = {"image": self.settings["hide_images"], "patch": self.settings["hide_patches"]}
        hidden = {part: most_alike(queries[part], self.learner.memory(part)[0], shares[part]) for part in PARTS}
        image, patches = (self.retrieve(part, queries[part], keys[part], hidden[part]) for part in PARTS)
        maps = upsample(to_grid(patches), self.model.image_size)  # (B, 2, S, S)
        return {
            "focal_loss": self.focal(maps, masks),
            "dice_loss": self.dice(maps[:, 1], masks),
            "image_loss": F.cross_entropy(image / TEMPERATURE, labels),
        }

    @staticmethod
    def queries(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Unit vectors: of the images (B, D), and of their patches (B, G*G, width)."""
        named = {"image": "image_features", "patch": "patch_tokens"}
        return {part: F.normalize(features[name], dim=-1) for part, name in named.items()}

    def retrieve(
        self, part: str, queries: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """P(normal), P(anomalous) (..., 2): the mean of the memory's values, weighted by softmax over their keys.

        queries: (..., width), unit vectors; keys: (N, D) of `Learner.keys`; hidden: (..., N), entries left out.
        """
        similarities = self.learner.project(part, queries) @ keys.T  # (..., N)
        if hidden is not None:
            similarities = similarities.masked_fill(hidden, -torch.inf)
        return similarities.softmax(dim=-1) @ self.learner.memory(part)[1]

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Half a cosine over all steps of all epochs; the step after the last would be at its end."""
        highest, done = self.settings["learning_rate"], ((epoch - 1) * steps + step) / (self.settings["epoch"] * steps)
        lowest = min(LOWEST_LEARNING_RATE, highest)
        return lowest + (highest - lowest) * (1 + math.cos(math.pi * done)) / 2

    # testing

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.sizes(state)
        self.learner.make_room(state)
        super().load(state)
        for part in PARTS:
            keys, values = self.learner.memory(part)
            if not torch.allclose(keys.norm(dim=-1), keys.new_ones(len(keys)), atol=1e-2):
                raise InputError(f"the checkpoint's {part}_keys are not unit vectors")
            if not torch.equal(values, F.one_hot(values.argmax(dim=-1), 2).float()):
                raise InputError(f"the checkpoint's {part}_values are not rows of (1, 0) or (0, 1)")
        missing = missing_kind(self.learner.state_dict())
        if missing:
            raise InputError(f"the checkpoint's memory holds no {missing}")

    def set_classes(self, class_names: list[str]) -> None:
        """Nothing depends on the class; the memory's keys go through their layers once for all images."""
        self.keys = self.learner.keys()

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """P(anomalous) of the image, and of the patches."""
        queries = self.queries(features)
        image, patches = (self.retrieve(part, queries[part], self.keys[part]) for part in PARTS)
        return image[:, 1], to_grid(patches)[:, 1]

    def image_scores(self, scores: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """The image's probability, mixed with the mean of the highest percent of its smoothed map."""
        highest = maps.flatten(1).topk(max(1, self.model.image_size**2 // TOP)).values.mean(dim=1)
        share = self.settings["score_share"]
        return share * scores + (1 - share) * highest

    @classmethod
    def highest(cls, settings: dict) -> float:
        return 1.0


class Learner(nn.Module):
    """The memory, and a pair of linear layers for images and one for patches; their names are the authors'.

    The first layer of a pair is for queries, the second for keys; its bias has no effect on the softmax over the keys.

    Args:
        width, dimension: of the vision tower and of the joint space.
        training_free: no layers; what remains has no parameters.

    The memory, empty at first: image_keys (N, D) and patch_keys (M, width), unit vectors; image_values (N, 2) and
    patch_values (M, 2), rows of (1, 0), normal, or (0, 1), anomalous.
    """

    def __init__(self, width: int, dimension: int, training_free: bool) -> None:
        super().__init__()
        for part, length in (("image", dimension), ("patch", width)):
            self.register_buffer(f"{part}_keys", torch.empty(0, length))
            self.register_buffer(f"{part}_values", torch.empty(0, 2))
        linear = nn.Identity if training_free else nn.Linear  # Identity takes any arguments
        self.image_proj = nn.ModuleDict({name: linear(dimension, dimension) for name in ("mlp1", "mlp2")})
        self.patch_proj = nn.ModuleDict({"fc": nn.ModuleList([linear(width, dimension) for _ in range(2)])})

    def memory(self, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of "image" or "patch"."""
        return getattr(self, f"{part}_keys"), getattr(self, f"{part}_values")

    def remember(self, memory: dict[str, torch.Tensor]) -> None:
        """Replace the memory."""
        for name, value in memory.items():
            setattr(self, name, value.to(getattr(self, name).device))

    def make_room(self, state: dict[str, torch.Tensor]) -> None:
        """A memory of as many entries as that of a state dict has; InputError if it is none."""
        for part in PARTS:
            keys, values = (state[f"{part}_{kind}"] for kind in ("keys", "values"))
            if keys.ndim != 2 or not len(keys) or values.shape != (len(keys), 2):
                shapes = f"{tuple(keys.shape)} and {tuple(values.shape)}"
                raise InputError(f"the checkpoint's {part}_keys and {part}_values are {shapes}, not (N, width), (N, 2)")
            length = self.memory(part)[0].shape[1]
            room = {f"{part}_keys": torch.empty(len(keys), length), f"{part}_values": torch.empty(len(keys), 2)}
            self.remember(room)

    def project(self, part: str, queries: torch.Tensor) -> torch.Tensor:
        """Queries (..., width) of "image" or "patch" by their layer (..., D)."""
        return {"image": self.image_proj["mlp1"], "patch": self.patch_proj["fc"][0]}[part](queries)

    def keys(self) -> dict[str, torch.Tensor]:
        """The keys of both parts by their layers, each (N, D)."""
        return {"image": self.image_proj["mlp2"](self.image_keys), "patch": self.patch_proj["fc"][1](self.patch_keys)}


def neighbour_average(patch_tokens: torch.Tensor) -> torch.Tensor:
    """Mean of the averages over 1 x 1, 3 x 3 and 5 x 5 patches, with zeros beyond the border: (B, G*G, width)."""
    grid = to_grid(patch_tokens)  # (B, width, G, G)
    averages = [F.avg_pool2d(grid, size, stride=1, padding=size // 2) for size in WINDOWS]
    return torch.stack(averages).mean(dim=0).flatten(2).transpose(1, 2)


def patch_regions(masks: torch.Tensor, grid: int) -> torch.Tensor:
    """Which patches are anomalous, and which are normal (B, 2, G*G) bool; some are neither.

    masks: (B, S, S) of 0 and 1. They are resized bilinearly without antialias, so that only the pixels in the middle of
    a patch count, all of which have to agree.
    """
    shares = F.interpolate(masks.float().unsqueeze(1), size=grid, mode="bilinear", align_corners=False).flatten(1)
    return torch.stack([shares == 1, shares == 0], dim=1)


@torch.no_grad()
def most_alike(queries: torch.Tensor, keys: torch.Tensor, share: float) -> torch.Tensor:
    """Which entries have a higher cosine with a query than this share of all (quantile): (..., N) bool.

    queries: (..., width); keys: (N, width), both unit vectors. Taken one by one along the first dimension, for the
    quantile sorts.
    """
    found = []
    for each in queries:
        cosines = each @ keys.T
        found.append(cosines > cosines.quantile(share, dim=-1, keepdim=True))
    return torch.stack(found)


def missing_kind(memory: dict[str, torch.Tensor]) -> str | None:
    """What a memory lacks, such as "anomalous patch"; None if it has all there is to be."""
    for part in PARTS:
        for count, state in zip(memory[f"{part}_values"].sum(dim=0), STATES, strict=True):
            if count == 0:
                return f"{state} {part}"
    return None
