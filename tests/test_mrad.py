"""MRAD: its released code's numbers on generated weights and inputs, its memory, and the method's own duties."""

import math
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    REFERENCES,
    TINY,
    assert_same_checkpoint,
    assert_same_predictions,
    check_error,
    load_reference_model,
    make_data,
    make_method,
    read_references,
    reference_names,
    run,
    thinned,
)

import AnomalyCLIP_lib
import parallel
from AnomalyCLIP_lib.dpam import run_blocks
from AnomalyCLIP_lib.similarity import full_size
from evaluation import METRICS, evaluate
from features import encode, predict
from methods.mrad import LAYER_NAMES, MEMORY_NAMES, PARTS, Method, most_alike, neighbour_average, patch_regions
from utils import InputError

FILE = REFERENCES / "mrad.npz"
GIVEN = ("train_masks", "test_masks")
# Of single values, the first that fits an array's name. Without training P varies by 1e-3 over an image.
TOLERANCES = {
    "metrics": 5e-4,
    "checksum": 1e-3,
    "memory_": 1e-6,
    "tf_test_": 1e-6,
    "ft_grad0_": 1e-6,
    "ft_change_": 2e-6,
    "ft_lr": 1e-12,
    "_step0": 3e-5,
    "ft_": 1e-5,
    "": 5e-5,
}


