"""The plain ViT against open_clip's own forward pass."""

import copy

import open_clip
import pytest
import torch

import AnomalyCLIP_lib


@pytest.mark.parametrize(
    ("name", "pixels"), [("ViT-B-16", 224), ("ViT-B-16-plus-240", 240), ("ViT-H-14", 224), ("ViT-B-32-quickgelu", 224)]
)
def test_without_dpam_equals_open_clip(name, pixels, tmp_path, monkeypatch):
    """Two blocks of each tower: open_clip's patch tokens, class feature (with ln_post) and text features."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: copy.deepcopy(config))
    torch.manual_seed(0)
    original = open_clip.CLIP(**config).eval()
    original.visual.output_tokens = True
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    model = AnomalyCLIP_lib.load(name, tmp_path / "weights.pt", image_size=pixels, dpam_layer=1)
    images = torch.randn(2, 3, pixels, pixels)
    texts = ["a photo of a damaged metal nut.", "x"]
    with torch.no_grad():
        image_features, (patch_features,) = model.encode_image(images)
        class_feature, patch_tokens = original.visual(images)
        text_features, expected_text = model.encode_text(texts), original.encode_text(open_clip.tokenize(texts))
    torch.testing.assert_close(patch_features[:, 0], class_feature, atol=1e-4, rtol=0)
    torch.testing.assert_close(patch_features[:, 1:], patch_tokens @ original.visual.proj, atol=1e-4, rtol=0)
    torch.testing.assert_close(text_features, expected_text, atol=1e-4, rtol=0)
    stream = []
    original.visual.ln_post.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0][:, 0]))
    with torch.no_grad():
        original.visual(images)
    torch.testing.assert_close(image_features, stream[0] @ original.visual.proj, atol=1e-4, rtol=0)
