from pathlib import Path

import numpy as np
import pytest
import torch

from loss import BinaryDiceLoss, FocalLoss, local_loss

REFERENCE = Path(__file__).parent / "data" / "loss_reference.npz"


def random_case(seed, batch=3, size=9):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, 2, size, size)) * 3
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probs.astype(np.float32), (rng.random((batch, size, size)) < 0.2).astype(np.uint8)


def focal_by_hand(probs, mask):
    total = 0.0
    for b, y, x in np.ndindex(mask.shape):
        p = 1e-5
        for c in (0, 1):
            target = 1 - 1e-5 if mask[b, y, x] == c else 1e-5
            p += target * float(probs[b, c, y, x])
        total -= (1 - p) ** 2 * np.log(p)
    return total / mask.size


def dice_by_hand(prob, mask):
    losses = []
    for p, t in zip(prob.astype(np.float64), mask.astype(np.float64), strict=True):
        losses.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    return np.mean(losses)


def test_released_values():
    """Values of the released implementation on softmax(standard normal) maps."""
    reference = np.load(REFERENCE)
    size = reference["masks"].shape[-1]
    logits = np.random.RandomState(3000).standard_normal((4, 2, size, size)).astype(np.float32)
    probs, mask = torch.from_numpy(logits).softmax(1), torch.from_numpy(reference["masks"])
    assert FocalLoss()(probs, mask).item() == pytest.approx(float(reference["focal"]), rel=1e-6)
    assert BinaryDiceLoss()(probs[:, 1], mask).item() == pytest.approx(float(reference["dice_abnormal"]), rel=1e-6)
    assert BinaryDiceLoss()(probs[:, 0], 1 - mask).item() == pytest.approx(float(reference["dice_normal"]), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_written_out_formula(seed):
    probs, mask = random_case(seed)
    focal = FocalLoss()(torch.tensor(probs), torch.tensor(mask)).item()
    assert focal == pytest.approx(focal_by_hand(probs, mask), rel=1e-5)
    dice = BinaryDiceLoss()(torch.tensor(probs[:, 1]), torch.tensor(mask)).item()
    assert dice == pytest.approx(dice_by_hand(probs[:, 1], mask), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32])
def test_mask_of_any_dtype(dtype):
    probs, mask = (torch.tensor(array) for array in random_case(0))
    assert FocalLoss()(probs, mask.to(dtype)) == FocalLoss()(probs, mask)
    assert BinaryDiceLoss()(probs[:, 1], mask.to(dtype)) == BinaryDiceLoss()(probs[:, 1], mask)


def test_half_precision_is_computed_in_float32():
    probs, mask = (torch.tensor(array) for array in random_case(0, size=64))
    probs = probs.half()
    focal, dice = FocalLoss()(probs, mask), BinaryDiceLoss()(probs[:, 1], mask)
    assert focal.dtype == dice.dtype == torch.float32
    assert torch.equal(focal, FocalLoss()(probs.float(), mask))
    assert torch.equal(dice, BinaryDiceLoss()(probs[:, 1].float(), mask))


def test_certain_predictions_are_finite():
    mask = torch.tensor(random_case(1)[1])
    right = torch.stack([1 - mask, mask], dim=1).float().requires_grad_()
    wrong = torch.stack([mask, 1 - mask], dim=1).float().requires_grad_()
    assert FocalLoss()(right, mask).item() == pytest.approx(0, abs=1e-9)
    assert FocalLoss()(wrong, mask).item() == pytest.approx(-np.log(2e-5), rel=1e-3)
    assert BinaryDiceLoss()(right[:, 1], mask).item() == pytest.approx(0, abs=1e-6)
    (FocalLoss()(right, mask) + FocalLoss()(wrong, mask)).backward()
    assert right.grad.isfinite().all() and wrong.grad.isfinite().all()


def test_empty_mask_and_empty_map():
    """With nothing to find, smoothing makes the Dice loss of an empty map 0."""
    empty = torch.zeros(2, 5, 5)
    assert BinaryDiceLoss()(empty, empty).item() == 0


def test_gradients():
    """Against the derivatives of the formulas, written out in float64."""
    probs, mask = random_case(2)
    leaf = torch.tensor(probs, requires_grad=True)
    FocalLoss()(leaf, torch.tensor(mask)).backward()
    onehot = np.clip(np.stack([1 - mask.astype(float), mask], axis=1), 1e-5, 1 - 1e-5)
    p = (onehot * probs).sum(1, keepdims=True) + 1e-5
    expected = onehot * (2 * (1 - p) * np.log(p) - (1 - p) ** 2 / p) / mask.size
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-4, atol=1e-6)

    leaf = torch.tensor(probs[:, 1], requires_grad=True)
    BinaryDiceLoss()(leaf, torch.tensor(mask)).backward()
    p, t = probs[:, 1].astype(float), mask.astype(float)
    overlap, total = (a.sum((1, 2), keepdims=True) for a in (p * t, p + t))
    expected = ((2 * overlap + 1) / (total + 1) ** 2 - 2 * t / (total + 1)) / len(mask)
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-4, atol=1e-8)


def test_shapes_that_do_not_fit():
    focal, dice = FocalLoss(), BinaryDiceLoss()
    for probs, mask in [((2, 2, 4, 4), (2, 1, 4, 4)), ((2, 3, 4, 4), (2, 4, 4)), ((2, 4, 4), (2, 4, 4))]:
        with pytest.raises(ValueError, match="focal loss needs"):
            focal(torch.rand(probs), torch.zeros(mask))
    for prob, mask in [((2, 4, 4), (1, 4, 4)), ((2, 1, 4, 4), (2, 1, 4, 4)), ((2, 4, 4), (2, 4, 5))]:
        with pytest.raises(ValueError, match="Dice loss needs"):
            dice(torch.rand(prob), torch.zeros(mask))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("filled", [None, 0, 1])
def test_local_loss_from_one_map_is_the_written_out_sum(seed, filled):
    """Both channels upsampled and put into the three terms, against the abnormal one alone; value and gradient."""
    stream = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(4, 2, 7, 7, generator=stream)).requires_grad_()
    mask = (torch.rand(4, 40, 40, generator=stream) < 0.2).float()
    if filled is not None:
        mask.fill_(filled)

    def upsampled(maps):
        return torch.nn.functional.interpolate(maps, size=40, mode="bilinear")

    maps = upsampled(logits.softmax(1))
    dice = BinaryDiceLoss()
    written_out = FocalLoss()(maps, mask) + dice(maps[:, 0], 1 - mask) + dice(maps[:, 1], mask)
    (expected,) = torch.autograd.grad(written_out, logits)
    short = local_loss(upsampled(logits.softmax(1)[:, 1:]).squeeze(1), mask)
    (gradient,) = torch.autograd.grad(short, logits)
    assert short.item() == pytest.approx(written_out.item(), rel=1e-6)
    assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()