# the released code's numbers


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Reference arrays, and the same computed here."""
    arrays, config = read_references(FILE)
    model = load_reference_model(config, str(arrays["weights_sha256"]), tmp_path_factory.mktemp("mrad"))
    parallel.set_threads(None, model)
    train_masks, test_masks = (unpacked(arrays[name], config["image"]) for name in GIVEN)
    train_images, test_images = (inputs(2005, train_masks), inputs(2505, test_masks))
    results = {"train_image_checksum": checksum(train_images), "test_image_checksum": checksum(test_images)}

    free, tuned = make_method("mrad", model, training_free=True), make_method("mrad", model)
    training, testing = encode(free, train_images), encode(free, test_images)
    results |= towers(model, test_images[:1]) | {"image_features": testing["image_features"][:2]}
    results["patch_tokens_averaged"] = testing["patch_tokens"][:1]

    labels = torch.arange(24) % 2
    with torch.no_grad():
        summaries = free.summarise(training, labels, train_masks)
    for method in (free, tuned):
        method.set_memory(summaries)
    results |= {f"memory_{name}": value for name, value in free.learner.state_dict().items()}
    tuned.load(tuned.learner.state_dict() | initial_layers(tuned))
    results |= {f"ft_{name}": value for name, value in train(tuned, training, labels, train_masks, config).items()}
    for name, method in (("tf", free), ("ft", tuned)):
        tested = test(method, testing, labels[:8], test_masks)
        results |= {f"{name}_test_{key}": value for key, value in tested.items()}
    return arrays, results


def unpacked(bits: np.ndarray, size: int) -> torch.Tensor:
    """Masks (N, S, S) of 0 and 1."""
    return tensor(np.unpackbits(bits, axis=1)[:, : size * size].reshape(-1, size, size))


def inputs(seed: int, masks: torch.Tensor) -> torch.Tensor:
    """Images of 9 x 9 coloured squares and noise; where they are anomalous the same pattern is added to all."""
    stream, pattern = np.random.RandomState(seed), np.random.RandomState(2905).standard_normal((1, 3, 126, 126))
    squares = np.kron(stream.standard_normal((len(masks), 3, 9, 9)), np.ones((14, 14)))
    images = (squares + 0.3 * stream.standard_normal((len(masks), 3, 126, 126))).astype(np.float32)
    return torch.from_numpy(images) + 1.5 * masks.unsqueeze(1) * tensor(pattern)


def checksum(images: torch.Tensor) -> np.ndarray:
    return np.array([images.double().sum(), images.double().abs().sum()])


def towers(model, image: torch.Tensor) -> dict:
    visual = model.clip.visual
    tokens = visual.ln_post(run_blocks(visual, image, [24], dpam_layer=24).tokens[0])[:, 1:]
    return {"patch_tokens_ln_post": tokens, "patch_tokens_projected": tokens @ visual.proj}


def initial_layers(method) -> dict[str, torch.Tensor]:
    """The linear layers that the reference starts from."""
    state = {}
    for name, parameter in method.learner.named_parameters():
        stream = np.random.RandomState((zlib.crc32(name.encode()) + 5) % 2**32)
        gain = 10.5 if name.startswith("patch") else 1.0
        scale = gain / np.sqrt(parameter.shape[1]) if name.endswith("weight") else 0.02
        state[name] = tensor(stream.standard_normal(parameter.shape) * scale)
    return state


def train(method, features: dict, labels: torch.Tensor, masks: torch.Tensor, config: dict) -> dict:
    """The reference's steps: terms of the loss, learning rates, gradients of the first step, and the whole change."""
    optimizer, parameters, results = method.optimizer(), dict(method.learner.named_parameters()), {}
    start, rates, terms = {name: value.detach().clone() for name, value in parameters.items()}, [], []
    steps, size = 6, config["batch"]
    for step in range(steps):
        rates.append(method.learning_rate(1, step, steps))
        optimizer.param_groups[0]["lr"] = rates[-1]
        chosen = slice(size * step, size * (step + 1))
        batch = {name: value[chosen] for name, value in features.items()}
        losses = method.losses(batch, labels[chosen], masks[chosen], ["a"] * size)
        assert list(losses) == ["focal_loss", "dice_loss", "image_loss"]
        terms.append([loss.item() for loss in losses.values()])
        if step == 0:
            with torch.no_grad():
                results |= first_step(method, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        if step == 0:
            every_4th = ("patch_proj.fc.1.weight", "image_proj.mlp2.weight")
            for name, parameter in parameters.items():
                results[f"grad0_{name}"] = parameter.grad.clone()[:: 4 if name in every_4th else 1]
        optimizer.step()
    for name, parameter in parameters.items():
        results[f"change_{name}"] = (parameter.detach() - start[name])[:: 8 if name.endswith("weight") else 1]
    focal, dice, image = np.array(terms).T
    return results | {"focal": focal, "dice": dice, "ce": image, "losses": focal + dice + image, "lr": np.array(rates)}


def first_step(method, batch: dict) -> dict:
    """Similarities of the first image's patches, and probabilities with the most similar entries hidden."""
    queries, keys, results = method.queries(batch), method.learner.keys(), {}
    for part, share in (("image", 0.95), ("patch", 0.8)):
        hidden = most_alike(queries[part], method.learner.memory(part)[0], share)
        results[f"{part}_logits_step0"] = method.retrieve(part, queries[part], keys[part], hidden)
    results["patch_similarity_step0"] = queries["patch"][:1] @ method.learner.patch_keys.T
    results["patch_projected_similarity_step0"] = (
        method.learner.project("patch", queries["patch"][:1]) @ keys["patch"].T
    )
    return results


@torch.no_grad()
def test(method, features: dict, labels: torch.Tensor, masks: torch.Tensor) -> dict:
    """Probabilities, maps, scores, and metrics of the two classes."""
    method.set_classes(["a", "b"])
    queries, results = method.queries(features), {}
    for part in PARTS:
        results[f"{part}_logits"] = method.retrieve(part, queries[part], method.keys[part])
    results["patch_similarity"] = queries["patch"][:1] @ method.learner.patch_keys.T
    scores, maps = predict(method, features, "a", sigma=4)
    raw_maps = full_size(method.predict(features, "a")[1], 126)
    results |= {"scores": scores, "maps": maps[:, 1::3, 1::3], "raw_maps": raw_maps[:2, ::2, ::2]}
    metrics, names = [], METRICS["image-pixel-level"]
    for rows in ([0, 1, 4, 5], [2, 3, 6, 7]):
        masked = masks[rows].numpy() > 0
        values = evaluate(names, labels[rows].tolist(), scores[rows].numpy(), masked, maps[rows].numpy())
        metrics.append([values[name] / 100 for name in names])
    return results | {"metrics": np.array(metrics)}


test.__test__ = False  # what the reference calls so, not a test


@pytest.mark.parametrize("name", [name for name in reference_names(FILE) if name not in GIVEN])
def test_numbers_of_the_released_code(references, name):
    theirs, ours = references[0][name], references[1][name]
    ours = thinned(np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours))
    assert ours.shape == theirs.shape
    tolerance = next(value for part, value in TOLERANCES.items() if part in name)
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


