"""AF-CLIP: its released code's numbers on generated weights and inputs, its losses, and the method's own duties."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    REFERENCES,
    TINY,
    assert_close,
    check_error,
    load_reference_model,
    make_data,
    make_method,
    read_references,
    reference_images,
    reference_names,
    run,
)

import AnomalyCLIP_lib
from AnomalyCLIP_lib.blocks import embed, resize_positions, run_block
from AnomalyCLIP_lib.similarity import full_size
from methods.af_clip import (
    TEXTS,
    Method,
    abnormal_probabilities,
    alignment_loss,
    focal_loss,
    patch_targets,
    token_sets,
    window,
)
from utils import InputError

FILE = REFERENCES / "af_clip.npz"
GIVEN = ("masks", "labels", "unit_align_tokens", "unit_align_targets")
LAYERS, SIZES = (6, 12, 18, 24), (1, 3, 5)
ADAPTOR = "adaptor.attention."
NORM, ATTENTION = f"{ADAPTOR}norm.", f"{ADAPTOR}attn."
LOSSES = ["image_loss", "focal_loss", "l1_loss", "alignment_loss"]


# the released code's numbers


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Reference arrays, and the same computed here."""
    arrays, config = read_references(FILE)
    model = load_reference_model(config, str(arrays["weights_sha256"]), tmp_path_factory.mktemp("af_clip"))
    return arrays, compute(model, config, arrays)


def compute(model, config: dict, arrays: dict) -> dict:
    """What the arrays of the reference hold, computed here, by their names."""
    method = make_method("af_clip", model, features_list=config["features_list"], n_ctx=config["prompt_len"])
    start = initial_state(config["prompt_len"], *model.clip.visual.proj.shape)
    method.load(start)
    masks, labels = torch.from_numpy(arrays["masks"]).float(), torch.from_numpy(arrays["labels"])
    with torch.no_grad():
        features = method.encode(reference_images(config, 8))
        results = texts(method) | towers(method, config) | token_set_values(method, features["tokens"])
        method.set_classes(["x"])
        single = [method.predict({"tokens": features["tokens"][i : i + 1]}, "x") for i in range(8)]
        results["image_scores"] = torch.cat([score for score, _ in single])
        results["map_grid"] = torch.cat([map_ for _, map_ in single])
        results["map_upsampled"] = full_size(results["map_grid"][:1], config["image"])
        results["map"] = full_size(results["map_grid"][:2], config["image"], sigma=4)
        results["targets"] = patch_targets(masks, model.grid).unflatten(1, (model.grid, model.grid))
    results |= unit_losses(arrays)
    for name, gradient in (("train", "released"), ("clean", "written")):
        method = make_method("af_clip", model, n_ctx=config["prompt_len"], gradient=gradient)
        method.load(start)
        trained = train(method, features["tokens"], labels, masks, config)
        results |= {f"{name}_{key}": value for key, value in trained.items()}
    return results


def initial_state(n_ctx: int, width: int, text_width: int) -> dict[str, torch.Tensor]:
    """The prompt and the adaptor that the reference starts from."""
    stream, inner = np.random.RandomState(5007), 512
    state = {
        f"{NORM}weight": 1 + 0.1 * stream.standard_normal(width),
        f"{NORM}bias": 0.1 * stream.standard_normal(width),
        f"{ATTENTION}to_q.weight": stream.standard_normal((inner, width)) / np.sqrt(width) * 4,
        f"{ATTENTION}to_k.weight": stream.standard_normal((inner, width)) / np.sqrt(width) * 4,
        f"{ATTENTION}to_v.weight": stream.standard_normal((inner, width)) / np.sqrt(width),
        f"{ATTENTION}to_out.0.weight": stream.standard_normal((width, inner)) / np.sqrt(inner),
        f"{ATTENTION}to_out.0.bias": 0.02 * stream.standard_normal(width),
    }
    state["prompt"] = np.random.RandomState(1007).standard_normal((1, n_ctx, 128)) * 0.02
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}


def texts(method) -> dict:
    embeddings, _ = method.learner.prompts()
    features = method.learner()
    return {
        "state_tokens": method.model.tokenizer(list(TEXTS)),
        "text_input": embeddings[:, :20] + method.model.clip.positional_embedding[:20],
        "text_features_raw": features,
        "text_features": F.normalize(features, dim=-1),
    }


