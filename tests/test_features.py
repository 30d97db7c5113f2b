"""Features computed once: the same numbers with and without a cache, and caches that are used for nothing else."""

import json
import os
import platform
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from helpers import QUICK, assert_same_checkpoint, check_error, make_data, make_method, run
from PIL import Image

import AnomalyCLIP_lib
import features
import utils
from dataset import AnomalyDataset
from features import open_store
from utils import InputError


@pytest.fixture(scope="module")
def model():
    return AnomalyCLIP_lib.load("tiny")


@pytest.fixture
def method(model):
    return make_method("anomalyclip", model, features_list=[3, 6])


def forbid_encoding(monkeypatch):
    def encode(*_):
        raise AssertionError("the features were computed again")

    monkeypatch.setattr(features, "encode", encode)


def test_training_is_the_same_bit_for_bit_with_and_without_a_cache(data, tmp_path, monkeypatch):
    common = ("--train_data_path", data, "--epoch", 2, "--batch_size", 5, "--cache_dir", tmp_path / "cache", *QUICK)
    for cache in ("none", "ram", "disk"):
        assert run(monkeypatch, "train", *common, "--save_path", tmp_path / cache, "--cache", cache) == 0
    forbid_encoding(monkeypatch)
    assert run(monkeypatch, "train", *common, "--save_path", tmp_path / "auto") == 0
    for cache in ("ram", "disk", "auto"):
        assert_same_checkpoint(tmp_path / "none" / "epoch_2.pth", tmp_path / cache / "epoch_2.pth")
        losses = [(tmp_path / name / "log.txt").read_text().split("epoch ")[1:3] for name in ("none", cache)]
        assert [line[:50] for line in losses[0]] == [line[:50] for line in losses[1]]


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_batches_hold_the_models_features(data, method, tmp_path, cache):
    dataset = AnomalyDataset(data, method.model.resize)
    source = open_store(method, dataset, cache, tmp_path)
    order = torch.tensor([7, 0, 3, 11, 5])
    first, second = source.batches(order, batch_size=3)
    model = method.model
    floats = AnomalyDataset(data, model.preprocess)
    items = [floats[index] for index in (7, 0, 3)]
    with torch.no_grad():
        image_features, patch_features = model.encode_image(torch.stack([item["image"] for item in items]), [3, 6])
    torch.testing.assert_close(first["features"]["image_features"], image_features)
    torch.testing.assert_close(first["features"]["patch_features"], torch.stack(patch_features, dim=1))
    assert first["rows"].tolist() == [0, 1, 2] and second["rows"].tolist() == [3, 4] and second["weight"] == 1
    assert torch.equal(first["mask"], torch.stack([item["mask"] for item in items]))
    assert first["label"].tolist() == [1, 0, 1] and second["label"].tolist() == [1, 1]
    assert second["class_name"] == ["tile", "metal_nut"] and len(second["image_path"]) == 2


@pytest.mark.parametrize(
    "change",
    ["weights", "features_list", "dpam_mode", "dpam_layer", "image_size", "precision", "wanted", "dtype", "data"],
)
def test_a_cache_is_not_used_for_anything_else(data, method, tmp_path, monkeypatch, change):
    dataset = AnomalyDataset(data, method.model.resize)
    open_store(method, dataset, "disk", tmp_path)
    other = {"features_list": [6], "dpam_mode": "qq", "dpam_layer": 1, "image_size": 104}
    if change in other:
        method.settings[change] = other[change]
    elif change == "data":
        dataset.checksum = "0"
    elif change == "precision":
        monkeypatch.setattr(method.model, "precision", "bf16")
    elif change == "weights":
        monkeypatch.setattr(method.model, "weights_sha256", "0")
    wanted = ("image_features",) if change == "wanted" else None
    forbid_encoding(monkeypatch)
    with pytest.raises(AssertionError, match="computed again"):
        open_store(method, dataset, "disk", tmp_path, "fp16" if change == "dtype" else "fp32", wanted=wanted)


def test_only_the_wanted_features_are_kept(data, method, tmp_path):
    dataset = AnomalyDataset(data, method.model.resize)
    for cache in ("none", "ram", "disk"):
        source = open_store(method, dataset, cache, tmp_path, wanted=("image_features",))
        (batch,) = source.batches(torch.arange(2), 2)
        assert batch["features"].keys() == {"image_features"} and batch["mask"].shape[0] == 2


def test_a_file_rewritten_with_the_same_number_of_bytes_is_noticed(method, tmp_path, monkeypatch):
    data = make_data(tmp_path / "data")
    dataset = AnomalyDataset(data, method.model.resize)
    open_store(method, dataset, "disk", tmp_path / "cache")
    mask = data / "tile" / "masks" / "1.png"
    os.utime(mask, ns=(0, mask.stat().st_mtime_ns + 1))
    assert AnomalyDataset(data, method.model.resize).checksum == dataset.checksum
    forbid_encoding(monkeypatch)
    with pytest.raises(AssertionError, match="computed again"):
        open_store(method, dataset, "disk", tmp_path / "cache")