# the memory


@pytest.fixture(scope="module")
def tiny():
    return AnomalyCLIP_lib.load("tiny")


@pytest.fixture(scope="module")
def batch(tiny):
    """Features of four images, labels, and masks of the second and fourth; the fourth covers everything."""
    stream, masks = np.random.RandomState(0), torch.zeros(4, 96, 96)
    masks[1, 20:60, 13:50] = masks[3] = 1
    features = encode(make_method("mrad", tiny), tensor(stream.standard_normal((4, 3, 96, 96))))
    return features, torch.tensor([0, 1, 0, 1]), masks


@pytest.fixture(params=[False, True], ids=["FT", "TF"])
def method(request, tiny, batch):
    torch.manual_seed(0)
    return remembering(make_method("mrad", tiny, training_free=request.param), batch)


def remembering(method, batch):
    """`method` with a memory of a batch."""
    with torch.no_grad():
        method.set_memory(method.summarise(*batch))
    return method


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


def test_entries_are_those_of_a_loop(method, batch):
    features, labels, masks = batch
    keys, values = [], []
    for tokens, mask in zip(features["patch_tokens"], masks, strict=True):
        middle = mask.reshape(12, 8, 12, 8)[:, 3:5, :, 3:5].transpose(1, 2).flatten(2).mean(dim=2).flatten()
        for value, row in ((1, [0, 1]), (0, [1, 0])):
            if (middle == value).any():
                keys.append(F.normalize(tokens[middle == value].mean(dim=0), dim=0))
                values.append(row)
    assert values == [[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]]  # a normal image has one region, and so has the fourth
    assert torch.equal(method.learner.patch_values, tensor(values))
    torch.testing.assert_close(method.learner.patch_keys, torch.stack(keys))
    assert torch.equal(method.learner.image_values, tensor([[1, 0], [0, 1], [1, 0], [0, 1]]))
    torch.testing.assert_close(method.learner.image_keys, F.normalize(features["image_features"], dim=-1))


def test_images_are_summarised_alike_alone_and_in_a_batch(method, batch):
    together = method.summarise(*batch)
    for index in range(4):
        features = {name: value[[index]] for name, value in batch[0].items()}
        for name, value in method.summarise(features, batch[1][[index]], batch[2][[index]]).items():
            torch.testing.assert_close(value[0], together[name][index], atol=1e-6, rtol=0)


def test_only_patches_whose_middle_is_of_one_kind_have_a_region():
    mask = torch.zeros(1, 56, 56)
    mask[0, :14, :7] = 1  # half of the first patch: one of its two columns in the middle
    mask[0, :14, 14:22] = 1  # a column more than half of the second
    mask[0, 14:20, 14:28] = 1  # a strip that the middle of a patch does not reach
    mask[0, 34:36, 34:36] = 1  # nothing but the middle of a patch
    anomalous, normal = patch_regions(mask, 4)[0].reshape(2, 4, 4)
    assert anomalous.nonzero().tolist() == [[0, 1], [2, 2]]
    assert (~anomalous & ~normal).nonzero().tolist() == [[0, 0]]


