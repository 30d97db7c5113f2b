"""The rows CLIP and CLIP-AC: reference arrays on generated weights, and what they depend on."""

import json

import goldens
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

import AnomalyCLIP_lib
from AnomalyCLIP_lib.dpam import resize_positions
from AnomalyCLIP_lib.similarity import class_probabilities, smooth
from methods import flags, method_class
from methods.clip import Method as Clip
from methods.clip_ac import Method as ClipAC
from prompt_ensemble import CLIP_PROMPTS, clip_ac_prompts

FILE = goldens.DATA / "clip.npz"


def settings_of(name: str, **changes) -> dict:
    """Default settings of a method, with `changes`."""
    return flags(name)["SETTINGS"] | {"image_size": 98} | changes


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Stored arrays, config and model."""
    arrays, config = goldens.read(FILE)
    return arrays, config, goldens.load_model(config, str(arrays["weights_sha256"]), tmp_path_factory.mktemp("clip"))


def compute(model, config: dict) -> dict:
    """Every array of the reference file but `ac_templates`, complete, by name."""
    images, classes = goldens.images(config, 4), [name.replace(" ", "_") for name in config["classes"]]
    layers, sigma = config["layers"], config["sigma"]

    def row(method, name: str, **changes):
        built = method(model, settings_of(name, **changes))
        built.set_classes(classes)
        return built

    plain, summed = row(Clip, "clip"), row(Clip, "clip", features_list=layers)
    features, without = plain.encode(images), row(Clip, "clip", no_ln_post=True).encode(images)
    blocks = summed.encode(images)
    ours = {
        "image_features": features["image_features"],
        "image_features_no_ln_post": without["image_features"],
        "patch_features_last": features["patch_features"][:2, 0, 1:],
        "positional_embedding_resized": resize_positions(model.clip.visual.positional_embedding, (7, 7)),
        "ac_prompt_embeddings_bottle": model.encode_text(clip_ac_prompts("bottle")).unflatten(0, (2, 80)),
    }
    rows = {
        "clip": (plain, summed),
        "ac": (row(ClipAC, "clip_ac"), row(ClipAC, "clip_ac", features_list=layers)),
        "ac_rawmean": (row(ClipAC, "clip_ac", raw_mean=True), None),
    }
    for name in classes:
        prompts = [prompt.format(name.replace("_", " ")) for prompt in CLIP_PROMPTS]
        ours[f"clip_tokens_{name}"] = model.tokenizer(prompts)
        ours[f"clip_text_embeddings_{name}"] = plain.text_features[name]
        for prefix, (last, _) in rows.items():
            scores, _ = last.predict(features, name)
            patches = class_probabilities(features["patch_features"][:, 0, 1:], last.text_features[name])
            ours[f"{prefix}_text_features_{name}"] = F.normalize(last.text_features[name], dim=-1)
            ours[f"{prefix}_scores_{name}"] = scores
            ours[f"{prefix}_scores_no_ln_post_{name}"] = last.predict(without, name)[0]
            ours[f"{prefix}_patch_probs_last_{name}"] = patches
    first_two = {key: value[:2] for key, value in features.items()}
    for prefix in ("clip", "ac"):
        last, several = rows[prefix]
        maps = last.predict(first_two, "bottle")[1]
        ours[f"{prefix}_map_last_bottle"] = maps
        ours[f"{prefix}_map_last_smoothed_bottle"] = smooth(maps, sigma)
        ours[f"{prefix}_map_sum_smoothed_bottle"] = smooth(several.predict(blocks, "bottle")[1][:2], sigma)
        for index, layer in enumerate(layers[:2]):
            tokens = blocks["patch_features"][:2, index, 1:]
            ours[f"{prefix}_patch_probs_{layer}_bottle"] = class_probabilities(tokens, last.text_features["bottle"])
    return ours


@pytest.fixture(scope="module")
def ours(golden):
    _, config, model = golden
    return compute(model, config)


@pytest.mark.parametrize("name", [name for name in goldens.names(FILE) if name != "ac_templates"])
def test_reference(golden, ours, name):
    goldens.assert_close(ours[name], golden[0][name])


def test_every_array_is_compared(golden, ours):
    assert ours.keys() | {"ac_templates", "seed", "weights_sha256"} == golden[0].keys()


def test_templates(golden):
    templates = json.loads(str(golden[0]["ac_templates"]))
    filled = [template.format(f"{state} bottle") for state in ("normal", "anomalous") for template in templates]
    assert clip_ac_prompts("bottle") == filled


@pytest.mark.parametrize("name", ["bottle", "metal nut"])
def test_clip_ac_is_open_clips_classifier(golden, name):
    _, _, model = golden
    states = [f"normal {name}", f"anomalous {name}"]
    theirs = open_clip.build_zero_shot_classifier(
        model.clip, model.tokenizer, states, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    method = ClipAC(model, settings_of("clip_ac"))
    method.set_classes([name])
    torch.testing.assert_close(method.text_features[name], theirs.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clip", "clip_ac"])
def test_spelling_of_class_names(golden, name):
    _, _, model = golden

    def text_features(class_name: str, **changes) -> torch.Tensor:
        method = method_class(name)(model, settings_of(name, **changes))
        method.set_classes([class_name])
        return method.text_features[class_name]

    spaces = text_features("metal nut")
    assert torch.equal(text_features("metal_nut"), spaces)
    assert torch.equal(text_features("metal nut", keep_underscores=True), spaces)
    assert not torch.allclose(text_features("metal_nut", keep_underscores=True), spaces, atol=1e-3)


def test_key_of_the_features(golden):
    """The three rows have the same features; the image feature does not depend on the tapped blocks."""
    _, config, model = golden
    images = goldens.images(config, 1)
    keys = [method_class(name)(model, settings_of(name)).encoding() for name in ("clip", "clip_ac", "coop")]
    assert keys[0] == keys[1] == keys[2]
    assert keys[0]["features_list"] == [6]
    methods = [Clip(model, settings_of("clip", **change)) for change in ({}, {"features_list": [2]})]
    encoded = [method.encode(images) for method in methods]
    assert torch.equal(encoded[0]["image_features"], encoded[1]["image_features"])
    assert encoded[1]["patch_features"].shape == (1, 1, 50, 96)
    others = [*methods, Clip(model, settings_of("clip", no_ln_post=True))]
    assert len({json.dumps(method.encoding()) for method in others}) == 3


@pytest.mark.parametrize("name", ["clip", "clip_ac", "coop"])
def test_on_the_embedded_backbone(name):
    model = AnomalyCLIP_lib.load("tiny", dpam_layer=1)
    method = method_class(name)(model, settings_of(name, image_size=model.image_size))
    method.set_classes(["metal_nut", "a thing of many words"])
    images = torch.from_numpy(np.random.RandomState(0).rand(2, 3, model.image_size, model.image_size)).float()
    with torch.no_grad():
        scores, maps = method.predict(method.encode(images), "metal_nut")
    assert scores.shape == (2,)
    assert maps.shape == (2, model.image_size, model.image_size)
    for values in (scores, maps):
        assert ((0 <= values) & (values <= 1)).all()


def test_dpam_is_refused():
    with pytest.raises(ValueError, match="dpam_layer 1"):
        Clip(AnomalyCLIP_lib.load("tiny"), settings_of("clip"))
