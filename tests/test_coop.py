"""CoOp: reference arrays on generated weights, six ways of training among them, and its own settings."""

import math

import numpy as np
import pytest
import torch
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
from AnomalyCLIP_lib.similarity import class_probabilities, full_size
from features import set_classes
from methods.coop import Method
from utils import InputError

FILE = REFERENCES / "coop.npz"
RUNS = ("const", "csc", "mixed", "scale100", "sched", "decay")


def make(model, **changes) -> Method:
    """The method with the references' context."""
    method = make_method("coop", model, **changes)
    shape = method.learner.ctx.shape
    values = np.random.RandomState(6006 if len(shape) == 3 else 6005).standard_normal(shape) * 0.02
    method.load({"ctx": torch.from_numpy(values.astype(np.float32))})
    return method


def train(model, config: dict, features: dict[str, torch.Tensor], run: str) -> tuple[Method, dict]:
    """Six steps as config["runs"] describes them: the trained method, and the arrays of the run."""
    method = make(model, csc=run == "csc", epoch=3)
    classes, labels = config["classes"], torch.arange(8) % 2
    names = [classes[i // 2 % 2] if run == "mixed" else "bottle" for i in range(8)]
    optimizer, start, losses = method.optimizer(), method.learner.ctx.detach().clone(), []
    if run == "decay":
        optimizer.param_groups[0]["weight_decay"] = 5.0
    own_scale = model.clip.logit_scale.clone()
    if run == "scale100":
        model.clip.logit_scale.fill_(math.log(100))
    for step in range(6):
        chosen = slice(0, 4) if step % 2 == 0 else slice(4, 8)
        if run == "sched":
            optimizer.param_groups[0]["lr"] = method.learning_rate(1 + step // 2)
        batch = {"image_features": features["image_features"][chosen]}
        loss = sum(method(batch, labels[chosen], None, names[chosen]).values())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradient = method.learner.ctx.grad.clone()
        optimizer.step()
        losses.append(loss.item())
    model.clip.logit_scale.copy_(own_scale)
    arrays = {"grad0": gradient, "losses": np.array(losses), "ctx_change": method.learner.ctx - start}
    return method, {f"train_{run}_{name}": array for name, array in arrays.items()}


def compute(model, config: dict) -> dict:
    """Every array of the reference file, complete, by name."""
    images, classes, sigma = reference_images(config, 8), config["classes"], config["sigma"]
    size = model.image_size
    method, summed = make(model), make(model, features_list=[2, 4, 6])
    features, blocks = method.encode(images), summed.encode(images)
    without = make(model, no_ln_post=True).encode(images)
    for each in (method, summed):
        set_classes(each, classes)
    embeddings, tokens = method.learner.prompts(classes)
    ours = {
        "tokenized_prompts": tokens,
        "prompt_embeddings": embeddings[:, :26],
        "text_features": torch.cat([method.text_features[name] for name in classes]),
        "text_features_csc": make(model, csc=True).learner(["bottle"])[0],
        "image_features": features["image_features"],
        "image_features_no_ln_post": without["image_features"],
    }
    for index, layer in enumerate((2, 4, 6)):
        patches = class_probabilities(blocks["patch_features"][:4, index, 1:], method.text_features["bottle"])
        ours[f"patch_probs_{layer}_bottle"] = patches
    for name in classes:
        scores, maps = method.predict(features, name)
        ours |= {f"scores_{name}": scores, f"scores_no_ln_post_{name}": method.predict(without, name)[0]}
        if name == "bottle":
            ours |= {"map_last_bottle": full_size(maps[:3], size)}
            ours["map_last_smoothed_bottle"] = full_size(maps[:2], size, sigma)
    ours["map_sum_smoothed_bottle"] = full_size(summed.predict(blocks, "bottle")[1][:2], size, sigma)
    ours["logits_bottle"] = method.logits(features["image_features"], ["bottle"] * 8)

    for run in RUNS:
        trained, arrays = train(model, config, features, run)
        ours |= arrays
        if run == "const":
            set_classes(trained, ["bottle"])
            scores, maps = trained.predict(features, "bottle")
            ours |= {
                "trained_text_features": trained.text_features["bottle"],
                "trained_scores_bottle": scores,
                "trained_scores_no_ln_post_bottle": trained.predict(without, "bottle")[0],
                "trained_map_last_bottle": full_size(maps[:3], size),
                "trained_map_last_smoothed_bottle": full_size(maps[:2], size, sigma),
            }
    return ours


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Stored arrays, config and model."""
    arrays, config = read_references(FILE)
    return arrays, config, load_reference_model(config, str(arrays["weights_sha256"]), tmp_path_factory.mktemp("coop"))


@pytest.fixture(scope="module")
def ours(references):
    _, config, model = references
    return compute(model, config)


@pytest.fixture(scope="module")
def tiny():
    return AnomalyCLIP_lib.load("tiny", dpam_layer=1)


@pytest.mark.parametrize("name", reference_names(FILE))
def test_reference(references, ours, name):
    assert_close(ours[name], references[0][name])


def test_every_array_is_compared(references, ours):
    assert ours.keys() | {"seed", "weights_sha256"} == references[0].keys()


def test_own_settings(tiny):
    method = make_method("coop", tiny)
    group = method.optimizer().param_groups[0]
    expected = {"lr": 0.002, "momentum": 0.9, "weight_decay": 5e-4, "dampening": 0, "nesterov": False}
    assert expected.items() <= group.items()
    assert [parameter.shape for parameter in method.parameters()] == [(16, 128)]
    assert (method.settings["epoch"], method.settings["batch_size"]) == (200, 32)


def test_schedule(tiny):
    method = make_method("coop", tiny)
    rates = [method.learning_rate(epoch) for epoch in range(1, 201)]
    assert rates[:2] == [1e-5, 0.002]
    assert rates[101] == pytest.approx(0.001)
    assert rates[-1] == pytest.approx(0.002 * (1 + math.cos(math.pi * 198 / 200)) / 2)
    assert all(later < earlier for earlier, later in zip(rates[1:], rates[2:], strict=False))


@pytest.mark.parametrize("csc", [False, True])
def test_contexts_belong_to_states_not_to_objects(tiny, csc):
    learner = make_method("coop", tiny, csc=csc).learner
    together = learner(["bottle", "metal_nut", "screw"])
    for features, name in zip(together, ["bottle", "metal_nut", "screw"], strict=True):
        torch.testing.assert_close(features, learner([name])[0], atol=1e-5, rtol=0)
    assert torch.equal(learner(["metal_nut"]), learner(["metal nut"]))


@pytest.mark.parametrize("csc", [False, True])
def test_training_lowers_the_loss_of_every_class(tiny, csc):
    torch.manual_seed(0)
    method = make_method("coop", tiny, csc=csc)
    labels, names = torch.tensor([0, 1] * 4), ["metal_nut", "metal_nut", "screw", "screw"] * 2
    image_features = torch.randn(8, tiny.clip.visual.proj.shape[1]) + 2 * labels[:, None]
    optimizer, losses = method.optimizer(), []
    for _ in range(20):
        loss = method({"image_features": image_features}, labels, None, names)["image_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_state_goes_around(tiny):
    for csc in (False, True):
        method = make_method("coop", tiny, n_ctx=5, csc=csc)
        state = method.learner.state_dict()
        assert Method.sizes(state) == {"n_ctx": 5, "csc": csc}
        other = make_method("coop", tiny, **Method.sizes(state))
        other.load(state)
        for each in (method, other):
            set_classes(each, ["screw"])
            assert not each.text_features["screw"].requires_grad
        assert torch.equal(method.text_features["screw"], other.text_features["screw"])


@pytest.mark.parametrize(
    "state",
    [{}, {"ctx_pos": torch.zeros(1, 1, 12, 8)}, {"ctx": 3}, {"ctx": torch.zeros(16)}, {"ctx": torch.zeros(4, 16, 8)}],
)
def test_state_of_another_method_is_refused(tiny, state):
    with pytest.raises(InputError, match="no CoOp context") as error:
        Method.sizes(state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "state",
    [{}, {"ctx": torch.zeros(16, 768)}, {"ctx": torch.zeros(2, 16, 128)}, {"ctx": torch.zeros(16, 128), "more": 1}],
)
def test_state_that_does_not_fit_is_refused(tiny, state):
    with pytest.raises(InputError) as error:
        make_method("coop", tiny).load(state)
    assert "\n" not in str(error.value)


def test_length_of_the_context(tiny):
    with pytest.raises(InputError, match="at least 1"):
        make_method("coop", tiny, n_ctx=0)
    with pytest.raises(
        InputError, match="n_ctx 74 and 'anomalous bottle.' make a prompt of 81 tokens, but the text tower takes 77"
    ):
        make_method("coop", tiny, n_ctx=74).set_classes(["bottle"])