def test_a_memory_without_one_of_the_kinds_is_refused(tiny, batch):
    features, labels, masks = batch
    method, small = make_method("mrad", tiny), torch.zeros_like(masks)
    small[:, 0, 0] = 1
    for case, message in (
        ((features, labels, small), "no anomalous patch is left for MRAD's memory, .*give a larger --image_size"),
        ((features, labels, torch.ones_like(masks)), "no normal patch is left"),
        ((features, torch.ones_like(labels), masks), "no normal image is left"),
    ):
        with pytest.raises(InputError, match=message):
            method.set_memory(method.summarise(*case))


# the method


def test_averages_are_those_of_loops_with_zeros_beyond_the_border():
    tokens = tensor(np.random.RandomState(0).standard_normal((2, 16, 3)))
    ours, padded = neighbour_average(tokens), F.pad(tokens.reshape(2, 4, 4, 3), (0, 0, 2, 2, 2, 2))
    for y in range(4):
        for x in range(4):
            windows = [padded[:, 2 + y - r : 3 + y + r, 2 + x - r : 3 + x + r].mean(dim=(1, 2)) for r in (0, 1, 2)]
            torch.testing.assert_close(ours[:, 4 * y + x], torch.stack(windows).mean(dim=0))


def test_dpam_runs_beside_all_blocks_but_the_first_by_default(tiny):
    model = SimpleNamespace(image_size=518, dpam_layer=20, num_layers=24, num_text_layers=12, activation="QuickGELU")
    assert Method.complete({"dpam_layer": None, "image_size": None}, model)["dpam_layer"] == 24
    images = tensor(np.random.RandomState(1).standard_normal((1, 3, 96, 96)))
    methods = {layer: make_method("mrad", tiny, dpam_layer=layer) for layer in (None, 6, 5)}
    assert [method.settings["dpam_layer"] for method in methods.values()] == [6, 6, 5]
    tokens = {layer: encode(method, images)["patch_tokens"] for layer, method in methods.items()}
    assert torch.equal(tokens[None], tokens[6]) and not torch.allclose(tokens[6], tokens[5], atol=1e-2)
    assert methods[6].cache_key() == methods[None].cache_key() != methods[5].cache_key()


def test_the_most_alike_are_hidden_and_never_all():
    stream = np.random.RandomState(0)
    keys = F.normalize(tensor(stream.standard_normal((20, 8))), dim=-1)
    queries = keys.expand(2, 20, 8)  # each query is itself an entry
    hidden = most_alike(queries, keys, 0.8)
    assert hidden.shape == (2, 20, 20) and (hidden.sum(dim=-1) == 4).all()
    assert hidden[0].diagonal().all()
    cosines = queries @ keys.T
    assert cosines[hidden].reshape(2, 20, 4).amin(-1).gt(cosines[~hidden].reshape(2, 20, 16).amax(-1)).all()
    assert not most_alike(queries, keys, 1.0).any()
    assert (most_alike(queries, keys, 0.0).sum(dim=-1) == 19).all()


def test_training_hides_by_cosines_and_testing_hides_nothing(tiny, batch):
    features, labels, masks = batch
    torch.manual_seed(0)
    losses = {}
    for shares in ((0.95, 0.8), (1.0, 0.8), (0.95, 1.0)):
        torch.manual_seed(0)
        changes = dict(zip(("hide_images", "hide_patches"), shares, strict=True))
        tuned = remembering(make_method("mrad", tiny, **changes), batch)
        losses[shares] = {name: value.item() for name, value in tuned(features, labels, masks, ["x"] * 4).items()}
    plain, images, patches = losses.values()
    assert plain["image_loss"] != images["image_loss"] and plain["focal_loss"] == images["focal_loss"]
    assert plain["image_loss"] == patches["image_loss"] and plain["focal_loss"] != patches["focal_loss"]


