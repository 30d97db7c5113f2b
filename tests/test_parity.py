"""The numbers of the authors' released implementation, on generated weights and inputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import AnomalyCLIP_lib
from AnomalyCLIP_lib.similarity import class_logits, patch_probabilities, upsample
from loss import BinaryDiceLoss, FocalLoss
from prompt_ensemble import PromptLearner


def close(ours, theirs, absolute=0.0, relative=0.0):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=absolute + relative * np.abs(theirs).max(), rtol=0)


@pytest.fixture(scope="module")
def images(reference):
    size = reference["config"]["image"]
    values = np.random.RandomState(2000).standard_normal((8, 3, size, size))
    return torch.from_numpy(values.astype(np.float32))


def make_learner(model):
    learner, stream = PromptLearner(model), np.random.RandomState(1000)
    with torch.no_grad():
        for parameter in (learner.ctx_pos, learner.ctx_neg, *learner.compound_prompts_text):
            parameter.copy_(torch.from_numpy(stream.standard_normal(parameter.shape) * 0.02))
    return learner


def test_features_of_both_streams(small_model, reference, images):
    taps = reference["config"]["feats"]
    with torch.no_grad():
        image_features, patch_features = small_model.encode_image(images[:2], taps)
    close(image_features, reference["image_features"], 1e-4)
    for layer, features in zip(taps, patch_features, strict=True):
        close(features[:, ::8], reference[f"patch_features_dpam_{layer}"], 1e-4)


def test_features_without_dpam(weights_file, reference, images):
    model = AnomalyCLIP_lib.load(None, weights_file, image_size=126, dpam_layer=1)
    with torch.no_grad():
        image_features, (patch_features,) = model.encode_image(images[:2], [24])
    close(image_features, reference["image_features_no_dpam"], 1e-4)
    close(patch_features[:, ::8], reference["patch_features_no_dpam_24"], 1e-4)


def test_prompts_and_text_features(small_model, reference):
    learner = make_learner(small_model)
    embeddings, tokens = learner.prompts()
    close(embeddings[:, :17], reference["prompt_embeddings"], 1e-6)
    assert (tokens.numpy() == reference["tokenized_prompts"]).all()
    close(learner(), reference["text_features"], relative=1e-5)


def test_scores_and_maps(small_model, reference, images):
    text_features = make_learner(small_model)().detach()
    scores, maps = small_model.detect(images, text_features, reference["config"]["feats"], sigma=4)
    close(scores, reference["scores"], 1e-5)
    close(maps[:, ::5, ::5], reference["anomaly_maps"], 1e-4)
    scores, maps = small_model.detect(images[:1], text_features, [24], sigma=4)
    close(scores, reference["score_last_layer"], 1e-5)
    close(maps[:, ::3, ::3], reference["anomaly_map_last_layer"], 1e-5)


@pytest.mark.parametrize(("run", "taps"), [("top", [24]), ("multi", [6, 12, 18, 24])])
def test_training_trajectory(small_model, reference, images, run, taps):
    size = reference["config"]["image"]
    masks = np.unpackbits(reference["masks"])[: 8 * size * size].reshape(8, size, size)
    masks, labels = torch.from_numpy(masks).float(), torch.from_numpy(reference["labels"])
    with torch.no_grad():
        image_features, patch_features = small_model.encode_image(images, taps)
    learner, focal, dice = make_learner(small_model), FocalLoss(), BinaryDiceLoss()
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
