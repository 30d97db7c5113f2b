"""WinCLIP (Jeong et al., CVPR 2023): CLIP's class token on small windows of patches against a hand-written ensemble.

Nothing is trained. Zero-shot by default; with --k_shot K also compared with K normal images of the class (WinCLIP+).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer

from AnomalyCLIP_lib.blocks import embed, run_block
from AnomalyCLIP_lib.similarity import class_probabilities
from methods._base import Base
from prompt_ensemble import NORMAL_STATES, ensemble_prompts
from utils import InputError

SETTINGS = {"model": "ViT-B-16-plus-240", "pretrained": "laion400m_e31", "image_size": None}
TESTING = {"sigma": 0.0, "k_shot": 0}

SCALES = (2, 3)  # widths of the square windows in patches
CHUNK = 4096  # tokens that run through the tower together: bounds memory and still fills the matrix products

# The normal states are those of `prompt_ensemble`. One of the 21 templates stands there twice, as in anomalib and in
# the code of the AnomalyCLIP authors; WinCLIP's paper lists 22.
ABNORMAL_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    "a cropped photo of the {}.", "a close-up photo of a {}.", "a close-up photo of the {}.",
    "a bright photo of a {}.", "a bright photo of the {}.", "a dark photo of the {}.", "a dark photo of a {}.",
    "a jpeg corrupted photo of the {}.", "a jpeg corrupted photo of the {}.", "a blurry photo of the {}.",
    "a blurry photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a photo of a small {}.",
    "a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}.",
    "a photo of the {} for visual inspection.", "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.", "a photo of a {} for anomaly detection.",
)  # fmt: skip


class Method(Base):
    """See `Base`; features, of windows at every place of the grid and of the whole image, none of them normalised.

    image_features (B, D); window_features_2 and window_features_3 (B, W, D), W = (G - 1)^2 and (G - 2)^2;
    patch_tokens (B, G*G, width), which only few-shot reads.
    """

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        self.num_references = settings.get("k_shot", 0)
        if model.grid < max(SCALES):
            raise InputError(f"image_size {model.image_size} is {model.grid} patches wide; WinCLIP's windows need 3")
        self.text_features: dict[str, torch.Tensor] = {}
        self.references: dict[str, dict[str, torch.Tensor]] = {}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        visual = self.model.clip.visual
        tokens = embed(visual, images)  # (B, 1 + G*G, width)
        features = {}
        for scale in SCALES:
            windows = window_indices((self.model.grid, self.model.grid), scale).to(tokens.device)
            features[f"window_features_{scale}"] = window_features(visual, tokens, windows)
        for block in visual.transformer.resblocks:
            tokens = run_block(block, tokens)
        tokens = visual.ln_post(tokens)
        return features | {"image_features": tokens[:, 0] @ visual.proj, "patch_tokens": tokens[:, 1:]}

    def set_classes(self, class_names: list[str]) -> None:
        for name in class_names:
            means = [self.model.encode_text(texts).mean(dim=0) for texts in prompts(name)]
            self.text_features[name] = torch.stack(means)

    def set_references(self, class_name: str, features: dict[str, torch.Tensor]) -> None:
        local = (name for name in features if name != "image_features")
        self.references[class_name] = {name: features[name].flatten(0, 1) for name in local}

    def predict(self, features: dict[str, torch.Tensor], class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        scores, maps = self.language_guided(features, self.text_features[class_name])
        if self.num_references:
            vision_maps = self.vision_guided(features, self.references[class_name])
            scores, maps = (scores + vision_maps.amax(dim=(1, 2))) / 2, (maps + vision_maps) / 2
        return scores, maps

    def language_guided(
        self, features: dict[str, torch.Tensor], text_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Zero-shot scores (B,) and maps (B, G, G): harmonic mean of the image's score and of both scales' maps."""
        scores = class_probabilities(features["image_features"], text_features)[:, 1]
        inverse = 1 / scores[:, None, None]
        for scale in SCALES:
            abnormal = class_probabilities(features[f"window_features_{scale}"], text_features)[..., 1]  # (B, W)
            inverse = inverse + 1 / self.map_of_windows(abnormal, scale)
        return scores, (1 + len(SCALES)) / inverse

    def vision_guided(self, features: dict[str, torch.Tensor], references: dict[str, torch.Tensor]) -> torch.Tensor:
        """Few-shot maps (B, G, G): mean of the associations of patches and of both scales' windows."""
        maps = [association(features["patch_tokens"], references["patch_tokens"]).unflatten(1, (self.model.grid, -1))]
        for scale in SCALES:
            name = f"window_features_{scale}"
            maps.append(self.map_of_windows(association(features[name], references[name]), scale))
        return torch.stack(maps).mean(dim=0)

    def map_of_windows(self, scores: torch.Tensor, scale: int) -> torch.Tensor:
        """`harmonic_map` on the model's grid."""
        return harmonic_map(scores, (self.model.grid, self.model.grid), scale)