def test_scores_and_maps_are_those_of_a_softmax_over_the_memory(method, batch):
    features, state = batch[0], method.learner.state_dict()
    with torch.no_grad():
        method.set_classes(["x"])
        scores, maps = method.predict(features, "x")

    def linear(name: str, values: torch.Tensor) -> torch.Tensor:
        weight = state.get(f"{name}.weight")
        return values if weight is None else values @ weight.T + state[f"{name}.bias"]

    for query, layers, part, ours in (
        (features["image_features"], ("image_proj.mlp1", "image_proj.mlp2"), "image", scores),
        (features["patch_tokens"], ("patch_proj.fc.0", "patch_proj.fc.1"), "patch", maps.flatten(1)),
    ):
        query, keys = linear(layers[0], F.normalize(query, dim=-1)), linear(layers[1], state[f"{part}_keys"])
        weights = (query @ keys.T).exp()
        anomalous = state[f"{part}_values"][:, 1] == 1
        expected = weights[..., anomalous].sum(dim=-1) / weights.sum(dim=-1)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert maps.shape == (4, 12, 12) and Method.highest(method.settings) == 1


def test_image_scores_read_the_highest_percent_of_the_smoothed_map(tiny, batch):
    for share in (0.7, 0.0, 1.0):
        method = remembering(make_method("mrad", tiny, training_free=True, score_share=share), batch)
        method.set_classes(["x"])
        own = method.predict(batch[0], "x")[0]
        scores, maps = predict(method, batch[0], "x", sigma=4)
        highest = maps.flatten(1).sort(dim=1).values[:, -(96 * 96 // 100) :].mean(dim=1)
        torch.testing.assert_close(scores, share * own + (1 - share) * highest, atol=1e-6, rtol=0)


def test_the_bias_of_the_keys_changes_nothing(tiny, batch):
    tuned = remembering(make_method("mrad", tiny), batch)
    losses = sum(tuned(*batch, ["x"] * 4).values())
    with torch.no_grad():
        for layer in (tuned.learner.image_proj["mlp2"], tuned.learner.patch_proj["fc"][1]):
            layer.bias += 1
        torch.testing.assert_close(sum(tuned(*batch, ["x"] * 4).values()), losses, atol=1e-5, rtol=0)


def test_the_learning_rate_is_half_a_cosine_over_all_steps(tiny):
    method = make_method("mrad", tiny, epoch=2, learning_rate=0.0004)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0004)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-6)
    for epoch in (1, 2):
        for step in range(5):
            assert math.isclose(method.learning_rate(epoch, step, 5), schedule.get_last_lr()[0], rel_tol=1e-9)
            optimizer.step()
            schedule.step()
    assert make_method("mrad", tiny, learning_rate=0.0).learning_rate(1, 1, 5) == 0


def test_half_precision_is_that_of_the_tower_alone(batch):
    half = make_method("mrad", AnomalyCLIP_lib.load("tiny", precision="bf16"))
    features = encode(half, tensor(np.random.RandomState(0).standard_normal((4, 3, 96, 96))))
    torch.testing.assert_close(features["patch_tokens"], batch[0]["patch_tokens"], atol=0.1, rtol=0)
    remembering(half, (features, *batch[1:]))
    losses = half(features, *batch[1:], ["x"] * 4)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_names_are_those_of_the_authors(method, tiny):
    width, dimension = tiny.clip.visual.proj.shape
    shapes = {name: tuple(value.shape) for name, value in method.learner.named_parameters()}
    if method.settings["training_free"]:
        assert shapes == {} and method.optimizer() is None
    else:
        sizes = {"patch_proj.fc.0": width, "patch_proj.fc.1": width}
        sizes |= {"image_proj.mlp1": dimension, "image_proj.mlp2": dimension}
        expected = {f"{name}.weight": (dimension, size) for name, size in sizes.items()}
        assert shapes == expected | {f"{name}.bias": (dimension,) for name in sizes}
        assert set(shapes) == LAYER_NAMES
    assert method.learner.state_dict().keys() == MEMORY_NAMES | shapes.keys()