def towers(method, config: dict) -> dict:
    visual, results = method.model.clip.visual, {}
    tokens = embed(visual, reference_images(config, 1))
    for number, block in enumerate(visual.transformer.resblocks, start=1):
        tokens = run_block(block, tokens)
        results[f"block_tokens_{number}"] = tokens
    grid = method.model.grid
    results["positional_embedding_resized"] = resize_positions(visual.positional_embedding, (grid, grid))
    return results | {f"gaussian_kernel_{size}": window(size) for size in SIZES}


def token_set_values(method, tokens: torch.Tensor) -> dict:
    """Each token set of the first image on its way through the adaptor, and the cosines / 0.07 of all."""
    visual, results = method.model.clip.visual, {}
    sets = token_sets(tokens)
    adapted = method.learner.adaptor(sets)
    features = visual.ln_post(adapted) @ visual.proj
    for number, name in enumerate(f"{layer}_{size}" for layer in LAYERS for size in SIZES):
        results[f"aggregated_{name}"] = sets[:1, number]
        results[f"adaptor_{name}"] = adapted[:1, number]
        results[f"features_{name}"] = features[:1, number]
    cosines = F.normalize(features, dim=-1) @ F.normalize(method.learner(), dim=-1).T  # (B, 12, N, 2)
    return results | {"scores": cosines.permute(3, 1, 0, 2) / 0.07}


def unit_losses(arrays: dict) -> dict:
    """Alignment loss of token sets A, B, both, B all normal, B all anomalous; focal loss of single probabilities."""
    features = F.normalize(torch.from_numpy(arrays["unit_align_tokens"])[:, :, 1:], dim=-1).transpose(0, 1)
    targets = torch.from_numpy(arrays["unit_align_targets"]).flatten(1)
    cases = [(features[:, :1], targets), (features[:, 1:], targets), (features, targets)]
    cases += [(features[:, 1:], torch.full_like(targets, kind)) for kind in (0, 1)]
    p, t = torch.tensor([0, 1e-30, 0.2, 0.5, 0.9, 1]), torch.tensor([0, 0.5, 1])
    focal = [[focal_loss(p[[i]], t[[k]]) for i in range(6)] for k in range(3)]
    return {"unit_align": np.array([alignment_loss(*case) for case in cases]), "unit_focal": np.array(focal)}


def train(method, tokens: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor, config: dict) -> dict:
    """The reference's steps: terms of the loss, gradients of the first, and what comes out."""
    optimizer, terms, results, parameters = method.optimizer(), [], {}, dict(method.learner.named_parameters())
    short = {name: name.removeprefix(NORM[:-5]).removeprefix("attn.").replace("out.0", "out") for name in parameters}
    for step in range(config["steps"]):
        chosen = [config["batch"] * step % 8 + offset for offset in range(config["batch"])]
        losses = method.losses({"tokens": tokens[chosen]}, labels[chosen], masks[chosen], ["x"] * len(chosen))
        assert list(losses) == LOSSES
        terms.append([loss.item() for loss in losses.values()])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        if step == 0:
            for name, parameter in parameters.items():
                results[f"grad0_{short[name]}"] = every_16th(short[name], parameter.grad.clone())
                results[f"grad0_{short[name]}_norm"] = parameter.grad.norm()
        optimizer.step()
    with torch.no_grad():
        method.set_classes(["x"])
        results["final_scores"] = method.predict({"tokens": tokens}, "x")[0]
    results |= {f"final_{short[name]}": every_16th(short[name], value) for name, value in parameters.items()}
    return results | {"terms": np.array(terms), "losses": np.array(terms).sum(axis=1)}


def every_16th(name: str, values: torch.Tensor) -> torch.Tensor:
    """The rows or columns of the large matrices that the reference keeps."""
    if name in ("to_q.weight", "to_k.weight", "to_v.weight"):
        return values[::16]
    return values[:, ::16] if name == "to_out.weight" else values


@pytest.mark.parametrize("name", [name for name in reference_names(FILE) if name not in GIVEN])
def test_numbers_of_the_released_code(references, name):
    theirs, ours = references[0][name], references[1][name]
    if name.endswith("_norm"):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
    elif "grad0" in name:
        largest = float(np.abs(theirs).max())
        assert_close(ours / largest, theirs / largest)
    else:
        assert_close(ours, theirs)


