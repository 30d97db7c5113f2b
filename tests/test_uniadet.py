"""UniADet: scores, maps and losses against a computation that is written out, and the choices that it states."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import QUICK, TINY, check_error, make_data, make_method, run

import AnomalyCLIP_lib
from loss import BinaryDiceLoss, FocalLoss
from methods.uniadet import Method


@pytest.fixture(scope="module")
def model():
    return AnomalyCLIP_lib.load("tiny", dpam_layer=1)


@pytest.fixture
def method(model):
    torch.manual_seed(0)
    return make_method("uniadet", model)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.RandomState(0).standard_normal((3, 3, 96, 96)).astype(np.float32))


def test_blocks_and_number_of_parameters_are_the_published_ones(method):
    assert Method.default_blocks(24) == [12, 15, 18, 21, 24] and Method.default_blocks(12) == [6, 8, 9, 11, 12]
    layers, dimension = len(Method.default_blocks(24)), 768
    assert 2 * layers * 2 * dimension == 15360  # 0.015 M, as the authors say of CLIP
    blocks, own = len(method.settings["features_list"]), method.model.clip.visual.proj.shape[1]
    assert sum(parameter.numel() for parameter in method.learner.parameters()) == 2 * blocks * 2 * own


def test_features_are_tokens_of_the_tapped_blocks(method, images):
    """Against the outputs of open_clip's own blocks."""
    visual, outputs = method.model.clip.visual, []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for block in visual.transformer.resblocks
    ]
    features = method.encode(images)
    for hook in hooks:
        hook.remove()
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(3, 1, -1), patches], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for number, block in enumerate(visual.transformer.resblocks, start=1):
        x = block(x)
        if number in method.settings["features_list"]:
            place = method.settings["features_list"].index(number)
            expected = visual.ln_post(x) @ visual.proj
            torch.testing.assert_close(features["class_tokens"][:, place], expected[:, 0], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(features["patch_tokens"][:, place], expected[:, 1:], atol=2e-5, rtol=1e-4)


def test_dpam_changes_patch_tokens_and_leaves_class_tokens(model, images):
    plain, dual = (make_method("uniadet", model, dpam_layer=layer).encode(images) for layer in (1, 4))
    torch.testing.assert_close(plain["class_tokens"], dual["class_tokens"], atol=2e-5, rtol=1e-4)
    assert (plain["patch_tokens"] - dual["patch_tokens"])[:, -1].abs().max() > 0.1


def written_out(method, features) -> tuple[torch.Tensor, torch.Tensor]:
    """P of each block, both states: of the image (B, L, 2) and of the patches (B, L, G*G, 2)."""
    images, patches = [], []
    for place in range(len(method.settings["features_list"])):
        w_cls, w_seg = method.learner.w_cls[place], method.learner.w_seg[place]
        images.append(F.cosine_similarity(features["class_tokens"][:, place, None], w_cls[None], dim=-1) / 0.07)
        patches.append(
            F.cosine_similarity(features["patch_tokens"][:, place, :, None], w_seg[None, None], dim=-1) / 0.07
        )
    return torch.stack(images, 1).softmax(-1), torch.stack(patches, 1).softmax(-1)


@pytest.mark.parametrize("score_share", [0.5, 1.0, 0.2])
def test_score_mixes_in_each_block_before_the_mean(model, images, score_share):
    torch.manual_seed(0)
    method = make_method("uniadet", model, score_share=score_share)
    features = method.encode(images)
    scores, maps = method.predict(features, "object")
    image, patches = written_out(method, features)
    mixed = score_share * image[..., 1] + (1 - score_share) * patches[..., 1].max(dim=2).values
    torch.testing.assert_close(scores, mixed.mean(1))
    torch.testing.assert_close(maps, patches[..., 1].mean(1).reshape(3, 12, 12))
    assert Method.highest(method.settings) == 1


def test_losses_are_sums_over_the_blocks(method, images):
    features, labels = method.encode(images), torch.tensor([0, 1, 1])
    masks = (torch.from_numpy(np.random.RandomState(1).rand(3, 96, 96)) > 0.7).float()
    losses = method.losses(features, labels, masks, ["object"] * 3)
    image, patches = written_out(method, features)
    expected = {"image_loss": 0, "local_loss": 0}
    for place in range(image.shape[1]):
        expected["image_loss"] += F.nll_loss(image[:, place].log(), labels)
        both = patches[:, place].transpose(1, 2).reshape(3, 2, 12, 12)
        both = F.interpolate(both, size=96, mode="bilinear", align_corners=False)
        expected["local_loss"] += FocalLoss()(both, masks) + BinaryDiceLoss()(both[:, 1], masks)
        expected["local_loss"] += BinaryDiceLoss()(both[:, 0], 1 - masks)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-5)


def test_what_it_cannot_use_is_said(checkpoints, data, tmp_path, monkeypatch, capsys):
    bare = make_data(tmp_path / "bare", masks=False)
    arguments = ("--method", "uniadet", "--train_data_path", bare, "--save_path", tmp_path / "run", *TINY)
    assert run(monkeypatch, "train", *arguments) == 2
    check_error(capsys, "has no masks, and UniADet's vectors of patches are trained on masks")
    settings = torch.load(checkpoints["uniadet"], weights_only=True)
    for broken, message in (
        ({"w_cls": torch.zeros(3, 2, 4)}, "does not hold UniADet's vectors"),
        ({name: value[:2] for name, value in settings["uniadet"].items()}, "has vectors of 2 blocks"),
    ):
        path = tmp_path / "epoch_1.pth"
        torch.save(settings | {"uniadet": broken}, path)
        arguments = ("--data_path", data, "--checkpoint_path", path, "--save_path", tmp_path / "test", *TINY)
        assert run(monkeypatch, "test", *arguments) == 2
        check_error(capsys, message)
    assert (
        run(monkeypatch, "test", "--data_path", data, "--method", "uniadet", "--save_path", tmp_path / "t", *QUICK) == 2
    )
    check_error(capsys, "--method uniadet needs --checkpoint_path FILE")


def test_a_share_of_one_leaves_the_map_out_of_the_score(checkpoints, data, tmp_path, monkeypatch):
    scores = []
    for share in ("0.5", "1"):
        arguments = (
            "--checkpoint_path",
            checkpoints["uniadet"],
            "--score_share",
            share,
            "--save_path",
            tmp_path / share,
        )
        assert run(monkeypatch, "test", "--data_path", data, *arguments, *TINY) == 0
        scores.append((tmp_path / share / "scores.csv").read_text())
        assert json.loads((tmp_path / share / "args.json").read_text())["arguments"]["score_share"] == float(share)
    assert scores[0] != scores[1]
