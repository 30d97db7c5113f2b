"""Both streams of the vision encoder: the numbers of the authors' released implementation on generated weights."""

import numpy as np
import torch

import AnomalyCLIP_lib


def close(ours, theirs, absolute):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=absolute, rtol=0)


def test_features_of_both_streams(small_model, reference, reference_images):
    taps = reference["config"]["feats"]
    with torch.no_grad():
        image_features, patch_features = small_model.encode_image(reference_images[:2], taps)
    close(image_features, reference["image_features"], 1e-4)
    for layer, features in zip(taps, patch_features, strict=True):
        close(features[:, ::8], reference[f"patch_features_dpam_{layer}"], 1e-4)


def test_features_without_dpam(weights_file, reference, reference_images):
    model = AnomalyCLIP_lib.load(None, weights_file, image_size=126, dpam_layer=1)
    with torch.no_grad():
        image_features, (patch_features,) = model.encode_image(reference_images[:2], [24])
    close(image_features, reference["image_features_no_dpam"], 1e-4)
    close(patch_features[:, ::8], reference["patch_features_no_dpam_24"], 1e-4)