def prompts(class_name: str) -> tuple[list[str], list[str]]:
    """147 normal and 84 abnormal prompts of a class, states outer, templates inner; underscores stay."""
    return (
        ensemble_prompts(NORMAL_STATES, TEMPLATES, class_name),
        ensemble_prompts(ABNORMAL_STATES, TEMPLATES, class_name),
    )


def window_indices(grid: tuple[int, int], scale: int, stride: int = 1) -> torch.Tensor:
    """Patches (W, scale * scale) of the square windows of a grid (rows, columns); both in row-major order."""
    patches = torch.arange(grid[0] * grid[1]).view(grid)
    return patches.unfold(0, scale, stride).unfold(1, scale, stride).flatten(2).flatten(0, 1)


def window_features(visual: VisionTransformer, tokens: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Image features of windows that see nothing but their own patches (and the class token).

    Positions are those of the whole grid. The method takes the windows before ln_pre; that is a norm of each token, so
    after it they are the same.

    Args:
        tokens: (B, 1 + N, width), as they enter the first block.
        windows: (W, n), patches of each window.

    Returns:
        (B, W, D): class token after the last block, ln_post, proj.
    """
    *blocks, last = visual.transformer.resblocks
    indices = F.pad(windows + 1, (1, 0))  # the class token comes first
    class_tokens = []
    for x in tokens[:, indices].flatten(0, 1).split(max(1, CHUNK // indices.shape[1])):
        for block in blocks:
            x = run_block(block, x)
        class_tokens.append(run_block(last, x, class_token_only=True)[:, 0])
    return (visual.ln_post(torch.cat(class_tokens)) @ visual.proj).unflatten(0, (len(tokens), -1))


def harmonic_map(scores: torch.Tensor, grid: tuple[int, int], scale: int, stride: int = 1) -> torch.Tensor:
    """Harmonic mean (B, rows, columns) for each patch of the scores (B, W) of the windows it lies in.

    A score of 0 gives 0, as does a patch in no window.
    """
    inverse = (1 / scores).unsqueeze(1).expand(-1, scale * scale, -1)  # (B, patches of a window, W)
    count = F.fold(torch.ones_like(inverse[:1]), grid, scale, stride=stride)
    return (count / F.fold(inverse, grid, scale, stride=stride)).nan_to_num(0).squeeze(1)


def association(features: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """min over references (R, d) of (1 - cos) / 2 for features (B, N, d): (B, N) in [0, 1]."""
    features, references = F.normalize(features, dim=-1), F.normalize(references, dim=-1)
    nearest = torch.stack([(image @ references.T).amax(dim=-1) for image in features])  # one image: (N, R) in memory
    return ((1 - nearest) / 2).clamp(min=0)  # rounding takes cos beyond 1, and harmonic means need scores >= 0
