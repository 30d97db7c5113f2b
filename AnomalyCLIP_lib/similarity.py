"""From features to probabilities, maps and scores (paper section 2, equation 1, and section 3.3)."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d

TEMPERATURE = 0.07


def class_probabilities(features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Softmax over the two prompts of cos(feature, text) / 0.07 (equation 1).

    Args:
        features: (B, D) or (B, N, D), any length of vector.
        text_features: (2, D) normal, abnormal; or (B, 2, D), a pair per image.

    Returns:
        (B, 2) or (B, N, 2): P(normal), P(abnormal).
    """
    return class_logits(features, text_features).softmax(dim=-1)


def class_logits(
    features: torch.Tensor, text_features: torch.Tensor, temperature: float | torch.Tensor = TEMPERATURE
) -> torch.Tensor:
    """cos(feature, text) / temperature; shapes as in `class_probabilities`."""
    features = F.normalize(features, dim=-1)
    text_features = F.normalize(text_features, dim=-1)
    if text_features.ndim == 3 and features.ndim == 2:
        cosines = (features.unsqueeze(1) @ text_features.transpose(1, 2)).squeeze(1)  # (B, 2)
    else:
        cosines = features @ text_features.transpose(-1, -2)
    return cosines / temperature


def patch_probabilities(patch_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Patch tokens (B, 1 + G*G, D), class token first, to (B, 2, G, G) probabilities of normal and abnormal."""
    probabilities = class_probabilities(patch_features[:, 1:], text_features)  # (B, G*G, 2)
    return to_grid(probabilities)


def to_grid(values: torch.Tensor) -> torch.Tensor:
    """Values of patches (B, G*G, C) as images (B, C, G, G)."""
    grid = round(values.shape[1] ** 0.5)
    return values.transpose(1, 2).unflatten(2, (grid, grid))


def upsample(maps: torch.Tensor, image_size: int) -> torch.Tensor:
    """(B, C, G, G) to (B, C, S, S), bilinear, align_corners false."""
    return F.interpolate(maps, size=image_size, mode="bilinear", align_corners=False)


def abnormal_maps(patch_features: torch.Tensor, text_features: torch.Tensor, image_size: int) -> Iterator[torch.Tensor]:
    """P(abnormal) of every pixel (B, S, S), for each tapped block; patch_features: (B, L, 1 + G*G, D)."""
    for tokens in patch_features.unbind(1):
        abnormal = patch_probabilities(tokens, text_features)[:, 1:]  # (B, 1, G, G)
        yield upsample(abnormal, image_size).squeeze(1)


def anomaly_map(patch_features: Iterable[torch.Tensor], text_features: torch.Tensor) -> torch.Tensor:
    """Sum over tapped blocks of (P(abnormal) + 1 - P(normal)) / 2 of each patch: (B, G, G) (section 3.3).

    Upsampling, which the paper does first, is linear, and its weights add up to one: see `full_size`.
    patch_features: for each tapped block (B, 1 + G*G, D), class token first; text_features: see `class_probabilities`.
    """
    maps = []
    for features in patch_features:
        normal, abnormal = patch_probabilities(features, text_features).unbind(1)
        maps.append((abnormal + 1 - normal) / 2)
    return torch.stack(maps).sum(dim=0)


def full_size(maps: torch.Tensor, image_size: int, sigma: float = 0) -> torch.Tensor:
    """Maps (B, g, g) upsampled as by `upsample` and then smoothed: (B, S, S) float32, on the maps' device.

    sigma: of the Gaussian filter, in pixels of the result (scipy's defaults: reflect, truncate 4); 0: not smoothed.
    Both steps are linear and separable, so together they are one constant matrix A per side: A map A^T.
    """
    maps = maps.float()
    if maps.shape[-1] == image_size and not sigma:
        return maps
    matrix = full_size_matrix(maps.shape[-1], image_size, float(sigma)).to(maps.device)
    return matrix @ maps @ matrix.T


@lru_cache(maxsize=8)
def full_size_matrix(grid: int, image_size: int, sigma: float) -> torch.Tensor:
    """The (S, g) matrix that upsamples a column of g values and smooths the result."""
    unit = torch.eye(grid, dtype=torch.float64).unsqueeze(0)  # (1, g, g): a unit vector in each row
    columns = F.interpolate(unit, size=image_size, mode="linear", align_corners=False)[0].T.numpy()  # (S, g)
    if sigma:
        columns = gaussian_filter1d(columns, sigma, axis=0)
    return torch.from_numpy(np.ascontiguousarray(columns, dtype=np.float32))
