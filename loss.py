"""The losses that fit the anomaly maps to the masks, focal and Dice (AnomalyCLIP, section 3.3, equation 2)."""

import torch
from torch import nn

FOCAL_GAMMA = 2
FOCAL_EPSILON = 1e-5  # the target keeps this distance from 0 and 1, and the probability of the target from 0
DICE_SMOOTH = 1


class FocalLoss(nn.Module):
    """Focal loss (Lin et al., 2017) on probabilities, gamma 2, no class weights, as in the released AnomalyCLIP."""

    def forward(self, probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean over pixels of -(1 - p)^2 log p, p the probability given to the pixel's true class; a float32 scalar.

        probs: (B, 2, S, S), probabilities (not logits) of normal and abnormal; mask: (B, S, S), 1 where anomalous,
        else 0. Raises ValueError when the shapes do not fit.
        """
        if probs.ndim != 4 or probs.shape[1] != 2 or mask.shape != (probs.shape[0], *probs.shape[2:]):
            raise ValueError(
                "focal loss needs probs (B, 2, S, S) and mask (B, S, S), "
                f"got {tuple(probs.shape)} and {tuple(mask.shape)}"
            )
        mask = mask.float()
        onehot = torch.stack([1 - mask, mask], dim=1).clamp(FOCAL_EPSILON, 1 - FOCAL_EPSILON)
        p = (onehot * probs.float()).sum(1) + FOCAL_EPSILON
        return focal_of(p)


class BinaryDiceLoss(nn.Module):
    """Dice loss of one class with smoothing 1, per image, then averaged over the batch."""

    def forward(self, prob: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean over images of 1 - (2 sum(p t) + 1) / (sum p + sum t + 1); a float32 scalar.

        prob: (B, S, S), probability of the class; mask: (B, S, S), 1 where the pixel is of that class, else 0 (so the
        map of `normal` goes with 1 - anomaly mask). Raises ValueError when the shapes do not fit.
        """
        if prob.ndim != 3 or mask.shape != prob.shape:
            raise ValueError(
                f"Dice loss needs prob and mask of one shape (B, S, S), got {tuple(prob.shape)} and {tuple(mask.shape)}"
            )
        prob, target = prob.float().flatten(1), mask.float().flatten(1)
        overlap = (prob * target).sum(1)
        dice = (2 * overlap + DICE_SMOOTH) / (prob.sum(1) + target.sum(1) + DICE_SMOOTH)
        return (1 - dice).mean()


def local_loss(abnormal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Focal([1 - a, a], mask) + Dice(1 - a, 1 - mask) + Dice(a, mask) from the one map a = P(abnormal); a scalar.

    The two probabilities of a pixel sum to one, before upsampling and after, so one of the maps says it all.

    abnormal: (B, S, S); mask: (B, S, S), 1 where anomalous, else 0. Raises ValueError when the shapes do not fit.
    """
    dice = BinaryDiceLoss()
    abnormal, mask = abnormal.float(), mask.float()
    dice_abnormal, dice_normal = dice(abnormal, mask), dice(1 - abnormal, 1 - mask)
    target = mask.clamp(FOCAL_EPSILON, 1 - FOCAL_EPSILON)
    # p = t a + (1 - t)(1 - a) + epsilon, the probability given to the pixel's true class
    p = torch.addcmul(1 - target + FOCAL_EPSILON, 2 * target - 1, abnormal)
    return focal_of(p) + dice_normal + dice_abnormal


def focal_of(p: torch.Tensor) -> torch.Tensor:
    """Mean of -(1 - p)^2 log p over the probabilities given to the true classes."""
    return -((1 - p) ** FOCAL_GAMMA * p.log()).mean()
