"""VAND: the numbers of its released code on generated weights and inputs, and the method's own duties."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    REFERENCES,
    assert_close,
    assert_same_predictions,
    load_reference_model,
    make_method,
    read_references,
    reference_images,
    reference_names,
)
from open_clip.transformer import QuickGELU

import AnomalyCLIP_lib
from AnomalyCLIP_lib.blocks import embed, run_block
from methods.vand import Method, prompts
from utils import InputError

FILE = REFERENCES / "vand.npz"


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Reference arrays, and the same computed here: the names without and with gelu_."""
    arrays, config = read_references(FILE)
    model = load_reference_model(config, str(arrays["weights_sha256"]), tmp_path_factory.mktemp("vand"))
    masks, labels = torch.from_numpy(arrays["masks"]).float(), torch.from_numpy(arrays["labels"])
    released = compute(model, config, masks, labels, quick_gelu=False)
    ours = compute(model, config, masks, labels, quick_gelu=True)
    return arrays, ours | {f"gelu_{name}": value for name, value in released.items()}


def compute(model, config: dict, masks: torch.Tensor, labels: torch.Tensor, quick_gelu: bool) -> dict:
    """Features, scores, maps and a training run of the references' config, under the names of their arrays."""
    layers, classes = config["features_list"], config["classes"]
    method = make_method("vand", model, features_list=layers, quick_gelu=quick_gelu)
    method.load(reference_linears(layers, *method.clip.visual.proj.shape))
    images, class_names = reference_images(config, 8), [classes[i // 2 % 2] for i in range(8)]

    results = {}
    with torch.no_grad():
        features = method.encode(images)
        method.set_classes(classes)
        for name in classes:
            results[f"text_features_{name}"] = method.text_features[name]
            texts = prompts(name)
            results[f"prompts_{name}"] = dict(zip(("normal", "abnormal"), texts, strict=True))
            results[f"tokens_{name}"] = model.tokenizer(sum(texts, []))
        results["image_features"] = features["image_features"][:2]
        results["image_features_normalised"] = F.normalize(features["image_features"], dim=-1)
        results["positional_embedding_resized"] = method.clip.visual.positional_embedding
        results["activation_plain"] = type(method.clip.visual.transformer.resblocks[0].mlp.gelu).__name__
        tokens = embed(method.clip.visual, images[:1])
        for number, block in enumerate(method.clip.visual.transformer.resblocks, start=1):
            tokens = run_block(block, tokens)
            results[f"block_tokens_{number}"] = tokens
        linears = method.learner(features["patch_tokens"])
        texts = torch.stack([method.text_features[name] for name in class_names])
        maps = method.probability_maps(features["patch_tokens"], texts)
        for index, layer in enumerate(layers):
            torch.testing.assert_close(
                features["patch_tokens"][:1, index], results[f"block_tokens_{layer}"][:, 1:], atol=1e-5, rtol=0
            )
            results[f"patch_linear_{layer}"] = linears[index][:1]
            results[f"patch_linear_normalised_{layer}"] = F.normalize(linears[index][1:2], dim=-1)
            results[f"map_{layer}"] = maps[index][:2, 1]
        single = [method.predict({k: v[i : i + 1] for k, v in features.items()}, class_names[i]) for i in range(8)]
        results["scores"] = torch.cat([score for score, _ in single])
        results["map"] = torch.cat([anomaly_map for _, anomaly_map in single])[: 4 if quick_gelu else 2]

    optimizer, runs = method.optimizer(), {"losses": [], "focal": [], "dice": []}
    for step in range(config["steps"]):
        chosen = [4 * step % 8 + offset for offset in range(4)]
        batch, names = {"patch_tokens": features["patch_tokens"][chosen]}, [class_names[i] for i in chosen]
        loss = method.losses(batch, labels[chosen], masks[chosen], names)["local_loss"]
        with torch.no_grad():
            maps = method.probability_maps(batch["patch_tokens"], texts[chosen])
            runs["focal"].append([method.focal(layer, masks[chosen]).item() for layer in maps])
            runs["dice"].append([method.dice(layer[:, 1], masks[chosen]).item() for layer in maps])
        runs["losses"].append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for layer, linear in zip(layers, method.learner.fc, strict=True):
                results[f"train_grad0_weight_{layer}"] = linear.weight.grad.clone()
                results[f"train_grad0_bias_{layer}"] = linear.bias.grad.clone()
        optimizer.step()
    for layer, linear in zip(layers, method.learner.fc, strict=True):
        results[f"train_final_weight_{layer}"] = linear.weight
        results[f"train_final_bias_{layer}"] = linear.bias
    return results | {f"train_{name}": np.array(values) for name, values in runs.items()}


def reference_linears(layers: list[int], width: int, dimension: int) -> dict[str, torch.Tensor]:
    """The linear layers that the reference starts from."""
    stream, state = np.random.RandomState(5003), {}
    for index in range(len(layers)):
        state[f"fc.{index}.weight"] = stream.standard_normal((dimension, width)) / np.sqrt(width)
        state[f"fc.{index}.bias"] = 0.02 * stream.standard_normal(dimension)
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}


@pytest.mark.parametrize("name", [name for name in reference_names(FILE) if name not in ("masks", "labels")])
def test_numbers_of_the_released_code(references, name):
    theirs, ours = references[0][name], references[1][name]
    if name.startswith("prompts_"):
        assert ours == json.loads(str(theirs))
    elif name == "activation_plain":
        assert ours == str(theirs)
    else:
        assert_close(ours, theirs)


@pytest.fixture(scope="module")
def tiny():
    return AnomalyCLIP_lib.load("tiny")


@pytest.fixture
def method(tiny):
    torch.manual_seed(0)
    return make_method("vand", tiny)


@pytest.fixture(scope="module")
def batch(tiny):
    """Features, labels, masks and class names of four images."""
    stream, size = torch.Generator().manual_seed(0), tiny.image_size
    labels, masks = torch.tensor([0, 1, 0, 1]), torch.zeros(4, size, size)
    masks[1, 10:40, 20:50], masks[3, 50:, :30] = 1, 1
    with torch.no_grad():
        features = make_method("vand", tiny).encode(torch.randn(4, 3, size, size, generator=stream))
    return features, labels, masks, ["bottle", "metal_nut", "metal_nut", "bottle"]


def test_features_and_the_names_of_the_state_dict(method, tiny, batch):
    width, dimension = tiny.clip.visual.proj.shape
    assert batch[0]["image_features"].shape == (4, dimension)
    assert batch[0]["patch_tokens"].shape == (4, 4, tiny.grid**2, width)
    shapes = {name: tuple(value.shape) for name, value in method.learner.state_dict().items()}
    weights = {f"fc.{index}.weight": (dimension, width) for index in range(4)}
    assert shapes == weights | {f"fc.{index}.bias": (dimension,) for index in range(4)}
    assert set(dict(method.named_parameters())) == {f"learner.{name}" for name in shapes}


def test_training_lowers_the_loss_and_changes_only_the_linear_layers(method, tiny, batch):
    frozen = {name: value.clone() for name, value in tiny.clip.state_dict().items()}
    optimizer, losses = method.optimizer(), []
    for _ in range(4):
        loss = sum(method(*batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[1:]) < losses[0]
    assert all(torch.equal(value, frozen[name]) for name, value in tiny.clip.state_dict().items())


def test_losses_need_only_the_training_features(method, batch):
    features, *others = batch
    reduced = {name: features[name] for name in Method.TRAINING_FEATURES}
    assert torch.equal(method(reduced, *others)["local_loss"], method(*batch)["local_loss"])


def test_each_image_of_a_batch_has_the_texts_of_its_class(method, batch):
    features, labels, masks, class_names = batch
    with torch.no_grad():
        mixed = method(features, labels, masks, class_names)["local_loss"]
        alone = [
            method(
                {key: value[i : i + 1] for key, value in features.items()}, labels[[i]], masks[[i]], [class_names[i]]
            )["local_loss"]
            for i in range(4)
        ]
        other = method(features, labels, masks, ["bottle"] * 4)["local_loss"]
    torch.testing.assert_close(mixed, torch.stack(alone).mean())
    assert abs(mixed - other) > 1e-3


def test_a_batch_gives_what_its_images_give_one_by_one(method, tiny):
    images = torch.randn(3, 3, tiny.image_size, tiny.image_size, generator=torch.Generator().manual_seed(1))
    method.set_classes(["bottle", "metal_nut"])
    with torch.no_grad():
        scores, maps = method.predict(method.encode(images), "metal_nut")
        single = [method.predict(method.encode(image[None]), "metal_nut") for image in images]
    assert scores.shape == (3,) and maps.shape == (3, tiny.image_size, tiny.image_size)
    torch.testing.assert_close(scores, torch.cat([score for score, _ in single]), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps, torch.cat([anomaly_map for _, anomaly_map in single]), atol=1e-4, rtol=0)
    assert 0 <= maps.min() and maps.max() <= 4


def test_texts_are_computed_once_and_keep_underscores(method):
    assert prompts("metal_nut")[1][0] == "a bad photo of a damaged metal_nut."
    assert [len(texts) for texts in prompts("bottle")] == [245, 175]
    method.set_classes(["metal_nut"])
    first = method.text_features["metal_nut"]
    method.set_classes(["metal_nut", "bottle"])
    assert method.text_features["metal_nut"] is first
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(2))


def test_a_file_in_the_authors_format_loads(method, batch, tmp_path):
    path, other = tmp_path / "epoch_15.pth", make_method("vand", method.model)
    torch.save({Method.STATE: method.learner.state_dict()}, path)
    state = torch.load(path, weights_only=True)["trainable_linearlayer"]
    assert Method.sizes(state) == {}
    other.load(state)
    assert_same_predictions(method, other, batch[0])


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(method, tiny):
    four = method.learner.state_dict()
    two = {name: value for name, value in four.items() if name[3] in "01"}
    wrong = {
        "does not hold VAND's linear layers": {"ctx_pos": torch.zeros(1, 1, 12, 64)},
        "has 4 linear layers, features_list [2, 6] wants 2": four,
        "fc.1.bias is missing": {name: value for name, value in two.items() if name != "fc.1.bias"},
        "fc.0.weight is (128, 64), not": two | {"fc.0.weight": torch.zeros(128, 64)},
    }
    for message, content in wrong.items():
        with pytest.raises(InputError) as caught:
            make_method("vand", tiny, features_list=[2, 6]).load(content)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="VAND's linear layers"):
        Method.sizes({})


def test_training_without_masks_is_refused():
    assert Method.check_training({}, SimpleNamespace(root="data", has_masks=True)) == []
    with pytest.raises(InputError, match="data has no masks"):
        Method.check_training({}, SimpleNamespace(root="data", has_masks=False))


def test_the_model_stays_as_it_is_and_only_other_sizes_lose_quickgelu(weights_file):
    model = AnomalyCLIP_lib.load(None, weights_file, image_size=70)
    positions = model.clip.visual.positional_embedding
    method, kept = make_method("vand", model), make_method("vand", model, quick_gelu=True)
    native = make_method("vand", AnomalyCLIP_lib.load(None, weights_file, image_size=84))
    activations = [each.settings["activation"] for each in (method, kept, native)]
    assert activations == ["GELU", "QuickGELU", "QuickGELU"]
    for owner, quick in ((method, False), (kept, True), (native, True), (model, True)):
        for tower in (owner.clip.visual.transformer, owner.clip.transformer):
            assert all(isinstance(block.mlp.gelu, QuickGELU) == quick for block in tower.resblocks)
    assert model.clip.visual.positional_embedding is positions
    assert method.clip.visual.conv1.weight is model.clip.visual.conv1.weight
    assert method.cache_key() != kept.cache_key()
