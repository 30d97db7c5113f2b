"""Loading: every kind of weights file, towers and files that are refused, a machine without network."""

import copy
import json
import threading
from pathlib import Path

import generated_weights
import open_clip
import pytest
import torch
from helpers import archive_of
from safetensors.torch import save_file

import AnomalyCLIP_lib
from AnomalyCLIP_lib import InputError, backbones


class Exploit:
    def __reduce__(self):
        return (print, ("a pickle was executed",))


EXPLOIT = Exploit()


@pytest.fixture(scope="module")
def tensors():
    return generated_weights.generate(generated_weights.SMALL | {"vision_layers": 4, "text_layers": 2}, seed=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
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


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A home without weights, and a hub's cache without any."""
    monkeypatch.setattr(backbones.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(backbones.huggingface_hub, "try_to_load_from_cache", lambda *_: None)


@pytest.mark.parametrize("offline", [False, True])
def test_weights_that_cannot_be_had_name_file_and_place_at_once(no_weights, offline, tmp_path, monkeypatch):
    """One line without a second try; HF_HUB_OFFLINE does not even ask."""
    asked = []

    def fail(request, timeout):
        asked.append(request.host)
        raise OSError("no route to host")

    monkeypatch.setattr(backbones.urllib.request, "urlopen", fail)
    monkeypatch.setattr(backbones.huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(InputError) as error:
        AnomalyCLIP_lib.load("ViT-L-14-336", "openai")
    message = str(error.value)
    assert (
        "\n" not in message and ("HF_HUB_OFFLINE is set" if offline else "huggingface.co: no route to host") in message
    )
    assert str(tmp_path / ".cache" / "clip" / "ViT-L-14-336px.pt") in message
    assert asked == ([] if offline else ["huggingface.co", "openaipublic.azureedge.net"])


def test_a_host_that_does_not_answer_is_given_up_after_seconds(monkeypatch):
    monkeypatch.setattr(backbones, "ANSWER_SECONDS", 0.2)

    def never(*_, **__):
        threading.Event().wait(2)
        raise OSError("too late")

    monkeypatch.setattr(backbones.urllib.request, "urlopen", never)
    assert backbones.unreachable("https://example.org") == "no answer"


def test_weights_are_downloaded_from_their_own_address_where_the_hub_is_out_of_reach(no_weights, tmp_path, monkeypatch):
    def download(weights, prefer_hf_hub, cache_dir):
        assert not prefer_hf_hub
        (Path(cache_dir) / "partial").write_bytes(b"weights")
        return str(Path(cache_dir) / "partial")

    monkeypatch.setattr(backbones, "unreachable", lambda url: "blocked" if "huggingface" in url else None)
    monkeypatch.setattr(backbones, "download_pretrained", download)
    path, quick_gelu, _ = backbones.find_tagged_weights("ViT-L-14-336", "openai")
    assert path == tmp_path / ".cache" / "clip" / "ViT-L-14-336px.pt" and path.read_bytes() == b"weights"
    assert quick_gelu and list(path.parent.iterdir()) == [path]


def test_weights_in_the_hubs_cache_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones.Path, "home", lambda: tmp_path)
    asked = []

    def cached(repository, name):
        asked.append((repository, name))
        return str(tmp_path / name) if name.endswith(".bin") else None

    monkeypatch.setattr(backbones.huggingface_hub, "try_to_load_from_cache", cached)
    path, _, _ = backbones.find_tagged_weights("ViT-B-16-plus-240", "laion400m_e31")
    assert path == tmp_path / "open_clip_pytorch_model.bin"
    assert {repository for repository, _ in asked} == {"timm/vit_base_patch16_plus_clip_240.laion400m_e31"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache, a folder; without network."""

    def cached(repository, name):
        file = tmp_path / repository / name
        return str(file) if file.is_file() else None

    def unreachable(url):
        return "no route to host"

    monkeypatch.setattr(backbones.huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(backbones, "unreachable", unreachable)
    return tmp_path


def hub_model(hub, name, **model):
    """The embedded backbone as a model on a hub; `model`: what differs in its configuration."""
    folder = hub / name
    folder.mkdir(parents=True)
    content = json.loads((backbones.TINY_FOLDER / "open_clip_config.json").read_text())
    content["model_cfg"] |= model
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    (folder / "open_clip_model.safetensors").write_bytes((backbones.TINY_FOLDER / "model.safetensors").read_bytes())


def test_a_model_of_a_hub_is_loaded_with_its_own_configuration(hub):
    hub_model(hub, "somebody/small")
    model, tiny = AnomalyCLIP_lib.load("hf-hub:somebody/small"), AnomalyCLIP_lib.load("tiny")
    image = torch.arange(3 * 4, dtype=torch.uint8).reshape(1, 3, 2, 2)
    assert model.image_size == tiny.image_size and (model.normalize(image) == tiny.normalize(image)).all()
    assert all((a == b).all() for a, b in zip(model.state_dict().values(), tiny.state_dict().values(), strict=True))
    own = AnomalyCLIP_lib.load("hf-hub:somebody/small", backbones.TINY_FOLDER / "model.safetensors", image_size=64)
    assert own.image_size == 64


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("hf-hub:somebody/missing", None, "cannot be had .*no route to host"),
        ("hf-hub:somebody/siglip", None, "hf-hub:somebody/siglip cannot be used: its vision tower is timm's"),
        ("hf-hub:somebody/broken", None, "cannot be had"),
        ("hf-hub:somebody/small", "openai", "brings its own weights; leave out pretrained 'openai'"),
        ("hf-hub:", None, "cannot be had"),
    ],
)
def test_models_of_a_hub_that_are_refused(hub, name, pretrained, message):
    hub_model(hub, "somebody/small")
    hub_model(hub, "somebody/siglip", vision_cfg={"timm_model_name": "vit_base"})
    hub_model(hub, "somebody/broken", vision_cfg=3)
    with pytest.raises(InputError, match=message) as error:
        AnomalyCLIP_lib.load(name, pretrained)
    assert "\n" not in str(error.value)


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
def test_towers_that_are_not_supported_are_refused_by_name(name, reason):
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
        ({"visual": EXPLOIT}, "not opened"),
    ],
)
def test_files_that_do_not_hold_a_clip(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as error:
        AnomalyCLIP_lib.load(None, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


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