# losses


@pytest.fixture
def stream():
    return np.random.RandomState(0)


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


@pytest.mark.parametrize("kinds", [(0, 0, 0, 0.5, 1), (0, 0, 0, 1), (0,), (1,), (0, 0.5), (0.5,)])
def test_alignment_is_that_of_all_pairs(stream, kinds):
    """Sets 0 and 2: anomalous patches lie where the normal ones scatter about; sets 1 and 3: opposite them."""
    targets, direction = tensor(stream.choice(kinds, (3, 16))), stream.standard_normal(5)
    anomalous = (targets == 1).numpy()[:, None, :, None]
    centres = direction * np.where(anomalous, np.array([1, -1, 1, -1])[:, None, None], 1)
    noise = stream.standard_normal((3, 4, 16, 5)) * np.where(anomalous, 0.1, 1)
    features = F.normalize(tensor(centres + noise), dim=-1).requires_grad_()
    cosines = features @ features.transpose(-1, -2)  # (B, S, N, N)
    signs = torch.where(targets == 0, -1, targets)
    products = (signs.unsqueeze(2) * signs.unsqueeze(1)).unsqueeze(1).expand_as(cosines)
    expected = []
    for each in range(4):
        different, same = (cosines[:, each][products[:, each] == sign] for sign in (-1, 1))
        expected.append((different.mean() - same.mean()).clamp(min=0) if len(different) else 0 * features.sum())
    expected, ours = torch.stack(expected).mean(), alignment_loss(features, targets)
    assert (expected > 0) == ({0, 1} <= set(kinds))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


@pytest.mark.parametrize("released", [True, False])
def test_gradient_of_the_focal_loss(stream, released):
    """The released one comes about by a shallow copy of the targets, which is written to before the backward pass."""
    p = tensor([*stream.uniform(0, 1, 56), 0, 1e-30, 1e-6, 1]).repeat(3)
    targets = torch.tensor([0, 0.5, 1]).repeat_interleave(60)
    ours, theirs, own = p.clone().requires_grad_(), p.clone().requires_grad_(), targets.clone()
    loss = focal_loss(ours, targets, released)
    loss.backward()

    p_t = theirs * own + (1 - theirs) * (1 - own)
    expected = (F.binary_cross_entropy(theirs, own, reduction="none") * (1 - p_t) ** 4).mean()
    if released:
        signs = copy.copy(own)
        signs[signs == 0] = -1
        assert own.min() == -1
    expected.backward()

    assert torch.equal(loss, expected) and targets.min() == 0
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-5)


def test_only_normal_patches_feel_the_released_gradient(tiny, batch):
    """The values are those of the loss as written, and so are the gradients of images and of all-anomalous masks."""
    features, labels, masks = batch
    for given, alike in ((masks, False), (torch.ones_like(masks), True), (None, True)):
        losses, gradients = {}, {}
        for gradient in ("released", "written"):
            torch.manual_seed(0)
            method = make_method("af_clip", tiny, gradient=gradient)
            losses[gradient] = method.losses(features, labels, given, ["x"] * 4)
            sum(losses[gradient].values()).backward()
            gradients[gradient] = method.learner.adaptor.attention["norm"].weight.grad
        assert losses["released"] == losses["written"]
        assert torch.allclose(gradients["released"], gradients["written"], atol=1e-7, rtol=1e-3) == alike


def test_targets_have_halves_where_the_middle_of_a_patch_is_cut_in_two():
    masks = torch.zeros(1, 56, 56)
    masks[0, :14, :7] = 1  # half of the first patch: one of its two columns in the middle
    masks[0, :14, 14:22] = 1  # a column more than half of the second
    masks[0, 14:18, 14:28] = 1  # a strip that the middle of a patch does not reach
    masks[0, 35:, 28:42] = 1  # half of a patch, and the one below it
    expected = torch.tensor([[0.5, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0.5, 0], [0, 0, 1, 0]])
    assert torch.equal(patch_targets(masks, 4), expected.flatten().unsqueeze(0))


# the method


