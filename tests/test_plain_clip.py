"""CLIP and CLIP-AC: reference arrays on generated weights, and what their features and texts depend on."""

import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    REFERENCES,
    assert_close,
    load_reference_model,
    make_method,
    read_references,
    reference_images,
    reference_names,
)

import AnomalyCLIP_lib
from AnomalyCLIP_lib.blocks import resize_positions
from AnomalyCLIP_lib.similarity import class_probabilities, full_size
from methods import clip, clip_ac

FILE = REFERENCES / "clip.npz"


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Stored arrays, config and model."""
    arrays, config = read_references(FILE)
    return arrays, config, load_reference_model(config, str(arrays["weights_sha256"]), tmp_path_factory.mktemp("clip"))


def compute(model, config: dict) -> dict:
    """Every array of the reference file but `ac_templates`, complete, by name."""
    images, classes = reference_images(config, 4), [name.replace(" ", "_") for name in config["classes"]]
    layers, sigma = config["layers"], config["sigma"]

    def method(name: str, **changes):
        built = make_method(name, model, **changes)
        built.set_classes(classes)
        return built

    plain, summed = method("clip"), method("clip", features_list=layers)
    features, without = plain.encode(images), method("clip", no_ln_post=True).encode(images)
    blocks = summed.encode(images)
    ours = {
        "image_features": features["image_features"],
        "image_features_no_ln_post": without["image_features"],
        "patch_features_last": features["patch_features"][:2, 0, 1:],
        "positional_embedding_resized": resize_positions(model.clip.visual.positional_embedding, (7, 7)),
        "ac_prompt_embeddings_bottle": model.encode_text(clip_ac.prompts("bottle")).unflatten(0, (2, 80)),
    }
    built = {
        "clip": (plain, summed),
        "ac": (method("clip_ac"), method("clip_ac", features_list=layers)),
        "ac_rawmean": (method("clip_ac", raw_mean=True), None),
    }
    for name in classes:
        prompts = [prompt.format(name.replace("_", " ")) for prompt in clip.PROMPTS]
        ours[f"clip_tokens_{name}"] = model.tokenizer(prompts)
        ours[f"clip_text_embeddings_{name}"] = plain.text_features[name]
        for prefix, (last, _) in built.items():
            scores, _ = last.predict(features, name)
            patches = class_probabilities(features["patch_features"][:, 0, 1:], last.text_features[name])
            ours[f"{prefix}_text_features_{name}"] = F.normalize(last.text_features[name], dim=-1)
            ours[f"{prefix}_scores_{name}"] = scores
            ours[f"{prefix}_scores_no_ln_post_{name}"] = last.predict(without, name)[0]
            ours[f"{prefix}_patch_probs_last_{name}"] = patches
    first_two = {key: value[:2] for key, value in features.items()}
    for prefix in ("clip", "ac"):
        last, several = built[prefix]
        maps = last.predict(first_two, "bottle")[1]
        ours[f"{prefix}_map_last_bottle"] = full_size(maps, model.image_size)
        ours[f"{prefix}_map_last_smoothed_bottle"] = full_size(maps, model.image_size, sigma)
        ours[f"{prefix}_map_sum_smoothed_bottle"] = full_size(
            several.predict(blocks, "bottle")[1][:2], model.image_size, sigma
        )
        for index, layer in enumerate(layers[:2]):
            tokens = blocks["patch_features"][:2, index, 1:]
            ours[f"{prefix}_patch_probs_{layer}_bottle"] = class_probabilities(tokens, last.text_features["bottle"])
    return ours


@pytest.fixture(scope="module")
def ours(references):
    _, config, model = references
    with torch.no_grad():
        return compute(model, config)


@pytest.mark.parametrize("name", [name for name in reference_names(FILE) if name != "ac_templates"])
def test_reference(references, ours, name):
    assert_close(ours[name], references[0][name])


def test_every_array_is_compared(references, ours):
    assert ours.keys() | {"ac_templates", "seed", "weights_sha256"} == references[0].keys()


def test_templates(references):
    templates = json.loads(str(references[0]["ac_templates"]))
    filled = [template.format(f"{state} bottle") for state in ("normal", "anomalous") for template in templates]
    assert clip_ac.prompts("bottle") == filled


@pytest.mark.parametrize("name", ["bottle", "metal nut"])
def test_clip_ac_is_open_clips_classifier(references, name):
    _, _, model = references
    states = [f"normal {name}", f"anomalous {name}"]
    theirs = open_clip.build_zero_shot_classifier(
        model.clip, model.tokenizer, states, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    method = make_method("clip_ac", model)
    method.set_classes([name])
    torch.testing.assert_close(method.text_features[name], theirs.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clip", "clip_ac"])
def test_spelling_of_class_names(references, name):
    _, _, model = references

    def text_features(class_name: str, **changes) -> torch.Tensor:
        method = make_method(name, model, **changes)
        method.set_classes([class_name])
        return method.text_features[class_name]

    spaces = text_features("metal nut")
    assert torch.equal(text_features("metal_nut"), spaces)
    assert torch.equal(text_features("metal nut", keep_underscores=True), spaces)
    assert not torch.allclose(text_features("metal_nut", keep_underscores=True), spaces, atol=1e-3)


def test_key_of_the_features(references):
    """The three methods have the same features; the image feature does not depend on the tapped blocks."""
    _, config, model = references
    images = reference_images(config, 1)
    keys = [make_method(name, model).cache_key() for name in ("clip", "clip_ac", "coop")]
    assert keys[0] == keys[1] == keys[2]
    assert keys[0]["features_list"] == [6]
    methods = [make_method("clip", model, **change) for change in ({}, {"features_list": [2]})]
    encoded = [method.encode(images) for method in methods]
    assert torch.equal(encoded[0]["image_features"], encoded[1]["image_features"])
    assert encoded[1]["patch_features"].shape == (1, 1, 50, 96)
    others = [*methods, make_method("clip", model, no_ln_post=True)]
    assert len({json.dumps(method.cache_key()) for method in others}) == 3


@pytest.mark.parametrize("name", ["clip", "clip_ac", "coop"])
def test_on_the_embedded_backbone(name):
    model = AnomalyCLIP_lib.load("tiny", dpam_layer=1)
    method = make_method(name, model)
    method.set_classes(["metal_nut", "a thing of many words"])
    images = torch.from_numpy(np.random.RandomState(0).rand(2, 3, model.image_size, model.image_size)).float()
    with torch.no_grad():
        scores, maps = method.predict(method.encode(images), "metal_nut")
    assert scores.shape == (2,)
    assert maps.shape == (2, model.grid, model.grid)
    for values in (scores, maps):
        assert ((0 <= values) & (values <= 1)).all()


def test_dpam_is_refused():
    with pytest.raises(ValueError, match="dpam_layer 1"):
        make_method("clip", AnomalyCLIP_lib.load("tiny"))
