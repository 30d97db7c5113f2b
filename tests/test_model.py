"""The frozen model: scores and maps as the authors' implementation gives them, precision, normalising, bad layers."""

import numpy as np
import pytest
import torch
from PIL import Image

import AnomalyCLIP_lib
from AnomalyCLIP_lib import InputError


@pytest.fixture(scope="module")
def tiny():
    return AnomalyCLIP_lib.load("tiny")


def close(ours, theirs, absolute):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=absolute, rtol=0)


def test_scores_and_maps(small_model, reference, reference_images, reference_learner):
    images, text_features = reference_images, reference_learner().detach()
    scores, maps = small_model.detect(images, text_features, reference["config"]["feats"], sigma=4)
    close(scores, reference["scores"], 1e-5)
    close(maps[:, ::5, ::5], reference["anomaly_maps"], 1e-4)
    scores, maps = small_model.detect(images[:1], text_features, [24], sigma=4)
    close(scores, reference["score_last_layer"], 1e-5)
    close(maps[:, ::3, ::3], reference["anomaly_map_last_layer"], 1e-5)


def test_layers_out_of_range(small_model):
    for layers in ([25], [0], [], [3, 3]):
        with pytest.raises(InputError, match="between 1 and 24"):
            small_model.encode_image(torch.zeros(1, 3, 126, 126), layers)


@pytest.mark.parametrize("shape", [(3, 60, 80), (3, 96, 96), (3, 300, 130)])
def test_images_normalised_on_the_device_are_the_same_bit_for_bit(tiny, shape):
    values = np.random.RandomState(0).randint(0, 256, shape, np.uint8)
    image = Image.fromarray(values.transpose(1, 2, 0))
    assert tiny.resize(image).dtype == torch.uint8
    assert torch.equal(tiny.normalize(tiny.resize(image)[None])[0], tiny.preprocess(image))
    floats = torch.randn(1, 3, 4, 4)
    assert tiny.normalize(floats) is floats


def test_lower_precision_comes_close(tiny, monkeypatch):
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact, patches = tiny.encode_image(images, [3, 6])
    for precision, tolerance in (("bf16", 0.03), ("fp16", 0.005)):
        monkeypatch.setattr(tiny, "precision", precision)
        rough, rough_patches = tiny.encode_image(images, [3, 6])
        assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
        for one, other in zip([exact, *patches], [rough, *rough_patches], strict=True):
            assert ((one - other).norm() / one.norm()).item() < tolerance
