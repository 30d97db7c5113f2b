"""WinCLIP: the numbers of anomalib's implementation on generated weights, and the method written out in plain loops."""

import hashlib
import json

import generated_weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import REFERENCES, assert_close, make_method, read_references
from open_clip import CLIP, SimpleTokenizer

import AnomalyCLIP_lib
import methods
from AnomalyCLIP_lib import AnomalyCLIP
from AnomalyCLIP_lib.similarity import class_probabilities
from features import predict
from methods import winclip
from utils import InputError

STORED, CONFIG = read_references(REFERENCES / "winclip.npz")  # thinned out, but every array is there
WEIGHTS_SHA256 = str(STORED.pop("weights_sha256"))
UNIT_WINDOW_SCORES = STORED.pop("unit_window_scores")  # what `unit_harmonic` was made from


def make_model(config: dict) -> AnomalyCLIP:
    """The references' CLIP: heads of 64, exact GELU, weights made from its seed."""
    size = config["model"]
    vision = {"width": size["vision_width"], "layers": size["vision_layers"], "patch_size": size["patch"]}
    text = {"width": size["text_width"], "layers": size["text_layers"], "heads": size["text_width"] // 64}
    clip = CLIP(size["embed_dim"], vision | {"image_size": config["image"]}, text, quick_gelu=config["quick_gelu"])
    clip.load_state_dict(generated_weights.generate(size, config["seed"]))
    return AnomalyCLIP(clip, SimpleTokenizer(), config["image"])


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def encode(method, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return method.encode(images)


def compute(model: AnomalyCLIP) -> dict[str, torch.Tensor | dict]:
    """All that the reference file holds, by its names."""
    method = make_method("winclip", model)
    method.set_classes(["bottle", "metal_nut"])
    features = encode(method, noise(2000, 3, 3, 112, 112))
    ours = {"image_embeddings": features["image_features"], "patch_embeddings": features["patch_tokens"]}
    for size in (2, 3):
        ours[f"masks_{size}"] = winclip.window_indices((7, 7), size).T
        ours[f"window_embeddings_{size}"] = features[f"window_features_{size}"]
    for name, text_features in method.text_features.items():
        normal, anomalous = winclip.prompts(name)
        ours[f"prompts_{name}"] = {"normal": normal, "anomalous": anomalous}
        ours[f"tokens_{name}"] = model.tokenizer(normal + anomalous)
        ours[f"text_embeddings_{name}"] = text_features
        ours[f"zs_image_scores_{name}"] = class_probabilities(features["image_features"], text_features)[:, 1]
        for size in (2, 3):
            scores = class_probabilities(features[f"window_features_{size}"], text_features)[..., 1]
            ours[f"zs_window_scores_{size}_{name}"] = scores
            ours[f"zs_map_{size}_{name}"] = method.map_of_windows(scores, size)
        ours[f"zs_map_all_{name}"] = method.language_guided(features, text_features)[1]
        ours[f"zs_score_{name}"], ours[f"zs_pixel_map_{name}"] = predict(method, features, name)
    ours["prompt_embeddings_bottle"] = model.encode_text(sum(winclip.prompts("bottle"), []))

    references = encode(method, noise(2001, 2, 3, 112, 112))
    ours["fs2_ref_patch_embeddings"] = references["patch_tokens"]
    for size in (2, 3):
        ours[f"fs2_ref_window_embeddings_{size}"] = references[f"window_features_{size}"]
    for shots in (1, 2):
        few_shot = make_method("winclip", model, k_shot=shots)
        few_shot.text_features = method.text_features
        few_shot.set_references("bottle", {name: values[:shots] for name, values in references.items()})
        known = few_shot.references["bottle"]
        patches = winclip.association(features["patch_tokens"], known["patch_tokens"])
        ours[f"fs{shots}_va_patch"] = patches.unflatten(1, (7, 7))
        for size in (2, 3):
            name = f"window_features_{size}"
            ours[f"fs{shots}_va_windows_{size}"] = winclip.association(features[name], known[name])
            ours[f"fs{shots}_va_map_{size}"] = few_shot.map_of_windows(ours[f"fs{shots}_va_windows_{size}"], size)
        ours[f"fs{shots}_map"] = few_shot.vision_guided(features, known)
        ours[f"fs{shots}_score"], ours[f"fs{shots}_pixel_map"] = predict(few_shot, features, "bottle")

    ours["unit_masks_4x5_k2"] = winclip.window_indices((4, 5), 2).T
    ours["unit_masks_4x5_k2_s2"] = winclip.window_indices((4, 5), 2, stride=2).T
    ours["unit_harmonic"] = winclip.harmonic_map(torch.from_numpy(UNIT_WINDOW_SCORES), (4, 5), 2)
    return ours


@pytest.fixture(scope="module")
def model() -> AnomalyCLIP:
    return make_model(CONFIG)


@pytest.fixture(scope="module")
def ours(model) -> dict:
    return compute(model)


def test_reference_weights(model):
    digest = hashlib.sha256()
    for name, values in sorted(model.clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == WEIGHTS_SHA256


@pytest.mark.parametrize("name", sorted(STORED))
def test_reference(ours, name):
    theirs, values = STORED[name], ours[name]
    if name.startswith("prompts_"):
        assert values == json.loads(str(theirs))
        return
    if theirs.dtype.kind == "f":
        assert_close(values, theirs)
    else:
        assert np.array_equal(values, theirs)


# the method in plain loops, on the embedded backbone


@pytest.fixture(scope="module")
def tiny() -> AnomalyCLIP:
    return AnomalyCLIP_lib.load("tiny")


@pytest.fixture(scope="module")
def images(tiny) -> torch.Tensor:
    return noise(7, 3, 3, tiny.image_size, tiny.image_size)


@pytest.fixture(scope="module")
def zero_shot(tiny):
    method = make_method("winclip", tiny)
    method.set_classes(["metal_nut"])
    return method


@pytest.fixture(scope="module")
def features(zero_shot, images) -> dict[str, torch.Tensor]:
    return encode(zero_shot, images)


def few_shot(zero_shot, features: dict, references: list[int]):
    """A method that knows the images of these indices to be normal."""
    method = make_method("winclip", zero_shot.model, k_shot=len(references))
    method.text_features = zero_shot.text_features
    method.set_references("metal_nut", {name: values[references] for name, values in features.items()})
    return method


def plain_windows(side: int, size: int) -> list[list[int]]:
    corners = [(row, column) for row in range(side - size + 1) for column in range(side - size + 1)]
    return [
        [(row + down) * side + column + right for down in range(size) for right in range(size)]
        for row, column in corners
    ]


def plain_tower(visual, image: torch.Tensor, window: list[int]) -> torch.Tensor:
    """Tokens after the last block and ln_post, of one image (3, S, S) and some of its patches alone: (1 + n, width)."""
    patches = visual.conv1(image[None])[0].flatten(1).T
    tokens = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
    x = visual.ln_pre(tokens[[0, *(1 + patch for patch in window)]])
    for block in visual.transformer.resblocks:
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, need_weights=False)[0]
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x)


def plain_harmonic(scores: list[float], windows: list[list[int]], patches: int) -> list[float]:
    inverse, count = [0.0] * patches, [0] * patches
    for score, window in zip(scores, windows, strict=True):
        for patch in window:
            inverse[patch] += 1 / score
            count[patch] += 1
    return [number / total for number, total in zip(count, inverse, strict=True)]


def plain_association(features: torch.Tensor, references: torch.Tensor) -> list[float]:
    return [min((1 - F.cosine_similarity(feature[None], references)).tolist()) / 2 for feature in features]


def plain_predict(features: dict, text_features: torch.Tensor, side: int, references: dict | None = None):
    """Score and map (side * side) of one image from its features (N, D); references (R, D)."""

    def abnormal(feature):
        return (F.cosine_similarity(feature[None], text_features) / 0.07).softmax(dim=0)[1].item()

    score, maps, associations = abnormal(features["image_features"]), [], []
    for size in (2, 3):
        name, windows = f"window_features_{size}", plain_windows(side, size)
        maps.append(plain_harmonic([abnormal(feature) for feature in features[name]], windows, side**2))
        if references:
            distances = plain_association(features[name], references[name])
            associations.append(plain_harmonic(distances, windows, side**2))
    total = [3 / (1 / score + 1 / first + 1 / second) for first, second in zip(*maps, strict=True)]
    if references:
        associations.append(plain_association(features["patch_tokens"], references["patch_tokens"]))
        means = [sum(values) / 3 for values in zip(*associations, strict=True)]
        score, total = (score + max(means)) / 2, [(a + b) / 2 for a, b in zip(total, means, strict=True)]
    return score, total


def test_features_in_plain_loops(tiny, images, features):
    visual, side = tiny.clip.visual, tiny.grid
    with torch.no_grad():
        whole = plain_tower(visual, images[1], list(range(side**2)))
        torch.testing.assert_close(features["image_features"][1], whole[0] @ visual.proj, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features["patch_tokens"][1], whole[1:], atol=1e-5, rtol=1e-5)
        for size in (2, 3):
            windows = plain_windows(side, size)
            assert winclip.window_indices((side, side), size).tolist() == windows
            plain = torch.stack([plain_tower(visual, images[1], window)[0] @ visual.proj for window in windows])
            torch.testing.assert_close(features[f"window_features_{size}"][1], plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("references", [[], [0], [0, 2]])
def test_predictions_in_plain_loops(tiny, zero_shot, features, references):
    method = few_shot(zero_shot, features, references) if references else zero_shot
    scores, maps = method.predict(features, "metal_nut")
    known = {name: values[references].flatten(0, 1) for name, values in features.items()} if references else None
    one = {name: values[1] for name, values in features.items()}
    score, plain_map = plain_predict(one, zero_shot.text_features["metal_nut"], tiny.grid, known)
    assert scores[1].item() == pytest.approx(score, abs=1e-6)
    plain_map = torch.tensor(plain_map).view(tiny.grid, tiny.grid)
    torch.testing.assert_close(maps[1], plain_map, atol=1e-6, rtol=0)


def test_text_features_are_means_of_raw_embeddings(tiny, zero_shot):
    normal, anomalous = winclip.prompts("metal_nut")
    assert (len(normal), len(anomalous), len(set(normal)), len(set(anomalous))) == (147, 84, 140, 80)
    assert normal[21] == "a cropped photo of the flawless metal_nut."
    for texts, mean in zip((normal, anomalous), zero_shot.text_features["metal_nut"], strict=True):
        plain = sum(tiny.encode_text([text])[0] for text in texts) / len(texts)
        torch.testing.assert_close(mean, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("references", [[], [0, 2]])
def test_a_batch_is_its_images_one_by_one(zero_shot, images, features, references):
    method = few_shot(zero_shot, features, references) if references else zero_shot
    batch_scores, batch_maps = method.predict(features, "metal_nut")
    for index in range(3):
        alone = encode(method, images[index : index + 1])
        for name, values in alone.items():
            torch.testing.assert_close(values[0], features[name][index], atol=1e-5, rtol=1e-5)
        scores, maps = method.predict(alone, "metal_nut")
        torch.testing.assert_close(scores[0], batch_scores[index], atol=1e-6, rtol=0)
        torch.testing.assert_close(maps[0], batch_maps[index], atol=1e-6, rtol=0)


def test_chunks_change_nothing(zero_shot, images, features, monkeypatch):
    monkeypatch.setattr(winclip, "CHUNK", 70)
    for name, values in encode(zero_shot, images[:1]).items():
        torch.testing.assert_close(values, features[name][:1], atol=1e-5, rtol=1e-5)


def test_shapes(tiny, zero_shot, features):
    side, joint = tiny.grid, tiny.clip.visual.proj.shape[1]
    assert {name: tuple(values.shape) for name, values in features.items()} == {
        "image_features": (3, joint),
        "window_features_2": (3, (side - 1) ** 2, joint),
        "window_features_3": (3, (side - 2) ** 2, joint),
        "patch_tokens": (3, side**2, len(tiny.clip.visual.class_embedding)),
    }
    scores, maps = zero_shot.predict(features, "metal_nut")
    assert scores.shape == (3,) and maps.shape == (3, tiny.grid, tiny.grid)
    assert (scores > 0).all() and (scores < 1).all() and (maps > 0).all() and (maps < 1).all()


def test_an_image_among_its_references_is_not_far_from_them(zero_shot, features):
    stranger, known = few_shot(zero_shot, features, [0]), few_shot(zero_shot, features, [0, 1])
    far = stranger.vision_guided(features, stranger.references["metal_nut"])
    near = known.vision_guided(features, known.references["metal_nut"])
    assert (near[1] >= 0).all() and near[1].max() < 1e-6  # 1 - cos rounds to 1e-7
    assert far[1].min() > 100 * near[1].max()
    assert (near[2] <= far[2] + 1e-6).all()  # one reference more never increases the distance
    assert (known.predict(features, "metal_nut")[0] <= stranger.predict(features, "metal_nut")[0] + 1e-6).all()


def test_harmonic_maps_of_rectangular_grids():
    scores = torch.from_numpy(np.random.RandomState(3).uniform(0.01, 1, (2, 12)))
    maps = winclip.harmonic_map(scores, (5, 4), 2)
    plain = [plain_harmonic(row, winclip.window_indices((5, 4), 2).tolist(), 20) for row in scores.tolist()]
    torch.testing.assert_close(maps.flatten(1), torch.tensor(plain, dtype=torch.float64), atol=1e-12, rtol=0)
    covered = winclip.harmonic_map(scores[:, :4], (4, 5), 2, stride=2)
    assert (covered[:, :, 4] == 0).all()  # in no window
    torch.testing.assert_close(covered[:, :2, :2], scores[:, :1, None].expand(-1, 2, 2), atol=1e-12, rtol=0)


def test_settings(tiny):
    assert methods.flags("winclip") == {
        "SETTINGS": {"model": "ViT-B-16-plus-240", "pretrained": "laion400m_e31", "image_size": None},
        "TRAINING": {},
        "TESTING": {"sigma": 0.0, "k_shot": 0},
    }
    assert make_method("winclip", tiny, k_shot=4).num_references == 4
    with pytest.raises(InputError, match="patches"):
        make_method("winclip", AnomalyCLIP_lib.load("tiny", image_size=16))