# checkpoints and runs


def test_a_checkpoint_brings_its_memory(method, tiny, batch):
    state = method.learner.state_dict()
    other = make_method("mrad", tiny, **Method.sizes(state))
    other.load(state)
    other.load({name: value.half() for name, value in state.items()})  # of another type, and once more
    other.load(state)
    assert_same_predictions(method, other, batch[0])


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tiny, batch):
    state = remembering(make_method("mrad", tiny), batch).learner.state_dict()
    keys, values = state["patch_keys"], state["patch_values"]
    for foreign in (
        {},
        {"ctx_pos": torch.zeros(1, 1, 12, 64)},
        {name: value for name, value in state.items() if name != "image_keys"},
        state | {"prompt_proj.mlp1.weight": torch.zeros(2, 2)},
    ):
        with pytest.raises(InputError, match="does not hold MRAD's memory"):
            Method.sizes(foreign)
    wrong = {
        "patch_keys and patch_values are (5, 128) and (4, 2), not (N, width), (N, 2)": {"patch_values": values[1:]},
        "patch_keys and patch_values are (5,) and (5, 2), not": {"patch_keys": keys[:, 0]},
        "patch_keys and patch_values are (0, 128) and (0, 2)": {"patch_keys": keys[:0], "patch_values": values[:0]},
        "patch_keys is (5, 32), not (5, 128)": {"patch_keys": keys[:, :32]},
        "patch_values holds torch.int64": {"patch_values": values.long()},
        "patch_keys are not unit vectors": {"patch_keys": 2 * keys},
        "patch_values are not rows of (1, 0) or (0, 1)": {"patch_values": values / 2},
        "memory holds no anomalous patch": {"patch_values": tensor([[1, 0]] * 5)},
        "image_proj.mlp1.weight is (3, 64), not": {"image_proj.mlp1.weight": torch.zeros(3, 64)},
        "image_proj.mlp1.bias is missing": {"image_proj.mlp1.bias": None},
    }
    for message, changes in wrong.items():
        content = {name: value for name, value in (state | changes).items() if value is not None}
        with pytest.raises(InputError) as caught:
            make_method("mrad", tiny).load(content)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def train_args(data, folder, *flags) -> tuple:
    return ("--train_data_path", data, "--save_path", folder, "--method", "mrad", *flags, *TINY)


def test_a_run_without_training(data, tmp_path, monkeypatch, capsys):
    """The memory alone, in epoch_0.pth; tested the same whatever batch and cache, and by --every_epoch."""
    folder = tmp_path / "run"
    arguments = train_args(data, folder, "--training_free")
    assert run(monkeypatch, "train", *arguments, "--batch_size", 5) == 0
    made = {path.name for path in folder.iterdir()}
    assert "epoch_0.pth" in made and not made & {"epoch_1.pth", "losses.csv"}
    assert "memory: 12 images, 6 of them anomalous; 18 regions, 6 of them" in (folder / "log.txt").read_text()
    checkpoint = torch.load(folder / "epoch_0.pth", weights_only=True)
    assert checkpoint["mrad"].keys() == MEMORY_NAMES and checkpoint["settings"]["training_free"] is True
    assert checkpoint["optimizer"] == {"state": {}, "param_groups": []}
    assert run(monkeypatch, "train", *arguments, "--batch_size", 5, "--resume") == 0
    assert "nothing left to train" in (folder / "log.txt").read_text()
    whole = train_args(data, tmp_path / "whole", "--training_free", "--batch_size", 12, "--cache", "none")
    assert run(monkeypatch, "train", *whole) == 0
    other = torch.load(tmp_path / "whole" / "epoch_0.pth", weights_only=True)
    for name, value in checkpoint["mrad"].items():
        torch.testing.assert_close(other["mrad"][name], value, atol=1e-6, rtol=0)

    common = ("--data_path", data, *TINY)
    assert run(monkeypatch, "test", *common, "--checkpoint_path", folder, "--every_epoch", "--save_path", folder) == 0
    assert (folder / "epochs.csv").read_text().splitlines()[1].startswith("0,")
    scores = []
    for name, flags in (("plain", ("--batch_size", 5)), ("disk", ("--cache", "disk", "--cache_dir", tmp_path / "c"))):
        flags += ("--checkpoint_path", folder / "epoch_0.pth", "--save_path", tmp_path / name)
        assert run(monkeypatch, "test", *common, *flags) == 0
        scores.append((tmp_path / name / "scores.csv").read_text())
    assert scores[0] == scores[1]
    flags = ("--checkpoint_path", folder / "epoch_0.pth", "--method", "vand", "--save_path", tmp_path / "other")
    assert run(monkeypatch, "test", *common, *flags) == 2
    check_error(capsys, "--method vand contradicts .*epoch_0.pth, made with mrad")