@pytest.fixture(scope="module")
def tiny():
    return AnomalyCLIP_lib.load("tiny", dpam_layer=1)


@pytest.fixture
def method(tiny):
    torch.manual_seed(0)
    return make_method("af_clip", tiny)


@pytest.fixture(scope="module")
def batch(tiny):
    """Features of four images, labels, and masks of the second and fourth."""
    stream, method = np.random.RandomState(0), make_method("af_clip", tiny)
    images, masks = tensor(stream.standard_normal((4, 3, 96, 96))), torch.zeros(4, 96, 96)
    masks[1, 20:60, 13:50] = masks[3, 40:, :44] = 1
    with torch.no_grad():
        features = method.encode(images)
    return features, torch.tensor([0, 1, 0, 1]), masks


def test_averages_are_those_of_loops_with_zeros_beyond_the_border(stream):
    tokens = tensor(stream.standard_normal((2, 2, 17, 3)))
    sets, grid = token_sets(tokens), tokens[:, :, 1:].reshape(2, 2, 4, 4, 3)
    assert sets.shape == (2, 6, 17, 3)
    for place, size in enumerate(SIZES):
        reach = range(-(size // 2), size // 2 + 1)
        weights = {(dy, dx): np.exp(-(dx**2 + dy**2) / 32) for dy in reach for dx in reach}
        for block in range(2):
            ours = sets[:, 3 * block + place]
            assert torch.equal(ours[:, 0], tokens[:, block, 0])
            for y in range(4):
                for x in range(4):
                    inside = {k: w for k, w in weights.items() if 0 <= y + k[0] < 4 and 0 <= x + k[1] < 4}
                    mean = sum(w * grid[:, block, y + dy, x + dx] for (dy, dx), w in inside.items())
                    mean = mean / sum(weights.values())
                    torch.testing.assert_close(ours[:, 1 + 4 * y + x], mean, atol=1e-6, rtol=0)


def test_attention_is_that_of_eight_heads_of_64(method, batch):
    """Written out, without a residual connection; a set does not see the others."""
    adaptor, sets = method.learner.adaptor, token_sets(batch[0]["tokens"])
    state = adaptor.state_dict()
    x = F.layer_norm(sets, sets.shape[-1:], state["attention.norm.weight"], state["attention.norm.bias"])
    q, k, v = (x @ state[f"attention.attn.to_{name}.weight"].T for name in "qkv")
    heads = []
    for head in range(8):
        columns = slice(64 * head, 64 * (head + 1))
        attention = (q[..., columns] @ k[..., columns].transpose(-1, -2) / 8).softmax(dim=-1)
        heads.append(attention @ v[..., columns])
    out = torch.cat(heads, dim=-1) @ state["attention.attn.to_out.0.weight"].T + state["attention.attn.to_out.0.bias"]
    with torch.no_grad():
        torch.testing.assert_close(adaptor(sets), out, atol=1e-5, rtol=1e-5)


def test_cosines_are_added_up_before_one_softmax(stream):
    unit_features, text_features = (tensor(stream.standard_normal(shape)) for shape in ((2, 3, 5, 4), (2, 4)))
    unit_features = F.normalize(unit_features, dim=-1)
    cosines = F.cosine_similarity(unit_features.unsqueeze(3), text_features, dim=-1).sum(dim=1)  # (2, 5, 2)
    expected = torch.sigmoid((cosines[..., 1] - cosines[..., 0]) / 0.07)
    torch.testing.assert_close(abnormal_probabilities(unit_features, text_features), expected)


def test_scores_and_maps_are_probabilities_whatever_the_class(method, batch):
    features, _, _ = batch
    with torch.no_grad():
        method.set_classes(["metal_nut", "tile"])
        score, anomaly_map = method.predict(features, "tile")
        other = method.predict(features, "metal_nut")
    grid = method.model.grid
    assert score.shape == (4,) and anomaly_map.shape == (4, grid, grid)
    assert 0 <= anomaly_map.min() and anomaly_map.max() <= Method.highest(method.settings) == 1
    assert torch.equal(score, other[0]) and torch.equal(anomaly_map, other[1])


def test_weights_of_the_losses(tiny, batch):
    results = []
    for weights in ({}, {"lambda_local": 3.0, "lambda_alignment": 0.5}):
        torch.manual_seed(0)
        results.append(make_method("af_clip", tiny, **weights).losses(*batch, ["x"] * 4))
    assert list(results[0]) == LOSSES
    for name, factor in zip(LOSSES, (1, 3, 3, 0.5), strict=True):
        assert results[1][name].item() == pytest.approx(factor * results[0][name].item(), rel=1e-6)


def test_without_masks_the_images_alone_are_learned(method, batch):
    features, labels, _ = batch
    losses = method.losses(features, labels, None, ["x"] * 4)
    losses["image_loss"].backward()
    assert list(losses) == ["image_loss"]
    assert all(parameter.grad.abs().max() > 0 for parameter in method.learner.parameters())
    assert Method.check_training({}, SimpleNamespace(has_masks=True)) == []
    assert "has no masks" in Method.check_training({}, SimpleNamespace(has_masks=False))[0]


def test_number_of_parameters_and_start(tiny):
    learner = make_method("af_clip", tiny, n_ctx=72).learner
    width, text_width = tiny.clip.visual.proj.shape[0], tiny.clip.ln_final.weight.shape[0]
    adaptor = sum(parameter.numel() for parameter in learner.adaptor.parameters())
    assert adaptor == 4 * 512 * width + 3 * width and learner.prompt.shape == (1, 72, text_width)
    assert 4 * 512 * 1024 + 3 * 1024 + 12 * 768 == 2_109_440  # of ViT-L/14, as released
    assert learner.prompt.std().item() == pytest.approx(0.01, rel=0.05)
    assert learner.adaptor.attention["attn"]["to_q"].weight.abs().max() <= width**-0.5


def test_half_precision_is_that_of_the_tower_alone(batch):
    half = make_method("af_clip", AnomalyCLIP_lib.load("tiny", dpam_layer=1, precision="bf16"))
    losses = half.losses(*batch, ["x"] * 4)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


# checkpoints


def test_a_checkpoint_keeps_its_number_of_context_vectors(tiny, method):
    state = make_method("af_clip", tiny, n_ctx=5).learner.state_dict()
    assert Method.sizes(state) == {"n_ctx": 5} and set(state) == set(initial_state(5, 64, 64))
    make_method("af_clip", tiny, **Method.sizes(state)).load(state)


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tiny, method):
    state = method.learner.state_dict()
    for foreign in (
        {},
        {"ctx_pos": torch.zeros(1, 1, 12, 64)},
        {name: value for name, value in state.items() if name != "prompt"},
        state | {"prompt": torch.zeros(12, 64)},
        state | {"adaptor.fc.weight": torch.zeros(2)},
    ):
        with pytest.raises(InputError, match="does not hold AF-CLIP's prompt and adaptor"):
            Method.sizes(foreign)
    name = f"{ATTENTION}to_out.0.bias"
    wrong = {
        f"{name} is missing": {key: value for key, value in state.items() if key != name},
        f"{ATTENTION}to_q.bias is missing or unexpected": state | {f"{ATTENTION}to_q.bias": torch.zeros(512)},
        f"{name} is (3,), not": state | {name: torch.zeros(3)},
    }
    for message, content in wrong.items():
        with pytest.raises(InputError) as caught:
            make_method("af_clip", tiny).load(content)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="n_ctx 73 makes prompts of 78 tokens, but the text tower takes 77"):
        make_method("af_clip", tiny, n_ctx=73)


def test_training_on_images_without_masks_and_resuming_with_the_other_gradient(tmp_path, monkeypatch, capsys):
    bare = make_data(tmp_path / "bare", masks=False)
    arguments = ("--method", "af_clip", "--train_data_path", bare, "--save_path", tmp_path / "run", *TINY)
    assert run(monkeypatch, "train", *arguments, "--epoch", 1) == 0
    checkpoint = torch.load(tmp_path / "run" / "epoch_1.pth", weights_only=True)
    assert list(checkpoint["losses"]) == ["image_loss"] and checkpoint["training"]["gradient"] == "released"
    assert "has no masks: training with the loss of the images alone" in (tmp_path / "run" / "log.txt").read_text()
    assert run(monkeypatch, "train", *arguments, "--resume", "--gradient", "written") == 2
    check_error(capsys, "--resume: gradient is 'written' now but was 'released'")