def test_a_killed_writer_leaves_nothing_that_is_used(data, method, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("killed")

    dataset = AnomalyDataset(data, method.model.resize)
    with monkeypatch.context() as patch:
        patch.setattr(features.shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing
        patch.setattr(features, "fill", fail)
        with pytest.raises(AssertionError, match="killed"):
            open_store(method, dataset, "disk", tmp_path)
    (left,) = tmp_path.iterdir()
    left.rename(tmp_path / f"{left.name.split('.')[0]}.{platform.node()}.{2**22 + 1}.tmp")
    open_store(method, dataset, "disk", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [left.name.split(".")[0]]


@pytest.mark.parametrize("damage", ["cut", "empty", "junk", "missing", "shape", "folder", "no file", "key", "foreign"])
def test_a_damaged_cache_is_made_anew(data, method, tmp_path, damage):
    dataset = AnomalyDataset(data, method.model.resize)
    expected = {k: v.clone() for k, v in open_store(method, dataset, "disk", tmp_path).arrays.items()}
    (folder,) = tmp_path.iterdir()
    file = folder / "patch_features.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage in ("empty", "junk"):
        file.write_bytes(b"junk" if damage == "junk" else b"")
    elif damage in ("missing", "folder", "no file"):
        file.unlink()
        if damage == "folder":
            file.mkdir()
        elif damage == "no file":
            shutil.rmtree(folder)
            folder.mkdir()
    elif damage == "shape":
        np.save(file, np.load(file)[:3])
    elif damage == "key":
        (folder / "key.json").write_text("[" * 10000)
    else:
        (folder / "foreign.npy").write_bytes(b"junk")
    again = open_store(method, dataset, "disk", tmp_path).arrays
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], values) for name, values in expected.items())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_cache_dir_that_cannot_be_written_is_named(data, method, tmp_path):
    dataset = AnomalyDataset(data, method.model.resize)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--cache_dir .*/file cannot be written \(.*\); give another folder"):
        open_store(method, dataset, "disk", tmp_path / "file")


def test_a_precision_that_the_device_does_not_have(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    arguments = ("--train_data_path", data, "--save_path", tmp_path, *QUICK)
    assert run(monkeypatch, "train", *arguments, "--precision", "bf16") == 2
    check_error(capsys, "precision bf16 is not available on cpu with torch .*; use fp32")


def test_precision_auto_takes_what_the_hardware_has(data, tmp_path, monkeypatch, capsys):
    arguments = ("--train_data_path", data, *QUICK, "--precision", "auto", "--epoch", 1, "--cache", "none")
    for found, chosen in (({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")):
        for module in (utils, features):
            monkeypatch.setattr(module, "processor_features", lambda found=found: found)
        folder = tmp_path / "-".join(found)
        assert run(monkeypatch, "train", *arguments, "--save_path", folder, "--device", "cpu") == 0
        assert json.loads((folder / "args.json").read_text())["arguments"]["precision"] == chosen
        assert f" images, {chosen}, " in capsys.readouterr().out


def test_weights_in_bf16_give_the_same_as_casts_in_every_call():
    model, cast = AnomalyCLIP_lib.load("tiny"), AnomalyCLIP_lib.load("tiny", precision="bf16")
    assert cast.weights_sha256 == model.weights_sha256
    assert cast.clip.visual.conv1.weight.dtype == torch.bfloat16 and cast.clip.text_projection.dtype == torch.float32
    images = torch.rand(1, 3, 96, 96)
    model.precision = "bf16"
    for ours, expected in zip(cast.encode_image(images, [3, 6]), model.encode_image(images, [3, 6]), strict=True):
        for one, other in zip(ours, expected, strict=True):
            assert torch.equal(one, other)


def test_fp32_is_float32_in_cudnn_too():
    def tf32() -> bool:  # of convolutions
        cudnn = torch.backends.cudnn
        return cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32

    def encoder(images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(tf32())
        if len(seen) == 2:
            raise RuntimeError
        return {"image_features": images}

    seen, model, images = [], AnomalyCLIP_lib.load("tiny"), torch.zeros(1, 3, 96, 96)
    assert tf32()  # torch's default
    model.run_frozen(encoder, images)
    assert tf32()
    with pytest.raises(RuntimeError):
        model.run_frozen(encoder, images)
    assert tf32() and seen == [False, False]


def test_a_failing_compiler_is_one_line(data, tmp_path, monkeypatch, capsys):
    def broken(function, options):
        def compiled(*_):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nlong story")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    arguments = ("--train_data_path", data, "--save_path", tmp_path, *QUICK, "--compile", "--cache", "none")
    assert run(monkeypatch, "train", *arguments) == 2
    check_error(capsys, "--compile does not work here .no compiler.; leave it out")


def test_half_precision_takes_half_the_room(data, method, tmp_path):
    dataset = AnomalyDataset(data, method.model.resize)
    full, half = (open_store(method, dataset, "disk", tmp_path, kind).arrays for kind in ("fp32", "fp16"))
    assert half["patch_features"].nbytes * 2 == full["patch_features"].nbytes
    torch.testing.assert_close(half["patch_features"].float(), full["patch_features"], atol=1e-2, rtol=1e-3)


def test_a_full_disk_is_said_before_anything_is_written(data, method, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**9))
    dataset = AnomalyDataset(data, method.model.resize)
    with pytest.raises(InputError, match="--cache_dtype fp16 or --cache none"):
        open_store(method, dataset, "disk", tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_images_are_reported_while_the_cache_is_filled(tmp_path, monkeypatch, capsys):
    data = make_data(tmp_path / "data")
    (data / "tile" / "test" / "3 ö.png").write_bytes(b"")
    arguments = ("--train_data_path", data, "--save_path", tmp_path / "run", "--cache_dir", tmp_path / "cache")
    assert run(monkeypatch, "train", *arguments, *QUICK, "--cache", "disk") == 2
    check_error(capsys, r"3 ö\.png.*cannot be read")
    assert not list((tmp_path / "cache").iterdir())


def test_masks_survive(tmp_path, method):
    data = make_data(tmp_path / "data")
    mask = np.asarray(Image.open(data / "tile" / "masks" / "1.png"))
    dataset = AnomalyDataset(data, method.model.resize)
    source = open_store(method, dataset, "ram")
    (batch,) = source.batches(torch.tensor([7]), 1)
    share = batch["mask"].mean().item()
    assert share == pytest.approx((mask > 0).mean(), abs=0.01)
