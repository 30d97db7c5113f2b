"""Loading: every kind of weights file, and agreement with open_clip's own forward pass."""

import copy

import generated_weights
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import AnomalyCLIP_lib
from AnomalyCLIP_lib import backbones
from prompt_ensemble import PromptLearner, load_prompt_learner
from utils import InputError


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


@pytest.fixture(scope="module")
def tensors():
    return generated_weights.generate(generated_weights.SMALL | {"vision_layers": 4, "text_layers": 2}, seed=0)


def archive_of(tensors: dict, path, extra: dict | None = None) -> None:
    """A TorchScript archive whose state dict holds `tensors`, as OpenAI's files are."""

    class Node(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Node()
    for name, tensor in {**tensors, **(extra or {})}.items():
        node, parts = root, name.split(".")
        for part in parts[:-1]:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node._modules[part]
        node.register_buffer(parts[-1], tensor.half() if tensor.is_floating_point() else tensor)
    torch.jit.script(root).save(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_file_format_gives_the_same_model(tensors, tmp_path):
    sizes = {
        "input_resolution": torch.tensor(84),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    archive_of(tensors, tmp_path / "archive.pt", sizes)
    save_file(tensors, tmp_path / "plain.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "wrapped.pth")
    custom = {k if k.startswith(("visual", "logit")) else f"text.{k}": v for k, v in tensors.items()}
    torch.save(custom, tmp_path / "custom_text.pt")
    for file in ("archive.pt", "plain.safetensors", "wrapped.pth", "custom_text.pt"):
        loaded = AnomalyCLIP_lib.load(None, tmp_path / file, image_size=126, dpam_layer=3).clip
        assert isinstance(loaded.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
        for key, value in loaded.state_dict().items():
            torch.testing.assert_close(value, tensors[key], atol=1e-3 if key == "logit_scale" else 0, rtol=0)


def test_tag_reads_the_file_in_the_cache_of_openais_code(tensors, tmp_path, monkeypatch):
    """ViT-L-14-336 "openai" takes ~/.cache/clip/ViT-L-14-336px.pt, with QuickGELU whatever the configuration says."""
    config = open_clip.get_model_config("ViT-L-14-336")
    config["embed_dim"] = 96
    config["vision_cfg"] |= {"width": 128, "layers": 4, "image_size": 84}
    config["text_cfg"] |= {"width": 128, "heads": 2, "layers": 2}
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: copy.deepcopy(config))
    monkeypatch.setattr(backbones.Path, "home", lambda: tmp_path)
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    torch.save(tensors, tmp_path / ".cache" / "clip" / "ViT-L-14-336px.pt")
    model = AnomalyCLIP_lib.load("ViT-L-14-336", "openai")
    assert (model.image_size, model.dpam_layer, model.grid) == (518, 4, 37)
    assert isinstance(model.clip.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_weights_that_cannot_be_downloaded_name_file_and_place(tmp_path, monkeypatch):
    def offline(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(backbones.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(backbones, "download_pretrained", offline)
    with pytest.raises(InputError) as error:
        AnomalyCLIP_lib.load("ViT-L-14-336", "openai")
    message = str(error.value)
    assert "\n" not in message and "no route to host" in message
    assert str(tmp_path / ".cache" / "clip" / "ViT-L-14-336px.pt") in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "ResNet"),
        ("coca_ViT-L-14", "CoCa"),
        ("ViT-B-16-SigLIP", "timm"),
        ("EVA02-L-14-336", "timm"),
        ("xlm-roberta-base-ViT-B-32", "Hugging Face"),
        ("ViT-L-14-CLIPA-336", "class token"),
        ("no-such-model", "has no model"),
    ],
)
def test_towers_that_cannot_be_served_are_refused_by_name(name, reason):
    with pytest.raises(InputError, match=reason) as error:
        AnomalyCLIP_lib.load(name, "openai")
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "ResNet"),
        ({"vision_model.embeddings.class_embedding": torch.zeros(1)}, "Hugging Face"),
        ({"ctx_pos": torch.zeros(1)}, "no CLIP ViT"),
        ([1, 2], "not a state dict"),
        (b"", "cannot be read"),
        (b"no weights at all", "not opened"),
        (pytest, "not opened"),
    ],
)
def test_files_that_are_no_clip(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is pytest:
        torch.save({"visual": Exploit()}, path)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as error:
        AnomalyCLIP_lib.load(None, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


class Exploit:
    def __reduce__(self):
        return (print, ("a pickle was executed",))


def test_incomplete_weights_name_the_missing_tensor(tensors, tmp_path):
    broken = {key: value for key, value in tensors.items() if "resblocks.3.ln_1" not in key}
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(InputError, match=r"transformer\.resblocks\.3\.ln_1"):
        AnomalyCLIP_lib.load(None, tmp_path / "broken.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 130}, "use 126"),
        ({"dpam_layer": 26}, "has 24"),
        ({"dpam_layer": 0}, "use 1"),
        ({"dpam_mode": "vk"}, "vv, qq, kk"),
    ],
)
def test_impossible_settings(weights_file, options, message):
    with pytest.raises(InputError, match=message):
        AnomalyCLIP_lib.load(None, weights_file, **options)


def test_layers_out_of_range(small_model):
    for layers in ([25], [0], [], [3, 3]):
        with pytest.raises(InputError, match="between 1 and 24"):
            small_model.encode_image(torch.zeros(1, 3, 126, 126), layers)


def test_checkpoint_layout_at_width_768():
    """Exactly the names and shapes of the authors' files, and a file in that layout loads."""

    class Width768:
        num_text_layers, device = 12, torch.device("cpu")
        tokenizer = open_clip.SimpleTokenizer()
        clip = torch.nn.Module()

    Width768.clip.token_embedding, Width768.clip.ln_final = torch.nn.Embedding(49408, 768), torch.nn.LayerNorm(768)
    expected = {}
    for side in ("pos", "neg"):
        expected |= {f"ctx_{side}": (1, 1, 12, 768), f"tokenized_prompts_{side}": (1, 1, 77)}
        expected |= {f"token_prefix_{side}": (1, 1, 1, 768), f"token_suffix_{side}": (1, 1, 64, 768)}
    for index in range(8):
        expected[f"compound_prompts_text.{index}"] = (4, 768)
        expected[f"compound_prompt_projections.{index}.weight"] = (896, 768)
        expected[f"compound_prompt_projections.{index}.bias"] = (896,)
    state = PromptLearner(Width768()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    normal = [49406] + [343] * 12 + [14115, 269, 49407]
    abnormal = [49406] + [343] * 12 + [13568, 14115, 269, 49407]
    assert state["tokenized_prompts_pos"].flatten().tolist() == normal + [0] * (77 - len(normal))
    assert state["tokenized_prompts_neg"].flatten().tolist() == abnormal + [0] * (77 - len(abnormal))

    theirs = {
        key: torch.randint(9, shape) if "tokenized" in key else torch.randn(shape) for key, shape in expected.items()
    }
    loaded = load_prompt_learner(Width768(), theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in loaded.state_dict().items())
    assert (loaded.n_ctx, loaded.depth, loaded.t_n_ctx) == (12, 9, 4)


def test_checkpoint_of_another_width_or_kind(small_model):
    state = PromptLearner(small_model, depth=3).state_dict()
    assert load_prompt_learner(small_model, state).depth == 3
    with pytest.raises(InputError, match="width 64"):
        load_prompt_learner(small_model, state | {"ctx_pos": torch.zeros(1, 1, 12, 64)})
    with pytest.raises(InputError, match="ctx_neg"):
        load_prompt_learner(small_model, {key: value for key, value in state.items() if key != "ctx_neg"})
    with pytest.raises(InputError, match="12 blocks"):
        PromptLearner(small_model, depth=13)


def test_object_aware_prompts_put_the_class_name_in_place_of_object(small_model):
    learner = PromptLearner(small_model)
    with torch.no_grad():
        aware, agnostic = learner(["bottle", "object"]), learner()
    assert aware.shape == (2, 2, 96)
    torch.testing.assert_close(aware[1], agnostic)
    assert (aware[0] - agnostic).abs().max() > 1e-3