def test_resumed_training_ends_in_the_same_checkpoint(data, tmp_path, monkeypatch, capsys):
    paths = {}
    for name, cache in (("ram", "ram"), ("none", "none")):
        paths[name] = tmp_path / name / "epoch_2.pth"
        flags = ("--epoch", 2, "--batch_size", 5, "--cache", cache)
        assert run(monkeypatch, "train", *train_args(data, tmp_path / name, *flags)) == 0
    assert_same_checkpoint(*paths.values())
    paths["ram"].unlink()
    assert run(monkeypatch, "train", *train_args(data, tmp_path / "ram", *flags[:4]), "--resume") == 0
    assert_same_checkpoint(*paths.values())
    assert (
        run(monkeypatch, "train", *train_args(data, tmp_path / "ram", "--epoch", 3), "--batch_size", 5, "--resume") == 2
    )
    check_error(capsys, "--resume: epoch is 3 now but was 2")
    free = train_args(data, tmp_path / "ram", "--training_free")
    assert run(monkeypatch, "train", *free, "--batch_size", 5, "--resume") == 2
    check_error(capsys, "--resume: training_free is True now but was False")


def test_what_it_cannot_use_is_said(data, tmp_path, monkeypatch, capsys):
    bare = make_data(tmp_path / "bare", masks=False)
    for place, flags, message in (
        (bare, (), "bare has no masks, and MRAD's memory of patches needs them"),
        (data, ("--split", "train"), "has no anomalous images in its train split, and MRAD's memory needs both kinds"),
        (data, ("--training_free", "--epoch", 3), "--epoch says how to train, and --training_free not to"),
        (data, ("--training_free", "--hide_images", 0.5), "--hide_images says how to train"),
        (data, ("--lambda_local", 2), "--lambda_local"),
    ):
        assert run(monkeypatch, "train", *train_args(place, tmp_path / "run", *flags)) == 2
        check_error(capsys, message)
    arguments = ("--data_path", data, "--method", "mrad", "--training_free", "--save_path", tmp_path / "test", *TINY)
    assert run(monkeypatch, "test", *arguments) == 2
    check_error(capsys, "--method mrad needs --checkpoint_path FILE")
    theirs = {"image_proj": {"mlp1.weight": torch.zeros(2, 2)}, "patch_proj": {}}
    torch.save(theirs, tmp_path / "authors.pth")
    assert run(monkeypatch, "test", *arguments, "--checkpoint_path", tmp_path / "authors.pth") == 2
    check_error(capsys, 'is not a checkpoint of --method mrad: no "mrad" in it')


def test_data_without_normal_images_is_refused():
    entries = [SimpleNamespace(label=1)]
    dataset = SimpleNamespace(root="data", split="test", has_masks=True, entries=entries)
    with pytest.raises(InputError, match="data has no normal images in its test split"):
        Method.check_training({"training_free": False}, dataset)
    entries.append(SimpleNamespace(label=0))
    assert Method.check_training({"training_free": False}, dataset) == []
