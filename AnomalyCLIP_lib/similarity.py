"""From features to probabilities, maps and scores (paper sections 3.2 and 3.4)."""

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

TEMPERATURE = 0.07


def class_probabilities(features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Softmax over the two prompts of cos(feature, text) / 0.07.

    Args:
        features: (B, D) or (B, N, D), any length of vector.
        text_features: (2, D) normal, abnormal; or (B, 2, D), a pair per image.

    Returns:
        (B, 2) or (B, N, 2): P(normal), P(abnormal).
    """
    return class_logits(features, text_features).softmax(dim=-1)


def class_logits(features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """cos(feature, text) / 0.07; shapes as in `class_probabilities`."""
    features, text_features = F.normalize(features, dim=-1), F.normalize(text_features, dim=-1)
    if text_features.ndim == 3 and features.ndim == 2:
        return (features.unsqueeze(1) @ text_features.transpose(1, 2)).squeeze(1) / TEMPERATURE
    return features @ text_features.transpose(-1, -2) / TEMPERATURE


def patch_probabilities(patch_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Patch tokens (B, 1 + G*G, D), class token first, to (B, 2, G, G) probabilities of normal and abnormal."""
    probabilities = class_probabilities(patch_features[:, 1:], text_features)
    side = round(probabilities.shape[1] ** 0.5)
    return probabilities.transpose(1, 2).unflatten(2, (side, side))


def upsample(maps: torch.Tensor, image_size: int) -> torch.Tensor:
    """(B, C, G, G) to (B, C, S, S), bilinear, align_corners false."""
    return F.interpolate(maps, size=image_size, mode="bilinear", align_corners=False)


def anomaly_map(patch_features: list[torch.Tensor], text_features: torch.Tensor, image_size: int) -> torch.Tensor:
    """Sum over tapped layers of (P(abnormal) + 1 - P(normal)) / 2, upsampled: (B, S, S); not smoothed."""
    layers = []
    for features in patch_features:
        normal, abnormal = upsample(patch_probabilities(features, text_features), image_size).unbind(1)
        layers.append((abnormal + 1 - normal) / 2)
    return torch.stack(layers).sum(dim=0)


def smooth(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian filter of every map (B, S, S), sigma in pixels (scipy's defaults: reflect, truncate 4); on the CPU."""
    maps = maps.float().cpu()
    if not sigma:
        return maps
    return torch.from_numpy(gaussian_filter(maps.numpy(), sigma=sigma, axes=(1, 2)))
