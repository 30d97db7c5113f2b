"""GlocalCLIP: its four prompts, its losses, and what it shares with AnomalyCLIP."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import QUICK, check_error, make_method, run

import AnomalyCLIP_lib
from features import set_classes
from loss import BinaryDiceLoss, FocalLoss
from methods.glocalclip import GlocalLearner, Method, contrastive_loss
from utils import InputError

NAMES = [f"{kind}_{state}" for kind in ("global", "local") for state in ("pos", "neg")]


@pytest.fixture(scope="module")
def model():
    return AnomalyCLIP_lib.load("tiny")


@pytest.fixture
def method(model):
    return make_method("glocalclip", model)


@pytest.fixture(scope="module")
def features(model):
    images = torch.from_numpy(np.random.RandomState(0).standard_normal((4, 3, 96, 96)).astype(np.float32))
    return make_method("glocalclip", model).encode(images)


def test_state_dict_has_the_authors_names_and_shapes(small_model):
    learner = GlocalLearner(small_model, n_ctx=13, ab_ctx=10, depth=9, t_n_ctx=2)
    width, lengths = 128, {"pos": 13, "neg": 23}
    expected = {}
    for name in NAMES:
        length = lengths[name[-3:]]
        expected[f"ctx_{name}"] = (1, 1, 13 if name.endswith("pos") else 10, width)
        expected[f"token_prefix_{name}"] = (1, 1, 1, width)
        expected[f"token_suffix_{name}"] = (1, 1, 76 - length, width)
        expected[f"tokenized_prompts_{name}"] = (1, 1, 77)
    for index in range(8):
        expected[f"compound_prompts_text.{index}"] = (2, width)
        expected[f"compound_prompt_projections.{index}.weight"] = (896, width)
        expected[f"compound_prompt_projections.{index}.bias"] = (896,)
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == expected
    sizes = {"n_ctx": 13, "ab_ctx": 10, "depth": 9, "t_n_ctx": 2}
    assert Method.sizes(learner.state_dict()) == sizes


def test_prompts_are_those_of_the_released_code(small_model):
    """Start, placeholders g or l, the words, end; the abnormal prompt holds the normal context and its own."""
    learner = GlocalLearner(small_model, n_ctx=3, ab_ctx=2)
    embeddings, tokens = learner.prompts()
    words = {"pos": [14115, 269, 49407], "neg": [13568, 14115, 269, 49407]}
    for row, name in enumerate(NAMES):
        placeholder, length = {"g": 326, "l": 331}[name[0]], {"pos": 3, "neg": 5}[name[-3:]]
        expected = [49406, *[placeholder] * length, *words[name[-3:]]]
        assert tokens[row].tolist() == expected + [0] * (77 - len(expected))
        assert tokens[row].argmax() == {"pos": 3 + 3, "neg": 4 + 3 + 2}[name[-3:]]
        own = small_model.clip.token_embedding(tokens[row])
        context = [getattr(learner, f"ctx_{name[:-4]}_pos")[0, 0]]
        context += [learner.ctx_global_neg[0, 0], learner.ctx_local_neg[0, 0]][name[0] == "l" :][:1] * (length == 5)
        torch.testing.assert_close(embeddings[row], torch.cat([own[:1], *context, own[1 + length :]]))


def test_features_are_those_of_a_tower_that_is_written_out(small_model):
    """Against open_clip's own blocks, with the deep tokens put in by hand."""
    learner = GlocalLearner(small_model, n_ctx=3, ab_ctx=2, depth=3, t_n_ctx=2)
    clip, (embeddings, tokens) = small_model.clip, learner.prompts()
    x = embeddings + clip.positional_embedding
    mask = torch.full((77, 77), float("-inf")).triu(1)
    for number, block in enumerate(clip.transformer.resblocks, start=1):
        if number in (2, 3):
            x = x.clone()
            x[:, 1:3] = learner.compound_prompts_text[number - 2].half().float()
        x = block(x, attn_mask=mask)
    expected = clip.ln_final(x)[torch.arange(4), tokens.argmax(-1)] @ clip.text_projection
    torch.testing.assert_close(learner().flatten(0, 1), expected, atol=2e-5, rtol=1e-4)


