"""methods/anomalyclip.py: the training of the authors' released implementation, step by step, on generated weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from AnomalyCLIP_lib.similarity import class_logits, patch_probabilities, upsample
from loss import BinaryDiceLoss, FocalLoss


def close(ours, theirs, relative):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=relative * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize(("run", "taps"), [("top", [24]), ("multi", [6, 12, 18, 24])])
def test_training_trajectory(small_model, reference, reference_images, reference_learner, run, taps):
    size = reference["config"]["image"]
    masks = np.unpackbits(reference["masks"])[: 8 * size * size].reshape(8, size, size)
    masks, labels = torch.from_numpy(masks).float(), torch.from_numpy(reference["labels"])
    with torch.no_grad():
        image_features, patch_features = small_model.encode_image(reference_images, taps)
    learner, focal, dice = reference_learner, FocalLoss(), BinaryDiceLoss()
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, betas=(0.5, 0.999))
    losses = []
    for step in range(12):
        chosen = [(4 * step + offset) % 8 for offset in range(4)]
        text_features = learner()
        image_loss = F.cross_entropy(class_logits(image_features[chosen], text_features), labels[chosen])
        local_loss = 0
        for features in patch_features:
            maps = upsample(patch_probabilities(features[chosen], text_features), size)
            local_loss += focal(maps, masks[chosen]) + dice(maps[:, 0], 1 - masks[chosen])
            local_loss += dice(maps[:, 1], masks[chosen])
        optimizer.zero_grad()
        (image_loss + 4 * local_loss).backward()
        if step == 0:
            close(learner.ctx_pos.grad, reference[f"train_{run}_grad_ctx_pos"], relative=1e-4)
            close(learner.ctx_neg.grad, reference[f"train_{run}_grad_ctx_neg"], relative=1e-4)
            # the authors' deep tokens have gradients in half precision
            close(learner.compound_prompts_text[0].grad, reference[f"train_{run}_grad_deep0"], relative=1e-3)
        optimizer.step()
        losses.append([image_loss.item(), 4 * local_loss.item()])
    np.testing.assert_allclose(losses, reference[f"train_{run}_losses"], rtol=1e-3)