def test_the_global_pair_makes_the_score_and_the_local_pair_the_map(method, features):
    set_classes(method, ["object"])
    scores, maps = method.predict(features, "object")
    pairs = F.normalize(method.learner(), dim=-1)
    image = F.normalize(features["image_features"], dim=-1)
    torch.testing.assert_close(scores, (image @ pairs[0].T / 0.07).softmax(-1)[:, 1])
    patches = F.normalize(features["patch_features"][:, 0, 1:], dim=-1)
    normal, abnormal = (patches @ pairs[1].T / 0.07).softmax(-1).unbind(-1)
    torch.testing.assert_close(maps.flatten(1), (abnormal + 1 - normal) / 2)


def test_loss_is_the_written_out_sum(method, features):
    """What the released code computes: four equal taps at weight 1 are one at weight 4."""
    masks = (torch.from_numpy(np.random.RandomState(1).rand(4, 96, 96)) > 0.7).float()
    labels = torch.tensor([0, 1, 0, 1])
    losses = method.losses(features, labels, masks, ["object"] * 4)
    pairs = F.normalize(method.learner(), dim=-1)
    logits = F.normalize(features["image_features"], dim=-1) @ pairs[0].T / 0.07
    torch.testing.assert_close(losses["image_loss"], F.cross_entropy(logits, labels))
    patches = F.normalize(features["patch_features"][:, 0, 1:], dim=-1)
    both = (patches @ pairs[1].T / 0.07).softmax(-1).transpose(1, 2).unflatten(2, (12, 12))
    both = F.interpolate(both, size=96, mode="bilinear", align_corners=False)
    dice = BinaryDiceLoss()
    local = FocalLoss()(both, masks) + dice(both[:, 1], masks) + dice(both[:, 0], 1 - masks)
    torch.testing.assert_close(losses["local_loss"], 4 * local)
    distances = ((pairs[0] - pairs[1]) ** 2).sum()
    torch.testing.assert_close(losses["glocal_loss"], distances, atol=1e-5, rtol=1e-4)


def test_a_margin_pushes_other_states_away():
    stream = np.random.RandomState(2)
    own, other = (torch.from_numpy(stream.standard_normal((2, 8)).astype(np.float32)) for _ in range(2))
    (g_n, g_a), (l_n, l_a) = F.normalize(own, dim=-1), F.normalize(other, dim=-1)

    def term(anchor, positive, negative):
        far = torch.linalg.norm(anchor - negative)
        return torch.linalg.norm(anchor - positive) ** 2 + max(1.5 - far, 0) ** 2

    expected = term(g_n, l_n, l_a) + term(g_a, l_a, l_n)
    torch.testing.assert_close(contrastive_loss(own, other, 1.5), expected, atol=1e-5, rtol=1e-4)
    assert contrastive_loss(own, other, 1.5) > contrastive_loss(own, other)


def test_its_features_are_found_in_anomalyclips_cache(model):
    other = make_method("anomalyclip", model, features_list=[6])
    assert make_method("glocalclip", model).cache_key() == other.cache_key()


@pytest.mark.parametrize(
    "sizes", [{"ab_ctx": 0}, {"n_ctx": 0}, {"n_ctx": 40, "ab_ctx": 40}, {"t_n_ctx": 9, "n_ctx": 3}]
)
def test_sizes_that_no_prompt_can_have(small_model, sizes):
    with pytest.raises(InputError):
        GlocalLearner(small_model, **sizes)


def test_the_authors_file_needs_no_settings_and_is_told_from_anomalyclips(data, tmp_path, monkeypatch, capsys):
    model = AnomalyCLIP_lib.load("tiny")
    learner = GlocalLearner(model, n_ctx=5, ab_ctx=3, depth=2)
    path = tmp_path / "epoch_15.pth"
    torch.save({"prompt_learner": learner.state_dict()}, path)
    arguments = ("--data_path", data, "--checkpoint_path", path, *QUICK)
    assert run(monkeypatch, "test", *arguments, "--save_path", tmp_path / "a", "--method", "glocalclip") == 0
    assert run(monkeypatch, "test", *arguments, "--save_path", tmp_path / "b") == 2
    check_error(capsys, "no ctx_pos.*it looks like one of --method glocalclip")
